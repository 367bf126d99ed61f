//! An image as verified bytes.
//!
//! One ordered GET per image; size and SHA-256 are checked as the stored bytes pass, and decoding happens on threads of
//! its own. A stream ends well only if every check passed: a wrong byte arrives as an error *instead of* the end, so
//! nothing may be registered before the end was seen. No temporary file is written.

mod assemble;
mod decompress;
pub(super) mod dictionary;
mod download;
mod frames;
mod size;
pub(super) mod stored;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use reqwest::Client;
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use crate::base::failure::{Class, Classified};
use crate::base::http;
use crate::base::metrics;
use crate::base::progress::{Board, Line};
use crate::base::resource;
use crate::images::disk::{Fault, Inspection, Kind};
use crate::images::tarball::{self, Archive};
use crate::images::xz::Decoders;
use crate::model::compose::Image;
use assemble::Decoding;
pub(super) use assemble::{Decoded, Lane};
pub(super) use decompress::AHEAD;

/// Size of a decoded piece. The block size of
/// [EBS direct](https://docs.aws.amazon.com/ebs/latest/userguide/ebs-accessing-snapshot.html), and small enough to find
/// the holes of a disk.
pub const CHUNK: usize = 512 << 10;
/// Upper bound on an image, stored and decompressed: ten times the longest that Fedora has. A longer one would fill a disk
/// or an account. It is noticed in mid-stream, since most formats state their length at the end or not at all.
pub const LONGEST: u64 = 64 << 30;
/// Decoded pieces that wait for the target.
const DECODED_QUEUE: usize = 8;
/// Memory that one image in flight needs besides the blocks that are decoded in parallel and the decoder's dictionary: both
/// queues, and a piece at each end.
const IMAGE_MEMORY: u64 = 16 << 20;

/// The form in which a target takes an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The bytes of the file in the compose.
    Stored,
    /// Without compression, whatever it was: told by the first bytes, never by the name.
    Decompressed,
    /// As [`Self::Decompressed`], and a raw disk.
    Raw,
    /// As [`Self::Decompressed`], and a fixed VHD.
    Vhd,
    /// As [`Self::Decompressed`], and a fixed VHD or the raw disk that the target makes one of.
    RawOrVhd,
    /// As [`Self::Decompressed`], and the tar archive that Compute Engine takes in a gzip file. In order only.
    Tar,
    /// The bytes of the file in the compose, checked to be a tarball that Compute Engine takes.
    Tarball,
}

impl Form {
    /// The look that is taken at what comes out.
    fn watch(self) -> Watch {
        let disk = |kind| Watch::Disk(Inspection::new(kind));
        match self {
            // A tarball is watched where it is decompressed.
            Self::Stored | Self::Decompressed | Self::Tarball => Watch::Nothing,
            Self::Raw => disk(Kind::Raw),
            Self::Vhd => disk(Kind::Vhd),
            Self::RawOrVhd => disk(Kind::Either),
            Self::Tar => Watch::Tar(Ok(Box::default())),
        }
    }
}

/// In which order a target takes the pieces of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// From the first byte to the last.
    Offset,
    /// As they are decoded.
    Any,
}

/// A piece of an image and its place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Distance from the image's first byte.
    pub offset: u64,
    /// The bytes at that place.
    pub content: Content,
}

/// The bytes of a piece, spelled out or as a number of zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Data(Bytes),
    /// This many zeros; a sparse target need not be sent any.
    Hole(usize),
}

impl Content {
    /// Bytes of the image it stands for.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Data(bytes) => bytes.len(),
            Self::Hole(len) => *len,
        }
    }

    /// Whether it stands for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Opens images, a bounded number at a time, first come, first served.
#[derive(Debug, Clone)]
pub struct Sources {
    http: Client,
    board: Board,
    slots: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    decoders: Arc<Decoders>,
}

