//! The page blob that a disk is imported from.
//!
//! Its metadata are the mark of its image, and `complete`. No process writes to a complete blob.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::error::ErrorKind;
use azure_core::http::policies::{Policy as SdkPolicy, PolicyResult};
use azure_core::http::{ClientOptions, Context, Etag, Request, RetryOptions, StatusCode, Transport};
use azure_storage_blob::models::{
    BlobClientBreakLeaseOptions, BlobClientDeleteOptions, BlobClientGetPropertiesResultHeaders, LeaseStatus,
    PageBlobClientCreateOptions,
};
use azure_storage_blob::{BlobClient, BlobClientOptions, BlobContainerClient, BlobContainerClientOptions};
use reqwest::Client;
use url::Url;

use super::error::Error;
use super::identity::{Identity, STORAGE};
use crate::base::failure::{Class, Classified};
use crate::base::http;
use crate::base::retry::Policy;
use crate::model::mark::Mark;
use crate::providers::ownership::{HandsOff, hands_off};

/// Limit for a write of 4 MiB.
pub(super) const WRITE: Duration = Duration::from_secs(120);
/// States that every page is there and verified. Names of metadata are identifiers: letters, digits, and underscores.
const COMPLETE: &str = "complete";
/// The mark's digest.
const DIGEST: &str = "image-sha256";

/// The configured container, with our identity.
#[derive(Debug)]
pub(super) struct Container {
    url: Url,
    name: String,
    options: ClientOptions,
    identity: Arc<Identity>,
}

/// A blob in the container, whether it exists or not.
#[derive(Clone)]
pub(super) struct Blob {
    pub(super) client: Arc<BlobClient>,
    identity: Arc<Identity>,
    name: String,
}

/// The state of a blob that exists.
pub(super) struct State {
    /// The blob has every byte of the image.
    pub(super) complete: bool,
    pub(super) leased: bool,
    /// Changes with every change of the blob.
    pub(super) etag: Option<Etag>,
}

/// Adds our token to requests. The SDK's own policy insists on https, so no fake on loopback could see a token.
#[derive(Debug)]
struct Authorize(Arc<Identity>);

#[async_trait]
impl SdkPolicy for Authorize {
    async fn send(&self, context: &Context, request: &mut Request, next: &[Arc<dyn SdkPolicy>]) -> PolicyResult {
        let refused = |error| azure_core::Error::with_error(ErrorKind::Credential, error, "get a token");
        let Some((policy, rest)) = next.split_first() else {
            return Err(azure_core::Error::with_message(ErrorKind::Other, "no transport"));
        };
        let mut renewed = false;
        loop {
            let token = self.0.token(STORAGE).await.map_err(refused)?;
            let text = String::from_utf8_lossy(token.as_bytes()).into_owned();
            request.insert_header("authorization", text);
            let response = policy.send(context, request, rest).await?;
            if response.status() != StatusCode::Unauthorized {
                return Ok(response);
            }
            // A token that is refused before its time is replaced once.
            self.0.forget(STORAGE, &token).await;
            if renewed {
                return Ok(response);
            }
            renewed = true;
        }
    }
}

