//! Archives as the tools of others write them, into a registry and into a folder, compared with what skopeo reads in them.

use std::path::{Path, PathBuf};

use cloud_image_uploader::config::{self, Config};
use cloud_image_uploader::providers::contract::Publish;
use cloud_image_uploader::providers::local::LocalProvider;
use cloud_image_uploader_test_support::archive::{
    DockerArchive, Entry as TarEntry, OciArchive, Packing, Row, digest_of, gzip, layer, sha256, tar, zstd,
};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;
use serde_json::{Value, json};

use crate::world::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An archive and what skopeo can do with it.
struct Case {
    name: &'static str,
    archive: Vec<u8>,
    /// The name of its form for skopeo, where skopeo reads it.
    transport: Option<&'static str>,
}

fn stored(bytes: &[u8]) -> TarEntry {
    TarEntry::file(format!("blobs/sha256/{}", sha256(bytes)), bytes)
}

fn entry(kind: &str, bytes: &[u8], more: Value) -> Value {
    let mut entry = json!({"mediaType": kind, "digest": digest_of(bytes), "size": bytes.len()});
    let more = more.as_object().cloned().unwrap_or_default();
    entry.as_object_mut().unwrap().extend(more);
    entry
}

fn on(os: &str, architecture: &str) -> Value {
    json!({"platform": {"os": os, "architecture": architecture}})
}

/// A layer that waits in memory, and one that does not.
fn layers(seed: &str) -> Vec<Vec<u8>> {
    vec![
        layer(&format!("small-{seed}"), 10_000),
        layer(&format!("large-{seed}"), 5 << 20),
    ]
}

fn amd64(seed: &str) -> OciArchive {
    layers(seed)
        .into_iter()
        .fold(OciArchive::new("amd64"), OciArchive::layer)
}

/// An archive of these blobs, whose index is this.
fn layout(blobs: Vec<TarEntry>, index: &Value) -> Vec<u8> {
    let version = TarEntry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let index = TarEntry::file("index.json", index.to_string());
    tar(&[blobs, vec![index, version]].concat())
}

fn blobs_of(archive: &OciArchive) -> Vec<TarEntry> {
    let parts = archive.layout();
    let mut blobs = vec![stored(&parts.manifest), stored(&parts.config)];
    blobs.extend(parts.layers.iter().map(|layer| stored(layer)));
    blobs
}