impl Sources {
    /// At most `images` are open at once, holding at most `memory` bytes between them. `decode_threads` threads decode
    /// them, if they are .xz files.
    #[must_use]
    pub fn new(http: Client, board: Board, images: usize, memory: u64, decode_threads: usize) -> Self {
        let at_once = usize::try_from(memory / IMAGE_MEMORY)
            .unwrap_or(usize::MAX)
            .clamp(1, Semaphore::MAX_PERMITS);
        // Each image's own memory is set aside; the rest is for blocks.
        let aside = IMAGE_MEMORY.saturating_mul(at_once.min(images) as u64);
        Self {
            http,
            board,
            decoders: Arc::new(Decoders::new(decode_threads, memory.saturating_sub(aside))),
            slots: Arc::new(Semaphore::new(images)),
            memory: Arc::new(Semaphore::new(at_once)),
        }
    }

    /// An image to be opened.
    #[must_use]
    pub fn source(&self, image: &Image) -> Source {
        Source {
            image: image.clone(),
            sources: self.clone(),
        }
    }
}

/// One image. It may be opened again for another attempt.
#[derive(Debug, Clone)]
pub struct Source {
    image: Image,
    sources: Sources,
}

impl Source {
    /// The image's name and what is known of it.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Starts reading, as soon as fewer images than allowed are being read. The pieces come in order.
    ///
    /// # Errors
    ///
    /// An image that cannot be had at all; what goes wrong later comes out of the stream.
    pub async fn open(&self, form: Form) -> Result<Chunks, Error> {
        self.start(form, Order::Offset).await
    }

    /// As [`Self::open`], but the pieces of a decompressed form come in any order: each as soon as it is decoded, and
    /// each byte of the image once.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open`].
    pub async fn open_unordered(&self, form: Form) -> Result<Chunks, Error> {
        let order = match form {
            Form::Tar => Order::Offset,
            Form::Stored | Form::Decompressed | Form::Raw | Form::Vhd | Form::RawOrVhd | Form::Tarball => Order::Any,
        };
        self.start(form, order).await
    }

    /// Its length when decompressed, in bytes; for targets that need it before the first byte.
    ///
    /// An .xz file tells at its end, which takes a small Range request or two. Where that does not help, the image is
    /// read once to count. Nothing is verified by this: what the pieces come to is what counts.
    ///
    /// # Errors
    ///
    /// An image that cannot be read, or, where it had to be counted, is not what the metadata says.
    pub async fn decompressed_size(&self) -> Result<u64, Error> {
        if let Some(size) = size::told(&self.sources.http, &self.image).await? {
            if size > LONGEST {
                return Err(Error::TooLong(self.image.path.clone()));
            }
            return Ok(size);
        }
        tracing::info!("{} does not tell its size; reading it once to count", self.image.path);
        let mut chunks = self.open_unordered(Form::Decompressed).await?;
        let mut size = 0;
        while let Some(chunk) = chunks.next().await? {
            size += chunk.content.len() as u64;
        }
        Ok(size)
    }

    async fn start(&self, form: Form, order: Order) -> Result<Chunks, Error> {
        if self.image.size > LONGEST {
            return Err(Error::TooLong(self.image.path.clone()));
        }
        let closed = |_| Error::Interrupted(self.image.path.clone());
        let waiting = metrics::waiting();
        let slot = self.sources.slots.clone().acquire_owned().await.map_err(closed)?;
        let memory = self.sources.memory.clone().acquire_owned().await.map_err(closed)?;
        drop(waiting);
        let path = self.image.path.clone();
        let line = Arc::new(self.sources.board.start(&path, &self.image.what(), self.image.size));
        let (stored, download) = download::start(self.sources.http.clone(), self.image.clone(), line.clone());
        let pieces = match form {
            Form::Stored => Pieces::Stored { stored, offset: 0 },
            Form::Tarball => Pieces::Stored {
                stored: tarball::start(&path, stored)?,
                offset: 0,
            },
            Form::Decompressed | Form::Raw | Form::Vhd | Form::RawOrVhd | Form::Tar => {
                let (lanes, task) = decompress::start(&path, stored, self.sources.decoders.clone(), order).await;
                Pieces::Decoded(Box::new(Decoding::new(lanes, task)))
            }
        };
        Ok(Chunks {
            path,
            pieces,
            watch: form.watch(),
            line,
            ended: false,
            _download: download,
            _permits: [slot, memory],
        })
    }
}

