//! A client for one registry
//! ([the protocol](https://github.com/opencontainers/distribution-spec/blob/main/spec.md)), with client certificates,
//! retries, and tokens that are renewed in mid-push.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use super::auth::Auth;
use super::error::Error;
use crate::base::failure::{Class, Classified, Failure};
use crate::base::http;
use crate::base::retry::Policy;
use crate::config::Environment;
use crate::config::container as config;
use crate::images::oci::{DOCKER_LIST, DOCKER_MANIFEST, Digest, INDEX, JSON_LIMIT, MANIFEST};

/// Uploads have a watch of their own; every other call has a time-out of its own.
const NO_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// quay.io takes back what it said of an index within seconds.
const INVALID: Policy = Policy {
    longest: Duration::from_secs(4),
    give_up_after: Duration::from_secs(15),
};
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

    /// Adds what the registry wants to see.
    pub(super) async fn show(&self, scope: &str, request: RequestBuilder) -> Result<RequestBuilder, Error> {
        let shown = self.auth.show(&self.http, scope, request).await;
        shown.map_err(|error| error.advise(&self.section))
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

    pub(super) async fn head(&self, path: &str) -> Result<bool, Error> {
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
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}v2/{}/{path}", self.registry.section.base, self.name)
    }

    /// One call without a long body, with the credentials the registry asks for. Any status is an answer but a 401.
    pub(super) async fn call(
        &self,
        what: impl Fn() -> String,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let registry = &*self.registry;
        let mut known = false;
        loop {
            let signed = registry.show(&self.scope, request(&registry.http)).await?;
            let response = signed
                .timeout(http::CALL)
                .send()
                .await
                .map_err(|source| Error::lost(what(), source))?;
            if response.status() != StatusCode::UNAUTHORIZED || known {
                return Ok(response);
            }
            registry.auth.challenged(&self.scope, response.headers()).await;
            known = true;
        }
    }

    pub(super) async fn success(&self, what: impl Fn() -> String, response: Response) -> Result<Response, Error> {
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Error::of(what(), response).await.advise(&self.registry.section))
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