/// OCI archives that hold one image for amd64, beside other things.
fn oci_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name, seed: &str, transport: Option<&'static str>, others: Vec<TarEntry>, index: Value| {
        let blobs = [blobs_of(&amd64(seed)), others].concat();
        cases.push(Case {
            name,
            archive: layout(blobs, &index),
            transport,
        });
    };
    let image = |seed: &str, more: Value| entry(MANIFEST, &amd64(seed).layout().manifest, more);
    let skopeo = Some("oci-archive");

    add(
        "null everywhere",
        "null",
        skopeo,
        vec![],
        json!({"schemaVersion": 2, "annotations": null, "manifests":
            [image("null", json!({"annotations": null, "platform": null, "urls": null}))]}),
    );
    add(
        "one image under two tags",
        "tags",
        None,
        vec![],
        json!({"schemaVersion": 2, "manifests": [
            image("tags", json!({"annotations": {"org.opencontainers.image.ref.name": "43"}})),
            image("tags", on("linux", "amd64")),
        ]}),
    );
    let other = OciArchive::new("arm64").layer(layer("arm", 5000));
    let windows = OciArchive::new("amd64").layer(layer("windows", 5000));
    let inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        entry(MANIFEST, &windows.layout().manifest, on("windows", "amd64")),
        entry(MANIFEST, &other.layout().manifest, on("linux", "arm64")),
        image("inner", on("linux", "amd64")),
    ]})
    .to_string();
    let inner = inner.as_bytes();
    add(
        "Windows beside Linux, in an index within an index",
        "inner",
        skopeo,
        [blobs_of(&other), blobs_of(&windows), vec![stored(inner)]].concat(),
        json!({"schemaVersion": 2, "manifests": [entry(INDEX, inner, json!({}))]}),
    );
    let deeper = json!({"schemaVersion": 2, "manifests": [entry(INDEX, inner, json!({}))]}).to_string();
    let deeper = deeper.as_bytes();
    add(
        "an index within an index within an index",
        "inner",
        None,
        [
            blobs_of(&other),
            blobs_of(&windows),
            vec![stored(inner), stored(deeper)],
        ]
        .concat(),
        json!({"schemaVersion": 2, "manifests": [entry(INDEX, deeper, json!({}))]}),
    );

    // A signature, a chart, and statements about the image: small, large, and many.
    let empty = b"{}";
    let signature = json!({"schemaVersion": 2, "config": entry(CONFIG, empty, json!({})), "layers": [
        entry("application/vnd.dev.cosign.simplesigning.v1+json", empty, json!({}))]})
    .to_string();
    let chart = json!({"schemaVersion": 2, "layers": [],
        "config": entry("application/vnd.cncf.helm.config.v1+json", empty, json!({}))})
    .to_string();
    let statement = |name: &str, size: usize| {
        json!({"_type": "https://in-toto.io/Statement/v1", "subject": [{"name": name}], "predicate": "x".repeat(size)})
            .to_string()
            .into_bytes()
    };
    let statements: Vec<_> = (0..20).map(|number| statement(&number.to_string(), 1 << 20)).collect();
    let huge = statement("huge", 9 << 20);
    let attestation = json!({"schemaVersion": 2, "artifactType": "application/vnd.in-toto+json",
        "config": entry("application/vnd.oci.empty.v1+json", empty, json!({})),
        "layers": [entry("application/vnd.in-toto+json", &huge, json!({}))]})
    .to_string();
    let mut others = vec![stored(empty), stored(&huge)];
    others.extend(statements.iter().map(|statement| stored(statement)));
    others.extend([&signature, &chart, &attestation].map(|document| stored(document.as_bytes())));
    // Before the image, so that they would fill what may wait in memory.
    let blobs = [others, blobs_of(&amd64("others"))].concat();
    let index = json!({"schemaVersion": 2, "manifests": [
        entry(MANIFEST, attestation.as_bytes(), json!({"artifactType": "application/vnd.in-toto+json"})),
        entry(MANIFEST, attestation.as_bytes(), on("unknown", "unknown")),
        entry(MANIFEST, chart.as_bytes(), json!({})),
        entry(MANIFEST, signature.as_bytes(), json!({"annotations": {"kind": "dev.cosignproject.cosign/sigs"}})),
        entry("application/vnd.example+json", empty, json!({})),
        {"mediaType": MANIFEST, "digest": format!("sha512:{}", "0".repeat(128)), "size": 1},
        image("others", json!({"annotations": {"kind": "dev.cosignproject.cosign/image"}})),
    ]});
    cases.push(Case {
        name: "signatures, charts, and attestations",
        archive: layout(blobs, &index),
        transport: None,
    });

    let odd_names = amd64("names")
        .entry(TarEntry::file(format!("blobs/sha512/{}", "0".repeat(128)), "x"))
        .entry(TarEntry::file("blobs/sha256/.partial", "x"))
        .entry(TarEntry::file(
            format!("blobs/sha256/{}", sha256(b"unneeded")),
            "damaged",
        ))
        .entry(TarEntry::file(
            format!("blobs/sha256/{}", sha256(b"unneeded and large")),
            vec![7; 5 << 20],
        ))
        .entry(TarEntry::file("note", "one"))
        .entry(TarEntry::file("note", "another"));
    cases.push(Case {
        name: "blobs that nothing references",
        archive: odd_names.build(),
        transport: Some("oci-archive"),
    });
    for (name, packing, transport) in [
        ("zstd", Packing::Zstd, Some("oci-archive")),
        ("plain", Packing::Plain, None),
    ] {
        cases.push(Case {
            name,
            archive: amd64(name).packing(packing).build(),
            transport,
        });
    }
    cases
}

