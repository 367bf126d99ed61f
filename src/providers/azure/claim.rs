//! A blob that one process writes.
//!
//! The process holds a [lease](https://learn.microsoft.com/rest/api/storageservices/lease-blob), which a dead process loses
//! within a quarter of a minute; so two processes never write one blob, and a half-written blob is started again by another.
//! Only the lease tells a dead writer from a living one. It is waited for and never broken; otherwise two living writers
//! could take the blob from each other endlessly.

use std::time::{Duration, Instant};

use azure_core::http::{Etag, RequestContent};
use azure_storage_blob::models::{
    BlobClientAcquireLeaseOptions, BlobClientSetMetadataOptions, HttpRange, PageBlobClientCreateOptions,
    PageBlobClientUploadPagesOptions,
};
use crc_fast::CrcAlgorithm;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::blob::{Blob, WRITE, class, metadata};
use super::error::Error;
use super::pages::Write;
use crate::base::failure::Failure;
use crate::base::metrics;
use crate::base::retry::Policy;
use crate::model::mark::Mark;

/// A lease ends by itself after this many seconds, the fewest there are, and is renewed three times as often.
const LEASE: i32 = 15;
const RENEWAL: Duration = Duration::from_secs(5);
/// Limit for waiting for a lease that its holder may no longer renew, and the pause between looks at it.
const OTHERS: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(1);

/// A blob that only this process may write, until the claim is dropped.
pub(super) struct Claim {
    blob: Blob,
    size: u64,
    mark: Mark,
    lease: String,
    renewal: AbortOnDropHandle<()>,
}

impl Claim {
    /// Claims a blob and empties it; `None` if it is complete by now. Waits for another holder of the lease as long as a dead
    /// process would hold it.
    pub(super) async fn on(blob: &Blob, mark: &Mark, size: u64) -> Result<Option<Self>, Error> {
        // The lease's id is known before the answer, so the answer may be lost.
        let lease = Uuid::new_v4().to_string();
        let mut waiting_since: Option<Instant> = None;
        loop {
            match blob.look(mark).await? {
                Some(state) if state.complete => {
                    blob.free(&state).await?;
                    return Ok(None);
                }
                // Only an existing blob can be leased.
                None => {
                    if create_absent(blob, size, mark).await? {
                        continue;
                    }
                }
                Some(state) => {
                    if acquire(blob, &lease, state.etag).await? {
                        break;
                    }
                }
            }
            let since = waiting_since.get_or_insert_with(|| {
                tracing::info!(
                    "blob {} is or was being written by another process; waiting",
                    blob.name()
                );
                Instant::now()
            });
            if since.elapsed() > OTHERS {
                return Err(Error::Busy(blob.name().to_owned()));
            }
            tokio::time::sleep(LOOK).await;
        }
        let claim = Self {
            blob: blob.clone(),
            size,
            mark: mark.clone(),
            renewal: AbortOnDropHandle::new(tokio::spawn(keep(blob.clone(), lease.clone()))),
            lease,
        };
        // Creating it again drops earlier pages: pages that are not sent must read as zeros.
        let again = PageBlobClientCreateOptions {
            metadata: Some(metadata(mark, false)),
            lease_id: Some(claim.lease.clone()),
            ..PageBlobClientCreateOptions::default()
        };
        blob.create(size, &again).await?;
        Ok(Some(claim))
    }

