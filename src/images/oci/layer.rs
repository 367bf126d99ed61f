//! A layer on its way: its packing, its diff id, and the compression of a docker archive's plain layers.
//!
//! The same layer gives the same bytes each time, so that a repeat finds them: one level, no time, no name in the header
//! ([RFC 1952](https://www.rfc-editor.org/rfc/rfc1952)).

use std::io::{self, Read, Write};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf, Bytes, BytesMut};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use futures_util::future::Either;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use super::{Digest, Fault, LAYER, LAYER_GZIP, LAYER_ZSTD};

/// The default of gzip, which image tools expect.
const LEVEL: u32 = 6;
/// Pieces that wait on each side of the compressor.
const QUEUE: usize = 4;
/// Size of a compressed piece.
const PIECE: usize = 256 << 10;

/// How a layer's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// A tar archive as it is, or anything else: only the layer's diff id can tell.
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// By the first bytes, never by a name or a label. A file of zstd may open with a
    /// [skippable frame](https://www.rfc-editor.org/rfc/rfc8878#section-3.1.2).
    pub(super) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Plain => LAYER,
            Self::Gzip => LAYER_GZIP,
            Self::Zstd => LAYER_ZSTD,
        }
    }

    /// As the name of a format in errors.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The packing that a media type announces, in OCI's words or in docker's; `None` for an unknown one.
    fn announced(media_type: &str) -> Option<Self> {
        match media_type.rsplit(['.', '+']).next() {
            Some("gzip") => Some(Self::Gzip),
            Some("zstd") => Some(Self::Zstd),
            Some("tar") => Some(Self::Plain),
            _ => None,
        }
    }
}

/// A layer that was unpacked.
#[derive(Debug, Clone)]
pub(super) struct Unpacked {
    pub(super) packing: Packing,
    /// Digest of the unpacked layer, or the reason why it does not unpack.
    diff_id: Result<Digest, Arc<io::Error>>,
}

impl Unpacked {
    /// A layer that is not compressed.
    pub(super) fn plain(digest: Digest) -> Self {
        Self {
            packing: Packing::Plain,
            diff_id: Ok(digest),
        }
    }

    /// Compares it with the configuration. `layer` is its digest or path.
    pub(super) fn must_be(&self, layer: &str, expected: &Digest) -> Result<(), Fault> {
        match &self.diff_id {
            Ok(found) if found == expected => Ok(()),
            Ok(found) => Err(Fault::Layer {
                path: layer.to_owned(),
                expected: expected.clone(),
                found: found.clone(),
            }),
            Err(source) => Err(Fault::Unpack {
                layer: layer.to_owned(),
                packing: self.packing.name(),
                source: source.clone(),
            }),
        }
    }

