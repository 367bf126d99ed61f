//! What an archive holds, and which image that makes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::layer::compress;
use super::{
    Blob, CONFIG, Config, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Digest, Fault, INDEX, Image, Index, JSON_LIMIT,
    LAYER_GZIP, MANIFEST, Manifest, Stores, architecture,
};

/// An image's links lead to its layers at once; a chain of them is a trap.
const LINKS: usize = 8;
/// All entries of an archive by their paths.
#[derive(Default)]
pub(super) struct Contents {
    held: BTreeMap<String, Bytes>,
    held_bytes: u64,
    document_bytes: u64,
    passed: BTreeMap<String, Passed>,
    links: BTreeMap<String, String>,
}

/// What has gone to the stores.
#[derive(Clone)]
pub(super) struct Passed {
    pub(super) blob: Blob,
    /// Of a layer that was compressed on the way.
    pub(super) diff_id: Option<Digest>,
}

/// A row of a docker archive's manifest.json
/// ([the format](https://github.com/moby/docker-image-spec/blob/main/spec.md#combined-image-json--filesystem-changeset-format)).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// Whether a path is one that only a document has.
pub(super) fn names_json(path: &str) -> bool {
    path == "oci-layout" || (path.ends_with(".json") && !path.contains('/'))
}

/// Compresses a layer that is in memory, and stores it.
pub(super) async fn layer_of(bytes: Bytes, stores: &mut Stores) -> Result<Passed, Fault> {
    let (compressed, diff_id) = compress(stream::iter([Ok(bytes)]));
    let pieces: Vec<Result<Bytes, Fault>> = compressed.collect().await;
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(&piece?);
    }
    let diff_id = diff_id.await.map_err(|_| Fault::Interrupted)?;
    let blob = Blob {
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    stores.put_held(&blob, &bytes.into()).await;
    Ok(Passed { blob, diff_id })
}

impl Contents {
    pub(super) fn knows(&self, path: &str) -> bool {
        self.held.contains_key(path) || self.passed.contains_key(path) || self.links.contains_key(path)
    }

    /// Bytes in memory, without documents.
    pub(super) fn held(&self) -> u64 {
        self.held_bytes
    }

    /// Bytes of documents in memory.
    pub(super) fn documents(&self) -> u64 {
        self.document_bytes
    }

    pub(super) fn hold(&mut self, path: String, bytes: Bytes) {
        self.held_bytes += bytes.len() as u64;
        self.held.insert(path, bytes);
    }

    pub(super) fn hold_document(&mut self, path: String, bytes: Bytes) {
        self.document_bytes += bytes.len() as u64;
        self.held.insert(path, bytes);
    }

    pub(super) fn passed(&mut self, path: String, passed: Passed) {
        self.passed.insert(path, passed);
    }

    pub(super) fn link(&mut self, path: String, target: String) -> Result<(), Fault> {
        if self.knows(&path) {
            return Err(Fault::Entry {
                path,
                what: "it is there twice",
            });
        }
        self.links.insert(path, target);
        Ok(())
    }

    /// Stores what the image still lacks. `None`: no store is left.
    pub(super) async fn finish(mut self, arch: &str, stores: &mut Stores) -> Result<Option<Image>, Fault> {
        let image = if self.held.contains_key("index.json") {
            self.finish_oci(arch, stores).await?
        } else if self.held.contains_key("manifest.json") {
            self.finish_docker(arch, stores).await?
        } else {
            return Err(Fault::Neither);
        };
        Ok(stores.any_left().then_some(image))
    }

    async fn finish_oci(&mut self, arch: &str, stores: &mut Stores) -> Result<Image, Fault> {
        let mut chosen = choose(parse("index.json", &self.held["index.json"])?, arch)?;
        if matches!(chosen.media_type.as_str(), INDEX | DOCKER_LIST) {
            let inner: Index = parse("the inner index", self.document(&chosen)?)?;
            chosen = choose(inner, arch)?;
        }
        if !matches!(chosen.media_type.as_str(), MANIFEST | DOCKER_MANIFEST) {
            return Err(Fault::Platform {
                expected: "an image".to_owned(),
                found: chosen.media_type,
            });
        }
        let bytes = self.document(&chosen)?.clone();
        let manifest: Manifest = parse("the manifest", &bytes)?;
        let config_bytes = self.document(&manifest.config)?.clone();
        let config: Config = parse("the configuration", &config_bytes)?;
        check(&config, arch, manifest.layers.len())?;
        // All of it is looked at before any of it is stored.
        let mut missing = BTreeMap::new();
        for layer in &manifest.layers {
            if let Some(bytes) = self.layer(layer)? {
                missing.insert(layer.digest.clone(), (layer.blob(), bytes.clone()));
            }
        }
        missing.insert(manifest.config.digest.clone(), (manifest.config.blob(), config_bytes));
        for (blob, bytes) in missing.values() {
            stores.put_held(blob, bytes).await;
        }
        Ok(Image {
            digest: chosen.digest,
            media_type: chosen.media_type,
            platform: config.platform(),
            manifest: bytes,
        })
    }

