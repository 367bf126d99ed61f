//! Much at once: irrelevant messages, and several composes.

use std::time::{Duration, Instant};

use cloud_image_uploader_test_support::archive::noise;
use cloud_image_uploader_test_support::survival::leave;
use serde_json::json;

use crate::world::*;

const IRRELEVANT: u64 = 5000;

/// Messages that the pungi of every release sends all day.
fn irrelevant() -> impl Iterator<Item = Vec<u8>> {
    let body = |number| match number % 3 {
        0 => r#"{"status": "STARTED", "compose_id": "Fedora-43-20260305.n.0", "location": "http://host/x"}"#,
        1 => r#"{"status": "FINISHED", "compose_id": "Fedora-Epel-9-updates-20260305.0", "location": "http://host/x"}"#,
        _ => {
            r#"{"status": "FINISHED", "compose_id": "Fedora-42-updates-testing-20260305.0", "location": "http://host/x"}"#
        }
    };
    (0..IRRELEVANT).map(move |number| body(number).as_bytes().to_vec())
}

/// A thousand messages a second are acknowledged while four composes are decoded, written, and announced; the broker, which
/// gives up a client that is silent for four seconds, hears of this one all the time; and memory stays within its bound.
#[tokio::test(flavor = "multi_thread")]
async fn messages_are_acknowledged_and_memory_is_bounded_while_four_composes_are_published() {
    const BUFFER: u64 = 64 << 20;
    let world = World::new().await;
    world.listen().await;
    let broker = World::broker(world.rabbit.plain_port).replace("pubsub\"", "pubsub?heartbeat=2\"");
    let config = world
        .config(&broker)
        .replace("give_up_after", "buffer_memory = \"64MiB\"\ngive_up_after");
    let mut daemon = world.consume_with(&config).await;
    let disk = |seed| [noise(seed, 12 << 20), vec![0; 48 << 20], noise(seed + 1, 4 << 20)].concat();
    let disks: Vec<_> = (1..=4).map(|day| [disk(100 * day), disk(100 * day + 10)]).collect();
    for (day, disks) in (1..=4).zip(&disks) {
        let message = world.add_with(day, disks);
        world.admin.publish_serialized(&message).await.unwrap();
    }
    daemon.wait_for_log("20260304.0 has finished", LONG).await.unwrap();
    let started = Instant::now();
    let topic = "org.fedoraproject.prod.pungi.compose.status.change";
    world.admin.flood(topic, irrelevant()).await.unwrap();
    world
        .until_ready(|_, document| document["consumed"]["processed"].as_u64() >= Some(IRRELEVANT))
        .await;
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(IRRELEVANT / 1000),
        "{IRRELEVANT} messages took {took:?}"
    );
    world.until_processed(IRRELEVANT + 4).await;
    assert_eq!(world.heard().await.len(), 8);
    for (day, disks) in (1..=4).zip(&disks) {
        for (arch, disk) in ["x86_64", "aarch64"].into_iter().zip(disks) {
            let found = std::fs::read(world.disk_of(&earlier(day), arch)).unwrap();
            assert!(found == *disk, "{day} {arch}");
        }
    }
    let peak = daemon.peak_memory();
    let read: usize = disks.iter().flatten().map(|disk| disk.len() >> 20).sum();
    let numbers = json!({
        "provider": "local, and 5000 irrelevant messages", "composes": 4, "images": 8, "mib": read,
        "peak_mib": peak >> 20, "bound_mib": (BUFFER >> 20) + 128,
    });
    leave(env!("CARGO_TARGET_TMPDIR"), "load-local", &numbers).unwrap();
    assert!(peak <= BUFFER + (128 << 20), "{} MiB", peak >> 20);
    assert!(!daemon.stderr().contains("lost the broker"), "{}", daemon.stderr());
    world.until_settled(daemon).await;
}
