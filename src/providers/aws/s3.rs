//! The object that AWS imports a disk from: uploaded in parts, each with its SHA-256.
//!
//! The key contains the image's digest, and the object exists only once the whole image was verified. Another process may
//! continue an interrupted upload, and two processes may do so at once: they put the same parts. The parts of an abandoned
//! upload cost as much as objects; a
//! [lifecycle rule](https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpu-abort-incomplete-mpu-lifecycle-config.html)
//! of the bucket should abort such uploads after some days.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::client::{call, change, pages, time_outs};
use super::error::Error;
use crate::base::failure::Failure;
use crate::base::metrics;
use crate::base::retry;
use crate::images::source::{CHUNK, Content, Form, Source};

/// The size of the first parts. S3 takes at most 10,000 parts of at least 5 MiB
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>); their sizes may differ.
const SMALLEST_PART: usize = 8 << 20;
/// The size of the last parts: half a tebibyte fits into 10,000 parts.
const LARGEST_PART: usize = 64 << 20;
/// The number of parts after which the size doubles.
const PARTS_OF_A_SIZE: i32 = 1000;
/// Parts of one image in flight. One connection to S3 seldom fills the line.
const PARTS_IN_FLIGHT: usize = 4;

/// The key in an object's metadata that holds the image's digest.
const DIGEST: &str = "image-sha256";

/// An object in a bucket.
#[derive(Clone)]
pub(super) struct Object {
    pub(super) client: Client,
    pub(super) bucket: String,
    pub(super) key: String,
    /// SHA-256 of the image file in the compose, in hex.
    pub(super) sha256: String,
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

impl Object {
    pub(super) fn new(client: &Client, bucket: &str, sha256: &str) -> Self {
        Self {
            client: client.clone(),
            bucket: bucket.to_owned(),
            key: format!("cloud-image-uploader/{sha256}.raw"),
            sha256: sha256.to_owned(),
        }
    }

    /// Reports whether the object exists and is of this image.
    pub(super) async fn exists(&self) -> Result<bool, Error> {
        let what = format!("look for {self}");
        let found = call("HeadObject", &what, || async {
            let head = self
                .client
                .head_object()
                .bucket(&self.bucket)
                .key(&self.key)
                .send()
                .await;
            match head {
                Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found()) => Ok(None),
                answer => answer.map(Some),
            }
        });
        let Some(found) = found.await? else { return Ok(false) };
        let digest = found.metadata().and_then(|metadata| metadata.get(DIGEST));
        Ok(digest.is_some_and(|digest| *digest == self.sha256))
    }

