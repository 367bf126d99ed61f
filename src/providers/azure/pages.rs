//! Turns pieces of an image, in any order, into page writes.
//!
//! A [Put Page](https://learn.microsoft.com/rest/api/storageservices/put-page) takes at most 4 MiB, and a blob takes
//! [60 MiB and 500 requests a second](https://learn.microsoft.com/azure/storage/blobs/scalability-targets). So requests are
//! few and large, and long runs of zeros are not sent: a new blob reads as zeros.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use crate::images::source::{Chunk, Content, is_zero};
use crate::images::vhd::FOOTER;

/// Upper bound on one request.
const WINDOW: usize = 4 << 20;
/// Zeros are detected in blocks of this size, that of file systems.
const BLOCK: usize = 4 << 10;
/// Shorter runs of zeros between data are sent along: another request would cost more.
const GAP: usize = 32 << 10;
/// Upper bound on the zeros sent, as a fraction of all bytes sent: one part in this many.
const SHARE: u64 = 32;

/// Gathers the pieces of an image of known length.
#[derive(Debug)]
pub(super) struct Pages {
    size: u64,
    seen: u64,
    open: BTreeMap<u64, Window>,
    end: [u8; FOOTER],
    /// Bytes so far in blocks that are not all zeros.
    data: u64,
    /// Bytes of zeros sent along with them so far.
    zeros: u64,
}

/// A part of the image that is not complete yet.
#[derive(Debug, Default)]
struct Window {
    /// Empty as long as the window has only zeros.
    bytes: Vec<u8>,
    filled: usize,
}

/// One write; offset and length are multiples of the page size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
}

