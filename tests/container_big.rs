//! A container archive that is larger than the memory it may take. A process of its own, so that its peak tells.

#![cfg(feature = "container")]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[expect(dead_code, reason = "shared with the other tests of this provider")]
#[path = "container/world.rs"]
mod world;

use std::io::Read;

use aws_lc_rs::digest::{Context, SHA256};
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader_test_support::archive::{Row, big};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;

use crate::world::*;

/// The most that the contract allows with one image in flight.
const LIMIT_KIB: u64 = 256 << 10;

fn sha256(path: &std::path::Path) -> String {
    let mut file = std::fs::File::open(path).unwrap();
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => {
                return hash
                    .finish()
                    .as_ref()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
            }
            read => hash.update(&buffer[..read]),
        }
    }
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs 7 GiB of disk and a few minutes"]
async fn three_gibibytes_pass_in_bounded_memory() {
    let registry = Registry::open().await.unwrap();
    let (section, provider) = provider(&[&Entry::of(&registry)]);
    let folder = tempfile::tempdir().unwrap();
    let row = Row::container("Container_Base", "x86_64", "replaced below");
    let mut deliverable = deliverable(&section, folder.path(), FIRST, vec![row]).await;
    let path = folder.path().join("big.oci.tar");
    let made = big(&path, 3 << 30).unwrap();
    let image = &mut deliverable.images[0];
    image.size = made.size;
    image.sha256 = sha256(&path);
    image.location = Resource::Folder(path);

    let started = std::time::Instant::now();
    let publication = publish(&provider, &deliverable, &task()).await.unwrap();
    let elapsed = started.elapsed();
    assert_eq!(publication.places.len(), 1, "{publication:?}");
    let peak = peak_kib();
    eprintln!("{} bytes in {elapsed:?}, peak {peak} KiB", made.size);
    assert!(peak < LIMIT_KIB, "{peak} KiB");
    let index = Skopeo::new(&registry)
        .unwrap()
        .inspect(&format!("{FULL}:43"))
        .await
        .unwrap();
    assert_eq!(index["manifests"][0]["digest"], made.manifest);
}
