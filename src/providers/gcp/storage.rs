//! Objects in the bucket, by the [JSON API](https://cloud.google.com/storage/docs/json_api).
//!
//! The client library reads and deletes objects by gRPC only, and an upload of its own has no time-out; the few calls
//! needed here are plain HTTP.

use std::collections::HashMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::LOCATION;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::client::Cloud;
use super::error::Error;
use crate::base::http;
use crate::base::retry::Policy;

/// The bytes that need no escape in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// An object as the service describes it.
#[derive(Debug, Deserialize)]
pub(super) struct Object {
    #[serde(default)]
    pub(super) size: String,
    #[serde(default)]
    pub(super) generation: String,
    /// In base64, big end first.
    #[serde(default)]
    pub(super) crc32c: String,
    /// Ours.
    #[serde(default)]
    pub(super) metadata: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Permissions {
    #[serde(default)]
    permissions: Vec<String>,
}

impl Cloud {
    /// An object, if there is one.
    pub(super) async fn object(&self, name: &str) -> Result<Option<Object>, Error> {
        let what = format!("look for object {name} in bucket {}", self.bucket);
        let get = async || {
            let request = self.http.get(self.object_url(name));
            let response = self.answered(&what, request).await?;
            response.json().await.map_err(|source| Error::lost(&what, source))
        };
        match Policy::CALL.run("gcp storage", Error::class_of_call, get).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes an object, if it is still the one that was looked at.
    pub(super) async fn delete_object(&self, name: &str, generation: &str) -> Result<(), Error> {
        let what = format!("delete object {name} in bucket {}", self.bucket);
        let delete = async || {
            let mut url = self.object_url(name);
            url.query_pairs_mut().append_pair("ifGenerationMatch", generation);
            let request = self.http.delete(url);
            self.answered(&what, request).await.map(drop)
        };
        match Policy::CALL.run("gcp storage", Error::class_of_call, delete).await {
            // It is gone, or another one.
            Err(error) if error.is_absent() || error.is_conflict() => Ok(()),
            done => done,
        }
    }

    /// Opens a [resumable upload](https://cloud.google.com/storage/docs/performing-resumable-uploads) for an object that
    /// is not there yet. The address it goes to.
    pub(super) async fn begin_upload(
        &self,
        name: &str,
        size: u64,
        metadata: &HashMap<String, String>,
    ) -> Result<Url, Error> {
        let what = format!("begin an upload of {name} to bucket {}", self.bucket);
        let mut url = self.url(&format!("upload/storage/v1/b/{}/o", self.bucket));
        url.query_pairs_mut()
            .append_pair("uploadType", "resumable")
            .append_pair("name", name)
            .append_pair("ifGenerationMatch", "0");
        let begin = async || {
            let request = self
                .http
                .post(url.clone())
                .header("X-Upload-Content-Type", "application/gzip")
                .header("X-Upload-Content-Length", size)
                .json(&json!({"name": name, "contentType": "application/gzip", "metadata": metadata}));
            let response = self.answered(&what, request).await?;
            let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let text = text.ok_or_else(|| Error::odd(&what, "no Location"))?;
            url.join(text)
                .map_err(|_| Error::odd(&what, "a Location that is no address"))
        };
        match Policy::CALL.run("gcp storage", Error::class_of_call, begin).await {
            Err(error) if error.is_absent() => Err(Error::NoBucket(self.bucket.clone())),
            begun => begun,
        }
    }

    /// Which of these permissions there are on the bucket.
    pub(super) async fn bucket_permissions(&self, asked: &[&str]) -> Result<Vec<String>, Error> {
        let what = format!("test the permissions on bucket {}", self.bucket);
        let mut url = self.url(&format!("storage/v1/b/{}/iam/testPermissions", self.bucket));
        for permission in asked {
            url.query_pairs_mut().append_pair("permissions", permission);
        }
        let request = self.http.get(url);
        let response = self.answered(&what, request).await.map_err(|error| match error {
            error if error.is_absent() => Error::NoBucket(self.bucket.clone()),
            error => error,
        })?;
        let found: Permissions = response.json().await.map_err(|source| Error::lost(&what, source))?;
        Ok(found.permissions)
    }

    /// Sends a request with a token; any answer but a success is an error.
    async fn answered(&self, what: &str, request: RequestBuilder) -> Result<Response, Error> {
        let request = request.timeout(http::CALL).bearer_auth(self.token().await?);
        let response = request.send().await.map_err(|source| Error::lost(what, source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Error::of_storage(what, response).await)
    }

    /// A request to where an upload goes. Its address is a secret of its own; a token is for Google's address only.
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

    /// Below the endpoint, which may have a path of its own.
    fn url(&self, path: &str) -> Url {
        let mut url = self.storage.clone();
        let base = self.storage.path().trim_end_matches('/');
        url.set_path(&format!("{base}/{path}"));
        url
    }
}

/// Whether a piece has been taken and more is expected.
pub(super) fn is_incomplete(status: StatusCode) -> bool {
    status.as_u16() == 308
}
