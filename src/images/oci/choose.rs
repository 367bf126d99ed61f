//! Which of an archive's images is meant, as podman and skopeo choose it.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::{CONFIG, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Fault, INDEX, Index, MANIFEST, Manifest, architecture};

/// Docker's form of [`CONFIG`].
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Indexes deeper than this are a trap; podman writes one within another.
const DEPTH: usize = 4;
/// Images of one archive; no archive of a compose has more than one per architecture.
const IMAGES: usize = 1000;

/// An entry of an index, by its content.
enum Kind {
    Image,
    Index(Index),
    /// A signature, a chart, an attestation.
    Other,
}

/// The image for Fedora's `arch` among those that an index and the indexes within it name.
///
/// The only image, else the only one for Linux on this processor, else the only one without a platform. `document` gives
/// the content of an entry.
pub(super) fn choose<'a>(
    outer: Index,
    arch: &str,
    document: impl Fn(&Descriptor) -> Result<&'a Bytes, Fault>,
) -> Result<Descriptor, Fault> {
    let mut images: Vec<Descriptor> = Vec::new();
    let mut unread = None;
    let mut seen = BTreeSet::new();
    let mut indexes = VecDeque::from([(outer, 0)]);
    while let Some((index, depth)) = indexes.pop_front() {
        for entry in index.manifests.into_iter().filter(Descriptor::is_image) {
            match kind(&entry, &document) {
                Ok(Kind::Image) => add(&mut images, entry),
                Ok(Kind::Index(inner)) if depth < DEPTH && seen.insert(entry.digest) => {
                    indexes.push_back((inner, depth + 1));
                }
                Ok(Kind::Index(_) | Kind::Other) => {}
                Err(fault) => unread = unread.or(Some(fault)),
            }
        }
    }
    if let (true, Some(fault)) = (images.is_empty(), unread) {
        return Err(fault);
    }
    if images.len() > 1 {
        images = for_platform(images, architecture(arch));
    }
    <[Descriptor; 1]>::try_from(images)
        .map(|[image]| image)
        .map_err(|images| Fault::Choice {
            architecture: arch.to_owned(),
            found: images.len(),
        })
}

/// One image under several tags is one image, and any of them may name its platform.
fn add(images: &mut Vec<Descriptor>, entry: Descriptor) {
    if let Some(known) = images.iter_mut().find(|image| image.digest == entry.digest) {
        known.platform = known.platform.take().or(entry.platform);
    } else if images.len() < IMAGES {
        images.push(entry);
    }
}

/// The images for Linux on this processor. Images without a platform count if there is no other, as for skopeo.
fn for_platform(images: Vec<Descriptor>, wanted: &str) -> Vec<Descriptor> {
    let default = match wanted {
        "amd64" => "v1",
        "arm64" => "v8",
        "arm" => "v7",
        _ => "",
    };
    let (named, unnamed): (Vec<_>, Vec<_>) = images.into_iter().partition(|image| image.platform.is_some());
    let fits = |image: &Descriptor, any_variant: bool| {
        image.platform.as_ref().is_some_and(|platform| {
            let variant = platform.variant.as_deref().unwrap_or_default();
            let variant = any_variant || variant.is_empty() || variant == default;
            platform.is_linux() && platform.architecture == wanted && variant
        })
    };
    let mut fitting: Vec<_> = named.into_iter().filter(|image| fits(image, true)).collect();
    if fitting.len() > 1 && fitting.iter().any(|image| fits(image, false)) {
        fitting.retain(|image| fits(image, false));
    }
    if fitting.is_empty() && unnamed.len() == 1 {
        return unnamed;
    }
    fitting
}

/// An image whose document cannot be read is one all the same: if it is the chosen one, the reason is reported.
fn kind<'a>(entry: &Descriptor, document: &impl Fn(&Descriptor) -> Result<&'a Bytes, Fault>) -> Result<Kind, Fault> {
    match entry.media_type.as_str() {
        INDEX | DOCKER_LIST => {
            let index = serde_json::from_slice(document(entry)?);
            index.map(Kind::Index).map_err(|source| Fault::Json {
                what: "the inner index".to_owned(),
                source,
            })
        }
        MANIFEST | DOCKER_MANIFEST => Ok(match document(entry) {
            Ok(bytes) if is_artifact(bytes) => Kind::Other,
            Ok(_) | Err(_) => Kind::Image,
        }),
        // Older tools leave the media type out.
        "" => Ok(match document(entry) {
            Ok(bytes) if is_artifact(bytes) => Kind::Other,
            Ok(bytes) => match serde_json::from_slice::<Index>(bytes) {
                Ok(index) if !index.manifests.is_empty() => Kind::Index(index),
                Ok(_) | Err(_) => Kind::Image,
            },
            Err(_) => Kind::Image,
        }),
        _ => Ok(Kind::Other),
    }
}

