//! A gallery, a container, a compose, and the program's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader_test_support::amqp::Spy;
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise, xz_blocks};
use cloud_image_uploader_test_support::azure::{ACCOUNT, Azure, Azurite, GROUP, vhd};
use cloud_image_uploader_test_support::program::{Exit, Program};
use cloud_image_uploader_test_support::proxy::Proxy;
use cloud_image_uploader_test_support::rabbit::{DAEMON, Options, Rabbit};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tempfile::TempDir;

/// Upper bound on a run of the program, far above its usual time.
pub const LIMIT: Duration = Duration::from_secs(120);
pub const COMPOSE: &str = "Fedora-43-20251024.0";
pub const GALLERY: &str = "Fedora";
pub const X64: &str = "Fedora-Cloud-43-x64";
pub const ARM64: &str = "Fedora-Cloud-43-Arm64";
/// The version of a candidate.
pub const VERSION: &str = "43.20251024.100";
const PROGRAM: &str = env!("CARGO_BIN_EXE_cloud-image-uploader");

pub struct World {
    pub azure: Azure,
    pub azurite: Azurite,
    pub folder: TempDir,
    regions: Vec<String>,
    section: String,
    top: String,
    release_data: PathBuf,
    give_up_after: &'static str,
    blob_endpoint: String,
}

impl World {
    /// A world with an empty container and no gallery.
    pub async fn new(regions: &[&str]) -> Self {
        let azurite = Azurite::start().await.unwrap();
        Self {
            blob_endpoint: azurite.url().to_owned(),
            azure: Azure::start(Some(&azurite)).await.unwrap(),
            azurite,
            folder: tempfile::tempdir().unwrap(),
            regions: regions.iter().map(|&region| region.to_owned()).collect(),
            section: String::new(),
            top: String::new(),
            release_data: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/release-data"),
            give_up_after: "60s",
        }
    }

    /// A world that announces on a broker of its own, and a listener there.
    pub async fn announcing(regions: &[&str]) -> (Self, Rabbit, Spy) {
        let rabbit = Rabbit::start(Options::default()).await.unwrap();
        let admin = rabbit.admin().await.unwrap();
        let spy = admin
            .spy("org.fedoraproject.prod.fedora_image_uploader.#")
            .await
            .unwrap();
        let mut world = Self::new(regions).await;
        let keys = world.folder.path().join("keys");
        std::fs::create_dir(&keys).unwrap();
        let tls = rabbit.tls_table(DAEMON, &keys).unwrap();
        world.top = format!(
            "amqp_url = \"{}\"\npublish_exchange = \"amq.topic\"\ntopic_prefix = \"org.fedoraproject.prod\"\n{tls}",
            rabbit.tls_url(DAEMON)
        );
        (world, rabbit, spy)
    }

    /// Adds lines to the provider's section.
    pub fn with(mut self, lines: &str) -> Self {
        self.section += lines;
        self
    }

    /// Blobs are reached through a proxy.
    pub async fn behind_a_proxy(mut self) -> (Self, Proxy) {
        let proxy = Proxy::start(self.azurite.port()).await.unwrap();
        self.blob_endpoint = format!("https://127.0.0.1:{}/{ACCOUNT}", proxy.port());
        (self, proxy)
    }

    /// Sets `give_up_after`.
    pub fn giving_up_after(mut self, time: &'static str) -> Self {
        self.give_up_after = time;
        self
    }

    /// Fedora 43 is past its end of life.
    pub fn long_ago(mut self) -> Self {
        let folder = self.folder.path().join("release-data");
        std::fs::create_dir_all(folder.join("releases")).unwrap();
        for name in ["release.json", "releases/F43"] {
            let text = std::fs::read_to_string(self.release_data.join(name)).unwrap();
            std::fs::write(folder.join(name), text.replace("2026-12-09", "2020-12-09")).unwrap();
        }
        self.release_data = folder;
        self
    }

    /// A compose with these images, in a folder.
    pub fn compose(&self, rows: Vec<Row>) -> PathBuf {
        let folder = self.folder.path().join("compose");
        let compose = ComposeBuilder::new(COMPOSE, Some("RC-1.7"));
        let compose = rows.into_iter().fold(compose, ComposeBuilder::image);
        compose.write(&folder).unwrap();
        folder
    }

    /// The configuration of a target region.
    pub fn region(name: &str) -> String {
        format!(
            "[[consumer_config.azure.target_regions]]\nname = \"{name}\"\nregional_replica_count = 3\n\
             storage_account_type = \"Standard_ZRS\"\n"
        )
    }

