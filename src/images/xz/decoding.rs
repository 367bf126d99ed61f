//! Decodes one block: the block between a stream header and an ending made for it, given to liblzma.
//!
//! So liblzma sees a complete file with one block, and verifies the block's check and both of its sizes. One kind of
//! check is computed here, with vector instructions: CRC64, which `xz` uses unless told otherwise.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, Bytes};
use crc_fast::{CrcAlgorithm, Digest};
use liblzma::stream::{Action, IGNORE_CHECK, Status, Stream};

use super::flow::{Begun, Lease, Outlet};
use super::format::{Record, StreamHeader, bad};
use super::memo::Key;
use super::pool::{Pool, Workshop};
use crate::images::source::{CHUNK, is_zero};

/// `xz -9` asks for 65 MiB to decode; a file that asks for more was made to exhaust us.
const MEMORY: u64 = 128 << 20;
/// Says in a stream header that blocks are checked by CRC64.
const CRC64: [u8; 2] = [0, 4];

/// A block on its way through a decoder.
pub(super) struct Decoding {
    stream: Stream,
    input: VecDeque<Bytes>,
    /// The next chunk, as far as it is decoded.
    chunk: Vec<u8>,
    filled: usize,
    /// Where in the image that chunk begins.
    offset: u64,
    lease: Lease,
    outlet: Outlet,
    /// The check of the bytes sent, where it is verified here.
    crc: Option<Digest>,
    zeros: bool,
    ended: bool,
}

impl Decoding {
    /// Begins a block that decodes to what is at `offset` of the image.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn new(offset: u64, lease: Lease, outlet: Outlet) -> io::Result<Self> {
        Ok(Self {
            stream: Stream::new_stream_decoder(MEMORY, 0)?,
            input: VecDeque::new(),
            chunk: Vec::new(),
            filled: 0,
            offset,
            lease,
            outlet,
            crc: None,
            zeros: true,
            ended: false,
        })
    }

    /// As [`Self::new`] for a block whose CRC64 the caller compares with [`Self::crc`]: liblzma as it is built here
    /// computes it byte by byte, which takes a tenth of the time.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn with_crc(offset: u64, lease: Lease, outlet: Outlet) -> io::Result<Self> {
        let mut decoding = Self::new(offset, lease, outlet)?;
        decoding.stream = Stream::new_stream_decoder(MEMORY, IGNORE_CHECK)?;
        decoding.crc = Some(Digest::new(CrcAlgorithm::Crc64Xz));
        Ok(decoding)
    }

    /// The CRC64 of what was decoded, if it was computed.
    pub fn crc(&self) -> Option<u64> {
        self.crc.as_ref().map(Digest::finalize)
    }

    /// Adds bytes to be decoded.
    pub fn feed(&mut self, bytes: Bytes) {
        self.input.push_back(bytes);
    }

    /// Whether the last byte was decoded and verified.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the input is used up.
    pub fn is_hungry(&self) -> bool {
        self.input.is_empty()
    }

    /// Whether there were only zeros.
    pub fn is_zero(&self) -> bool {
        self.zeros
    }

    /// Decodes until so many chunks were sent, the input is used up, or the block has ended.
    ///
    /// # Errors
    ///
    /// Not what it should be, or a dictionary beyond bounds.
    pub fn step(&mut self, chunks: usize) -> io::Result<()> {
        for _ in 0..chunks {
            self.prepare();
            self.fill()?;
            if self.ended {
                self.send();
                return Ok(());
            }
            if self.filled < self.chunk.len() {
                return Ok(());
            }
            self.send();
        }
        Ok(())
    }

    /// Makes room for what is left of the chunk of the image at this offset.
    fn prepare(&mut self) {
        if self.filled > 0 {
            return;
        }
        let into = usize::try_from(self.offset % CHUNK as u64).unwrap_or(0);
        let len = CHUNK - into;
        // The buffer of a hole is used again.
        if self.chunk.len() < len {
            self.chunk = vec![0; len];
        }
        self.chunk.truncate(len);
    }

    fn fill(&mut self) -> io::Result<()> {
        while self.filled < self.chunk.len() {
            let Some(input) = self.input.front_mut() else { break };
            if input.is_empty() {
                self.input.pop_front();
                continue;
            }
            let before = (self.stream.total_in(), self.stream.total_out());
            let status = self
                .stream
                .process(input, &mut self.chunk[self.filled..], Action::Run)?;
            let progress = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(0);
            input.advance(progress(self.stream.total_in(), before.0));
            self.filled += progress(self.stream.total_out(), before.1);
            match status {
                Status::StreamEnd => {
                    self.ended = true;
                    break;
                }
                // Neither reads nor writes, and never will.
                Status::MemNeeded => return Err(bad("a block ends in the middle")),
                Status::Ok | Status::GetCheck => {}
            }
        }
        Ok(())
    }

    fn send(&mut self) {
        let len = self.filled;
        if len == 0 {
            return;
        }
        if let Some(crc) = &mut self.crc {
            crc.update(&self.chunk[..len]);
        }
        if is_zero(&self.chunk[..len]) {
            self.outlet.hole(self.offset, len);
            self.lease.give_back(len as u64);
        } else {
            self.zeros = false;
            let mut bytes = std::mem::take(&mut self.chunk);
            bytes.truncate(len);
            // Only the last piece of a block is short; a row of tiny blocks must not hold whole chunks.
            bytes.shrink_to_fit();
            let lease = self.lease.take(len as u64);
            self.outlet.data(self.offset, bytes, lease);
        }
        self.offset += len as u64;
        self.filled = 0;
    }
}

