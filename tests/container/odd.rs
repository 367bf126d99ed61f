//! Registries, proxies, and token servers that answer otherwise than the specification's examples.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use cloud_image_uploader_test_support::archive::{Row, digest_of, xz};
use cloud_image_uploader_test_support::http_server::HttpServer;
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;
use serde_json::json;

use crate::world::*;

/// An answer in the place of the registry's; `None` lets the request through.
type Instead = Box<dyn Fn(&Parts) -> Option<Response> + Send + Sync>;
/// Another status for an answer of the registry.
type Status = Box<dyn Fn(&Parts, StatusCode) -> StatusCode + Send + Sync>;

/// Stands before a registry.
struct Front {
    http: reqwest::Client,
    registry: String,
    instead: Instead,
    status: Status,
}

async fn front(
    registry: &Registry,
    instead: impl Fn(&Parts) -> Option<Response> + Send + Sync + 'static,
    status: impl Fn(&Parts, StatusCode) -> StatusCode + Send + Sync + 'static,
) -> (HttpServer, Entry) {
    let front = Arc::new(Front {
        http: reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap(),
        registry: registry.url(),
        instead: Box::new(instead),
        status: Box::new(status),
    });
    let server = HttpServer::start(Router::new().fallback(forward).with_state(front))
        .await
        .unwrap();
    let entry = Entry::at(server.url().trim_start_matches("http://"));
    (server, entry)
}

async fn forward(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, 64 << 20).await.unwrap();
    if let Some(response) = (front.instead)(&parts) {
        return response;
    }
    let url = format!("{}{}", front.registry, parts.uri);
    let mut headers = parts.headers.clone();
    headers.remove(AUTHORIZATION);
    let request = front
        .http
        .request(parts.method.clone(), url)
        .headers(headers)
        .body(bytes);
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut response = Response::new(Body::from(answer.bytes().await.unwrap()));
    *response.status_mut() = (front.status)(&parts, status);
    *response.headers_mut() = headers;
    response
}

fn is_to(parts: &Parts, method: &str, path: &str) -> bool {
    parts.method == method && parts.uri.path().contains(path)
}

/// Both forms of archives: one whose layers are sent with their digests, one whose layers are named afterwards.
fn rows(seed: &str) -> Vec<Row> {
    let docker = xz(&docker("arm64", seed).build());
    vec![x86(seed), Row::container("Container_Base", "aarch64", docker)]
}

