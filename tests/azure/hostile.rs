//! Bad disks and unfit galleries: nothing is imported, nothing is left behind, and the reason is reported.

use cloud_image_uploader_test_support::archive::{Row, noise, sha256};
use cloud_image_uploader_test_support::azure::{Azure, Azurite, Fault, seal, vhd};
use serde_json::json;

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_image_is_not_imported() {
    let good = disk("x86_64");
    let size = good.len();
    let with = |at: usize, bytes: &[u8]| {
        let mut disk = good.clone();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    };
    let footer = size - 512;
    let mut dynamic = with(footer + 60, &[0, 0, 0, 3]);
    seal(&mut dynamic[footer..]);
    let mut short = with(footer + 48, &[0, 0, 0, 0, 0, 0x10, 0, 0]);
    seal(&mut short[footer..]);
    let misaligned = {
        let mut disk = vhd(&noise(3, (2 << 20) + 512));
        let end = disk.len() - 512;
        seal(&mut disk[end..]);
        disk
    };
    let unbootable = with(511, &[0]);
    let mut bzip2 = row("x86_64", &good);
    bzip2.bytes[..10].copy_from_slice(b"BZh91AY&SY");
    let mut truncated = row("x86_64", &good);
    let stored = truncated.bytes.len();
    truncated.bytes.truncate(stored - 1000);
    let cut = |mut row: Row| {
        row.size = Some(stored as u64);
        row
    };
    let mut corrupt = row("x86_64", &good);
    let expected = sha256(&corrupt.bytes);
    let middle = corrupt.bytes.len() / 2;
    corrupt.bytes[middle] ^= 1;
    corrupt.checksum = Some(expected);
    let _azurite = Azurite::start().await.unwrap();
    let cases = [
        (
            "no cookie",
            row("x86_64", &with(footer, b"conectiX")),
            "do not begin with \"conectix\"",
        ),
        (
            "checksum of the footer",
            row("x86_64", &with(footer + 100, b"x")),
            "the footer's checksum is",
        ),
        (
            "dynamic disk",
            row("x86_64", &dynamic),
            "of type 3, and not a fixed disk",
        ),
        (
            "size in the footer",
            row("x86_64", &short),
            "the footer says that the disk has 1048576 bytes",
        ),
        ("misaligned", row("x86_64", &misaligned), "must be a multiple of 1 MiB"),
        (
            "no boot signature",
            row("x86_64", &unbootable),
            "its first sector does not end with the boot signature 55 AA",
        ),
        ("qcow2", row("x86_64", &with(0, b"QFI\xfb")), "it is a qcow2 image"),
        ("nothing", row("x86_64", b""), "it is empty"),
        (
            "an odd length",
            row("x86_64", &noise(1, 5000)),
            "it has 5000 bytes, which are not whole sectors",
        ),
        ("bzip2", bzip2, "it is bzip2, which is not supported"),
        ("truncated", cut(truncated.clone()), "according to the metadata"),
        ("truncated, and the metadata agree", truncated, "decompress"),
        ("checksum of the image", corrupt, "SHA-256"),
    ];
    each(cases, async |(what, row, reason)| {
        let world = World::new(&["eastus"]).await;
        world.compose(vec![row]);
        let exit = world.reconsume(&[]).await;
        assert_eq!(exit.code, Some(1), "{what}: {}", exit.stderr);
        let last = exit.stderr.lines().last().unwrap();
        assert!(
            last.contains("failed to publish") && last.contains(reason),
            "{what}: {last}"
        );
        world.assert_nothing().await;
    })
    .await;
}

