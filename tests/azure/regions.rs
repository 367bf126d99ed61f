//! Regions that Azure refuses, forgets, or fails in, and changes by other clients meanwhile.

use cloud_image_uploader_test_support::azure::Fault;
use serde_json::{Value, json};

use crate::hostile::{ruin, taken};
use crate::world::*;

/// Azure refuses a request as a whole for one region in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_refused_does_not_stop_the_others() {
    for is_there in [false, true] {
        let world = World::new(&["westeurope", "nowhere", "eastus", "japaneast", "uksouth"]).await;
        let disk = disk("x86_64");
        world.compose(vec![row("x86_64", &disk)]);
        if is_there {
            taken(&world.azure, Value::Null);
        }
        let exit = world.reconsume(&[]).await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        let last = exit.stderr.lines().last().unwrap();
        assert!(last.contains("nowhere is no region"), "{last}");
        assert!(last.ends_with("--location nowhere"), "{last}");
        assert!(exit.stdout.contains("| failed    | nowhere "), "{}", exit.stdout);
        assert_eq!(world.regions(), ["eastus", "japaneast", "uksouth", "westeurope"]);
        if !is_there {
            world.assert_published(X64, &disk).await;
        }
        // The command that was printed asks for that region only, and changes nothing else.
        let exit = world.reconsume(&["--location", "nowhere"]).await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        assert_eq!(world.regions().len(), 4);
    }
}

/// A disk in a world where replication to one region always fails.
async fn failing_region() -> (World, Vec<u8>) {
    let world = World::new(&["eastus", "westeurope", "japaneast"])
        .await
        .giving_up_after("5s");
    world.azure.fail_region("westeurope", usize::MAX);
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    (world, disk)
}

/// Azure repairs a version only as long as the blob exists that it was imported from.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_always_fails_leaves_the_version_usable() {
    let (world, disk) = failing_region().await;
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(
        world.count("PUT version") > 3,
        "the region was added again: {:?}",
        world.azure.changes()
    );
    assert_eq!(
        world.version(X64)["provisioningState"],
        "Succeeded",
        "{}",
        world.version(X64)
    );
    assert_eq!(world.regions(), ["eastus", "japaneast"]);
    assert_eq!(
        world.azurite.blobs().await.unwrap().len(),
        1,
        "the blob serves the repair"
    );

    // The repair fails too, with the version still usable, and then succeeds.
    let exit = world.reconsume(&["--location", "westeurope"]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert_eq!(
        world.version(X64)["provisioningState"],
        "Succeeded",
        "{}",
        world.version(X64)
    );
    world.azure.mend();
    let exit = world.reconsume(&["--location", "westeurope"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "japaneast", "westeurope"]);
}

/// The storage account deletes blobs after a week. A repair uploads the disk again before it changes the version.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_uploads_the_blob_again_if_it_is_gone() {
    let (world, disk) = failing_region().await;
    assert_eq!(world.reconsume(&[]).await.code, Some(1));
    for blob in world.azurite.blobs().await.unwrap() {
        world.azurite.delete(&blob).await.unwrap();
    }
    world.azure.mend();
    let exit = world.reconsume(&["--location", "westeurope"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "japaneast", "westeurope"]);
}

/// A region is added to the configuration long after the version was published.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_added_to_the_configuration_later_is_repaired_by_its_command() {
    let world = World::new(&["eastus", "westus2"]).await;
    let disk = disk("x86_64");
    let compose = world.compose(vec![row("x86_64", &disk)]);
    assert_eq!(world.reconsume(&[]).await.code, Some(0));
    world.assert_published(X64, &disk).await;
    let config = world.config() + &World::region("japaneast");
    let repair = async || {
        let program = world.program_with(&config).args(["reconsume", "--compose"]);
        let program = program.arg(&compose).args(["--location", "japaneast"]);
        program.run(LIMIT).await.unwrap()
    };
    // Without the disk there is nothing to repair the version from, so nothing is changed.
    std::fs::rename(compose.join("Cloud"), compose.join("Elsewhere")).unwrap();
    let changes = world.azure.changes().len();
    let exit = repair().await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert_eq!(world.azure.changes().len(), changes, "{:?}", world.azure.changes());
    assert_eq!(world.version(X64)["provisioningState"], "Succeeded");

    std::fs::rename(compose.join("Elsewhere"), compose.join("Cloud")).unwrap();
    let exit = repair().await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "japaneast", "westus2"]);
}

/// Another client changes the version after its blob was deleted, and Azure calls the version failed since then.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_failed_after_its_blob_was_deleted_is_repaired() {
    let world = World::new(&["eastus", "westus2"]).await;
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    assert_eq!(world.reconsume(&[]).await.code, Some(0));
    world.azure.lose_source(GALLERY, X64, VERSION);
    assert_eq!(world.version(X64)["provisioningState"], "Failed");
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "westus2"]);
}

/// It cannot be removed and added, as others are.
#[tokio::test(flavor = "multi_thread")]
async fn the_gallery_s_own_region_is_tried_again() {
    let world = World::new(&["eastus", "westus2"]).await;
    world.azure.fail_region("eastus", 2);
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "westus2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gallery_s_own_region_is_repaired_by_its_command() {
    let world = World::new(&["eastus", "westus2"]).await.giving_up_after("5s");
    world.azure.fail_region("eastus", usize::MAX);
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    let last = exit.stderr.lines().last().unwrap();
    assert!(last.ends_with("--location eastus"), "{last}");
    assert!(exit.stdout.contains("| published | westus2 "), "{}", exit.stdout);
    world.azure.mend();
    let exit = world.reconsume(&["--location", "eastus"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "westus2"]);
}

/// A request that is repeated must not undo what was done since it was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_during_a_repair_is_kept() {
    let world = World::new(&["eastus", "westus2"]).await;
    taken(&world.azure, Value::Null);
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    world.azure.fault("PUT version", Fault::Throttle(3), 1);
    let running = world.reconsuming(&[]).start().unwrap();
    world.azure.wait_for_calls("PUT version", 1, LIMIT).await.unwrap();
    world.azure.promote(GALLERY, X64, VERSION);
    let exit = running.wait(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(world.regions(), ["eastus", "westus2"]);
    let profile = &world.version(X64)["publishingProfile"];
    assert_eq!(profile["excludeFromLatest"], false, "{profile}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_repairs_at_once_leave_both_regions() {
    let world = World::new(&["eastus", "westus2", "japaneast"]).await;
    taken(&world.azure, Value::Null);
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    // The first one has to repeat its request, which the second one overtakes.
    world.azure.fault("PUT version", Fault::Throttle(6), 1);
    let first = world.reconsuming(&["--location", "westus2"]).start().unwrap();
    world.azure.wait_for_calls("PUT version", 1, LIMIT).await.unwrap();
    let exit = world.reconsume(&["--location", "japaneast"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let exit = first.wait(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(
        exit.stderr.contains("another client changed it in the meantime"),
        "{}",
        exit.stderr
    );
    assert_eq!(world.regions(), ["eastus", "japaneast", "westus2"]);
}

/// A version that failed in every region is created again, but not one that users may rely on.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_promoted_is_not_deleted() {
    let world = ruin().await;
    world.azure.promote(GALLERY, X64, VERSION);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(world.count("DELETE version"), 0);
    let properties = world.version(X64);
    assert_eq!(properties["provisioningState"], json!("Succeeded"));
    assert_eq!(properties["publishingProfile"]["excludeFromLatest"], json!(false));
}