/// Publishes both forms, and has skopeo read them back.
async fn assert_published(what: &str, registry: &Registry, entry: &Entry, id: &str) {
    let (section, provider) = provider(&[entry]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), id, rows(id)).await;
    let task = task();
    let publishing = publish(&provider, &deliverable, &task);
    let publication = tokio::time::timeout(LIMIT / 4, publishing).await;
    let publication = publication.unwrap_or_else(|_| panic!("{what}: no end")).unwrap();
    assert!(publication.failed.is_empty(), "{what}: {:?}", publication.failed);
    assert_eq!(publication.places.len(), 1, "{what}: {publication:?}");
    let skopeo = Skopeo::new(registry).unwrap();
    for tag in ["43", "latest"] {
        let digest = skopeo.digest(&format!("{FULL}:{tag}")).await.unwrap();
        assert_eq!(digest, publication.places[0].id, "{what}");
    }
    let layout = folder.path().join("layout");
    skopeo.copy_to_layout(&format!("{FULL}:43"), &layout).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_success_that_a_look_confirms_is_one() {
    for status in [200, 202, 204] {
        let registry = Registry::open().await.unwrap();
        let other = StatusCode::from_u16(status).unwrap();
        let change = move |parts: &Parts, status: StatusCode| match status {
            StatusCode::CREATED | StatusCode::ACCEPTED if parts.method != "GET" => other,
            status => status,
        };
        let (_server, entry) = front(&registry, |_| None, change).await;
        assert_published(&status.to_string(), &registry, &entry, FIRST).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_nothing_follows_from_is_none() {
    for (what, method, path, status) in [
        ("a manifest", "PUT", "/manifests/sha256", 201),
        ("a manifest, 200", "PUT", "/manifests/sha256", 200),
        ("a blob", "PUT", "/blobs/uploads", 201),
        ("a blob, 200", "PUT", "/blobs/uploads", 200),
        ("a tag", "PUT", "/manifests/43", 201),
    ] {
        let registry = Registry::open().await.unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        let ignored = Mutex::new(Vec::new());
        // Nothing of the first blob, manifest, or tag is ever taken: what was claimed is not there.
        let instead = move |parts: &Parts| {
            let mut ignored = ignored.lock().unwrap();
            let key = parts.uri.query().map_or_else(
                || parts.uri.path().to_owned(),
                |query| query.rsplit("digest=").next().unwrap_or_default().to_owned(),
            );
            if ignored.is_empty() && is_to(parts, method, path) {
                ignored.push(key.clone());
            }
            let is_first = is_to(parts, method, path) && ignored.contains(&key);
            is_first.then(|| status.into_response())
        };
        let (_server, entry) = front(&registry, instead, |_, status| status).await;
        let (section, provider) = provider(&[&entry]);
        let folder = tempfile::tempdir().unwrap();
        // One layer that is streamed: one try. Other calls are tried for a minute, which is not waited for.
        let deliverable = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
        let task = task();
        let publishing = publish(&provider, &deliverable, &task);
        match tokio::time::timeout(LIMIT / 10, publishing).await {
            Err(_) => {}
            Ok(publication) => {
                let publication = publication.unwrap();
                assert!(publication.places.is_empty(), "{what}: {publication:?}");
                let failure = &publication.failed[0].failure;
                assert!(failure.class().is_transient(), "{what}: {failure}");
                let text = failure.to_string();
                assert!(
                    text.contains("does not have it") || text.contains("it holds nothing"),
                    "{what}: {text}"
                );
            }
        }
    }
}

/// The scope that covers a request, as a registry behind a proxy names it.
fn scope(parts: &Parts) -> String {
    let actions = match parts.method.as_str() {
        "GET" | "HEAD" => "pull",
        _ => "pull,push",
    };
    format!("repository:upstream/{FULL}:{actions}")
}

fn token(scope: &str) -> String {
    digest_of(scope.as_bytes()).replace(':', "")
}

/// A registry that asks for tokens in these words, and whose token server answers so. `{realm}`, `{scope}`, and `{token}` are
/// filled in.
async fn asking(registry: &Registry, challenge: &[&'static str], answer: &'static str) -> (HttpServer, Entry) {
    let challenge = challenge.to_vec();
    let instead = move |parts: &Parts| {
        if parts.uri.path() == "/token" {
            let query = parts.uri.query().unwrap_or_default();
            let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
            let scope = pairs.iter().find(|(name, _)| name == "scope");
            let scope = scope.map(|(_, scope)| scope.as_ref()).unwrap_or_default();
            if !scope.starts_with("repository:upstream/") {
                return Some(StatusCode::FORBIDDEN.into_response());
            }
            return Some(answer.replace("{token}", &token(scope)).into_response());
        }
        let given = parts.headers.get(AUTHORIZATION).and_then(|given| given.to_str().ok());
        let wanted = scope(parts);
        // A token for more is good, too.
        let more = format!("repository:upstream/{FULL}:pull,push");
        let good = [&wanted, &more].map(|scope| format!("Bearer {}", token(scope)));
        if given.is_some_and(|given| good.iter().any(|good| good == given)) {
            return None;
        }
        let host = parts.headers["host"].to_str().unwrap();
        let mut response = StatusCode::UNAUTHORIZED.into_response();
        for challenge in &challenge {
            let text = challenge.replace("{realm}", &format!("http://{host}/token"));
            let text = text.replace("{scope}", &wanted);
            response.headers_mut().append(WWW_AUTHENTICATE, text.parse().unwrap());
        }
        Some(response)
    };
    front(registry, instead, |_, status| status).await
}

#[tokio::test(flavor = "multi_thread")]
async fn challenges_and_tokens_are_taken_as_they_come() {
    const USUAL: &str = r#"Bearer realm="{realm}",service="s",scope="{scope}""#;
    const TOKEN: &str = r#"{"token":"{token}","expires_in":300}"#;
    let cases: Vec<(&[&'static str], &'static str)> = vec![
        (&[USUAL], TOKEN),
        (&["bearer realm={realm}, service=s, scope={scope}"], TOKEN),
        (
            &[r#"Bearer realm = "{realm}" , service = "s" , scope = "{scope}""#],
            TOKEN,
        ),
        (&["Negotiate YIIabc/d+e==", USUAL], TOKEN),
        (&["Negotiate", r#"Basic realm="r""#, USUAL], TOKEN),
        (
            &[r#"Negotiate YIIabc==, Basic realm="r", Bearer realm="{realm}",service="s",scope="{scope}""#],
            TOKEN,
        ),
        (&[USUAL], r#"{"token":"","access_token":"{token}","expires_in":300}"#),
        (&[USUAL], r#"{"token":null,"access_token":"{token}","expires_in":null}"#),
        (&[USUAL], r#"{"token":"{token}","expires_in":"300"}"#),
        (&[USUAL], r#"{"token":"{token}","expires_in":-1}"#),
        (&[USUAL], r#"{"token":"{token}","expires_in":299.5,"issued_at":null}"#),
        (&[USUAL], r#"{"token":"{token}"}"#),
    ];
    for (challenge, answer) in cases {
        let registry = Registry::open().await.unwrap();
        let (_server, entry) = asking(&registry, challenge, answer).await;
        let entry = entry.with_account("ODD_", "user", "password");
        assert_published(&format!("{challenge:?} {answer}"), &registry, &entry, FIRST).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_tag_holds_is_replaced() {
    let digest = digest_of(b"x");
    let sha512 = format!("sha512:{}", "0".repeat(128));
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let entry = json!({"mediaType": list, "digest": digest, "size": 7});
    let mut without_os = entry.clone();
    without_os["platform"] = json!({"architecture": "arm64"});
    let mut with_null = entry.clone();
    with_null["annotations"] = json!(null);
    let odd = [
        String::new(),
        "<html>".to_owned(),
        "null".to_owned(),
        json!({"schemaVersion": 1, "name": "fedora", "fsLayers": [], "history": [{"v1Compatibility": "{}"}]})
            .to_string(),
        json!({"schemaVersion": 2, "manifests": null, "annotations": null}).to_string(),
        json!({"schemaVersion": 2, "manifests": [with_null], "annotations": {"a": null}}).to_string(),
        json!({"schemaVersion": 2, "manifests": [{"mediaType": list, "digest": sha512, "size": 7}]}).to_string(),
        json!({"schemaVersion": 2, "manifests": [without_os]}).to_string(),
        json!({"schemaVersion": 2, "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json",
            "digest": digest, "size": 7}, "layers": []})
        .to_string(),
        json!({"schemaVersion": 2, "config": {"digest": sha512, "size": 7}, "layers": []}).to_string(),
        json!({"padding": "x".repeat(5 << 20)}).to_string(),
    ];
    for (number, odd) in odd.into_iter().enumerate() {
        let registry = Registry::open().await.unwrap();
        let moved = Mutex::new(false);
        let what = format!("{number}: {}", odd.chars().take(100).collect::<String>());
        let instead = move |parts: &Parts| {
            let mut moved = moved.lock().unwrap();
            *moved |= is_to(parts, "PUT", "/manifests/43");
            let asked = is_to(parts, "GET", "/manifests/43") && !*moved;
            let headers = HeaderMap::from_iter([("content-type".parse().unwrap(), "text/odd".parse().unwrap())]);
            asked.then(|| (headers, odd.clone()).into_response())
        };
        let (_server, entry) = front(&registry, instead, |_, status| status).await;
        assert_published(&what, &registry, &entry, FIRST).await;
    }
}
