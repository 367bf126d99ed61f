//! The page blob that a disk is imported from.
//!
//! Its metadata say what it is made of, and whether it is complete. Who writes it holds a
//! [lease](https://learn.microsoft.com/rest/api/storageservices/lease-blob), which a process that died loses within a quarter
//! of a minute; so two processes never write one blob, and what one left half-written another begins anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use azure_core::error::ErrorKind;
use azure_core::http::policies::{Policy as SdkPolicy, PolicyResult};
use azure_core::http::{ClientOptions, Context, Request, RequestContent, RetryOptions, StatusCode, Transport};
use azure_storage_blob::models::{
    BlobClientAcquireLeaseOptions, BlobClientDeleteOptions, BlobClientGetPropertiesResultHeaders,
    BlobClientSetMetadataOptions, HttpRange, LeaseStatus, PageBlobClientCreateOptions,
    PageBlobClientUploadPagesOptions,
};
use azure_storage_blob::{BlobClient, BlobClientOptions, BlobContainerClient, BlobContainerClientOptions};
use crc_fast::CrcAlgorithm;
use reqwest::Client;
use tokio_util::task::AbortOnDropHandle;
use url::Url;
use uuid::Uuid;

use super::error::Error;
use super::identity::{Identity, STORAGE};
use super::pages::Write;
use crate::error::{Class, Classified, Failure};
use crate::http;
use crate::provider::Mark;
use crate::retry::Policy;

/// A lease ends by itself after this many seconds, the fewest there are, and is renewed three times as often.
const LEASE: i32 = 15;
const RENEWAL: Duration = Duration::from_secs(5);
/// How long another process's lease is waited for, and how often it is looked at meanwhile.
const OTHERS: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(1);
/// A write of 4 MiB that takes longer is not going to end.
pub(super) const WRITE: Duration = Duration::from_secs(120);
/// Says that every page is there and verified. Names of metadata are identifiers: letters, digits, and underscores.
const COMPLETE: &str = "complete";
/// The mark's digest.
const DIGEST: &str = "image_sha256";

/// The configured container.
#[derive(Debug)]
pub(super) struct Container {
    url: Url,
    name: String,
    options: ClientOptions,
    identity: Arc<Identity>,
}

/// A blob in the container.
#[derive(Clone)]
pub(super) struct Blob {
    client: Arc<BlobClient>,
    identity: Arc<Identity>,
    name: String,
}

/// A blob that only this process may write, until this is dropped.
pub(super) struct Claim {
    pub(super) blob: Blob,
    size: u64,
    metadata: HashMap<String, String>,
    lease: String,
    _renewal: AbortOnDropHandle<()>,
}

/// Shows our token. The SDK's own way insists on https, so that no fake on loopback could see a token.
#[derive(Debug)]
struct Sign(Arc<Identity>);

#[async_trait]
impl SdkPolicy for Sign {
    async fn send(&self, context: &Context, request: &mut Request, next: &[Arc<dyn SdkPolicy>]) -> PolicyResult {
        let refused = |error| azure_core::Error::with_error(ErrorKind::Credential, error, "get a token");
        let token = self.0.token(STORAGE).await.map_err(refused)?;
        let text = String::from_utf8_lossy(token.as_bytes()).into_owned();
        request.insert_header("authorization", text);
        let Some((policy, rest)) = next.split_first() else {
            return Err(azure_core::Error::with_message(ErrorKind::Other, "no transport"));
        };
        let response = policy.send(context, request, rest).await?;
        if response.status() == StatusCode::Unauthorized {
            self.0.forget(STORAGE, &token).await;
        }
        Ok(response)
    }
}

impl Container {
    /// `http` must leave uploads their time.
    pub(super) fn new(http: Client, endpoint: &Url, name: &str, identity: Arc<Identity>) -> Self {
        let mut url = endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push(name);
        }
        Self {
            url,
            name: name.to_owned(),
            options: ClientOptions {
                per_try_policies: vec![Arc::new(Sign(identity.clone()))],
                // There is one retry policy, and it is not this one.
                retry: RetryOptions::none(),
                transport: Some(Transport::new(Arc::new(http))),
                ..ClientOptions::default()
            },
            identity,
        }
    }

    /// Proves that it is there and lets us in.
    pub(super) async fn check(&self) -> Result<(), Error> {
        let what = format!("look at container {}", self.name);
        let options = BlobContainerClientOptions {
            client_options: self.options.clone(),
            ..BlobContainerClientOptions::default()
        };
        let client = BlobContainerClient::new(self.url.clone(), None, Some(options));
        let client = client.map_err(|error| Error::storage(&what, error))?;
        let look = || async { settle(&what, http::CALL, client.get_properties(None)).await };
        Policy::CALL.run("azure blob", Error::class, look).await.map(drop)
    }

    pub(super) fn blob(&self, name: &str) -> Result<Blob, Error> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(name);
        }
        let options = BlobClientOptions {
            client_options: self.options.clone(),
            ..BlobClientOptions::default()
        };
        let client = BlobClient::new(url, None, Some(options))
            .map_err(|error| Error::storage(&format!("use blob {name}"), error))?;
        Ok(Blob {
            client: Arc::new(client),
            identity: self.identity.clone(),
            name: name.to_owned(),
        })
    }
}

