//! A small client for Azure Resource Manager: documents, lists, and
//! [operations that take long](https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::Value;
use url::Url;

use super::error::Error;
use super::identity::{Identity, RESOURCE_MANAGER};
use crate::base::failure::{Class, Classified};
use crate::base::http;
use crate::base::retry::Policy;
use crate::providers::poll::Pace;

/// The version of the gallery API that request bodies follow.
pub(super) const API_VERSION: &str = "2023-07-03";
/// A list of gallery versions has a few kB for each of them.
const LIMIT: usize = 64 << 20;
/// Limit for creating a gallery or a definition. It takes seconds, and other images wait for it.
pub(super) const CREATION: Duration = Duration::from_secs(10 * 60);
/// Limit for any operation on a version. Thirty regions take up to two and a half hours; an operation that takes longer than
/// this is stuck, and the next round looks at the version again.
pub(super) const REPLICATION: Duration = Duration::from_secs(4 * 60 * 60);

/// A client of Resource Manager with our identity.
#[derive(Debug)]
pub(super) struct ResourceManager {
    http: Client,
    endpoint: Url,
    identity: Arc<Identity>,
}

/// The addresses that report on a running operation.
#[derive(Debug)]
pub(super) struct Operation {
    what: String,
    /// Answers with a status, and with the error if the operation failed.
    status: Option<Url>,
    /// Answers 202 until the operation has ended.
    location: Option<Url>,
    after: Option<Duration>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// Null where there is none, or none in JSON.
    body: Value,
}

impl Answer {
    /// The document that was asked for. A success without one is not taken for anything.
    fn document(self, what: &str) -> Result<Value, Error> {
        if self.body.is_object() {
            return Ok(self.body);
        }
        Err(Error::odd(
            what,
            &format!("{} without a document", self.status.as_u16()),
        ))
    }
}

impl ResourceManager {
    pub(super) fn new(http: Client, endpoint: &Url, identity: Arc<Identity>) -> Self {
        Self {
            http,
            endpoint: endpoint.clone(),
            identity,
        }
    }

    /// A document, if it exists.
    pub(super) async fn get(&self, what: &str, path: &str, query: &[(&str, &str)]) -> Result<Option<Value>, Error> {
        let url = self.url(path, query);
        let get = || async {
            let answer = self.call_if_there(what, Method::GET, &url).await?;
            answer.map(|answer| answer.document(what)).transpose()
        };
        Policy::CALL.run("azure get", Error::class, get).await
    }

    /// All elements of a list. A page may have none, and still lead to more. An error of any page is one of the whole.
    pub(super) async fn list(&self, what: &str, path: &str) -> Result<Vec<Value>, Error> {
        let mut elements = Vec::new();
        let mut next = Some(self.url(path, &[]));
        let mut seen = HashSet::new();
        while let Some(url) = next {
            if !seen.insert(url.clone()) {
                return Err(Error::odd(what, "a list whose pages lead back to one another"));
            }
            let page = || async {
                let page = self.call(what, Method::GET, url.clone(), None).await?;
                page.document(what)
            };
            let page = Policy::CALL.run("azure list", Error::class, page).await?;
            match page.get("value") {
                Some(Value::Array(value)) => elements.extend(value.iter().cloned()),
                None | Some(Value::Null) => {}
                Some(_) => return Err(Error::odd(what, "a list whose value is no list")),
            }
            next = match page.get("nextLink").and_then(Value::as_str) {
                Some(link) if !link.is_empty() => Some(self.ours(what, link)?),
                _ => None,
            };
        }
        Ok(elements)
    }

    /// Puts a document, once.
    pub(super) async fn put(&self, what: &str, path: &str, body: &Value) -> Result<Operation, Error> {
        let answer = self.call(what, Method::PUT, self.url(path, &[]), Some(body)).await?;
        self.operation(what, &answer.headers)
    }

    /// Puts a document until it exists. After a lost answer or a conflict, a look settles the outcome: `will_do` accepts what
    /// was found (no operation is known then), or fails if `body` must not overwrite it.
    pub(super) async fn ensure(
        &self,
        what: &str,
        path: &str,
        body: &Value,
        will_do: impl Fn(Option<Value>) -> Result<bool, Error>,
    ) -> Result<Option<Operation>, Error> {
        let mut waits = Policy::CALL.start("azure put");
        loop {
            let error = match self.put(what, path, body).await {
                Ok(operation) => return Ok(Some(operation)),
                Err(error) => error,
            };
            let Some(wait) = waits.after(error.class()) else {
                return Err(error);
            };
            tracing::debug!(%error, wait_ms = wait.as_millis(), "reading whether the lost request took effect");
            tokio::time::sleep(wait).await;
            if will_do(self.get(what, path, &[]).await?)? {
                return Ok(None);
            }
        }
    }

