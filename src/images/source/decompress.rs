//! Decoding off the async threads, told by the first bytes of what is stored: .xz files on the threads that all images
//! share, everything else on a thread of its own.
//!
//! A decoder never runs on the threads that keep the broker's heartbeats.

use std::io::{self, BufReader, ErrorKind, Read};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::dictionary::Turn;
use super::frames::{self, Frames};
use super::stored::Stored;
use super::{CHUNK, Content, DECODED_QUEUE, Decoded, Error, Lane, Order, Piece, Receiver, is_zero};
use crate::images::gzip::Members;
use crate::images::magic;
use crate::images::xz::{self, Decoders, Fault};

/// First bytes of a file that state how much its decoder has to remember: the headers of an .xz file are the longest.
const HEADERS: usize = xz::STREAM_HEADER + xz::LONGEST_HEADER;
/// Bytes that tell the format.
pub(in crate::images) const MAGIC: usize = magic::LONGEST;
/// Stored bytes that are read at once where a decoder wants to look ahead.
pub(in crate::images) const AHEAD: usize = 64 << 10;

/// How an image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum Format {
    Xz,
    Gzip,
    Zstd,
    /// In a way that is not supported.
    Unsupported(&'static str),
    /// Not at all, as far as one can tell.
    Plain,
}

impl Format {
    /// Detected from the first bytes.
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            first if frames::starts_file(first) => Self::Zstd,
            first if first.starts_with(&xz::MAGIC) => Self::Xz,
            _ => magic::unsupported(first).map_or(Self::Plain, Self::Unsupported),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Unsupported(name) => name,
            Self::Plain => "plain data",
        }
    }
}

/// The decoded pieces on their way: lanes one after the other, then the end or what went wrong.
pub(in crate::images) type Lanes = mpsc::Receiver<Result<Piece<Lane>, Error>>;

/// Starts decoding what a download yields, as soon as there is memory for what the decoder has to remember. Aborting the
/// task ends it.
pub(in crate::images) async fn start(
    path: &str,
    stored: Receiver<Bytes>,
    decoders: Arc<Decoders>,
    order: Order,
) -> (Lanes, AbortOnDropHandle<()>) {
    let (sender, lanes) = mpsc::channel(xz::LANES);
    let mut stored = Stored::new(path, stored);
    let begun = begin(&mut stored, &decoders).await;
    let task = tokio::spawn(async move {
        let outcome = match begun {
            Ok((format, turn)) => run(stored, format, turn, &decoders, order, &sender).await,
            Err(error) => Err(Stop::Failed(error)),
        };
        let outcome = match outcome {
            Ok(()) => Ok(Piece::End),
            Err(Stop::Malformed(error) | Stop::Failed(error)) => Err(error),
            Err(Stop::Abandoned) => return,
        };
        // A reader that is gone needs no outcome.
        let _ = sender.send(outcome).await;
    });
    (lanes, AbortOnDropHandle::new(task))
}

/// The format, and a turn that suffices for the beginning.
async fn begin(stored: &mut Stored, decoders: &Decoders) -> Result<(Format, Turn), Error> {
    let first = stored.peek(HEADERS).await?;
    let format = Format::of(&first);
    let remembered = match format {
        Format::Xz => xz::first_dictionary(&first).unwrap_or(0),
        Format::Zstd => frames::first_window(&first),
        Format::Gzip | Format::Plain | Format::Unsupported(_) => 0,
    };
    Ok((format, decoders.dictionaries.turn(stored.path(), remembered).await))
}

async fn run(
    mut stored: Stored,
    format: Format,
    turn: Turn,
    decoders: &Arc<Decoders>,
    order: Order,
    lanes: &mpsc::Sender<Result<Piece<Lane>, Error>>,
) -> Result<(), Stop> {
    let outcome = if format == Format::Xz {
        xz::decode(&mut stored, decoders, turn, order, lanes)
            .await
            .map_err(|fault| fault_of(stored.path(), fault))
    } else {
        let (sender, receiver) = mpsc::channel(DECODED_QUEUE);
        let lane = Ok(Piece::Next(Lane::Pieces(receiver)));
        lanes.send(lane).await.map_err(|_| Stop::Abandoned)?;
        let (back, outcome) = on_thread(stored, format, (decoders.clone(), turn), sender).await?;
        stored = back;
        outcome
    };
    match outcome {
        // Also what the decoder left unread is verified.
        Ok(()) => stored.drain().await.map_err(Stop::Failed),
        // The cause may be behind it: a wrong checksum also looks like a broken file to the decoder.
        Err(Stop::Malformed(error)) => Err(Stop::Failed(stored.drain().await.err().unwrap_or(error))),
        Err(stop) => Err(stop),
    }
}

