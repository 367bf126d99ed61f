//! A registry, with an older compose in it, so that there is something to compare with.

use std::fs;
use std::path::{Path, PathBuf};

use cloud_image_uploader_test_support::archive::{ComposeBuilder, DockerArchive, OciArchive, Row, layer, xz};
use cloud_image_uploader_test_support::front::{self, Front};
use cloud_image_uploader_test_support::program::Program;
use cloud_image_uploader_test_support::registry::Registry;
use tokio::sync::OnceCell;

use crate::world::{self, Call, Found, LONG, World, assert_published, changes, reads, reconsume};

const OLDER: &str = "Fedora-43-20251023.0";
const NEWER: &str = "Fedora-43-20251024.0";

pub struct Registries {
    registry: Registry,
    front: Front,
}

/// The composes, and the data of a registry that has the older one: made once for all worlds.
async fn prepared() -> &'static Path {
    static PREPARED: OnceCell<PathBuf> = OnceCell::const_new();
    PREPARED
        .get_or_init(async || {
            let folder = world::folder("container");
            for (id, number) in [(OLDER, 0), (NEWER, 1)] {
                let compose = ComposeBuilder::new(id, Some("RC-1.6"));
                let compose = rows(number, 5 << 20).into_iter().fold(compose, ComposeBuilder::image);
                compose.write(&folder.join(id)).unwrap();
            }
            let world = Registries::before(Registry::open().await.unwrap()).await;
            let older = folder.join(OLDER).display().to_string();
            let exit = reconsume(&world, OLDER, &older).run(LONG).await.unwrap();
            assert_published(&exit, "the older compose");
            copy(&world.registry.data(), &folder.join("data"));
            folder
        })
        .await
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn name(call: &front::Call<'_>) -> Option<&'static str> {
    let (_, what) = call.path.strip_prefix("/v2/")?.split_once("/fedora")?;
    let by_digest = what.contains("/sha256:");
    let what = what.trim_start_matches(|c: char| c != '/');
    Some(match (call.method.as_str(), what) {
        ("HEAD", what) if what.starts_with("/blobs/") => "look for a blob",
        ("POST", "/blobs/uploads/") => "begin an upload",
        ("PATCH", what) if what.starts_with("/blobs/uploads/") => "send a part of a blob",
        ("PUT", what) if what.starts_with("/blobs/uploads/") => "complete a blob",
        ("HEAD", what) if what.starts_with("/manifests/") => "look for a manifest",
        ("GET", what) if what.starts_with("/manifests/") && by_digest => "read a manifest",
        ("GET", what) if what.starts_with("/manifests/") => "read a tag",
        ("GET", what) if what.starts_with("/blobs/") => "read a blob",
        ("PUT", what) if what.starts_with("/manifests/") && by_digest => "put a manifest",
        ("PUT", what) if what.starts_with("/manifests/") => "move a tag",
        _ => return None,
    })
}

/// The archives of the `number`th compose, with layers of this size and small ones.
pub fn rows(number: u64, large: usize) -> Vec<Row> {
    let small = || layer(&format!("small-{number}"), 10_000);
    let base = |arch, ours| {
        let large = layer(&format!("large-{number}-{arch}"), large);
        let oci = OciArchive::new(ours).layer(large).layer(small()).build();
        Row::container("Container_Base", arch, xz(&oci))
    };
    let docker = DockerArchive::new("amd64")
        .layer(layer(&format!("docker-{number}"), large))
        .layer(small())
        .build();
    let toolbox = Row::container("Container_Toolbox", "x86_64", xz(&docker));
    vec![toolbox, base("x86_64", "amd64"), base("aarch64", "arm64")]
}

impl Registries {
    /// A front before this registry.
    async fn before(registry: Registry) -> Self {
        let front = Front::start(&registry.url(), name).await.unwrap();
        Self { registry, front }
    }
}

impl World for Registries {
    const NAME: &'static str = "container";
    const SKIPS_OLDER: bool = true;
    const CALLS: &'static [Call] = &[
        reads("look for a blob"),
        changes("begin an upload"),
        changes("send a part of a blob"),
        changes("complete a blob"),
        reads("look for a manifest"),
        reads("read a manifest"),
        changes("put a manifest"),
        reads("read a tag"),
        changes("move a tag"),
    ];

    async fn start() -> Self {
        let registry = Registry::open().await.unwrap();
        copy(&prepared().await.join("data"), &registry.data());
        Self::before(registry).await
    }

    fn front(&self) -> &Front {
        &self.front
    }

    fn sections(&self, announces: bool) -> String {
        let front = self.front.url();
        let host = front.trim_start_matches("http://");
        format!(
            "[consumer_config.container]\npublish_amqp_messages = {announces}\n\
             [consumer_config.container.repos]\nContainer_Base = \"fedora\"\nContainer_Toolbox = \"fedora-toolbox\"\n\
             [[consumer_config.container.registries]]\nurl = \"{host}/team\"\ninsecure = true\n"
        )
    }

    /// The registry lets everybody in.
    fn lead(&self, program: Program) -> Program {
        program
    }

    async fn compose(&self) -> (&'static str, String) {
        (NEWER, prepared().await.join(NEWER).display().to_string())
    }

    /// Tags with what they point to, and every manifest and blob. Uploads that were begun are the registry's own to
    /// forget; it does so after a week.
    async fn found(&self) -> Found {
        let mut found = Found::new();
        collect(&self.registry.data(), "", &mut found);
        found.retain(|path, _| !path.contains("/_uploads/"));
        found
    }
}

/// Links hold a digest; a blob's name is its digest, and its content is the registry's to verify.
fn collect(folder: &Path, prefix: &str, found: &mut Found) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let name = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &name, found);
        } else if name.ends_with("/link") {
            found.insert(name, fs::read_to_string(entry.path()).unwrap());
        } else {
            found.insert(name, fs::metadata(entry.path()).unwrap().len().to_string());
        }
    }
}
