//! A broker, a served compose, a daemon, and the states that tests wait for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader_test_support::amqp::Admin;
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, message, noise, xz_blocks};
use cloud_image_uploader_test_support::files::{Fault, Files};
use cloud_image_uploader_test_support::process::free_port;
use cloud_image_uploader_test_support::program::{Program, Running};
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far more than anything here takes.
pub const LONG: Duration = Duration::from_secs(60);
pub const QUEUE: &str = "cloud-image-uploader-aws";
/// The queue of [`World::keep_dead_letters`].
pub const DEAD_LETTERS: &str = "dead";
pub const COMPOSE: &str = "Fedora-Cloud-43-20260305.0";

/// A broker, a served compose with an image for each architecture, and a place to publish to.
pub struct World {
    pub rabbit: Rabbit,
    pub admin: Admin,
    pub files: Files,
    pub folder: TempDir,
    pub monitoring: u16,
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A compose of a disk for each architecture: `x86_64`, `aarch64`.
fn compose(id: &str, disks: &[Vec<u8>; 2]) -> ComposeBuilder {
    let version = id.trim_start_matches("Fedora-Cloud-");
    let rows = ["x86_64", "aarch64"].into_iter().zip(disks).map(|(arch, disk)| {
        let name = format!("Fedora-Cloud-Base-AmazonEC2-{version}.{arch}.raw.xz");
        Row::new("raw-xz", "raw.xz", "Cloud_Base", arch, &name, xz_blocks(disk, 4 << 20))
    });
    rows.fold(ComposeBuilder::new(id, None), ComposeBuilder::image)
}

/// The id of another compose, of an earlier day in March 2026.
pub fn earlier(day: u64) -> String {
    format!("Fedora-Cloud-43-202603{day:02}.0")
}

impl World {
    pub async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let compose = compose(COMPOSE, &[noise(1, 3 << 20), noise(2, 3 << 20)]);
        compose.write(&folder.path().join("served/compose")).unwrap();
        let files = Files::start(&folder.path().join("served")).await.unwrap();
        let rabbit = Rabbit::start(options).await.unwrap();
        let admin = rabbit.admin().await.unwrap();
        Self {
            rabbit,
            admin,
            files,
            folder,
            monitoring: free_port().unwrap(),
        }
    }

    pub fn published(&self) -> PathBuf {
        self.folder.path().join("published")
    }

    pub fn disk(&self, arch: &str) -> PathBuf {
        self.disk_of(COMPOSE, arch)
    }

    pub fn disk_of(&self, id: &str, arch: &str) -> PathBuf {
        let version = id.trim_start_matches("Fedora-Cloud-");
        let name = format!("Fedora-Cloud-Base-AmazonEC2-{version}.{arch}.raw");
        self.published().join(id).join(arch).join(name)
    }

    pub fn image_path(arch: &str) -> String {
        format!("/compose/Cloud/{arch}/images/Fedora-Cloud-Base-AmazonEC2-43-20260305.0.{arch}.raw.xz")
    }

    /// The broker by password, at any port such as a proxy's.
    pub fn broker(port: u16) -> String {
        format!("amqp_url = {:?}\n", rabbit::url("amqp", DAEMON, port))
    }

    pub fn config(&self, broker: &str) -> String {
        let release_data = fixtures().join("release-data");
        format!(
            r#"
passive_declares = true
topic_prefix = "org.fedoraproject.prod"
{broker}
{consuming}
[qos]
prefetch_size = 0
prefetch_count = 25
[monitoring]
address = "127.0.0.1"
port = {monitoring}
[consumer_config]
release_metadata_url = "{release_data}/release.json"
bodhi_url = "{release_data}"
give_up_after = "40s"
shutdown_grace = "2s"
[consumer_config.local]
directory = "{directory}"
publish_amqp_messages = true
"#,
            consuming = rabbit::consuming(QUEUE),
            monitoring = self.monitoring,
            release_data = release_data.display(),
            directory = self.published().display(),
        )
    }

    /// The same configuration for a second daemon, whose monitoring listens on another port.
    pub fn elsewhere(&self, config: &str) -> String {
        config.replace(&format!("port = {}", self.monitoring), "port = 0")
    }

    pub fn program(config: &str) -> Program {
        Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader"))
            .unwrap()
            .config(config)
            .unwrap()
    }

    pub async fn consume(&self) -> Running {
        self.consume_with(&self.config(&Self::broker(self.rabbit.plain_port)))
            .await
    }

