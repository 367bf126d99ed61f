//! The stored bytes of an image, in order, verified as they pass.
//!
//! A connection that breaks is taken up again with a
//! [Range request](https://www.rfc-editor.org/rfc/rfc9110#name-range-requests) from the last byte hashed.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Client, Response, StatusCode};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::{Error, Piece, Receiver, Sender};
use crate::base::failure::Classified;
use crate::base::http;
use crate::base::progress::Line;
use crate::base::resource::Resource;
use crate::base::retry::{self, Policy, Waits};
use crate::model::compose::Image;

/// Bytes that are read from a file at once, and that small pieces from a connection are gathered to.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the decoder: enough to bridge its slow blocks.
const QUEUE: usize = 16;
/// Its name in metrics.
pub(super) const CALL: &str = "download";

/// Starts reading an image. Dropping the handle stops it, even while it waits for a silent server.
pub(super) fn start(http: Client, image: Image, line: Arc<Line>) -> (Receiver<Bytes>, AbortOnDropHandle<()>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let reading = async move {
        let sink = Sink {
            hash: Context::new(&SHA256),
            read: 0,
            gathered: BytesMut::new(),
            image: &image,
            line,
            sender: sender.clone(),
        };
        let outcome = match &image.location {
            Resource::Http(url) => read_url(&http, url, sink).await,
            Resource::Folder(path) => read_file(path, sink).await,
        };
        match outcome {
            Ok(()) => drop(sender.send(Ok(Piece::End)).await),
            Err(Stop::Failed(error)) => drop(sender.send(Err(error)).await),
            Err(Stop::Abandoned) => {}
        }
    };
    let task = tokio::spawn(retry::inherit(reading));
    (receiver, AbortOnDropHandle::new(task))
}

/// Why reading ended early.
enum Stop {
    Failed(Error),
    /// The reader is gone.
    Abandoned,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Counts, hashes, and passes on.
struct Sink<'a> {
    hash: Context,
    read: u64,
    gathered: BytesMut,
    image: &'a Image,
    line: Arc<Line>,
    sender: Sender<Bytes>,
}

impl Sink<'_> {
    async fn push(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.read += bytes.len() as u64;
        if self.read > self.image.size {
            return Err(self.wrong_size(self.image.size + 1));
        }
        self.hash.update(bytes);
        self.line.read(bytes.len() as u64);
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        let piece = self.gathered.split().freeze();
        self.sender
            .send(Ok(Piece::Next(piece)))
            .await
            .map_err(|_| Stop::Abandoned)
    }

    fn wrong_size(&self, found: u64) -> Stop {
        Stop::Failed(Error::Size {
            path: self.image.path.clone(),
            expected: self.image.size,
            found,
        })
    }

    async fn finish(mut self) -> Result<(), Stop> {
        if self.read != self.image.size {
            return Err(self.wrong_size(self.read));
        }
        if !self.gathered.is_empty() {
            self.flush().await?;
        }
        let found = HEXLOWER.encode(self.hash.finish().as_ref());
        if found == self.image.sha256 {
            return Ok(());
        }
        Err(Stop::Failed(Error::Checksum {
            path: self.image.path.clone(),
            expected: self.image.sha256.clone(),
            found,
        }))
    }
}

async fn read_file(path: &Path, mut sink: Sink<'_>) -> Result<(), Stop> {
    let image = sink.image.path.clone();
    let error = |source| Error::File {
        path: image.clone(),
        source,
    };
    let mut file = tokio::fs::File::open(path).await.map_err(error)?;
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer).await.map_err(error)? {
            0 => return sink.finish().await,
            read => sink.push(&buffer[..read]).await?,
        }
    }
}

async fn read_url(http: &Client, url: &Url, mut sink: Sink<'_>) -> Result<(), Stop> {
    let image = sink.image;
    let mut waits = Policy::CALL.start(CALL);
    let mut version: Option<Version> = None;
    loop {
        let before = sink.read;
        let error = match attempt(http, url, &mut version, &mut sink).await {
            Ok(()) => return sink.finish().await,
            Err(Break::Stop(stop)) => return Err(stop),
            // Only the end of the answer is missing, as its last, empty chunk.
            Err(Break::Lost(_)) if sink.read == image.size && sink.read > 0 => return sink.finish().await,
            Err(Break::Status(status, after)) => Error::Status {
                path: image.path.clone(),
                status,
                after,
            },
            Err(Break::Lost(source)) => Error::ConnectionLost {
                path: image.path.clone(),
                read: sink.read,
                size: image.size,
                source: source.without_url(),
            },
        };
        // A download that makes progress gets a new minute.
        if sink.read > before {
            waits = Policy::CALL.start(CALL);
        }
        pause(&mut waits, error, &sink).await?;
    }
}