/// Whether a manifest holds something else than an image: its type, its configuration, or its layers say so.
fn is_artifact(manifest: &Bytes) -> bool {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else {
        return false;
    };
    let config = manifest.config.media_type.as_str();
    let is_file_system = |layer: &Descriptor| layer.media_type.is_empty() || layer.media_type.contains("tar");
    manifest.artifact_type.is_some()
        || !matches!(config, "" | CONFIG | DOCKER_CONFIG)
        || (!manifest.layers.is_empty() && !manifest.layers.iter().any(is_file_system))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::images::oci::Digest;

    /// Documents by their digests.
    #[derive(Default)]
    struct Shelf {
        documents: BTreeMap<Digest, Bytes>,
    }

    impl Shelf {
        fn store(&mut self, kind: &str, document: &Value) -> Value {
            let bytes = Bytes::from(document.to_string());
            let digest = Digest::of(&bytes);
            let entry = json!({"mediaType": kind, "digest": digest.as_str(), "size": bytes.len()});
            self.documents.insert(digest, bytes);
            entry
        }

        /// A manifest that differs by `name`, and `more` in its entry.
        fn image(&mut self, name: &str, more: Value) -> Value {
            let digest = Digest::of(name.as_bytes());
            let config = json!({"mediaType": CONFIG, "digest": digest.as_str(), "size": 1});
            let mut entry = self.store(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": null}));
            let more = more.as_object().cloned().unwrap_or_default();
            entry.as_object_mut().unwrap().extend(more);
            entry
        }

        fn choose(&self, index: &Value) -> Result<String, Fault> {
            let index: Index = serde_json::from_value(index.clone()).unwrap();
            let document = |entry: &Descriptor| {
                self.documents.get(&entry.digest).ok_or_else(|| Fault::Missing {
                    what: entry.digest.to_string(),
                })
            };
            choose(index, "x86_64", document).map(|chosen| chosen.digest.to_string())
        }
    }

    fn on(os: &str, architecture: &str) -> Value {
        json!({"platform": {"os": os, "architecture": architecture}})
    }

    #[test]
    fn the_image_is_chosen_among_everything_else() {
        let mut shelf = Shelf::default();
        let wanted = shelf.image("wanted", json!({"platform": null, "annotations": null}));
        let with_platform = shelf.image("wanted", on("linux", "amd64"));
        let digest = wanted["digest"].as_str().unwrap().to_owned();
        let arm = shelf.image("arm", on("linux", "arm64"));
        let windows = shelf.image("windows", on("windows", "amd64"));
        let v3 = shelf.image(
            "v3",
            json!({"platform": {"os": "linux", "architecture": "amd64", "variant": "v3"}}),
        );
        let signature = shelf.image(
            "signature",
            json!({"artifactType": "application/vnd.example.signature"}),
        );
        let unknown = shelf.image("attestation", on("unknown", "unknown"));
        let reference = shelf.image(
            "reference",
            json!({"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}),
        );
        let config = json!({"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest, "size": 1});
        let chart = shelf.store(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": []}));
        let config = json!({"mediaType": CONFIG, "digest": digest, "size": 1});
        let simple = json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": digest, "size": 1,
        });
        let cosign = shelf.store(
            MANIFEST,
            &json!({"schemaVersion": 2, "config": config, "layers": [simple]}),
        );
        let other = shelf.store("application/vnd.example+json", &json!({}));
        let sha512 = json!({"mediaType": MANIFEST, "digest": format!("sha512:{}", "0".repeat(128)), "size": 1});
        let inner = shelf.store(INDEX, &json!({"schemaVersion": 2, "manifests": [arm, with_platform]}));
        let deeper = shelf.store(DOCKER_LIST, &json!({"schemaVersion": 2, "manifests": [inner, windows]}));
        let mut untyped = wanted.clone();
        untyped.as_object_mut().unwrap().remove("mediaType");
        for (what, manifests) in [
            ("one image", vec![&wanted]),
            ("two tags", vec![&wanted, &with_platform]),
            ("two tags, the other way round", vec![&with_platform, &wanted, &wanted]),
            ("an index within an index", vec![&inner]),
            ("an index within an index within an index", vec![&deeper]),
            ("an index beside its image", vec![&inner, &wanted]),
            ("two processors", vec![&arm, &with_platform]),
            ("two processors, one of them not named", vec![&arm, &wanted]),
            ("two systems", vec![&windows, &with_platform]),
            ("two variants", vec![&v3, &with_platform]),
            ("a signature", vec![&wanted, &signature]),
            ("attestations", vec![&unknown, &reference, &wanted]),
            ("a chart", vec![&chart, &wanted]),
            ("a signature of cosign", vec![&cosign, &wanted]),
            ("another media type", vec![&other, &wanted]),
            ("another algorithm", vec![&sha512, &wanted]),
            ("no media type", vec![&untyped]),
        ] {
            let chosen = shelf.choose(&json!({"schemaVersion": 2, "manifests": manifests}));
            assert_eq!(
                chosen.unwrap_or_else(|fault| panic!("{what}: {fault}")),
                digest,
                "{what}"
            );
        }
        for (what, manifests) in [
            ("nothing", vec![]),
            ("a signature", vec![&signature]),
            ("two others", vec![&arm, &windows]),
        ] {
            let fault = shelf.choose(&json!({"manifests": manifests})).unwrap_err();
            assert!(matches!(fault, Fault::Choice { found: 0, .. }), "{what}: {fault}");
        }
        let second = shelf.image("second", on("linux", "amd64"));
        let fault = shelf
            .choose(&json!({"manifests": [second, with_platform]}))
            .unwrap_err();
        assert!(matches!(fault, Fault::Choice { found: 2, .. }), "{fault}");
    }

    #[test]
    fn an_inner_index_that_is_not_there_is_reported_if_nothing_else_is() {
        let mut shelf = Shelf::default();
        let wanted = shelf.image("wanted", json!({}));
        let lost = json!({"mediaType": INDEX, "digest": Digest::of(b"lost").as_str(), "size": 4});
        assert!(shelf.choose(&json!({"manifests": [lost, wanted]})).is_ok());
        let fault = shelf.choose(&json!({"manifests": [lost]})).unwrap_err();
        assert!(matches!(fault, Fault::Missing { .. }), "{fault}");
    }
}
