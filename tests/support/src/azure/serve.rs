//! Dispatches requests by their path.

use std::{collections::HashMap, sync::Arc};

use axum::{
    body::to_bytes,
    extract::{Request, State},
    http::{Method, request::Parts},
    response::Response,
};
use serde_json::Value;

use super::{
    API_VERSION, Fault, Shared, faults, group_path,
    reply::{self, Refusal},
    version,
};

/// Upper bound on a request's body.
const BODY: usize = 1 << 20;

/// The subject of a request.
enum Subject {
    Token(String),
    Gallery(String),
    Definition(String),
    Definitions(String),
    Version(String),
    Versions(String),
    Operation(String),
    Permissions,
    Unknown,
}

impl Subject {
    /// From the path, without its first slash. Keys are in lower case.
    fn of(path: &str) -> Self {
        let lower = path.to_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let group = group_path().to_lowercase();
        if let [tenant, "oauth2", "v2.0", "token"] = parts[..] {
            return Self::Token(tenant.to_owned());
        }
        if let [
            "subscriptions",
            _,
            "providers",
            "microsoft.compute",
            "locations",
            _,
            "capsoperations",
            id,
        ] = parts[..]
        {
            return Self::Operation(id.to_owned());
        }
        let Some(rest) = lower.strip_prefix(&format!("{group}/providers/")) else {
            return Self::Unknown;
        };
        match rest.split('/').collect::<Vec<_>>()[..] {
            ["microsoft.authorization", "permissions"] => Self::Permissions,
            ["microsoft.compute", "galleries", _] => Self::Gallery(lower),
            ["microsoft.compute", "galleries", _, "images"] => Self::Definitions(lower),
            ["microsoft.compute", "galleries", _, "images", _] => Self::Definition(lower),
            ["microsoft.compute", "galleries", _, "images", _, "versions"] => Self::Versions(lower),
            ["microsoft.compute", "galleries", _, "images", _, "versions", _] => Self::Version(lower),
            _ => Self::Unknown,
        }
    }

    fn name(&self, method: &Method) -> String {
        let (method, noun) = match self {
            Self::Token(_) => (method.as_str(), "token"),
            Self::Gallery(_) => (method.as_str(), "gallery"),
            Self::Definition(_) => (method.as_str(), "definition"),
            Self::Definitions(_) => ("LIST", "definitions"),
            Self::Version(_) => (method.as_str(), "version"),
            Self::Versions(_) => ("LIST", "versions"),
            Self::Operation(_) => (method.as_str(), "operation"),
            Self::Permissions => (method.as_str(), "permissions"),
            Self::Unknown => (method.as_str(), "something unknown"),
        };
        format!("{method} {noun}")
    }
}

pub(super) async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_start_matches('/').to_owned();
    let subject = Subject::of(&path);
    let name = subject.name(&parts.method);
    let body = to_bytes(body, BODY).await.unwrap_or_default();
    let fault = shared.lock().take_fault(&name);
    if let Some(response) = fault.as_ref().and_then(Fault::instead) {
        shared.lock().record(&name, &path, response.status().as_u16());
        return response;
    }
    let has_source = has_source(&shared, &parts.method, &subject).await;
    let answer = answer(&shared, &parts, &path, subject, &body, has_source);
    let mut response = answer.unwrap_or_else(Refusal::into_response);
    if let Some(Fault::Answer(change)) = fault {
        response = faults::changed(response, change).await;
    }
    shared.lock().record(&name, &path, response.status().as_u16());
    match fault {
        Some(Fault::Deaf) => std::future::pending().await,
        Some(Fault::Lost) => faults::cut(response),
        _ => response,
    }
}

/// For a change of a version: the blob that it was imported from still exists.
async fn has_source(shared: &Arc<Shared>, method: &Method, subject: &Subject) -> bool {
    let (&Method::PUT, Subject::Version(key), Some(blobs)) = (method, subject, &shared.blobs) else {
        return true;
    };
    let source = shared.lock().source_of(key);
    match source {
        Some(uri) => blobs.exists(&uri).await,
        None => true,
    }
}

fn answer(
    shared: &Arc<Shared>,
    parts: &Parts,
    path: &str,
    subject: Subject,
    body: &[u8],
    has_source: bool,
) -> Result<Response, Refusal> {
    let mut fake = shared.lock();
    if let Subject::Token(tenant) = &subject {
        return fake.tokens.give(tenant, body);
    }
    fake.tokens.check(&parts.headers)?;
    let query: HashMap<String, String> = parts
        .uri
        .query()
        .map(|query| url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
        .unwrap_or_default();
    if let Subject::Operation(id) = &subject {
        return fake.show_operation(id, query.contains_key("monitor"));
    }
    let version = query.get("api-version").map(String::as_str);
    let wanted = match subject {
        Subject::Permissions => "2022-04-01",
        _ => API_VERSION,
    };
    if version != Some(wanted) {
        return Err(Refusal::new(
            400,
            "InvalidApiVersionParameter",
            format!("{version:?} and not {wanted}"),
        ));
    }
    reply::in_group(path)?;
    let json = || reply::json(&parts.headers, body);
    let expand = query.get("$expand").map(String::as_str);
    // The last word of the path as the client writes it.
    let given = path.rsplit('/').next().unwrap_or_default();
    match (&parts.method, subject) {
        (&Method::GET, Subject::Permissions) => fake.show_permissions(),
        (&Method::GET, Subject::Gallery(key)) => found(fake.gallery(&key)),
        (&Method::PUT, Subject::Gallery(key)) => fake.put_gallery(&key, path, given, json()?),
        (&Method::GET, Subject::Definition(key)) => found(fake.definition(&key)),
        (&Method::PUT, Subject::Definition(key)) => fake.put_definition(&key, path, given, json()?),
        (&Method::GET, Subject::Definitions(key)) => fake.list_definitions(&key, &query),
        (&Method::GET, Subject::Versions(key)) => fake.list_versions(&key, &query),
        (&Method::GET, Subject::Version(key)) => {
            if expand.is_some_and(|expand| expand != "ReplicationStatus") {
                return Err(Refusal::invalid("$expand", "is not ReplicationStatus"));
            }
            found(fake.version(&key, expand.is_some()))
        }
        (&Method::PUT, Subject::Version(key)) => {
            let (response, import) = fake.put_version(&key, path, given, json()?, has_source)?;
            match (import, &shared.blobs) {
                (Some(_), None) => fake.end_import(&key, Ok(Vec::new())),
                (Some(uri), Some(blobs)) => {
                    tokio::spawn(version::import(shared.clone(), blobs.clone(), key, uri));
                }
                (None, _) => {}
            }
            Ok(response)
        }
        (&Method::DELETE, Subject::Version(key)) => fake.delete_version(&key),
        _ => Err(Refusal::new(405, "MethodNotAllowed", "not here")),
    }
}

fn found(document: Option<Value>) -> Result<Response, Refusal> {
    match document {
        Some(document) => Ok(reply::document(200, &document)),
        None => Err(Refusal::new(404, "ResourceNotFound", "it is not there")),
    }
}
