//! A client for one registry
//! ([the protocol](https://github.com/opencontainers/distribution-spec/blob/main/spec.md)), with client certificates,
//! retries, and tokens that are renewed in mid-push.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::oneshot;
use url::Url;

use super::auth::Auth;
use super::upload;
use crate::config::Environment;
use crate::config::container as config;
use crate::error::{Class, Classified, Failure};
use crate::http;
use crate::oci::{Blob, Body, DOCKER_LIST, DOCKER_MANIFEST, Digest, INDEX, JSON_LIMIT, MANIFEST, Pieces, Store};
use crate::retry::Policy;

/// Uploads have a watch of their own; every other call has a time-out of its own.
const NO_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// quay.io takes back what it said of an index within seconds.
const INVALID: Policy = Policy {
    longest: Duration::from_secs(4),
    give_up_after: Duration::from_secs(15),
};
/// What of an error's body is read, and what of it is quoted.
const ERROR_BODY: usize = 64 << 10;
const QUOTED: usize = 300;
/// Bytes in memory are sent in pieces, so that their progress can be seen.
const PIECE: usize = 256 << 10;

/// A configured registry.
#[derive(Debug)]
pub(super) struct Registry {
    /// As configured.
    pub(super) url: String,
    section: config::Registry,
    http: Client,
    auth: Auth,
    advice: String,
}

impl Registry {
    pub(super) fn new(section: &config::Registry, environment: &Environment) -> Result<Self, Failure> {
        let credentials = section
            .credentials(environment)
            .map_err(|problem| Error::Credentials(problem.text))?;
        let mut builder = http::builder().read_timeout(NO_LIMIT);
        if let Some(ca) = &credentials.ca {
            builder = http::trust(builder, ca)?;
        }
        if let Some((certificate, key)) = &credentials.client_certificate {
            builder = builder.identity(http::identity(certificate, key)?);
        }
        if !section.tls_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let advice = match &section.credential_prefix {
            Some(prefix) => {
                format!("check {prefix}USER and {prefix}PASSWORD or {prefix}CERT_DIR, and what they permit")
            }
            None => "it may need a credential_prefix in the configuration".to_owned(),
        };
        Ok(Self {
            url: section.url.clone(),
            section: section.clone(),
            http: builder.build().map_err(http::Error::Build)?,
            auth: Auth::new(credentials.user),
            advice,
        })
    }

    /// Adds what the registry wants to see.
    async fn show(&self, scope: &str, request: RequestBuilder) -> Result<RequestBuilder, Error> {
        let shown = self.auth.show(&self.http, scope, request).await;
        shown.map_err(|error| error.advise(&self.advice))
    }

    /// One of its repositories, by the configured name.
    pub(super) fn repository(self: &Arc<Self>, name: &str) -> Repository {
        let name = self.section.repository(name);
        Repository {
            scope: format!("repository:{name}:pull,push"),
            shown: format!("{}/{name}", self.section.base.authority()),
            registry: self.clone(),
            name,
        }
    }
}

/// A repository of a registry.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    registry: Arc<Registry>,
    name: String,
    scope: String,
    shown: String,
}

/// A manifest or index as the registry has it.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

impl Repository {
    /// Host and full name, for people.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// A manifest or index by tag or digest, if there is one.
    pub(super) async fn manifest(&self, reference: &str) -> Result<Option<Fetched>, Error> {
        let what = || format!("get {reference} of {}", self.shown);
        let accept = [INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let call = async || {
            let get = |http: &Client| {
                http.get(self.url(&format!("manifests/{reference}")))
                    .header(ACCEPT, &accept)
            };
            let response = self.call(what, get).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let response = self.success(what, response).await?;
            let media_type = response
                .headers()
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok());
            let media_type = media_type.unwrap_or(INDEX).to_owned();
            let bytes = read(what, response).await?;
            let digest = Digest::of(&bytes);
            if Digest::parse(reference).is_some_and(|asked| asked != digest) {
                return Err(Error::odd(what(), &format!("bytes with the digest {digest}")));
            }
            Ok(Some(Fetched {
                digest,
                media_type,
                bytes,
            }))
        };
        Policy::CALL.run("registry get", Error::class, call).await
    }

