//! The roles in the manual permit all calls of the program and nothing else.

use std::collections::BTreeSet;

use cloud_image_uploader::providers::contract::Retire;
use cloud_image_uploader_test_support::gcp::{Emulator, Fault};
use cloud_image_uploader_test_support::permissions::{Need, differences};

use crate::policies::{age, make};
use crate::world::*;

const INSERT: &str = "https://cloud.google.com/compute/docs/reference/rest/v1/images/insert#iam-permissions";
const UPDATE: &str = "https://cloud.google.com/compute/docs/reference/rest/v1/images/patch#iam-permissions";
const IMAGES: &str = "https://cloud.google.com/compute/docs/reference/rest/v1/images";
const OPERATIONS: &str = "https://cloud.google.com/compute/docs/reference/rest/v1/globalOperations/get";
const OBJECTS: &str = "https://cloud.google.com/storage/docs/access-control/iam-json";
/// Without a permission to list, an object that is missing looks forbidden.
const ABSENT: &str = "https://cloud.google.com/storage/docs/json_api/v1/status-codes#403-forbidden";

const TABLE: &[Need] = &[
    Need("buckets.testIamPermissions", &[], OBJECTS),
    Need("globalOperations.get", &["compute.globalOperations.get"], OPERATIONS),
    Need("images.delete", &["compute.images.delete"], IMAGES),
    Need("images.deprecate", &["compute.images.deprecate"], IMAGES),
    Need("images.get", &["compute.images.get"], IMAGES),
    Need(
        "images.insert",
        &[
            "compute.images.create",
            "compute.images.setLabels",
            "storage.objects.get",
        ],
        INSERT,
    ),
    Need("images.list", &["compute.images.list"], IMAGES),
    Need("images.patch", &["compute.images.get", "compute.images.update"], UPDATE),
    Need(
        "images.setLabels",
        &["compute.images.get", "compute.images.setLabels"],
        IMAGES,
    ),
    Need("images.testIamPermissions", &["compute.images.list"], IMAGES),
    Need("objects.cancel", &["storage.objects.create"], OBJECTS),
    Need("objects.delete", &["storage.objects.delete"], OBJECTS),
    Need("objects.get", &["storage.objects.get", "storage.objects.list"], ABSENT),
    Need("objects.insert", &["storage.objects.create"], OBJECTS),
    Need("objects.status", &["storage.objects.create"], OBJECTS),
    Need("objects.upload", &["storage.objects.create"], OBJECTS),
];

/// Permissions on the project as a whole, which cannot be tested on an image.
const SILENT: [&str; 3] = [
    "compute.globalOperations.get",
    "compute.images.create",
    "compute.images.list",
];

/// Reads the permissions in a role's file.
fn role(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("{}/deploy/gcp/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let items = text.lines().filter_map(|line| line.strip_prefix("- "));
    items.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_permit_what_is_called_and_nothing_else() {
    let mut names = BTreeSet::new();
    let mut note = |world: &World| names.extend(world.cloud.calls().into_iter().map(|call| call.name));

    // A family's life: created, promoted, replaced, deleted; and a repetition.
    let world = World::new().await;
    make(&world, 1).await;
    age(&world, 20);
    world.provider().clean_up(false).await.unwrap();
    make(&world, 2).await;
    make(&world, 2).await;
    for days in [14, 20] {
        age(&world, days);
        world.provider().clean_up(false).await.unwrap();
    }
    let exit = world.program().arg("check").run(LIMIT).await.unwrap();
    assert!(!exit.stdout.contains("failed: project"), "{}", exit.stdout);
    note(&world);

    // An upload that breaks, and one of a corrupted image.
    let world = World::with(Emulator::GcpStorageEmulator).await;
    world.cloud.fault("objects.upload", Fault::Half, 1);
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 20 << 20))).await;
    publish(&world.provider(), &deliverable).await.unwrap();
    note(&world);
    let world = World::new().await;
    let corrupted = row(tarball(1, 20 << 20)).wrong_checksum();
    let deliverable = world.deliverable(COMPOSE, corrupted).await;
    publish(&world.provider(), &deliverable).await.unwrap_err();
    note(&world);

    let (project, bucket) = (role("role.yaml"), role("bucket-role.yaml"));
    assert!(project.iter().all(|name| name.starts_with("compute.")), "{project:?}");
    assert!(bucket.iter().all(|name| name.starts_with("storage.")), "{bucket:?}");
    let granted = project.iter().chain(&bucket).map(String::as_str);
    let differences = differences(TABLE, names.iter().map(String::as_str), granted);
    assert_eq!(differences, Vec::<String>::new());
}

/// `check` looks for each permission of the roles that can be asked for.
#[tokio::test(flavor = "multi_thread")]
async fn check_finds_missing_permissions() {
    let world = World::new().await;
    world.cloud.put_image("somebody-s", serde_json::json!({}));
    let permissions = [role("role.yaml"), role("bucket-role.yaml")].concat();
    permissions
        .iter()
        .for_each(|permission| world.cloud.take_permission(permission));
    let exit = world.program().arg("check").run(LIMIT).await.unwrap();
    for permission in permissions
        .iter()
        .filter(|permission| !SILENT.contains(&permission.as_str()))
    {
        assert!(exit.stdout.contains(permission), "{permission}: {}", exit.stdout);
    }
}
