//! Answers and refusals.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

use super::group_path;

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    code: String,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
        }
    }

    /// A body that Azure does not take.
    pub(super) fn invalid(what: &str, why: &str) -> Self {
        Self::new(400, "InvalidParameter", format!("{what} {why}"))
    }

    /// A change of a fixed property.
    pub(super) fn fixed(what: &str) -> Self {
        let message = format!("Changing property '{what}' is not allowed.");
        Self::new(409, "PropertyChangeNotAllowed", message)
    }

    pub(super) fn into_response(self) -> Response {
        let body = json!({"error": {"code": self.code, "message": self.message}});
        document(self.status, &body)
    }
}

pub(super) fn status(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT)
}

pub(super) fn document(code: u16, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status(code);
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// The body of a request, which must say that it is JSON.
pub(super) fn json(headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/json")) {
        return Err(Refusal::new(415, "UnsupportedMediaType", format!("{kind:?}")));
    }
    serde_json::from_slice(body).map_err(|error| Refusal::new(400, "InvalidRequestContent", error.to_string()))
}

/// Refuses a path outside the one group of the one subscription.
pub(super) fn in_group(path: &str) -> Result<(), Refusal> {
    let (path, group) = (path.to_lowercase(), group_path().to_lowercase());
    let subscription = group.split("/resourcegroups/").next().unwrap_or_default();
    if !path.starts_with(subscription) {
        return Err(Refusal::new(404, "SubscriptionNotFound", "no such subscription"));
    }
    if !path.starts_with(&format!("{group}/")) {
        return Err(Refusal::new(404, "ResourceGroupNotFound", "no such resource group"));
    }
    Ok(())
}

/// Refuses unknown properties.
pub(super) fn only(value: &Value, place: &str, known: &[&str]) -> Result<(), Refusal> {
    let Some(object) = value.as_object() else {
        return Err(Refusal::invalid(place, "is no object"));
    };
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(Refusal::new(
            400,
            "BadRequest",
            format!("Could not find member '{key}' on object of type '{place}'"),
        )),
        None => Ok(()),
    }
}

/// A text that must be there.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, Refusal> {
    let text = value[name].as_str().filter(|text| !text.is_empty());
    text.ok_or_else(|| {
        Refusal::new(
            400,
            "InvalidParameter",
            format!("Required parameter '{name}' is missing (null)."),
        )
    })
}

/// A text of a closed set; nothing where it may be left out.
pub(super) fn one_of(value: &Value, name: &str, known: &[&str]) -> Result<(), Refusal> {
    match &value[name] {
        Value::Null => Ok(()),
        Value::String(text) if known.contains(&text.as_str()) => Ok(()),
        other => Err(Refusal::invalid(name, &format!("is {other}"))),
    }
}

/// Tags: at most 50, texts of bounded length.
pub(super) fn tags(body: &Value) -> Result<(), Refusal> {
    let tags = match &body["tags"] {
        Value::Null => return Ok(()),
        Value::Object(tags) => tags,
        _ => return Err(Refusal::invalid("tags", "is no object")),
    };
    let bad = |name: &String, value: &Value| {
        name.len() > 512
            || name.contains(['<', '>', '%', '&', '\\', '?', '/'])
            || value.as_str().is_none_or(|value| value.len() > 256)
    };
    if tags.len() > 50 || tags.iter().any(|(name, value)| bad(name, value)) {
        return Err(Refusal::new(
            400,
            "InvalidTag",
            "too many, too long, or with odd characters",
        ));
    }
    Ok(())
}