    /// Compares it with the media type under which it would be published.
    pub(super) fn must_be_labelled(&self, layer: &str, media_type: &str) -> Result<(), Fault> {
        match Packing::announced(media_type) {
            Some(announced) if announced != self.packing => Err(Fault::Label {
                layer: layer.to_owned(),
                media_type: media_type.to_owned(),
                found: self.packing.name(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// Unpacks a layer that is in memory.
pub(super) async fn unpack(bytes: Bytes) -> Result<Unpacked, Fault> {
    let unpacking = tokio::task::spawn_blocking(move || {
        let packing = Packing::of(&bytes);
        Unpacked {
            packing,
            diff_id: digest_of(packing, bytes.reader()),
        }
    });
    unpacking.await.map_err(|_| Fault::Interrupted)
}

/// SHA-256 of what the bytes unpack to, read to their end.
fn digest_of(packing: Packing, packed: impl Read) -> Result<Digest, Arc<io::Error>> {
    let digest = match packing {
        Packing::Plain => hash(packed),
        Packing::Gzip => hash(MultiGzDecoder::new(packed)),
        Packing::Zstd => zstd::stream::read::Decoder::new(packed).and_then(hash),
    };
    digest.map_err(Arc::new)
}

fn hash(mut plain: impl Read) -> io::Result<Digest> {
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; PIECE];
    loop {
        match plain.read(&mut buffer)? {
            0 => return Ok(Digest::finished(hash.finish())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// The outcome of unpacking, once the stream that it belongs to has ended well.
pub(super) struct Outcome(oneshot::Receiver<Unpacked>);

impl Outcome {
    pub(super) async fn get(self) -> Result<Unpacked, Fault> {
        self.0.await.map_err(|_| Fault::Interrupted)
    }
}

/// Lets a compressed layer pass as it is, and unpacks it at the same time on a thread that may block.
pub(super) fn watch<'a>(
    packing: Packing,
    source: impl Stream<Item = Result<Bytes, Fault>> + Send + 'a,
) -> (impl Stream<Item = Result<Bytes, Fault>> + Send + 'a, Outcome) {
    let (input, pieces) = mpsc::channel(QUEUE);
    let (name, outcome) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let packed = Incoming {
            pieces,
            piece: Bytes::new(),
        };
        let diff_id = digest_of(packing, packed);
        // Without a listener the stream was given up.
        let _ = name.send(Unpacked { packing, diff_id });
    });
    let passing = stream::unfold((Box::pin(source), input), async |(mut source, input)| {
        let Some(piece) = source.next().await else {
            // The end is said explicitly, since a channel also closes when the stream is given up.
            let _ = input.send(None).await;
            return None;
        };
        if let Ok(bytes) = &piece {
            // A decoder that has failed listens no more, and has said why.
            let _ = input.send(Some(bytes.clone())).await;
        }
        Some((piece, (source, input)))
    });
    (passing, Outcome(outcome))
}

/// The pieces that have passed, for a decoder.
struct Incoming {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => {
                    // Any further read ends here, too.
                    self.pieces.close();
                    return Ok(0);
                }
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Compresses a layer, unless it is compressed already: then it passes as it is.
pub(super) async fn pack<'a>(
    source: impl Stream<Item = Result<Bytes, Fault>> + Send + 'a,
) -> Result<(impl Stream<Item = Result<Bytes, Fault>> + Send + 'a, Outcome), Fault> {
    let mut source = Box::pin(source);
    let first = source.next().await.transpose()?;
    let packing = Packing::of(first.as_deref().unwrap_or_default());
    let source = stream::iter(first.map(Ok)).chain(source);
    Ok(match packing {
        Packing::Plain => {
            let (packed, outcome) = compress(source);
            (Either::Left(packed), outcome)
        }
        Packing::Gzip | Packing::Zstd => {
            let (passing, outcome) = watch(packing, source);
            (Either::Right(passing), outcome)
        }
    })
}

/// Compresses a plain layer on a thread that may block.
fn compress<'a>(
    source: impl Stream<Item = Result<Bytes, Fault>> + Send + 'a,
) -> (impl Stream<Item = Result<Bytes, Fault>> + Send + 'a, Outcome) {
    let (input, pieces) = mpsc::channel(QUEUE);
    let (output, compressed) = mpsc::channel(QUEUE);
    let (name, outcome) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        // An error means that the source or the sink has gone, and reports why.
        if let Ok(digest) = encode(pieces, output) {
            let _ = name.send(Unpacked {
                packing: Packing::Gzip,
                diff_id: Ok(digest),
            });
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
    (stream::select(feed, compressed), Outcome(outcome))
}

fn encode(mut pieces: mpsc::Receiver<Option<Bytes>>, output: mpsc::Sender<Bytes>) -> io::Result<Digest> {
    let mut next = || pieces.blocking_recv().ok_or(io::ErrorKind::BrokenPipe);
    let sink = Sink {
        gathered: BytesMut::new(),
        output,
    };
    let mut hash = Context::new(&SHA256);
    let mut encoder = GzEncoder::new(sink, Compression::new(LEVEL));
    while let Some(bytes) = next()? {
        hash.update(&bytes);
        encoder.write_all(&bytes)?;
    }
    encoder.finish()?.send()?;
    Ok(Digest::finished(hash.finish()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn a_layer_is_what_it_unpacks_to() {
        let plain = b"layer".repeat(50_000);
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2][..], &zstd].concat();
        let (half, rest) = plain.split_at(1000);
        for (packing, bytes) in [
            (Packing::Plain, plain.clone()),
            (Packing::Gzip, gzip(&plain)),
            (Packing::Gzip, [gzip(half), gzip(rest)].concat()),
            (Packing::Zstd, zstd.clone()),
            (Packing::Zstd, skippable),
        ] {
            let length = bytes.len();
            let unpacked = unpack(bytes.clone().into()).await.unwrap();
            assert_eq!(unpacked.packing, packing);
            unpacked.must_be("x", &Digest::of(&plain)).unwrap();
            let pieces = bytes.chunks(777).map(|piece| Ok(Bytes::copy_from_slice(piece)));
            let (packed, outcome) = pack(stream::iter(pieces.collect::<Vec<_>>())).await.unwrap();
            let packed: Vec<_> = packed.map(Result::unwrap).collect().await;
            outcome.get().await.unwrap().must_be("x", &Digest::of(&plain)).unwrap();
            if packing != Packing::Plain {
                assert_eq!(packed.concat(), bytes);
            }
            if packing != Packing::Plain {
                for broken in [&bytes[..length - 5], &[&bytes[..], b"rest"].concat()] {
                    let unpacked = unpack(Bytes::copy_from_slice(broken)).await.unwrap();
                    let fault = unpacked.must_be("x", &Digest::of(&plain)).unwrap_err();
                    assert!(matches!(fault, Fault::Unpack { .. }), "{packing:?}: {fault}");
                }
            }
        }
    }

    #[test]
    fn labels_are_read_in_both_vocabularies() {
        for (media_type, expected) in [
            (LAYER, Some(Packing::Plain)),
            (LAYER_GZIP, Some(Packing::Gzip)),
            (LAYER_ZSTD, Some(Packing::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Packing::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(Packing::Plain)),
            ("", None),
        ] {
            assert_eq!(Packing::announced(media_type), expected, "{media_type}");
        }
    }
}
