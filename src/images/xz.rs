//! Decodes .xz files block by block, on all threads at once.
//!
//! Blocks are independent of each other. They are cut out of the ordered stream without decoding it, and a pool of
//! threads that all images share decodes them, each by itself. A block that is too large for that, as those of `xz -9` are,
//! is held compressed and decoded in steps beside the others, if the target takes the image in any order. A block that
//! finds no memory free is decoded as it comes in, in constant memory; so is the one block of a file that has no more.
//! Headers, index, footer, and padding are verified here, the blocks and their checks by liblzma.

mod block;
mod decoding;
mod flow;
mod format;
mod memo;
mod pool;

use std::io;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf, Bytes};
use flate2::Crc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use block::Cutter;
use decoding::{Decoding, Whole, broke};
use flow::{Budget, Flow, Outlet};
use format::{BlockHeader, Record, StreamHeader, Vli, bad};
use pool::Pool;

pub(super) use flow::{Lease, Waiting};
pub(super) use format::{LONGEST_HEADER, STREAM_HEADER, blocks, first_dictionary, index_length};

use super::source::dictionary::{Dictionaries, Turn};
use super::source::stored::Stored;
use super::source::{Error, Lane, Order, Piece};

/// The first bytes of every .xz file.
pub(super) const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// The share of the budget that one image may hold, per decoding thread and for three more blocks that are cut, wait, or leave:
/// the 24 MiB of `xz -6 -T0` decoded, and a third of it compressed. Two processors come to 160 MiB.
const SHARE_PER_BLOCK: u64 = 32 << 20;
const MORE_BLOCKS: u64 = 3;
/// Chunks that a plain stream yields in one go, and those that may wait for the target then.
const STEP: usize = 4;
/// Lanes that wait for a target that takes the image in order: one for each block that may be under way.
pub(super) const LANES: usize = flow::BLOCKS;

/// The threads and the memory, shared by all images.
#[derive(Debug)]
pub(super) struct Decoders {
    pool: Pool,
    budget: Arc<Budget>,
    share: u64,
    threads: u64,
    memory: u64,
    /// For all kinds of files.
    pub dictionaries: Dictionaries,
}

impl Decoders {
    /// So many threads and bytes.
    pub fn new(threads: usize, memory: u64) -> Self {
        let blocks = (threads.max(1) as u64).saturating_add(MORE_BLOCKS);
        Self {
            pool: Pool::new(threads),
            budget: Arc::new(Budget::new(memory)),
            threads: threads.max(1) as u64,
            memory,
            share: memory.min(blocks.saturating_mul(SHARE_PER_BLOCK)),
            dictionaries: Dictionaries::default(),
        }
    }

    /// Memory that a decoder beside these needs in any case.
    pub fn overdraw(&self, bytes: u64) -> Lease {
        Flow::new(self.budget.clone(), 0).overdraw(bytes)
    }
}

/// Why an image could not be decoded.
pub(super) enum Fault {
    /// The bytes could not be had.
    Read(Error),
    /// No thread could be started.
    Thread(io::Error),
    /// They are not what they should be.
    Malformed(io::Error),
    /// The reader is gone.
    Abandoned,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Read(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Malformed(error)
    }
}

/// Decodes a whole file, whose first block `turn` suffices for. When it returns well, every block is decoded and verified;
/// the pieces may still be in the lanes.
pub(super) async fn decode(
    stored: &mut Stored,
    decoders: &Arc<Decoders>,
    turn: Turn,
    order: Order,
    lanes: &mpsc::Sender<Result<Piece<Lane>, Error>>,
) -> Result<(), Fault> {
    decoders.pool.start().map_err(Fault::Thread)?;
    let flow = Flow::new(decoders.budget.clone(), decoders.share);
    let _stop = StopOnDrop(flow.clone());
    let mut file = File {
        stored,
        decoders,
        lanes,
        flow,
        turn,
        steps: JoinSet::new(),
        shared: None,
        offset: 0,
    };
    if order == Order::Any {
        file.shared = Some(file.lane().await?);
    }
    loop {
        file.stream().await?;
        if !file.padding().await? {
            break;
        }
    }
    file.flow.idle().await?;
    Ok(())
}

/// Stops the decoding of blocks when the image ends, for whatever reason.
struct StopOnDrop(Arc<Flow>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A file that is being read.
struct File<'a> {
    stored: &'a mut Stored,
    decoders: &'a Arc<Decoders>,
    lanes: &'a mpsc::Sender<Result<Piece<Lane>, Error>>,
    flow: Arc<Flow>,
    turn: Turn,
    /// Blocks that are decoded in steps.
    steps: JoinSet<()>,
    /// The one outlet for all blocks, if the target takes them in any order.
    shared: Option<Outlet>,
    /// Where in the image the next block begins.
    offset: u64,
}

