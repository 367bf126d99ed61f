//! Registries that fail, once or for good.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use cloud_image_uploader::model::compose::Image;
use cloud_image_uploader::model::outcome::Origin;
use cloud_image_uploader::model::select::Deliverable;
use cloud_image_uploader::providers::contract::{Publish, Task};
use cloud_image_uploader_test_support::archive::{OciArchive, Row, layer, xz};
use cloud_image_uploader_test_support::files::{Fault as FilesFault, Files};
use cloud_image_uploader_test_support::http_server::HttpServer;
use cloud_image_uploader_test_support::process::free_port;
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::*;

/// One answer that a request gets instead of the registry's.
struct Fault {
    method: &'static str,
    path: &'static str,
    status: u16,
    body: &'static str,
    /// Whether the registry gets the request all the same, and only its answer is replaced.
    after: bool,
}

impl Fault {
    fn new(method: &'static str, path: &'static str, status: u16) -> Self {
        Self {
            method,
            path,
            status,
            body: "",
            after: false,
        }
    }
}

/// Stands before a registry. Each fault happens once.
struct Front {
    http: reqwest::Client,
    registry: String,
    faults: Mutex<Vec<Fault>>,
}

async fn front(registry: &Registry, faults: Vec<Fault>) -> (HttpServer, Arc<Front>) {
    let front = Arc::new(Front {
        http: reqwest::Client::new(),
        registry: registry.url(),
        faults: Mutex::new(faults),
    });
    let router = Router::new().fallback(forward).with_state(front.clone());
    (HttpServer::start(router).await.unwrap(), front)
}

