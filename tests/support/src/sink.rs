//! A place where uploads end: it takes what an object store, EBS direct, or a page blob takes, counts it, and keeps nothing.
//!
//! It answers the calls of an S3 multipart upload well enough for the vendor's own client. It checks no signature and no
//! checksum: that would be work on the processors whose time is measured.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use crate::http_server::HttpServer;

/// Where `GET` tells the counts, and starts over.
const COUNTS: &str = "/counts";

/// A running sink.
pub struct Sink {
    server: HttpServer,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    requests: AtomicU64,
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Bytes of request bodies.
    pub bytes: u64,
    /// Requests with `PUT`.
    pub requests: u64,
}

impl Sink {
    /// Starts one with nothing in it.
    pub async fn start() -> Result<Self> {
        let counts = Arc::<Counts>::default();
        let router = Router::new().fallback(take).with_state(counts.clone());
        Ok(Self {
            server: HttpServer::start(router).await?,
            counts,
        })
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What arrived since the last time.
    pub fn take(&self) -> Taken {
        self.counts.take()
    }
}

impl Counts {
    fn take(&self) -> Taken {
        Taken {
            bytes: self.bytes.swap(0, Ordering::Relaxed),
            requests: self.requests.swap(0, Ordering::Relaxed),
        }
    }
}

async fn take(State(counts): State<Arc<Counts>>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    match *request.method() {
        Method::GET if request.uri().path() == COUNTS => Json(counts.take()).into_response(),
        Method::PUT => put(&counts, request.into_body()).await,
        Method::POST if query.starts_with("uploads") => {
            xml("<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        }
        Method::POST => xml("<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>"),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn put(counts: &Counts, body: Body) -> Response {
    counts.requests.fetch_add(1, Ordering::Relaxed);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let Ok(piece) = piece else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        counts.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
    [(header::ETAG, "\"1\"")].into_response()
}

fn xml(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "application/xml")], text).into_response()
}