    /// The content of a small blob, if it is there.
    pub(super) async fn small_blob(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let what = || format!("get blob {digest} of {}", self.shown);
        let call = async || {
            let response = self
                .call(what, |http| http.get(self.url(&format!("blobs/{digest}"))))
                .await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let response = self.success(what, response).await?;
            read(what, response).await.map(Some)
        };
        Policy::CALL.run("registry get", Error::class, call).await
    }

    /// Puts a manifest or index under a tag or its digest.
    pub(super) async fn put_manifest(&self, reference: &str, media_type: &str, bytes: &Bytes) -> Result<(), Error> {
        let what = || format!("put {reference} to {}", self.shown);
        let put = async || {
            let request = |http: &Client| {
                let put = http.put(self.url(&format!("manifests/{reference}")));
                put.header(CONTENT_TYPE, media_type).body(bytes.clone())
            };
            let response = self.call(what, request).await?;
            let status = response.status();
            self.success(what, response).await?;
            if status != StatusCode::CREATED {
                return Err(Error::odd(what(), &format!("{status} and not 201")));
            }
            Ok(())
        };
        let class = |error: &Error| {
            if error.is_invalid() {
                Class::TRANSIENT
            } else {
                Class::Deliverable
            }
        };
        let passing = |error: &Error| {
            if error.is_invalid() {
                Class::Deliverable
            } else {
                error.class()
            }
        };
        INVALID
            .run("registry put manifest", class, async || {
                Policy::CALL.run("registry put manifest", passing, &put).await
            })
            .await
    }

    /// Whether a manifest with this digest is there.
    pub(super) async fn has_manifest(&self, digest: &Digest) -> Result<bool, Error> {
        self.head(&format!("manifests/{digest}")).await
    }

    /// Proves that the registry is there and lets us in. A repository that does not exist yet is no fault.
    pub(super) async fn check(&self) -> Result<(), Error> {
        let what = || format!("list the tags of {}", self.shown);
        let response = self.call(what, |http| http.get(self.url("tags/list?n=1"))).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(());
        }
        self.success(what, response).await.map(drop)
    }

    async fn head(&self, path: &str) -> Result<bool, Error> {
        let what = || format!("look for {path} in {}", self.shown);
        let accept = [INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let call = async || {
            let response = self
                .call(what, |http| http.head(self.url(path)).header(ACCEPT, &accept))
                .await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(false);
            }
            self.success(what, response).await.map(|_| true)
        };
        Policy::CALL.run("registry head", Error::class, call).await
    }

    /// Below the repository.
    fn url(&self, path: &str) -> String {
        format!("{}v2/{}/{path}", self.registry.section.base, self.name)
    }

    /// One call without a long body, with the credentials the registry asks for. Any status is an answer but a 401.
    async fn call(
        &self,
        what: impl Fn() -> String,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let registry = &*self.registry;
        let mut known = false;
        loop {
            let signed = registry.show(&self.scope, request(&registry.http)).await?;
            let response = signed.timeout(http::CALL).send().await.map_err(|source| Error::Lost {
                what: what(),
                source: source.without_url(),
            })?;
            if response.status() != StatusCode::UNAUTHORIZED || known {
                return Ok(response);
            }
            registry.auth.challenged(&self.scope, response.headers()).await;
            known = true;
        }
    }

    async fn success(&self, what: impl Fn() -> String, response: Response) -> Result<Response, Error> {
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Error::of(what(), response).await.advise(&self.registry.advice))
    }

    /// Opens an upload; its address.
    async fn begin(&self) -> Result<Url, Error> {
        let what = || format!("begin an upload to {}", self.shown);
        let call = async || {
            let post = |http: &Client| http.post(self.url("blobs/uploads/")).header(CONTENT_LENGTH, 0);
            let response = self.call(what, post).await?;
            let response = self.success(what, response).await?;
            self.location(what, &response)
        };
        Policy::CALL.run("registry begin upload", Error::class, call).await
    }

    /// Where an upload goes on. Without it an answer is none, whatever its status: a load balancer may have given it.
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
            registry.show(&self.scope, request).await?
        } else {
            request
        };
        let response = match body {
            Pushed::Nothing => {
                let sent = request.header(CONTENT_LENGTH, 0).timeout(http::CALL).send().await;
                sent.map_err(|source| Error::Lost {
                    what: what(),
                    source: source.without_url(),
                })?
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
            registry.auth.challenged(&self.scope, response.headers()).await;
            return Err(Error::odd(what(), "401 in the middle of an upload"));
        }
        self.success(what, response).await
    }

    /// Sends a blob of known length in one request, and makes sure that it arrived.
    async fn put_once(&self, blob: &Blob, body: Pushed) -> Result<(), Error> {
        let what = || format!("put blob {} to {}", blob.digest, self.shown);
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

    /// An answer that was lost, or is not the usual one, is settled by looking.
    async fn settle(
        &self,
        blob: &Blob,
        what: impl Fn() -> String,
        outcome: Result<Response, Error>,
    ) -> Result<(), Error> {
        let error = match outcome {
            Ok(response) if response.status() == StatusCode::CREATED => {
                tracing::debug!(digest = %blob.digest, bytes = blob.size, "pushed blob {} to {}", blob.digest, self.shown);
                return Ok(());
            }
            Ok(response) => Error::odd(what(), &format!("{} and not 201", response.status())),
            Err(error @ Error::Withdrawn(_)) => return Err(error),
            Err(error) => error,
        };
        let there = error.class().is_transient() && self.head(&format!("blobs/{}", blob.digest)).await.unwrap_or(false);
        if there { Ok(()) } else { Err(error) }
    }
}

