//! Several composes at once, from the broker: what is held in memory meanwhile.

use std::fs;
use std::time::Duration;

use cloud_image_uploader_test_support::archive::{
    ComposeBuilder, OciArchive, Packing, Row, layer, message, noise, xz_blocks,
};
use cloud_image_uploader_test_support::files::Files;
use cloud_image_uploader_test_support::process::free_port;
use cloud_image_uploader_test_support::program::Program;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use cloud_image_uploader_test_support::survival::leave;
use serde_json::{Value, json};

use crate::world::{LONG, config};

const QUEUE: &str = "cloud-image-uploader-aws";
/// What is set, and what a process may have resident besides.
const BUFFER: u64 = 64 << 20;
const BESIDES: u64 = 128 << 20;
const MIB: u64 = 1 << 20;

/// What is soon compressed, and no zeros. All of them together are more than a process may take.
fn large(begin: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = begin.to_vec();
    let piece = noise(1, 64 << 10);
    while bytes.len() < size {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// Has a daemon publish them all, with these sections below `[consumer_config]`. Every image has this many MiB.
async fn publish_at_once(
    provider: &str,
    sections: &str,
    composes: &[(&str, Vec<Row>)],
    image: usize,
    environment: impl FnOnce(Program) -> Program,
) {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::start(folder.path()).await.unwrap();
    let rabbit = Rabbit::start(Options::default()).await.unwrap();
    let admin = rabbit.admin().await.unwrap();
    let port = free_port().unwrap();
    let broker = format!(
        "amqp_url = {:?}\npassive_declares = true\n{}\n[qos]\nprefetch_count = 25\n\
         [monitoring]\naddress = \"127.0.0.1\"\nport = {port}\n",
        rabbit::url("amqp", DAEMON, rabbit.plain_port),
        rabbit::consuming(QUEUE),
    );
    let config = config(&format!("buffer_memory = \"{}MiB\"", BUFFER / MIB), sections);
    let program = Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader")).unwrap();
    let program = environment(program.config(&(broker + &config)).unwrap());
    let mut daemon = program.arg("consume").start().unwrap();
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
        let answer = reqwest::get(&ready).await.unwrap();
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
        "provider": provider, "composes": composes.len(), "images": images, "mib": images * image,
        "peak_mib": peak / MIB, "bound_mib": (BUFFER + BESIDES) / MIB,
    });
    leave(env!("CARGO_TARGET_TMPDIR"), &format!("load-{provider}"), &numbers).unwrap();
    assert!(peak <= BUFFER + BESIDES, "{} MiB: {log}", peak / MIB);
}

/// Every compose is of another release: of one, only the newest would be pushed.
#[cfg(feature = "container")]
#[tokio::test(flavor = "multi_thread")]
async fn containers_of_several_composes_fit_into_the_memory_they_may_take() {
    use cloud_image_uploader_test_support::registry::Registry;

    let registry = Registry::open().await.unwrap();
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
        (
            id,
            vec![archive(id, "x86_64", "amd64"), archive(id, "aarch64", "arm64")],
        )
    });
    let sections = crate::container::sections(&registry.host);
    publish_at_once("container", &sections, &composes, 80, |program| program).await;
    for tag in ["42", "43", "44"] {
        let link = format!("docker/registry/v2/repositories/team/fedora/_manifests/tags/{tag}/current/link");
        assert!(fs::exists(registry.data().join(link)).unwrap(), "{tag}");
    }
}

#[cfg(feature = "aws")]
#[tokio::test(flavor = "multi_thread")]
async fn disks_of_several_composes_fit_into_the_memory_they_may_take() {
    use crate::world::World;

    let world = crate::aws::ByImport::start().await;
    let ids: Vec<_> = (1..=4).map(|day| format!("Fedora-Cloud-43-2026030{day}.0")).collect();
    let row = |id: &str, seed: u64, arch: &str| {
        let disk = large(&noise(seed, 1 << 20), 64 << 20);
        let file = format!("Fedora-Cloud-Base-AmazonEC2-{id}.{arch}.raw.xz");
        Row::new("raw-xz", "raw.xz", "Cloud_Base", arch, &file, xz_blocks(&disk, 4 << 20))
    };
    let composes: Vec<_> = ids
        .iter()
        .zip(1..)
        .map(|(id, day)| {
            (
                id.as_str(),
                vec![row(id, 100 * day, "x86_64"), row(id, 100 * day + 10, "aarch64")],
            )
        })
        .collect();
    publish_at_once("aws, import", &world.sections(), &composes, 64, |program| {
        world.lead(program)
    })
    .await;
    assert_eq!(
        world
            .found()
            .await
            .keys()
            .filter(|name| name.contains(": image "))
            .count(),
        16
    );
}
