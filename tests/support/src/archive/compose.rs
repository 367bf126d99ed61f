//! A finished compose in a folder: metadata as pungi writes it (productmd 1.2), and the images it names.

use std::{fs, io, path::Path, path::PathBuf};

use serde_json::{Map, Value, json};

use super::{MTIME, sha256};

/// One row of images.json with its file.
#[derive(Clone, Debug)]
pub struct Row {
    /// The variant, first folder of the path: `Cloud`.
    pub variant: String,
    /// `raw-xz`, `container`, …
    pub kind: String,
    /// `raw.xz`, `tar.xz`, …
    pub format: String,
    /// `Cloud_Base`, `Silverblue`, …
    pub subvariant: String,
    /// Fedora's name: `x86_64`, `aarch64`, …
    pub arch: String,
    /// The name of the file.
    pub file_name: String,
    /// Its content.
    pub bytes: Vec<u8>,
    /// The checksum to state, where it is not the content's.
    pub checksum: Option<String>,
    /// The size to state, where it is not the content's.
    pub size: Option<u64>,
    /// Name the file, but do not write it.
    pub missing: bool,
}

impl Row {
    /// A row with every column that tells images apart. The variant is the subvariant up to its first `_`, as with
    /// `Cloud_Base` in `Cloud`.
    pub fn new(
        kind: &str,
        format: &str,
        subvariant: &str,
        arch: &str,
        file_name: &str,
        bytes: impl Into<Vec<u8>>,
    ) -> Self {
        let variant = subvariant.split('_').next().unwrap_or(subvariant);
        Self {
            variant: variant.to_owned(),
            kind: kind.to_owned(),
            format: format.to_owned(),
            subvariant: subvariant.to_owned(),
            arch: arch.to_owned(),
            file_name: file_name.to_owned(),
            bytes: bytes.into(),
            checksum: None,
            size: None,
            missing: false,
        }
    }

    /// A container archive in `tar.xz`, as Fedora has them since 42.
    pub fn container(subvariant: &str, arch: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let file_name = format!("Fedora-{}.{arch}.oci.tar.xz", subvariant.replace('_', "-"));
        Self::new("container", "tar.xz", subvariant, arch, &file_name, bytes)
    }

    /// The archive of a bootable container. Its name does not tell the architecture, as with those of 2024.
    pub fn ociarchive(subvariant: &str, arch: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let file_name = format!("Fedora-{subvariant}.ociarchive");
        Self::new("bootable-container", "ociarchive", subvariant, arch, &file_name, bytes)
    }

    /// States the checksum of something else.
    pub fn wrong_checksum(mut self) -> Self {
        self.checksum = Some(sha256(b"something else"));
        self
    }

    /// States this size.
    pub fn wrong_size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Leaves the file out.
    pub fn missing(mut self) -> Self {
        self.missing = true;
        self
    }

    /// The path below the compose, as images.json gives it.
    pub fn path(&self) -> String {
        format!("{}/{}/images/{}", self.variant, self.arch, self.file_name)
    }

    fn json(&self) -> Value {
        let checksum = self.checksum.clone().unwrap_or_else(|| sha256(&self.bytes));
        json!({
            "arch": self.arch,
            "bootable": false,
            "checksums": {"sha256": checksum},
            "disc_count": 1,
            "disc_number": 1,
            "format": self.format,
            "implant_md5": null,
            "mtime": MTIME,
            "path": self.path(),
            "size": self.size.unwrap_or(self.bytes.len() as u64),
            "subvariant": self.subvariant,
            "type": self.kind,
            "volume_id": null,
        })
    }
}

/// Builds a compose in a folder.
#[derive(Clone, Debug)]
pub struct ComposeBuilder {
    id: String,
    label: Option<String>,
    rows: Vec<Row>,
    composeinfo: bool,
    metadata_id: Option<String>,
    header_version: String,
}

impl ComposeBuilder {
    /// A compose of this id, `Fedora-43-20251023.0`, and label, `RC-1.6`, where it has one.
    pub fn new(id: &str, label: Option<&str>) -> Self {
        Self {
            id: id.to_owned(),
            label: label.map(str::to_owned),
            rows: Vec::new(),
            composeinfo: true,
            metadata_id: None,
            header_version: "1.2".to_owned(),
        }
    }

    /// Adds an image.
    pub fn image(mut self, row: Row) -> Self {
        self.rows.push(row);
        self
    }

