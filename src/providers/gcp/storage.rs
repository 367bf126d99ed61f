//! Objects in the bucket, by the [JSON API](https://cloud.google.com/storage/docs/json_api).
//!
//! Google's client library reads and deletes objects by gRPC only, and its uploads have no time-out. So these few calls are
//! plain HTTP.

use std::collections::HashMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::LOCATION;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::client::Cloud;
use super::error::Error;
use crate::base::http;
use crate::base::retry::Policy;

/// Bytes that are escaped in a path segment: all but the unreserved ones.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// An object as the service describes it. Fields that are absent or null are empty.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) size: String,
    pub(super) generation: String,
    /// In base64, big end first.
    pub(super) crc32c: String,
    /// Names and values that the uploading program chose.
    pub(super) metadata: HashMap<String, String>,
}

impl Object {
    /// Reads an object resource. Numbers count as their digits.
    fn of(resource: &Value) -> Self {
        let text = |field: &str| match &resource[field] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let metadata = resource["metadata"].as_object().into_iter().flatten();
        Self {
            size: text("size"),
            generation: text("generation"),
            crc32c: text("crc32c"),
            metadata: metadata
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect(),
        }
    }
}

#[derive(Deserialize)]
struct Permissions {
    permissions: Option<Vec<String>>,
}

impl Cloud {
    /// An object by name; `None` if the bucket has none.
    pub(super) async fn object(&self, name: &str) -> Result<Option<Object>, Error> {
        let what = format!("look for object {name} in bucket {}", self.bucket);
        let get = async || {
            let request = self.http.get(self.object_url(name));
            let response = self.send(&what, request).await?;
            let resource: Value = response.json().await.map_err(|source| Error::lost(&what, source))?;
            Ok(Object::of(&resource))
        };
        match Policy::CALL.run("gcp storage", Error::class_of_call, get).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes an object, unless another one has replaced it since it was read.
    pub(super) async fn delete_object(&self, name: &str, generation: &str) -> Result<(), Error> {
        let what = format!("delete object {name} in bucket {}", self.bucket);
        let delete = async || {
            let mut url = self.object_url(name);
            if !generation.is_empty() {
                url.query_pairs_mut().append_pair("ifGenerationMatch", generation);
            }
            let request = self.http.delete(url);
            self.send(&what, request).await.map(drop)
        };
        match Policy::CALL.run("gcp storage", Error::class_of_call, delete).await {
            // The object is gone, or another one has replaced it.
            Err(error) if error.is_absent() || error.is_conflict() => Ok(()),
            done => done,
        }
    }

    /// Starts a [resumable upload](https://cloud.google.com/storage/docs/performing-resumable-uploads) of an object that does
    /// not exist yet. Returns the address of the upload session.
    pub(super) async fn start_upload(
        &self,
        name: &str,
        size: u64,
        metadata: &HashMap<String, String>,
    ) -> Result<Url, Error> {
        let what = format!("start an upload of {name} to bucket {}", self.bucket);
        let mut url = self.url(&format!("upload/storage/v1/b/{}/o", self.bucket));
        url.query_pairs_mut()
            .append_pair("uploadType", "resumable")
            .append_pair("name", name)
            .append_pair("ifGenerationMatch", "0");
        let start = async || {
            let request = self
                .http
                .post(url.clone())
                .header("X-Upload-Content-Type", "application/gzip")
                .header("X-Upload-Content-Length", size)
                .json(&json!({"name": name, "contentType": "application/gzip", "metadata": metadata}));
            let response = self.send(&what, request).await?;
            let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let text = text.ok_or_else(|| Error::odd(&what, "no Location"))?;
            url.join(text)
                .map_err(|_| Error::odd(&what, "a Location that is no address"))
        };
        match Policy::CALL.run("gcp storage", Error::class_of_call, start).await {
            Err(error) if error.is_absent() => Err(Error::NoBucket(self.bucket.clone())),
            started => started,
        }
    }

    /// Those of these permissions that the account has on the bucket.
    pub(super) async fn bucket_permissions(&self, asked: &[&str]) -> Result<Vec<String>, Error> {
        let what = format!("test the permissions on bucket {}", self.bucket);
        let mut url = self.url(&format!("storage/v1/b/{}/iam/testPermissions", self.bucket));
        for permission in asked {
            url.query_pairs_mut().append_pair("permissions", permission);
        }
        let request = self.http.get(url);
        let response = self.send(&what, request).await.map_err(|error| match error {
            error if error.is_absent() => Error::NoBucket(self.bucket.clone()),
            error => error,
        })?;
        let found: Permissions = response.json().await.map_err(|source| Error::lost(&what, source))?;
        Ok(found.permissions.unwrap_or_default())
    }

    /// Sends a request with a token. Every status from 200 to 299 is a success.
    async fn send(&self, what: &str, request: RequestBuilder) -> Result<Response, Error> {
        let request = request.timeout(http::CALL).bearer_auth(self.token().await?);
        let response = request.send().await.map_err(|source| Error::lost(what, source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let error = Error::of_storage(what, response).await;
        self.note_refusal(&error).await;
        Err(error)
    }

    /// A request to an upload session. The session's address is a secret in itself; a token is sent to the configured
    /// endpoint only.
    pub(super) async fn to_session(&self, method: Method, session: &Url) -> Result<RequestBuilder, Error> {
        let request = self.uploads.request(method, session.clone()).timeout(http::CALL);
        if session.origin() == self.storage.origin() {
            return Ok(request.bearer_auth(self.token().await?));
        }
        Ok(request)
    }

    fn object_url(&self, name: &str) -> Url {
        let name = utf8_percent_encode(name, SEGMENT);
        self.url(&format!("storage/v1/b/{}/o/{name}", self.bucket))
    }

    /// An address below the endpoint, which may have a path of its own.
    fn url(&self, path: &str) -> Url {
        let mut url = self.storage.clone();
        let base = self.storage.path().trim_end_matches('/');
        url.set_path(&format!("{base}/{path}"));
        url
    }
}

/// Reports whether the service stored a piece and expects more.
pub(super) fn is_incomplete(status: StatusCode) -> bool {
    status.as_u16() == 308
}
