//! The tarball into the bucket, as it is, in one pass.
//!
//! The object's name and metadata carry the image's SHA-256, and the last byte leaves only when the whole image has been
//! read and verified. So an object under that name is complete and right, or does not exist: an unfinished upload is
//! invisible, and Google discards it
//! [after a week](https://cloud.google.com/storage/docs/resumable-uploads#session-uris). The object is read back at the
//! end, whatever the last answer said: proxies answer 200 to pieces that they did not pass on.

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
/// and held in memory until the service has them, one while the next is read; smaller pieces would wait for more answers.
/// Each must arrive within [`crate::base::http::CALL`], so an upload needs 140 kB/s.
const PIECE: usize = 8 << 20;
/// The metadata of an object that holds the SHA-256 of the image file, in hex.
const SHA256: &str = "image-sha256";

/// The name of the object that an image is imported from.
pub(super) fn object_name(image_name: &str, image: &Image) -> String {
    format!("{image_name}-{}.tar.gz", image.sha256)
}

/// The address from which Compute Engine reads an object. It accepts only this form, whatever the endpoint is.
pub(super) fn object_source(bucket: &str, object: &str) -> String {
    format!("https://storage.googleapis.com/{bucket}/{object}")
}

/// Uploads the object unless the right one exists already. Only then is the source opened.
pub(super) async fn ensure(cloud: &Cloud, name: &str, source: &Source) -> Result<(), Failure> {
    let image = source.image();
    if let Some(object) = cloud.object(name).await? {
        if is_right(&object, image) {
            tracing::debug!(object = name, "object {name} exists already");
            return Ok(());
        }
        tracing::warn!(
            object = name,
            "object {name} does not have the content that its name says; replacing it"
        );
        cloud.delete_object(name, &object.generation).await?;
    }
    let mut chunks = source.open(Form::Tarball).await?;
    let metadata = HashMap::from([(SHA256.to_owned(), image.sha256.clone())]);
    let session = match cloud.start_upload(name, image.size, &metadata).await {
        Ok(session) => session,
        Err(error) if error.is_conflict() => return settle_conflict(cloud, name, image, error).await,
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
        Ok(()) => upload.verify(image).await,
        // The service may forget the session of a finished upload at once.
        Err(Stopped::Upload(error)) if error.is_conflict() || error.is_absent() => {
            settle_conflict(cloud, name, image, error).await
        }
        Err(Stopped::Upload(error)) => Err(error.into()),
        Err(Stopped::Source(failure)) => {
            upload.cancel().await;
            Err(failure)
        }
    }
}

/// Deletes an object that nothing needs any more. A failure is a warning: a lifecycle rule of the bucket deletes it later.
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

/// Accepts the object that another process uploaded first, or our own whose answer was lost.
async fn settle_conflict(cloud: &Cloud, name: &str, image: &Image, error: Error) -> Result<(), Failure> {
    match cloud.object(name).await? {
        Some(object) if is_right(&object, image) => Ok(()),
        _ => Err(error.into()),
    }
}

/// The side on which an upload failed.
enum Stopped {
    Source(Failure),
    Upload(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Upload(error)
    }
}

/// The source, read piece by piece.
struct Reading<'a> {
    chunks: &'a mut Chunks,
    /// Bytes that were read beyond the last piece.
    rest: Bytes,
    /// CRC32C of all bytes read.
    crc: Digest,
}

impl Reading<'_> {
    /// Reads a piece, a shorter one only at the verified end. Afterwards `rest` is empty only at that end.
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

/// The service's acknowledgement.
enum Stored {
    /// It has all bytes before this offset.
    Upto(u64),
    /// It answered as if the object were complete.
    Whole,
}

/// A resumable upload that was started.
struct Upload<'a> {
    cloud: &'a Cloud,
    session: Url,
    name: &'a str,
    /// Bytes that the service acknowledged.
    sent: u64,
    /// CRC32C of all bytes in base64, once all were read.
    crc: String,
}