impl Pages {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            seen: 0,
            open: BTreeMap::new(),
            end: [0; FOOTER],
            data: 0,
            zeros: 0,
        }
    }

    /// Adds a piece and returns the writes of the windows that it completes; `None` if the image is longer than declared.
    pub(super) fn add(&mut self, chunk: &Chunk) -> Option<Vec<Write>> {
        let len = chunk.content.len();
        if chunk.offset.checked_add(len as u64).is_none_or(|end| end > self.size) {
            return None;
        }
        self.seen += len as u64;
        self.keep_end(chunk);
        let into = usize::try_from(chunk.offset % WINDOW as u64).unwrap_or(0);
        let start = chunk.offset - into as u64;
        let whole = usize::try_from(self.size - start).unwrap_or(usize::MAX).min(WINDOW);
        let window = self.open.entry(start).or_default();
        if let Content::Data(bytes) = &chunk.content {
            if window.bytes.is_empty() {
                // The last page of a raw disk may be incomplete.
                window.bytes = vec![0; whole.next_multiple_of(FOOTER)];
            }
            window.bytes[into..into + len].copy_from_slice(bytes);
        }
        window.filled += len;
        if window.filled < whole {
            return Some(Vec::new());
        }
        let window = self.open.remove(&start)?;
        Some(self.writes(start, window.bytes.into()))
    }

    /// Every byte of the image was added.
    pub(super) fn is_complete(&self) -> bool {
        self.seen == self.size && self.open.is_empty()
    }

    /// The last bytes of the image, or zeros and the whole of one that is shorter.
    pub(super) fn end(&self) -> &[u8; FOOTER] {
        &self.end
    }

    fn keep_end(&mut self, chunk: &Chunk) {
        let Content::Data(bytes) = &chunk.content else { return };
        let first = self.size.saturating_sub(FOOTER as u64);
        let from = chunk.offset.max(first);
        let skipped = usize::try_from(from - chunk.offset).unwrap_or(usize::MAX);
        if let Some(tail) = bytes.get(skipped..).filter(|tail| !tail.is_empty()) {
            let at = usize::try_from(from - first).unwrap_or(0);
            self.end[at..at + tail.len()].copy_from_slice(tail);
        }
    }

    /// The data of a window, in few writes.
    fn writes(&mut self, start: u64, bytes: Bytes) -> Vec<Write> {
        let write = |run: Range<usize>| Write {
            offset: start + run.start as u64,
            bytes: bytes.slice(run),
        };
        self.runs(&bytes).into_iter().map(write).collect()
    }

    fn runs(&mut self, bytes: &[u8]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (number, block) in bytes.chunks(BLOCK).enumerate() {
            if is_zero(block) {
                continue;
            }
            let (start, end) = (number * BLOCK, number * BLOCK + block.len());
            self.data += block.len() as u64;
            match runs.last_mut() {
                Some(last) if self.sends_along(start - last.end) => last.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }

    /// A run of this many zeros is sent along with the data on both sides.
    fn sends_along(&mut self, zeros: usize) -> bool {
        let all = self.zeros + zeros as u64;
        let sends = zeros < GAP && all * SHARE <= self.data;
        if sends {
            self.zeros = all;
        }
        sends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::source::CHUNK;

    /// Assembles an image from its pieces in this order, and returns the number of bytes sent.
    fn round_trip(image: &[u8], order: impl Fn(usize) -> usize) -> (Vec<u8>, usize) {
        let mut pages = Pages::new(image.len() as u64);
        let pieces: Vec<&[u8]> = image.chunks(CHUNK).collect();
        let mut built = vec![0; image.len().next_multiple_of(FOOTER)];
        let mut sent = 0;
        for turn in 0..pieces.len() {
            let number = order(turn);
            let content = match pieces[number] {
                piece if is_zero(piece) => Content::Hole(piece.len()),
                piece => Content::Data(Bytes::copy_from_slice(piece)),
            };
            let offset = (number * CHUNK) as u64;
            for Write { offset, bytes } in pages.add(&Chunk { offset, content }).unwrap() {
                assert!(bytes.len() <= WINDOW && bytes.len() % FOOTER == 0 && offset % FOOTER as u64 == 0);
                let at = usize::try_from(offset).unwrap();
                built[at..at + bytes.len()].copy_from_slice(&bytes);
                sent += bytes.len();
            }
        }
        assert!(pages.is_complete());
        let tail = image.len().saturating_sub(FOOTER);
        assert_eq!(&pages.end()[..image.len() - tail], &image[tail..]);
        built.truncate(image.len());
        (built, sent)
    }

    #[test]
    fn pieces_in_any_order_make_the_image() {
        // Zeros of all kinds: whole windows, whole pieces, blocks, and less; the end in two pieces.
        let mut image = vec![0_u8; 3 * WINDOW + CHUNK + 256];
        for at in [
            0,
            5000,
            CHUNK + 1,
            WINDOW - 1,
            WINDOW,
            2 * CHUNK + 70_000,
            3 * WINDOW + CHUNK - 200,
        ] {
            image[at] = 7;
        }
        let last = image.len() - 1;
        image[last] = 9;
        let pieces = image.len().div_ceil(CHUNK);
        for (order, name) in [
            (Box::new(|turn| turn) as Box<dyn Fn(usize) -> usize>, "forwards"),
            (Box::new(move |turn| pieces - 1 - turn), "backwards"),
            (Box::new(move |turn| turn * 11 % pieces), "mixed"),
        ] {
            let (built, sent) = round_trip(&image, order);
            assert!(built == image, "{name}");
            assert!(sent <= 8 * BLOCK + 8192, "{name}: {sent}");
        }
    }

    #[test]
    fn full_windows_are_one_request() {
        let writes = Pages::new(0).writes(8 << 20, vec![1; WINDOW].into());
        assert_eq!(
            (writes.len(), writes[0].bytes.len(), writes[0].offset),
            (1, WINDOW, 8 << 20)
        );
    }

    #[test]
    fn small_gaps_are_sent_and_large_ones_are_not() {
        let mut pages = Pages::new(0);
        pages.runs(&vec![1; WINDOW]);
        let mut bytes = vec![0; WINDOW];
        for at in [10 * BLOCK, 12 * BLOCK, 40 * BLOCK] {
            bytes[at] = 1;
        }
        assert_eq!(pages.runs(&bytes), [10 * BLOCK..13 * BLOCK, 40 * BLOCK..41 * BLOCK]);
        assert!(pages.runs(&vec![0; WINDOW]).is_empty());
    }

    #[test]
    fn scattered_data_are_not_sent_with_all_that_is_between_them() {
        let mut pages = Pages::new(0);
        let mut bytes = vec![0; WINDOW];
        bytes.chunks_mut(4 * BLOCK).for_each(|chunk| chunk[0] = 1);
        let data = WINDOW / 4;
        for round in 1..4 {
            let sent: usize = pages.runs(&bytes).iter().map(Range::len).sum();
            assert!((data..=data * 105 / 100).contains(&sent), "{round}: {sent} for {data}");
        }
    }

    #[test]
    fn an_image_that_is_longer_or_shorter_is_seen() {
        let mut pages = Pages::new(CHUNK as u64);
        let hole = |offset, len| Chunk {
            offset,
            content: Content::Hole(len),
        };
        assert_eq!(pages.add(&hole(0, CHUNK - 1)), Some(Vec::new()));
        assert!(!pages.is_complete());
        assert_eq!(pages.add(&hole(CHUNK as u64 - 1, 2)), None);
        assert_eq!(pages.add(&hole(u64::MAX, 2)), None);
        assert_eq!(pages.add(&hole(CHUNK as u64 - 1, 1)), Some(Vec::new()));
        assert!(pages.is_complete());
    }
}
