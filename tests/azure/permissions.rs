//! The documented role permits every call of the program, and nothing else.

use std::collections::BTreeSet;

use cloud_image_uploader_test_support::permissions::{Need, differences};
use serde_json::{Value, json};

use crate::world::*;

const COMPUTE: &str =
    "https://learn.microsoft.com/azure/role-based-access-control/permissions/compute#microsoftcompute";
const ASKING: &str = "https://learn.microsoft.com/rest/api/authorization/permissions/list-for-resource-group";
const TOKENS: &str = "https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow";
/// The caller that started an operation may follow it.
const OPERATIONS: &str = "https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations";
/// Azure reads the disk with the account's key, which it gets in our name.
const IMPORT: &str = "https://learn.microsoft.com/azure/virtual-machines/azure-compute-gallery\
                      #what-rbac-permissions-are-required-to-create-an-acg-image";
const BLOBS: &str = "https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory\
                     #permissions-for-blob-service-operations";

const READ: &str = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read";
const WRITE: &str = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write";
const DELETE: &str = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete";

const TABLE: &[Need] = &[
    Need("DELETE blob", &[DELETE], BLOBS),
    Need(
        "DELETE version",
        &["Microsoft.Compute/galleries/images/versions/delete"],
        COMPUTE,
    ),
    Need(
        "GET container",
        &["Microsoft.Storage/storageAccounts/blobServices/containers/read"],
        BLOBS,
    ),
    Need("GET definition", &["Microsoft.Compute/galleries/images/read"], COMPUTE),
    Need("GET gallery", &["Microsoft.Compute/galleries/read"], COMPUTE),
    Need("GET operation", &[], OPERATIONS),
    Need("GET permissions", &["Microsoft.Authorization/permissions/read"], ASKING),
    Need(
        "GET version",
        &["Microsoft.Compute/galleries/images/versions/read"],
        COMPUTE,
    ),
    Need("HEAD blob", &[READ], BLOBS),
    Need(
        "LIST definitions",
        &["Microsoft.Compute/galleries/images/read"],
        COMPUTE,
    ),
    Need(
        "LIST versions",
        &["Microsoft.Compute/galleries/images/versions/read"],
        COMPUTE,
    ),
    Need("POST token", &[], TOKENS),
    Need("PUT blob", &[WRITE], BLOBS),
    Need("PUT blob lease", &[WRITE], BLOBS),
    Need("PUT blob metadata", &[WRITE], BLOBS),
    Need("PUT blob page", &[WRITE], BLOBS),
    Need("PUT definition", &["Microsoft.Compute/galleries/images/write"], COMPUTE),
    Need("PUT gallery", &["Microsoft.Compute/galleries/write"], COMPUTE),
    Need(
        "PUT version",
        &[
            "Microsoft.Compute/galleries/images/versions/write",
            "Microsoft.Storage/storageAccounts/listKeys/action",
            "Microsoft.Storage/storageAccounts/write",
        ],
        IMPORT,
    ),
];

fn role() -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/azure/role.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_permits_every_call_and_nothing_else() {
    let world = World::new(&["eastus"]).await;
    let role = role();
    world.azure.permit(&strings(&role["Actions"]));
    let exit = world.run(&["check"]).await;
    assert!(
        exit.stdout.contains("permits everything that is needed"),
        "{}",
        exit.stdout
    );
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    for _ in 0..2 {
        let exit = world.reconsume(&[]).await;
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    }
    let tags = json!({"owner": "cloud-image-uploader", "compose-id": "Fedora-43-20251001.0", "image-sha256": "00"});
    let ended = json!({
        "targetRegions": [{"name": "eastus"}], "excludeFromLatest": true, "endOfLifeDate": "2020-01-01T00:00:00Z",
    });
    world.azure.add_version(GALLERY, X64, "43.20251001.0", tags, ended);
    let exit = world.run(&["clean-up"]).await;
    assert!(
        exit.stdout.contains("gone: Fedora-Cloud-43-x64/43.20251001.0"),
        "{}",
        exit.stdout
    );

    let calls = world.azure.calls().into_iter().map(|call| call.name);
    let calls: BTreeSet<_> = calls.chain(world.azurite.requests().await.unwrap()).collect();
    let granted = [strings(&role["Actions"]), strings(&role["DataActions"])].concat();
    let differences = differences(TABLE, calls.iter().map(String::as_str), granted);
    assert_eq!(differences, Vec::<String>::new());
}

/// `check` names each missing action that publishing or retiring needs.
#[tokio::test(flavor = "multi_thread")]
async fn check_finds_missing_actions_of_the_role() {
    let world = World::new(&["eastus"]).await;
    world.azure.permit(&[]);
    let exit = world.run(&["check"]).await;
    for action in strings(&role()["Actions"]) {
        // Trying shows these.
        let tried = ["Microsoft.Authorization/permissions/read", "containers/read"];
        if !tried.iter().any(|tried| action.ends_with(tried)) {
            assert!(exit.stdout.contains(action), "{action}: {}", exit.stdout);
        }
    }
}