impl Blob {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where an import finds it.
    pub(super) fn url(&self) -> &Url {
        self.client.url()
    }

    /// Whether it is there, complete or not.
    pub(super) async fn exists(&self) -> Result<bool, Error> {
        let what = format!("look at blob {}", self.name);
        match self.call(&what, || self.client.get_properties(None)).await {
            Err(error) if is_missing(&error) => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// Whether it is there with every byte of this image.
    pub(super) async fn is_complete(&self, mark: &Mark) -> Result<bool, Error> {
        let what = format!("look at blob {}", self.name);
        let properties = match self.call(&what, || self.client.get_properties(None)).await {
            Err(error) if is_missing(&error) => return Ok(false),
            properties => properties?,
        };
        let odd = |error| Error::storage(&what, error);
        let found = properties.metadata().map_err(odd)?;
        let wanted = metadata(mark, true);
        // Names of headers have no case.
        let same = |name: &str| {
            let value = found.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
            value.map(|(_, value)| value) == wanted.get(name)
        };
        Ok(same(DIGEST) && same(COMPLETE))
    }

    /// Waits until nobody holds its lease, on which an import would fail. Whoever completed it and died before letting go
    /// of it holds it for a moment yet.
    pub(super) async fn until_free(&self) -> Result<(), Error> {
        let what = format!("look at blob {}", self.name);
        let since = Instant::now();
        loop {
            let properties = match self.call(&what, || self.client.get_properties(None)).await {
                // Whoever was faster needs it no more.
                Err(error) if is_missing(&error) => return Ok(()),
                properties => properties?,
            };
            let lease = properties.lease_status();
            match lease.map_err(|error| Error::storage(&what, error))? {
                Some(LeaseStatus::Locked) if since.elapsed() < OTHERS => tokio::time::sleep(LOOK).await,
                Some(LeaseStatus::Locked) => return Err(Error::Busy(self.name.clone())),
                Some(LeaseStatus::Unlocked) | None => return Ok(()),
            }
        }
    }

    /// Makes the blob ours to write, empty; `None` if it is complete by now.
    pub(super) async fn claim(&self, mark: &Mark, size: u64) -> Result<Option<Claim>, Error> {
        let metadata = metadata(mark, false);
        // Only what is there can be leased. If it is, this changes nothing.
        let absent = PageBlobClientCreateOptions {
            metadata: Some(metadata.clone()),
            if_none_match: Some("*".into()),
            ..PageBlobClientCreateOptions::default()
        };
        match self.create(size, &absent).await {
            Err(error) if matches!(error.status(), Some(409 | 412)) => {}
            created => created?,
        }
        let lease = self.lease().await?;
        let claim = Claim {
            blob: self.clone(),
            size,
            metadata,
            _renewal: AbortOnDropHandle::new(tokio::spawn(renew(self.clone(), lease.clone()))),
            lease,
        };
        // Who held the lease before may have completed it meanwhile.
        if self.is_complete(mark).await? {
            claim.release().await;
            return Ok(None);
        }
        // Whatever was written to it is gone: pages that are not sent must read as zeros.
        let anew = PageBlobClientCreateOptions {
            metadata: Some(claim.metadata.clone()),
            lease_id: Some(claim.lease.clone()),
            ..PageBlobClientCreateOptions::default()
        };
        self.create(size, &anew).await?;
        Ok(Some(claim))
    }

    /// Leases it. Whoever holds the lease is waited for as long as a dead process would hold it.
    async fn lease(&self) -> Result<String, Error> {
        let what = format!("lease blob {}", self.name);
        // Ours is known before the answer, so that an answer may be lost.
        let lease = Uuid::new_v4().to_string();
        let options = || BlobClientAcquireLeaseOptions {
            proposed_lease_id: Some(lease.clone()),
            ..BlobClientAcquireLeaseOptions::default()
        };
        let since = Instant::now();
        loop {
            let leased = self.call(&what, || self.client.acquire_lease(LEASE, Some(options())));
            match leased.await {
                Err(error) if error.status() == Some(409) && since.elapsed() < OTHERS => {
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) if error.status() == Some(409) => return Err(Error::Busy(self.name.clone())),
                leased => return leased.map(|_| lease),
            }
        }
    }

    async fn create(&self, size: u64, options: &PageBlobClientCreateOptions<'_>) -> Result<(), Error> {
        let what = format!("create blob {}", self.name);
        let page_blob = self.client.page_blob_client();
        let create = || page_blob.create(size, Some(options.clone()));
        self.call(&what, create).await.map(drop)
    }

    /// Deletes it if it is there.
    pub(super) async fn delete(&self) -> Result<(), Error> {
        self.delete_with(None).await
    }

    async fn delete_with(&self, lease: Option<&str>) -> Result<(), Error> {
        let options = || BlobClientDeleteOptions {
            lease_id: lease.map(str::to_owned),
            ..BlobClientDeleteOptions::default()
        };
        let what = format!("delete blob {}", self.name);
        match self.call(&what, || self.client.delete(Some(options()))).await {
            Err(error) if is_missing(&error) => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    /// A call that may be repeated.
    async fn call<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = azure_core::Result<T>>,
    {
        Policy::CALL.run("azure blob", class, || self.once(what, call())).await
    }

    async fn once<T>(&self, what: &str, call: impl Future<Output = azure_core::Result<T>>) -> Result<T, Error> {
        // What is wrong with our identity is told better here than from within the client.
        self.identity.token(STORAGE).await?;
        settle(what, http::CALL, call).await
    }
}

impl Claim {
    /// Length of the blob.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Writes pages, with a checksum that the service compares before it takes them. Its CRC-64 is that of NVMe.
    pub(super) async fn write(&self, write: &Write) -> Result<(), Error> {
        let Write { offset, bytes } = write;
        let end = offset + bytes.len() as u64;
        let what = format!("write bytes {offset} to {end} of blob {}", self.blob.name);
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
            .to_le_bytes()
            .to_vec();
        let page_blob = self.blob.client.page_blob_client();
        let put = || async {
            let options = PageBlobClientUploadPagesOptions {
                lease_id: Some(self.lease.clone()),
                transactional_content_crc64: Some(crc.clone()),
                ..PageBlobClientUploadPagesOptions::default()
            };
            let body: RequestContent<_, _> = bytes.clone().into();
            let range = HttpRange::from(*offset..end);
            self.blob.identity.token(STORAGE).await?;
            let put = page_blob.upload_pages(body, bytes.len() as u64, range, Some(options));
            settle(&what, WRITE, put).await
        };
        Policy::CALL.run("azure write pages", class, put).await?;
        metrics::counter!("uploader_uploaded_bytes_total", "provider" => "azure").increment(bytes.len() as u64);
        Ok(())
    }

    /// Says that every page is there, and lets others in.
    pub(super) async fn complete(&self) -> Result<(), Error> {
        let mut metadata = self.metadata.clone();
        metadata.insert(COMPLETE.to_owned(), "true".to_owned());
        let what = format!("complete blob {}", self.blob.name);
        let options = || BlobClientSetMetadataOptions {
            lease_id: Some(self.lease.clone()),
            ..BlobClientSetMetadataOptions::default()
        };
        let complete = || self.blob.client.set_metadata(&metadata, Some(options()));
        self.blob.call(&what, complete).await?;
        self.release().await;
        Ok(())
    }

    /// Removes what was written.
    pub(super) async fn abandon(&self) {
        if let Err(error) = self.blob.delete_with(Some(&self.lease)).await {
            tracing::warn!("could not {}", Failure::from(error));
        }
    }

    /// An import fails on a blob that is leased. The lease ends by itself, but too late for that.
    async fn release(&self) {
        let what = format!("release blob {}", self.blob.name);
        let release = || self.blob.client.release_lease(self.lease.clone(), None);
        match self.blob.call(&what, release).await {
            // The answer to the first try was lost.
            Err(error) if error.status() == Some(409) => {}
            Err(error) => tracing::warn!("could not {}", Failure::from(error)),
            Ok(_) => {}
        }
    }
}

/// Renews a lease for as long as it is wanted. One that is lost shows when something is written.
async fn renew(blob: Blob, lease: String) {
    let what = format!("renew the lease of blob {}", blob.name);
    loop {
        tokio::time::sleep(RENEWAL).await;
        let renewed = blob.once(&what, blob.client.renew_lease(lease.clone(), None)).await;
        if let Err(error) = renewed {
            tracing::debug!("could not {}", Failure::from(error));
        }
    }
}

async fn settle<T>(what: &str, limit: Duration, call: impl Future<Output = azure_core::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| Error::storage(what, error)),
        Err(_) => Err(Error::Silent {
            what: what.to_owned(),
            seconds: limit.as_secs(),
        }),
    }
}

/// What is worth a call again at once. That a blob is not there, is there, or is leased to another now is an answer.
fn class(error: &Error) -> Class {
    match error.status() {
        Some(404 | 409 | 412) => Class::Deliverable,
        _ => error.class(),
    }
}

fn is_missing(error: &Error) -> bool {
    error.status() == Some(404) && error.code() != "ContainerNotFound"
}

/// The mark, and whether the blob is complete.
fn metadata(mark: &Mark, complete: bool) -> HashMap<String, String> {
    let mut metadata: HashMap<String, String> = mark
        .encode("")
        .into_iter()
        .map(|(name, value)| (name.replace('-', "_"), value))
        .collect();
    metadata.insert(COMPLETE.to_owned(), complete.to_string());
    metadata
}
