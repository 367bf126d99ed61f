//! OCI archives: an image layout in a tar archive
//! (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>).

use std::{io, path::Path};

use serde_json::{Value, json};

use super::{CREATED, Entry, digest_of, gzip, sha256, tar, zstd};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How layers are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// gzip, what skopeo writes unless told otherwise.
    #[default]
    Gzip,
    /// zstd.
    Zstd,
    /// A plain tar archive.
    Plain,
}

/// A part of an image, to point a fault at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The manifest.
    Manifest,
    /// The config.
    Config,
    /// A layer, counted from 0.
    Layer(usize),
}

/// The documents of one image, as they are before any fault is put into the archive.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The layers' bytes as stored.
    pub layers: Vec<Vec<u8>>,
}

impl Layout {
    /// `sha256:…` of the manifest: what a registry calls the image.
    pub fn digest(&self) -> String {
        digest_of(&self.manifest)
    }

    fn part(&self, part: Part) -> &[u8] {
        match part {
            Part::Manifest => &self.manifest,
            Part::Config => &self.config,
            Part::Layer(number) => &self.layers[number],
        }
    }
}

/// Builds an OCI archive in the order of skopeo: blobs by digest, `index.json`, `oci-layout`.
#[derive(Clone, Debug, Default)]
pub struct OciArchive {
    architecture: String,
    layers: Vec<Vec<u8>>,
    packing: Packing,
    index_platform: Option<String>,
    others: Vec<OciArchive>,
    nested: bool,
    index_first: bool,
    pax_names: bool,
    wrong_diff_ids: bool,
    huge_index: usize,
    corrupt: Vec<Part>,
    missing: Vec<Part>,
    wrong_size: Vec<Part>,
    extra: Vec<Entry>,
    truncated: Option<usize>,
}

