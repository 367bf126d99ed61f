//! A stand-in for Resource Manager, with a gallery yet to be made, and a container in a real Azurite.

use std::path::PathBuf;
use std::sync::OnceLock;

use cloud_image_uploader_test_support::archive::{Row, noise, sha256, xz_blocks};
use cloud_image_uploader_test_support::azure::{ACCOUNT, Azure, Azurite, GROUP, vhd};
use cloud_image_uploader_test_support::front::{self, Front};
use cloud_image_uploader_test_support::program::Program;
use serde_json::Value;

use crate::world::{After, Call, Found, World, changes, put, reads, write};

const COMPOSE: &str = "Fedora-Cloud-43-20260305.0";
pub const GALLERY: &str = "Fedora";

pub struct Gallery {
    pub azure: Azure,
    azurite: Azurite,
    front: Front,
    blobs: String,
}

/// The container's name is in the paths of blobs, the provider's in those of Resource Manager.
fn name(call: &front::Call<'_>) -> Option<&'static str> {
    let has = |header: &str| call.headers.contains_key(header);
    let says = |header: &str, value: &str| call.headers.get(header).is_some_and(|found| found == value);
    if call.path.starts_with(&format!("/{ACCOUNT}/")) {
        let what = call.query.split('&').find_map(|pair| pair.strip_prefix("comp="));
        return Some(match (call.method.as_str(), what) {
            ("HEAD", None) => "look at the blob",
            ("PUT", None) if has("if-none-match") => "make the blob",
            ("PUT", None) => "empty the blob",
            ("PUT", Some("lease")) if says("x-ms-lease-action", "acquire") => "lease the blob",
            ("PUT", Some("lease")) if says("x-ms-lease-action", "release") => "release the blob",
            ("PUT", Some("lease")) if says("x-ms-lease-action", "renew") => "renew the lease",
            ("PUT", Some("lease")) if says("x-ms-lease-action", "break") => "break the lease",
            ("PUT", Some("page")) => "write pages",
            ("PUT", Some("metadata")) => "complete the blob",
            ("DELETE", None) => "delete the blob",
            _ => return None,
        });
    }
    let parts: Vec<_> = call.path.split('/').collect();
    let is_of_storage = || String::from_utf8_lossy(call.body).contains("storage.azure.com");
    Some(match (call.method.as_str(), &parts[..]) {
        ("POST", [.., "token"]) if is_of_storage() => "get a token for storage",
        ("POST", [.., "token"]) => "get a token",
        ("GET", [.., "galleries", _]) => "look at the gallery",
        ("PUT", [.., "galleries", _]) => "make the gallery",
        ("GET", [.., "images"]) => "list definitions",
        ("GET", [.., "images", _]) => "look at the definition",
        ("PUT", [.., "images", _]) => "make the definition",
        ("GET", [.., "versions"]) => "list versions",
        ("GET", [.., "versions", _]) => "look at the version",
        ("PUT", [.., "versions", _]) => "make the version",
        ("DELETE", [.., "versions", _]) => "delete the version",
        ("GET", [.., "capsOperations", _]) => "follow an operation",
        _ => return None,
    })
}

/// The disk of the `number`th compose: something at its beginning and at its end, and zeros between.
pub fn row(number: u64) -> Row {
    let mut disk = vec![0; 9 << 20];
    for (at, size, seed) in [(0, 700_000, 2 * number), ((9 << 20) - 5000, 5000, 2 * number + 1)] {
        disk[at..at + size].copy_from_slice(&noise(seed, size));
    }
    let file = "Fedora-Cloud-Base-Azure.x86_64.vhdfixed.xz";
    let disk = xz_blocks(&vhd(&disk), 1 << 20);
    Row::new("vhd-compressed", "vhd.xz", "Cloud_Base", "x86_64", file, disk)
}

impl World for Gallery {
    const NAME: &'static str = "azure";
    const CALLS: &'static [Call] = &[
        reads("get a token"),
        reads("get a token for storage"),
        reads("look at the version"),
        reads("look at the gallery"),
        changes("make the gallery"),
        reads("look at the definition"),
        changes("make the definition"),
        reads("follow an operation"),
        reads("look at the blob"),
        changes("make the blob"),
        changes("lease the blob"),
        changes("empty the blob"),
        changes("write pages"),
        changes("complete the blob"),
        changes("release the blob"),
        changes("break the lease").after(After::Crash("complete the blob")),
        changes("make the version"),
        changes("delete the blob").tidies(),
        reads("list definitions"),
        reads("list versions"),
    ];

    const SELDOM: &'static [&'static str] = &["renew the lease"];

    async fn start() -> Self {
        let azurite = Azurite::start().await.unwrap();
        let azure = Azure::start(Some(&azurite)).await.unwrap();
        let mut front = Front::start(&azure.url(), name).await.unwrap();
        azure.reached_at(&front.url());
        let (server, path) = azurite.url().split_at(azurite.url().rfind('/').unwrap());
        let blobs = front.also(server, azurite.client().unwrap()).await.unwrap() + path;
        Self {
            azure,
            azurite,
            front,
            blobs,
        }
    }

    fn front(&self) -> &Front {
        &self.front
    }

    fn sections(&self, announces: bool) -> String {
        let regions = ["eastus", "westus2"].map(|name| {
            format!(
                "[[consumer_config.azure.target_regions]]\nname = \"{name}\"\nregional_replica_count = 3\n\
                 storage_account_type = \"Standard_ZRS\"\n"
            )
        });
        format!(
            "[consumer_config.azure]\npublish_amqp_messages = {announces}\nlocation = \"eastus\"\n\
             resource_group_name = \"{GROUP}\"\nstorage_account_name = \"{ACCOUNT}\"\n\
             storage_container_name = \"{container}\"\ngallery_name = \"{GALLERY}\"\n\
             gallery_description = \"Images of Fedora\"\nresource_manager_endpoint = \"{arm}\"\n\
             authority_host = \"{arm}\"\nblob_endpoint = \"{blobs}\"\n{regions}",
            container = self.azurite.container(),
            arm = self.front.url(),
            blobs = self.blobs,
            regions = regions.concat(),
        )
    }

    fn lead(&self, program: Program) -> Program {
        let variables = self.azure.environment();
        variables
            .iter()
            .fold(program, |program, (name, value)| program.env(name, value))
    }

    async fn compose(&self) -> (&'static str, String) {
        static FOLDER: OnceLock<PathBuf> = OnceLock::new();
        let folder = FOLDER.get_or_init(|| write("azure", COMPOSE, row(0)));
        (COMPOSE, folder.display().to_string())
    }

    /// The gallery and all in it, less times, and every blob.
    async fn found(&self) -> Found {
        let mut found = Found::new();
        let mut add = |name: String, mut document: Value| {
            document["properties"]["publishingProfile"]["publishedDate"].take();
            put(&mut found, name, document.to_string());
        };
        if let Some(gallery) = self.azure.gallery(GALLERY) {
            add("gallery".to_owned(), gallery);
        }
        for path in self.azure.versions() {
            let (definition, version) = path.split_once('/').unwrap();
            add(
                definition.to_owned(),
                self.azure.definition(GALLERY, definition).unwrap(),
            );
            let mut document = self.azure.version(GALLERY, definition, version).unwrap();
            // The blob's address has the port of this very server.
            document["properties"]["storageProfile"].take();
            let disk = self.azure.imported(GALLERY, definition, version).unwrap_or_default();
            document["disk"] = sha256(&disk).into();
            add(path, document);
        }
        for blob in self.azurite.blobs().await.unwrap() {
            put(&mut found, format!("blob {blob}"), String::new());
        }
        found
    }
}
