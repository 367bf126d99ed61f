//! The vendor's SDK can use the stand-in for Resource Manager, and is refused what Azure refuses.

use std::time::Duration;

use anyhow::Result;
use cloud_image_uploader_test_support::{
    archive::noise,
    azure::{ACCOUNT, Azure, Azurite, Fault, Form, GROUP, SUBSCRIPTION, Sdk, vhd},
};
use serde_json::{Value, json};

const GALLERY: &str = "Fedora";
const DEFINITION: &str = "Fedora-Cloud-43-x64";
const VERSION: &str = "43.20251023.0";

fn definition() -> Value {
    json!({
        "location": "eastus",
        "os_type": "Linux",
        "os_state": "Generalized",
        "hyper_v_generation": "V2",
        "architecture": "x64",
        "identifier": {"publisher": "Fedora", "offer": "Cloud", "sku": DEFINITION},
        "features": [{"name": "DiskControllerTypes", "value": "SCSI,NVMe"}],
    })
}

fn version(azurite: &Azurite, blob: &str, regions: &[&str]) -> Value {
    let targets: Vec<Value> = regions
        .iter()
        .map(|name| json!({"name": name, "regional_replica_count": 1, "storage_account_type": "Standard_LRS"}))
        .collect();
    let account = format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
    );
    let source = json!({"uri": azurite.url_of(blob), "storage_account_id": account});
    json!({
        "location": "eastus",
        "tags": {"owner": "somebody"},
        "publishing_profile": {"target_regions": targets, "exclude_from_latest": true},
        "storage_profile": {"os_disk_image": {"source": source}},
        "safety_profile": {"allow_deletion_of_replicated_locations": true},
    })
}

/// A blob with a small disk.
async fn upload(azurite: &Azurite, name: &str) -> Result<Vec<u8>> {
    let disk = vhd(&noise(1, 1 << 20));
    azurite.leave(name, disk.len() as u64, &[]).await?;
    azurite.scribble(name, &disk).await?;
    Ok(disk)
}

async fn put(sdk: &Sdk<'_>, body: &Value) -> Result<Value> {
    let arguments = [json!(GALLERY), json!(DEFINITION), json!(VERSION), body.clone()];
    sdk.compute("gallery_image_versions.begin_create_or_update", &arguments, json!({}))
        .await
}

async fn prepare(sdk: &Sdk<'_>) -> Result<()> {
    let gallery = [json!(GALLERY), json!({"location": "eastus", "description": "a test"})];
    let made = sdk
        .compute("galleries.begin_create_or_update", &gallery, json!({}))
        .await?;
    assert_eq!(made["provisioning_state"], "Succeeded", "{made}");
    let arguments = [json!(GALLERY), json!(DEFINITION), definition()];
    let made = sdk
        .compute("gallery_images.begin_create_or_update", &arguments, json!({}))
        .await?;
    assert_eq!(made["provisioning_state"], "Succeeded", "{made}");
    Ok(())
}

