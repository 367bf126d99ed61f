//! How long an image is once decompressed, without decompressing it.
//!
//! The [index](https://tukaani.org/xz/xz-file-format.txt) at the end of each stream of an .xz file lists the sizes of its
//! blocks. It is read from the end, by Range; a file or a server that does not play along tells nothing.

use std::io;

use bytes::{Bytes, BytesMut};
use reqwest::header::RANGE;
use reqwest::{Client, StatusCode};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use url::Url;

use super::Error;
use super::decompress::{Format, MAGIC};
use super::download::{CALL, Length, total_length};
use crate::base::failure::Classified;
use crate::base::http;
use crate::base::resource::Resource;
use crate::base::retry::Policy;
use crate::images::xz::{STREAM_HEADER, blocks, index_length};
use crate::model::compose::Image;

/// Bytes that are read at once. The index of a 5 GiB disk in blocks of 24 MiB has 2 KiB, in blocks of 1 MiB 30 KiB.
const WINDOW: u64 = 64 << 10;
/// A longer index is that of a terabyte, or made to keep us busy.
const LONGEST_INDEX: u64 = 8 << 20;
/// A file that takes more requests than this is made to keep us busy.
const READS: usize = 32;

/// The size, if the file tells it.
///
/// # Errors
///
/// A file that cannot be read.
pub(super) async fn told(http: &Client, image: &Image) -> Result<Option<u64>, Error> {
    let window = Window {
        http,
        image,
        start: 0,
        bytes: Bytes::new(),
        reads: 0,
    };
    match measure(window).await {
        Ok(size) => Ok(Some(size)),
        Err(Untold::Silent) => Ok(None),
        Err(Untold::Failed(error)) => Err(error),
    }
}

/// Why there is no answer.
enum Untold {
    /// It cannot be known before everything is read.
    Silent,
    Failed(Error),
}

impl From<Error> for Untold {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The decoder explains a broken file better.
impl From<io::Error> for Untold {
    fn from(_: io::Error) -> Self {
        Self::Silent
    }
}

async fn measure(mut window: Window<'_>) -> Result<u64, Untold> {
    let size = window.image.size;
    let first = window.get(0, size.min(MAGIC as u64)).await?;
    match Format::of(&first) {
        Format::Xz => {}
        Format::Plain => return Ok(size),
        // They state a length modulo 4 GiB, or that of one part of several.
        Format::Gzip | Format::Zstd | Format::Unsupported(_) => return Err(Untold::Silent),
    }
    // From the last stream to the first.
    let mut end = size;
    let mut decoded = 0_u64;
    while end > 0 {
        let before = |length: u64| end.checked_sub(length).ok_or(Untold::Silent);
        if *window.get(before(4)?, end).await? == [0; 4] {
            end -= 4;
            continue;
        }
        let index_end = before(STREAM_HEADER as u64)?;
        let footer = window.get(index_end, end).await?;
        let footer = <[u8; STREAM_HEADER]>::try_from(&footer[..]).map_err(|_| Untold::Silent)?;
        let length = index_length(footer)?;
        if length > LONGEST_INDEX {
            return Err(Untold::Silent);
        }
        let index = index_end.checked_sub(length).ok_or(Untold::Silent)?;
        let (stored, size) = blocks(&window.get(index, index_end).await?)?;
        decoded = decoded.checked_add(size).ok_or(Untold::Silent)?;
        let header = stored.checked_add(STREAM_HEADER as u64);
        end = header
            .and_then(|length| index.checked_sub(length))
            .ok_or(Untold::Silent)?;
    }
    Ok(decoded)
}

/// A part of the file.
struct Window<'a> {
    http: &'a Client,
    image: &'a Image,
    start: u64,
    bytes: Bytes,
    reads: usize,
}

impl Window<'_> {
    /// The bytes from `from` to before `to`; what comes before them is read along.
    async fn get(&mut self, from: u64, to: u64) -> Result<Bytes, Untold> {
        let held = self.start..=self.start + self.bytes.len() as u64;
        if !(held.contains(&from) && held.contains(&to)) {
            self.reads += 1;
            if self.reads > READS {
                return Err(Untold::Silent);
            }
            self.start = from.min(to.saturating_sub(WINDOW));
            self.bytes = self.read(self.start, to).await?;
        }
        let at = |place: u64| usize::try_from(place - self.start).map_err(|_| Untold::Silent);
        Ok(self.bytes.slice(at(from)?..at(to)?))
    }

    async fn read(&self, from: u64, to: u64) -> Result<Bytes, Untold> {
        let read = match &self.image.location {
            Resource::Http(url) => {
                Policy::CALL
                    .run(CALL, Error::class, || self.read_url(url, from, to))
                    .await?
            }
            Resource::Folder(path) => {
                let read = async {
                    let mut file = tokio::fs::File::open(path).await?;
                    file.seek(io::SeekFrom::Start(from)).await?;
                    let mut bytes = Vec::new();
                    file.take(to - from).read_to_end(&mut bytes).await?;
                    Ok(Bytes::from(bytes))
                };
                Some(read.await.map_err(|source| Error::File {
                    path: self.image.path.clone(),
                    source,
                })?)
            }
        };
        read.filter(|bytes| bytes.len() as u64 == to - from)
            .ok_or(Untold::Silent)
    }

    /// One try; `None` from a server that does not serve ranges, or has a file of another size.
    async fn read_url(&self, url: &Url, from: u64, to: u64) -> Result<Option<Bytes>, Error> {
        let lost = |source: reqwest::Error| Error::ConnectionLost {
            path: self.image.path.clone(),
            read: from,
            size: self.image.size,
            source: source.without_url(),
        };
        let range = format!("bytes={from}-{}", to.saturating_sub(1));
        let request = self.http.get(url.clone()).header(RANGE, range).timeout(http::CALL);
        let mut response = request.send().await.map_err(lost)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => return Ok(None),
            status => {
                return Err(Error::Status {
                    path: self.image.path.clone(),
                    status: status.as_u16(),
                    after: http::retry_after(response.headers()),
                });
            }
        }
        if !matches!(total_length(&response, from), Length::Total(total) if total == self.image.size) {
            return Ok(None);
        }
        let mut bytes = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(lost)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > to - from {
                return Ok(None);
            }
        }
        Ok(Some(bytes.freeze()))
    }
}