/// Azure finds a fault in a disk or a request that the program did not find.
#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_refusal_leaves_nothing() {
    // One of several regions may be the cause of a refusal, so the gallery's own is tried alone.
    for (refuses_at_once, regions, tries) in [
        (true, &["eastus"][..], 1),
        (true, &["eastus", "westus2"], 2),
        (false, &["eastus", "westus2"], 1),
    ] {
        let world = World::new(regions).await;
        if refuses_at_once {
            let refusal = Fault::Status(400, "InvalidParameter");
            world.azure.fault("PUT version", refusal, usize::MAX);
        } else {
            world.azure.fail_imports("InvalidParameter", usize::MAX);
        }
        world.compose(vec![row("x86_64", &disk("x86_64"))]);
        let exit = world.reconsume(&[]).await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        let last = exit.stderr.lines().last().unwrap();
        assert!(
            last.contains("create Fedora-Cloud-43-x64/43.20251024.100") && last.contains("InvalidParameter"),
            "{last}"
        );
        assert_eq!(world.count("PUT version"), tries, "{:?}", world.azure.changes());
        world.assert_nothing().await;
    }
}

/// A process was killed while the version failed in its only region.
pub async fn ruin() -> World {
    let world = World::new(&["eastus"]).await;
    world.azure.fail_region("eastus", 1);
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    let mut running = world.reconsuming(&[]).start().unwrap();
    world.azure.wait_for_calls("PUT version", 1, LIMIT).await.unwrap();
    running.kill().unwrap();
    world
}

/// A failed version without a mark belongs to an unknown owner.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_version_without_a_mark_is_left_alone() {
    let world = ruin().await;
    world
        .azure
        .retag(GALLERY, X64, VERSION, |tags| *tags = json!({"team": "somebody"}));
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    let last = exit.stderr.lines().last().unwrap();
    assert!(
        last.contains("failed in every region") && last.contains("delete it first"),
        "{last}"
    );
    assert_eq!(world.azure.versions().len(), 1);
    world.assert_no_blobs().await;
}

/// Adds a version under the name of the one to be published.
pub fn taken(azure: &Azure, tags: serde_json::Value) {
    azure.add_gallery(GALLERY, "eastus");
    azure.add_definition(GALLERY, X64, fitting());
    let profile = json!({"targetRegions": [{"name": "eastus"}], "excludeFromLatest": true});
    azure.add_version(GALLERY, X64, VERSION, tags, profile);
}