impl Container {
    /// `http` must have time-outs that leave room for uploads.
    pub(super) fn new(http: Client, endpoint: &Url, name: &str, identity: Arc<Identity>) -> Self {
        let mut url = endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push(name);
        }
        Self {
            url,
            name: name.to_owned(),
            options: ClientOptions {
                per_try_policies: vec![Arc::new(Authorize(identity.clone()))],
                // The program's one retry policy wraps every call.
                retry: RetryOptions::none(),
                transport: Some(Transport::new(Arc::new(http))),
                ..ClientOptions::default()
            },
            identity,
        }
    }

    /// Proves that the container exists and that we may read it.
    pub(super) async fn check(&self) -> Result<(), Error> {
        let what = format!("read container {}", self.name);
        let options = BlobContainerClientOptions {
            client_options: self.options.clone(),
            ..BlobContainerClientOptions::default()
        };
        let client = BlobContainerClient::new(self.url.clone(), None, Some(options));
        let client = client.map_err(|error| Error::storage(&what, error))?;
        let look = || async {
            // The identity reports its own failures better than the storage client does.
            self.identity.token(STORAGE).await?;
            settle(&what, http::CALL, client.get_properties(None)).await
        };
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

    /// The address that an import reads it from.
    pub(super) fn url(&self) -> &Url {
        self.client.url()
    }

    /// For a blob that exists: why the program must not delete it, if so.
    pub(super) async fn hands_off(&self) -> Result<Option<Option<HandsOff>>, Error> {
        let what = format!("read blob {}", self.name);
        let properties = match self.call(&what, || self.client.get_properties(None)).await {
            Err(error) if is_missing(&error) => return Ok(None),
            properties => properties?,
        };
        let metadata = properties.metadata().map_err(|error| Error::storage(&what, error))?;
        let tags = tags(&metadata);
        Ok(Some(hands_off(&tags, tags.get("owner").map(String::as_str))))
    }

    /// The blob exists with every byte of this image. Ends a lease that a dead process left on it.
    pub(super) async fn is_ready(&self, mark: &Mark) -> Result<bool, Error> {
        match self.look(mark).await? {
            Some(state) if state.complete => self.free(&state).await.map(|()| true),
            Some(_) | None => Ok(false),
        }
    }

    /// The blob's state, if it exists.
    pub(super) async fn look(&self, mark: &Mark) -> Result<Option<State>, Error> {
        let what = format!("read blob {}", self.name);
        let properties = match self.call(&what, || self.client.get_properties(None)).await {
            Err(error) if is_missing(&error) => return Ok(None),
            properties => properties?,
        };
        let odd = |error| Error::storage(&what, error);
        let found = tags(&properties.metadata().map_err(odd)?);
        let complete = found.get(COMPLETE).is_some_and(|complete| complete == "true");
        Ok(Some(State {
            complete: complete && found.get(DIGEST) == mark.image_sha256.as_ref(),
            leased: properties.lease_status().map_err(odd)? == Some(LeaseStatus::Locked),
            etag: properties.etag().map_err(odd)?,
        }))
    }

    /// Ends the lease of a complete blob, which would keep an import from reading it. The process that completed the blob died
    /// before it ended the lease, or is about to end it.
    pub(super) async fn free(&self, state: &State) -> Result<(), Error> {
        if !state.leased {
            return Ok(());
        }
        let what = format!("break the lease of blob {}", self.name);
        let at_once = || BlobClientBreakLeaseOptions {
            break_period: Some(0),
            ..BlobClientBreakLeaseOptions::default()
        };
        match self.call(&what, || self.client.break_lease(Some(at_once()))).await {
            Err(error) if error.status() == Some(409) => Ok(()),
            broken => broken.map(drop),
        }
    }

    pub(super) async fn create(&self, size: u64, options: &PageBlobClientCreateOptions<'_>) -> Result<(), Error> {
        let what = format!("create blob {}", self.name);
        let page_blob = self.client.page_blob_client();
        let create = || page_blob.create(size, Some(options.clone()));
        self.call(&what, create).await.map(drop)
    }

    /// Deletes the blob if it exists; `lease` is our lease, if we hold one.
    pub(super) async fn delete(&self, lease: Option<&str>) -> Result<(), Error> {
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

    /// A call that may be repeated after an unknown outcome.
    pub(super) async fn call<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = azure_core::Result<T>>,
    {
        Policy::CALL.run("azure blob", class, || self.once(what, call())).await
    }

    /// One attempt, within the usual limit.
    pub(super) async fn once<T>(
        &self,
        what: &str,
        call: impl Future<Output = azure_core::Result<T>>,
    ) -> Result<T, Error> {
        self.once_within(http::CALL, what, call).await
    }

    /// One attempt, within this limit.
    pub(super) async fn once_within<T>(
        &self,
        limit: Duration,
        what: &str,
        call: impl Future<Output = azure_core::Result<T>>,
    ) -> Result<T, Error> {
        // The identity reports its own failures better than the storage client does.
        self.identity.token(STORAGE).await?;
        settle(what, limit, call).await
    }
}

async fn settle<T>(what: &str, limit: Duration, call: impl Future<Output = azure_core::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| Error::storage(what, error)),
        Err(_) => Err(Error::silent(what, limit)),
    }
}

/// The class of an error for an immediate retry. A blob that is missing, exists, or is leased by another is an answer.
pub(super) fn class(error: &Error) -> Class {
    match error.status() {
        Some(404 | 409 | 412) => Class::Deliverable,
        _ => error.class(),
    }
}

fn is_missing(error: &Error) -> bool {
    error.status() == Some(404) && error.code() != "ContainerNotFound"
}

/// Metadata as tags: names of headers have no case, and names of metadata no hyphens.
fn tags(metadata: &HashMap<String, String>) -> BTreeMap<String, String> {
    let tags = metadata.iter();
    tags.map(|(name, value)| (name.to_lowercase().replace('_', "-"), value.clone()))
        .collect()
}

/// The metadata of a blob: the mark of its image, and `complete`.
pub(super) fn metadata(mark: &Mark, complete: bool) -> HashMap<String, String> {
    let mut metadata: HashMap<String, String> = mark
        .encode("")
        .into_iter()
        .map(|(name, value)| (name.replace('-', "_"), value))
        .collect();
    metadata.insert(COMPLETE.to_owned(), complete.to_string());
    metadata
}
