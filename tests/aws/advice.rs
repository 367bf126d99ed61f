//! The texts about the likeliest mistakes: each names the thing, the place, the cause, and the remedy.

use cloud_image_uploader_test_support::advice::Advice;
use cloud_image_uploader_test_support::aws::{Effect, Fault};
use cloud_image_uploader_test_support::program::Exit;

use crate::world::*;

async fn check(world: &World) -> Exit {
    world.program(&["check"]).run(LONG).await.unwrap()
}

fn refuse(world: &World, action: &str, status: u16, code: &str, message: &str) {
    let effect = Effect::Refuse {
        status,
        code: code.into(),
        message: message.into(),
    };
    world.cloud.fault(Fault::on(action, effect));
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_reported_with_their_remedy() {
    let mut advice = Advice::default();

    let world = World::small(&["us-east-1"], Method::Import).await;
    world.cloud.settings().import_role = None;
    advice.add("the role vmimport is missing: check", &check(&world).await);
    advice.add("the role vmimport is missing: reconsume", &world.publish().await);

    let world = World::small(&["us-east-1"], Method::Import).await;
    world.cloud.enable_region("eu-west-1", true);
    world.cloud.create_bucket("eu-west-1", "far-away").await.unwrap();
    let config = world.config().replace(BUCKET, "far-away");
    let exit = world.program_with(&config, &["check"]).run(LONG).await.unwrap();
    advice.add("the bucket is in another region: check", &exit);
    let message = world.message();
    let reconsume = ["reconsume", "--file", message.to_str().unwrap()];
    let exit = world.program_with(&config, &reconsume).run(LONG).await.unwrap();
    advice.add("the bucket is in another region: reconsume", &exit);

    let world = World::small(&["us-east-1"], Method::Direct).await;
    world.cloud.block_public_access("us-east-1", true, false);
    advice.add("public sharing is blocked: check", &check(&world).await);
    advice.add("public sharing is blocked: reconsume", &world.publish().await);

    let world = World::small(&["us-east-1"], Method::Direct).await;
    world.cloud.settings().public_images = 0;
    advice.add("the quota of public images is used up: check", &check(&world).await);
    advice.add(
        "the quota of public images is used up: reconsume",
        &world.publish().await,
    );

    let world = World::small(&TWO, Method::Direct).await;
    let message = "You have reached your limit of 100000 snapshots in this Region.";
    refuse(&world, "CopySnapshot", 400, "SnapshotLimitExceeded", message);
    advice.add(
        "the quota of snapshots is used up in one region",
        &world.publish().await,
    );

    let world = World::small(&["us-east-1"], Method::Direct).await;
    let message = "The security token included in the request is expired";
    refuse(&world, "GetCallerIdentity", 403, "ExpiredToken", message);
    refuse(&world, "DescribeImages", 400, "RequestExpired", "Request has expired.");
    advice.add("the session has expired: check", &check(&world).await);
    advice.add("the session has expired: reconsume", &world.publish().await);

    let world = World::small(&["us-east-1"], Method::Direct).await;
    let message = "You are not authorized to perform this operation. User: arn:aws:iam::125523088429:user/uploader is not \
                   authorized to perform: ec2:RegisterImage because no identity-based policy allows the \
                   ec2:RegisterImage action";
    refuse(&world, "RegisterImage", 403, "UnauthorizedOperation", message);
    advice.add("the policy lacks an action", &world.publish().await);

    insta::with_settings!({
        snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true,
    }, {
        insta::assert_snapshot!("advice-aws", advice.document());
    });
}
