//! Killed processes, and concurrent processes.

use std::time::{Duration, Instant};

use cloud_image_uploader_test_support::archive::{Row, noise, sha256};
use cloud_image_uploader_test_support::azure::{Fault, vhd};
use cloud_image_uploader_test_support::files::{self, Files};

use crate::world::*;

/// Killed while it retires an old version: the new one is complete, and nothing is created again. `tests/provider_contract`
/// covers every other call.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_it_cleans_up_is_completed_by_the_next() {
    let world = World::new(&["eastus", "westus2"]).await;
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let profile = serde_json::json!({"endOfLifeDate": "2020-01-01T00:00:00Z"});
    let tags = serde_json::json!({"owner": "cloud-image-uploader", "compose-id": "x"});
    world.azure.add_version(GALLERY, X64, "43.20200101.0", tags, profile);
    // It is done, and the process does not know yet.
    world.azure.fault("DELETE version", Fault::Deaf, 1);
    let mut running = world.reconsuming(&[]).start().unwrap();
    world.azure.wait_for_calls("DELETE version", 1, LIMIT).await.unwrap();
    running.kill().unwrap();
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.count("PUT version"), 1, "one version is created once");
}

/// Killed while pages are written: the unfinished blob is never imported, and the next process starts it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_in_mid_upload_is_completed_by_the_next() {
    let world = World::new(&["eastus"]).await;
    let disk = disk("x86_64");
    let row = row("x86_64", &disk);
    world.compose(vec![row.clone()]);
    let files = Files::start(world.folder.path()).await.unwrap();
    let path = format!("/compose/{}", row.path());
    files.fault(
        &path,
        files::Fault::Stall {
            after: row.bytes.len() as u64 / 2,
        },
        1,
    );
    let url = files.url("/compose");
    let mut first = world.program().args(["reconsume", "--compose", &url]).start().unwrap();
    let deadline = Instant::now() + LIMIT;
    while world.azurite.blobs().await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "no blob: {}", first.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.kill().unwrap();
    assert!(world.azure.versions().is_empty());
    let exit = world.run(&["reconsume", "--compose", &url]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(exit.stderr.contains("by another process; waiting"), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
}

/// A blob of this image as another process left it, with these bytes at its start. Returns its name.
async fn left_blob(world: &World, row: &Row, size: u64, complete: &str, bytes: &[u8]) -> String {
    let digest = sha256(&row.bytes);
    let name = format!("{X64}-{VERSION}-{}.vhd", &digest[..16]);
    let metadata = [("x-ms-meta-image_sha256", &*digest), ("x-ms-meta-complete", complete)];
    world.azurite.leave(&name, size, &metadata).await.unwrap();
    world.azurite.scribble(&name, bytes).await.unwrap();
    name
}

/// The process died after the last page, and before it ended its lease. The next process does not wait for that lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_complete_blob_that_is_still_leased_is_imported_at_once() {
    let world = World::new(&["eastus"]).await;
    let disk = vhd(&noise(5, 1 << 20));
    let row = row("x86_64", &disk);
    let name = left_blob(&world, &row, disk.len() as u64, "true", &disk).await;
    world.azurite.lease(&name).await.unwrap();
    let compose = world.compose(vec![row]);
    std::fs::remove_dir_all(compose.join("Cloud")).unwrap();
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.count("PUT version"), 1);
}

/// An operator wants to look at the blob.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_must_never_be_deleted_is_kept() {
    let world = World::new(&["eastus"]).await;
    let disk = vhd(&noise(5, 1 << 20));
    let row = row("x86_64", &disk);
    let digest = sha256(&row.bytes);
    let name = format!("{X64}-{VERSION}-{}.vhd", &digest[..16]);
    let metadata = [
        ("x-ms-meta-image_sha256", &*digest),
        ("x-ms-meta-complete", "true"),
        ("x-ms-meta-Delete", "NEVER"),
    ];
    world.azurite.leave(&name, disk.len() as u64, &metadata).await.unwrap();
    world.azurite.scribble(&name, &disk).await.unwrap();
    world.compose(vec![row]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(world.azurite.blobs().await.unwrap(), [name]);
}

/// The unfinished blob is overwritten, and never imported.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_written_blob_is_started_again() {
    let world = World::new(&["eastus"]).await;
    let disk = disk("x86_64");
    let row = row("x86_64", &disk);
    left_blob(&world, &row, 1 << 20, "false", &[0xee; 4096]).await;
    world.compose(vec![row]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_at_once_create_one_version() {
    let world = World::new(&["eastus", "westus2"]).await;
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let (one, two) = tokio::join!(world.reconsume(&[]), world.reconsume(&[]));
    assert_eq!(
        (one.code, two.code),
        (Some(0), Some(0)),
        "{}\n{}",
        one.stderr,
        two.stderr
    );
    world.assert_published(X64, &disk).await;
    assert_eq!(world.azure.versions().len(), 1);
    let imports = world
        .azure
        .changes()
        .iter()
        .filter(|call| call.name == "PUT version" && call.status == 201)
        .count();
    assert_eq!(imports, 1, "{:?}", world.azure.changes());
}

/// A version that another process is creating is awaited, not created again.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_under_creation_is_found() {
    let world = World::new(&["eastus", "westus2"]).await;
    world.azure.set_times(|times| times.region = Duration::from_secs(2));
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let mut first = world.reconsuming(&[]).start().unwrap();
    world.azure.wait_for_calls("PUT version", 1, LIMIT).await.unwrap();
    first.kill().unwrap();
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.count("PUT version"), 1);
}
