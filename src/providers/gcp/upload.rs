//! The tarball into the bucket, as it is, in one pass.
//!
//! The object's name and metadata carry the image's SHA-256, and the last byte leaves only when the whole image has been
//! read and verified. So an object under that name is complete and right, or it is not there: an upload that is not
//! finished is nothing that anybody can see, and Google forgets it
//! [after a week](https://cloud.google.com/storage/docs/resumable-uploads#session-uris).

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use data_encoding::BASE64;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Method, Response};
use url::Url;

use super::client::Cloud;
use super::error::Error;
use super::storage::{Object, is_incomplete};
use crate::base::failure::Failure;
use crate::base::metrics;
use crate::base::retry::Policy;
use crate::images::source::{Chunks, Content, Form, Source};
use crate::model::compose::Image;

/// Size of a piece. Pieces are [multiples of 256 KiB](https://cloud.google.com/storage/docs/performing-resumable-uploads#chunked-upload)
/// and held in memory until the service has them, one while the next is read; smaller ones wait for more answers. Each
/// has to pass within [`crate::base::http::CALL`], so an upload needs 140 kB/s.
const PIECE: usize = 8 << 20;
/// Says what the object is made of.
const SHA256: &str = "image-sha256";

/// The object of an image.
pub(super) fn object_name(image_name: &str, image: &Image) -> String {
    format!("{image_name}-{}.tar.gz", image.sha256)
}

/// Where Compute Engine reads an object. It wants this very address, whatever the endpoint is.
pub(super) fn object_source(bucket: &str, object: &str) -> String {
    format!("https://storage.googleapis.com/{bucket}/{object}")
}

/// Makes sure that the object is there and right. The source is opened only if it is not.
pub(super) async fn ensure(cloud: &Cloud, name: &str, source: &Source) -> Result<(), Failure> {
    let image = source.image();
    if let Some(object) = cloud.object(name).await? {
        if is_right(&object, image) {
            tracing::debug!(object = name, "object {name} is there");
            return Ok(());
        }
        tracing::warn!(object = name, "object {name} is not what its name says; making it anew");
        cloud.delete_object(name, &object.generation).await?;
    }
    let mut chunks = source.open(Form::Tarball).await?;
    let metadata = HashMap::from([(SHA256.to_owned(), image.sha256.clone())]);
    let session = match cloud.begin_upload(name, image.size, &metadata).await {
        Ok(session) => session,
        Err(error) if error.is_conflict() => return made_by_another(cloud, name, image, error).await,
        Err(error) => return Err(error.into()),
    };
    let mut upload = Upload {
        cloud,
        session,
        name,
        sent: 0,
        crc: String::new(),
    };
    match upload.run(&mut chunks).await {
        Ok(object) => upload.verify(&object).await,
        // An upload that is done may be forgotten at once.
        Err(Stopped::Upload(error)) if error.is_conflict() || error.is_absent() => {
            made_by_another(cloud, name, image, error).await
        }
        Err(Stopped::Upload(error)) => Err(error.into()),
        Err(Stopped::Source(failure)) => {
            upload.cancel().await;
            Err(failure)
        }
    }
}

/// Deletes the object once it is of no use any more. A failure is a warning: the bucket has a rule of its own.
pub(super) async fn discard(cloud: &Cloud, name: &str) {
    let discarded = async {
        match cloud.object(name).await? {
            Some(object) => cloud.delete_object(name, &object.generation).await,
            None => Ok(()),
        }
    };
    if let Err(error) = discarded.await {
        tracing::warn!(object = name, "failed to {}", Failure::from(error));
    }
}

fn is_right(object: &Object, image: &Image) -> bool {
    object.size == image.size.to_string() && object.metadata.get(SHA256) == Some(&image.sha256)
}

/// Another process was faster, or an answer of ours was lost.
async fn made_by_another(cloud: &Cloud, name: &str, image: &Image, error: Error) -> Result<(), Failure> {
    match cloud.object(name).await? {
        Some(object) if is_right(&object, image) => Ok(()),
        _ => Err(error.into()),
    }
}