/// A decoder panicked.
pub(super) fn broke() -> io::Error {
    io::Error::other("a decoder broke down")
}

/// A block to be decoded at once.
pub(super) struct Whole {
    /// The stream that it is part of.
    pub stream: StreamHeader,
    /// Its sizes.
    pub record: Record,
    /// Where in the image it belongs.
    pub offset: u64,
    /// Its header, and what comes behind it.
    pub pieces: Vec<Bytes>,
}

impl Whole {
    /// Decodes it on a thread of the pool.
    pub fn decode(self, workshop: &Workshop, lease: Lease, outlet: Outlet, begun: Begun) {
        let outcome = self.run(workshop, lease, outlet);
        begun.end(outcome);
    }

    fn run(self, workshop: &Workshop, lease: Lease, outlet: Outlet) -> io::Result<()> {
        let key = Key::new(self.stream.flags(), &self.pieces);
        if let Some(key) = &key
            && workshop.memo.knows(key)
        {
            self.holes(&outlet);
            return Ok(());
        }
        let flow = outlet.flow().clone();
        let crc = self.crc();
        let mut decoding = self.start(lease, outlet)?;
        while !decoding.has_ended() {
            if flow.is_stopped() {
                return Ok(());
            }
            if decoding.is_hungry() {
                return Err(bad("a block ends in the middle"));
            }
            decoding.step(1)?;
            workshop.interlude();
        }
        if decoding.crc() != crc {
            return Err(bad("a block does not match its check"));
        }
        if let Some(key) = key
            && decoding.is_zero()
        {
            workshop.memo.remember(key);
        }
        Ok(())
    }

    /// Decodes it in steps of the pool's threads, each as soon as the target has taken almost everything: all that it takes
    /// is the block, its dictionary, and a few chunks.
    ///
    /// # Errors
    ///
    /// It does not decode.
    pub async fn in_steps(self, pool: &Pool, chunks: usize, outlet: Outlet) -> io::Result<()> {
        let flow = outlet.flow().clone();
        let crc = self.crc();
        let mut decoding = self.start(flow.overdraw(0), outlet)?;
        while !decoding.has_ended() {
            if !flow.is_wanted(chunks).await {
                return Ok(());
            }
            if decoding.is_hungry() {
                return Err(bad("a block ends in the middle"));
            }
            let step = move || {
                let outcome = decoding.step(chunks);
                (decoding, outcome)
            };
            let (back, outcome) = pool.step(step).await.ok_or_else(broke)?;
            outcome?;
            decoding = back;
        }
        if decoding.crc() != crc {
            return Err(bad("a block does not match its check"));
        }
        Ok(())
    }

    /// A decoder that has all of the block.
    fn start(self, lease: Lease, outlet: Outlet) -> io::Result<Decoding> {
        let mut decoding = match self.crc() {
            Some(_) => Decoding::with_crc(self.offset, lease, outlet)?,
            None => Decoding::new(self.offset, lease, outlet)?,
        };
        decoding.feed(Bytes::copy_from_slice(&self.stream.bytes));
        for piece in self.pieces {
            decoding.feed(piece);
        }
        decoding.feed(self.stream.ending(self.record).into());
        Ok(decoding)
    }

    /// The check behind the block, if it is a CRC64.
    fn crc(&self) -> Option<u64> {
        let mut check = [0; 8];
        let last = self.pieces.iter().rev().flat_map(|piece| piece.iter().rev());
        for (to, from) in check.iter_mut().rev().zip(last) {
            *to = *from;
        }
        (self.stream.flags() == CRC64).then(|| u64::from_le_bytes(check))
    }

    fn holes(&self, outlet: &Outlet) {
        let end = self.offset + self.record.uncompressed;
        let mut at = self.offset;
        while at < end {
            let len = (CHUNK as u64 - at % CHUNK as u64).min(end - at);
            outlet.hole(at, usize::try_from(len).unwrap_or(CHUNK));
            at += len;
        }
    }
}