impl File<'_> {
    async fn stream(&mut self) -> Result<(), Fault> {
        let header = StreamHeader::parse(self.array().await?)?;
        let mut records = Records::default();
        loop {
            match self.byte().await? {
                0 => break,
                length => {
                    let record = self.block(&header, length).await?;
                    records.add(record);
                }
            }
        }
        let index = self.index(records).await?;
        header.verify_footer(self.array().await?, index)?;
        Ok(())
    }

    /// Skips the zeros behind a stream. Tells whether another one follows.
    async fn padding(&mut self) -> Result<bool, Fault> {
        let mut zeros = 0_u64;
        loop {
            let piece = self.stored.piece().await?;
            let found = piece.iter().take_while(|byte| **byte == 0).count();
            zeros += found as u64;
            piece.advance(found);
            let ended = found == 0 && piece.is_empty();
            if !zeros.is_multiple_of(4) && (ended || !piece.is_empty()) {
                return Err(bad("the padding behind a stream is not a multiple of four bytes").into());
            }
            if ended || !piece.is_empty() {
                return Ok(!ended);
            }
        }
    }

    /// The block whose header begins with this byte.
    async fn block(&mut self, stream: &StreamHeader, first: u8) -> Result<Record, Fault> {
        let mut header = vec![first];
        while header.len() < BlockHeader::length(first) {
            header.push(self.byte().await?);
        }
        let header = BlockHeader::parse(header)?;
        let mut block = Block {
            cutter: Cutter::new(&header, stream.check),
            remembered: header.remembered(),
            pieces: vec![header.bytes.into()],
        };
        let largest = self.flow.largest();
        // A block that does not tell its size may be small enough, and is if it ends soon.
        let needed = block.cutter.claim().unwrap_or(largest);
        if let Some(needed) = block.cutter.claim_in_steps().filter(|_| needed > largest)
            && let Some(lease) = self.room_for_steps(needed).await?
        {
            while !block.cutter.is_complete() {
                block.pieces.push(block.cutter.cut(self.some().await?)?);
            }
            let record = self.in_steps(stream, block, lease).await?;
            self.offset += record.uncompressed;
            return Ok(record);
        }
        let lease = if needed > largest {
            None
        } else {
            self.flow.room(needed).await?
        };
        let record = match lease {
            Some(lease) => {
                while !block.cutter.is_complete() && block.cutter.seen() <= largest {
                    block.pieces.push(block.cutter.cut(self.some().await?)?);
                }
                if block.cutter.is_complete() {
                    self.whole(stream, block, lease).await?
                } else {
                    self.plain(stream, block, lease).await?
                }
            }
            None => {
                let none = self.flow.overdraw(0);
                self.plain(stream, block, none).await?
            }
        };
        self.offset += record.uncompressed;
        Ok(record)
    }

    /// A block that is here, ready to be decoded to its place in the image.
    fn collected(&self, stream: &StreamHeader, block: Block) -> Whole {
        Whole {
            stream: *stream,
            record: block.cutter.record(),
            offset: self.offset,
            pieces: block.pieces,
        }
    }

    /// Gives a block that is here to the threads.
    async fn whole(&mut self, stream: &StreamHeader, block: Block, mut lease: Lease) -> Result<Record, Fault> {
        lease.keep(block.cutter.seen());
        let whole = self.collected(stream, block);
        let record = whole.record;
        let outlet = self.outlet().await?;
        let begun = self.flow.begin();
        self.decoders
            .pool
            .block(move |workshop| whole.decode(workshop, lease, outlet, begun));
        Ok(record)
    }

    /// Memory for a block that is decoded in steps. `None` where there is not enough for one on each thread, or where the
    /// target wants the image in order: it would wait for the last block, and the others for it.
    async fn room_for_steps(&self, needed: u64) -> Result<Option<Lease>, Fault> {
        let all = needed.saturating_mul(self.decoders.threads);
        if self.shared.is_none() || all > self.decoders.memory {
            return Ok(None);
        }
        self.flow.widen(all);
        Ok(self.flow.room(needed).await?)
    }

    /// Decodes a block that is here beside others.
    async fn in_steps(&mut self, stream: &StreamHeader, block: Block, lease: Lease) -> Result<Record, Fault> {
        let whole = self.collected(stream, block);
        let record = whole.record;
        let outlet = self.outlet().await?;
        let begun = self.flow.begin();
        let decoders = self.decoders.clone();
        while self.steps.try_join_next().is_some() {}
        self.steps.spawn(async move {
            let outcome = whole.in_steps(&decoders.pool, STEP, outlet).await;
            drop(lease);
            begun.end(outcome);
        });
        Ok(record)
    }

    /// Decodes a block as it comes in.
    async fn plain(&mut self, stream: &StreamHeader, mut block: Block, mut lease: Lease) -> Result<Record, Fault> {
        lease.keep(block.cutter.seen());
        self.turn.extend(block.remembered)?;
        let mut decoding = Decoding::new(self.offset, lease, self.outlet().await?)?;
        decoding.feed(Bytes::copy_from_slice(&stream.bytes));
        for piece in block.pieces {
            decoding.feed(piece);
        }
        let mut dictionary = self.flow.overdraw(0);
        let mut finishing = false;
        while !decoding.has_ended() {
            if decoding.is_hungry() {
                if finishing {
                    return Err(bad("a block ends in the middle").into());
                }
                finishing = block.cutter.is_complete();
                decoding.feed(if finishing {
                    stream.ending(block.cutter.record()).into()
                } else {
                    block.cutter.cut(self.some().await?)?
                });
                dictionary = self.flow.overdraw(block.cutter.dictionary());
            }
            self.flow.taken(STEP).await?;
            let step = move || {
                let outcome = decoding.step(STEP);
                (decoding, outcome)
            };
            let (back, outcome) = self.decoders.pool.step(step).await.ok_or_else(broke)?;
            outcome?;
            decoding = back;
        }
        drop(dictionary);
        Ok(block.cutter.record())
    }

    /// Verifies the index against the blocks seen. Returns its length.
    async fn index(&mut self, records: Records) -> Result<u64, Fault> {
        let mut index = Index {
            crc: Crc::new(),
            length: 0,
        };
        index.add(0);
        let differs = || bad("the index tells of other blocks than there are");
        if self.number(&mut index).await? != records.count {
            return Err(differs().into());
        }
        let mut found = Records::default();
        for _ in 0..records.count {
            let unpadded = self.number(&mut index).await?;
            let uncompressed = self.number(&mut index).await?;
            found.add(Record { unpadded, uncompressed });
        }
        if found.finish() != records.finish() {
            return Err(differs().into());
        }
        while !index.length.is_multiple_of(4) {
            let byte = self.byte().await?;
            index.add(byte);
            if byte != 0 {
                return Err(bad("the index has something in its padding").into());
            }
        }
        if self.array().await? != index.crc.sum().to_le_bytes() {
            return Err(bad("the index is damaged").into());
        }
        Ok(index.length + 4)
    }

    async fn number(&mut self, index: &mut Index) -> Result<u64, Fault> {
        let mut number = Vli::default();
        loop {
            let byte = self.byte().await?;
            index.add(byte);
            if let Some(value) = number.push(byte)? {
                return Ok(value);
            }
        }
    }

    async fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.some().await?.get_u8())
    }

    async fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte().await?;
        }
        Ok(bytes)
    }

    /// Bytes that must be there.
    async fn some(&mut self) -> Result<&mut Bytes, Fault> {
        let piece = self.stored.piece().await?;
        if piece.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends too early").into());
        }
        Ok(piece)
    }

    /// Where the pieces of the next block go.
    async fn outlet(&self) -> Result<Outlet, Fault> {
        match &self.shared {
            Some(shared) => Ok(shared.clone()),
            None => self.lane().await,
        }
    }

    async fn lane(&self) -> Result<Outlet, Fault> {
        let (outlet, lane) = Outlet::new(&self.flow);
        let lane = Ok(Piece::Next(Lane::Blocks(lane)));
        self.lanes.send(lane).await.map_err(|_| Fault::Abandoned)?;
        Ok(outlet)
    }
}

/// A block that is being cut.
struct Block {
    cutter: Cutter,
    /// Bytes that a decoder has to remember that takes the block as it comes in.
    remembered: u64,
    /// Its header, and what came behind it.
    pieces: Vec<Bytes>,
}

/// The blocks of a stream: their number, and a digest of their sizes, which takes no memory however many they are.
struct Records {
    count: u64,
    digest: Context,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            count: 0,
            digest: Context::new(&SHA256),
        }
    }
}

impl Records {
    fn add(&mut self, record: Record) {
        self.count += 1;
        self.digest.update(&record.unpadded.to_le_bytes());
        self.digest.update(&record.uncompressed.to_le_bytes());
    }

    fn finish(self) -> Vec<u8> {
        self.digest.finish().as_ref().to_vec()
    }
}

/// An index that is being read.
struct Index {
    crc: Crc,
    length: u64,
}

impl Index {
    fn add(&mut self, byte: u8) {
        self.crc.update(&[byte]);
        self.length += 1;
    }
}