/// A stage's output: pieces in order, then `End` if every check passed, or an error.
pub(super) type Receiver<T> = mpsc::Receiver<Result<Piece<T>, Error>>;
pub(super) type Sender<T> = mpsc::Sender<Result<Piece<T>, Error>>;

#[derive(Debug)]
pub(super) enum Piece<T> {
    Next(T),
    /// Everything was read and verified. A channel that closes without it was abandoned.
    End,
}

#[derive(Debug)]
enum Pieces {
    Stored { stored: Receiver<Bytes>, offset: u64 },
    Decoded(Box<Decoding>),
}

/// Holds what comes out against what it should be.
#[derive(Debug)]
enum Watch {
    Nothing,
    Disk(Inspection),
    Tar(io::Result<Box<Archive>>),
}

impl Watch {
    fn add(&mut self, chunk: &Chunk) {
        match self {
            Self::Nothing => {}
            Self::Disk(inspection) => inspection.add(chunk),
            Self::Tar(checked) => {
                let outcome = checked.as_mut().map_or(Ok(()), |archive| match &chunk.content {
                    Content::Data(bytes) => archive.push(bytes),
                    Content::Hole(len) => archive.push(&ZEROS[..*len]),
                });
                if let Err(error) = outcome {
                    *checked = Err(error);
                }
            }
        }
    }

    /// Whether the image is known to be the wrong one. Its target gets no more of it, but the rest is read: the cause may
    /// be a wrong checksum.
    fn is_refused(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Disk(inspection) => inspection.is_refused(),
            Self::Tar(checked) => checked.is_err(),
        }
    }

    fn finish(&mut self, path: &str) -> Result<(), Error> {
        match std::mem::replace(self, Self::Nothing) {
            Self::Nothing => Ok(()),
            Self::Disk(inspection) => inspection.finish().map_err(|source| Error::NoDisk {
                path: path.to_owned(),
                source,
            }),
            Self::Tar(checked) => checked
                .and_then(|archive| archive.finish())
                .map_err(|source| tarball::malformed(path, source)),
        }
    }
}