    /// A daemon in the middle of a compose: an image's server says nothing any more.
    pub async fn begin(&self) -> Running {
        let daemon = self.consume().await;
        self.files
            .fault(&Self::image_path("x86_64"), Fault::Stall { after: 1000 }, 1);
        self.announce().await;
        self.until_read("x86_64").await;
        daemon
    }

    pub async fn consume_with(&self, config: &str) -> Running {
        let mut daemon = Self::program(config).arg("consume").start().unwrap();
        daemon.wait_for_log("consuming", LONG).await.unwrap();
        daemon
    }

    /// Adds a compose of an earlier day and returns its message.
    pub fn add(&self, day: u64) -> Value {
        self.add_with(day, &[noise(10 * day, 1 << 20), noise(10 * day + 1, 1 << 20)])
    }

    /// The same of these disks.
    pub fn add_with(&self, day: u64, disks: &[Vec<u8>; 2]) -> Value {
        let id = earlier(day);
        compose(&id, disks)
            .write(&self.folder.path().join("served").join(&id))
            .unwrap();
        message(&id, None, &self.files.url(&format!("/{id}")))
    }

    /// The server of an image is busy for so many seconds.
    pub fn busy(&self, arch: &str, seconds: u32) {
        let fault = Fault::Status {
            code: 503,
            retry_after: Some(seconds.to_string()),
        };
        self.files.fault(&Self::image_path(arch), fault, 1);
    }

    /// Keeps rejected messages in a queue of their own.
    pub async fn keep_dead_letters(&self) {
        self.admin.delete(QUEUE).await.unwrap();
        let arguments = json!({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD_LETTERS});
        let keep = self.admin.declare(QUEUE, rabbit::COMPOSE_CHANGES, arguments);
        keep.await.unwrap();
        let letters = self.admin.declare(DEAD_LETTERS, "nothing.at.all", json!({}));
        letters.await.unwrap();
    }

    /// Keeps every notification from now on, also while the broker is away.
    pub async fn listen(&self) {
        let pattern = "org.fedoraproject.prod.fedora_image_uploader.#";
        self.admin.declare("heard", pattern, json!({})).await.unwrap();
    }

    /// The notifications since [`Self::listen`]: how often each id came. Panics where one id stands for two messages.
    pub async fn heard(&self) -> BTreeMap<String, usize> {
        let mut bodies: BTreeMap<String, (Value, usize)> = BTreeMap::new();
        for notice in self.admin.drain("heard").await.unwrap() {
            let id = notice.properties.message_id().as_ref().unwrap().to_string();
            let body = notice.json().unwrap();
            let (first, times) = bodies.entry(id).or_insert_with(|| (body.clone(), 0));
            assert_eq!(*first, body);
            *times += 1;
        }
        bodies.into_iter().map(|(id, (_, times))| (id, times)).collect()
    }

    /// Waits until so many deliveries were acknowledged. Returns the document of `/ready` then.
    pub async fn until_processed(&self, count: u64) -> Value {
        self.until_ready(|_, document| document["consumed"]["processed"] == count)
            .await
    }

    pub fn message(&self) -> Value {
        message(COMPOSE, None, &self.files.url("/compose"))
    }

    pub async fn announce(&self) {
        self.admin.publish_serialized(&self.message()).await.unwrap();
    }

    pub async fn ready(&self) -> (u16, Value) {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/ready", self.monitoring))
            .await
            .unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Waits until `/ready` is as wanted. Returns its document.
    pub async fn until_ready(&self, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let (status, document) = self.ready().await;
            if wanted(status, &document) {
                return document;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "it stays at {status} {document}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until an image is being read: the work on its compose has begun.
    pub async fn until_read(&self, arch: &str) {
        let deadline = tokio::time::Instant::now() + LONG;
        while self.files.requests_for(&Self::image_path(arch)).is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "the image is not read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until an image is published.
    pub async fn until_disk(&self, arch: &str) {
        let deadline = tokio::time::Instant::now() + LONG;
        while !self.disk(arch).exists() {
            assert!(tokio::time::Instant::now() < deadline, "the image is not published");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the daemon and waits until every delivery is settled: none waits and none is held.
    pub async fn until_settled(&self, daemon: Running) {
        daemon.terminate().unwrap();
        assert_eq!(daemon.wait(LONG).await.unwrap().code, Some(0));
        self.admin
            .wait_depth(QUEUE, LONG, |depth| depth.ready == 0 && depth.consumers == 0)
            .await
            .unwrap();
    }
}
