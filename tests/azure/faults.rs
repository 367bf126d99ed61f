//! Transient failures, failures of one region, and permanent failures.

use std::time::Duration;

use cloud_image_uploader_test_support::azure::Fault;
use cloud_image_uploader_test_support::files::{self, Files};
use serde_json::json;

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_are_retried_within_a_round() {
    let world = World::new(&["eastus", "westus2"]).await;
    let busy = || Fault::Status(503, "ServiceUnavailable");
    for (call, fault) in [
        ("POST token", busy()),
        ("GET version", Fault::Throttle(1)),
        ("GET definition", busy()),
        ("PUT gallery", Fault::Lost),
        ("PUT definition", busy()),
        ("PUT definition", Fault::Lost),
        ("PUT version", Fault::Status(429, "TooManyRequests")),
        ("GET operation", busy()),
        ("GET operation", Fault::Lost),
    ] {
        world.azure.fault(call, fault, 1);
    }
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(
        !exit.stderr.contains("trying again"),
        "in the first round: {}",
        exit.stderr
    );
    world.assert_published(X64, &disk).await;
}

/// Two images want tokens of two scopes at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_is_left_alone_for_as_long_as_it_asks() {
    let world = World::new(&["eastus"]).await;
    world.azure.fault("POST token", Fault::Throttle(2), 2);
    let rows = ["aarch64", "x86_64"].map(|arch| row(arch, &disk(arch)));
    world.compose(rows.to_vec());
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let calls = world.azure.calls();
    let tokens: Vec<_> = calls.iter().filter(|call| call.name == "POST token").collect();
    assert_eq!(
        tokens.len(),
        4,
        "one for each scope, and two that were refused: {tokens:?}"
    );
    for pair in tokens.windows(2) {
        let pause = pair[1].at - pair[0].at;
        assert!(pair[0].status == 200 || pause >= Duration::from_secs(2), "{pause:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_is_replaced() {
    let world = World::new(&["eastus"]).await;
    world.azure.set_times(|times| times.import = Duration::from_secs(3));
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let running = world.reconsuming(&[]).start().unwrap();
    world.azure.wait_for_calls("PUT version", 1, LIMIT).await.unwrap();
    world.azure.expire_tokens();
    let exit = running.wait(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert!(world.azure.calls().iter().any(|call| call.status == 401));
}

/// The lease ends meanwhile; the pages written before are kept.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_continues_after_an_outage_of_the_blob_service() {
    let (world, proxy) = World::new(&["eastus"]).await.behind_a_proxy().await;
    let disk = disk("x86_64");
    let row = row("x86_64", &disk);
    world.compose(vec![row.clone()]);
    let files = Files::start(world.folder.path()).await.unwrap();
    let slow = files::Fault::Slow {
        piece: row.bytes.len() / 10,
        pause: Duration::from_secs(1),
    };
    files.fault(&format!("/compose/{}", row.path()), slow, usize::MAX);
    let program = world.program().args(["reconsume", "--compose", &files.url("/compose")]);
    let running = program.start().unwrap();
    world.azurite.wait_for_lease("leased", LIMIT).await.unwrap();
    proxy.close();
    world.azurite.wait_for_lease("expired", LIMIT).await.unwrap();
    proxy.open();
    let exit = running.wait(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(
        !exit.stderr.contains("trying again"),
        "in the first round: {}",
        exit.stderr
    );
    world.assert_published(X64, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federated_token_is_read_again_each_time() {
    let world = World::new(&["eastus"]).await;
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let file = world.folder.path().join("assertion");
    std::fs::write(&file, "header.claims.signature\n").unwrap();
    world.azure.accept_assertion("header.claims.signature");
    let program = world.reconsuming(&[]).env("AZURE_SECRET", "");
    let exit = program
        .env("AZURE_FEDERATED_TOKEN_FILE", &file)
        .run(LIMIT)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_reported_and_kept_secret() {
    for (secret, reason) in [("expired", "the client secret has expired"), ("guess-me", "not its id")] {
        let world = World::new(&["eastus"]).await;
        world.compose(vec![row("x86_64", &disk("x86_64"))]);
        let exit = world
            .reconsuming(&[])
            .env("AZURE_SECRET", secret)
            .run(LIMIT)
            .await
            .unwrap();
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        assert!(
            exit.stderr.contains("AADSTS") && exit.stderr.contains(reason),
            "{}",
            exit.stderr
        );
        assert!(!exit.stderr.contains("guess-me"), "{}", exit.stderr);
        world.assert_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_lacks_an_action_is_reported() {
    let world = World::new(&["eastus"]).await;
    world.azure.fault("PUT version", Fault::Refuse, usize::MAX);
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    let last = exit.stderr.lines().last().unwrap();
    assert!(
        last.contains("create Fedora-Cloud-43-x64/43.20251024.100") && last.contains("AuthorizationFailed"),
        "{last}"
    );
    assert!(last.contains("needs a role on the resource group"), "{last}");
}

/// The region is dropped, so that the version succeeds, and added again.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_fails_once_is_added_again() {
    let world = World::new(&["eastus", "westeurope", "japaneast"]).await;
    world.azure.fail_region("westeurope", 1);
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(exit.stderr.contains("Storage allocation failure"), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "japaneast", "westeurope"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_always_fails_is_reported_and_repaired_by_its_command() {
    let world = World::new(&["eastus", "westeurope", "japaneast"])
        .await
        .giving_up_after("5s");
    world.azure.fail_region("westeurope", usize::MAX);
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    let last = exit.stderr.lines().last().unwrap();
    assert!(
        last.contains("to westeurope") && last.contains("Storage allocation failure"),
        "{last}"
    );
    assert!(last.ends_with("--location westeurope"), "{last}");
    for line in ["| published | eastus ", "| japaneast ", "| failed    | westeurope "] {
        assert!(exit.stdout.contains(line), "{line}: {}", exit.stdout);
    }
    assert_eq!(world.version(X64)["provisioningState"], "Succeeded");
    assert_eq!(world.regions(), ["eastus", "japaneast"]);

    world.azure.mend();
    let exit = world.reconsume(&["--location", "westeurope"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "japaneast", "westeurope"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_failed_in_every_region_is_created_again() {
    let world = World::new(&["eastus", "westus2"]).await;
    world.azure.fail_region("eastus", 1);
    world.azure.fail_region("westus2", 1);
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    assert_eq!(world.regions(), ["eastus", "westus2"]);
}

/// Adding a region again may take hours; the other regions are announced before.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_added_again_slowly_does_not_delay_the_others() {
    let (world, _rabbit, mut spy) = World::announcing(&["eastus", "westeurope"]).await;
    world.azure.fail_region("westeurope", 1);
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    let running = world.reconsuming(&[]).start().unwrap();
    world.azure.wait_for_calls("PUT version", 1, LIMIT).await.unwrap();
    world.azure.set_times(|times| times.region = Duration::from_secs(8));
    let first = spy.next(LIMIT).await.unwrap().json().unwrap();
    assert_eq!(first["regions"], json!(["eastus"]));
    // Created, freed of the region, and extended by it again.
    world.azure.wait_for_calls("PUT version", 3, LIMIT).await.unwrap();
    assert_eq!(world.version(X64)["provisioningState"], "Updating");
    let second = spy.next(LIMIT).await.unwrap().json().unwrap();
    assert_eq!(second["regions"], json!(["eastus", "westeurope"]));
    let exit = running.wait(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_inside_azure_is_tried_again_without_another_upload() {
    let world = World::new(&["eastus"]).await.giving_up_after("3s");
    world.azure.fail_imports("InternalExecutionError", usize::MAX);
    let disk = disk("x86_64");
    let compose = world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("InternalExecutionError"), "{}", exit.stderr);
    assert!(world.count("PUT version") > 1, "{:?}", world.azure.changes());
    assert!(world.azure.versions().is_empty(), "{:?}", world.azure.versions());
    // The blob is kept for the repairing command.
    assert_eq!(world.azurite.blobs().await.unwrap().len(), 1);
    std::fs::remove_dir_all(compose.join("Cloud")).unwrap();
    world.azure.mend();
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_requested_locations_and_the_gallery_s_own_get_the_version() {
    let world = World::new(&["westeurope", "eastus", "japaneast"]).await;
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&["--location", "japaneast"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(world.regions(), ["eastus", "japaneast"]);
}