    /// Reads the image and uploads it. If the image fails its checks, the upload is aborted.
    pub(super) async fn upload(&self, source: &Source, memory: &Arc<Semaphore>) -> Result<(), Failure> {
        let upload = match self.uploads().await?.pop() {
            Some(begun) => begun,
            None => self.create().await?,
        };
        let uploaded = self.parts(&upload, source, memory).await;
        let complete = match uploaded {
            Ok(parts) => self.complete(&upload, parts).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &complete
            // The next attempt continues after a transient failure. A completed object belongs to a process that needs it.
            && !failure.class().is_transient()
            && let Err(error) = self.abort(&upload).await
        {
            tracing::warn!("failed to {error}; left over");
        }
        complete
    }

    /// Deletes the object and aborts its unfinished uploads; a failure is only logged.
    pub(super) async fn clear(&self) {
        if let Err(error) = self.try_clear().await {
            tracing::warn!("failed to {error}; left over");
        }
    }

    async fn try_clear(&self) -> Result<(), Error> {
        for upload in self.uploads().await? {
            self.abort(&upload).await?;
        }
        if self.exists().await? {
            let what = format!("delete {self}");
            let delete = || self.client.delete_object().bucket(&self.bucket).key(&self.key).send();
            call("DeleteObject", &what, delete).await?;
            tracing::info!("deleted {self}");
        }
        Ok(())
    }

    async fn abort(&self, upload: &str) -> Result<(), Error> {
        let what = format!("abort upload {upload} of {self}");
        let abort = || {
            let abort = self.client.abort_multipart_upload();
            known(abort.bucket(&self.bucket).key(&self.key).upload_id(upload).send())
        };
        if call("AbortMultipartUpload", &what, abort).await?.is_some() {
            tracing::info!("aborted upload {upload} of {self}");
        }
        Ok(())
    }

    /// The ids of unfinished uploads, the oldest first; none if the credentials may not list them.
    async fn uploads(&self) -> Result<Vec<String>, Error> {
        let what = format!("look for uploads of {self}");
        let uploads = pages(&what, async |token: Option<String>| {
            // S3 has two markers for the next page.
            let marker = token.as_deref().and_then(|token| token.split_once('\n'));
            let list = || {
                let list = self.client.list_multipart_uploads();
                list.bucket(&self.bucket)
                    .prefix(&self.key)
                    .set_key_marker(marker.map(|(key, _)| key.to_owned()))
                    .set_upload_id_marker(marker.map(|(_, id)| id.to_owned()))
                    .send()
            };
            let answer = match call("ListMultipartUploads", &what, list).await {
                Ok(answer) => answer,
                Err(error) if error.is_denied() => {
                    tracing::debug!("failed to {error}; taken for none");
                    return Ok((Vec::new(), None));
                }
                Err(error) => return Err(error),
            };
            let ours = answer.uploads().iter().filter(|upload| upload.key() == Some(&self.key));
            let found = ours.filter_map(|upload| {
                let initiated = upload.initiated().map_or(0, |time| time.secs());
                Some((initiated, upload.upload_id()?.to_owned()))
            });
            let next = answer.is_truncated().unwrap_or(false).then(|| {
                let id = answer.next_upload_id_marker().unwrap_or_default();
                Some(format!("{}\n{id}", answer.next_key_marker()?))
            });
            Ok((found.collect::<Vec<_>>(), next.flatten()))
        });
        let mut found = uploads.await?;
        found.sort();
        Ok(found.into_iter().map(|(_, upload)| upload).collect())
    }

    async fn create(&self) -> Result<String, Error> {
        let what = format!("upload {self}");
        let create = || {
            let create = self
                .client
                .create_multipart_upload()
                .bucket(&self.bucket)
                .key(&self.key);
            create
                .checksum_algorithm(ChecksumAlgorithm::Sha256)
                .metadata(DIGEST, &self.sha256)
                .send()
        };
        let answer = call("CreateMultipartUpload", &what, create).await?;
        let id = answer.upload_id().map(str::to_owned);
        id.ok_or_else(|| Error::lacking(&what, "upload id"))
    }

    /// Uploads the image part by part, and returns the parts once the image is verified.
    async fn parts(
        &self,
        upload: &str,
        source: &Source,
        memory: &Arc<Semaphore>,
    ) -> Result<Vec<CompletedPart>, Failure> {
        let present = Arc::new(self.present(upload).await?);
        let mut chunks = source.open(Form::Raw).await?;
        let mut sent: BTreeMap<i32, CompletedPart> = BTreeMap::new();
        let mut sending = JoinSet::new();
        let mut ended = false;
        for number in 1.. {
            let size = part_size(number);
            let permits = u32::try_from(size / CHUNK).unwrap_or(u32::MAX);
            let permits = memory.clone().acquire_many_owned(permits).await;
            let permits = permits.map_err(|_| Error::Interrupted(self.to_string()))?;
            let mut bytes = BytesMut::with_capacity(size);
            while bytes.len() < size && !ended {
                match chunks.next().await? {
                    Some(chunk) => match chunk.content {
                        Content::Data(data) => bytes.extend_from_slice(&data),
                        Content::Hole(len) => bytes.resize(bytes.len() + len, 0),
                    },
                    None => ended = true,
                }
            }
            // An object has at least one part, which may be empty; a later empty part is left out.
            if !bytes.is_empty() || number == 1 {
                let (object, upload, present) = (self.clone(), upload.to_owned(), present.clone());
                let part = async move {
                    let part = object.part(&upload, number, bytes.freeze(), &present).await;
                    drop(permits);
                    part
                };
                sending.spawn(retry::inherit(part.in_current_span()));
            }
            while sending.len() >= PARTS_IN_FLIGHT || ended {
                let Some(part) = sending.join_next().await else { break };
                let part = part.map_err(|_| Error::Interrupted(self.to_string()))??;
                sent.insert(part.part_number().unwrap_or_default(), part);
            }
            if ended {
                break;
            }
        }
        Ok(sent.into_values().collect())
    }

    /// The uploaded parts by number: SHA-256 as S3 writes it, and ETag.
    async fn present(&self, upload: &str) -> Result<BTreeMap<i32, (String, String)>, Error> {
        let what = format!("list the parts of {self}");
        let mut found = BTreeMap::new();
        let mut page: Option<String> = None;
        loop {
            let list = || {
                let list = self.client.list_parts().bucket(&self.bucket).key(&self.key);
                known(list.upload_id(upload).set_part_number_marker(page.clone()).send())
            };
            let answer = match call("ListParts", &what, list).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(Error::UploadEnded(self.to_string())),
                Err(error) if error.is_denied() => return Ok(found),
                Err(error) => return Err(error),
            };
            found.extend(answer.parts().iter().filter_map(|part| {
                let (sum, tag) = (part.checksum_sha256()?, part.e_tag()?);
                Some((part.part_number()?, (sum.to_owned(), tag.to_owned())))
            }));
            page = answer.next_part_number_marker().map(str::to_owned);
            if !answer.is_truncated().unwrap_or(false) || page.is_none() {
                return Ok(found);
            }
        }
    }

