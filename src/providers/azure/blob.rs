//! The page blob that a disk is imported from.
//!
//! Its metadata say what it is made of, and whether it is complete. Nobody writes to a complete one.

use std::collections::HashMap;
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
    pub(super) client: Arc<BlobClient>,
    identity: Arc<Identity>,
    name: String,
}

/// How a blob was found.
pub(super) struct State {
    /// Every byte of the image is there.
    pub(super) complete: bool,
    pub(super) leased: bool,
    /// Another one after every change.
    pub(super) etag: Option<Etag>,
}

/// Shows our token. The SDK's own way insists on https, so that no fake on loopback could see a token.
#[derive(Debug)]
struct Sign(Arc<Identity>);

#[async_trait]
impl SdkPolicy for Sign {
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
            // A token that should have been good is replaced once.
            self.0.forget(STORAGE, &token).await;
            if renewed {
                return Ok(response);
            }
            renewed = true;
        }
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

    /// Whether it is there with every byte of this image, for anybody to read.
    pub(super) async fn is_ready(&self, mark: &Mark) -> Result<bool, Error> {
        match self.look(mark).await? {
            Some(state) if state.complete => self.free(&state).await.map(|()| true),
            Some(_) | None => Ok(false),
        }
    }

    /// How it is, if it is there.
    pub(super) async fn look(&self, mark: &Mark) -> Result<Option<State>, Error> {
        let what = format!("look at blob {}", self.name);
        let properties = match self.call(&what, || self.client.get_properties(None)).await {
            Err(error) if is_missing(&error) => return Ok(None),
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
        Ok(Some(State {
            complete: same(DIGEST) && same(COMPLETE),
            leased: properties.lease_status().map_err(odd)? == Some(LeaseStatus::Locked),
            etag: properties.etag().map_err(odd)?,
        }))
    }

    /// Ends the lease of a complete blob, which an import could not read: whoever completed it died before doing so, or is
    /// about to.
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

    /// Deletes it if it is there; `lease` is ours, where it is leased.
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

    /// A call that may be repeated.
    pub(super) async fn call<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = azure_core::Result<T>>,
    {
        Policy::CALL.run("azure blob", class, || self.once(what, call())).await
    }

    /// One try.
    pub(super) async fn once<T>(
        &self,
        what: &str,
        call: impl Future<Output = azure_core::Result<T>>,
    ) -> Result<T, Error> {
        self.once_within(http::CALL, what, call).await
    }

    /// One try, which may take so long.
    pub(super) async fn once_within<T>(
        &self,
        limit: Duration,
        what: &str,
        call: impl Future<Output = azure_core::Result<T>>,
    ) -> Result<T, Error> {
        // What is wrong with our identity is told better here than from within the client.
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

/// What is worth a call again at once. That a blob is not there, is there, or is leased to another now is an answer.
pub(super) fn class(error: &Error) -> Class {
    match error.status() {
        Some(404 | 409 | 412) => Class::Deliverable,
        _ => error.class(),
    }
}

fn is_missing(error: &Error) -> bool {
    error.status() == Some(404) && error.code() != "ContainerNotFound"
}

/// The mark, and whether the blob is complete.
pub(super) fn metadata(mark: &Mark, complete: bool) -> HashMap<String, String> {
    let mut metadata: HashMap<String, String> = mark
        .encode("")
        .into_iter()
        .map(|(name, value)| (name.replace('-', "_"), value))
        .collect();
    metadata.insert(COMPLETE.to_owned(), complete.to_string());
    metadata
}
