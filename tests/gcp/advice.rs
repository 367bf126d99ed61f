//! Texts about the likeliest mistakes: each names the object, the cause, and the remedy.

use std::time::Duration;

use cloud_image_uploader_test_support::advice::Advice;
use cloud_image_uploader_test_support::gcp::Fault;
use cloud_image_uploader_test_support::program::Exit;
use serde_json::json;

use crate::world::*;

async fn check(world: &World) -> Exit {
    world.program().arg("check").run(LIMIT).await.unwrap()
}

async fn reconsume(world: &World) -> Exit {
    let only = ["--only", "*x86_64*"];
    world.reconsume().args(only).run(LIMIT).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_reported_with_their_remedy() {
    let mut advice = Advice::default();

    let mut world = World::new().await;
    world.cloud.put_image("somebody-s", json!({}));
    world.cloud.take_permission("compute.images.deprecate");
    world.cloud.take_permission("storage.objects.list");
    advice.add("the roles lack permissions: check", &check(&world).await);
    world.cloud.fault("images.insert", Fault::forbidden(), usize::MAX);
    advice.add("the role lacks a permission: reconsume", &reconsume(&world).await);
    world.cloud.mend();

    let absent = Fault::refuse(404, "notFound");
    for call in ["buckets.testIamPermissions", "objects.get", "objects.insert"] {
        world.cloud.fault(call, absent.clone(), usize::MAX);
    }
    advice.add("the bucket is absent: check", &check(&world).await);
    advice.add("the bucket is absent: reconsume", &reconsume(&world).await);
    world.cloud.mend();

    let full = Fault::Fails {
        code: "QUOTA_EXCEEDED",
        status: 403,
        after: Duration::ZERO,
        leaves: false,
    };
    world.cloud.fault("images.insert", full, usize::MAX);
    world.give_up_after = "1s";
    advice.add("the quota of images is used up", &reconsume(&world).await);
    world.cloud.mend();

    world.credentials = world.cloud.stranger().unwrap();
    advice.add("the account's key was deleted", &check(&world).await);
    world.credentials = world.cloud.workload_identity().unwrap();
    world
        .cloud
        .fault("sts", Fault::refuse(400, "invalid_grant"), usize::MAX);
    advice.add("the workload identity is refused", &check(&world).await);
    world.credentials = world.folder.path().join("absent.json");
    advice.add("the file of the key is not there", &check(&world).await);
    world.credentials = world.folder.path().join("key.json");
    std::fs::write(&world.credentials, json!({"type": "authorized_user"}).to_string()).unwrap();
    advice.add("the file is a person's", &check(&world).await);

    insta::with_settings!({
        snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true,
    }, {
        insta::assert_snapshot!("advice-gcp", advice.document());
    });
}