fn fault_of(path: &str, fault: Fault) -> Stop {
    match fault {
        Fault::Read(error) => Stop::Failed(error),
        Fault::Thread(source) => Stop::Failed(Error::Thread {
            path: path.to_owned(),
            source,
        }),
        Fault::Malformed(source) => malformed(path, Format::Xz, source),
        Fault::Abandoned => Stop::Abandoned,
    }
}

/// The error of a decoder, or of its turn, which alone lacks memory.
fn malformed(path: &str, format: Format, source: io::Error) -> Stop {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::OutOfMemory => Stop::Failed(Error::Crowded(path)),
        _ => Stop::Malformed(Error::Malformed {
            path,
            format: format.name(),
            source,
        }),
    }
}

/// Decodes on a thread of its own.
async fn on_thread(
    mut stored: Stored,
    format: Format,
    memory: (Arc<Decoders>, Turn),
    lane: mpsc::Sender<Decoded>,
) -> Result<(Stored, Result<(), Stop>), Stop> {
    let path = stored.path().to_owned();
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        let outcome = decode(format, &mut stored, memory, &lane);
        let _ = sender.send((stored, outcome));
    };
    thread::Builder::new()
        .name("decode".to_owned())
        .spawn(run)
        .map_err(|source| {
            Stop::Failed(Error::Thread {
                path: path.clone(),
                source,
            })
        })?;
    receiver.await.map_err(|_| Stop::Failed(Error::Interrupted(path)))
}

/// Why decoding ended early.
enum Stop {
    /// The stored bytes do not decode, for a reason that may be their own.
    Malformed(Error),
    /// The stored bytes could not be had, or are not the right ones.
    Failed(Error),
    /// The reader is gone.
    Abandoned,
}

fn decode(
    format: Format,
    stored: &mut Stored,
    (decoders, turn): (Arc<Decoders>, Turn),
    lane: &mpsc::Sender<Decoded>,
) -> Result<(), Stop> {
    let path = stored.path().to_owned();
    let malformed = |source| malformed(&path, format, source);
    match format {
        Format::Gzip => copy(Members::new(BufReader::with_capacity(AHEAD, stored)), lane, malformed),
        Format::Zstd => {
            let file = BufReader::with_capacity(AHEAD, stored);
            copy(Frames::new(file, decoders, turn), lane, malformed)
        }
        Format::Unsupported(format) => Err(Stop::Malformed(Error::Unsupported { path, format })),
        // Files of the first kind have threads of their own.
        Format::Xz | Format::Plain => copy(stored, lane, malformed),
    }
}

/// Sends what a decoder yields in full chunks, so that offsets stay multiples of the chunk size.
fn copy(
    mut decoder: impl Read,
    lane: &mpsc::Sender<Decoded>,
    malformed: impl Fn(io::Error) -> Stop,
) -> Result<(), Stop> {
    let mut offset = 0;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        decoder
            .by_ref()
            .take(CHUNK as u64)
            .read_to_end(&mut chunk)
            .map_err(&malformed)?;
        if chunk.is_empty() {
            return Ok(());
        }
        let full = chunk.len() == CHUNK;
        let content = if is_zero(&chunk) {
            Content::Hole(chunk.len())
        } else {
            Content::Data(chunk.into())
        };
        let piece = Decoded {
            offset,
            content,
            waiting: None,
        };
        lane.blocking_send(piece).map_err(|_| Stop::Abandoned)?;
        offset += CHUNK as u64;
        if !full {
            return Ok(());
        }
    }
}
