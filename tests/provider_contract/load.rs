//! Several composes at once, from the broker: what is held in memory meanwhile.

use std::time::Duration;

use cloud_image_uploader_test_support::archive::{
    ComposeBuilder, OciArchive, Packing, Row, layer, message, noise, xz_blocks,
};
use cloud_image_uploader_test_support::files::Files;
use cloud_image_uploader_test_support::process::free_port;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use cloud_image_uploader_test_support::survival::leave;
use serde_json::{Value, json};

use crate::world::{Found, LONG, World, config, configured};

const QUEUE: &str = "cloud-image-uploader-aws";
/// `buffer_memory` as set, and the memory that a process may have resident besides.
const BUFFER: u64 = 64 << 20;
const BESIDES: u64 = 128 << 20;
const MIB: u64 = 1 << 20;

/// Content that is soon compressed, and no zeros. All images together are more than a process may take.
fn large(begin: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = begin.to_vec();
    let piece = noise(1, 64 << 10);
    while bytes.len() < size {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// Composes of these images, which have this many MiB each once they are decoded.
struct Load {
    composes: Vec<(String, Vec<Row>)>,
    image: usize,
}

impl Load {
    /// Four composes of a cloud's images for both architectures.
    fn of_clouds(image: usize, row: impl Fn(u64, &str) -> Row) -> Self {
        let compose = |day: u64| {
            let rows = vec![row(100 * day, "x86_64"), row(100 * day + 10, "aarch64")];
            (format!("Fedora-Cloud-43-2026030{day}.0"), rows)
        };
        Self {
            composes: (1..=4).map(compose).collect(),
            image,
        }
    }

    /// Has a daemon publish all of it. The broker, which gives up a client that is silent for four seconds, hears of it all
    /// the time.
    async fn publish_at_once<W: World>(&self, world: &W) {
        let Self { composes, image } = self;
        let folder = tempfile::tempdir().unwrap();
        let files = Files::start(folder.path()).await.unwrap();
        let rabbit = Rabbit::start(Options::default()).await.unwrap();
        let admin = rabbit.admin().await.unwrap();
        let port = free_port().unwrap();
        let broker = format!(
            "amqp_url = \"{}?heartbeat=2\"\npassive_declares = true\n{}\n[qos]\nprefetch_count = 25\n\
             [monitoring]\naddress = \"127.0.0.1\"\nport = {port}\n",
            rabbit::url("amqp", DAEMON, rabbit.plain_port),
            rabbit::consuming(QUEUE),
        );
        let buffer = format!("buffer_memory = \"{}MiB\"", BUFFER / MIB);
        let config = broker + &config(&buffer, &world.sections(false));
        let mut daemon = configured(world, &config).arg("consume").start().unwrap();
        daemon.wait_for_log("consuming", LONG).await.unwrap();
        let mut messages = Vec::new();
        for (id, rows) in composes {
            let compose = rows
                .iter()
                .cloned()
                .fold(ComposeBuilder::new(id, None), ComposeBuilder::image);
            compose.write(&folder.path().join(id)).unwrap();
            messages.push(message(id, None, &files.url(&format!("/{id}"))));
        }
        for message in &messages {
            admin.publish_serialized(message).await.unwrap();
        }
        let deadline = tokio::time::Instant::now() + LONG;
        let ready = format!("http://127.0.0.1:{port}/ready");
        loop {
            let answer = match reqwest::get(&ready).await {
                Ok(answer) => answer,
                Err(error) => panic!("the daemon does not answer: {error}: {}", daemon.stderr()),
            };
            let document: Value = answer.json().await.unwrap();
            if document["consumed"]["processed"] == composes.len() {
                break;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{document}: {}",
                daemon.stderr()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let peak = daemon.peak_memory();
        let log = daemon.stderr();
        daemon.terminate().unwrap();
        assert_eq!(daemon.wait(LONG).await.unwrap().code, Some(0), "{log}");
        let images: usize = composes.iter().map(|(_, rows)| rows.len()).sum();
        let numbers = json!({
            "provider": W::NAME, "composes": composes.len(), "images": images, "mib": images * image,
            "peak_mib": peak / MIB, "bound_mib": (BUFFER + BESIDES) / MIB,
        });
        leave(env!("CARGO_TARGET_TMPDIR"), &format!("load-{}", W::NAME), &numbers).unwrap();
        assert!(peak <= BUFFER + BESIDES, "{} MiB: {log}", peak / MIB);
        assert!(!log.contains("lost the broker"), "{log}");
    }
}

/// How many of what is found have this in their names.
fn count(found: &Found, what: &str) -> usize {
    found.keys().filter(|name| name.contains(what)).count()
}

/// Every compose is of another release: of one, only the newest would be pushed.
#[cfg(feature = "container")]
#[tokio::test(flavor = "multi_thread")]
async fn containers_of_several_composes_fit_into_the_memory_they_may_take() {
    let world = crate::container::Registries::start().await;
    let archive = |seed: &str, arch: &str, ours: &str| {
        let large = |part: &str| large(&layer(&format!("{part}-{seed}-{arch}"), 1 << 20), 40 << 20);
        let oci = OciArchive::new(ours).packing(Packing::Plain);
        let oci = oci.layer(large("one")).layer(large("two")).build();
        Row::container("Container_Base", arch, xz_blocks(&oci, 4 << 20))
    };
    let ids = [
        "Fedora-42-20251024.0",
        "Fedora-43-20251024.0",
        "Fedora-Rawhide-20251024.n.0",
    ];
    let composes = ids.map(|id| {
        let rows = vec![archive(id, "x86_64", "amd64"), archive(id, "aarch64", "arm64")];
        (id.to_owned(), rows)
    });
    let load = Load {
        composes: composes.to_vec(),
        image: 80,
    };
    load.publish_at_once(&world).await;
    let found = world.found().await;
    for tag in ["42", "43", "44"] {
        assert_eq!(
            count(&found, &format!("team/fedora/_manifests/tags/{tag}/current")),
            1,
            "{tag}"
        );
    }
}

#[cfg(feature = "aws")]
#[tokio::test(flavor = "multi_thread")]
async fn disks_of_several_composes_fit_into_the_memory_they_may_take() {
    let world = crate::aws::ByImport::start().await;
    let load = Load::of_clouds(64, |seed, arch| {
        let disk = large(&noise(seed, 1 << 20), 64 << 20);
        let file = format!("Fedora-Cloud-Base-AmazonEC2.{arch}.raw.xz");
        Row::new("raw-xz", "raw.xz", "Cloud_Base", arch, &file, xz_blocks(&disk, 4 << 20))
    });
    load.publish_at_once(&world).await;
    assert_eq!(count(&world.found().await, ": image "), 16);
}

#[cfg(feature = "azure")]
#[tokio::test(flavor = "multi_thread")]
async fn hard_disks_of_several_composes_fit_into_the_memory_they_may_take() {
    use cloud_image_uploader_test_support::azure::vhd;

    let world = crate::azure::Gallery::start().await;
    // Smaller, since the stand-in holds them all.
    let load = Load::of_clouds(32, |seed, arch| {
        let disk = vhd(&large(&noise(seed, 1 << 20), 32 << 20));
        let file = format!("Fedora-Cloud-Base-Azure.{arch}.vhdfixed.xz");
        let disk = xz_blocks(&disk, 4 << 20);
        Row::new("vhd-compressed", "vhd.xz", "Cloud_Base", arch, &file, disk)
    });
    load.publish_at_once(&world).await;
    assert_eq!(count(&world.found().await, "/43.2026030"), 8);
}

/// Disks of a GiB, as they must be. They are sparse: what is sent is what is in them, packed so that it stays as large.
#[cfg(feature = "gcp")]
#[tokio::test(flavor = "multi_thread")]
async fn tarballs_of_several_composes_fit_into_the_memory_they_may_take() {
    use cloud_image_uploader_test_support::gcp::tarball;

    let world = crate::gcp::Project::start().await;
    let load = Load::of_clouds(32, |seed, arch| {
        let disk = tarball::of(&large(&noise(seed, 1 << 20), 32 << 20));
        let file = format!("Fedora-Cloud-Base-GCE.{arch}.tar.gz");
        Row::new("tar-gz", "tar.gz", "Cloud_Base", arch, &file, disk)
    });
    load.publish_at_once(&world).await;
    assert_eq!(count(&world.found().await, "image "), 8);
}
