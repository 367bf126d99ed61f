//! Blobs into a repository
//! ([the protocol](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-blobs)).

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use tokio::sync::oneshot;
use url::Url;

use super::error::Error;
use super::registry::Repository;
use super::upload;
use crate::base::failure::{Classified, Failure};
use crate::base::http;
use crate::base::retry::Policy;
use crate::images::oci::{Blob, Body, Pieces, Store};

/// Bytes in memory are sent in pieces, so that their progress can be seen.
const PIECE: usize = 256 << 10;

/// A registry may need a moment to show a blob that it has taken.
const CONFIRM: Policy = Policy {
    longest: Duration::from_secs(1),
    give_up_after: Duration::from_secs(5),
};

/// The body of an upload request.
enum Pushed {
    Nothing,
    Held(Bytes),
    Passing(Pieces),
}

impl Repository {
    /// Opens an upload and returns its address.
    async fn begin(&self) -> Result<Url, Error> {
        let what = || format!("begin an upload to {}", self.shown());
        let call = async || {
            let post = |http: &Client| http.post(self.url("blobs/uploads/")).header(CONTENT_LENGTH, 0);
            let response = self.call(what, post).await?;
            let response = self.success(what, response).await?;
            self.location(what, &response)
        };
        Policy::CALL.run("registry begin upload", Error::class, call).await
    }

    /// The address where an upload goes on. An answer without one does not count, whatever its status: a load balancer may
    /// have given it.
    fn location(&self, what: impl Fn() -> String, response: &Response) -> Result<Url, Error> {
        let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let Some(text) = text else {
            return Err(Error::odd(what(), &format!("{} without a Location", response.status())));
        };
        let base = &self.registry.section.base;
        let location = response.url().join(text);
        let mut location = location.map_err(|_| Error::odd(what(), "a Location that is no address"))?;
        // A registry behind a proxy may not know that its clients speak https.
        if base.scheme() == "https" && location.scheme() == "http" && location.set_scheme("https").is_err() {
            return Err(Error::odd(what(), "a Location that is not https"));
        }
        Ok(location)
    }

    /// One upload request. Credentials stay at the registry's own address.
    async fn upload(
        &self,
        what: impl Fn() -> String,
        request: RequestBuilder,
        at: &Url,
        body: Pushed,
    ) -> Result<Response, Error> {
        let registry = &*self.registry;
        let ours = at.origin() == registry.section.base.origin();
        let request = request.header(CONTENT_TYPE, "application/octet-stream");
        let request = if ours {
            registry.authorize(&self.scope, request).await?
        } else {
            request
        };
        let response = match body {
            Pushed::Nothing => {
                let sent = request.header(CONTENT_LENGTH, 0).timeout(http::CALL).send().await;
                sent.map_err(|source| Error::lost(what(), source))?
            }
            Pushed::Held(bytes) => {
                let mut rest = bytes;
                let pieces = std::iter::from_fn(move || {
                    let piece = rest.split_to(PIECE.min(rest.len()));
                    (!piece.is_empty()).then_some(Ok(piece))
                });
                upload::send(&what, request, stream::iter(pieces)).await?
            }
            Pushed::Passing(pieces) => upload::send(&what, request, pieces).await?,
        };
        if ours && response.status() == StatusCode::UNAUTHORIZED {
            // The token ended between the two requests. The body is gone; the next try shows a new one.
            let base = &registry.section.base;
            registry.auth.challenged(&self.scope, base, response.headers()).await;
            return Err(Error::odd(what(), "401 in the middle of an upload"));
        }
        self.success(what, response).await
    }

    /// Sends a blob of known length in one request, and makes sure that it arrived.
    async fn put_once(&self, blob: &Blob, body: Pushed) -> Result<(), Error> {
        let what = || format!("put blob {} to {}", blob.digest, self.shown());
        let mut location = self.begin().await?;
        location.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let request = self
            .registry
            .http
            .request(Method::PUT, location.clone())
            .header(CONTENT_LENGTH, blob.size);
        let outcome = self.upload(what, request, &location, body).await;
        self.settle(blob, what, outcome).await
    }

    /// Makes sure that an upload arrived. Any success counts that a look at the blob confirms, and so does an answer that was
    /// lost.
    async fn settle(
        &self,
        blob: &Blob,
        what: impl Fn() -> String,
        outcome: Result<Response, Error>,
    ) -> Result<(), Error> {
        let status = match outcome {
            Ok(response) => response.status(),
            Err(error @ Error::Withdrawn(_)) => return Err(error),
            Err(error) => {
                let there = error.class().is_transient() && self.has_blob(blob).await.unwrap_or(false);
                return if there { Ok(()) } else { Err(error) };
            }
        };
        let confirm = async || match self.has_blob(blob).await? {
            true => Ok(()),
            false => Err(Error::odd(what(), &format!("{status}, and does not have it"))),
        };
        CONFIRM.run("registry confirm blob", Error::class, confirm).await?;
        tracing::debug!(digest = %blob.digest, bytes = blob.size, "pushed blob {} to {}", blob.digest, self.shown());
        Ok(())
    }
}

#[async_trait]
impl Store for Repository {
    async fn has(&self, blob: &Blob) -> Result<bool, Failure> {
        Ok(self.has_blob(blob).await?)
    }

    async fn put(&self, blob: &Blob, body: Body) -> Result<(), Failure> {
        let bytes = match body {
            Body::Passing(pieces) => return Ok(self.put_once(blob, Pushed::Passing(pieces)).await?),
            Body::Held(bytes) => bytes,
        };
        let put = async || self.put_once(blob, Pushed::Held(bytes.clone())).await;
        Ok(Policy::CALL.run("registry put blob", Error::class, put).await?)
    }

    /// One [PATCH](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-a-blob-in-chunks) as long as
    /// the body, then the name.
    async fn put_unknown(&self, body: Pieces, name: oneshot::Receiver<Blob>) -> Result<(), Failure> {
        let what = || format!("send a layer to {}", self.shown());
        let location = self.begin().await?;
        let request = self.registry.http.request(Method::PATCH, location.clone());
        let response = self.upload(what, request, &location, Pushed::Passing(body)).await?;
        let mut location = self.location(what, &response)?;
        let blob = name.await.map_err(|_| Error::Withdrawn(what()))?;
        location.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let what = || format!("put blob {} to {}", blob.digest, self.shown());
        let close = async || {
            let request = self.registry.http.request(Method::PUT, location.clone());
            let outcome = self.upload(what, request, &location, Pushed::Nothing).await;
            self.settle(&blob, what, outcome).await
        };
        Ok(Policy::CALL.run("registry close upload", Error::class, close).await?)
    }
}
