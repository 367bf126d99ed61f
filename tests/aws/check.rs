//! `check`, and what it says before anything fails.

use cloud_image_uploader_test_support::aws::{Effect, Fault};
use cloud_image_uploader_test_support::moto::Moto;
use cloud_image_uploader_test_support::process::run;

use crate::world::*;

/// The lines about AWS only.
async fn check(world: &World) -> Vec<String> {
    let exit = world.program(&["check"]).run(LONG).await.unwrap();
    exit.stdout
        .lines()
        .filter(|line| !line.contains("configuration") && !line.contains("broker"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_for_each_thing_that_is_needed() {
    let world = World::small(&TWO, Method::Import).await;
    let lines = check(&world).await;
    let expected = [
        "ok: credentials: they belong to arn:aws:",
        "ok: bucket fedora-s3-bucket-fedimg: it exists, in us-east-1",
        "ok: role vmimport: it exists",
        "ok: region us-east-1: it is enabled, and has 0 of ",
        "ok: region eu-west-1: it is enabled, and has 0 of ",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{line} instead of {start}");
    }
    assert!(world.cloud.changes().is_empty());
    assert!(world.cloud.validate_calls().await.unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_is_named_with_its_remedy() {
    let regions = ["us-east-1", "eu-west-1", "ap-south-1", "af-south-1", "sa-east-1"];
    let mut world = World::small(&regions, Method::Import).await;
    world.published().await;
    world.cloud.block_public_access("eu-west-1", true, false);
    world.cloud.block_public_access("sa-east-1", false, true);
    world.cloud.enable_region("af-south-1", false);
    {
        let mut settings = world.cloud.settings();
        settings.import_role = None;
        settings.public_images = 1;
    }
    let lines = check(&world).await;
    for part in [
        "failed: role vmimport: it does not exist",
        "failed: region eu-west-1: the account blocks public sharing of images",
        "failed: region sa-east-1: the account blocks public sharing of snapshots",
        "failed: region ap-south-1: all 1 public images",
        "failed: region af-south-1: it is not enabled",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(part)), "{part}: {lines:#?}");
    }
    world.cloud.create_bucket("eu-west-1", "far-away").await.unwrap();
    world.method = Method::Import;
    let config = world.config().replace(BUCKET, "far-away");
    let exit = world.program_with(&config, &["check"]).run(LONG).await.unwrap();
    assert!(
        exit.stdout.contains("failed: bucket far-away: it is in eu-west-1"),
        "{}",
        exit.stdout
    );
    assert_eq!(exit.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_publishing_does_not_need_may_be_denied() {
    let world = World::small(&TWO, Method::Direct).await;
    let denied = Effect::Refuse {
        status: 403,
        code: "UnauthorizedOperation".into(),
        message: "You are not authorized to perform this operation.".into(),
    };
    world
        .cloud
        .fault(Fault::on("GetSnapshotBlockPublicAccessState", denied));
    let lines = check(&world).await;
    assert!(lines.iter().all(|line| line.starts_with("ok: ")), "{lines:#?}");
}

/// Identity and role, as moto reports them: a server that others wrote.
#[tokio::test(flavor = "multi_thread")]
async fn identity_and_role_are_understood_as_by_others() {
    const MAKE_ROLE: &str = "import boto3, sys; boto3.client('iam', 'us-east-1', endpoint_url=sys.argv[1])\
        .create_role(RoleName='vmimport', AssumeRolePolicyDocument='{}')";
    let world = World::small(&TWO, Method::Import).await;
    let moto = Moto::start().await.unwrap();
    let config = world.config();
    let ask = async || {
        let program = world
            .program_with(&config, &["check"])
            .env("AWS_ENDPOINT_URL_IAM", moto.url())
            .env("AWS_ENDPOINT_URL_STS", moto.url());
        program.run(LONG).await.unwrap().stdout
    };
    let before = ask().await;
    assert!(
        before.contains("ok: credentials: they belong to arn:aws:sts::123456789012:"),
        "{before}"
    );
    assert!(before.contains("failed: role vmimport: it does not exist"), "{before}");
    let mut make = world.cloud.python("make_role.py", MAKE_ROLE).unwrap();
    make.arg(moto.url());
    run(make).await.unwrap();
    let after = ask().await;
    assert!(after.contains("ok: role vmimport: it exists"), "{after}");
}