#[tokio::test]
async fn a_version_is_made_read_and_deleted() -> Result<()> {
    let azurite = Azurite::start().await?;
    for form in [Form::AsyncOperation, Form::Location, Form::Both] {
        let azure = Azure::start(Some(&azurite)).await?;
        azure.set_form(form);
        azure.set_times(|times| times.forgetting = Duration::from_secs(60));
        let sdk = Sdk::new(&azure, &azurite)?;
        prepare(&sdk).await?;
        let disk = upload(&azurite, "good.vhd").await?;
        let made = put(&sdk, &version(&azurite, "good.vhd", &["eastus", "West Europe"])).await?;
        assert_eq!(made["provisioning_state"], "Succeeded", "{form:?}: {made}");
        assert_eq!(azure.imported(GALLERY, DEFINITION, VERSION), Some(disk));
        let found = sdk.version(GALLERY, DEFINITION, VERSION).await?;
        let regions = found["replication_status"]["summary"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let states: Vec<_> = regions
            .iter()
            .map(|region| (&region["region"], &region["state"]))
            .collect();
        assert_eq!(
            states,
            [
                (&json!("East US"), &json!("Completed")),
                (&json!("West Europe"), &json!("Completed"))
            ]
        );
        let arguments = [json!(GALLERY), json!(DEFINITION)];
        let listed = sdk
            .compute("gallery_image_versions.list_by_gallery_image", &arguments, json!({}))
            .await?;
        assert_eq!(listed[0]["name"], VERSION, "{listed}");
        let arguments = [json!(GALLERY), json!(DEFINITION), json!(VERSION)];
        let gone = sdk
            .compute("gallery_image_versions.begin_delete", &arguments, json!({}))
            .await?;
        assert_eq!(gone, Value::Null, "{form:?}");
        let found = sdk.version(GALLERY, DEFINITION, VERSION).await?;
        assert_eq!(found["refused"], 404, "{found}");
        // The name is not free at once.
        let again = put(&sdk, &version(&azurite, "good.vhd", &["eastus"])).await?;
        assert_eq!(again["refused"], 409, "{again}");
    }
    Ok(())
}

#[tokio::test]
async fn what_azure_refuses_is_refused() -> Result<()> {
    let azurite = Azurite::start().await?;
    let azure = Azure::start(Some(&azurite)).await?;
    let sdk = Sdk::new(&azure, &azurite)?;
    let good = || version(&azurite, "good.vhd", &["eastus", "westus"]);
    let orphan = put(&sdk, &good()).await?;
    assert_eq!(
        (&orphan["refused"], &orphan["code"]),
        (&json!(404), &json!("ParentResourceNotFound"))
    );
    prepare(&sdk).await?;

    let mut changed = definition();
    changed["architecture"] = json!("Arm64");
    let arguments = [json!(GALLERY), json!(DEFINITION), changed];
    let refused = sdk
        .compute("gallery_images.begin_create_or_update", &arguments, json!({}))
        .await?;
    assert_eq!(refused["code"], "PropertyChangeNotAllowed", "{refused}");

    let mut bad = Vec::new();
    for (path, value) in [
        ("/location", json!("mars")),
        ("/publishing_profile/target_regions/0/name", json!("westus")),
        ("/publishing_profile/target_regions/1/name", json!("mars")),
        (
            "/publishing_profile/target_regions/1/regional_replica_count",
            json!(101),
        ),
        (
            "/publishing_profile/target_regions/1/storage_account_type",
            json!("Wood"),
        ),
        ("/storage_profile/os_disk_image/source/storage_account_id", Value::Null),
        ("/storage_profile/os_disk_image/source/uri", json!("https://x/good.img")),
    ] {
        let mut body = good();
        *body.pointer_mut(path).unwrap() = value;
        bad.push((path, body));
    }
    for (path, body) in bad {
        let refused = put(&sdk, &body).await?;
        assert_eq!(refused["refused"], 400, "{path}: {refused}");
    }

    // A blob that is not there, and one that is no disk.
    azurite.leave("empty.vhd", 1 << 20, &[]).await?;
    for blob in ["nothing.vhd", "empty.vhd"] {
        let failed = put(&sdk, &version(&azurite, blob, &["eastus"])).await;
        assert!(
            failed.is_err() || failed.is_ok_and(|failed| failed.get("code").is_some()),
            "{blob}"
        );
        let found = sdk.version(GALLERY, DEFINITION, VERSION).await?;
        assert_eq!(found["provisioning_state"], "Failed", "{found}");
        let arguments = [json!(GALLERY), json!(DEFINITION), json!(VERSION)];
        sdk.compute("gallery_image_versions.begin_delete", &arguments, json!({}))
            .await?;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }

    upload(&azurite, "good.vhd").await?;
    let made = put(&sdk, &good()).await?;
    assert_eq!(made["provisioning_state"], "Succeeded", "{made}");
    let mut other = good();
    other["storage_profile"]["os_disk_image"]["source"]["uri"] = json!(azurite.url_of("other.vhd"));
    let mut kind = good();
    kind["publishing_profile"]["target_regions"][1]["storage_account_type"] = json!("Standard_ZRS");
    for body in [other, kind] {
        let refused = put(&sdk, &body).await?;
        assert_eq!(refused["code"], "PropertyChangeNotAllowed", "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn faults_happen_as_planned() -> Result<()> {
    let azurite = Azurite::start().await?;
    let azure = Azure::start(Some(&azurite)).await?;
    let sdk = Sdk::new(&azure, &azurite)?;
    prepare(&sdk).await?;
    upload(&azurite, "good.vhd").await?;
    azure.fail_region("westus", 1);
    let body = version(&azurite, "good.vhd", &["eastus", "westus"]);
    let failed = put(&sdk, &body).await;
    assert!(failed.is_err() || failed.is_ok_and(|failed| failed.get("code").is_some()));
    let found = sdk.version(GALLERY, DEFINITION, VERSION).await?;
    assert_eq!(found["provisioning_state"], "Failed", "{found}");
    assert_eq!(found["replication_status"]["summary"][1]["state"], "Failed", "{found}");
    // Without the region it succeeds, and with it again too.
    for regions in [&["eastus"][..], &["eastus", "westus"]] {
        let changed = put(&sdk, &version(&azurite, "good.vhd", regions)).await?;
        assert_eq!(changed["provisioning_state"], "Succeeded", "{changed}");
    }
    for (fault, status) in [
        (Fault::Refuse, 403),
        (Fault::Throttle(1), 429),
        (Fault::Status(503, "ServerBusy"), 503),
    ] {
        azure.fault("GET version", fault, 1);
        assert_eq!(sdk.version(GALLERY, DEFINITION, VERSION).await?["refused"], status);
    }
    assert_eq!(sdk.version(GALLERY, DEFINITION, VERSION).await?["name"], VERSION);
    let statuses: Vec<u16> = azure.calls().iter().rev().take(4).map(|call| call.status).collect();
    assert_eq!(statuses, [200, 503, 429, 403]);
    Ok(())
}
