//! Compressed blocks that are known to be all zeros.
//!
//! Zeros are not free: a decoder yields them at a few hundred MiB/s. But all blocks of zeros of one file are made of the
//! same bytes, so that a look at those suffices. This is exact: the bytes, their check included, were decoded and
//! verified once.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// The longest block remembered. 24 MiB of zeros take 3.6 KiB; a larger block of zeros takes its time.
const BLOCK: usize = 16 << 10;
/// So many blocks are remembered, the youngest ones. A file has one or two kinds.
const KINDS: usize = 16;

/// Remembers blocks that decoded to zeros.
#[derive(Debug, Default)]
pub(super) struct Memo(Mutex<VecDeque<Key>>);

/// A whole block and the kind of its check: all that a decoder looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    flags: [u8; 2],
    block: Vec<u8>,
}

impl Key {
    /// Of a block in pieces; `None` for one that is too large to be remembered.
    pub fn new(flags: [u8; 2], pieces: &[Bytes]) -> Option<Self> {
        let length: usize = pieces.iter().map(Bytes::len).sum();
        (length <= BLOCK).then(|| Self {
            flags,
            block: pieces.concat(),
        })
    }
}

impl Memo {
    /// Whether the block is known to be all zeros.
    pub fn knows(&self, key: &Key) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(key)
    }

    /// Remembers a block that was verified and decoded to zeros.
    pub fn remember(&self, key: Key) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&key) {
            return;
        }
        if known.len() == KINDS {
            known.pop_front();
        }
        known.push_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(check: u8, bytes: &[u8]) -> Key {
        Key::new([0, check], &[Bytes::copy_from_slice(bytes)]).unwrap()
    }

    #[test]
    fn every_byte_counts() {
        let memo = Memo::default();
        memo.remember(key(4, b"block"));
        assert!(memo.knows(&key(4, b"block")));
        assert!(!memo.knows(&key(4, b"bl0ck")));
        assert!(!memo.knows(&key(1, b"block")));
        assert!(!memo.knows(&key(4, b"bloc")));
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let memo = Memo::default();
        for kind in 0..=u8::try_from(KINDS).unwrap() {
            memo.remember(key(4, &[kind]));
        }
        assert!(!memo.knows(&key(4, &[0])));
        assert!(memo.knows(&key(4, &[1])));
        assert!(Key::new([0, 4], &[vec![0; BLOCK + 1].into()]).is_none());
    }
}