impl Upload<'_> {
    /// Sends all bytes, one piece while the next one is read. A piece is sent only when more bytes follow it, so that the last
    /// piece is never empty, and the service cannot complete the object before the verified end of the source.
    async fn run(&mut self, chunks: &mut Chunks) -> Result<(), Stopped> {
        let mut reading = Reading {
            chunks,
            rest: Bytes::new(),
            crc: Digest::new(CrcAlgorithm::Crc32Iscsi),
        };
        // Allocated once, at full size: a buffer that grows takes twice as much, and freed memory is not always reused.
        let memory = || BytesMut::with_capacity(PIECE);
        let mut piece = reading.piece(memory()).await?;
        let mut spare = memory();
        while !reading.rest.is_empty() {
            let (next, sent) = tokio::join!(reading.piece(spare), self.send(piece.clone(), None));
            let next = next?;
            sent?;
            spare = piece.try_into_mut().unwrap_or_else(|_| memory());
            spare.clear();
            piece = next;
        }
        // Thirty-two bits, big end first.
        self.crc = BASE64.encode(&reading.crc.finalize().to_be_bytes()[4..]);
        let total = self.sent + piece.len() as u64;
        self.send(piece, Some(total)).await?;
        Ok(())
    }

    fn what(&self) -> String {
        format!("upload {} to bucket {}", self.name, self.cloud.bucket)
    }

    /// Sends a piece until the service has it, resuming where it stopped. The last piece comes with the `total` size.
    async fn send(&mut self, mut piece: Bytes, total: Option<u64>) -> Result<(), Error> {
        let mut waits = Policy::CALL.start("gcp upload");
        let mut lost = false;
        loop {
            let stored = if lost {
                self.status().await
            } else {
                self.put(&piece, total).await
            };
            let error = match stored {
                Ok(Stored::Whole) if total.is_some() => {
                    metrics::uploaded(piece.len() as u64);
                    return Ok(());
                }
                Ok(Stored::Whole) => Error::odd(&self.what(), "a success before the last piece"),
                Ok(Stored::Upto(end)) => {
                    let fresh = end.checked_sub(self.sent).and_then(|fresh| usize::try_from(fresh).ok());
                    let Some(fresh) = fresh.filter(|fresh| *fresh <= piece.len()) else {
                        let answer = format!("{end} bytes stored, after {}", self.sent);
                        return Err(Error::odd(&self.what(), &answer));
                    };
                    metrics::uploaded(fresh as u64);
                    piece.advance(fresh);
                    self.sent = end;
                    if piece.is_empty() && total.is_none() {
                        return Ok(());
                    }
                    if lost || fresh > 0 {
                        lost = false;
                        continue;
                    }
                    Error::odd(&self.what(), "no new byte stored")
                }
                Err(error) => error,
            };
            // The service may have any part of the piece.
            lost = true;
            let Some(wait) = waits.after(error.class_of_call()) else {
                return Err(error);
            };
            tracing::debug!(
                object = self.name,
                wait_ms = wait.as_millis(),
                "upload was interrupted: {}",
                Failure::from(error)
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn put(&self, piece: &Bytes, total: Option<u64>) -> Result<Stored, Error> {
        let last = (self.sent + piece.len() as u64).saturating_sub(1);
        let range = match total {
            // All bytes are stored, and the object is not complete.
            Some(total) if piece.is_empty() => format!("bytes */{total}"),
            Some(total) => format!("bytes {}-{last}/{total}", self.sent),
            None => format!("bytes {}-{last}/*", self.sent),
        };
        let mut request = self.cloud.to_session(Method::PUT, &self.session).await?;
        request = request.header(CONTENT_RANGE, range).body(piece.clone());
        if piece.is_empty() {
            request = request.header(CONTENT_LENGTH, 0);
        }
        if total.is_some() {
            // The service rejects the object if it has other bytes.
            request = request.header("x-goog-hash", format!("crc32c={}", self.crc));
        }
        let answer = request.send().await;
        self.stored(answer.map_err(|source| Error::lost(&self.what(), source))?)
            .await
    }

    /// Asks [how many bytes are stored](https://cloud.google.com/storage/docs/performing-resumable-uploads#status-check).
    async fn status(&self) -> Result<Stored, Error> {
        let request = self.cloud.to_session(Method::PUT, &self.session).await?;
        let request = request.header(CONTENT_RANGE, "bytes */*").header(CONTENT_LENGTH, 0);
        let answer = request.send().await;
        self.stored(answer.map_err(|source| Error::lost(&self.what(), source))?)
            .await
    }

    async fn stored(&self, response: Response) -> Result<Stored, Error> {
        let what = self.what();
        if is_incomplete(response.status()) {
            let range = response.headers().get(RANGE).and_then(|value| value.to_str().ok());
            // Without the header, no byte is stored.
            let Some(range) = range else { return Ok(Stored::Upto(0)) };
            return match last_of(range) {
                // Some servers say so when no byte is stored. No piece has a single byte.
                Some(0) => Ok(Stored::Upto(0)),
                Some(last) => Ok(Stored::Upto(last + 1)),
                None => Err(Error::odd(&what, &format!("Range {range:?}"))),
            };
        }
        if !response.status().is_success() {
            return Err(Error::of_storage(&what, response).await);
        }
        Ok(Stored::Whole)
    }

    /// Compares the object with the bytes that were sent.
    async fn verify(&self, image: &Image) -> Result<(), Failure> {
        let Some(object) = self.cloud.object(self.name).await? else {
            return Err(Error::odd(&self.what(), "success, but the object does not exist").into());
        };
        if object.crc32c == self.crc && is_right(&object, image) {
            return Ok(());
        }
        self.cloud.delete_object(self.name, &object.generation).await?;
        Err(Error::Damaged {
            object: self.name.to_owned(),
            expected: format!("{} bytes with CRC32C {}", image.size, self.crc),
            found: format!("{} bytes with CRC32C {}", object.size, object.crc32c),
        }
        .into())
    }

    /// Discards the bytes sent so far. Otherwise the service discards them after a week.
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

/// The offset of the last byte stored: `bytes=0-524287`, also without the unit or with a blank after it.
fn last_of(range: &str) -> Option<u64> {
    let range = range.trim();
    let range = range
        .strip_prefix("bytes")
        .unwrap_or(range)
        .trim_start_matches(['=', ' ']);
    let (first, last) = range.split_once('-')?;
    (first == "0").then(|| last.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_starts_at_the_first_byte() {
        for range in ["bytes=0-524287", "bytes 0-524287", "0-524287", " bytes=0-524287 "] {
            assert_eq!(last_of(range), Some(524_287), "{range}");
        }
        for range in ["", "bytes=", "bytes=1-2", "bytes=0-", "bytes=0-x", "0", "bytes=*/5"] {
            assert_eq!(last_of(range), None, "{range}");
        }
    }
}
