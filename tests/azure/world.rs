//! A gallery, a container, a compose, and the program's configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise, xz_blocks};
use cloud_image_uploader_test_support::azure::{ACCOUNT, Azure, Azurite, GROUP, Sdk, vhd};
use cloud_image_uploader_test_support::program::{Exit, Program};
use tempfile::TempDir;

/// Far more than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(120);
pub const COMPOSE: &str = "Fedora-43-20251024.0";
pub const GALLERY: &str = "Fedora";
pub const X64: &str = "Fedora-Cloud-43-x64";
pub const ARM64: &str = "Fedora-Cloud-43-Arm64";
/// Of a candidate.
pub const VERSION: &str = "43.20251024.100";
const PROGRAM: &str = env!("CARGO_BIN_EXE_cloud-image-uploader");

pub struct World {
    pub azure: Azure,
    pub azurite: Azurite,
    pub folder: TempDir,
    regions: Vec<String>,
    section: String,
    top: String,
}

impl World {
    /// Nothing is there but an empty container.
    pub async fn new(regions: &[&str]) -> Self {
        let azurite = Azurite::start().await.unwrap();
        Self {
            azure: Azure::start(Some(&azurite)).await.unwrap(),
            azurite,
            folder: tempfile::tempdir().unwrap(),
            regions: regions.iter().map(|&region| region.to_owned()).collect(),
            section: String::new(),
            top: String::new(),
        }
    }

    /// More lines for the provider's section.
    pub fn with(mut self, lines: &str) -> Self {
        self.section += lines;
        self
    }

    /// Lines for the beginning of the file.
    pub fn with_broker(mut self, lines: &str) -> Self {
        self.top += lines;
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

    pub fn config(&self) -> String {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/release-data");
        let regions: String = self
            .regions
            .iter()
            .map(|name| {
                format!(
                    "[[consumer_config.azure.target_regions]]\nname = \"{name}\"\nregional_replica_count = 3\n\
                     storage_account_type = \"Standard_ZRS\"\n"
                )
            })
            .collect();
        let announce = !self.top.is_empty();
        format!(
            r#"
{top}
[consumer_config]
release_metadata_url = "{data}/release.json"
bodhi_url = "{data}"
give_up_after = "20s"
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
            data = data.display(),
            arm = self.azure.url(),
            blobs = self.azurite.url(),
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

    /// What must be so after a disk was published: one version, of exactly these bytes, and no blob.
    pub async fn assert_published(&self, definition: &str, disk: &[u8]) {
        let imported = self.azure.imported(GALLERY, definition, VERSION);
        assert!(
            imported.as_deref() == Some(disk),
            "{definition} was made of other bytes"
        );
        let sdk = Sdk::new(&self.azure, &self.azurite).unwrap();
        let version = sdk.version(GALLERY, definition, VERSION).await.unwrap();
        assert_eq!(version["provisioning_state"], "Succeeded", "{version}");
        assert_eq!(version["publishing_profile"]["exclude_from_latest"], true, "{version}");
        self.assert_no_blobs().await;
    }

    pub async fn assert_no_blobs(&self) {
        assert_eq!(self.azurite.blobs().await.unwrap(), Vec::<String>::new());
    }

    /// Nothing was published, and nothing lies about.
    pub async fn assert_nothing(&self) {
        assert!(self.azure.versions().is_empty(), "{:?}", self.azure.versions());
        self.assert_no_blobs().await;
    }
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