/// The properties of a definition that another service created, with other names than ours.
pub fn fitting() -> serde_json::Value {
    json!({
        "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2", "architecture": "x64",
        "identifier": {"publisher": "somebody", "offer": "else", "sku": "x"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_left_alone() {
    let other = "ab".repeat(32);
    let row = row("x86_64", &disk("x86_64"));
    let ours = sha256(&row.bytes);
    let mark = json!({"compose-id": COMPOSE, "image-sha256": other, "owner": "cloud-image-uploader"});
    for (tags, parts) in [
        (mark, vec!["already exists with different content", &other, &ours]),
        (json!({"owner": "CoreOS", "delete": "never"}), vec!["belongs to CoreOS"]),
    ] {
        let world = World::new(&["eastus", "westus2"]).await;
        taken(&world.azure, tags);
        world.compose(vec![row.clone()]);
        let exit = world.reconsume(&[]).await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        let last = exit.stderr.lines().last().unwrap();
        for part in parts {
            assert!(last.contains(part), "{part}: {last}");
        }
        assert_eq!(world.azure.changes().len(), 0, "{:?}", world.azure.changes());
        world.assert_no_blobs().await;
    }
}

/// An operator keeps a version as it is. It is announced where it is complete, and changed nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_tagged_delete_never_is_not_changed() {
    let world = World::new(&["eastus", "westus2"]).await;
    let row = row("x86_64", &disk("x86_64"));
    let tags = json!({
        "compose-id": COMPOSE, "image-sha256": sha256(&row.bytes), "owner": "cloud-image-uploader", "Delete": "NEVER",
    });
    taken(&world.azure, tags);
    world.compose(vec![row]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    let last = exit.stderr.lines().last().unwrap();
    assert!(
        last.contains("westus2") && last.contains("it is tagged delete=never"),
        "{last}"
    );
    assert!(exit.stdout.contains("unchanged"), "{}", exit.stdout);
    assert_eq!(world.azure.changes().len(), 0, "{:?}", world.azure.changes());
}

/// The previous service left no mark.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_a_mark_is_adopted_by_name() {
    let world = World::new(&["eastus"]).await;
    taken(&world.azure, serde_json::Value::Null);
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(exit.stdout.contains("unchanged"), "{}", exit.stdout);
    assert_eq!(world.azure.changes().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_does_not_fit_is_reported() {
    let world = World::new(&["eastus"]).await;
    world.azure.add_gallery(GALLERY, "eastus");
    let mut properties = fitting();
    properties["hyperVGeneration"] = json!("V1");
    properties["architecture"] = json!("Arm64");
    world.azure.add_definition(GALLERY, X64, properties);
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    let last = exit.stderr.lines().last().unwrap();
    for part in [
        X64,
        "hyperVGeneration is \"V1\"",
        "architecture is \"Arm64\" and should be \"x64\"",
    ] {
        assert!(last.contains(part), "{part}: {last}");
    }
    assert_eq!(world.azure.changes().len(), 0);
    world.assert_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_each_fault() {
    let world = World::new(&["eastus"]).await;
    // No broker is configured, so `check` covers the provider only.
    let check = async |world: &World, change: &[(&str, &str)]| {
        let program = world.program().arg("check");
        let program = change
            .iter()
            .fold(program, |program, (name, value)| program.env(name, value));
        program.run(LIMIT).await.unwrap()
    };
    world
        .azure
        .permit(&["Microsoft.Compute/galleries/*", "Microsoft.Storage/storageAccounts/*"]);
    let exit = check(&world, &[]).await;
    for line in [
        ": accepted; see when its secrets expire with \"az ad app credential list --id ",
        "of devstoreaccount1: authenticated",
        "ok: gallery Fedora: will be created",
        "ok: role on resource group fedora-cloud: permits everything that is needed",
    ] {
        assert!(exit.stdout.contains(line), "{line}: {}\n{}", exit.stdout, exit.stderr);
    }
    world.azure.permit(&["*/read"]);
    world.azure.add_gallery(GALLERY, "eastus");
    let mut wrong = fitting();
    wrong["osType"] = json!("Windows");
    world.azure.add_definition(GALLERY, X64, wrong);
    let exit = check(&world, &[]).await;
    assert_eq!(exit.code, Some(1));
    for line in [
        "ok: gallery Fedora: exists",
        "failed: image definitions: these do not fit and must be deleted first: Fedora-Cloud-43-x64: osType is \"Windows\"",
        "does not permit Microsoft.Compute/galleries/images/write, ",
    ] {
        assert!(exit.stdout.contains(line), "{line}: {}", exit.stdout);
    }
    let assertion = world.folder.path().join("assertion");
    // It expires when 2030 begins.
    let token = "e30.eyJleHAiOjE4OTM0NTYwMDB9.c2ln";
    std::fs::write(&assertion, token).unwrap();
    world.azure.accept_assertion(token);
    let file = assertion.to_str().unwrap();
    let exit = check(&world, &[("AZURE_SECRET", ""), ("AZURE_FEDERATED_TOKEN_FILE", file)]).await;
    let line = ": accepted; the federated token is valid until 2030-01-01T00:00:00Z";
    assert!(exit.stdout.contains(line), "{}", exit.stdout);
    for (secret, reason) in [
        ("expired", "the client secret has expired"),
        ("guess-me", "it must be the secret's value"),
    ] {
        let exit = check(&world, &[("AZURE_SECRET", secret)]).await;
        assert_eq!(exit.code, Some(1));
        assert!(
            exit.stdout.contains("AADSTS") && exit.stdout.contains(reason),
            "{}",
            exit.stdout
        );
        let all = exit.stdout + &exit.stderr;
        assert!(!all.contains("guess-me"), "{all}");
    }
}
