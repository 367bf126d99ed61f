//! A folder. Its calls are those to where the compose is.

use std::fs;
use std::path::{Path, PathBuf};

use cloud_image_uploader_test_support::archive::{
    ComposeBuilder, OciArchive, Row, layer, noise, sha256, xz, xz_blocks,
};
use cloud_image_uploader_test_support::files::Files;
use cloud_image_uploader_test_support::front::{self, Front};
use cloud_image_uploader_test_support::program::Program;
use serde_json::Value;
use tempfile::TempDir;

use crate::world::{Call, Found, World, reads};

const COMPOSE: &str = "Fedora-43-20251024.0";

pub struct Folder {
    folder: TempDir,
    front: Front,
    files: Files,
}

fn name(call: &front::Call<'_>) -> Option<&'static str> {
    Some(match call.path.rsplit('/').next()? {
        "images.json" => "read the metadata",
        "composeinfo.json" => "read the label",
        path if [".raw.xz", ".vhdfixed.xz", ".tar.gz"]
            .iter()
            .any(|end| path.ends_with(end)) =>
        {
            "read a disk"
        }
        path if path.ends_with(".oci.tar.xz") => "read an archive",
        _ => return None,
    })
}

impl Folder {
    fn published(&self) -> PathBuf {
        self.folder.path().join("published")
    }

    /// Where a compose of this id is, or is to be, so that it is [served](Self::served_at).
    pub fn place(&self, compose: &str) -> PathBuf {
        self.folder.path().join(compose)
    }

    /// The same for others than this program, through the front.
    pub fn served_at(&self, compose: &str) -> String {
        format!("{}/{compose}", self.front.url())
    }

    /// The server of the composes.
    pub fn files(&self) -> &Files {
        &self.files
    }
}

impl World for Folder {
    const NAME: &'static str = "local";
    const CALLS: &'static [Call] = &[
        reads("read the metadata"),
        reads("read the label"),
        reads("read a disk"),
        reads("read an archive"),
    ];

    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = [noise(1, 900_000), vec![0; 4 << 20], noise(2, 100_448)].concat();
        let disk = Row::new(
            "raw-xz",
            "raw.xz",
            "Cloud_Base",
            "x86_64",
            "Disk.raw.xz",
            xz_blocks(&disk, 1 << 20),
        );
        let archive = OciArchive::new("amd64").layer(layer("one", 300_000)).build();
        let archive = Row::container("Container_Base", "x86_64", xz(&archive));
        let compose = ComposeBuilder::new(COMPOSE, Some("RC-1.6"));
        compose
            .image(disk)
            .image(archive)
            .write(&folder.path().join("compose"))
            .unwrap();
        let files = Files::start(folder.path()).await.unwrap();
        let front = Front::start(&files.url(""), name).await.unwrap();
        Self { folder, front, files }
    }

    fn front(&self) -> &Front {
        &self.front
    }

    fn sections(&self, announces: bool) -> String {
        let published = self.published();
        format!("[consumer_config.local]\npublish_amqp_messages = {announces}\ndirectory = {published:?}\n")
    }

    fn lead(&self, program: Program) -> Program {
        program
    }

    async fn compose(&self) -> (&'static str, String) {
        (COMPOSE, self.served_at("compose"))
    }

    /// Every file, hidden ones too.
    async fn found(&self) -> Found {
        let mut found = Found::new();
        collect(&self.published(), "", &mut found);
        found
    }
}

fn collect(folder: &Path, prefix: &str, found: &mut Found) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), found);
        } else {
            let mut bytes = fs::read(entry.path()).unwrap();
            if name.ends_with(".mark.json") {
                let mut mark = serde_json::from_slice(&bytes).unwrap();
                forget_times(&mut mark);
                bytes = mark.to_string().into_bytes();
            }
            found.insert(name, sha256(&bytes));
        }
    }
}

/// Marks hold the times of modification of their files, which differ from run to run.
fn forget_times(mark: &mut Value) {
    match mark {
        Value::Object(members) => {
            members.retain(|name, _| !matches!(name.as_str(), "file-modified" | "modified"));
            members.values_mut().for_each(forget_times);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_times),
        _ => {}
    }
}