    pub fn config(&self) -> String {
        let regions: String = self.regions.iter().map(|name| Self::region(name)).collect();
        let announce = !self.top.is_empty();
        format!(
            r#"
{top}
[consumer_config]
release_metadata_url = "{data}/release.json"
bodhi_url = "{data}"
give_up_after = "{give_up_after}"
location_patience = "1s"
[consumer_config.azure]
publish_amqp_messages = {announce}
location = "eastus"
resource_group_name = "{GROUP}"
storage_account_name = "{ACCOUNT}"
storage_container_name = "{container}"
gallery_name = "{GALLERY}"
gallery_description = "Images of Fedora"
resource_manager_endpoint = "{arm}"
authority_host = "{arm}"
blob_endpoint = "{blobs}"
{section}
{regions}
"#,
            top = self.top,
            data = self.release_data.display(),
            give_up_after = self.give_up_after,
            arm = self.azure.url(),
            blobs = self.blob_endpoint,
            container = self.azurite.container(),
            section = self.section,
        )
    }

    /// The program with everything it needs but a command.
    pub fn program(&self) -> Program {
        self.program_with(&self.config())
    }

    pub fn program_with(&self, config: &str) -> Program {
        let program = Program::new(PROGRAM).unwrap().config(config).unwrap();
        let program = program.env("SSL_CERT_FILE", self.azurite.ca());
        let variables = self.azure.environment();
        variables
            .iter()
            .fold(program, |program, (name, value)| program.env(name, value))
    }

    pub async fn run(&self, arguments: &[&str]) -> Exit {
        self.program().args(arguments).run(LIMIT).await.unwrap()
    }

    /// `reconsume` of the compose's folder, and more arguments.
    pub fn reconsuming(&self, arguments: &[&str]) -> Program {
        let compose = self.folder.path().join("compose");
        self.program()
            .args(["reconsume", "--compose"])
            .arg(compose)
            .args(arguments)
    }

    pub async fn reconsume(&self, arguments: &[&str]) -> Exit {
        self.reconsuming(arguments).run(LIMIT).await.unwrap()
    }

    /// Asserts that a disk was published: one version, of exactly these bytes, and no blob.
    pub async fn assert_published(&self, definition: &str, disk: &[u8]) {
        let imported = self.azure.imported(GALLERY, definition, VERSION);
        assert!(
            imported.as_deref() == Some(disk),
            "{definition} was imported from other bytes"
        );
        let properties = self.version(definition);
        assert_eq!(properties["provisioningState"], "Succeeded", "{properties}");
        assert_eq!(
            properties["publishingProfile"]["excludeFromLatest"], true,
            "{properties}"
        );
        self.assert_no_blobs().await;
    }

    /// The properties of the version.
    pub fn version(&self, definition: &str) -> Value {
        let mut version = self.azure.version(GALLERY, definition, VERSION).unwrap();
        version["properties"].take()
    }

    /// The regions where the version is complete.
    pub fn regions(&self) -> Vec<String> {
        let properties = self.version(X64);
        let summary = properties["replicationStatus"]["summary"].as_array().unwrap();
        let complete = summary.iter().filter(|region| region["state"] == "Completed");
        let name = |region: &Value| region["region"].as_str().unwrap().replace(' ', "").to_lowercase();
        complete.map(name).collect()
    }

    /// The number of calls of this name.
    pub fn count(&self, call: &str) -> usize {
        self.azure.calls().iter().filter(|made| made.name == call).count()
    }

    pub async fn assert_no_blobs(&self) {
        assert_eq!(self.azurite.blobs().await.unwrap(), Vec::<String>::new());
    }

    /// Asserts that nothing was published, and no blob is left.
    pub async fn assert_nothing(&self) {
        assert!(self.azure.versions().is_empty(), "{:?}", self.azure.versions());
        self.assert_no_blobs().await;
    }
}

/// Runs a test for each case, a few at a time: most of it is waiting.
pub async fn each<T, F: Future<Output = ()>>(cases: impl IntoIterator<Item = T>, test: impl FnMut(T) -> F) {
    stream::iter(cases).for_each_concurrent(4, test).await;
}

/// A disk of a few MiB with data and holes, different for each architecture, with its footer.
pub fn disk(arch: &str) -> Vec<u8> {
    let seed = arch.len() as u64;
    let mut disk = vec![0; 9 << 20];
    for (at, size) in [(0, 700_000), (5 << 20, 1_500_000), ((9 << 20) - 5000, 5000)] {
        disk[at..at + size].copy_from_slice(&noise(seed + at as u64, size));
    }
    vhd(&disk)
}

/// A disk as Fedora's composes list it.
pub fn row(arch: &str, disk: &[u8]) -> Row {
    let name = format!("Fedora-Cloud-Base-Azure-43-1.7.{arch}.vhdfixed.xz");
    let stored = xz_blocks(disk, 1 << 20);
    Row::new("vhd-compressed", "vhd.xz", "Cloud_Base", arch, &name, stored)
}
