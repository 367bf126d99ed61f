//! Documents of archives changed by structure: valid JSON with a hostile value, or a key less, somewhere in it.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use cloud_image_uploader::images::oci::{Blob, Digest, Manifest, Store, Stores, read};
use cloud_image_uploader_test_support::archive::{DockerArchive, Entry, OciArchive, digest_of, layer, sha256, tar};
use serde_json::{Value, json};

use crate::archive::Scales;
use crate::{Random, attempts};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The documents of an image, changed in places; what references a changed one has its digest and size.
fn oci(random: &mut Random, image: &OciArchive) -> Vec<u8> {
    let parts = image.layout();
    let mut blobs: HashMap<String, Vec<u8>> = HashMap::new();
    let mut store = |bytes: &[u8]| {
        blobs.insert(format!("blobs/sha256/{}", sha256(bytes)), bytes.to_vec());
        (digest_of(bytes), bytes.len())
    };
    for layer in &parts.layers {
        store(layer);
    }
    let config = changed(random, &serde_json::from_slice(&parts.config).unwrap());
    let mut manifest: Value = serde_json::from_slice(&parts.manifest).unwrap();
    let (digest, size) = store(&config);
    manifest["config"]["digest"] = json!(digest);
    manifest["config"]["size"] = json!(size);
    let manifest = changed(random, &manifest);
    let (digest, size) = store(&manifest);
    let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": size, "annotations": {"a": "b"},
        "platform": {"architecture": "amd64", "os": "linux"}});
    let mut index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    if random.below(2) == 0 {
        let inner = changed(random, &index);
        let (digest, size) = store(&inner);
        index["manifests"] = json!([{"mediaType": INDEX, "digest": digest, "size": size}]);
    }
    let index = changed(random, &index);
    let mut entries: Vec<_> = blobs
        .into_iter()
        .map(|(name, bytes)| Entry::file(name, bytes))
        .collect();
    entries.push(Entry::file("index.json", index));
    tar(&entries)
}

fn docker(random: &mut Random, image: &DockerArchive) -> Vec<u8> {
    let mut entries = image.entries();
    for entry in &mut entries {
        if entry.name.ends_with(".json")
            && let cloud_image_uploader_test_support::archive::Content::File(bytes) = &mut entry.content
        {
            *bytes = changed(random, &serde_json::from_slice(bytes).unwrap());
        }
    }
    tar(&entries)
}

fn changed(random: &mut Random, document: &Value) -> Vec<u8> {
    let mut document = document.clone();
    if random.below(3) == 0 {
        random.spoil_value(&mut document);
    }
    document.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_of_archives() {
    let images = OciArchive::new("amd64")
        .layer(layer("one", 3000))
        .layer(layer("two", 9000));
    let saved = DockerArchive::new("amd64")
        .layer(layer("one", 3000))
        .layer(layer("two", 9000));
    let (accepted, _) = attempts("documents of archives", async |random| {
        let archive = match random.below(3) {
            0 => docker(random, &saved),
            1 => docker(random, &saved.clone().hybrid()),
            _ => oci(random, &images),
        };
        let scales = Arc::new(Scales::default());
        let store: Arc<dyn Store> = scales.clone();
        let mut stores = Stores::new([("scales".to_owned(), store)]);
        let read = read("image", "x86_64", Cursor::new(archive), &mut stores);
        let image = match tokio::time::timeout(Duration::from_secs(20), read).await.unwrap() {
            Ok(image) => image.unwrap(),
            Err(_) => return false,
        };
        assert_eq!(Digest::of(&image.manifest), image.digest);
        assert_eq!(
            (image.platform.os.as_str(), image.platform.architecture.as_str()),
            ("linux", "amd64")
        );
        let manifest: Manifest = serde_json::from_slice(&image.manifest).unwrap();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            assert!(scales.has(&blob.blob()).await.unwrap(), "{blob:?} was not stored");
        }
        let sizes: Vec<Blob> = manifest.layers.iter().map(|layer| layer.blob()).collect();
        assert!(sizes.len() <= 2, "{sizes:?}");
        true
    })
    .await;
    assert!(accepted > 0, "not even sound documents were accepted");
}
