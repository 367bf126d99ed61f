//! The permissions that a registry's account needs: reading and writing its repositories, and nothing else.

use std::collections::BTreeSet;

use cloud_image_uploader::providers::contract::Publish;
use cloud_image_uploader_test_support::archive::{Row, xz};
use cloud_image_uploader_test_support::permissions::{Need, differences};
use cloud_image_uploader_test_support::registry::{Registry, Request};

use crate::world::*;

/// Which actions there are.
const SCOPE: &str = "https://distribution.github.io/distribution/spec/auth/scope/";

const TABLE: &[Need] = &[
    Need("GET manifests", &["pull"], SCOPE),
    Need("GET tags", &["pull"], SCOPE),
    Need("HEAD blobs", &["pull"], SCOPE),
    Need("HEAD manifests", &["pull"], SCOPE),
    Need("PATCH uploads", &["push"], SCOPE),
    Need("POST uploads", &["push"], SCOPE),
    Need("PUT manifests", &["push"], SCOPE),
    Need("PUT uploads", &["push"], SCOPE),
];

/// The method and the kind of thing, of a request about a repository.
fn kind(request: &Request) -> Option<String> {
    let rest = request.path.strip_prefix("/v2/team/fedora/")?;
    let kind = match rest.strip_prefix("blobs/uploads") {
        Some(_) => "uploads",
        None => rest.split('/').next()?,
    };
    Some(format!("{} {kind}", request.method))
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_and_push_are_enough() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    // Layers of docker archives are sent in pieces, since their length is unknown.
    let docker = Row::container("Container_Base", "aarch64", xz(&docker("arm64", "b").build()));
    for (id, rows) in [
        (FIRST, both("a")),
        (FIRST, both("a")),
        ("Fedora-43-20251024.0", vec![x86("b"), docker]),
    ] {
        let deliverable = deliverable(&section, folder.path(), id, rows).await;
        let publication = publish(&provider, &deliverable, &task()).await.unwrap();
        assert!(publication.failed.is_empty(), "{:?}", publication.failed);
        assert!(provider.check().await.iter().all(|finding| finding.result.is_ok()));
    }
    let calls: BTreeSet<_> = registry.requests().await.unwrap().iter().filter_map(kind).collect();
    let differences = differences(TABLE, calls.iter().map(String::as_str), ["pull", "push"]);
    assert_eq!(differences, Vec::<String>::new());
}
