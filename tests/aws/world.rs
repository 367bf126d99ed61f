//! A cloud, a compose with a disk for each architecture, and the program that publishes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise, xz_blocks};
use cloud_image_uploader_test_support::aws::{BLOCK, Cloud, Image, Snapshot, State};
use cloud_image_uploader_test_support::program::{Exit, Program};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far more than anything here takes.
pub const LONG: Duration = Duration::from_secs(180);
pub const COMPOSE: &str = "Fedora-Cloud-43-20260305.0";
pub const BUCKET: &str = "fedora-s3-bucket-fedimg";
pub const ARCHES: [&str; 2] = ["aarch64", "x86_64"];
pub const TWO: [&str; 2] = ["us-east-1", "eu-west-1"];
/// Before the name of each tag of ours.
pub const PREFIX: &str = "cloud-image-uploader:";

/// How snapshots are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Import,
    Direct,
    DirectEverywhere,
}

impl Method {
    pub const ALL: [Self; 3] = [Self::Import, Self::Direct, Self::DirectEverywhere];

    fn toml(self) -> String {
        match self {
            Self::Import => format!("snapshot_method = \"s3-import\"\ns3_bucket_name = \"{BUCKET}\"\n"),
            Self::Direct => "snapshot_method = \"ebs-direct\"\n".to_owned(),
            Self::DirectEverywhere => "snapshot_method = \"ebs-direct\"\nebs_all_regions = true\n".to_owned(),
        }
    }
}

pub struct World {
    pub cloud: Cloud,
    pub folder: TempDir,
    pub regions: Vec<String>,
    pub method: Method,
    /// More lines of the section, and before them of the one above.
    pub extra: String,
    pub service: String,
    pub rows: Vec<Row>,
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Of every release, and always ahead: EC2 takes no deprecation date of the past.
pub fn end_of_life() -> String {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    today.saturating_add(jiff::Span::new().days(300)).to_string()
}

/// Three parts of an upload, most of them zeros, and an end in the middle of a block.
pub fn disk(arch: &str) -> Vec<u8> {
    let seed = if arch == "x86_64" { 1 } else { 2 };
    let mut disk = noise(seed, 3 << 20);
    disk.resize(16 << 20, 0);
    disk.extend(noise(seed + 2, (1 << 20) + 1024));
    disk
}

pub fn name(arch: &str) -> String {
    format!("Fedora-Cloud-Base-AmazonEC2.{arch}-43-20260305.0")
}

pub fn row(arch: &str, disk: &[u8]) -> Row {
    let file = format!("Fedora-Cloud-Base-AmazonEC2-43-20260305.0.{arch}.raw.xz");
    Row::new("raw-xz", "raw.xz", "Cloud_Base", arch, &file, xz_blocks(disk, 1 << 20))
}

impl World {
    /// Both architectures.
    pub async fn new(regions: &[&str], method: Method) -> Self {
        let rows = ARCHES.map(|arch| row(arch, &disk(arch)));
        Self::with(regions, method, rows.to_vec()).await
    }

    /// One architecture, where two show no more.
    pub async fn small(regions: &[&str], method: Method) -> Self {
        Self::with(regions, method, vec![row("x86_64", &disk("x86_64"))]).await
    }

    pub async fn with(regions: &[&str], method: Method, rows: Vec<Row>) -> Self {
        let cloud = Cloud::start(regions).await.unwrap();
        cloud.create_bucket(regions[0], BUCKET).await.unwrap();
        let world = Self {
            cloud,
            folder: tempfile::tempdir().unwrap(),
            regions: regions.iter().map(|region| (*region).to_owned()).collect(),
            method,
            extra: String::new(),
            service: "give_up_after = \"60s\"\nlocation_patience = \"1s\"\n".to_owned(),
            rows,
        };
        world.write(COMPOSE, None);
        world
    }

    /// Writes the compose and its message.
    pub fn write(&self, id: &str, label: Option<&str>) {
        let mut compose = ComposeBuilder::new(id, label);
        for row in &self.rows {
            compose = compose.image(row.clone());
        }
        compose.write(&self.folder.path().join("compose")).unwrap();
        let data = self.folder.path().join("release-data");
        std::fs::create_dir_all(data.join("releases")).unwrap();
        std::fs::copy(fixtures().join("release-data/release.json"), data.join("release.json")).unwrap();
        for number in ["42", "43"] {
            let release =
                json!({"name": format!("F{number}"), "version": number, "state": "current", "eol": end_of_life()});
            std::fs::write(data.join(format!("releases/F{number}")), release.to_string()).unwrap();
        }
        std::fs::write(self.message(), compose.message("compose").to_string()).unwrap();
    }

    pub fn message(&self) -> PathBuf {
        self.folder.path().join("message.json")
    }

    pub fn config(&self) -> String {
        self.config_with("", "publish_amqp_messages = false\n")
    }

