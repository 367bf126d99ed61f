//! The program with the local provider, from outside: what it leaves in the folder, and what it says.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod disks;
mod encoding;
mod hostile;
mod hosts;
#[cfg(not(all(feature = "signatures", feature = "mail")))]
mod left_out;
mod metadata;
mod repair;
mod sample;
#[cfg(feature = "signatures")]
mod signatures;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader_test_support::archive::{ComposeBuilder, OciArchive, Row, layer, noise, xz_blocks};
use cloud_image_uploader_test_support::program::{Exit, Program};
use tempfile::TempDir;

/// Nothing here takes that long, even beside a compiler.
const LIMIT: Duration = Duration::from_secs(60);
const PROGRAM: &str = env!("CARGO_BIN_EXE_cloud-image-uploader");
const COMPOSE: &str = "Fedora-43-20251024.0";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A compose's folder, the folder it is published to, and the configuration file.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let desk = Self { folder };
        desk.configure(&desk.published());
        desk
    }

    /// Publish to this directory.
    fn configure(&self, directory: &Path) {
        let (data, directory) = (fixtures().join("release-data"), directory.display());
        let data = data.display();
        let text = format!(
            "[consumer_config]\nrelease_metadata_url = \"{data}/release.json\"\nbodhi_url = \"{data}\"\n\
             [consumer_config.local]\ndirectory = \"{directory}\"\n"
        );
        fs::write(self.conf(), text).unwrap();
    }

    fn conf(&self) -> PathBuf {
        self.folder.path().join("local.toml")
    }

    fn compose(&self) -> PathBuf {
        self.folder.path().join("compose")
    }

    fn published(&self) -> PathBuf {
        self.folder.path().join("published")
    }

    fn program(&self, arguments: &[&str]) -> Program {
        let program = Program::new(PROGRAM).unwrap().arg("--conf").arg(self.conf());
        program.args(arguments)
    }

    async fn run(&self, arguments: &[&str]) -> Exit {
        self.program(arguments).run(LIMIT).await.unwrap()
    }

    /// `reconsume` of the compose's folder, and more arguments.
    async fn reconsume(&self, arguments: &[&str]) -> Exit {
        let compose = self.compose();
        let first = ["reconsume", "--compose", compose.to_str().unwrap()];
        self.run(&[&first[..], arguments].concat()).await
    }

    /// Every file below the published folder, by its path there, but for the lock.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.published(), "", &mut files);
        files.remove(".lock");
        files
    }

    /// The names of these files.
    fn names(&self) -> Vec<String> {
        self.files().into_keys().collect()
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// The decompressed content of the disk of this architecture.
fn disk(arch: &str) -> Vec<u8> {
    let seed = arch.len() as u64;
    [noise(seed, 700_000), vec![0; 4 << 20], noise(seed + 1, 800_160)].concat()
}

fn disk_row(arch: &str) -> Row {
    let name = format!("Disk.{arch}.raw.xz");
    Row::new(
        "raw-xz",
        "raw.xz",
        "Cloud_Base",
        arch,
        &name,
        xz_blocks(&disk(arch), 1 << 20),
    )
}

fn container_row(arch: &str) -> Row {
    let ours = if arch == "x86_64" { "amd64" } else { "arm64" };
    let archive = OciArchive::new(ours).layer(layer(arch, 200_000)).build();
    Row::ociarchive("Silverblue", arch, archive)
}

/// A compose of a disk and a container for each of two architectures.
fn compose() -> ComposeBuilder {
    let builder = ComposeBuilder::new(COMPOSE, Some("RC-1.7"));
    ["aarch64", "x86_64"].iter().fold(builder, |builder, arch| {
        builder.image(disk_row(arch)).image(container_row(arch))
    })
}

/// Where a disk of [`compose`] is published.
fn disk_path(arch: &str) -> String {
    format!("{COMPOSE}/{arch}/Disk.{arch}.raw")
}

/// Asserts that all of [`compose`] is published, and nothing else lies about.
#[track_caller]
fn assert_complete(desk: &Desk) {
    let files = desk.files();
    for arch in ["aarch64", "x86_64"] {
        let path = disk_path(arch);
        let found = files.get(&path).map(Vec::as_slice);
        assert!(
            found == Some(&disk(arch)),
            "{path} is {:?} bytes",
            found.map(<[u8]>::len)
        );
        assert!(files.contains_key(&format!("{path}.mark.json")), "{path}");
    }
    assert!(files.contains_key(&format!("{COMPOSE}/oci/Silverblue/index.json")));
    assert_no_leftovers(desk);
}

#[track_caller]
fn assert_no_leftovers(desk: &Desk) {
    let names = desk.names();
    let hidden: Vec<_> = names
        .iter()
        .filter(|name| name.contains("/.") || name.contains(".partial"))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}
