//! Where a block ends, without decoding it.
//!
//! The compressed data of a block is a row of
//! [LZMA2 chunks](https://github.com/tukaani-project/xz/blob/master/src/liblzma/lzma/lzma2_decoder.c), each of which
//! begins with its lengths. Following them tells both sizes of any block, also where its header does not, and whether
//! the header tells the truth before anything is set aside for it.

use std::io;

use bytes::Bytes;

use super::format::{BlockHeader, Record, bad};

/// Cuts a block out of the bytes that follow its header.
#[derive(Debug)]
pub(super) struct Cutter {
    claimed: (Option<u64>, Option<u64>),
    header: u64,
    dictionary: u64,
    check: usize,
    compressed: u64,
    uncompressed: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The lengths of a chunk, as far as they have come.
    Lengths([u8; 5], usize),
    /// So many bytes of a chunk are to come.
    Data(usize),
    /// So many bytes of padding and check are to come.
    Tail(usize),
}

impl Cutter {
    /// For the block behind this header, in a stream with checks of this length.
    pub fn new(header: &BlockHeader, check: usize) -> Self {
        Self {
            claimed: (header.compressed, header.uncompressed),
            header: header.bytes.len() as u64,
            dictionary: header.dictionary,
            check,
            compressed: 0,
            uncompressed: 0,
            state: State::Lengths([0; 5], 0),
        }
    }

    /// Memory to hold and decode the block, if its header tells.
    pub fn claim(&self) -> Option<u64> {
        let (compressed, uncompressed) = (self.claimed.0?, self.claimed.1?);
        Some(self.memory(compressed, uncompressed))
    }

    /// Memory to hold the block and to decode it piece by piece, if its header tells.
    pub fn claim_in_steps(&self) -> Option<u64> {
        let (compressed, uncompressed) = (self.claimed.0?, self.claimed.1?);
        Some(self.memory(compressed, uncompressed).saturating_sub(uncompressed))
    }

    /// Memory to hold and decode what has been seen of the block.
    pub fn seen(&self) -> u64 {
        self.memory(self.compressed, self.uncompressed)
    }

    /// Memory that a decoder of what has been seen takes for its dictionary.
    pub fn dictionary(&self) -> u64 {
        // It never holds more than what was decoded, and memory that was never touched is none.
        self.dictionary.min(self.uncompressed)
    }

    fn memory(&self, compressed: u64, uncompressed: u64) -> u64 {
        let dictionary = self.dictionary.min(uncompressed);
        let around = self.header + self.check as u64;
        [compressed, uncompressed, dictionary]
            .iter()
            .fold(around, |sum, part| sum.saturating_add(*part))
    }

    /// Whether the last byte was cut.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::Tail(0))
    }

    /// The entry that the index must have for the block, once it is complete.
    pub fn record(&self) -> Record {
        Record {
            unpadded: self.header + self.compressed + self.check as u64,
            uncompressed: self.uncompressed,
        }
    }

    /// Takes from `piece` what belongs to the block.
    ///
    /// # Errors
    ///
    /// No LZMA2 data, or other sizes than the header tells.
    pub fn cut(&mut self, piece: &mut Bytes) -> io::Result<Bytes> {
        let mut at = 0;
        while at < piece.len() && !self.is_complete() {
            at += self.advance(&piece[at..])?;
        }
        Ok(piece.split_to(at))
    }

    /// Takes note of some of these bytes and tells how many.
    fn advance(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (taken, next) = match self.state {
            State::Lengths(mut lengths, known) => {
                lengths[known] = bytes[0];
                self.compressed += 1;
                (1, self.chunk(lengths, known + 1)?)
            }
            State::Data(left) => {
                let taken = left.min(bytes.len());
                self.compressed += taken as u64;
                let next = if taken == left {
                    State::Lengths([0; 5], 0)
                } else {
                    State::Data(left - taken)
                };
                (taken, next)
            }
            State::Tail(left) => {
                let taken = left.min(bytes.len());
                (taken, State::Tail(left - taken))
            }
        };
        self.state = next;
        let lies = |claimed: Option<u64>, found| claimed.is_some_and(|claimed| found > claimed);
        if lies(self.claimed.0, self.compressed) || lies(self.claimed.1, self.uncompressed) {
            return Err(bad("a block is larger than its header says"));
        }
        Ok(taken)
    }

    /// After another byte of a chunk's lengths.
    fn chunk(&mut self, lengths: [u8; 5], known: usize) -> io::Result<State> {
        let pair = |at: usize| usize::from(lengths[at]) << 8 | usize::from(lengths[at + 1]);
        let (decoded, data) = match (lengths[0], known) {
            (0, _) => {
                let lies = |claimed: Option<u64>, found| claimed.is_some_and(|claimed| found != claimed);
                if lies(self.claimed.0, self.compressed) || lies(self.claimed.1, self.uncompressed) {
                    return Err(bad("a block is smaller than its header says"));
                }
                let padding = (4 - self.compressed % 4) % 4;
                return Ok(State::Tail(usize::try_from(padding).unwrap_or(0) + self.check));
            }
            (3..0x80, _) => return Err(bad("a block holds something that is not LZMA2")),
            // Stored as it is.
            (1 | 2, 3) => (pair(1) + 1, pair(1) + 1),
            // Compressed; from 0xc0 on, a byte of properties comes before the data.
            (control @ 0x80.., 5) => {
                let decoded = usize::from(control & 0x1f) << 16 | pair(1);
                (decoded + 1, pair(3) + 1 + usize::from(control >= 0xc0))
            }
            _ => return Ok(State::Lengths(lengths, known)),
        };
        self.uncompressed += decoded as u64;
        Ok(State::Data(data))
    }
}
