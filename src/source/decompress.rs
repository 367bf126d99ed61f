//! Decoding on a thread of its own, told by the first bytes of what is stored.
//!
//! A decoder never runs on the threads that keep the broker's heartbeats.

use std::io::{self, BufReader, Cursor, Read};
use std::thread;

use bytes::{Buf, Bytes};
use liblzma::stream::{CONCATENATED, Stream};
use tokio::sync::mpsc;

use super::{CHUNK, Content, DECODED_QUEUE, Error, Piece, Receiver, Sender};

/// `xz -9` asks for 65 MiB to decode; a file that asks for more was made to exhaust us.
const XZ_MEMORY: u64 = 128 << 20;
/// The window of `zstd --ultra -22`, 128 MiB, as a power of two.
const ZSTD_WINDOW: u32 = 27;
/// The longest of the magic numbers.
const MAGIC: usize = 6;

/// Starts decoding what a download yields.
///
/// # Errors
///
/// When the operating system has no thread left.
pub(super) fn start(path: &str, stored: Receiver<Bytes>) -> Result<Receiver<Content>, Error> {
    let (sender, receiver) = mpsc::channel(DECODED_QUEUE);
    let image = path.to_owned();
    let run = move || {
        let mut stored = Stored {
            path: image.clone(),
            receiver: stored,
            piece: Bytes::new(),
            failed: None,
            ended: false,
        };
        let outcome = match decode(&image, &mut stored, &sender) {
            Ok(()) => Ok(Piece::End),
            // The cause is behind it: a wrong checksum also looks like a broken file to the decoder.
            Err(Stop::Failed(error)) => Err(stored.drain().err().unwrap_or(error)),
            Err(Stop::Abandoned) => return,
        };
        // Nobody listens any more: then nobody needs to know.
        let _ = sender.blocking_send(outcome);
    };
    thread::Builder::new()
        .name("decode".to_owned())
        .spawn(run)
        .map_err(|source| Error::Thread {
            path: path.to_owned(),
            source,
        })?;
    Ok(receiver)
}

/// Why decoding ended early.
enum Stop {
    Failed(Error),
    /// The reader is gone.
    Abandoned,
}

fn decode(path: &str, stored: &mut Stored, sender: &Sender<Content>) -> Result<(), Stop> {
    let magic = match stored.peek() {
        Ok(magic) => magic,
        Err(error) => return Err(Stop::Failed(error)),
    };
    let malformed = |format| {
        move |source| {
            Stop::Failed(Error::Malformed {
                path: path.to_owned(),
                format,
                source,
            })
        }
    };
    let rest = Read::chain(Cursor::new(magic.clone()), &mut *stored);
    match &magic[..] {
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(io::Error::other);
            let decoder = stream.map(|stream| liblzma::read::XzDecoder::new_stream(rest, stream));
            copy(decoder.map_err(malformed("xz"))?, sender, malformed("xz"))?;
        }
        [0x1f, 0x8b, ..] => copy(flate2::read::MultiGzDecoder::new(rest), sender, malformed("gzip"))?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(64 << 10, rest));
            let decoder = decoder.and_then(|mut decoder| decoder.window_log_max(ZSTD_WINDOW).map(|()| decoder));
            copy(decoder.map_err(malformed("zstd"))?, sender, malformed("zstd"))?;
        }
        _ => copy(rest, sender, malformed("plain data"))?,
    }
    stored.drain().map_err(Stop::Failed)
}

/// Sends what a decoder yields in full chunks, so that offsets stay multiples of the chunk size.
fn copy(mut decoder: impl Read, sender: &Sender<Content>, malformed: impl Fn(io::Error) -> Stop) -> Result<(), Stop> {
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
        sender
            .blocking_send(Ok(Piece::Next(content)))
            .map_err(|_| Stop::Abandoned)?;
        if !full {
            return Ok(());
        }
    }
}

/// Whether there are only zeros. Sixteen bytes at a time, which the compiler turns into vector instructions.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (head, middle) = bytes.as_chunks::<16>();
    head.iter().all(|word| u128::from_ne_bytes(*word) == 0) && middle.iter().all(|byte| *byte == 0)
}

/// The stored bytes for a decoder, which wants to block.
struct Stored {
    path: String,
    receiver: Receiver<Bytes>,
    piece: Bytes,
    failed: Option<Error>,
    ended: bool,
}

impl Stored {
    /// Makes `piece` non-empty unless the end was reached.
    fn fill(&mut self) -> Result<(), Error> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(Piece::Next(bytes))) => self.piece = bytes,
                Some(Ok(Piece::End)) => self.ended = true,
                Some(Err(error)) => return Err(error),
                None => return Err(Error::Interrupted(self.path.clone())),
            }
        }
        Ok(())
    }

    /// Takes the first bytes, fewer only if there are no more.
    fn peek(&mut self) -> Result<Bytes, Error> {
        let mut magic = Vec::with_capacity(MAGIC);
        while magic.len() < MAGIC {
            self.fill()?;
            if self.piece.is_empty() {
                break;
            }
            let taken = self.piece.len().min(MAGIC - magic.len());
            magic.extend_from_slice(&self.piece[..taken]);
            self.piece.advance(taken);
        }
        Ok(magic.into())
    }

    /// Reads to the last byte, so that size and checksum are verified whatever the decoder left unread.
    fn drain(&mut self) -> Result<(), Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while !self.ended {
            self.piece.clear();
            self.fill()?;
        }
        Ok(())
    }
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Err(error) = self.fill() {
            let text = error.to_string();
            self.failed = Some(error);
            return Err(io::Error::other(text));
        }
        let taken = self.piece.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.piece[..taken]);
        self.piece.advance(taken);
        Ok(taken)
    }
}
