//! Publishes disks through Azurite and the gallery, and reads them back with the vendor's SDK.

use std::collections::BTreeSet;

use cloud_image_uploader_test_support::archive::{noise, sha256};
use cloud_image_uploader_test_support::azure::{Fault, Form, Sdk, vhd};
use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use serde_json::{Value, json};

use crate::world::*;

/// The regions of Fedora's production.
const REGIONS: [&str; 30] = [
    "australiaeast",
    "brazilsouth",
    "canadacentral",
    "centralindia",
    "centralus",
    "eastasia",
    "eastus",
    "eastus2",
    "francecentral",
    "germanywestcentral",
    "israelcentral",
    "italynorth",
    "japaneast",
    "koreacentral",
    "mexicocentral",
    "northeurope",
    "norwayeast",
    "polandcentral",
    "qatarcentral",
    "southafricanorth",
    "southcentralus",
    "southeastasia",
    "spaincentral",
    "swedencentral",
    "switzerlandnorth",
    "uaenorth",
    "uksouth",
    "westeurope",
    "westus2",
    "westus3",
];
const PUBLIC: &str = "Fedora-5e266ba4-2250-406d-adad-5d73860d958f";

#[tokio::test(flavor = "multi_thread")]
async fn two_architectures_in_thirty_regions_are_announced() {
    let (world, _rabbit, mut spy) = World::announcing(&REGIONS).await;
    world.azure.add_gallery(GALLERY, "eastus");
    world.azure.share(GALLERY, PUBLIC);
    let rows = ["aarch64", "x86_64"].map(|arch| row(arch, &disk(arch)));
    let digests = rows.clone().map(|row| sha256(&row.bytes));
    world.compose(rows.to_vec());

    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let compose = world.folder.path().join("compose");
    let planned = world
        .run(&["plan", "--compose", compose.to_str().unwrap(), "--format", "json"])
        .await;
    let planned: Value = serde_json::from_str(&planned.stdout).unwrap();
    let mut notices = Vec::new();
    for _ in 0..2 {
        notices.push(spy.next(LIMIT).await.unwrap());
    }
    notices.sort_by(|one, other| one.routing_key.cmp(&other.routing_key));
    for (number, (arch, definition)) in [("aarch64", ARM64), ("x86_64", X64)].into_iter().enumerate() {
        world.assert_published(definition, &disk(arch)).await;
        let sdk = Sdk::new(&world.azure, &world.azurite).unwrap();
        let version = sdk.version(GALLERY, definition, VERSION).await.unwrap();
        let profile = &version["publishing_profile"];
        assert_eq!(version["provisioning_state"], "Succeeded", "{version}");
        assert_eq!(profile["exclude_from_latest"], true, "{version}");
        assert_eq!(profile["end_of_life_date"], "2026-12-09T00:00:00.000Z", "{profile}");
        let targets = profile["target_regions"].as_array().unwrap();
        let names: BTreeSet<String> = targets
            .iter()
            .map(|target| target["name"].as_str().unwrap().replace(' ', "").to_lowercase())
            .collect();
        assert_eq!(names, REGIONS.map(str::to_owned).into());
        for target in targets {
            let kind = (&target["regional_replica_count"], &target["storage_account_type"]);
            assert_eq!(kind, (&json!(3), &json!("Standard_ZRS")));
        }
        assert_eq!(
            version["tags"],
            json!({
                "compose-id": COMPOSE, "image-sha256": digests[number], "stage": "rc",
                "end-of-life": "2026-12-09", "owner": "cloud-image-uploader",
            })
        );
        let made = world.azure.definition(GALLERY, definition).unwrap();
        let properties = &made["properties"];
        assert_eq!(properties["hyperVGeneration"], "V2");
        assert_eq!(
            properties["architecture"],
            if arch == "aarch64" { "Arm64" } else { "x64" }
        );

        let topic = format!("org.fedoraproject.prod.fedora_image_uploader.published.v1.azure.rc.Cloud_Base.{arch}");
        assert_eq!(notices[number].routing_key, topic);
        let body = notices[number].json().unwrap();
        let id = format!("/CommunityGalleries/{PUBLIC}/Images/{definition}/Versions/{VERSION}");
        assert_eq!(body["image_resource_id"], id);
        assert_eq!(body["regions"], json!(REGIONS));
        let mut plan = planned["publish"][number]["body"].clone();
        plan["image_resource_id"] = json!(id);
        assert_eq!(body, plan, "the plan says the same");
    }
    let serialized: Vec<Value> = notices.iter().map(|notice| notice.serialized().unwrap()).collect();
    let valid = FedoraMessaging::new().unwrap().validate(&serialized).await.unwrap();
    assert_eq!(valid[0].class, "AzurePublishedV1");
    let gallery = world.azure.gallery(GALLERY).unwrap();
    assert_eq!(
        gallery["properties"]["description"], "made by hand",
        "a gallery is never changed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_changes_nothing_and_reads_no_image() {
    let world = World::new(&["eastus", "West Europe"]).await;
    let disk = disk("x86_64");
    let compose = world.compose(vec![row("x86_64", &disk)]);
    assert_eq!(world.reconsume(&[]).await.code, Some(0));
    world.assert_published(X64, &disk).await;
    let gallery = world.azure.gallery(GALLERY).unwrap();
    assert_eq!(
        gallery["properties"]["description"], "Images of Fedora",
        "it was created"
    );
    let changes = world.azure.changes().len();

    // Without its image the run would fail if it read it.
    std::fs::remove_dir_all(compose.join("Cloud")).unwrap();
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(exit.stdout.contains("unchanged"), "{}", exit.stdout);
    assert_eq!(world.azure.changes().len(), changes);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_operation_is_followed() {
    for form in [Form::Location, Form::Both, Form::None] {
        let world = World::new(&["eastus"]).await;
        world.azure.set_form(form);
        let disk = disk("x86_64");
        world.compose(vec![row("x86_64", &disk)]);
        let exit = world.reconsume(&[]).await;
        assert_eq!(exit.code, Some(0), "{form:?}: {}", exit.stderr);
        world.assert_published(X64, &disk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_disk_gets_padding_and_footer() {
    let world = World::new(&["eastus"]).await;
    let raw = noise(7, (3 << 20) + 1024);
    world.compose(vec![row("x86_64", &raw)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let imported = world.azure.imported(GALLERY, X64, VERSION).unwrap();
    assert_eq!(imported.len(), (4 << 20) + 512);
    assert!(imported[..raw.len()] == raw[..]);
    assert!(imported[raw.len()..4 << 20].iter().all(|byte| *byte == 0));
    world.assert_no_blobs().await;
}

/// The SDK reads the blob's bytes and the ranges that were sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_sparse() {
    let world = World::new(&["eastus"]).await;
    let mut bytes = vec![0; 64 << 20];
    let mut dense = 0;
    for number in 0..8_usize {
        let (at, size) = (number * (8 << 20) + 4096 * number * 7, (1 << 20) - 12_288 * number);
        bytes[at..at + size].copy_from_slice(&noise(number as u64, size));
        dense += size as u64;
    }
    let disk = vhd(&bytes);
    world.compose(vec![row("x86_64", &disk)]);
    // A failing import leaves the blob.
    world
        .azure
        .fault("PUT version", Fault::Status(503, "ServerBusy"), usize::MAX);
    let mut running = world.reconsuming(&[]).start().unwrap();
    world.azure.wait_for_calls("PUT version", 1, LIMIT).await.unwrap();
    running.kill().unwrap();
    let blobs = world.azurite.blobs().await.unwrap();
    let [name] = &blobs[..] else { panic!("{blobs:?}") };
    assert!(name.ends_with(".vhd"), "{name}");
    let found = Sdk::new(&world.azure, &world.azurite)
        .unwrap()
        .blob(name)
        .await
        .unwrap();
    assert_eq!(found["sha256"], sha256(&disk), "{found}");
    assert_eq!(found["type"], "PageBlob");
    let written = found["written"].as_u64().unwrap();
    assert!(
        written <= dense * 105 / 100,
        "{written} bytes for {dense} that are not zero"
    );

    // Another process imports it, without the image.
    world.azure.mend();
    std::fs::remove_dir_all(world.folder.path().join("compose/Cloud")).unwrap();
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
}