    /// Leaves composeinfo.json out.
    pub fn without_composeinfo(mut self) -> Self {
        self.composeinfo = false;
        self
    }

    /// Lets the metadata say another compose id.
    pub fn metadata_id(mut self, id: &str) -> Self {
        self.metadata_id = Some(id.to_owned());
        self
    }

    /// Lets the metadata say another version of its format.
    pub fn header_version(mut self, version: &str) -> Self {
        self.header_version = version.to_owned();
        self
    }

    /// The content of images.json.
    pub fn images_json(&self) -> Value {
        let mut images = Map::new();
        for row in &self.rows {
            let arches = images.entry(&row.variant).or_insert_with(|| json!({}));
            match &mut arches[&row.arch] {
                Value::Array(rows) => rows.push(row.json()),
                none => *none = json!([row.json()]),
            }
        }
        json!({
            "header": {"type": "productmd.images", "version": self.header_version},
            "payload": {"compose": self.about(), "images": images},
        })
    }

    /// The content of composeinfo.json.
    pub fn composeinfo_json(&self) -> Value {
        let mut about = self.about();
        if let Some(label) = &self.label {
            about["label"] = json!(label);
            about["final"] = json!(true);
        }
        let (short, version) = release(&self.id);
        json!({
            "header": {"type": "productmd.composeinfo", "version": self.header_version},
            "payload": {
                "compose": about,
                "release": {"internal": false, "name": short, "short": short, "type": "ga", "version": version},
                "variants": {},
            },
        })
    }

    /// Writes metadata and images below `folder`, which becomes the compose's location.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let metadata = folder.join("metadata");
        fs::create_dir_all(&metadata)?;
        fs::write(metadata.join("images.json"), self.images_json().to_string())?;
        if self.composeinfo {
            fs::write(metadata.join("composeinfo.json"), self.composeinfo_json().to_string())?;
        }
        for row in self.rows.iter().filter(|row| !row.missing) {
            let path: PathBuf = folder.join(row.path());
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, &row.bytes)?;
        }
        Ok(())
    }

    /// The message that announces the compose: see [`message`].
    pub fn message(&self, location: &str) -> Value {
        message(&self.id, self.label.as_deref(), location)
    }

    fn about(&self) -> Value {
        let (date, kind, respin) = date_kind_respin(&self.id);
        let id = self.metadata_id.as_ref().unwrap_or(&self.id);
        json!({"date": date, "id": id, "respin": respin, "type": kind})
    }
}

/// A finished compose's message in the serialized form of datagrepper and `fedora-messaging publish`.
///
/// Every call gives the same message id, made from the compose id.
pub fn message(compose_id: &str, label: Option<&str>, location: &str) -> Value {
    let (date, kind, respin) = date_kind_respin(compose_id);
    let (short, version) = release(compose_id);
    let random = sha256(compose_id.as_bytes());
    let id = format!(
        "{}-{}-4{}-8{}-{}",
        &random[..8],
        &random[8..12],
        &random[12..15],
        &random[15..18],
        &random[18..30]
    );
    json!({
        "body": {
            "status": "FINISHED",
            "compose_id": compose_id,
            "location": location,
            "compose_date": date,
            "compose_type": kind,
            "compose_respin": respin,
            "compose_label": label,
            "release_short": short,
            "release_name": short,
            "release_version": version,
            "release_type": "ga",
            "release_is_layered": false,
        },
        "headers": {
            "fedora_messaging_schema": "base.message",
            "fedora_messaging_severity": 20,
            "priority": 0,
            "sent-at": "2025-10-24T00:00:00+00:00",
        },
        "id": id,
        "priority": 0,
        "queue": null,
        "topic": "org.fedoraproject.prod.pungi.compose.status.change",
    })
}

/// Date, type, and respin at the end of a compose id: `20240829`, `nightly`, 1 of `Fedora-Rawhide-20240829.n.1`.
fn date_kind_respin(id: &str) -> (&str, &'static str, u64) {
    let end = id.rsplit('-').next().unwrap_or_default();
    let mut parts = end.split('.');
    let date = parts.next().unwrap_or_default();
    let kind = if end.contains(".n.") { "nightly" } else { "production" };
    let respin = parts.next_back().and_then(|respin| respin.parse().ok());
    (date, kind, respin.unwrap_or_default())
}

