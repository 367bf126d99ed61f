//! Docker archives, as `skopeo copy … docker-archive:` and `docker save` write them
//! (<https://github.com/moby/docker-image-spec/blob/main/spec.md>).

use std::{io, path::Path};

use serde_json::json;

use super::{
    Entry, digest_of,
    oci::{blob, config, index_of, manifest_of},
    sha256, tar,
};

/// Which program the archive looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Style {
    /// skopeo: layers by digest, then the config, legacy folders with links, `manifest.json`, `repositories`.
    #[default]
    Skopeo,
    /// docker before 25: every layer in its legacy folder.
    Classic,
    /// docker from 25 on: an OCI layout that has a `manifest.json` too.
    Hybrid,
}

/// Builds a docker archive; layers are not compressed.
#[derive(Clone, Debug, Default)]
pub struct DockerArchive {
    architecture: String,
    layers: Vec<Vec<u8>>,
    style: Style,
    manifest_first: bool,
    wrong_diff_ids: bool,
    link_outside: bool,
    missing_layers: Vec<usize>,
    extra: Vec<Entry>,
    truncated: Option<usize>,
}

impl DockerArchive {
    /// An image whose config names this architecture, in docker's words: `amd64`, `arm64`.
    pub fn new(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a layer: see [`super::layer`].
    pub fn layer(mut self, content: impl Into<Vec<u8>>) -> Self {
        self.layers.push(content.into());
        self
    }

    /// Lays the archive out as docker did before version 25: `<id>/layer.tar`.
    pub fn classic(mut self) -> Self {
        self.style = Style::Classic;
        self
    }

    /// Lays the archive out as docker does since version 25: an OCI layout and `manifest.json` over the same blobs.
    pub fn hybrid(mut self) -> Self {
        self.style = Style::Hybrid;
        self
    }

    /// Puts `manifest.json` before everything else.
    pub fn manifest_first(mut self) -> Self {
        self.manifest_first = true;
        self
    }

    /// Gives the config diff_ids that belong to no layer.
    pub fn wrong_diff_ids(mut self) -> Self {
        self.wrong_diff_ids = true;
        self
    }

    /// Makes the first layer that `manifest.json` names a link to a file outside.
    pub fn link_outside(mut self) -> Self {
        self.link_outside = true;
        self
    }

    /// Leaves a layer out, counted from 0.
    pub fn missing_layer(mut self, number: usize) -> Self {
        self.missing_layers.push(number);
        self
    }

    /// Adds an entry before `manifest.json`.
    pub fn entry(mut self, entry: Entry) -> Self {
        self.extra.push(entry);
        self
    }

    /// Cuts the archive after so many bytes.
    pub fn truncated(mut self, keep: usize) -> Self {
        self.truncated = Some(keep);
        self
    }

    /// The config's bytes, faults included.
    pub fn config(&self) -> Vec<u8> {
        config(&self.architecture, &self.layers, self.wrong_diff_ids)
    }

    /// The name of a layer in the archive, as `manifest.json` gives it.
    pub fn layer_name(&self, number: usize) -> String {
        let digest = sha256(&self.layers[number]);
        match self.style {
            Style::Skopeo => format!("{digest}.tar"),
            Style::Classic => format!("{}/layer.tar", self.legacy_id(number)),
            Style::Hybrid => format!("blobs/sha256/{digest}"),
        }
    }

    /// The entries of the archive in order, faults included.
    pub fn entries(&self) -> Vec<Entry> {
        let config = self.config();
        let config_name = match self.style {
            Style::Hybrid => format!("blobs/sha256/{}", sha256(&config)),
            Style::Skopeo | Style::Classic => format!("{}.json", sha256(&config)),
        };
        let names: Vec<_> = (0..self.layers.len()).map(|number| self.layer_name(number)).collect();
        let tag = "localhost/sample:43";
        let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": names}]);
        let manifest = Entry::file("manifest.json", manifest.to_string());
        let config = Entry::file(config_name, config);

        let mut entries = match self.style {
            Style::Skopeo => self.skopeo(config),
            Style::Classic => self.classic_folders(config),
            Style::Hybrid => self.layout(config),
        };
        entries.extend(self.extra.clone());
        if self.manifest_first {
            entries.insert(0, manifest);
        } else {
            entries.push(manifest);
        }
        match self.style {
            Style::Hybrid => {
                let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
                entries.push(Entry::file("oci-layout", version));
            }
            Style::Skopeo | Style::Classic => {
                let newest = self.layers.len().checked_sub(1).map(|last| self.legacy_id(last));
                let repositories = json!({"localhost/sample": {"43": newest}});
                entries.push(Entry::file("repositories", repositories.to_string()));
            }
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

    fn skopeo(&self, config: Entry) -> Vec<Entry> {
        let mut entries = self.layer_entries();
        entries.push(config);
        for number in 0..self.layers.len() {
            let target = format!("../{}", self.layer_name(number));
            let folder = self.legacy_id(number);
            entries.push(Entry::file(format!("{folder}/VERSION"), "1.0"));
            entries.push(Entry::symlink(format!("{folder}/layer.tar"), target));
            entries.push(Entry::file(format!("{folder}/json"), self.legacy_json(number)));
        }
        entries
    }

    fn classic_folders(&self, config: Entry) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (number, layer) in self.layer_entries().into_iter().enumerate() {
            let folder = self.legacy_id(number);
            entries.push(Entry::folder(format!("{folder}/")));
            entries.push(Entry::file(format!("{folder}/VERSION"), "1.0"));
            entries.push(Entry::file(format!("{folder}/json"), self.legacy_json(number)));
            entries.push(layer);
        }
        entries.push(config);
        entries
    }

    fn layout(&self, config: Entry) -> Vec<Entry> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| (digest_of(layer), layer.len() as u64))
            .collect();
        let layer_type = "application/vnd.oci.image.layer.v1.tar";
        let manifest = manifest_of(&self.config(), layer_type, &layers);
        let mut blobs = self.layer_entries();
        blobs.extend([config, blob(&manifest)]);
        blobs.sort_by(|one, other| one.name.cmp(&other.name));
        let folders = [Entry::folder("blobs/"), Entry::folder("blobs/sha256/")];
        let index = Entry::file("index.json", index_of(&manifest));
        folders.into_iter().chain(blobs).chain([index]).collect()
    }

