//! A cloud, a provider, composes on disk, and helpers of the tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader::base::failure::Failure;
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::{self, Config, Environment};
use cloud_image_uploader::images::source::Sources;
use cloud_image_uploader::model::compose::release::{Release, Stage};
use cloud_image_uploader::model::compose::{Compose, ComposeId};
use cloud_image_uploader::model::outcome::Outcome;
use cloud_image_uploader::model::select::{Deliverable, select};
use cloud_image_uploader::providers::contract::{Publish, Task};
use cloud_image_uploader::providers::gcp::GcpProvider;
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise};
use cloud_image_uploader_test_support::gcp::{BUCKET, Cloud, Emulator, PROJECT, tarball};
use cloud_image_uploader_test_support::program::Program;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cloud-image-uploader");
/// The compose of most tests, and what its image and family are called.
pub const COMPOSE: &str = "Fedora-Cloud-43-20251023.0";
pub const IMAGE: &str = "fedora-cloud-43-20251023-0-x86-64";
pub const FAMILY: &str = "fedora-cloud-43-x86-64";
/// For a program that works; a test that fails takes no longer.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A cloud and a provider for it.
pub struct World {
    pub cloud: Cloud,
    /// Where the bucket is.
    pub storage: String,
    pub credentials: PathBuf,
    pub folder: tempfile::TempDir,
    pub give_up_after: &'static str,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Emulator::FakeGcsServer).await
    }

    pub async fn with(emulator: Emulator) -> Self {
        let cloud = Cloud::with(emulator).await.unwrap();
        Self {
            storage: cloud.storage_url(),
            credentials: cloud.service_account().unwrap(),
            folder: tempfile::tempdir().unwrap(),
            give_up_after: "5h",
            cloud,
        }
    }

    /// The configuration file, with more keys of the section.
    pub fn config(&self, more: &str) -> String {
        let data = fixtures().join("release-data").display().to_string();
        let (compute, storage) = (self.cloud.compute_url(), &self.storage);
        let give_up_after = self.give_up_after;
        format!(
            "[consumer_config]\nrelease_metadata_url = \"{data}/release.json\"\nbodhi_url = \"{data}\"\n\
             give_up_after = \"{give_up_after}\"\n\n\
             [consumer_config.gcp]\nproject = \"{PROJECT}\"\nbucket_name = \"{BUCKET}\"\nstorage_locations = [\"us\"]\n\
             publish_amqp_messages = false\ncompute_endpoint = \"{compute}\"\nstorage_endpoint = \"{storage}\"\n{more}"
        )
    }

    pub fn section(&self, more: &str) -> config::Provider {
        let config = Config::parse(&self.config(more), Path::new("test.toml"));
        config.unwrap_or_else(|problems| panic!("{problems}")).provider
    }

    /// A new provider, as after a restart of the program.
    pub fn provider_with(&self, more: &str) -> GcpProvider {
        let config::Provider::Gcp(section) = self.section(more) else {
            panic!("another provider")
        };
        let credentials = self.credentials.display().to_string();
        let environment: Environment = [("GOOGLE_APPLICATION_CREDENTIALS", credentials)].into_iter().collect();
        GcpProvider::new(&section, &environment).unwrap()
    }

    pub fn provider(&self) -> GcpProvider {
        self.provider_with("")
    }

    /// The program with this configuration.
    pub fn program(&self) -> Program {
        let program = Program::new(PROGRAM).unwrap().config(&self.config("")).unwrap();
        program.env("GOOGLE_APPLICATION_CREDENTIALS", &self.credentials)
    }

    /// The program that publishes the sample compose.
    pub fn reconsume(&self) -> Program {
        let message = fixtures().join("sample/message.json");
        self.program().arg("reconsume").arg("--file").arg(message)
    }

    /// Writes a compose with one image, and selects its deliverable.
    pub async fn deliverable(&self, id: &str, row: Row) -> Deliverable {
        let folder = self.folder.path().join(id);
        let compose = ComposeBuilder::new(id, None).without_composeinfo().image(row);
        compose.write(&folder).unwrap();
        let mut deliverables = self.select(&folder, id, None, release()).await;
        assert_eq!(deliverables.len(), 1);
        deliverables.remove(0)
    }

    pub async fn select(&self, folder: &Path, id: &str, label: Option<&str>, release: Release) -> Vec<Deliverable> {
        let id = ComposeId::parse(id).unwrap();
        let http = http::client().unwrap();
        let location = Resource::Folder(folder.to_owned());
        let compose = Compose::fetch(&http, &location, &id, label).await.unwrap();
        select(&self.section("").publisher(), &compose, &release, None).deliverables
    }

    /// Asserts that only these images, and no objects, are left to be billed.
    pub async fn assert_only(&self, images: &[&str]) {
        let left = self.cloud.images();
        assert_eq!(left.keys().map(String::as_str).collect::<Vec<_>>(), images);
        for (name, image) in left {
            assert_eq!(image["status"], "READY", "{name}");
        }
        assert_eq!(self.cloud.objects().await.unwrap(), Vec::<String>::new());
    }
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A release as its metadata describes it.
pub fn release() -> Release {
    Release {
        name: "43".to_owned(),
        number: 43,
        stage: Stage::Nightly,
        newest_stable: true,
        end_of_life: Some("2126-12-09".parse().unwrap()),
    }
}

/// A task that may change everything.
pub fn task() -> Task {
    Task {
        sources: Sources::new(http::client().unwrap(), Board::log(), 4, 256 << 20, 2),
        locations: None,
        allow_older: false,
        patience: Duration::from_secs(1800),
    }
}

/// Stages a deliverable and releases it.
pub async fn publish(provider: &GcpProvider, deliverable: &Deliverable) -> Result<Outcome, Failure> {
    let staged = provider.stage(deliverable, &task()).await?;
    provider.release(deliverable, staged, &task()).await
}

/// A row for Compute Engine.
pub fn row(bytes: Vec<u8>) -> Row {
    let name = "Fedora-Cloud-Base-GCE-43-20251023.0.x86_64.tar.gz";
    Row::new("tar-gz", "tar.gz", "Cloud_Base", "x86_64", name, bytes)
}

/// A tarball as builders create it: a sparse disk of one GiB that starts with this many bytes, which do not compress.
pub fn tarball(seed: u64, bytes: usize) -> Vec<u8> {
    tarball::of(&noise(seed, bytes))
}
