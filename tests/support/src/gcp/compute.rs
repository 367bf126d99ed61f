//! The methods of Compute Engine and the token endpoints, by path.

use std::{collections::HashMap, sync::Arc};

use anyhow::Result;
use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Json,
    body::to_bytes,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    PROJECT, Shared, answers,
    faults::Fault,
    images::Content,
    lock,
    rules::{Refused, refused},
    tarball,
};

impl Shared {
    /// The object that an image is to be made of.
    async fn content(&self, body: &Value) -> Result<Option<Content>> {
        let source = body["rawDisk"]["source"].as_str().unwrap_or_default();
        let path = source.strip_prefix("https://storage.googleapis.com/");
        let Some((bucket, object)) = path.and_then(|path| path.split_once('/')) else {
            return Ok(None);
        };
        let Some(bytes) = self.read_object(bucket, object).await? else {
            return Ok(None);
        };
        let sha256 = digest(&SHA256, &bytes);
        Ok(Some(Content {
            sha256: sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
            length: bytes.len(),
            disk: tarball::check(&bytes),
        }))
    }
}

pub(super) async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let query: Vec<(String, String)> = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect();
    if path == "/token" || path == "/sts" {
        return give_token(&shared, &path, &body, &parts.headers).await;
    }
    let json: Option<Value> = serde_json::from_slice(&body).ok();
    let Some((name, target)) = call_of(&parts.method, &path) else {
        return answers::error(
            404,
            "notFound",
            &format!("no such method: {} {path}", parts.method),
            None,
        );
    };
    let fault = shared.begin(name, &target, query.clone(), json.clone());
    let authorization = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if let Err(error) = shared.admit(authorization) {
        return answers::error(401, "authError", &format!("{error:#}"), None);
    }
    if let Some(response) = answers::answer_for(&fault).await {
        return response;
    }
    let query: HashMap<_, _> = query.into_iter().collect();
    let body = json.unwrap_or_default();
    let response = match carry_out(&shared, name, &target, &query, &body, fault.as_ref()).await {
        Ok(answer) => Json(answer).into_response(),
        Err(Refused {
            status,
            reason,
            message,
        }) => answers::error(status, reason, &message, None),
    };
    shared.end(name, &fault, response)
}

/// The call behind a method and path, and what it is about.
fn call_of(method: &Method, path: &str) -> Option<(&'static str, String)> {
    let rest = path.strip_prefix(&format!("/compute/v1/projects/{PROJECT}/global/"))?;
    let parts: Vec<_> = rest.split('/').collect();
    let (name, target) = match (method.as_str(), &parts[..]) {
        ("POST", ["images"]) => ("images.insert", ""),
        ("GET", ["images"]) => ("images.list", ""),
        ("GET", ["images", "family", family]) => ("images.getFromFamily", *family),
        ("GET", ["images", image]) => ("images.get", *image),
        ("PATCH", ["images", image]) => ("images.patch", *image),
        ("DELETE", ["images", image]) => ("images.delete", *image),
        ("POST", ["images", image, "deprecate"]) => ("images.deprecate", *image),
        ("POST", ["images", image, "setLabels"]) => ("images.setLabels", *image),
        ("POST", ["images", image, "testIamPermissions"]) => ("images.testIamPermissions", *image),
        ("GET", ["operations", operation]) => ("globalOperations.get", *operation),
        ("POST", ["operations", operation, "wait"]) => ("globalOperations.wait", *operation),
        _ => return None,
    };
    Some((name, target.to_owned()))
}

async fn carry_out(
    shared: &Shared,
    name: &str,
    target: &str,
    query: &HashMap<String, String>,
    body: &Value,
    fault: Option<&Fault>,
) -> Result<Value, Refused> {
    let content = match name {
        "images.insert" => shared
            .content(body)
            .await
            .map_err(|error| refused(500, "backendError", error.to_string()))?,
        _ => None,
    };
    if name == "globalOperations.wait" {
        // The service waits up to two minutes.
        let due = lock(&shared.project).due(target);
        if let Some(due) = due {
            tokio::time::sleep_until(due.into()).await;
        }
    }
    let mut project = lock(&shared.project);
    project.settle();
    let request = query.get("requestId");
    match name {
        "images.insert" => project.insert(body, request, content, fault),
        "images.list" => project.list(query),
        "images.getFromFamily" => project.head_of(target).cloned(),
        "images.get" => project.get(target).cloned(),
        "images.patch" => project.patch(target, body, request),
        "images.delete" => project.delete(target, request),
        "images.deprecate" => project.deprecate(target, body, request),
        "images.setLabels" => project.set_labels(target, body),
        "images.testIamPermissions" => {
            project.get(target)?;
            let asked = body["permissions"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            Ok(json!({"permissions": shared.granted(asked)}))
        }
        _ => project.operation(target),
    }
}

async fn give_token(shared: &Shared, path: &str, body: &[u8], headers: &HeaderMap) -> Response {
    let name = path.trim_start_matches('/');
    let fault = shared.begin(name, "", Vec::new(), None);
    if let Some(response) = answers::answer_for(&fault).await {
        return response;
    }
    let form: HashMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let given = {
        let mut accounts = lock(&shared.accounts);
        match name {
            "token" => accounts.token(&form, &format!("http://{host}")),
            _ => accounts.exchange(&form),
        }
    };
    let response = match given {
        Ok(token) => Json(token).into_response(),
        Err(error) => {
            let body = json!({"error": "invalid_grant", "error_description": format!("{error:#}")});
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
    };
    shared.end(name, &fault, response)
}
