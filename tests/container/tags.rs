//! Which tags are moved, and what becomes of former architectures.

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::model::outcome::Origin;
use cloud_image_uploader::providers::contract::{Publish, Task};
use cloud_image_uploader_test_support::archive::{OciArchive, xz};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;
use serde_json::Value;

use crate::world::*;

fn architectures(index: &Value) -> Vec<&str> {
    let entries = index["manifests"].as_array().unwrap();
    entries
        .iter()
        .map(|entry| entry["platform"]["architecture"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_goes_back_only_on_demand() {
    let registry = Registry::open().await.unwrap();
    let entry = Entry::of(&registry);
    let (section, provider) = provider(&[&entry]);
    let folder = tempfile::tempdir().unwrap();
    let newer_id = "Fedora-Container-43-20251101.0";
    let newer = deliverable(&section, folder.path(), newer_id, vec![x86("new")]).await;
    let older = deliverable(&section, folder.path(), FIRST, vec![x86("old")]).await;
    let first = publish(&provider, &newer, &task()).await.unwrap();
    let writes = registry.writes().await.unwrap().len();

    let refused = publish(&provider, &older, &task()).await.unwrap();
    assert!(refused.places.is_empty());
    assert_eq!(
        (
            refused.superseded[0].location.as_str(),
            refused.superseded[0].by.as_str()
        ),
        (entry.url.as_str(), newer_id)
    );
    assert_eq!(registry.writes().await.unwrap().len(), writes);

    let back = Task {
        allow_older: true,
        ..task()
    };
    let moved = publish(&provider, &older, &back).await.unwrap();
    let skopeo = Skopeo::new(&registry).unwrap();
    assert_ne!(moved.places[0].id, first.places[0].id);
    assert_eq!(
        skopeo.digest(&format!("{FULL}:latest")).await.unwrap(),
        moved.places[0].id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_compose_that_comes_in_between_stays() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let older = deliverable(&section, folder.path(), FIRST, vec![x86("old")]).await;
    let newer = deliverable(&section, folder.path(), "Fedora-43-20251024.0", vec![x86("new")]).await;
    let staged = provider.stage(&older, &task()).await.unwrap();
    let published = publish(&provider, &newer, &task()).await.unwrap();
    let late = provider.release(&older, staged, &task()).await.unwrap();
    assert!(late.places.is_empty());
    assert_eq!(late.superseded[0].by, "Fedora-43-20251024.0");
    let skopeo = Skopeo::new(&registry).unwrap();
    assert_eq!(
        skopeo.digest(&format!("{FULL}:43")).await.unwrap(),
        published.places[0].id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_architecture_is_kept_for_a_while() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let skopeo = Skopeo::new(&registry).unwrap();
    let compose = async |id: &str, seed: &str, rows| {
        let deliverable = deliverable(&section, folder.path(), id, rows).await;
        let publication = publish(&provider, &deliverable, &task()).await.unwrap();
        assert_eq!(publication.places.len(), 1, "{seed}: {publication:?}");
        skopeo.inspect(&format!("{FULL}:43")).await.unwrap()
    };
    let first = compose("Fedora-43-20251001.0", "a", both("a")).await;
    let second = compose("Fedora-43-20251008.0", "b", vec![x86("b")]).await;
    assert_eq!(architectures(&second), ["arm64", "amd64"]);
    assert_eq!(
        second["manifests"][0], first["manifests"][0],
        "the kept entry keeps its annotations"
    );
    // Fourteen days after the first compose it may stay; one day later it goes.
    let third = compose("Fedora-43-20251015.0", "c", vec![x86("c")]).await;
    assert_eq!(architectures(&third), ["arm64", "amd64"]);
    let fourth = compose("Fedora-43-20251016.0", "d", vec![x86("d")]).await;
    assert_eq!(architectures(&fourth), ["amd64"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kept_architecture_is_the_one_that_the_tag_holds_at_release() {
    // In work at once: the newer compose, which lacks an architecture, looked before the older one was released.
    for (what, before) in [
        ("an old one", Some("Fedora-43-20251001.0")),
        ("a younger one", Some("Fedora-43-20251008.0")),
        ("none", None),
    ] {
        let registry = Registry::open().await.unwrap();
        let (section, provider) = provider(&[&Entry::of(&registry)]);
        let folder = tempfile::tempdir().unwrap();
        let skopeo = Skopeo::new(&registry).unwrap();
        if let Some(id) = before {
            let before = deliverable(&section, folder.path(), id, both("a")).await;
            publish(&provider, &before, &task()).await.unwrap();
        }
        let older = deliverable(&section, folder.path(), "Fedora-43-20251015.0", both("b")).await;
        let newer = deliverable(&section, folder.path(), "Fedora-43-20251016.0", vec![x86("c")]).await;
        let staged = provider.stage(&newer, &task()).await.unwrap();
        publish(&provider, &older, &task()).await.unwrap();
        let older = skopeo.inspect(&format!("{FULL}:43")).await.unwrap();

        let writes = registry.writes().await.unwrap().len();
        let stale = provider.release(&newer, staged, &task()).await.unwrap();
        assert!(stale.places.is_empty() && stale.failed.is_empty(), "{what}: {stale:?}");
        assert_eq!(stale.stale.len(), 1, "{what}");
        assert_eq!(
            registry.writes().await.unwrap().len(),
            writes,
            "{what}: a stale release writes nothing"
        );

        let staged = provider.stage(&newer, &task()).await.unwrap();
        let digest = staged.places[0].id.clone();
        let publication = provider.release(&newer, staged, &task()).await.unwrap();
        assert_eq!(publication.places[0].id, digest, "{what}: what was staged is released");
        let index = skopeo.inspect(&format!("{FULL}:43")).await.unwrap();
        assert_eq!(architectures(&index), ["arm64", "amd64"], "{what}");
        assert_eq!(index["manifests"][0], older["manifests"][0], "{what}");
        assert_ne!(index["manifests"][1], older["manifests"][1], "{what}");
        for tag in ["43", "latest"] {
            let digest = skopeo.digest(&format!("{FULL}:{tag}")).await.unwrap();
            assert_eq!(digest, publication.places[0].id, "{what}");
        }
        let writes = registry.writes().await.unwrap().len();
        let again = publish(&provider, &newer, &task()).await.unwrap();
        assert_eq!(again.places[0].id, publication.places[0].id, "{what}");
        assert_eq!(registry.writes().await.unwrap().len(), writes, "{what}");
    }
}

/// Puts images without a mark under a tag. Their configurations say 24 October 2025.
async fn put_unmarked(archive: &OciArchive, registry: &Registry, tag: &str) {
    let file = registry.folder().join("unmarked.oci");
    archive.write(&file).unwrap();
    let source = format!("oci-archive:{}", file.display());
    let skopeo = Skopeo::new(registry).unwrap();
    skopeo.copy_from(&source, &format!("{FULL}:{tag}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_without_a_mark_does_not_go_back_either() {
    let two = oci("amd64", "x")
        .index_platform("amd64")
        .also(oci("arm64", "x").index_platform("arm64"))
        .nested();
    for (what, unmarked) in [("an index", two), ("one image", oci("amd64", "x"))] {
        let registry = Registry::open().await.unwrap();
        let (section, provider) = provider(&[&Entry::of(&registry)]);
        let folder = tempfile::tempdir().unwrap();
        let skopeo = Skopeo::new(&registry).unwrap();
        put_unmarked(&unmarked, &registry, "43").await;
        let held = skopeo.digest(&format!("{FULL}:43")).await.unwrap();
        let writes = registry.writes().await.unwrap().len();
        let older = deliverable(&section, folder.path(), "Fedora-43-20251022.0", vec![x86("a")]).await;
        let refused = publish(&provider, &older, &task()).await.unwrap();
        assert!(refused.places.is_empty(), "{what}: {refused:?}");
        assert_eq!(refused.superseded[0].by, "unmarked images of 2025-10-24", "{what}");
        assert_eq!(registry.writes().await.unwrap().len(), writes, "{what}");

        let back = Task {
            allow_older: true,
            ..task()
        };
        publish(&provider, &older, &back).await.unwrap();
        assert_ne!(skopeo.digest(&format!("{FULL}:43")).await.unwrap(), held, "{what}");

        // As a compose of the day before is built until the next day, this may be its own.
        put_unmarked(&unmarked, &registry, "43").await;
        let same = deliverable(&section, folder.path(), FIRST, vec![x86("b")]).await;
        let taken = publish(&provider, &same, &task()).await.unwrap();
        assert_eq!(taken.places.len(), 1, "{what}: {taken:?}");
        let digest = skopeo.digest(&format!("{FULL}:43")).await.unwrap();
        assert_eq!(digest, taken.places[0].id, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_tag_without_a_mark_that_comes_in_between_stays() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let older = deliverable(&section, folder.path(), "Fedora-43-20251022.0", vec![x86("a")]).await;
    let staged = provider.stage(&older, &task()).await.unwrap();
    put_unmarked(&oci("amd64", "x"), &registry, "latest").await;
    let late = provider.release(&older, staged, &task()).await.unwrap();
    assert!(late.places.is_empty(), "{late:?}");
    assert_eq!(late.superseded[0].by, "unmarked images of 2025-10-24");
    assert_eq!(Skopeo::new(&registry).unwrap().tags(FULL).await.unwrap(), ["latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_services_tags_are_taken_over() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let skopeo = Skopeo::new(&registry).unwrap();
    // Of two architectures.
    let former = oci("amd64", "x")
        .index_platform("amd64")
        .also(oci("arm64", "x").index_platform("arm64"));
    put_unmarked(&former.nested(), &registry, "43").await;
    assert_eq!(
        architectures(&skopeo.inspect(&format!("{FULL}:43")).await.unwrap()).len(),
        2
    );

    let soon = deliverable(&section, folder.path(), "Fedora-43-20251030.0", vec![x86("a")]).await;
    publish(&provider, &soon, &task()).await.unwrap();
    assert_eq!(
        architectures(&skopeo.inspect(&format!("{FULL}:43")).await.unwrap()),
        ["arm64", "amd64"]
    );
    let later = deliverable(&section, folder.path(), "Fedora-43-20251130.0", vec![x86("b")]).await;
    publish(&provider, &later, &task()).await.unwrap();
    assert_eq!(
        architectures(&skopeo.inspect(&format!("{FULL}:43")).await.unwrap()),
        ["amd64"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_compose_with_other_content_is_an_error() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let first = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
    publish(&provider, &first, &task()).await.unwrap();
    let other = deliverable(&section, folder.path(), FIRST, vec![x86("b")]).await;
    let publication = publish(&provider, &other, &task()).await.unwrap();
    let failure = &publication.failed[0].failure;
    let text = failure.to_string();
    assert_eq!(failure.class(), Class::Deliverable);
    assert!(
        text.contains(&first.images[0].sha256) && text.contains(&other.images[0].sha256),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_architecture_that_is_there_is_not_read_again() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let first = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
    publish(&provider, &first, &task()).await.unwrap();
    let whole = deliverable(&section, folder.path(), FIRST, both("a")).await;
    // Had it to be read, it would be missed.
    std::fs::remove_file(folder.path().join(FIRST).join(x86("a").path())).unwrap();
    let publication = publish(&provider, &whole, &task()).await.unwrap();
    assert_eq!(publication.places[0].origin, Origin::Created);
    let index = Skopeo::new(&registry)
        .unwrap()
        .inspect(&format!("{FULL}:latest"))
        .await
        .unwrap();
    assert_eq!(architectures(&index), ["arm64", "amd64"]);
    // The sample is what the world makes of it, compressed or not.
    assert_eq!(whole.images[1].size, xz(&oci("amd64", "a").build()).len() as u64);
}
