//! Archives of all forms through registries of all kinds, read back by skopeo.

use std::time::Duration;

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::model::outcome::Origin;
use cloud_image_uploader::providers::contract::Publish;
use cloud_image_uploader_test_support::archive::{Packing, Row, xz};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;
use cloud_image_uploader_test_support::token_server::Lifetime;
use serde_json::{Value, json};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn oci_archives_keep_their_digests() {
    let registry = Registry::guarded().await.unwrap();
    let entry = Entry::of(&registry);
    let (section, provider) = provider(&[&entry]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, both("a")).await;

    let staged = provider.stage(&deliverable, &task()).await.unwrap();
    assert!(staged.failed.is_empty(), "{:?}", staged.failed);
    let skopeo = Skopeo::new(&registry).unwrap();
    assert!(
        skopeo.inspect_raw(&format!("{FULL}:43")).await.is_err(),
        "staging shows nothing"
    );
    let publication = provider.release(&deliverable, staged, &task()).await.unwrap();

    let [place] = &publication.places[..] else {
        panic!("{publication:?}")
    };
    assert_eq!((&place.location, place.origin), (&entry.url, Origin::Created));
    for tag in ["43", "latest"] {
        assert_eq!(skopeo.digest(&format!("{FULL}:{tag}")).await.unwrap(), place.id);
    }
    let index = skopeo.inspect(&format!("{FULL}:43")).await.unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let expected = [("arm64", oci("arm64", "a")), ("amd64", oci("amd64", "a"))];
    assert_eq!(entries.len(), expected.len());
    for ((arch, archive), entry) in expected.iter().zip(entries) {
        assert_eq!(entry["platform"], json!({"architecture": arch, "os": "linux"}));
        assert_eq!(entry["digest"], archive.layout().digest());
    }
    let key = |name: &str| format!("org.fedoraproject.cloud-image-uploader.{name}");
    let annotations = &index["annotations"];
    assert_eq!(annotations[key("compose-id")], FIRST);
    assert_eq!(annotations[key("end-of-life")], "2026-12-09");
    assert_eq!(annotations[key("owner")], "cloud-image-uploader");
    assert_eq!(annotations["org.opencontainers.image.created"], "2025-10-23T00:00:00Z");
    assert_eq!(
        entries[0]["annotations"][key("image-sha256")],
        deliverable.images[0].sha256
    );
    // skopeo verifies each blob.
    skopeo
        .copy_to_layout(&format!("{FULL}:43"), &folder.path().join("layout"))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_changes_nothing_and_reads_no_image() {
    let registry = Registry::open().await.unwrap();
    let entry = Entry::of(&registry);
    let (section, provider) = provider(&[&entry]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, both("a")).await;
    let first = publish(&provider, &deliverable, &task()).await.unwrap();
    let writes = registry.writes().await.unwrap().len();
    assert!(writes > 0);

    // An image that was read would be missed.
    std::fs::remove_dir_all(folder.path().join(FIRST)).unwrap();
    let second = publish(&provider, &deliverable, &task()).await.unwrap();
    assert_eq!(second.places[0].id, first.places[0].id);
    assert_eq!(second.places[0].origin, Origin::Found);
    assert_eq!(registry.writes().await.unwrap().len(), writes);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_archives_are_compressed_the_same_way_each_time() {
    let registries = [Registry::open().await.unwrap(), Registry::open().await.unwrap()];
    let folder = tempfile::tempdir().unwrap();
    let archive = docker("amd64", "a");
    let rows = || vec![Row::container("Container_Base", "x86_64", xz(&archive.build()))];
    let mut digests = Vec::new();
    for (number, registry) in registries.iter().enumerate() {
        let layout = folder.path().join(number.to_string());
        let (section, provider) = provider(&[&Entry::of(registry)]);
        let deliverable = deliverable(&section, folder.path(), FIRST, rows()).await;
        let publication = publish(&provider, &deliverable, &task()).await.unwrap();
        assert!(publication.failed.is_empty(), "{:?}", publication.failed);
        digests.push(publication.places[0].id.clone());
        let skopeo = Skopeo::new(registry).unwrap();
        let index = skopeo.inspect(&format!("{FULL}:43")).await.unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let manifest = skopeo.inspect(&format!("{FULL}@{digest}")).await.unwrap();
        assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
        skopeo.copy_to_layout(&format!("{FULL}:43"), &layout).await.unwrap();
        // Each layer unpacks to what the configuration says.
        let blobs = layout.join("blobs/sha256");
        let blob = |digest: &Value| std::fs::read(blobs.join(&digest.as_str().unwrap()[7..])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap();
        for (layer, diff_id) in manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .zip(config["rootfs"]["diff_ids"].as_array().unwrap())
        {
            let mut unpacked = Vec::new();
            let bytes = blob(&layer["digest"]);
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut unpacked).unwrap();
            assert_eq!(
                *diff_id,
                cloud_image_uploader_test_support::archive::digest_of(&unpacked)
            );
        }
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_and_form_of_an_archive_is_read() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let archives = [
        ("index first", oci("amd64", "a").index_first().build()),
        ("nested index", oci("amd64", "b").nested().build()),
        ("pax names", oci("amd64", "c").pax_names().build()),
        ("zstd layers", oci("amd64", "d").packing(Packing::Zstd).build()),
        ("plain layers", oci("amd64", "e").packing(Packing::Plain).build()),
        (
            "two platforms",
            oci("amd64", "f")
                .index_platform("amd64")
                .also(oci("arm64", "f").index_platform("arm64"))
                .build(),
        ),
        ("docker, manifest first", docker("amd64", "g").manifest_first().build()),
        ("docker, classic", docker("amd64", "h").classic().build()),
        ("docker, hybrid", docker("amd64", "i").hybrid().build()),
    ];
    for (number, (what, archive)) in archives.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let rows = vec![Row::container("Container_Base", "x86_64", archive)];
        let id = format!("Fedora-43-20251023.{number}");
        let deliverable = deliverable(&section, folder.path(), &id, rows).await;
        let publication = publish(&provider, &deliverable, &task())
            .await
            .unwrap_or_else(|failure| panic!("{what}: {failure}"));
        assert_eq!(publication.places.len(), 1, "{what}: {publication:?}");
        let skopeo = Skopeo::new(&registry).unwrap();
        skopeo
            .copy_to_layout(&format!("{FULL}:latest"), &folder.path().join("layout"))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_when_they_end_early() {
    let lifetime = Lifetime {
        real: Duration::from_secs(1),
        announced: Duration::from_secs(300),
    };
    let registry = Registry::with_tokens(lifetime).await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let deliverable = deliverable(&section, folder.path(), FIRST, both("a")).await;
    assert!(provider.check().await.iter().all(|finding| finding.result.is_ok()));
    let staged = provider.stage(&deliverable, &task()).await.unwrap();
    assert!(staged.failed.is_empty(), "{:?}", staged.failed);
    let before = registry.tokens.as_ref().unwrap().issued();
    // By now the token is refused, though it claims to live.
    tokio::time::sleep(lifetime.real + Duration::from_secs(1)).await;
    let publication = provider.release(&deliverable, staged, &task()).await.unwrap();
    assert_eq!(publication.places.len(), 1, "{publication:?}");
    assert!(registry.tokens.as_ref().unwrap().issued() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_refused_with_advice() {
    for registry in [
        Registry::guarded().await.unwrap(),
        Registry::with_tokens(Lifetime::default()).await.unwrap(),
    ] {
        let (section, provider) = provider(&[&Entry::of(&registry).with_password("not-the-password")]);
        let folder = tempfile::tempdir().unwrap();
        let deliverable = deliverable(&section, folder.path(), FIRST, vec![x86("a")]).await;
        let publication = publish(&provider, &deliverable, &task()).await.unwrap();
        let failure = &publication.failed[0].failure;
        let text = failure.to_string();
        assert_eq!(failure.class(), Class::Everything, "{text}");
        assert!(text.contains("401") && text.contains("_PASSWORD"), "{text}");
        assert!(!text.contains("not-the-password"), "{text}");
        let finding = provider.check().await.remove(0).result.unwrap_err();
        assert!(finding.contains("_PASSWORD"), "{finding}");
    }
}