impl OciArchive {
    /// An image whose config names this architecture, in OCI's words: `amd64`, `arm64`. To lie about it, build with
    /// one architecture and announce another.
    pub fn new(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a layer, given as it decompresses: see [`super::layer`].
    pub fn layer(mut self, content: impl Into<Vec<u8>>) -> Self {
        self.layers.push(content.into());
        self
    }

    /// Packs all layers another way.
    pub fn packing(mut self, packing: Packing) -> Self {
        self.packing = packing;
        self
    }

    /// Names an architecture in `index.json`. Without it there is none, as usual for an archive of one image.
    pub fn index_platform(mut self, architecture: &str) -> Self {
        self.index_platform = Some(architecture.to_owned());
        self
    }

    /// Adds another image's manifest to the index. That image's own faults are kept, its order is not.
    pub fn also(mut self, other: OciArchive) -> Self {
        self.others.push(other);
        self
    }

    /// Lets `index.json` name an index, and that one the manifests.
    pub fn nested(mut self) -> Self {
        self.nested = true;
        self
    }

    /// Puts `oci-layout` and `index.json` before the blobs.
    pub fn index_first(mut self) -> Self {
        self.index_first = true;
        self
    }

    /// Puts every name into a PAX record.
    pub fn pax_names(mut self) -> Self {
        self.pax_names = true;
        self
    }

    /// Gives the config diff_ids that belong to no layer.
    pub fn wrong_diff_ids(mut self) -> Self {
        self.wrong_diff_ids = true;
        self
    }

    /// Lets `index.json` grow beyond `bytes`; it stays valid JSON.
    pub fn huge_index(mut self, bytes: usize) -> Self {
        self.huge_index = bytes;
        self
    }

    /// Changes one byte of a blob, so that its content is not what its name says.
    pub fn corrupt(mut self, part: Part) -> Self {
        self.corrupt.push(part);
        self
    }

    /// Leaves a blob out.
    pub fn missing(mut self, part: Part) -> Self {
        self.missing.push(part);
        self
    }

    /// Lets the descriptor of a blob state one byte too many.
    pub fn wrong_size(mut self, part: Part) -> Self {
        self.wrong_size.push(part);
        self
    }

    /// Adds an entry after the blobs: a name that climbs out, a link, a duplicate.
    pub fn entry(mut self, entry: Entry) -> Self {
        self.extra.push(entry);
        self
    }

    /// Cuts the archive after so many bytes.
    pub fn truncated(mut self, keep: usize) -> Self {
        self.truncated = Some(keep);
        self
    }

    /// Manifest, config, and layers as they are meant to be.
    pub fn layout(&self) -> Layout {
        let pack = match self.packing {
            Packing::Gzip => gzip,
            Packing::Zstd => zstd,
            Packing::Plain => <[u8]>::to_vec,
        };
        let suffix = match self.packing {
            Packing::Gzip => "+gzip",
            Packing::Zstd => "+zstd",
            Packing::Plain => "",
        };
        let layers: Vec<_> = self.layers.iter().map(|layer| pack(layer)).collect();
        let config = config(&self.architecture, &self.layers, self.wrong_diff_ids);
        let layer_type = format!("{LAYER}{suffix}");
        let descriptors: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(number, layer)| self.descriptor(Part::Layer(number), &layer_type, layer))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.descriptor(Part::Config, CONFIG, &config),
            "layers": descriptors,
        });
        Layout {
            manifest: manifest.to_string().into_bytes(),
            config,
            layers,
        }
    }

    /// The entries of the archive in order, faults included.
    pub fn entries(&self) -> Vec<Entry> {
        let images: Vec<&OciArchive> = std::iter::once(self).chain(&self.others).collect();
        let mut blobs = Vec::new();
        let mut manifests = Vec::new();
        for image in images {
            let layout = image.layout();
            manifests.push(image.manifest_descriptor(&layout));
            blobs.extend(image.blobs(&layout));
        }
        let mut index = json!({"schemaVersion": 2, "manifests": manifests});
        if self.nested {
            let kind = "application/vnd.oci.image.index.v1+json";
            index["mediaType"] = json!(kind);
            let inner = index.to_string().into_bytes();
            let size = inner.len();
            index["manifests"] = json!([{"mediaType": kind, "digest": digest_of(&inner), "size": size}]);
            blobs.push(blob(&inner));
        }
        if self.huge_index > 0 {
            index["annotations"] = json!({"padding": "x".repeat(self.huge_index)});
        }
        blobs.sort_by(|one, other| one.name.cmp(&other.name));
        // One blob may serve twice: equal layers of one image, or one layer of two.
        blobs.dedup();

        let index = Entry::file("index.json", index.to_string());
        let version = Entry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        let folders = [Entry::folder("blobs/"), Entry::folder("blobs/sha256/")];
        let blobs = folders.into_iter().chain(blobs).chain(self.extra.clone());
        let mut entries: Vec<_> = if self.index_first {
            [version, index].into_iter().chain(blobs).collect()
        } else {
            blobs.chain([index, version]).collect()
        };
        for entry in &mut entries {
            entry.pax |= self.pax_names;
        }
        entries
    }

    /// The archive.
    pub fn build(&self) -> Vec<u8> {
        let mut archive = tar(&self.entries());
        archive.truncate(self.truncated.unwrap_or(usize::MAX));
        archive
    }

    /// Writes the archive into a file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.build())
    }

    fn manifest_descriptor(&self, layout: &Layout) -> Value {
        let mut descriptor = self.descriptor(Part::Manifest, MANIFEST, &layout.manifest);
        if let Some(architecture) = &self.index_platform {
            descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        }
        descriptor
    }

    fn descriptor(&self, part: Part, kind: &str, bytes: &[u8]) -> Value {
        let size = bytes.len() + usize::from(self.wrong_size.contains(&part));
        json!({"mediaType": kind, "digest": digest_of(bytes), "size": size})
    }

    fn blobs(&self, layout: &Layout) -> Vec<Entry> {
        let layers = (0..layout.layers.len()).map(Part::Layer);
        [Part::Manifest, Part::Config]
            .into_iter()
            .chain(layers)
            .filter(|part| !self.missing.contains(part))
            .map(|part| {
                let bytes = layout.part(part);
                let mut entry = blob(bytes);
                if self.corrupt.contains(&part) {
                    let mut wrong = bytes.to_vec();
                    let middle = wrong.len() / 2;
                    wrong[middle] ^= 1;
                    entry = Entry::file(entry.name, wrong);
                }
                entry
            })
            .collect()
    }
}

