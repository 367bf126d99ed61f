//! Images and snapshots, read back with Amazon's own SDK.

use cloud_image_uploader_test_support::archive::sha256;
use cloud_image_uploader_test_support::aws::Call;
use serde_json::json;

use crate::world::*;

/// Those of production.
const ALL: [&str; 22] = [
    "us-east-1",
    "af-south-1",
    "eu-north-1",
    "ap-south-1",
    "eu-west-3",
    "eu-west-2",
    "eu-south-1",
    "eu-west-1",
    "ap-northeast-3",
    "ap-northeast-2",
    "me-south-1",
    "ap-northeast-1",
    "sa-east-1",
    "ca-central-1",
    "ap-east-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "eu-central-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
];

async fn attributes(method: Method) {
    let mut world = World::new(&ALL, method).await;
    world.extra = "[consumer_config.aws.tags]\nFedoraGroup = \"cloud\"\n".to_owned();
    world.published().await;
    world.assert_complete();
    assert!(world.cloud.validate_calls().await.unwrap() > 0);

    let found = world.cloud.describe().await.unwrap();
    for region in ALL {
        let images = found[region]["images"].as_array().unwrap();
        assert_eq!(images.len(), 2, "{region}");
        for row in &world.rows {
            let image = images.iter().find(|image| image["Name"] == name(&row.arch)).unwrap();
            let (arch, boot_mode) = match row.arch.as_str() {
                "aarch64" => ("arm64", "uefi"),
                _ => ("x86_64", "uefi-preferred"),
            };
            let expected = [
                ("State", json!("available")),
                ("Architecture", json!(arch)),
                ("BootMode", json!(boot_mode)),
                ("VirtualizationType", json!("hvm")),
                ("EnaSupport", json!(true)),
                ("SriovNetSupport", json!("simple")),
                ("ImdsSupport", json!("v2.0")),
                ("RootDeviceName", json!("/dev/sda1")),
                ("Public", json!(true)),
                ("LaunchPermissions", json!([{"Group": "all"}])),
                (
                    "Description",
                    json!(format!("Fedora 43 Cloud Base for {}, from {COMPOSE}", row.arch)),
                ),
            ];
            for (attribute, value) in expected {
                assert_eq!(image[attribute], value, "{attribute} in {region}");
            }
            let deprecation = image["DeprecationTime"].as_str().unwrap();
            assert!(
                deprecation.starts_with(&format!("{}T00:00:00", end_of_life())),
                "{deprecation}"
            );
            let [device] = &image["BlockDeviceMappings"].as_array().unwrap()[..] else {
                panic!("{image}")
            };
            assert_eq!(device["DeviceName"], "/dev/sda1");
            let volume = &device["Ebs"];
            assert_eq!(
                (&volume["VolumeType"], &volume["VolumeSize"]),
                (&json!("gp3"), &json!(1))
            );
            assert_eq!(volume["DeleteOnTermination"], true);
            let snapshots = found[region]["snapshots"].as_array().unwrap();
            let used = |snapshot: &&serde_json::Value| snapshot["SnapshotId"] == volume["SnapshotId"];
            let snapshot = snapshots.iter().find(used).unwrap();
            assert_eq!(snapshot["CreateVolumePermissions"], json!([{"Group": "all"}]));
            for tags in [&image["Tags"], &snapshot["Tags"]] {
                for (key, value) in [
                    ("compose-id", COMPOSE),
                    ("image-sha256", &sha256(&row.bytes)),
                    ("release", "43"),
                    ("stage", "nightly"),
                    ("subvariant", "Cloud_Base"),
                    ("architecture", &row.arch),
                    ("end-of-life", &end_of_life()),
                    ("owner", "cloud-image-uploader"),
                ] {
                    assert_eq!(tag(tags, &format!("{PREFIX}{key}")), Some(value), "{key} in {region}");
                }
                assert_eq!(tag(tags, "Name"), Some(&name(&row.arch)[..]));
                assert_eq!(tag(tags, "FedoraGroup"), Some("cloud"));
            }
        }
    }
    repeat(&world).await;
}

/// Again, by a new process: nothing is changed, and no image is read.
async fn repeat(world: &World) {
    world.remove_images();
    world.cloud.forget_calls();
    let again = world.published().await;
    assert!(again.stdout.contains("unchanged"), "{}", again.stdout);
    let changes: Vec<String> = world.cloud.changes().into_iter().map(|call| call.action).collect();
    assert_eq!(changes, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_region_has_each_image_by_import() {
    attributes(Method::Import).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_region_has_each_image_block_by_block() {
    attributes(Method::Direct).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_region_has_each_image_without_copies() {
    attributes(Method::DirectEverywhere).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_are_not_sent_and_the_image_is_read_once() {
    let world = World::small(&TWO, Method::DirectEverywhere).await;
    world.published().await;
    let calls = world.cloud.calls();
    let puts = |call: &&Call| call.action == "PutSnapshotBlock";
    // Of each disk: six blocks of noise at the start, two and a bit at the end.
    assert_eq!(calls.iter().filter(puts).count(), 2 * 9);
    assert_eq!(calls.iter().filter(|call| call.action == "CopySnapshot").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_take_effect() {
    let mut world = World::small(&TWO, Method::Import).await;
    world.extra = "public = false\nboot_mode = { x86_64 = \"legacy-bios\" }\nimds_support = \"optional\"\n".to_owned();
    world.published().await;
    for region in TWO {
        let image = world.image(region, "x86_64");
        assert_eq!(
            (image.boot_mode.as_deref(), image.imds.as_deref()),
            (Some("legacy-bios"), None)
        );
        assert!(!image.permissions.public);
        assert!(!world.snapshot(region, &image.devices[0].snapshot).permissions.public);
    }
    assert_eq!(world.cloud.leftovers(), Vec::<String>::new());
    repeat(&world).await;
}

/// News travels, states take their time, answers come in pages: as in the real cloud.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_takes_its_time() {
    for method in Method::ALL {
        let world = World::small(&TWO, method).await;
        {
            let mut settings = world.cloud.settings();
            let moment = std::time::Duration::from_millis(700);
            settings.import_pending = moment;
            settings.import_active = moment;
            settings.copy = moment;
            settings.seal = moment;
            settings.image = moment;
            settings.hidden = 2;
            settings.refused_writes = 3;
            settings.page = Some(1);
        }
        world.published().await;
        world.assert_complete();
        repeat(&world).await;
    }
}

/// The service before this one left no mark.
#[tokio::test(flavor = "multi_thread")]
async fn images_of_the_previous_service_are_adopted_by_name() {
    let world = World::small(&["us-east-1"], Method::Import).await;
    world.published().await;
    let former = world.image("us-east-1", "x86_64");
    let script = format!(
        "import boto3\nec2 = boto3.client('ec2', region_name='us-east-1')\n\
         for resource in ['{}', '{}']:\n    ec2.delete_tags(Resources=[resource])\n",
        former.id, former.devices[0].snapshot
    );
    let mut python = world.cloud.python("untag.py", &script).unwrap();
    assert!(python.status().unwrap().success());
    assert!(world.image("us-east-1", "x86_64").tags.is_empty());

    // One more region gets a copy of that one, without a byte being read.
    world.cloud.enable_region("eu-west-1", true);
    world.remove_images();
    let wider = World {
        regions: TWO.map(str::to_owned).to_vec(),
        ..world
    };
    wider.published().await;
    assert_eq!(wider.image("us-east-1", "x86_64").id, former.id);
    wider.assert_complete();
}
