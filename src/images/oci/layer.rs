//! A layer of a docker archive, compressed on the way.
//!
//! The same layer gives the same bytes each time, so that a repeat finds them: one level, no time, no name in the header
//! ([RFC 1952](https://www.rfc-editor.org/rfc/rfc1952)).

use std::io::{self, Write};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use super::{Digest, Fault};

/// What gzip itself uses, and what image tools expect.
const LEVEL: u32 = 6;
/// Pieces that wait on each side of the compressor.
const QUEUE: usize = 4;
/// Size of a compressed piece.
const PIECE: usize = 256 << 10;

/// What a layer decompresses to; `None` for one that was compressed before, which is kept as it is. Its content is then
/// not unpacked only to be verified: the archive's own checksum covers it.
pub(super) type DiffId = oneshot::Receiver<Option<Digest>>;

/// Compresses a layer on a thread that may block.
pub(super) fn compress<'a>(
    source: impl Stream<Item = Result<Bytes, Fault>> + Send + 'a,
) -> (impl Stream<Item = Result<Bytes, Fault>> + Send + 'a, DiffId) {
    let (input, pieces) = mpsc::channel(QUEUE);
    let (output, compressed) = mpsc::channel(QUEUE);
    let (name, diff_id) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        // An error means that somebody upstream or downstream has gone, and knows why.
        if let Ok(digest) = run(pieces, output) {
            let _ = name.send(digest);
        }
    });
    let feed = async move {
        let mut source = std::pin::pin!(source);
        while let Some(piece) = source.next().await {
            if input.send(Some(piece?)).await.is_err() {
                return Err(Fault::Interrupted);
            }
        }
        input.send(None).await.map_err(|_| Fault::Interrupted)
    };
    let feed = stream::once(feed).filter_map(async |outcome| outcome.err().map(Err));
    let compressed = stream::unfold(compressed, async |mut pieces| Some((Ok(pieces.recv().await?), pieces)));
    (stream::select(feed, compressed), diff_id)
}

fn run(mut pieces: mpsc::Receiver<Option<Bytes>>, output: mpsc::Sender<Bytes>) -> io::Result<Option<Digest>> {
    let mut next = || pieces.blocking_recv().ok_or(io::ErrorKind::BrokenPipe);
    let mut sink = Sink {
        gathered: BytesMut::new(),
        output,
    };
    let first = next()?;
    if first.as_ref().is_some_and(|piece| piece.starts_with(&[0x1f, 0x8b])) {
        let mut piece = first;
        while let Some(bytes) = piece {
            sink.write_all(&bytes)?;
            piece = next()?;
        }
        sink.send()?;
        return Ok(None);
    }
    let mut hash = Context::new(&SHA256);
    let mut encoder = GzEncoder::new(sink, Compression::new(LEVEL));
    let mut piece = first;
    while let Some(bytes) = piece {
        hash.update(&bytes);
        encoder.write_all(&bytes)?;
        piece = next()?;
    }
    encoder.finish()?.send()?;
    Ok(Some(Digest::finished(hash.finish())))
}

/// Gathers what the compressor writes.
struct Sink {
    gathered: BytesMut,
    output: mpsc::Sender<Bytes>,
}

impl Sink {
    fn send(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let piece = self.gathered.split().freeze();
        self.output
            .blocking_send(piece)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
