//! Faults by the name of the call, and the record of calls.

use std::time::Instant;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{Fake, reply};

/// The fault of one call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// 403: not permitted.
    Refuse,
    /// 429, with this `Retry-After` in seconds.
    Throttle(u32),
    /// This status with this code.
    Status(u16, &'static str),
    /// It is done, and nothing answered.
    Deaf,
    /// It is done, and the connection breaks in mid-answer.
    Lost,
    /// It is done, and a success is answered in another form: this changes the status and the document (null: no body).
    Answer(fn(&mut u16, &mut Value)),
}

/// One recorded call.
#[derive(Clone, Debug)]
pub struct Call {
    /// `PUT version`, `LIST versions`, `POST token`, …
    pub name: String,
    /// The path without its first slash.
    pub path: String,
    /// The status that was, or would have been, answered.
    pub status: u16,
    /// When, by the clock of the test, which may be wound forward.
    pub at: Instant,
}

pub(super) struct Planned {
    call: String,
    fault: Fault,
    /// Calls that succeed before it.
    before: usize,
    left: usize,
}

impl Planned {
    pub(super) fn new(call: &str, fault: Fault, before: usize, times: usize) -> Self {
        Self {
            call: call.to_owned(),
            fault,
            before,
            left: times,
        }
    }
}

impl Fault {
    /// The answer of a fault that replaces the call.
    pub(super) fn instead(&self) -> Option<Response> {
        let error = |status, code: &str| {
            let body = json!({"error": {"code": code, "message": "a test wants it so"}});
            reply::document(status, &body)
        };
        match self {
            Self::Refuse => Some(error(403, "AuthorizationFailed")),
            Self::Status(status, code) => Some(error(*status, code)),
            Self::Throttle(seconds) => {
                let mut response = error(429, "TooManyRequests");
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
                Some(response)
            }
            Self::Deaf | Self::Lost | Self::Answer(_) => None,
        }
    }
}

impl Fake {
    pub(super) fn take_fault(&mut self, call: &str) -> Option<Fault> {
        let planned = self
            .faults
            .iter_mut()
            .find(|planned| planned.call == call && planned.left > 0)?;
        if planned.before > 0 {
            planned.before -= 1;
            return None;
        }
        planned.left -= 1;
        Some(planned.fault.clone())
    }

    pub(super) fn record(&mut self, name: &str, path: &str, status: u16) {
        self.calls.push(Call {
            name: name.to_owned(),
            path: path.to_owned(),
            status,
            at: tokio::time::Instant::now().into_std(),
        });
    }
}

/// A success in another form.
pub(super) async fn changed(response: Response, change: fn(&mut u16, &mut Value)) -> Response {
    if !response.status().is_success() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let mut status = parts.status.as_u16();
    let mut document = serde_json::from_slice(&body).unwrap_or_default();
    change(&mut status, &mut document);
    parts.status = reply::status(status);
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = if document.is_null() {
        Body::empty()
    } else {
        Body::from(document.to_string())
    };
    Response::from_parts(parts, body)
}

/// The answer, cut off before its end.
pub(super) fn cut(response: Response) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(1000));
    let begun = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
    let broken = stream::once(async { Err(std::io::ErrorKind::ConnectionReset.into()) });
    Response::from_parts(parts, Body::from_stream(begun.chain(broken)))
}