    /// Deletes a document and waits for the end of the deletion. A missing document is no error.
    pub(super) async fn delete(&self, what: &str, path: &str) -> Result<(), Error> {
        let url = self.url(path, &[]);
        let delete = || self.call_if_there(what, Method::DELETE, &url);
        match Policy::CALL.run("azure delete", Error::class, delete).await? {
            Some(answer) => {
                let operation = self.operation(what, &answer.headers)?;
                self.finish(operation, Pace::within(REPLICATION)).await
            }
            None => Ok(()),
        }
    }

    /// Waits for the end of an operation. An operation that Azure has forgotten has ended. The caller reads the result in any
    /// case.
    pub(super) async fn finish(&self, operation: Operation, mut pace: Pace) -> Result<(), Error> {
        let Operation {
            what,
            status,
            location,
            mut after,
        } = operation;
        let (url, says_status) = match (status, location) {
            (Some(url), _) => (url, true),
            (None, Some(url)) => (url, false),
            (None, None) => return Ok(()),
        };
        loop {
            pace.pause(&what, after).await?;
            let look = || async {
                match self.call_if_there(&what, Method::GET, &url).await {
                    // The `Location` form reports a failure as a refusal.
                    Err(error) if !says_status && is_outcome(&error) => Ok(Err(error)),
                    answer => answer.map(Ok),
                }
            };
            let answer = Policy::CALL.run("azure operation", Error::class, look).await??;
            let Some(answer) = answer else { return Ok(()) };
            after = http::retry_after(&answer.headers);
            let is_accepted = answer.status == StatusCode::ACCEPTED;
            let status = answer.body["status"].as_str().filter(|_| says_status);
            match status.map(str::to_lowercase).as_deref() {
                Some("succeeded") => return Ok(()),
                Some("failed" | "canceled") => return Err(Error::operation(&what, &answer.body["error"])),
                // Every other status is one on the way.
                Some(_) => {}
                None if is_accepted => {}
                // Its result tells more than an operation without a status.
                None => return Ok(()),
            }
        }
    }

    fn operation(&self, what: &str, headers: &HeaderMap) -> Result<Operation, Error> {
        let url = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.map(|value| self.ours(what, value)).transpose()
        };
        Ok(Operation {
            what: what.to_owned(),
            status: url("azure-asyncoperation")?,
            location: url("location")?,
            after: http::retry_after(headers),
        })
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        {
            let mut pairs = url.query_pairs_mut();
            pairs.clear();
            // Other services at the same endpoint have API versions of their own.
            if !query.iter().any(|(name, _)| *name == "api-version") {
                pairs.append_pair("api-version", API_VERSION);
            }
            pairs.extend_pairs(query);
        }
        url
    }

    /// A link in an answer. Our token is sent to no other server.
    fn ours(&self, what: &str, link: &str) -> Result<Url, Error> {
        match self.endpoint.join(link) {
            Ok(url) if url.origin() == self.endpoint.origin() => Ok(url),
            Ok(_) | Err(_) => Err(Error::odd(what, "a link to another server")),
        }
    }

    /// One call about a resource that may be missing.
    async fn call_if_there(&self, what: &str, method: Method, url: &Url) -> Result<Option<Answer>, Error> {
        match self.call(what, method, url.clone(), None).await {
            Err(error) if error.status() == Some(404) && error.class() != Class::Everything => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// One call. A token that is refused is replaced once.
    async fn call(&self, what: &str, method: Method, url: Url, body: Option<&Value>) -> Result<Answer, Error> {
        let mut renewed = false;
        loop {
            let token = self.identity.token(RESOURCE_MANAGER).await?;
            let mut request = self
                .http
                .request(method.clone(), url.clone())
                .header(AUTHORIZATION, token.clone())
                .timeout(http::CALL);
            if let Some(body) = body {
                request = request.json(body);
            }
            let response = request.send().await.map_err(|source| Error::lost(what, source))?;
            let (status, headers) = (response.status(), response.headers().clone());
            if status == StatusCode::UNAUTHORIZED && !renewed {
                self.identity.forget(RESOURCE_MANAGER, &token).await;
                renewed = true;
                continue;
            }
            let body = read(what, response).await?;
            if !status.is_success() {
                let after = http::retry_after(&headers);
                let body = serde_json::from_slice(&body).unwrap_or_default();
                return Err(Error::refused(what, status.as_u16(), &body, after));
            }
            let body = serde_json::from_slice(&body).unwrap_or_default();
            return Ok(Answer { status, headers, body });
        }
    }
}

/// The error is the operation's own, not one of reading its state.
fn is_outcome(error: &Error) -> bool {
    matches!(error.status(), Some(400 | 402 | 409..=412 | 422))
}

async fn read(what: &str, mut response: Response) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|source| Error::lost(what, source))? {
        body.extend_from_slice(&bytes);
        if body.len() > LIMIT {
            return Err(Error::odd(what, "more than 64 MiB"));
        }
    }
    Ok(body)
}