async fn pause(waits: &mut Waits, error: Error, sink: &Sink<'_>) -> Result<(), Error> {
    let Some(wait) = waits.after(error.class()) else {
        return Err(error);
    };
    tracing::warn!(
        read_bytes = sink.read,
        wait_ms = wait.as_millis(),
        "{error}; going on from there"
    );
    tokio::time::sleep(wait).await;
    Ok(())
}

/// How one request ended before the last byte.
enum Break {
    Stop(Stop),
    Status(u16, Option<std::time::Duration>),
    Lost(reqwest::Error),
}

impl From<Stop> for Break {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// One request: from the last byte hashed to the end.
async fn attempt(http: &Client, url: &Url, version: &mut Option<Version>, sink: &mut Sink<'_>) -> Result<(), Break> {
    let mut request = http.get(url.clone());
    if sink.read > 0 {
        request = request.header(RANGE, format!("bytes={}-", sink.read));
        if let Some(tag) = version.as_ref().and_then(Version::strong_tag) {
            request = request.header(IF_RANGE, tag);
        }
    }
    let mut response = request.send().await.map_err(Break::Lost)?;
    let (status, headers) = (response.status(), response.headers());
    let mut skip = match status {
        StatusCode::OK => sink.read,
        StatusCode::PARTIAL_CONTENT => 0,
        // The file ends before the place where we are: it is not the one we began to read.
        StatusCode::RANGE_NOT_SATISFIABLE if sink.read > 0 => return Err(changed(sink).into()),
        _ => return Err(Break::Status(status.as_u16(), http::retry_after(headers))),
    };
    let length = total_length(&response, sink.read);
    let current = Version::of(headers);
    match version {
        Some(first) if first.is_other(&current) => return Err(changed(sink).into()),
        Some(_) => {}
        None => *version = Some(current),
    }
    match length {
        Length::Total(total) if total != sink.image.size => return Err(sink.wrong_size(total).into()),
        Length::Elsewhere => return Err(changed(sink).into()),
        Length::Total(_) | Length::Unknown => {}
    }
    while let Some(bytes) = response.chunk().await.map_err(Break::Lost)? {
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
        skip -= skipped as u64;
        sink.push(&bytes[skipped..]).await?;
    }
    Ok(())
}

fn changed(sink: &Sink<'_>) -> Stop {
    Stop::Failed(Error::Changed {
        path: sink.image.path.clone(),
    })
}

/// The length of the whole file, according to the server.
pub(super) enum Length {
    Total(u64),
    Unknown,
    /// The range sent is not the one asked for.
    Elsewhere,
}

/// The length of the whole file, according to an answer from this place on.
pub(super) fn total_length(response: &Response, from: u64) -> Length {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return response.content_length().map_or(Length::Unknown, Length::Total);
    }
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    let parsed = range.and_then(|value| {
        let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
        let (start, _) = range.split_once('-')?;
        Some((start.parse::<u64>().ok()?, total.parse::<u64>().ok()))
    });
    match parsed {
        Some((start, Some(total))) if start == from => Length::Total(total),
        Some((start, None)) if start == from => Length::Unknown,
        _ => Length::Elsewhere,
    }
}

/// The header that distinguishes one version of a file from another.
struct Version {
    tag: Option<String>,
    modified: Option<String>,
}

impl Version {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        Self {
            tag: text(ETAG),
            modified: text(LAST_MODIFIED),
        }
    }

    /// Whether both say what they are, and differ. The answer to a range need not repeat everything
    /// ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#section-15.3.7)); the checksum is the last judge anyway.
    fn is_other(&self, later: &Self) -> bool {
        let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
        differ(&self.tag, &later.tag) || differ(&self.modified, &later.modified)
    }

    /// A weak tag may not be used for ranges.
    fn strong_tag(&self) -> Option<&str> {
        self.tag.as_deref().filter(|tag| !tag.starts_with("W/"))
    }
}
