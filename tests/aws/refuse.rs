//! Images that cannot be published leave nothing behind.

use cloud_image_uploader_test_support::archive::{noise, sha256};
use cloud_image_uploader_test_support::aws::{Effect, Fault};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_image_leaves_nothing() {
    for method in Method::ALL {
        let corrupted = row("x86_64", &disk("x86_64")).wrong_checksum();
        let world = World::with(&TWO, method, vec![corrupted]).await;
        let exit = world.publish().await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        assert!(exit.stderr.contains("its SHA-256 is"), "{}", exit.stderr);
        world.assert_nothing();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_disk_are_not_registered() {
    let mut unbootable = disk("x86_64");
    unbootable[511] = 0;
    let mut bzip2 = row("x86_64", &disk("x86_64"));
    bzip2.bytes[..10].copy_from_slice(b"BZh91AY&SY");
    for (row, said) in [
        (
            row("x86_64", &unbootable),
            "its first sector does not end with the boot signature 55 AA",
        ),
        (
            row("x86_64", &noise(1, (6 << 20) + 100)),
            "which are not whole sectors of 512",
        ),
        (row("x86_64", b""), "it is empty"),
        (bzip2, "it is bzip2, which is not supported"),
    ] {
        for method in Method::ALL {
            let world = World::with(&TWO, method, vec![row.clone()]).await;
            let exit = world.publish().await;
            assert_eq!(exit.code, Some(1), "{said}: {}", exit.stderr);
            assert!(exit.stderr.contains(said), "{said}: {}", exit.stderr);
            world.assert_nothing();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_taken_by_other_content_is_an_error_with_both_digests() {
    for method in [Method::Import, Method::Direct] {
        let world = World::small(&TWO, method).await;
        world.published().await;
        let taken = world.image("us-east-1", "x86_64");
        let other = row("x86_64", &disk("aarch64"));
        let changed = World {
            regions: [TWO[0], TWO[1], "ap-south-1"].map(str::to_owned).to_vec(),
            rows: vec![other.clone()],
            ..world
        };
        changed.cloud.enable_region("ap-south-1", true);
        changed.write(COMPOSE, None);
        changed.cloud.forget_calls();
        let exit = changed.publish().await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        let former = sha256(&row("x86_64", &disk("x86_64")).bytes);
        for part in [&taken.id, &former, &sha256(&other.bytes), &name("x86_64")] {
            assert!(exit.stderr.contains(part), "{part}: {}", exit.stderr);
        }
        assert!(changed.cloud.changes().is_empty(), "{:?}", changed.cloud.changes());
    }
}

/// Another owner takes over the image of a region.
fn take_over(world: &World, region: &str) {
    let image = world.image(region, "x86_64").id;
    let script = format!(
        "import boto3\nec2 = boto3.client('ec2', region_name='{region}')\n\
         ec2.create_tags(Resources=['{image}'], Tags=[{{'Key': '{PREFIX}owner', 'Value': 'CoreOS'}}])\n"
    );
    let mut python = world.cloud.python("tag.py", &script).unwrap();
    assert!(python.status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_owner_means_hands_off() {
    let world = World::small(&["us-east-1"], Method::Direct).await;
    world.published().await;
    take_over(&world, "us-east-1");
    world.cloud.forget_calls();
    let exit = world.publish().await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("belongs to CoreOS"), "{}", exit.stderr);
    assert!(world.cloud.changes().is_empty());
}

/// The repair of one region does not fail for another region that has another owner.
#[tokio::test(flavor = "multi_thread")]
async fn another_owner_in_one_region_leaves_the_repair_of_others_alone() {
    let world = World::small(&TWO, Method::Direct).await;
    world.published().await;
    take_over(&world, "eu-west-1");
    let wider = World {
        regions: [TWO[0], TWO[1], "ap-south-1"].map(str::to_owned).to_vec(),
        ..world
    };
    wider.cloud.enable_region("ap-south-1", true);
    wider.write(COMPOSE, None);
    let repair = wider.reconsume(&["--location", "ap-south-1"]);
    let exit = repair.run(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(wider.image("ap-south-1", "x86_64").permissions.public);
    let exit = wider.publish().await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert_eq!(exit.stderr.matches("belongs to CoreOS").count(), 1, "{}", exit.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_sharing_and_a_full_quota_name_region_and_remedy() {
    let regions = ["us-east-1", "eu-west-1", "ap-south-1", "sa-east-1"];
    let world = World::small(&regions, Method::Direct).await;
    world.cloud.block_public_access("eu-west-1", true, false);
    world.cloud.block_public_access("sa-east-1", false, true);
    let full = Effect::Refuse {
        status: 400,
        code: "ResourceLimitExceeded".into(),
        message: "You have reached your quota of 5 for the number of public images allowed in this Region.".into(),
    };
    world
        .cloud
        .fault(Fault::on("ModifyImageAttribute", full).region("ap-south-1"));
    let exit = world.publish().await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    for part in [
        "disable-image-block-public-access --region eu-west-1",
        "disable-snapshot-block-public-access",
        "public in ap-south-1: AWS answered ResourceLimitExceeded: You have reached your quota of 5",
    ] {
        assert!(exit.stderr.contains(part), "{part}: {}", exit.stderr);
    }
    assert!(exit.stdout.contains("us-east-1"), "{}", exit.stdout);

    world.cloud.block_public_access("eu-west-1", false, false);
    world.cloud.block_public_access("sa-east-1", false, false);
    world.cloud.clear_faults();
    world.published().await;
    world.assert_complete();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_aws_refuses_leaves_nothing() {
    let world = World::small(&TWO, Method::Import).await;
    let message = "ClientError: Disk validation failed [Unsupported VMDK File Format]".to_owned();
    world.cloud.fault(Fault::on(
        "ImportSnapshot",
        Effect::Fail {
            message: message.clone(),
        },
    ));
    let exit = world.publish().await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains(&message), "{}", exit.stderr);
    world.assert_nothing();
}

/// A refusal that only an operator can end is retried: the disk is uploaded once, and the refusal is reported once.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_forbidden_keeps_the_object() {
    let world = World::small(&TWO, Method::Import).await;
    let message = "You are not authorized to perform this operation. Encoded authorization failure message: 6xLw7mNf";
    world.cloud.fault(Fault::on(
        "ImportSnapshot",
        Effect::Refuse {
            status: 403,
            code: "UnauthorizedOperation".into(),
            message: message.into(),
        },
    ));
    let exit = world.publish().await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("not authorized to perform"), "{}", exit.stderr);
    assert!(!exit.stderr.contains("6xLw7mNf"), "{}", exit.stderr);
    assert_eq!(world.cloud.objects(BUCKET).len(), 1);

    world.cloud.clear_faults();
    world.cloud.forget_calls();
    world.published().await;
    let calls = world.cloud.calls();
    assert!(calls.iter().all(|call| call.action != "UploadPart"), "{calls:#?}");
    world.assert_complete();
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_and_a_missing_bucket_say_what_to_do() {
    let world = World::small(&TWO, Method::Import).await;
    let refused = world.reconsume(&[]).env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7UNKNOWN");
    let exit = refused.run(LONG).await.unwrap();
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("AuthFailure"), "{}", exit.stderr);
    assert!(exit.stderr.contains("check the credentials"), "{}", exit.stderr);
    assert!(!exit.stderr.contains("wJalrXUtnFEMI"), "{}", exit.stderr);

    let config = world.config().replace(BUCKET, "another-bucket");
    let message = world.message();
    let program = world.program_with(&config, &["reconsume", "--file", message.to_str().unwrap()]);
    let exit = program.run(LONG).await.unwrap();
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("another-bucket"), "{}", exit.stderr);
    assert!(exit.stderr.contains("s3_bucket_name"), "{}", exit.stderr);
    world.assert_nothing();
}