    async fn finish_docker(&mut self, arch: &str, stores: &mut Stores) -> Result<Image, Fault> {
        let saved: Vec<Saved> = parse("manifest.json", &self.held["manifest.json"])?;
        let [saved] = <[Saved; 1]>::try_from(saved).map_err(|saved| Fault::Choice {
            architecture: arch.to_owned(),
            found: saved.len(),
        })?;
        let missing = |what: &str| Fault::Missing { what: what.to_owned() };
        let config_path = self.resolve(&saved.config)?;
        let config_bytes = self
            .held
            .get(&config_path)
            .ok_or_else(|| missing(&saved.config))?
            .clone();
        let config: Config = parse("the configuration", &config_bytes)?;
        check(&config, arch, saved.layers.len())?;
        let paths = saved
            .layers
            .iter()
            .map(|path| self.resolve(path))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(path) = paths
            .iter()
            .find(|path| !self.held.contains_key(*path) && !self.passed.contains_key(*path))
        {
            return Err(missing(path));
        }
        // Layers that passed are verified before those in memory are stored.
        let mut layers = Vec::new();
        let held: BTreeSet<_> = paths
            .iter()
            .filter(|path| !self.passed.contains_key(*path))
            .cloned()
            .collect();
        self.verify_layers(&paths, &config)?;
        for path in held {
            let passed = layer_of(self.held[&path].clone(), stores).await?;
            self.passed.insert(path, passed);
        }
        self.verify_layers(&paths, &config)?;
        for path in &paths {
            layers.push(descriptor(LAYER_GZIP, self.passed[path].blob.clone()));
        }
        let blob = Blob {
            digest: Digest::of(&config_bytes),
            size: config_bytes.len() as u64,
        };
        stores.put_held(&blob, &config_bytes).await;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            config: descriptor(CONFIG, blob),
            layers,
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|source| Fault::Json {
            what: "the manifest made of it".to_owned(),
            source,
        })?;
        Ok(Image {
            digest: Digest::of(&bytes),
            media_type: MANIFEST.to_owned(),
            platform: config.platform(),
            manifest: bytes.into(),
        })
    }

    fn verify_layers(&self, paths: &[String], config: &Config) -> Result<(), Fault> {
        for (path, expected) in paths.iter().zip(&config.rootfs.diff_ids) {
            let found = self.passed.get(path).and_then(|passed| passed.diff_id.as_ref());
            if let Some(found) = found.filter(|found| *found != expected) {
                return Err(Fault::Layer {
                    path: path.clone(),
                    expected: expected.clone(),
                    found: found.clone(),
                });
            }
        }
        Ok(())
    }

    /// A path with its links followed.
    fn resolve(&self, path: &str) -> Result<String, Fault> {
        let mut path = path.strip_prefix("./").unwrap_or(path);
        for _ in 0..LINKS {
            match self.links.get(path) {
                Some(target) => path = target,
                None => return Ok(path.to_owned()),
            }
        }
        Err(Fault::Entry {
            path: path.to_owned(),
            what: "it is a link to a link to a link",
        })
    }

    /// A document that something names.
    fn document(&self, named: &Descriptor) -> Result<&Bytes, Fault> {
        self.layer(named)?.ok_or_else(|| Fault::Huge {
            what: format!("the document {}", named.digest),
            limit: JSON_LIMIT,
        })
    }

    /// A blob that something names, if it is in memory; `None` if it is in the stores already.
    fn layer(&self, named: &Descriptor) -> Result<Option<&Bytes>, Fault> {
        let path = self.resolve(&format!("blobs/sha256/{}", named.digest.hex()))?;
        let held = self.held.get(&path);
        let found = match (held, self.passed.get(&path)) {
            (Some(bytes), _) => Blob {
                digest: Digest::of(bytes),
                size: bytes.len() as u64,
            },
            (None, Some(passed)) => passed.blob.clone(),
            (None, None) => {
                return Err(Fault::Missing {
                    what: format!("blob {}", named.digest),
                });
            }
        };
        found.must_be(&named.blob())?;
        Ok(held)
    }
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &Bytes) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|source| Fault::Json {
        what: what.to_owned(),
        source,
    })
}

fn descriptor(media_type: &str, blob: Blob) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: blob.digest,
        size: blob.size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

/// The one entry that is meant: the only one, or the only one for this architecture.
fn choose(index: Index, arch: &str) -> Result<Descriptor, Fault> {
    let mut images: Vec<Descriptor> = index.manifests.into_iter().filter(Descriptor::is_image).collect();
    if images.len() > 1 {
        let wanted = architecture(arch);
        images.retain(|image| {
            image
                .platform
                .as_ref()
                .is_some_and(|platform| platform.architecture == wanted)
        });
    }
    <[Descriptor; 1]>::try_from(images)
        .map(|[image]| image)
        .map_err(|images| Fault::Choice {
            architecture: arch.to_owned(),
            found: images.len(),
        })
}

/// The configuration is for what was announced, and for these layers.
fn check(config: &Config, arch: &str, layers: usize) -> Result<(), Fault> {
    let expected = architecture(arch);
    if config.architecture != expected || config.os != "linux" {
        return Err(Fault::Platform {
            expected: format!("linux/{expected}"),
            found: format!("{}/{}", config.os, config.architecture),
        });
    }
    let described = config.rootfs.diff_ids.len();
    if described != layers {
        return Err(Fault::Layers {
            named: layers,
            described,
        });
    }
    Ok(())
}