/// What an upload request carries.
enum Pushed {
    Nothing,
    Held(Bytes),
    Passing(Pieces),
}

#[async_trait]
impl Store for Repository {
    async fn has(&self, blob: &Blob) -> Result<bool, Failure> {
        Ok(self.head(&format!("blobs/{}", blob.digest)).await?)
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
        let what = || format!("send a layer to {}", self.shown);
        let location = self.begin().await?;
        let request = self.registry.http.request(Method::PATCH, location.clone());
        let response = self.upload(what, request, &location, Pushed::Passing(body)).await?;
        let mut location = self.location(what, &response)?;
        let blob = name.await.map_err(|_| Error::Withdrawn(what()))?;
        location.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let what = || format!("put blob {} to {}", blob.digest, self.shown);
        let close = async || {
            let request = self.registry.http.request(Method::PUT, location.clone());
            let outcome = self.upload(what, request, &location, Pushed::Nothing).await;
            self.settle(&blob, what, outcome).await
        };
        Ok(Policy::CALL.run("registry close upload", Error::class, close).await?)
    }
}

/// Reads a document.
async fn read(what: impl Fn() -> String, mut response: Response) -> Result<Bytes, Error> {
    let mut body = Vec::new();
    loop {
        let chunk = response.chunk().await.map_err(|source| Error::Lost {
            what: what(),
            source: source.without_url(),
        })?;
        let Some(bytes) = chunk else { return Ok(body.into()) };
        body.extend_from_slice(&bytes);
        if body.len() as u64 > JSON_LIMIT {
            return Err(Error::TooLong(what()));
        }
    }
}

/// A registry that does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The environment lacks something.
    #[error("find credentials: {0}")]
    Credentials(String),
    /// No answer, or not all of it.
    #[error("{what}")]
    Lost {
        /// What was asked for.
        what: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The registry does not want to.
    #[error("{what}: the registry answered {status}{said}")]
    Status {
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What it said about it: code and message.
        said: String,
        /// Its wish.
        after: Option<Duration>,
    },
    /// It does not take uploads any further.
    #[error("{what}: no progress for {seconds} s")]
    Stalled {
        /// What was asked for.
        what: String,
        /// How long it was waited.
        seconds: u64,
    },
    /// The archive failed, not the registry.
    #[error("{0}: its source broke off")]
    Withdrawn(String),
    /// An answer that means nothing.
    #[error("{what}: the registry answered with {answer}")]
    Odd {
        /// What was asked for.
        what: String,
        /// What came.
        answer: String,
    },
    /// No document is that long.
    #[error("{0}: it is longer than 4 MiB")]
    TooLong(String),
    /// Credentials would travel in the open.
    #[error("get a token from {0}: only https is accepted")]
    Realm(String),
}