    /// Length of the blob in bytes, with its footer.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Writes pages, with a checksum that the service compares before it takes them. Its CRC-64 is that of NVMe.
    pub(super) async fn write(&self, write: &Write) -> Result<(), Error> {
        let Write { offset, bytes } = write;
        let what = format!("write {} bytes at {offset} of blob {}", bytes.len(), self.blob.name());
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes).to_le_bytes();
        let put = || async {
            match self.put(&what, write, &crc).await {
                // The lease ended while it could not be renewed. It is still ours, unless another process took it.
                Err(error) if error.status() == Some(412) => {
                    renew(&self.blob, &self.lease).await?;
                    self.put(&what, write, &crc).await
                }
                written => written,
            }
        };
        Policy::CALL.run("azure write pages", class, put).await?;
        metrics::uploaded(bytes.len() as u64);
        Ok(())
    }

    async fn put(&self, what: &str, Write { offset, bytes }: &Write, crc: &[u8]) -> Result<(), Error> {
        let options = PageBlobClientUploadPagesOptions {
            lease_id: Some(self.lease.clone()),
            transactional_content_crc64: Some(crc.to_vec()),
            ..PageBlobClientUploadPagesOptions::default()
        };
        let length = bytes.len() as u64;
        let body: RequestContent<_, _> = bytes.clone().into();
        let range = HttpRange::from(*offset..offset + length);
        let page_blob = self.blob.client.page_blob_client();
        let put = page_blob.upload_pages(body, length, range, Some(options));
        self.blob.once_within(WRITE, what, put).await.map(drop)
    }

    /// Marks the blob as complete and ends the lease.
    pub(super) async fn complete(&self) -> Result<(), Error> {
        let metadata = metadata(&self.mark, true);
        let what = format!("complete blob {}", self.blob.name());
        let options = || BlobClientSetMetadataOptions {
            lease_id: Some(self.lease.clone()),
            ..BlobClientSetMetadataOptions::default()
        };
        let complete = || self.blob.client.set_metadata(&metadata, Some(options()));
        self.blob.call(&what, complete).await?;
        self.release().await;
        Ok(())
    }

    /// Deletes the unfinished blob.
    pub(super) async fn abandon(&self) {
        if let Err(error) = self.blob.delete(Some(&self.lease)).await {
            tracing::warn!("could not {}", Failure::from(error));
        }
    }

    /// Ends the lease, which would keep an import from reading the blob.
    async fn release(&self) {
        let what = format!("release blob {}", self.blob.name());
        let release = || self.blob.client.release_lease(self.lease.clone(), None);
        match self.blob.call(&what, release).await {
            // Another process saw that nothing is left to write.
            Err(error) if error.status() == Some(409) => {}
            Err(error) => {
                tracing::warn!(
                    "could not {}; waiting for the lease to end by itself",
                    Failure::from(error)
                );
                self.renewal.abort();
                tokio::time::sleep(OTHERS).await;
            }
            Ok(_) => {}
        }
    }
}

/// Creates a blob; false if another process just did.
async fn create_absent(blob: &Blob, size: u64, mark: &Mark) -> Result<bool, Error> {
    let absent = PageBlobClientCreateOptions {
        metadata: Some(metadata(mark, false)),
        if_none_match: Some("*".into()),
        ..PageBlobClientCreateOptions::default()
    };
    match blob.create(size, &absent).await {
        Err(error) if matches!(error.status(), Some(409 | 412)) => Ok(false),
        created => created.map(|()| true),
    }
}

/// Leases a blob in the state that was seen, so never a complete one; false if another process leased or changed it since.
async fn acquire(blob: &Blob, lease: &str, etag: Option<Etag>) -> Result<bool, Error> {
    let what = format!("lease blob {}", blob.name());
    let options = || BlobClientAcquireLeaseOptions {
        proposed_lease_id: Some(lease.to_owned()),
        if_match: etag.clone(),
        ..BlobClientAcquireLeaseOptions::default()
    };
    let acquire = || blob.client.acquire_lease(LEASE, Some(options()));
    match blob.call(&what, acquire).await {
        Err(error) if matches!(error.status(), Some(404 | 409 | 412)) => Ok(false),
        leased => leased.map(|_| true),
    }
}

/// Renews a lease until the task is aborted.
async fn keep(blob: Blob, lease: String) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        if let Err(error) = renew(&blob, &lease).await {
            // The next write reports a lost lease.
            tracing::debug!("could not {}", Failure::from(error));
        }
    }
}

async fn renew(blob: &Blob, lease: &str) -> Result<(), Error> {
    let what = format!("renew the lease of blob {}", blob.name());
    let renew = blob.client.renew_lease(lease.to_owned(), None);
    blob.once(&what, renew).await.map(drop)
}