/// Short name and version: `Fedora-Cloud` and `43` of `Fedora-Cloud-43-20251024.0`.
fn release(id: &str) -> (&str, &str) {
    let release = id.rsplit_once('-').map_or(id, |(release, _)| release);
    release.rsplit_once('-').unwrap_or((release, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ComposeBuilder {
        ComposeBuilder::new("Fedora-43-20251023.2", Some("RC-1.6"))
            .image(Row::container("Container_Base", "x86_64", "one"))
            .image(Row::ociarchive("Silverblue", "aarch64", "three"))
    }

    #[test]
    fn files_are_where_the_metadata_says_with_size_and_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let two = Row::container("Container_Toolbox", "x86_64", "two");
        sample().image(two).write(folder.path()).unwrap();
        let metadata = fs::read(folder.path().join("metadata/images.json")).unwrap();
        let metadata: Value = serde_json::from_slice(&metadata).unwrap();
        let images = &metadata["payload"]["images"];
        assert_eq!(images["Container"]["x86_64"].as_array().unwrap().len(), 2);
        assert_eq!(images["Silverblue"]["aarch64"].as_array().unwrap().len(), 1);
        for row in images["Container"]["x86_64"].as_array().unwrap() {
            let bytes = fs::read(folder.path().join(row["path"].as_str().unwrap())).unwrap();
            assert_eq!(row["size"], bytes.len());
            assert_eq!(row["checksums"]["sha256"], sha256(&bytes));
        }
        let info = fs::read(folder.path().join("metadata/composeinfo.json")).unwrap();
        let info: Value = serde_json::from_slice(&info).unwrap();
        assert_eq!(info["payload"]["compose"]["label"], "RC-1.6");
    }

    #[test]
    fn every_fault_is_where_it_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let row = || Row::container("Container_Base", "x86_64", "one");
        let lies = ComposeBuilder::new("Fedora-Rawhide-20240829.n.1", None)
            .image(row().wrong_checksum())
            .image(row().wrong_size(7))
            .without_composeinfo()
            .metadata_id("Fedora-Rawhide-20240830.n.0")
            .header_version("2.0");
        let metadata = lies.images_json();
        let rows = &metadata["payload"]["images"]["Container"]["x86_64"];
        assert_ne!(rows[0]["checksums"]["sha256"], sha256(b"one"));
        assert_eq!((&rows[0]["size"], &rows[1]["size"]), (&json!(3), &json!(7)));
        assert_eq!(metadata["payload"]["compose"]["id"], "Fedora-Rawhide-20240830.n.0");
        assert_eq!(metadata["header"]["version"], "2.0");

        lies.image(Row::ociarchive("Onyx", "x86_64", "four").missing())
            .write(folder.path())
            .unwrap();
        assert!(!folder.path().join("metadata/composeinfo.json").exists());
        assert!(!folder.path().join("Onyx").exists());
    }

    #[test]
    fn the_id_tells_date_type_respin_and_release() {
        let cases = [
            ("Fedora-43-20251023.2", ("20251023", "production", 2), ("Fedora", "43")),
            (
                "Fedora-Rawhide-20240829.n.1",
                ("20240829", "nightly", 1),
                ("Fedora", "Rawhide"),
            ),
            (
                "Fedora-Cloud-27-20180317.0",
                ("20180317", "production", 0),
                ("Fedora-Cloud", "27"),
            ),
        ];
        for (id, about, name) in cases {
            assert_eq!((date_kind_respin(id), release(id)), (about, name), "{id}");
        }
    }

    /// Ours against one that really has this form.
    #[test]
    fn the_message_has_the_keys_of_a_real_one() {
        let real = include_str!("../../../fixtures/messages/constructed/finished-Fedora-43-20251023.0.json");
        let mut real: Value = serde_json::from_str(real).unwrap();
        real["body"].as_object_mut().unwrap().remove("compose_path");
        let location = real["body"]["location"].as_str().unwrap().to_owned();
        let mut ours = message("Fedora-43-20251023.0", Some("RC-1.6"), &location);
        let id = ours["id"].take();
        let parsed = uuid::Uuid::parse_str(id.as_str().unwrap()).unwrap();
        assert_eq!(parsed.get_version_num(), 4);
        ours["id"] = real["id"].clone();
        ours["headers"]["sent-at"] = real["headers"]["sent-at"].clone();
        assert_eq!(ours, real);
    }
}