/// A chunk of zeros.
static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// The pieces of an image. Dropping it stops the download and the decoding.
///
/// Every decompressed piece but the last one of the image is [`CHUNK`] bytes long and begins at a multiple of that,
/// also where the pieces come in any order.
#[derive(Debug)]
pub struct Chunks {
    path: String,
    pieces: Pieces,
    watch: Watch,
    line: Arc<Line>,
    ended: bool,
    _download: AbortOnDropHandle<()>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Chunks {
    /// The next piece; `None` once the image is complete and verified.
    ///
    /// # Errors
    ///
    /// The image cannot be read, or is not what the metadata says. Nothing of what came before may be used then.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        if self.ended {
            return Ok(None);
        }
        loop {
            let Some(chunk) = self.receive().await? else {
                self.watch.finish(&self.path)?;
                self.ended = true;
                return Ok(None);
            };
            self.watch.add(&chunk);
            if !self.watch.is_refused() {
                return Ok(Some(chunk));
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Chunk>, Error> {
        let chunk = match &mut self.pieces {
            Pieces::Stored { stored, offset } => stored.recv().await.map(|piece| {
                piece.map(|piece| match piece {
                    Piece::Next(bytes) => {
                        let at = *offset;
                        *offset += bytes.len() as u64;
                        Some(Chunk {
                            offset: at,
                            content: Content::Data(bytes),
                        })
                    }
                    Piece::End => None,
                })
            }),
            Pieces::Decoded(decoding) => {
                let chunk = decoding.next().await;
                if let Some(Ok(Some(chunk))) = &chunk {
                    self.line.decoded(chunk.content.len() as u64);
                }
                chunk
            }
        };
        let chunk = chunk.unwrap_or_else(|| Err(Error::Interrupted(self.path.clone())))?;
        if chunk
            .as_ref()
            .is_some_and(|chunk| chunk.offset + chunk.content.len() as u64 > LONGEST)
        {
            return Err(Error::TooLong(self.path.clone()));
        }
        Ok(chunk)
    }

    /// The pieces as one stream of bytes, holes written out. An [`Error`] of the source is the inner error of the
    /// [`io::Error`].
    pub fn into_read(self) -> impl AsyncRead + Send + Unpin {
        let pieces = stream::unfold(self, |mut chunks| async move {
            let content = match chunks.next().await {
                Ok(None) => return None,
                Ok(Some(chunk)) => Ok(match chunk.content {
                    Content::Data(bytes) => bytes,
                    Content::Hole(len) => Bytes::from_static(&ZEROS[..len]),
                }),
                Err(error) => Err(io::Error::other(error)),
            };
            Some((content, chunks))
        });
        StreamReader::new(Box::pin(pieces))
    }
}

/// Whether there are only zeros. Sixteen bytes at a time, which the compiler turns into vector instructions.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (head, middle) = bytes.as_chunks::<16>();
    head.iter().all(|word| u128::from_ne_bytes(*word) == 0) && middle.iter().all(|byte| *byte == 0)
}

/// An image that cannot be read, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused.
    #[error("read {path}: the server answered {status}")]
    Status {
        /// The image.
        path: String,
        /// The HTTP status.
        status: u16,
        /// The server's wish.
        after: Option<std::time::Duration>,
    },
    /// The connection broke again and again.
    #[error("read {path}: stopped after {read} of {size} bytes")]
    ConnectionLost {
        /// The image.
        path: String,
        /// Bytes that arrived.
        read: u64,
        /// Bytes it has.
        size: u64,
        /// Why.
        source: reqwest::Error,
    },
    /// The server has another file now than when reading began.
    #[error("read {path}: the file changed while it was read")]
    Changed {
        /// The image.
        path: String,
    },
    /// A file of this machine cannot be read.
    #[error("read {path}")]
    File {
        /// The image.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More or less than the metadata says.
    #[error("verify {path}: it has {found} bytes, and {expected} according to the metadata")]
    Size {
        /// The image.
        path: String,
        /// According to the metadata.
        expected: u64,
        /// As found; "more than" is counted as one more.
        found: u64,
    },
    /// Other bytes than the metadata says.
    #[error("verify {path}: its SHA-256 is {found}, and {expected} according to the metadata")]
    Checksum {
        /// The image.
        path: String,
        /// According to the metadata.
        expected: String,
        /// As found.
        found: String,
    },
    /// The bytes are those of the metadata, but do not decode.
    #[error("decompress {path} as {format}")]
    Malformed {
        /// The image.
        path: String,
        /// As told by its first bytes.
        format: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The bytes are those of the metadata, in a compression that is not supported.
    #[error("decompress {path}: it is {format}, which is not supported; xz, gzip, and zstd are")]
    Unsupported {
        /// The image.
        path: String,
        /// As told by its first bytes.
        format: &'static str,
    },
    /// The bytes are those of the metadata, and decode to something other than the disk that the metadata promises.
    #[error("verify the disk in {path}")]
    NoDisk {
        /// The image.
        path: String,
        /// Why.
        source: Fault,
    },
    /// More than any image has.
    #[error("read {path}: it has more than {} GiB", LONGEST >> 30, path = .0)]
    TooLong(String),
    /// A later part of it needs a larger dictionary than the first.
    #[error("decompress {0}: a part of it needs more memory than its beginning, and other images have that now")]
    Crowded(String),
    /// No thread could be started.
    #[error("start a decoder for {path}")]
    Thread {
        /// The image.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The process is ending.
    #[error("read {0}: interrupted")]
    Interrupted(String),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            // Neither waiting nor an operator gives access to an image of a public compose host.
            Self::Status { status: 401 | 403, .. } => Class::Deliverable,
            Self::Status { status, after, .. } => Class::of_status(*status, *after),
            Self::ConnectionLost { source, .. } => http::class(source),
            // An operator named the file, and learns of it at once and not after hours of trying.
            Self::File { source, .. } if resource::is_lasting(source) => Class::Deliverable,
            Self::Changed { .. }
            | Self::File { .. }
            | Self::Crowded(_)
            | Self::Thread { .. }
            | Self::Interrupted(_) => Class::TRANSIENT,
            Self::Size { .. }
            | Self::Checksum { .. }
            | Self::Malformed { .. }
            | Self::Unsupported { .. }
            | Self::NoDisk { .. }
            | Self::TooLong(_) => Class::Deliverable,
        }
    }
}
