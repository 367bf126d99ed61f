//! Answers in the service's form, and those that never come.

use axum::{
    Json,
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;

use super::faults::Fault;

/// [An error](https://cloud.google.com/apis/design/errors#http_mapping) of both services.
pub(super) fn error(status: u16, reason: &str, message: &str, retry_after: Option<u64>) -> Response {
    let body = json!({"error": {
        "code": status,
        "message": message,
        "errors": [{"message": message, "domain": "global", "reason": reason}],
    }});
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
    let mut response = (status, Json(body)).into_response();
    if let Some(seconds) = retry_after {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The answer to a call that is not to be carried out; `None` if it is.
pub(super) async fn answer_for(fault: &Option<Fault>) -> Option<Response> {
    match fault {
        Some(Fault::Refuse {
            status,
            reason,
            retry_after,
        }) => Some(error(*status, reason, "as the test wants it", *retry_after)),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Nothing | Fault::LostAnswer | Fault::Freeze | Fault::Half | Fault::Flip | Fault::Fails { .. })
        | None => None,
    }
}

/// What is answered instead, once a call has been carried out.
pub(super) async fn afterwards(fault: &Option<Fault>, response: Response) -> Response {
    match fault {
        Some(Fault::LostAnswer | Fault::Half) => broken(),
        Some(Fault::Freeze) => std::future::pending().await,
        Some(Fault::Nothing | Fault::Refuse { .. } | Fault::Hang | Fault::Flip | Fault::Fails { .. }) | None => {
            response
        }
    }
}

/// A connection that breaks after the head of a success.
fn broken() -> Response {
    let cut = stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::ErrorKind::ConnectionReset)]);
    let cut = futures_util::StreamExt::map(cut, |piece| piece.map_err(std::io::Error::from));
    let mut response = Response::new(Body::from_stream(cut));
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from_static("1000"));
    response
}
