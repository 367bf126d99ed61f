//! A client for one registry
//! ([the protocol](https://github.com/opencontainers/distribution-spec/blob/main/spec.md)), with client certificates,
//! retries, and tokens that are renewed in mid-push.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use super::auth::Auth;
use super::error::Error;
use crate::base::failure::{Chain, Class, Classified, Failure};
use crate::base::http;
use crate::base::retry::Policy;
use crate::config::Environment;
use crate::config::container as config;
use crate::images::oci::{Blob, DOCKER_LIST, DOCKER_MANIFEST, Digest, INDEX, JSON_LIMIT, MANIFEST};

/// No limit for the client as a whole: uploads have a watch of their own, every other call a time-out of its own.
const NO_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// quay.io refuses an index as invalid and accepts it seconds later.
const INVALID: Policy = Policy {
    longest: Duration::from_secs(4),
    give_up_after: Duration::from_secs(15),
};
/// The number of requests after which the program gives up on a registry that keeps asking for more: the first request
/// is challenged, the second has a token for that challenge, and the third a token for the next challenge.
const CHALLENGES: u32 = 3;

/// A configured registry.
#[derive(Debug)]
pub(super) struct Registry {
    /// As configured.
    pub(super) url: String,
    pub(super) section: config::Registry,
    pub(super) http: Client,
    pub(super) auth: Auth,
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
            builder = builder.identity(http::identity(&section.url, certificate, key)?);
        }
        if !section.tls_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        Ok(Self {
            url: section.url.clone(),
            section: section.clone(),
            http: builder.build().map_err(http::Error::Build)?,
            auth: Auth::new(credentials.user),
        })
    }

    /// Adds the credentials that the registry has asked for.
    pub(super) async fn authorize(&self, scope: &str, request: RequestBuilder) -> Result<RequestBuilder, Error> {
        let authorized = self.auth.authorize(&self.http, scope, request).await;
        authorized.map_err(|error| error.advise(&self.section))
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
    pub(super) registry: Arc<Registry>,
    name: String,
    pub(super) scope: String,
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
        let get = async || self.get_manifest(reference).await;
        Policy::CALL.run("registry get", Error::class, get).await
    }

    /// The same for what something else published: a document that cannot be read counts as none.
    pub(super) async fn foreign_manifest(&self, reference: &str) -> Result<Option<Bytes>, Error> {
        let get = async || readable(self.get_manifest(reference).await);
        let found = Policy::CALL.run("registry get", Error::class, get).await?;
        Ok(found.flatten().map(|found| found.bytes))
    }

    /// The content of a tag, whatever it is. A document that cannot be read is there all the same, without content.
    pub(super) async fn tag(&self, tag: &str) -> Result<Option<Fetched>, Error> {
        let get = async || {
            let found = readable(self.get_manifest(tag).await)?;
            Ok(found.unwrap_or_else(|| {
                Some(Fetched {
                    digest: Digest::of(&[]),
                    media_type: String::new(),
                    bytes: Bytes::new(),
                })
            }))
        };
        Policy::CALL.run("registry get", Error::class, get).await
    }

    async fn get_manifest(&self, reference: &str) -> Result<Option<Fetched>, Error> {
        let what = || format!("get {reference} of {}", self.shown);
        let accept = [INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*;q=0.1"].join(", ");
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
            return Err(Error::Content { what: what(), digest });
        }
        Ok(Some(Fetched {
            digest,
            media_type,
            bytes,
        }))
    }

    /// The content of a small blob that something else published, if it is there and can be read.
    pub(super) async fn foreign_blob(&self, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let what = || format!("get blob {digest} of {}", self.shown);
        let get = async || {
            let response = self
                .call(what, |http| http.get(self.url(&format!("blobs/{digest}"))))
                .await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let response = self.success(what, response).await?;
            read(what, response).await.map(Some)
        };
        let get = async || readable(get().await);
        Ok(Policy::CALL.run("registry get", Error::class, get).await?.flatten())
    }

    /// Puts a manifest or index under a tag or its digest.
    ///
    /// Any success counts that the registry confirms: what was put by digest is read back. Tags are compared by the caller,
    /// since something else may move them at the same time.
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
            if Digest::parse(reference).is_none() || self.get_manifest(reference).await?.is_some() {
                return Ok(());
            }
            Err(Error::odd(what(), &format!("{status}, and does not have it")))
        };
        let class = |error: &Error| {
            if error.is_invalid() {
                Class::TRANSIENT
            } else {
                Class::Deliverable
            }
        };
        let transient = |error: &Error| {
            if error.is_invalid() {
                Class::Deliverable
            } else {
                error.class()
            }
        };
        INVALID
            .run("registry put manifest", class, async || {
                Policy::CALL.run("registry put manifest", transient, &put).await
            })
            .await
    }

    /// Whether a manifest with this digest is there.
    pub(super) async fn has_manifest(&self, digest: &Digest) -> Result<bool, Error> {
        self.head(&format!("manifests/{digest}"), None).await
    }

    /// Whether a blob is there, in its whole length.
    pub(super) async fn has_blob(&self, blob: &Blob) -> Result<bool, Error> {
        self.head(&format!("blobs/{}", blob.digest), Some(blob.size)).await
    }

    /// Proves that the registry answers and accepts our credentials. A repository that does not exist yet is no fault.
    pub(super) async fn check(&self) -> Result<(), Error> {
        let what = || format!("list the tags of {}", self.shown);
        let response = self.call(what, |http| http.get(self.url("tags/list?n=1"))).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(());
        }
        self.success(what, response).await.map(drop)
    }

    async fn head(&self, path: &str, size: Option<u64>) -> Result<bool, Error> {
        let what = || format!("look for {path} in {}", self.shown);
        let accept = [INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let call = async || {
            let response = self
                .call(what, |http| http.head(self.url(path)).header(ACCEPT, &accept))
                .await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(false);
            }
            let response = self.success(what, response).await?;
            let length = response.headers().get(CONTENT_LENGTH);
            let length: Option<u64> = length.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Ok(size.is_none() || length.is_none() || size == length)
        };
        Policy::CALL.run("registry head", Error::class, call).await
    }

    /// Below the repository.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}v2/{}/{path}", self.registry.section.base, self.name)
    }

    /// One call without a long body, with the credentials that the registry asks for. Every other refusal is an answer.
    pub(super) async fn call(
        &self,
        what: impl Fn() -> String,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let registry = &*self.registry;
        let mut challenges = 0..CHALLENGES;
        loop {
            let signed = registry.authorize(&self.scope, request(&registry.http)).await?;
            let response = signed
                .timeout(http::CALL)
                .send()
                .await
                .map_err(|source| Error::lost(what(), source))?;
            let status = response.status();
            // A token for too little is refused as either.
            if status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN {
                return Ok(response);
            }
            let base = &registry.section.base;
            let is_new = registry.auth.challenged(&self.scope, base, response.headers()).await;
            let is_first = challenges.next() == Some(0) && status == StatusCode::UNAUTHORIZED;
            if !is_first && (!is_new || challenges.is_empty()) {
                return Ok(response);
            }
        }
    }

    pub(super) async fn success(&self, what: impl Fn() -> String, response: Response) -> Result<Response, Error> {
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Error::of(what(), response).await.advise(&self.registry.section))
    }
}

/// `None` for a document that is there and cannot be read: too long, not what its digest says, of an unknown form. Nothing of
/// ours is like that.
fn readable<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_about_content() => {
            tracing::debug!("left out: failed to {}", Chain(&error));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads a document.
async fn read(what: impl Fn() -> String, mut response: Response) -> Result<Bytes, Error> {
    let mut body = Vec::new();
    loop {
        let chunk = response.chunk().await.map_err(|source| Error::lost(what(), source))?;
        let Some(bytes) = chunk else { return Ok(body.into()) };
        body.extend_from_slice(&bytes);
        if body.len() as u64 > JSON_LIMIT {
            return Err(Error::TooLong(what()));
        }
    }
}