    async fn part(
        &self,
        upload: &str,
        number: i32,
        bytes: Bytes,
        present: &BTreeMap<i32, (String, String)>,
    ) -> Result<CompletedPart, Error> {
        let sum = BASE64_STANDARD.encode(digest(&SHA256, &bytes));
        let done = CompletedPart::builder().part_number(number).checksum_sha256(&sum);
        if let Some((found, tag)) = present.get(&number)
            && *found == sum
        {
            return Ok(done.e_tag(tag).build());
        }
        let what = format!("upload part {number} of {self}");
        let len = bytes.len() as u64;
        let put = || {
            let put = self.client.upload_part().bucket(&self.bucket).key(&self.key);
            let put = put
                .upload_id(upload)
                .part_number(number)
                .checksum_sha256(&sum)
                .body(ByteStream::from(bytes.clone()))
                .customize()
                .config_override(Builder::new().timeout_config(time_outs(len)));
            known(put.send())
        };
        let answer = call("UploadPart", &what, put).await?;
        let answer = answer.ok_or_else(|| Error::UploadEnded(self.to_string()))?;
        metrics::uploaded(len);
        match answer.e_tag() {
            Some(tag) => Ok(done.e_tag(tag).build()),
            // The next attempt finds the part, and its ETag, in the list.
            None => Err(Error::lacking(&what, "ETag of the part")),
        }
    }

    async fn complete(&self, upload: &str, parts: Vec<CompletedPart>) -> Result<(), Error> {
        let what = format!("complete the upload of {self}");
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = || {
            let complete = self
                .client
                .complete_multipart_upload()
                .bucket(&self.bucket)
                .key(&self.key);
            known(complete.upload_id(upload).multipart_upload(parts.clone()).send())
        };
        let completed = change("CompleteMultipartUpload", &what, complete).await;
        match completed {
            // Read back in every case: the answer may be lost, and another process may have been faster.
            _ if self.exists().await? => Ok(()),
            Ok(_) => Err(Error::UploadEnded(self.to_string())),
            Err(error) => Err(error),
        }
    }
}

/// `None` if the upload no longer exists, which another attempt cannot change.
async fn known<T, E: ProvideErrorMetadata>(
    sent: impl Future<Output = Result<T, SdkError<E>>>,
) -> Result<Option<T>, SdkError<E>> {
    match sent.await {
        Err(error) if Error::is(&error, "NoSuchUpload") => Ok(None),
        answer => answer.map(Some),
    }
}

/// The size of a part in bytes. It depends on the number alone, so that every process cuts the image the same way.
fn part_size(number: i32) -> usize {
    let doublings = u32::try_from((number - 1) / PARTS_OF_A_SIZE).unwrap_or(u32::MAX);
    SMALLEST_PART
        .checked_shl(doublings)
        .map_or(LARGEST_PART, |size| size.clamp(SMALLEST_PART, LARGEST_PART))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_hold_half_a_tebibyte() {
        assert_eq!(
            (part_size(1), part_size(1000), part_size(1001)),
            (8 << 20, 8 << 20, 16 << 20)
        );
        assert_eq!((part_size(3001), part_size(10_000)), (64 << 20, 64 << 20));
        let all: u64 = (1..=10_000).map(|number| part_size(number) as u64).sum();
        assert!(all > 500_000_000_000, "{all}");
        assert!((1..=10_000).all(|number| part_size(number).is_multiple_of(CHUNK)));
    }
}
