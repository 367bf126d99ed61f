//! S3: the server of the crate `s3s-fs`, and before it what that server lacks: regions, lists of multipart uploads and of
//! their parts, checksums of parts, faults, and a record of the calls.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::anyhow;
use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use serde_json::json;

use super::{
    ACCESS_KEY, SECRET_KEY, SESSION_KEY, SESSION_SECRET, Shared, auth,
    calls::Call,
    lock,
    refusal::{Protocol, Refusal},
    server::with_faults,
};

/// The largest part that a test may send.
const LARGEST: usize = 256 * 1024 * 1024;

/// The part that answers requests to S3.
#[derive(Clone)]
pub(super) struct Front {
    pub(super) shared: Arc<Shared>,
    service: S3Service,
}

impl Front {
    /// Objects in `root`.
    pub(super) fn new(shared: Arc<Shared>, root: &Path) -> anyhow::Result<Self> {
        let files = FileSystem::new(root).map_err(|error| anyhow!("open the folder of S3: {error:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        let mut keys = SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY);
        keys.register(SESSION_KEY.to_owned(), SESSION_SECRET.into());
        builder.set_auth(keys);
        Ok(Self {
            shared,
            service: builder.build(),
        })
    }
}

/// The target of a request. Buckets are in the path.
struct Target {
    action: &'static str,
    bucket: String,
    parameters: BTreeMap<String, String>,
}

pub(super) async fn answer(State(front): State<Front>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let target = Target::of(&parts);
    let scope = match auth::scope(&parts.headers) {
        Ok(scope) => scope,
        Err(refusal) => {
            let refusal = Refusal::new("AccessDenied", refusal.message).status(StatusCode::FORBIDDEN);
            return Protocol::S3.refuse(&refusal);
        }
    };
    let Ok(body) = to_bytes(body, LARGEST).await else {
        // The client went away in the middle of it.
        return Protocol::S3.refuse(&Refusal::new("IncompleteBody", "the body is shorter than announced"));
    };
    let call = Call {
        service: "s3".into(),
        action: target.action.into(),
        region: scope.region.clone(),
        parameters: target.parameters.clone(),
        status: 0,
        raw: json!({}),
    };
    with_faults(&front.shared, Protocol::S3, call, |_| {
        front.answer(&target, &scope.region, parts, body)
    })
    .await
}

/// Answers what the server behind would not, or not as S3 does.
fn before(shared: &Shared, target: &Target, region: &str, headers: &HeaderMap, body: &Bytes) -> Option<Response> {
    let Some(home) = lock(&shared.world).buckets.get(&target.bucket).cloned() else {
        let message = format!("the bucket {} does not exist", target.bucket);
        let refusal = Refusal::new("NoSuchBucket", message).status(StatusCode::NOT_FOUND);
        let needs = !["CreateBucket", "ListBuckets", "Unknown"].contains(&target.action);
        return needs.then(|| Protocol::S3.refuse(&refusal));
    };
    if home != region {
        let message = format!("the bucket {} must be addressed in the region {home}", target.bucket);
        let refusal = Refusal::new("PermanentRedirect", message).status(StatusCode::MOVED_PERMANENTLY);
        let mut response = Protocol::S3.refuse(&refusal);
        name_region(&mut response, &home);
        return Some(response);
    }
    if target.action == "GetBucketLocation" {
        // The first region has no name here.
        let name = if home == "us-east-1" { "" } else { home.as_str() };
        return Some(xml(format!(
            "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{name}</LocationConstraint>"
        )));
    }
    let done = multipart(shared, target, headers, body);
    done.unwrap_or_else(|refusal| Some(Protocol::S3.refuse(&refusal)))
}

/// Answers or refuses a call about multipart uploads before their server is asked; `None` leaves it to the server.
fn multipart(shared: &Shared, target: &Target, headers: &HeaderMap, body: &Bytes) -> Result<Option<Response>, Refusal> {
    let mut uploads = lock(&shared.uploads);
    if target.action == "ListMultipartUploads" {
        return Ok(Some(xml(uploads.list(&target.bucket, target.get("prefix")))));
    }
    let id = target.get("uploadId");
    if id.is_empty() {
        return Ok(None);
    }
    let upload = uploads.get(id, &target.bucket, target.get("Key"))?;
    match target.action {
        "ListParts" => {
            let after = target.get("part-number-marker").parse().unwrap_or_default();
            let most = target.get("max-parts").parse().unwrap_or(1000);
            let page = lock(&shared.settings).page.unwrap_or(most);
            return Ok(Some(xml(upload.list(id, after, page.min(most)))));
        }
        "UploadPart" => {
            upload.check_part(headers)?;
            if wrong_checksum(headers, body) {
                return Err(Refusal::new(
                    "BadDigest",
                    "the checksum is not that of the part received",
                ));
            }
        }
        "CompleteMultipartUpload" => upload.check_completion(body)?,
        _ => {}
    }
    Ok(None)
}

impl Front {
    async fn answer(&self, target: &Target, region: &str, parts: Parts, body: Bytes) -> Response {
        if let Some(answer) = before(&self.shared, target, region, &parts.headers, &body) {
            return answer;
        }
        let (bucket, key, id) = (&target.bucket, target.get("Key"), target.get("uploadId"));
        let headers = parts.headers.clone();
        let size = body.len();
        // Of two who end an upload at once, one comes too late.
        let ends = ["CompleteMultipartUpload", "AbortMultipartUpload"].contains(&target.action);
        let ended = ends.then(|| lock(&self.shared.uploads).end(id)).flatten();
        let request = axum::http::Request::from_parts(parts, s3s::Body::from(body));
        let Ok(answer) = self.service.call(request).await else {
            return Protocol::S3.refuse(&Protocol::S3.broken());
        };
        let mut response = answer.map(Body::new);
        if !response.status().is_success() {
            let mut uploads = lock(&self.shared.uploads);
            let gone = uploads.get(id, bucket, key).err();
            match (ended, gone) {
                (Some(upload), _) => uploads.restore(id, upload),
                // Ended while the part was on its way, which the server behind says in its own words.
                (None, Some(refusal)) if target.action == "UploadPart" => return Protocol::S3.refuse(&refusal),
                (None, _) => {}
            }
            return response;
        }
        match target.action {
            "HeadBucket" => {
                let home = lock(&self.shared.world).buckets.get(bucket).cloned();
                name_region(&mut response, &home.unwrap_or_default());
            }
            "CreateMultipartUpload" => {
                let text;
                (response, text) = read(response).await;
                if let Some(id) = between(&text, "<UploadId>", "</UploadId>") {
                    lock(&self.shared.uploads).begin(id, bucket, key, &headers);
                }
            }
            "UploadPart" => {
                let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
                let number = target.get("partNumber").parse().unwrap_or_default();
                if let Ok(upload) = lock(&self.shared.uploads).get(id, bucket, key) {
                    upload.put(number, size, tag.unwrap_or_default(), &headers);
                }
            }
            "CompleteMultipartUpload" => {
                // It may fail after the status has been sent.
                let text;
                (response, text) = read(response).await;
                if let Some(upload) = ended.filter(|_| text.contains("<Error>")) {
                    lock(&self.shared.uploads).restore(id, upload);
                }
            }
            _ => {}
        }
        response
    }
}

/// Reads an answer to its end, and keeps it.
async fn read(response: Response) -> (Response, String) {
    let (mut parts, body) = response.into_parts();
    // The body is in one piece now, so the headers must not announce many.
    parts.headers.remove(header::TRANSFER_ENCODING);
    let bytes = to_bytes(body, LARGEST).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (Response::from_parts(parts, Body::from(bytes)), text)
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    Some(rest.split_once(end)?.0)
}

/// Whether a checksum in the headers is not that of the body. One that follows the body is not looked at.
fn wrong_checksum(headers: &HeaderMap, body: &Bytes) -> bool {
    let mut hasher = s3s::checksum::ChecksumHasher::default();
    let given = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    hasher.crc32 = given("x-amz-checksum-crc32").map(|_| Default::default());
    hasher.crc32c = given("x-amz-checksum-crc32c").map(|_| Default::default());
    hasher.sha256 = given("x-amz-checksum-sha256").map(|_| Default::default());
    hasher.crc64nvme = given("x-amz-checksum-crc64nvme").map(|_| Default::default());
    hasher.sha1 = given("x-amz-checksum-sha1").map(|_| Default::default());
    hasher.update(body);
    let found = hasher.finalize();
    [
        ("x-amz-checksum-crc32", found.checksum_crc32),
        ("x-amz-checksum-crc32c", found.checksum_crc32c),
        ("x-amz-checksum-sha256", found.checksum_sha256),
        ("x-amz-checksum-crc64nvme", found.checksum_crc64nvme),
        ("x-amz-checksum-sha1", found.checksum_sha1),
    ]
    .into_iter()
    .any(|(name, found)| given(name) != found.as_deref())
}

/// The keys in a bucket, sorted.
pub(super) fn objects(root: &Path, bucket: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.join(bucket)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(key) = path.strip_prefix(root.join(bucket)) {
                found.push(key.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

impl Target {
    /// A parameter; an absent one is empty.
    fn get(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }

    fn of(parts: &Parts) -> Self {
        let path = parts.uri.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let action = if key.is_empty() {
            of_bucket(&parts.method, bucket, &query)
        } else {
            of_object(&parts.method, &query, parts.headers.contains_key("x-amz-copy-source"))
        };
        let headers = parts
            .headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-amz-"));
        let headers = headers.map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        });
        let mut parameters: BTreeMap<_, _> = query.into_iter().chain(headers).collect();
        parameters.insert("Bucket".into(), bucket.to_owned());
        if !key.is_empty() {
            parameters.insert("Key".into(), key.to_owned());
        }
        Self {
            action,
            bucket: bucket.to_owned(),
            parameters,
        }
    }
}

fn of_bucket(method: &Method, bucket: &str, query: &BTreeMap<String, String>) -> &'static str {
    match method.as_str() {
        "GET" if bucket.is_empty() => "ListBuckets",
        "GET" if query.contains_key("location") => "GetBucketLocation",
        "GET" if query.contains_key("uploads") => "ListMultipartUploads",
        "GET" => "ListObjects",
        "HEAD" => "HeadBucket",
        "PUT" => "CreateBucket",
        "POST" if query.contains_key("delete") => "DeleteObjects",
        "DELETE" => "DeleteBucket",
        _ => "Unknown",
    }
}

fn of_object(method: &Method, query: &BTreeMap<String, String>, copies: bool) -> &'static str {
    match method.as_str() {
        "PUT" if query.contains_key("uploadId") => "UploadPart",
        "PUT" if copies => "CopyObject",
        "PUT" => "PutObject",
        "POST" if query.contains_key("uploads") => "CreateMultipartUpload",
        "POST" if query.contains_key("uploadId") => "CompleteMultipartUpload",
        "DELETE" if query.contains_key("uploadId") => "AbortMultipartUpload",
        "DELETE" => "DeleteObject",
        "GET" if query.contains_key("uploadId") => "ListParts",
        "GET" => "GetObject",
        "HEAD" => "HeadObject",
        _ => "Unknown",
    }
}

fn name_region(response: &mut Response, region: &str) {
    if let Ok(value) = HeaderValue::from_str(region) {
        response.headers_mut().insert("x-amz-bucket-region", value);
    }
}

fn xml(text: String) -> Response {
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("application/xml");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