    pub fn config_with(&self, broker: &str, section: &str) -> String {
        let release_data = self.folder.path().join("release-data");
        format!(
            r#"
{broker}
[consumer_config]
release_metadata_url = "{release_data}/release.json"
bodhi_url = "{release_data}"
{service}
[consumer_config.aws]
base_region = "{base}"
ami_regions = {regions:?}
ami_volume_dev_name = "/dev/sda1"
ami_volume_type = "gp3"
{method}{section}{extra}
"#,
            release_data = release_data.display(),
            service = self.service,
            base = self.regions[0],
            regions = self.regions,
            method = self.method.toml(),
            extra = self.extra,
        )
    }

    pub fn program(&self, command: &[&str]) -> Program {
        self.program_with(&self.config(), command)
    }

    pub fn program_with(&self, config: &str, command: &[&str]) -> Program {
        start(config, command, self.cloud.environment())
    }

    /// The program without a key in its environment.
    pub fn keyless(&self, command: &[&str]) -> Program {
        start(&self.config(), command, self.cloud.endpoints())
    }

    /// Runs a script with Amazon's SDK for Python, which must go well.
    pub fn python(&self, name: &str, script: &str) {
        let mut python = self.cloud.python(name, script).unwrap();
        assert!(python.status().unwrap().success(), "{script}");
    }

    /// The program that publishes the compose.
    pub fn reconsume(&self, more: &[&str]) -> Program {
        let message = self.message();
        self.program(&[&["reconsume", "--file", message.to_str().unwrap()], more].concat())
    }

    pub async fn publish(&self) -> Exit {
        self.reconsume(&[]).run(LONG).await.unwrap()
    }

    /// Publishes, which must go well.
    pub async fn published(&self) -> Exit {
        let exit = self.publish().await;
        assert_eq!(exit.code, Some(0), "{:?}\n{}{}", self.method, exit.stdout, exit.stderr);
        exit
    }

    pub fn image(&self, region: &str, arch: &str) -> Image {
        let images = self.cloud.images(region);
        let mut found = images.into_iter().filter(|image| image.name == name(arch));
        let image = found.next();
        image.unwrap_or_else(|| panic!("no image of {arch} in {region}"))
    }

    pub fn snapshot(&self, region: &str, id: &str) -> Snapshot {
        let mut snapshots = self.cloud.snapshots(region).into_iter();
        snapshots.find(|snapshot| snapshot.id == id).unwrap()
    }

    /// Every region has each image once, public, made of the disk; and nothing else is there.
    pub fn assert_complete(&self) {
        let regions: Vec<&str> = self.regions.iter().map(String::as_str).collect();
        self.assert_complete_in(&regions);
        assert_eq!(self.cloud.leftovers(), Vec::<String>::new());
    }

    pub fn assert_complete_in(&self, regions: &[&str]) {
        for region in regions {
            assert_eq!(self.cloud.images(region).len(), self.rows.len(), "{region}");
            assert_eq!(self.cloud.snapshots(region).len(), self.rows.len(), "{region}");
            for row in &self.rows {
                let image = self.image(region, &row.arch);
                assert_eq!(image.state, State::Ready, "{region}");
                assert!(image.permissions.public, "{region}");
                let snapshot = self.snapshot(region, &image.devices[0].snapshot);
                assert!(snapshot.permissions.public, "{region}");
                assert_content(&snapshot, &disk(&row.arch));
            }
        }
    }

    /// Nothing of the image is anywhere.
    pub fn assert_nothing(&self) {
        for region in &self.regions {
            assert!(self.cloud.images(region).is_empty(), "{region}");
        }
        assert_eq!(self.cloud.leftovers(), Vec::<String>::new());
    }

    /// The bytes of the images are gone; the metadata stay.
    pub fn remove_images(&self) {
        for row in &self.rows {
            std::fs::remove_file(self.folder.path().join("compose").join(row.path())).unwrap();
        }
    }
}

fn start(config: &str, command: &[&str], environment: Vec<(String, String)>) -> Program {
    let program = Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader")).unwrap();
    let program = program.config(config).unwrap().args(command);
    let variables = environment.into_iter();
    variables.fold(program, |program, (name, value)| program.env(&name, value))
}

/// The snapshot holds the disk, and not more.
pub fn assert_content(snapshot: &Snapshot, disk: &[u8]) {
    let expected: BTreeMap<u32, Vec<u8>> = disk
        .chunks(BLOCK)
        .zip(0..)
        .filter(|(chunk, _)| chunk.iter().any(|byte| *byte != 0))
        .map(|(chunk, index)| {
            let mut block = chunk.to_vec();
            block.resize(BLOCK, 0);
            (index, block)
        })
        .collect();
    let indexes: Vec<u32> = snapshot.blocks.keys().copied().collect();
    assert_eq!(indexes, expected.keys().copied().collect::<Vec<_>>());
    let differs = expected
        .iter()
        .find(|(index, block)| snapshot.blocks[*index][..] != block[..]);
    assert!(differs.is_none(), "block {:?} differs", differs.map(|(index, _)| index));
}

/// The value of a tag of ours.
pub fn tag<'a>(tags: &'a Value, name: &str) -> Option<&'a str> {
    let tags = tags.as_array()?;
    let found = tags.iter().find(|tag| tag["Key"] == *name)?;
    found["Value"].as_str()
}