/// Why an upload ended early.
enum Stopped {
    Source(Failure),
    Upload(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Upload(error)
    }
}

/// The source, and what of it is not sent yet.
struct Reading<'a> {
    chunks: &'a mut Chunks,
    /// What was read behind the last piece.
    rest: Bytes,
    /// CRC32C of everything read.
    crc: Digest,
}

impl Reading<'_> {
    /// Reads a piece; less only at the verified end. Whether there is more behind it is known then.
    async fn piece(&mut self, memory: BytesMut) -> Result<Bytes, Stopped> {
        let mut piece = memory;
        loop {
            let missing = PIECE - piece.len();
            piece.extend_from_slice(&self.rest.split_to(missing.min(self.rest.len())));
            if !self.rest.is_empty() {
                return Ok(piece.freeze());
            }
            let next = self
                .chunks
                .next()
                .await
                .map_err(|error| Stopped::Source(error.into()))?;
            let Some(chunk) = next else { return Ok(piece.freeze()) };
            if let Content::Data(bytes) = chunk.content {
                self.crc.update(&bytes);
                self.rest = bytes;
            }
        }
    }
}

/// How far the service has got.
enum Taken {
    /// All bytes up to here.
    Upto(u64),
    /// Everything.
    Whole(Object),
}

/// An upload that has begun.
struct Upload<'a> {
    cloud: &'a Cloud,
    session: Url,
    name: &'a str,
    /// Bytes that the service has for certain.
    sent: u64,
    /// CRC32C of everything in base64, once everything has been read.
    crc: String,
}