/// An entry named after its content.
pub(super) fn blob(bytes: &[u8]) -> Entry {
    Entry::file(format!("blobs/sha256/{}", sha256(bytes)), bytes)
}

/// An image config; docker and OCI share its form.
pub(super) fn config(architecture: &str, layers: &[Vec<u8>], wrong_diff_ids: bool) -> Vec<u8> {
    let diff_ids = layers.iter().map(|layer| match wrong_diff_ids {
        true => digest_of(b"something else"),
        false => digest_of(layer),
    });
    config_of(architecture, diff_ids.collect())
}

/// The same from diff_ids alone.
pub(super) fn config_of(architecture: &str, diff_ids: Vec<String>) -> Vec<u8> {
    let config = json!({
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/bash"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": vec![json!({"created": CREATED}); diff_ids.len()],
    });
    config.to_string().into_bytes()
}

/// The documents of an OCI manifest that other writers need.
pub(super) fn manifest_of(config: &[u8], layer_type: &str, layers: &[(String, u64)]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| json!({"mediaType": layer_type, "digest": digest, "size": size}))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": config.len()},
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

/// An `index.json` of one manifest.
pub(super) fn index_of(manifest: &[u8]) -> Vec<u8> {
    let descriptor = json!({"mediaType": MANIFEST, "digest": digest_of(manifest), "size": manifest.len()});
    json!({"schemaVersion": 2, "manifests": [descriptor]})
        .to_string()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::archive::{layer, tests::parsed};

    fn sample() -> OciArchive {
        OciArchive::new("arm64")
            .layer(layer("one", 3000))
            .layer(layer("two", 10))
    }

    /// Content by name, and the names in order.
    fn files(archive: &[u8]) -> (HashMap<String, Vec<u8>>, Vec<String>) {
        let entries = parsed(archive);
        let names = entries.iter().map(|entry| entry.0.clone()).collect();
        (entries.into_iter().map(|entry| (entry.0, entry.3)).collect(), names)
    }

    /// Follows a descriptor and checks that the blob is what it says.
    fn follow<'f>(files: &'f HashMap<String, Vec<u8>>, descriptor: &Value) -> Result<&'f [u8], String> {
        let digest = descriptor["digest"].as_str().unwrap();
        let name = format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
        let bytes = files.get(&name).ok_or("missing")?;
        if digest_of(bytes) != digest {
            return Err("digest".to_owned());
        }
        if descriptor["size"] != json!(bytes.len()) {
            return Err("size".to_owned());
        }
        Ok(bytes)
    }

    /// The configs of all images, after every blob was found right.
    fn check(archive: &[u8]) -> Result<Vec<Value>, String> {
        let (files, _) = files(archive);
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
        let mut manifests = parse(&files["index.json"])["manifests"].take();
        if manifests[0]["mediaType"].as_str().unwrap().contains("index") {
            manifests = parse(follow(&files, &manifests[0])?)["manifests"].take();
        }
        let mut configs = Vec::new();
        for descriptor in manifests.as_array().unwrap() {
            let manifest = parse(follow(&files, descriptor)?);
            let config = parse(follow(&files, &manifest["config"])?);
            let layers = manifest["layers"].as_array().unwrap();
            let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
            assert_eq!(layers.len(), diff_ids.len());
            for (layer, diff_id) in layers.iter().zip(diff_ids) {
                let stored = follow(&files, layer)?;
                let kind = layer["mediaType"].as_str().unwrap();
                let plain = match kind.rsplit_once('+') {
                    Some((_, "gzip")) => crate::archive::read_all(flate2::read::GzDecoder::new(stored)),
                    Some((_, "zstd")) => ::zstd::decode_all(stored).unwrap(),
                    _ => stored.to_vec(),
                };
                if *diff_id != digest_of(&plain) {
                    return Err("diff_id".to_owned());
                }
                assert!(!parsed(&plain).is_empty(), "a layer is a tar archive");
            }
            configs.push(config);
        }
        Ok(configs)
    }

    #[test]
    fn a_good_archive_is_right_in_every_digest_and_in_the_order_of_skopeo() {
        for packing in [Packing::Gzip, Packing::Zstd, Packing::Plain] {
            let archive = sample().packing(packing).build();
            let configs = check(&archive).unwrap();
            assert_eq!(configs.len(), 1);
            assert_eq!(configs[0]["architecture"], "arm64");
        }
        let (_, names) = files(&sample().build());
        assert_eq!(names.len(), 2 + 4 + 2);
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names[6..], ["index.json", "oci-layout"]);
        assert_eq!(sample().build(), sample().build());
    }

    #[test]
    fn the_layout_tells_the_digests_of_the_archive() {
        let layout = sample().layout();
        let (files, _) = files(&sample().build());
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], layout.digest());
        assert_eq!(layout.layers.len(), 2);
    }

    #[test]
    fn every_fault_is_where_it_was_asked_for() {
        let cases = [
            (sample().corrupt(Part::Layer(1)), "digest"),
            (sample().corrupt(Part::Config), "digest"),
            (sample().corrupt(Part::Manifest), "digest"),
            (sample().missing(Part::Layer(0)), "missing"),
            (sample().missing(Part::Config), "missing"),
            (sample().missing(Part::Manifest), "missing"),
            (sample().wrong_size(Part::Layer(0)), "size"),
            (sample().wrong_size(Part::Config), "size"),
            (sample().wrong_size(Part::Manifest), "size"),
            (sample().wrong_diff_ids(), "diff_id"),
        ];
        for (archive, fault) in cases {
            assert_eq!(check(&archive.build()).unwrap_err(), fault, "{archive:?}");
        }
    }

    #[test]
    fn several_manifests_share_blobs_and_may_be_nested() {
        let other = OciArchive::new("amd64")
            .layer(layer("one", 3000))
            .index_platform("amd64");
        let both = sample().index_platform("arm64").also(other);
        for archive in [both.clone(), both.nested()] {
            let configs = check(&archive.build()).unwrap();
            let arches: Vec<_> = configs.iter().map(|config| config["architecture"].as_str()).collect();
            assert_eq!(arches, [Some("arm64"), Some("amd64")]);
            let (files, names) = files(&archive.build());
            assert_eq!(files.len(), names.len(), "no blob is there twice");
        }
    }

    #[test]
    fn order_names_size_and_end_can_be_chosen() {
        let (_, names) = files(&sample().index_first().build());
        assert_eq!(names[..2], ["oci-layout", "index.json"]);
        check(&sample().index_first().build()).unwrap();

        let archive = sample().pax_names().build();
        check(&archive).unwrap();
        let raw = tar_entries(&archive);
        assert_eq!(raw, 2 * files(&archive).1.len(), "each entry has a PAX header");

        let huge = sample().huge_index(5_000_000).build();
        check(&huge).unwrap();
        assert!(files(&huge).0["index.json"].len() > 5_000_000);

        let whole = sample().build();
        assert_eq!(sample().truncated(2000).build(), whole[..2000]);

        let extra = sample().entry(Entry::file("../x", "y")).build();
        let (_, names) = files(&extra);
        assert!(names.contains(&"../x".to_owned()));
    }

    fn tar_entries(archive: &[u8]) -> usize {
        ::tar::Archive::new(archive).entries().unwrap().raw(true).count()
    }
}