async fn forward(State(front): State<Arc<Front>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let fault = {
        let mut faults = front.faults.lock().unwrap();
        let path = parts.uri.path();
        let found = faults
            .iter()
            .position(|fault| parts.method == fault.method && path.contains(fault.path));
        found.map(|position| faults.remove(position))
    };
    let bytes = to_bytes(body, 64 << 20).await.unwrap();
    if let Some(fault) = &fault
        && !fault.after
    {
        return (StatusCode::from_u16(fault.status).unwrap(), fault.body).into_response();
    }
    let url = format!("{}{}", front.registry, parts.uri);
    // The Host header goes through, so that the registry's addresses lead back here.
    let request = front.http.request(parts.method, url).headers(parts.headers).body(bytes);
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().await.unwrap();
    if let Some(fault) = fault {
        return (StatusCode::from_u16(fault.status).unwrap(), fault.body).into_response();
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers
        .into_iter()
        .filter_map(|(name, value)| Some((name?, value)))
        .collect::<HeaderMap>();
    response
}

fn host(server: &HttpServer) -> String {
    server.url().trim_start_matches("http://").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_of_small_calls_are_not_seen() {
    let registry = Registry::open().await.unwrap();
    let quay = r#"{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid"}]}"#;
    let lost = |method, path, status| Fault {
        after: true,
        ..Fault::new(method, path, status)
    };
    let faults = vec![
        Fault::new("GET", "/manifests/43", 503),
        Fault::new("HEAD", "/blobs/sha256", 429),
        Fault::new("POST", "/blobs/uploads", 502),
        Fault {
            body: "Healthcheck requested",
            ..Fault::new("POST", "/blobs/uploads", 200)
        },
        Fault {
            body: quay,
            ..Fault::new("PUT", "/manifests/sha256", 400)
        },
        // The registry did it, and its answer was lost.
        lost("PUT", "/manifests/43", 504),
    ];
    let (server, left) = front(&registry, faults).await;
    let (section, provider) = provider(&[&Entry::at(&host(&server))]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, both("a")).await;
    let publication = publish(&provider, &deliverable, &task()).await.unwrap();
    assert!(publication.failed.is_empty(), "{:?}", publication.failed);
    assert!(left.faults.lock().unwrap().is_empty(), "not all faults happened");
    let digest = Skopeo::new(&registry)
        .unwrap()
        .digest(&format!("{FULL}:latest"))
        .await
        .unwrap();
    assert_eq!(digest, publication.places[0].id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_answer_is_lost_is_found_by_looking() {
    let registry = Registry::open().await.unwrap();
    let lost = Fault {
        after: true,
        ..Fault::new("PUT", "/blobs/uploads", 500)
    };
    let (server, _) = front(&registry, vec![lost]).await;
    let (section, provider) = provider(&[&Entry::at(&host(&server))]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
    let publication = publish(&provider, &deliverable, &task()).await.unwrap();
    assert!(publication.failed.is_empty(), "{:?}", publication.failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_transient_and_the_next_round_pushes_the_rest() {
    let docker = || {
        vec![Row::container(
            "Container_Base",
            "x86_64",
            xz(&docker("amd64", "a").build()),
        )]
    };
    for (method, rows) in [("PUT", vec![x86("a")]), ("PATCH", docker())] {
        let registry = Registry::open().await.unwrap();
        let (server, _) = front(&registry, vec![Fault::new(method, "/blobs/uploads", 500)]).await;
        let (section, provider) = provider(&[&Entry::at(&host(&server))]);
        let folder = tempfile::tempdir().unwrap();
        let deliverable = deliverable(&section, folder.path(), FIRST, rows).await;
        let staged = provider.stage(&deliverable, &task()).await.unwrap();
        assert!(staged.places.is_empty());
        assert!(staged.failed[0].failure.class().is_transient(), "{:?}", staged.failed);
        let publication = publish(&provider, &deliverable, &task()).await.unwrap();
        assert_eq!(publication.places.len(), 1, "{publication:?}");
    }
}

/// How often each of these images was read.
fn reads(files: &Files, deliverable: &Deliverable) -> Vec<usize> {
    let path = |image: &Image| format!("/{}/{}", deliverable.compose, image.path);
    let images = deliverable.images.iter();
    images.map(|image| files.requests_for(&path(image)).len()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_is_not_read_again_after_a_failure_elsewhere() {
    for (what, fault, again) in [
        ("a tag", Fault::new("PUT", "/manifests/43", 403), 0),
        ("a manifest", Fault::new("PUT", "/manifests/sha256", 403), 1),
        ("a layer", Fault::new("PATCH", "/blobs/uploads", 500), 1),
    ] {
        let registry = Registry::open().await.unwrap();
        let (server, left) = front(&registry, vec![fault]).await;
        let (section, provider) = provider(&[&Entry::at(&host(&server))]);
        let folder = tempfile::tempdir().unwrap();
        let files = Files::start(folder.path()).await.unwrap();
        let rows = [("x86_64", "amd64"), ("aarch64", "arm64")];
        let rows = rows.map(|(arch, ours)| Row::container("Container_Base", arch, docker(ours, "a").build()));
        let deliverable = served(&section, &files, folder.path(), FIRST, rows.to_vec()).await;
        let refused = publish(&provider, &deliverable, &task()).await.unwrap();
        assert!(refused.places.is_empty(), "{what}: {refused:?}");
        assert!(left.faults.lock().unwrap().is_empty(), "{what}");
        let first = reads(&files, &deliverable);
        assert!(first.iter().all(|count| *count > 0), "{what}: {first:?}");

        let publication = publish(&provider, &deliverable, &task()).await.unwrap();
        assert_eq!(publication.places.len(), 1, "{what}: {publication:?}");
        let second = reads(&files, &deliverable);
        let read = first.iter().zip(&second).filter(|(first, second)| first < second);
        assert_eq!(read.count(), again, "{what}: {first:?}, then {second:?}");
        // Read back from what the registry has.
        let skopeo = Skopeo::new(&registry).unwrap();
        let layout = folder.path().join("layout");
        skopeo.copy_to_layout(&format!("{FULL}:43"), &layout).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_has_lost_is_read_again() {
    let registry = Registry::open().await.unwrap();
    let (server, _) = front(&registry, vec![Fault::new("PUT", "/manifests/43", 403)]).await;
    let (section, provider) = provider(&[&Entry::at(&host(&server))]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, both("a")).await;
    let refused = publish(&provider, &deliverable, &task()).await.unwrap();
    assert!(refused.places.is_empty(), "{refused:?}");
    let manifests = format!("docker/registry/v2/repositories/{FULL}/_manifests/revisions");
    std::fs::remove_dir_all(registry.data().join(manifests)).unwrap();
    let publication = publish(&provider, &deliverable, &task()).await.unwrap();
    assert_eq!(publication.places.len(), 1, "{publication:?}");
    let skopeo = Skopeo::new(&registry).unwrap();
    let layout = folder.path().join("layout");
    skopeo.copy_to_layout(&format!("{FULL}:43"), &layout).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: an image that cannot be read is tried for that long"]
async fn an_image_that_cannot_be_read_now_does_not_cost_the_others_another_time() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let files = Files::start(folder.path()).await.unwrap();
    let deliverable = served(&section, &files, folder.path(), FIRST, both("a")).await;
    let busy = FilesFault::Status {
        code: 503,
        retry_after: None,
    };
    files.fault(&format!("/{FIRST}/{}", deliverable.images[0].path), busy, 1000);
    let failure = provider.stage(&deliverable, &task()).await.unwrap_err();
    assert!(failure.class().is_transient(), "{failure}");
    let first = reads(&files, &deliverable);
    files.mend();
    let publication = publish(&provider, &deliverable, &task()).await.unwrap();
    assert_eq!(publication.places.len(), 1, "{publication:?}");
    let second = reads(&files, &deliverable);
    assert!(
        first[0] < second[0] && first[1] == second[1],
        "{first:?}, then {second:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_before_a_stream_fails_only_for_now() {
    let registry = Registry::open().await.unwrap();
    let (server, _) = front(&registry, vec![Fault::new("PUT", "/blobs/uploads", 401)]).await;
    let (section, provider) = provider(&[&Entry::at(&host(&server))]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
    let staged = provider.stage(&deliverable, &task()).await.unwrap();
    assert!(staged.failed[0].failure.class().is_transient(), "{:?}", staged.failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_registry_goes_down_in_mid_push_and_the_other_goes_on() {
    let sound = Registry::open().await.unwrap();
    let failing = Registry::open().await.unwrap();
    let refused = r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
    let denied = Fault {
        body: refused,
        ..Fault::new("PUT", "/blobs/uploads", 403)
    };
    let (server, _) = front(&failing, vec![denied]).await;
    let entries = [Entry::of(&sound), Entry::at(&host(&server))];
    let (section, provider) = provider(&[&entries[0], &entries[1]]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
    let publication = publish(&provider, &deliverable, &task()).await.unwrap();
    assert_eq!(publication.places.len(), 1);
    assert_eq!(publication.places[0].location, entries[0].url);
    assert_eq!(publication.failed[0].location, entries[1].url);
    let text = publication.failed[0].failure.to_string();
    assert!(
        text.contains("DENIED: requested access") && text.contains(FULL),
        "{text}"
    );

    // The next round repairs the one and finds the other.
    let publication = publish(&provider, &deliverable, &task()).await.unwrap();
    let origins: Vec<_> = publication.places.iter().map(|place| place.origin).collect();
    assert_eq!(origins, [Origin::Found, Origin::Created]);
    assert_eq!(publication.places[0].id, publication.places[1].id);
}

#[tokio::test(flavor = "multi_thread")]
async fn locations_that_are_not_asked_for_are_only_looked_at() {
    let registries = [Registry::open().await.unwrap(), Registry::open().await.unwrap()];
    let entries = registries.each_ref().map(Entry::of);
    let (section, provider) = provider(&[&entries[0], &entries[1]]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
    let only = |number: usize| Task {
        locations: Some(BTreeSet::from([entries[number].url.clone()])),
        ..task()
    };
    let publication = publish(&provider, &deliverable, &only(1)).await.unwrap();
    assert_eq!(publication.places.len(), 1);
    assert_eq!(registries[0].writes().await.unwrap(), []);
    let writes = registries[1].writes().await.unwrap().len();
    let publication = publish(&provider, &deliverable, &only(0)).await.unwrap();
    let origins: Vec<_> = publication.places.iter().map(|place| place.origin).collect();
    assert_eq!(origins, [Origin::Created, Origin::Found], "an announcement names both");
    assert_eq!(registries[1].writes().await.unwrap().len(), writes);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: a registry that is not there is tried for that long"]
async fn a_registry_that_is_not_there_fails_alone() {
    let sound = Registry::open().await.unwrap();
    let absent = Entry::at(&format!("localhost:{}", free_port().unwrap()));
    let (section, provider) = provider(&[&absent, &Entry::of(&sound)]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
    let publication = publish(&provider, &deliverable, &task()).await.unwrap();
    assert_eq!(publication.places.len(), 1);
    assert_eq!(publication.failed[0].location, absent.url);
    assert!(publication.failed[0].failure.class().is_transient());
}

/// A registry that lets an upload begin and then takes nothing, and has this answer to it, or none.
async fn deaf(refusal: Option<&'static [u8]>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let answer: &[u8] = match head[0] {
                        b'P' if head.starts_with(b"PUT") => match refusal {
                            Some(refusal) => refusal,
                            None => std::future::pending().await,
                        },
                        b'P' => b"HTTP/1.1 202 Accepted\r\nLocation: /upload?x=y\r\nContent-Length: 0\r\n\r\n",
                        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                    };
                    stream.write_all(answer).await.unwrap();
                    head.clear();
                }
            });
        }
    });
    address.to_string()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute: a dead connection is waited for that long"]
async fn an_upload_that_does_not_move_ends() {
    let entry = Entry::at(&deaf(None).await);
    let (section, provider) = provider(&[&entry]);
    let folder = tempfile::tempdir().unwrap();
    // More than the sockets' buffers take.
    let archive = OciArchive::new("amd64").layer(layer("large", 64 << 20)).build();
    let rows = vec![Row::container("Container_Base", "x86_64", archive)];
    let deliverable = deliverable(&section, folder.path(), FIRST, rows).await;
    let started = std::time::Instant::now();
    let staged = provider.stage(&deliverable, &task()).await.unwrap();
    let failure = &staged.failed[0].failure;
    assert!(failure.class().is_transient(), "{failure}");
    assert!(failure.to_string().contains("no progress for 30 s"), "{failure}");
    assert!(started.elapsed().as_secs() < 45, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute: the reasons of a refusal are waited for that long"]
async fn a_refusal_whose_reasons_never_come_is_one_all_the_same() {
    let refusal = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 200\r\n\r\n{\"errors\":";
    let entry = Entry::at(&deaf(Some(refusal)).await);
    let (section, provider) = provider(&[&entry]);
    let folder = tempfile::tempdir().unwrap();
    // A layer that is sent as it comes: one try.
    let deliverable = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
    let staged = tokio::time::timeout(LIMIT, provider.stage(&deliverable, &task())).await;
    let failure = &staged.expect("the upload hangs").unwrap().failed[0].failure;
    assert!(failure.class().is_transient(), "{failure}");
    assert!(failure.to_string().contains("502"), "{failure}");
}