impl Error {
    pub(super) fn odd(what: String, answer: &str) -> Self {
        Self::Odd {
            what,
            answer: answer.to_owned(),
        }
    }

    /// From an answer that is not a success, with
    /// [what the registry says](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes).
    pub(super) async fn of(what: String, mut response: Response) -> Self {
        let status = response.status().as_u16();
        let after = http::retry_after(response.headers());
        let mut body = Vec::new();
        while let Ok(Some(bytes)) = response.chunk().await {
            body.extend_from_slice(&bytes);
            if body.len() > ERROR_BODY {
                break;
            }
        }
        Self::Status {
            what,
            status,
            said: quote(&body),
            after,
        }
    }

    /// Adds what an operator can do about a refusal.
    fn advise(mut self, advice: &str) -> Self {
        if let Self::Status {
            status: 401 | 403,
            said,
            ..
        } = &mut self
        {
            said.push_str("; ");
            said.push_str(advice);
        }
        self
    }

    /// quay.io's answer to an index it accepts a moment later.
    fn is_invalid(&self) -> bool {
        matches!(self, Self::Status { said, .. } if said.contains("MANIFEST_INVALID"))
    }

    /// A blob or upload that the registry knew a moment ago: lost in its storage, not wrong.
    fn is_forgotten(&self) -> bool {
        let codes = [
            "BLOB_UNKNOWN",
            "BLOB_UPLOAD_UNKNOWN",
            "MANIFEST_UNKNOWN",
            "BLOB_UPLOAD_INVALID",
        ];
        matches!(self, Self::Status { said, .. } if codes.iter().any(|code| said.contains(code)))
    }
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Credentials(_) | Self::Realm(_) => Class::Everything,
            Self::Lost { source, .. } => http::class(source),
            Self::Status { .. } if self.is_forgotten() => Class::TRANSIENT,
            Self::Status { status, after, .. } => Class::of_status(*status, *after),
            Self::Stalled { .. } | Self::Withdrawn(_) | Self::Odd { .. } => Class::TRANSIENT,
            Self::TooLong(_) => Class::Deliverable,
        }
    }
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorRow>,
}

#[derive(Deserialize)]
struct ErrorRow {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// ` (CODE: message)`, or nothing. Only what is meant to be read: an error's details may hold anything.
fn quote(body: &[u8]) -> String {
    let Ok(errors) = serde_json::from_slice::<Errors>(body) else {
        return String::new();
    };
    let rows: Vec<String> = errors
        .errors
        .into_iter()
        .map(|row| format!("{}: {}", row.code, row.message))
        .collect();
    let text: String = rows
        .join("; ")
        .chars()
        .filter(|char| !char.is_control())
        .take(QUOTED)
        .collect();
    if text.is_empty() { text } else { format!(" ({text})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_quoted_in_bounds() {
        let body = br#"{"errors":[{"code":"DENIED","message":"not\nyours","detail":"secret"}]}"#;
        assert_eq!(quote(body), " (DENIED: notyours)");
        assert_eq!(quote(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#, "a".repeat(5000));
        assert_eq!(quote(long.as_bytes()).len(), QUOTED + 3);
    }

    #[test]
    fn a_blob_that_was_there_a_moment_ago_is_pushed_again() {
        let error = |status, said: &str| Error::Status {
            what: String::new(),
            status,
            said: said.to_owned(),
            after: None,
        };
        assert_eq!(error(404, " (MANIFEST_BLOB_UNKNOWN: x)").class(), Class::TRANSIENT);
        assert_eq!(error(404, " (NAME_UNKNOWN: x)").class(), Class::Deliverable);
        assert_eq!(error(403, "").class(), Class::Everything);
        assert_eq!(error(429, "").class(), Class::TRANSIENT);
    }
}
