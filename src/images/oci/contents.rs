//! The entries of an archive, and the image that they make.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::choose::choose;
use super::layer::{Unpacked, pack, unpack};
use super::{
    Blob, CONFIG, Config, Descriptor, Digest, Fault, Image, JSON_LIMIT, MANIFEST, Manifest, Stores, architecture,
    lenient,
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
    refused: BTreeMap<String, Refusal>,
}

/// A blob that the stores have, and what it unpacks to.
#[derive(Clone)]
pub(super) struct Passed {
    pub(super) blob: Blob,
    pub(super) unpacked: Unpacked,
}

/// A row of a docker archive's manifest.json
/// ([the format](https://github.com/moby/docker-image-spec/blob/main/spec.md#combined-image-json--filesystem-changeset-format)).
#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "lenient::nullable")]
    layers: Vec<String>,
}

/// An entry that cannot be used. It is a fault only if the image needs it.
#[derive(Clone)]
pub(super) enum Refusal {
    /// Two files have its name.
    Twice,
    /// A document longer than this many bytes.
    Huge(u64),
    /// A document that is none of an image's.
    Document,
    /// A document behind so many others that they have this many bytes together.
    Crowded(u64),
    /// Its name is not its digest.
    Digest { expected: Digest, found: Digest },
}

impl Refusal {
    pub(super) fn fault(self, path: String) -> Fault {
        match self {
            Self::Twice => Fault::Entry {
                path,
                what: "it is there twice",
            },
            Self::Document => Fault::Entry {
                path,
                what: "it is neither a layer nor a document of an image",
            },
            Self::Huge(limit) => Fault::Huge { what: path, limit },
            Self::Crowded(limit) => Fault::Huge {
                what: format!("{path}, with the documents before it,"),
                limit,
            },
            Self::Digest { expected, found } => Fault::Digest { expected, found },
        }
    }
}

/// Reports whether a path is that of a document by which the archive is understood.
pub(super) fn is_root_document(path: &str) -> bool {
    matches!(path, "index.json" | "manifest.json")
}

/// Compresses a layer that is in memory, unless it is compressed, and stores it.
pub(super) async fn store_packed(bytes: Bytes, stores: &mut Stores) -> Result<Passed, Fault> {
    let (packed, outcome) = pack(stream::iter([Ok(bytes)])).await?;
    let pieces: Vec<Result<Bytes, Fault>> = packed.collect().await;
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(&piece?);
    }
    let unpacked = outcome.get().await?;
    let blob = Blob {
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    stores.put_held(&blob, &bytes.into()).await;
    Ok(Passed { blob, unpacked })
}

impl Contents {
    pub(super) fn knows(&self, path: &str) -> bool {
        let files = self.held.contains_key(path) || self.passed.contains_key(path);
        files || self.links.contains_key(path) || self.refused.contains_key(path)
    }

    /// Remembers why an entry cannot be used, whatever was known of it.
    pub(super) fn refuse(&mut self, path: String, refusal: Refusal) {
        self.held.remove(&path);
        self.passed.remove(&path);
        self.links.remove(&path);
        self.refused.insert(path, refusal);
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
        if is_root_document(&path) && self.knows(&path) {
            return Err(Refusal::Twice.fault(path));
        }
        if self.knows(&path) {
            self.refuse(path, Refusal::Twice);
        } else {
            self.links.insert(path, target);
        }
        Ok(())
    }

    /// Stores what the image still lacks. `None`: no store is left.
    pub(super) async fn finish(self, arch: &str, stores: &mut Stores) -> Result<Option<Image>, Fault> {
        let image = match self.choose(arch) {
            Ok(Some(chosen)) => self.finish_oci(chosen, arch, stores).await?,
            Ok(None) => self.finish_docker(arch, stores).await?,
            // Docker, kaniko, and others write an index of nothing beside it.
            Err(Fault::Choice { found: 0, .. } | Fault::Json { .. }) if self.held.contains_key("manifest.json") => {
                self.finish_docker(arch, stores).await?
            }
            Err(fault) => return Err(fault),
        };
        Ok(stores.any_left().then_some(image))
    }

    /// The image that `index.json` leads to; `None` without one.
    fn choose(&self, arch: &str) -> Result<Option<Descriptor>, Fault> {
        match self.held.get("index.json") {
            Some(bytes) => choose(parse("index.json", bytes)?, arch, |entry| self.document(entry)).map(Some),
            None if self.held.contains_key("manifest.json") => Ok(None),
            None => Err(Fault::Neither),
        }
    }

