//! A project, and a bucket in an emulator that resumes uploads.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use cloud_image_uploader_test_support::archive::{Row, noise};
use cloud_image_uploader_test_support::front::{self, Front};
use cloud_image_uploader_test_support::gcp::{BUCKET, Cloud, Emulator, PROJECT, tarball};
use cloud_image_uploader_test_support::program::Program;

use crate::world::{After, Call, Found, World, changes, put, reads, write};

const COMPOSE: &str = "Fedora-Cloud-43-20260305.0";
/// The duration of operations, longer than the pause before the first look.
const OPERATION: Duration = Duration::from_millis(300);

pub struct Project {
    pub cloud: Cloud,
    front: Front,
    storage: String,
    credentials: PathBuf,
}

fn name(call: &front::Call<'_>) -> Option<&'static str> {
    let parts: Vec<_> = call.path.split('/').collect();
    let has = |key: &str| call.query.split('&').any(|pair| pair.split('=').next() == Some(key));
    Some(match (call.method.as_str(), &parts[..]) {
        ("POST", ["", "sts"]) => "get a token",
        ("GET", [.., "global", "images"]) => "images.list",
        ("POST", [.., "global", "images"]) => "images.insert",
        ("GET", [.., "images", _]) => "images.get",
        ("PATCH", [.., "images", _]) => "images.patch",
        ("DELETE", [.., "images", _]) => "images.delete",
        ("POST", [.., "images", _, "deprecate"]) => "images.deprecate",
        ("POST", [.., "images", _, "setLabels"]) => "images.setLabels",
        ("GET", [.., "operations", _]) => "globalOperations.get",
        ("GET", ["", "storage", "v1", "b", _, "o", _]) => "objects.get",
        ("DELETE", ["", "storage", "v1", "b", _, "o", _]) => "objects.delete",
        ("POST", ["", "upload", ..]) => "objects.insert",
        ("PUT", ["", "upload", ..]) if has("upload_id") && call.body.is_empty() => "ask for the upload",
        ("PUT", ["", "upload", ..]) if has("upload_id") => "upload a piece",
        ("DELETE", ["", "upload", ..]) if has("upload_id") => "cancel the upload",
        _ => return None,
    })
}

/// The tarball of the `number`th compose.
pub fn row(number: u64) -> Row {
    let file = "Fedora-Cloud-Base-GCE.x86_64.tar.gz";
    let disk = tarball::of(&noise(number, 300_000));
    Row::new("tar-gz", "tar.gz", "Cloud_Base", "x86_64", file, disk)
}

impl World for Project {
    const NAME: &'static str = "gcp";
    const CALLS: &'static [Call] = &[
        reads("get a token"),
        reads("images.get"),
        reads("objects.get"),
        changes("objects.insert"),
        changes("upload a piece"),
        reads("ask for the upload").after(After::Lost("upload a piece")),
        changes("images.insert"),
        reads("globalOperations.get"),
        changes("objects.delete").tidies(),
        changes("images.deprecate"),
        changes("images.patch"),
        reads("images.list"),
    ];

    async fn start() -> Self {
        let cloud = Cloud::with(Emulator::GcpStorageEmulator).await.unwrap();
        cloud.set_delay(OPERATION);
        let mut front = Front::start(&cloud.compute_url(), name).await.unwrap();
        let storage = front
            .also(&cloud.storage_url(), reqwest::Client::builder())
            .await
            .unwrap();
        // Tokens are asked for at the front, too.
        let credentials = cloud.workload_identity().unwrap();
        let text = fs::read_to_string(&credentials).unwrap();
        fs::write(&credentials, text.replace(&cloud.compute_url(), &front.url())).unwrap();
        Self {
            cloud,
            front,
            storage,
            credentials,
        }
    }

    fn front(&self) -> &Front {
        &self.front
    }

    fn sections(&self, announces: bool) -> String {
        format!(
            "[consumer_config.gcp]\nproject = \"{PROJECT}\"\nbucket_name = \"{BUCKET}\"\nstorage_locations = [\"us\"]\n\
             publish_amqp_messages = {announces}\ncompute_endpoint = \"{}\"\nstorage_endpoint = \"{}\"\n",
            self.front.url(),
            self.storage
        )
    }

    fn lead(&self, program: Program) -> Program {
        program.env("GOOGLE_APPLICATION_CREDENTIALS", &self.credentials)
    }

    async fn compose(&self) -> (&'static str, String) {
        static FOLDER: OnceLock<PathBuf> = OnceLock::new();
        let folder = FOLDER.get_or_init(|| write("gcp", COMPOSE, row(0)));
        (COMPOSE, folder.display().to_string())
    }

    /// Images without times and numbers, and all objects. The service discards unfinished uploads itself.
    async fn found(&self) -> Found {
        let mut found = Found::new();
        // A deletion continues after its process has ended.
        while self.cloud.images().values().any(|image| image["status"] == "DELETING") {
            tokio::time::sleep(OPERATION / 10).await;
        }
        for (name, mut image) in self.cloud.images() {
            for field in ["id", "creationTimestamp", "labelFingerprint"] {
                image[field].take();
            }
            image["deprecated"]["deprecated"].take();
            image["labels"]["promoted"].take();
            image["content"] = self.cloud.content(&name).into();
            // Labels have no order.
            image.sort_all_objects();
            put(&mut found, format!("image {name}"), image.to_string());
        }
        for object in self.cloud.objects().await.unwrap() {
            put(&mut found, format!("object {object}"), String::new());
        }
        found
    }
}