impl Upload<'_> {
    /// Sends everything, a piece while the next one is read. More than a piece must be there before one is sent, so that
    /// what is left at the verified end of the source is never nothing, and the service cannot finish the object before
    /// that end.
    async fn run(&mut self, chunks: &mut Chunks) -> Result<Object, Stopped> {
        let mut reading = Reading {
            chunks,
            rest: Bytes::new(),
            crc: Digest::new(CrcAlgorithm::Crc32Iscsi),
        };
        // Taken once and at once: a buffer that grows takes twice as much, and what is given back is not always used again.
        let memory = || BytesMut::with_capacity(PIECE);
        let mut piece = reading.piece(memory()).await?;
        let mut spare = memory();
        while !reading.rest.is_empty() {
            let (next, sent) = tokio::join!(reading.piece(spare), self.send(piece.clone(), None));
            let next = next?;
            if let Some(object) = sent? {
                return Ok(object);
            }
            spare = piece.try_into_mut().unwrap_or_else(|_| memory());
            spare.clear();
            piece = next;
        }
        // Thirty-two bits, the high end first.
        self.crc = BASE64.encode(&reading.crc.finalize().to_be_bytes()[4..]);
        let total = self.sent + piece.len() as u64;
        let object = self.send(piece, Some(total)).await?;
        let what = self.what();
        Ok(object.ok_or_else(|| Error::odd(&what, "a request for more than there is"))?)
    }

    fn what(&self) -> String {
        format!("upload {} to bucket {}", self.name, self.cloud.bucket)
    }

    /// Sends a piece until the service has it, and goes on where it stopped. The object when that was the last one.
    async fn send(&mut self, mut piece: Bytes, total: Option<u64>) -> Result<Option<Object>, Error> {
        let mut waits = Policy::CALL.start("gcp upload");
        let mut lost = false;
        loop {
            let taken = if lost {
                self.status().await
            } else {
                self.put(&piece, total).await
            };
            let error = match taken {
                Ok(Taken::Whole(object)) => {
                    metrics::uploaded(piece.len() as u64);
                    return Ok(Some(object));
                }
                Ok(Taken::Upto(end)) => {
                    let fresh = end.checked_sub(self.sent).and_then(|fresh| usize::try_from(fresh).ok());
                    let Some(fresh) = fresh.filter(|fresh| *fresh <= piece.len()) else {
                        let answer = format!("{end} bytes taken, after {}", self.sent);
                        return Err(Error::odd(&self.what(), &answer));
                    };
                    metrics::uploaded(fresh as u64);
                    piece.advance(fresh);
                    self.sent = end;
                    if piece.is_empty() && total.is_none() {
                        return Ok(None);
                    }
                    if lost || fresh > 0 {
                        lost = false;
                        continue;
                    }
                    Error::odd(&self.what(), "no byte taken")
                }
                Err(error) => error,
            };
            // How much arrived is not known.
            lost = true;
            let Some(wait) = waits.after(error.class_of_call()) else {
                return Err(error);
            };
            tracing::debug!(
                object = self.name,
                wait_ms = wait.as_millis(),
                "upload broke off: {}",
                Failure::from(error)
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn put(&self, piece: &Bytes, total: Option<u64>) -> Result<Taken, Error> {
        let last = (self.sent + piece.len() as u64).saturating_sub(1);
        let range = match total {
            Some(total) => format!("bytes {}-{last}/{total}", self.sent),
            None => format!("bytes {}-{last}/*", self.sent),
        };
        let mut request = self.cloud.to_session(Method::PUT, &self.session).await?;
        request = request.header(CONTENT_RANGE, range).body(piece.clone());
        if total.is_some() {
            // The service refuses the object if it has other bytes.
            request = request.header("x-goog-hash", format!("crc32c={}", self.crc));
        }
        let answer = request.send().await;
        self.taken(answer.map_err(|source| Error::lost(&self.what(), source))?)
            .await
    }

    /// Asks [how much has arrived](https://cloud.google.com/storage/docs/performing-resumable-uploads#status-check).
    async fn status(&self) -> Result<Taken, Error> {
        let request = self.cloud.to_session(Method::PUT, &self.session).await?;
        let request = request.header(CONTENT_RANGE, "bytes */*").header(CONTENT_LENGTH, 0);
        let answer = request.send().await;
        self.taken(answer.map_err(|source| Error::lost(&self.what(), source))?)
            .await
    }

    async fn taken(&self, response: Response) -> Result<Taken, Error> {
        let what = self.what();
        if is_incomplete(response.status()) {
            let range = response.headers().get(RANGE).and_then(|value| value.to_str().ok());
            // Without the header, nothing has arrived.
            let Some(range) = range else { return Ok(Taken::Upto(0)) };
            let last = range.strip_prefix("bytes=0-").and_then(|last| last.parse::<u64>().ok());
            return match last {
                // Some servers say so when nothing has arrived. A single byte is never taken.
                Some(0) => Ok(Taken::Upto(0)),
                Some(last) => Ok(Taken::Upto(last + 1)),
                None => Err(Error::odd(&what, "a Range that is none")),
            };
        }
        if !response.status().is_success() {
            return Err(Error::of_storage(&what, response).await);
        }
        let object = response.json().await.map_err(|source| Error::lost(&what, source))?;
        Ok(Taken::Whole(object))
    }

    /// Compares what was sent with what is there. Services older than this header check nothing.
    async fn verify(&self, object: &Object) -> Result<(), Failure> {
        if object.crc32c == self.crc {
            return Ok(());
        }
        self.cloud.delete_object(self.name, &object.generation).await?;
        Err(Error::Damaged {
            object: self.name.to_owned(),
            expected: self.crc.clone(),
            found: object.crc32c.clone(),
        }
        .into())
    }

    /// Forgets what has been sent. Without it the service would, after a week.
    async fn cancel(&self) {
        let cancelled = async {
            let request = self.cloud.to_session(Method::DELETE, &self.session).await?;
            request
                .header(CONTENT_LENGTH, 0)
                .send()
                .await
                .map_err(|source| Error::lost(&self.what(), source))
        };
        // Success is 499, "client closed request".
        if let Err(error) = cancelled.await {
            tracing::debug!(object = self.name, "failed to cancel: {}", Failure::from(error));
        }
    }
}