    async fn finish_oci(&self, chosen: Descriptor, arch: &str, stores: &mut Stores) -> Result<Image, Fault> {
        let bytes = self.document(&chosen)?.clone();
        let manifest: Manifest = parse("the manifest", &bytes)?;
        let config_bytes = self.document(&manifest.config)?.clone();
        let config: Config = parse("the configuration", &config_bytes)?;
        check(&config, arch, manifest.layers.len())?;
        // All of it is looked at before any of it is stored.
        let mut missing = BTreeMap::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            let (held, unpacked) = self.layer(layer).await?;
            let name = layer.digest.as_str();
            unpacked.must_be_labelled(name, &layer.media_type)?;
            unpacked.must_be(name, diff_id)?;
            if let Some(bytes) = held {
                missing.insert(layer.digest.clone(), (layer.blob(), bytes));
            }
        }
        missing.insert(manifest.config.digest.clone(), (manifest.config.blob(), config_bytes));
        for (blob, bytes) in missing.values() {
            stores.put_held(blob, bytes).await;
        }
        let media_type = match chosen.media_type.is_empty() {
            true => manifest.media_type.unwrap_or_else(|| MANIFEST.to_owned()),
            false => chosen.media_type,
        };
        Ok(Image {
            digest: chosen.digest,
            media_type,
            platform: config.platform(),
            manifest: bytes,
        })
    }

    /// The one image of a docker archive. Blobs are kept byte for byte, as in an OCI archive; a layer by another name is
    /// compressed if it is plain.
    async fn finish_docker(&self, arch: &str, stores: &mut Stores) -> Result<Image, Fault> {
        let mut saved: Vec<Saved> = parse("manifest.json", &self.held["manifest.json"])?;
        // One image under several tags may have a row for each.
        saved.dedup();
        let [saved] = <[Saved; 1]>::try_from(saved).map_err(|saved| Fault::Choice {
            architecture: arch.to_owned(),
            found: saved.len(),
        })?;
        let config_path = self.resolve(&saved.config)?;
        let config_bytes = self.held.get(&config_path).ok_or_else(|| self.missing(&config_path))?;
        let config: Config = parse("the configuration", config_bytes)?;
        check(&config, arch, saved.layers.len())?;
        // All of it is looked at before any of it is stored.
        let mut paths = Vec::new();
        for (path, diff_id) in saved.layers.iter().zip(&config.rootfs.diff_ids) {
            let path = self.resolve(path)?;
            let (_, unpacked) = self.file(&path).await?;
            unpacked.must_be(&path, diff_id)?;
            paths.push(path);
        }
        let mut layers = Vec::new();
        for path in &paths {
            let Passed { blob, unpacked } = match (self.passed.get(path), self.held.get(path)) {
                (Some(passed), _) => passed.clone(),
                (None, Some(bytes)) if path.starts_with("blobs/") => {
                    let (blob, unpacked) = self.file(path).await?;
                    stores.put_held(&blob, bytes).await;
                    Passed { blob, unpacked }
                }
                (None, Some(bytes)) => store_packed(bytes.clone(), stores).await?,
                (None, None) => return Err(self.missing(path)),
            };
            layers.push(descriptor(unpacked.packing.media_type(), blob));
        }
        let blob = Blob::of(config_bytes);
        stores.put_held(&blob, config_bytes).await;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: None,
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

    /// The fault of something that is referenced and cannot be used.
    fn missing(&self, path: &str) -> Fault {
        match self.refused.get(path) {
            Some(refusal) => refusal.clone().fault(path.to_owned()),
            None => Fault::Missing { what: path.to_owned() },
        }
    }

    /// A file's identity, and what it unpacks to.
    async fn file(&self, path: &str) -> Result<(Blob, Unpacked), Fault> {
        match (self.held.get(path), self.passed.get(path)) {
            (Some(bytes), _) => Ok((Blob::of(bytes), unpack(bytes.clone()).await?)),
            (None, Some(passed)) => Ok((passed.blob.clone(), passed.unpacked.clone())),
            (None, None) => Err(self.missing(path)),
        }
    }

    /// The path of a blob that something references.
    fn path(&self, named: &Descriptor) -> Result<String, Fault> {
        self.resolve(&format!("blobs/sha256/{}", named.digest.hex()))
    }

    /// A document that something references.
    fn document(&self, named: &Descriptor) -> Result<&Bytes, Fault> {
        let path = self.path(named)?;
        let held = self.held.get(&path);
        let bytes = held.ok_or_else(|| match self.passed.contains_key(&path) {
            true => Refusal::Huge(JSON_LIMIT).fault(path.clone()),
            false => self.missing(&path),
        })?;
        Blob::of(bytes).must_be(&named.blob())?;
        Ok(bytes)
    }

    /// A layer's unpacked form, and its bytes unless the stores have it.
    async fn layer(&self, named: &Descriptor) -> Result<(Option<Bytes>, Unpacked), Fault> {
        let path = self.path(named)?;
        let (found, unpacked) = self.file(&path).await?;
        found.must_be(&named.blob())?;
        Ok((self.held.get(&path).cloned(), unpacked))
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
        artifact_type: None,
    }
}

/// The configuration is for what was announced, and for these layers.
fn check(config: &Config, arch: &str, layers: usize) -> Result<(), Fault> {
    let expected = architecture(arch);
    if config.architecture != expected || !config.platform().is_linux() {
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