/// A docker archive whose layers have these names and this packing.
fn docker_archive(
    seed: &str,
    name: impl Fn(&[u8]) -> String,
    pack: impl Fn(&[u8]) -> Vec<u8>,
    config_name: impl Fn(&str) -> String,
    index: Option<&str>,
) -> Vec<u8> {
    let layers = layers(seed);
    let config = layers
        .iter()
        .fold(DockerArchive::new("amd64"), |archive, layer| {
            archive.layer(layer.clone())
        })
        .config();
    let config_name = config_name(&sha256(&config));
    let mut entries = vec![TarEntry::file(config_name.clone(), config)];
    let mut names = Vec::new();
    for layer in &layers {
        let packed = pack(layer);
        let name = name(&packed);
        entries.push(TarEntry::file(name.clone(), packed));
        names.push(name);
    }
    let row = json!({"Config": config_name, "RepoTags": null, "Layers": names});
    entries.push(TarEntry::file("manifest.json", json!([row]).to_string()));
    entries.extend(index.map(|index| TarEntry::file("index.json", index)));
    tar(&entries)
}

fn docker_cases() -> Vec<Case> {
    let in_blobs = |bytes: &[u8]| format!("blobs/sha256/{}", sha256(bytes));
    let in_folder = |bytes: &[u8]| format!("{}/layer.tar", sha256(bytes));
    let zipped = |bytes: &[u8]| format!("{}.tar.gz", sha256(bytes));
    let bare = |bytes: &[u8]| sha256(bytes);
    let plain = |bytes: &[u8]| bytes.to_vec();
    let json_name = |hex: &str| format!("{hex}.json");
    let colon_name = |hex: &str| format!("sha256:{hex}");
    let blob_name = |hex: &str| format!("blobs/sha256/{hex}");
    let empty = r#"{"schemaVersion":2,"manifests":[]}"#;
    let null = r#"{"schemaVersion":2,"manifests":null}"#;
    let archives = [
        (
            "null index",
            docker_archive("0", in_blobs, plain, blob_name, Some("null")),
        ),
        (
            "index of null",
            docker_archive("1", in_blobs, plain, blob_name, Some(null)),
        ),
        (
            "index of nothing",
            docker_archive("2", in_blobs, gzip, blob_name, Some(empty)),
        ),
        (
            "blobs without index",
            docker_archive("3", in_blobs, gzip, blob_name, None),
        ),
        ("plain, .tar.gz", docker_archive("4", zipped, plain, colon_name, None)),
        ("gzip, .tar.gz", docker_archive("5", zipped, gzip, colon_name, None)),
        (
            "plain, layer.tar",
            docker_archive("6", in_folder, plain, json_name, Some(empty)),
        ),
        ("gzip, layer.tar", docker_archive("7", in_folder, gzip, json_name, None)),
        ("plain, no ending", docker_archive("8", bare, plain, json_name, None)),
        (
            "gzip, no ending",
            docker_archive("9", bare, gzip, json_name, Some("null")),
        ),
        ("zstd, layer.tar", docker_archive("a", in_folder, zstd, json_name, None)),
    ];
    let cases = archives.map(|(name, archive)| Case {
        name,
        archive,
        transport: Some("docker-archive"),
    });
    let no_layers = DockerArchive::new("amd64").config();
    // One image under two tags may have two rows.
    let row = json!({"Config": "c.json", "RepoTags": [], "Layers": null});
    let row = json!([row, row]).to_string();
    let empty = Case {
        name: "no layers, two rows",
        archive: tar(&[
            TarEntry::file("c.json", no_layers),
            TarEntry::file("manifest.json", row),
        ]),
        transport: None,
    };
    cases.into_iter().chain([empty]).collect()
}

/// The manifest for amd64 that a registry has under a tag, or that it is itself.
async fn manifest(skopeo: &Skopeo, repository: &str, tag: &str) -> Vec<u8> {
    let raw = skopeo.inspect_raw(&format!("{repository}:{tag}")).await.unwrap();
    let document: Value = serde_json::from_slice(&raw).unwrap();
    let Some(entries) = document["manifests"].as_array() else {
        return raw;
    };
    let platform = &json!({"os": "linux", "architecture": "amd64"});
    let entry = entries.iter().find(|entry| entry["platform"] == *platform).unwrap();
    let digest = entry["digest"].as_str().unwrap();
    skopeo.inspect_raw(&format!("{repository}@{digest}")).await.unwrap()
}