    /// The layers, each name once: skopeo does not write a layer twice that occurs twice.
    fn layer_entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let name = self.layer_name(number);
            if self.missing_layers.contains(&number) || entries.iter().any(|entry| entry.name == name) {
                continue;
            }
            entries.push(if self.link_outside && number == 0 {
                Entry::symlink(name, "../../../../etc/passwd")
            } else {
                Entry::file(name, layer.clone())
            });
        }
        entries
    }

    /// A legacy id depends on the layer and all below it, so equal layers have different ones.
    fn legacy_id(&self, number: usize) -> String {
        let parent = number.checked_sub(1).map(|below| self.legacy_id(below));
        let chain = format!("{} {}", parent.unwrap_or_default(), sha256(&self.layers[number]));
        sha256(chain.as_bytes())
    }

    fn legacy_json(&self, number: usize) -> String {
        let parent = number.checked_sub(1).map(|below| self.legacy_id(below));
        json!({"id": self.legacy_id(number), "parent": parent, "os": "linux"}).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tar::EntryType;

    use super::*;
    use crate::archive::{layer, tests::parsed};

    fn sample() -> DockerArchive {
        DockerArchive::new("amd64")
            .layer(layer("one", 3000))
            .layer(layer("two", 10))
    }

    /// Config and layers as `manifest.json` names them; `None` where an entry is missing or no file.
    fn read(archive: &[u8]) -> (Value, Vec<Option<Vec<u8>>>) {
        let entries = parsed(archive);
        let find = |name: &str| {
            let entry = entries.iter().find(|entry| entry.0 == name)?;
            (entry.1 == EntryType::Regular).then(|| entry.3.clone())
        };
        let manifest: Value = serde_json::from_slice(&find("manifest.json").unwrap()).unwrap();
        let config = find(manifest[0]["Config"].as_str().unwrap()).unwrap();
        let layers = manifest[0]["Layers"].as_array().unwrap();
        let layers = layers.iter().map(|name| find(name.as_str().unwrap())).collect();
        (serde_json::from_slice(&config).unwrap(), layers)
    }

    fn diff_ids_match(archive: &[u8]) -> bool {
        let (config, layers) = read(archive);
        let digests: Vec<_> = layers.iter().flatten().map(|layer| digest_of(layer)).collect();
        config["rootfs"]["diff_ids"] == json!(digests)
    }

    #[test]
    fn every_style_holds_the_image() {
        for archive in [sample(), sample().classic(), sample().hybrid()] {
            let archive = archive.build();
            assert!(diff_ids_match(&archive));
            assert_eq!(read(&archive).0["architecture"], "amd64");
        }
    }

    #[test]
    fn styles_have_their_order_and_their_links() {
        let names = |archive: &DockerArchive| -> Vec<String> {
            parsed(&archive.build()).into_iter().map(|entry| entry.0).collect()
        };
        let skopeo = names(&sample());
        assert_eq!(skopeo[0], sample().layer_name(0));
        assert_eq!(skopeo[skopeo.len() - 2..], ["manifest.json", "repositories"]);
        let entries = parsed(&sample().build());
        let targets: Vec<_> = entries.iter().filter_map(|entry| entry.2.clone()).collect();
        let wanted = [0, 1].map(|number| format!("../{}", sample().layer_name(number)));
        assert_eq!(targets, wanted);

        assert_eq!(names(&sample().manifest_first())[0], "manifest.json");
        let hybrid = names(&sample().hybrid());
        assert!(hybrid.is_sorted(), "{hybrid:?}");
        assert_eq!(
            hybrid[hybrid.len() - 3..],
            ["index.json", "manifest.json", "oci-layout"]
        );
    }

    #[test]
    fn the_index_of_a_hybrid_names_the_same_config() {
        let entries = parsed(&sample().hybrid().build());
        let json = |name: &str| -> Value {
            let entry = entries.iter().find(|entry| entry.0 == name).unwrap();
            serde_json::from_slice(&entry.3).unwrap()
        };
        let path = |digest: &Value| digest.as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let manifest = json(&path(&json("index.json")["manifests"][0]["digest"]));
        assert_eq!(path(&manifest["config"]["digest"]), json("manifest.json")[0]["Config"]);
        assert_eq!(manifest["layers"][1]["digest"], digest_of(&layer("two", 10)));
    }

    #[test]
    fn every_fault_is_where_it_was_asked_for() {
        assert!(!diff_ids_match(&sample().wrong_diff_ids().build()));
        let (_, layers) = read(&sample().missing_layer(1).build());
        assert!(layers[0].is_some() && layers[1].is_none());
        let (_, layers) = read(&sample().link_outside().build());
        assert!(layers[0].is_none() && layers[1].is_some());
        let outside = parsed(&sample().link_outside().build());
        assert_eq!(outside[0].2.as_deref(), Some("../../../../etc/passwd"));
        let whole = sample().build();
        assert_eq!(sample().truncated(700).build(), whole[..700]);
    }

    #[test]
    fn equal_layers_are_stored_once() {
        let archive = sample().layer(layer("one", 3000)).build();
        assert!(diff_ids_match(&archive));
        let stored = parsed(&archive)
            .iter()
            .filter(|entry| entry.0.ends_with(".tar") && entry.1 == EntryType::Regular)
            .count();
        assert_eq!(stored, 2);
    }
}
