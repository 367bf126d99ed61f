//! Answers in the service's form, and answers that never come.

use axum::{
    Json,
    body::{Body, to_bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::faults::{Answer, Fault};

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

/// The answer to a call that must not be carried out; `None` if it is carried out.
pub(super) async fn answer_for(fault: &Option<Fault>) -> Option<Response> {
    match fault {
        Some(Fault::Refuse {
            status,
            reason,
            retry_after,
        }) => Some(error(*status, reason, "as the test wants it", *retry_after)),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Pretends(body)) => Some(Json(body.clone()).into_response()),
        Some(
            Fault::Nothing
            | Fault::LostAnswer
            | Fault::Freeze
            | Fault::Half
            | Fault::Flip
            | Fault::Altered(_)
            | Fault::Fails { .. },
        )
        | None => None,
    }
}

/// The answer to a call that was carried out, changed by its fault.
pub(super) async fn afterwards(fault: &Option<Fault>, response: Response) -> Response {
    match fault {
        Some(Fault::LostAnswer | Fault::Half) => broken(),
        Some(Fault::Freeze) => std::future::pending().await,
        Some(Fault::Altered(answer)) => altered(answer, response).await,
        Some(
            Fault::Nothing
            | Fault::Refuse { .. }
            | Fault::Hang
            | Fault::Flip
            | Fault::Pretends(_)
            | Fault::Fails { .. },
        )
        | None => response,
    }
}

/// The same success in another form. Headers such as `Location` are kept.
async fn altered(answer: &Answer, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let usual: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if let Some(status) = answer.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        parts.status = status;
    }
    if let Some(range) = answer
        .range
        .as_ref()
        .and_then(|range| HeaderValue::from_str(range).ok())
    {
        parts.headers.insert(header::RANGE, range);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = (answer.body)(usual).map_or_else(Vec::new, |body| body.to_string().into_bytes());
    Response::from_parts(parts, Body::from(body))
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