/// Asserts that every layer is what its label and the configuration say. `path` is that of a blob by its digest's hex.
fn assert_layers(what: &str, path: impl Fn(&str) -> PathBuf, manifest: &Value) {
    let blob = |entry: &Value| {
        let digest = entry["digest"].as_str().unwrap();
        let bytes = std::fs::read(path(&digest["sha256:".len()..])).unwrap();
        assert_eq!(digest_of(&bytes), digest, "{what}");
        bytes
    };
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(layers.len(), diff_ids.len(), "{what}");
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let stored = blob(layer);
        let mut unpacked = Vec::new();
        match layer["mediaType"].as_str().unwrap().rsplit_once('+') {
            Some((_, "gzip")) => {
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&stored[..]), &mut unpacked).unwrap();
            }
            Some((_, "zstd")) => unpacked = ::zstd::decode_all(&stored[..]).unwrap(),
            _ => unpacked = stored,
        }
        assert_eq!(*diff_id, digest_of(&unpacked), "{what}: {layer}");
    }
}

/// Publishes an archive into a folder; the manifest's bytes.
async fn publish_locally(what: &str, folder: &Path, row: Row) -> Vec<u8> {
    let directory = folder.join("local");
    let text = format!("[consumer_config.local]\ndirectory = \"{}\"\n", directory.display());
    let config = Config::parse(&text, Path::new("test.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    let config::Provider::Local(section) = &config.provider else {
        panic!("another provider")
    };
    let deliverable = deliverable(&config.provider, folder, FIRST, vec![row]).await;
    let provider = LocalProvider::new(section);
    let staged = provider.stage(&deliverable, &task()).await;
    let staged = staged.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    let published = provider.release(&deliverable, staged, &task()).await.unwrap();
    let layout = Path::new(&published.places[0].id).to_owned();
    let read = |digest: &Value| {
        let digest = digest.as_str().unwrap();
        std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap()
    };
    let outer: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let inner: Value = serde_json::from_slice(&read(&outer["manifests"][0]["digest"])).unwrap();
    let bytes = read(&inner["manifests"][0]["digest"]);
    let path = |hex: &str| layout.join("blobs/sha256").join(hex);
    assert_layers(what, path, &serde_json::from_slice(&bytes).unwrap());
    bytes
}

async fn publish_case(registry: &Registry, number: usize, case: Case) -> Value {
    let Case {
        name: what,
        archive,
        transport,
    } = case;
    let (section, provider) = provider(&[&Entry::of(registry)]);
    let skopeo = Skopeo::new(registry).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let row = Row::container("Container_Base", "x86_64", archive.clone());
    let id = format!("Fedora-43-20251023.{number}");
    let deliverable = deliverable(&section, folder.path(), &id, vec![row.clone()]).await;
    let publication = publish(&provider, &deliverable, &task()).await;
    let publication = publication.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    assert_eq!(publication.places.len(), 1, "{what}: {publication:?}");
    let bytes = manifest(&skopeo, FULL, "43").await;
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    // skopeo would compress plain layers on their way into a folder.
    let blobs = registry.data().join("docker/registry/v2/blobs/sha256");
    assert_layers(what, |hex| blobs.join(&hex[..2]).join(hex).join("data"), &document);

    let local = publish_locally(what, folder.path(), row).await;
    assert_eq!(
        digest_of(&local),
        digest_of(&bytes),
        "{what}: in a folder as in a registry"
    );

    if let Some(transport) = transport {
        let file = folder.path().join("archive.tar");
        std::fs::write(&file, &archive).unwrap();
        let source = format!("{transport}:{}", file.display());
        let tag = number.to_string();
        skopeo
            .copy_from(&source, &format!("skopeo/{transport}:{tag}"))
            .await
            .unwrap();
        let theirs = manifest(&skopeo, &format!("skopeo/{transport}"), &tag).await;
        if transport == "oci-archive" {
            assert_eq!(digest_of(&theirs), digest_of(&bytes), "{what}: as skopeo has it");
        } else {
            // skopeo compresses with another library; what is compressed is the same.
            let theirs: Value = serde_json::from_slice(&theirs).unwrap();
            assert_eq!(
                theirs["config"]["digest"], document["config"]["digest"],
                "{what}: as skopeo has it"
            );
        }
    }
    document
}

#[tokio::test(flavor = "multi_thread")]
async fn oci_archives_hold_one_image_among_other_things() {
    let registry = Registry::open().await.unwrap();
    for (number, case) in oci_cases().into_iter().enumerate() {
        publish_case(&registry, number, case).await;
    }
    let statements = registry.writes().await.unwrap();
    let pushed = |bytes: &[u8]| {
        let digest = digest_of(bytes).replace(':', "%3A");
        statements.iter().any(|write| write.path.contains(&digest))
    };
    assert!(pushed(&amd64("others").layout().config), "the image was pushed");
    assert!(!pushed(b"{}"), "what is not needed was pushed");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_archives_have_layers_of_any_name_and_packing() {
    let registry = Registry::open().await.unwrap();
    for (number, case) in docker_cases().into_iter().enumerate() {
        let name = case.name;
        let document = publish_case(&registry, number, case).await;
        assert_eq!(document["mediaType"], MANIFEST, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_its_diff_id_or_its_label_is_refused() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let [small, large] = <[Vec<u8>; 2]>::try_from(layers("wrong")).unwrap();
    let mut cases = Vec::new();
    for (size, content) in [("small", &small), ("large", &large)] {
        let one = OciArchive::new("amd64").layer(content.clone());
        for (packing, name) in [
            (Packing::Gzip, "gzip"),
            (Packing::Zstd, "zstd"),
            (Packing::Plain, "plain"),
        ] {
            let wrong = one.clone().packing(packing).wrong_diff_ids().build();
            cases.push((format!("OCI, {size}, {name}"), wrong, "according to the configuration"));
        }
        // The index, the manifest, and the configuration are right; the label is not.
        let parts = one.clone().packing(Packing::Plain).layout();
        let manifest = String::from_utf8(parts.manifest).unwrap();
        for (label, found) in [("tar+gzip", "it is plain"), ("tar+zstd", "it is plain")] {
            let manifest = manifest.replace("layer.v1.tar", &format!("layer.v1.{label}"));
            let manifest = manifest.as_bytes();
            let blobs = vec![stored(manifest), stored(&parts.config), stored(&parts.layers[0])];
            let index = json!({"schemaVersion": 2, "manifests": [entry(MANIFEST, manifest, json!({}))]});
            cases.push((format!("OCI, {size}, {label}"), layout(blobs, &index), found));
        }
        let config = DockerArchive::new("amd64")
            .layer(content.clone())
            .wrong_diff_ids()
            .config();
        let damaged = {
            let mut packed = gzip(content);
            let middle = packed.len() / 2;
            packed[middle] ^= 1;
            packed
        };
        let sound = DockerArchive::new("amd64").layer(content.clone()).config();
        for name in ["layer.tar", "layer.tar.gz", "layer", "blobs/sha256"] {
            for (packing, packed, config, expected) in [
                ("plain", content.clone(), &config, "according to the configuration"),
                ("gzip", gzip(content), &config, "according to the configuration"),
                ("damaged", damaged.clone(), &sound, "unpack layer"),
            ] {
                let name = match name {
                    "blobs/sha256" => format!("{name}/{}", sha256(&packed)),
                    name => name.to_owned(),
                };
                let row = json!([{"Config": "c.json", "Layers": [name]}]).to_string();
                let archive = tar(&[
                    TarEntry::file("c.json", config.clone()),
                    TarEntry::file(name.clone(), packed),
                    TarEntry::file("manifest.json", row),
                ]);
                cases.push((format!("docker, {size}, {name}, {packing}"), archive, expected));
            }
        }
    }
    for (what, archive, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let rows = vec![Row::container("Container_Base", "x86_64", archive)];
        let deliverable = deliverable(&section, folder.path(), FIRST, rows).await;
        let failure = publish(&provider, &deliverable, &task()).await;
        let text = failure.expect_err(&what).to_string();
        assert!(text.contains(expected), "{what}: {text}");
    }
    let writes = registry.writes().await.unwrap();
    let manifests = writes.iter().filter(|write| write.path.contains("/manifests/"));
    assert_eq!(manifests.count(), 0, "nothing was tagged");
}
