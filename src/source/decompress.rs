//! Decoding off the async threads, told by the first bytes of what is stored: .xz files on the threads that all images
//! share, everything else on a thread of its own.
//!
//! A decoder never runs on the threads that keep the broker's heartbeats.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::thread;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::xz::{self, Decoders, Fault};
use super::{CHUNK, Content, DECODED_QUEUE, Decoded, Error, Lane, Order, Piece, Receiver, is_zero};

/// The window of `zstd --ultra -22`, 128 MiB, as a power of two.
const ZSTD_WINDOW: u32 = 27;
/// The longest of the magic numbers.
const MAGIC: usize = xz::MAGIC.len();

/// The decoded pieces on their way: lanes one after the other, then the end or what went wrong.
pub(super) type Lanes = mpsc::Receiver<Result<Piece<Lane>, Error>>;

/// Starts decoding what a download yields. Aborting the task ends it.
pub(super) fn start(
    path: &str,
    stored: Receiver<Bytes>,
    decoders: Arc<Decoders>,
    order: Order,
) -> (Lanes, AbortOnDropHandle<()>) {
    let (sender, lanes) = mpsc::channel(xz::LANES);
    let stored = Stored {
        path: path.to_owned(),
        receiver: stored,
        piece: Bytes::new(),
        failed: None,
        ended: false,
    };
    let task = tokio::spawn(async move {
        let outcome = match run(stored, &decoders, order, &sender).await {
            Ok(()) => Ok(Piece::End),
            Err(Stop::Malformed(error) | Stop::Failed(error)) => Err(error),
            Err(Stop::Abandoned) => return,
        };
        // Nobody listens any more: then nobody needs to know.
        let _ = sender.send(outcome).await;
    });
    (lanes, AbortOnDropHandle::new(task))
}

async fn run(
    mut stored: Stored,
    decoders: &Decoders,
    order: Order,
    lanes: &mpsc::Sender<Result<Piece<Lane>, Error>>,
) -> Result<(), Stop> {
    let magic = stored.peek().await.map_err(Stop::Failed)?;
    let outcome = if *magic == xz::MAGIC {
        xz::decode(&mut stored, decoders, order, lanes)
            .await
            .map_err(|fault| fault_of(&stored.path, fault))
    } else {
        let (sender, receiver) = mpsc::channel(DECODED_QUEUE);
        let lane = Ok(Piece::Next(Lane::Pieces(receiver)));
        lanes.send(lane).await.map_err(|_| Stop::Abandoned)?;
        let (back, outcome) = on_thread(stored, magic, sender).await?;
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
    let path = path.to_owned();
    match fault {
        Fault::Read(error) => Stop::Failed(error),
        Fault::Thread(source) => Stop::Failed(Error::Thread { path, source }),
        Fault::Malformed(source) => Stop::Malformed(Error::Malformed {
            path,
            format: "xz",
            source,
        }),
        Fault::Abandoned => Stop::Abandoned,
    }
}

/// Decodes on a thread of its own.
async fn on_thread(
    mut stored: Stored,
    magic: Bytes,
    lane: mpsc::Sender<Decoded>,
) -> Result<(Stored, Result<(), Stop>), Stop> {
    let path = stored.path.clone();
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        let outcome = decode(magic, &mut stored, &lane);
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

fn decode(magic: Bytes, stored: &mut Stored, lane: &mpsc::Sender<Decoded>) -> Result<(), Stop> {
    let path = stored.path.clone();
    let malformed = |format| {
        let path = path.clone();
        move |source| {
            Stop::Malformed(Error::Malformed {
                path: path.clone(),
                format,
                source,
            })
        }
    };
    let rest = &mut *stored;
    match &magic[..] {
        [0x1f, 0x8b, ..] => copy(flate2::read::MultiGzDecoder::new(rest), lane, malformed("gzip"))?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(64 << 10, rest));
            let decoder = decoder.and_then(|mut decoder| decoder.window_log_max(ZSTD_WINDOW).map(|()| decoder));
            copy(decoder.map_err(malformed("zstd"))?, lane, malformed("zstd"))?;
        }
        _ => copy(rest, lane, malformed("plain data"))?,
    }
    Ok(())
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

/// The stored bytes for a decoder.
pub(super) struct Stored {
    path: String,
    receiver: Receiver<Bytes>,
    piece: Bytes,
    failed: Option<Error>,
    ended: bool,
}

impl Stored {
    fn needs(&self) -> bool {
        self.piece.is_empty() && !self.ended
    }

    fn take(&mut self, next: Option<Result<Piece<Bytes>, Error>>) -> Result<(), Error> {
        match next {
            Some(Ok(Piece::Next(bytes))) => self.piece = bytes,
            Some(Ok(Piece::End)) => self.ended = true,
            // What is said once is not said again.
            Some(Err(error)) => {
                self.ended = true;
                return Err(error);
            }
            None => return Err(Error::Interrupted(self.path.clone())),
        }
        Ok(())
    }

    /// What is there; empty only at the end. The taker advances it.
    pub(super) async fn piece(&mut self) -> Result<&mut Bytes, Error> {
        while self.needs() {
            let next = self.receiver.recv().await;
            self.take(next)?;
        }
        Ok(&mut self.piece)
    }

    /// The first bytes, fewer only if there are no more. They stay.
    async fn peek(&mut self) -> Result<Bytes, Error> {
        let mut first = BytesMut::new();
        while first.len() < MAGIC {
            let piece = self.piece().await?;
            if piece.is_empty() {
                break;
            }
            first.extend_from_slice(piece);
            piece.clear();
        }
        self.piece = first.freeze();
        Ok(self.piece.slice(..self.piece.len().min(MAGIC)))
    }

    /// Reads to the last byte, so that size and checksum are verified whatever the decoder left unread.
    async fn drain(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while !self.ended {
            self.piece().await?.clear();
        }
        Ok(())
    }
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.needs() {
            let next = self.receiver.blocking_recv();
            if let Err(error) = self.take(next) {
                let text = error.to_string();
                self.failed = Some(error);
                return Err(io::Error::other(text));
            }
        }
        let taken = self.piece.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.piece[..taken]);
        self.piece.advance(taken);
        Ok(taken)
    }
}
