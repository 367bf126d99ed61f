//! The fake cloud keeps Amazon's rules, as Amazon's own SDK sees them.

use std::time::Duration;

use anyhow::{Context, Result};
use cloud_image_uploader_test_support::{
    aws::{BLOCK, Cloud, Effect, Fault, State},
    process::run,
};

const EAST: &str = "us-east-1";
const WEST: &str = "us-west-2";
const COMMON: &str = include_str!("aws/common.py");

/// Long enough to never pass in a test.
const FOR_EVER: Duration = Duration::from_secs(3600);

async fn cloud() -> Result<Cloud> {
    let cloud = Cloud::start(&[EAST, WEST]).await?;
    cloud.create_bucket(EAST, "images").await?;
    Ok(cloud)
}

async fn script(cloud: &Cloud, script: &str, arguments: &[&str]) -> Result<()> {
    cloud.python("common.py", COMMON)?;
    let mut python = cloud.python("script.py", script)?;
    python.args(arguments);
    run(python).await?;
    Ok(())
}

#[tokio::test]
async fn image_is_published_in_two_regions() -> Result<()> {
    let cloud = cloud().await?;
    cloud.enable_region("af-south-1", false);
    cloud.settings().import_active = FOR_EVER;
    cloud.settings().copy = FOR_EVER;
    let time_passes = async {
        // The script has seen the states in between.
        cloud.wait_for_call("DescribeImportSnapshotTasks", None).await;
        cloud.settings().import_active = Duration::ZERO;
        cloud.wait_for_call("RegisterImage", Some(WEST)).await;
        cloud.settings().copy = Duration::ZERO;
        Ok(())
    };
    tokio::try_join!(script(&cloud, include_str!("aws/publish.py"), &[]), time_passes)?;

    assert_eq!(cloud.leftovers(), Vec::<String>::new());
    let images = cloud.images(EAST);
    assert_eq!(images.len(), 1);
    assert!(images[0].permissions.public);
    assert_eq!(images[0].tags["compose"], "Fedora-43");
    assert!(cloud.images(WEST).is_empty() && cloud.snapshots(WEST).is_empty());
    let snapshots = cloud.snapshots(EAST);
    assert_eq!(snapshots.len(), 1);
    let blocks = cloud.snapshot_data(EAST, &snapshots[0].id).context("no data")?;
    let sizes: Vec<_> = blocks.iter().map(|(index, block)| (*index, block.len())).collect();
    assert_eq!(sizes, [(0, BLOCK), (12, BLOCK)]);
    assert!(blocks[&0].starts_with(b"first\0"));

    let described = cloud.describe().await?;
    assert_eq!(described[EAST]["images"][0]["ImageId"], images[0].id);
    assert_eq!(described[EAST]["images"][0]["LaunchPermissions"][0]["Group"], "all");
    assert_eq!(
        described[EAST]["snapshots"][0]["CreateVolumePermissions"][0]["Group"],
        "all"
    );
    assert_eq!(described[WEST]["images"].as_array().map(Vec::len), Some(0));
    assert!(cloud.validate_calls().await? > 50);
    Ok(())
}

#[tokio::test]
async fn ebs_direct_keeps_its_rules() -> Result<()> {
    let cloud = cloud().await?;
    cloud.settings().refused_writes = 1;
    script(&cloud, include_str!("aws/ebs.py"), &[]).await
}

#[tokio::test]
async fn imports_that_come_to_nothing() -> Result<()> {
    let cloud = cloud().await?;
    cloud.settings().import_active = FOR_EVER;
    let time_passes = async {
        cloud.wait_for_call("DeleteObject", None).await;
        cloud.settings().import_active = Duration::ZERO;
        Ok(())
    };
    tokio::try_join!(script(&cloud, include_str!("aws/import.py"), &[]), time_passes)?;
    assert_eq!(cloud.import_tasks(EAST).len(), 2);
    assert_eq!(cloud.leftovers(), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn multipart_uploads_keep_their_rules() -> Result<()> {
    let cloud = cloud().await?;
    script(&cloud, include_str!("aws/multipart.py"), &[]).await?;
    assert_eq!(cloud.multipart_uploads("images"), 0);
    Ok(())
}

#[tokio::test]
async fn wrong_calls_are_refused() -> Result<()> {
    let cloud = cloud().await?;
    script(&cloud, include_str!("aws/refusals.py"), &[]).await?;
    let left = cloud.leftovers();
    assert_eq!(left, ["object disk.raw in images"]);
    let calls = cloud.calls();
    let listed = calls.iter().filter(|call| call.action == "ListObjects");
    let listed: Vec<_> = listed.map(|call| (call.region.as_str(), call.status)).collect();
    assert_eq!(listed, [(WEST, 301), (EAST, 200)]);
    Ok(())
}

#[tokio::test]
async fn lists_have_pages_and_filters() -> Result<()> {
    let cloud = cloud().await?;
    script(&cloud, include_str!("aws/listing.py"), &["pages"]).await?;
    cloud.settings().page = Some(4);
    script(&cloud, include_str!("aws/listing.py"), &["short"]).await?;
    assert!(cloud.validate_calls().await? > 0);
    Ok(())
}

#[tokio::test]
async fn new_things_are_overlooked_for_a_while() -> Result<()> {
    let cloud = cloud().await?;
    cloud.settings().hidden = 2;
    script(&cloud, include_str!("aws/listing.py"), &["hidden"]).await
}

#[tokio::test]
async fn limits_of_a_region() -> Result<()> {
    let cloud = cloud().await?;
    cloud.settings().copy = FOR_EVER;
    cloud.settings().copies = 1;
    cloud.settings().public_images = 1;
    cloud.block_public_access(WEST, true, true);
    script(&cloud, include_str!("aws/limits.py"), &[]).await?;
    let failed = cloud
        .snapshots(WEST)
        .into_iter()
        .find(|snapshot| snapshot.source.is_some());
    assert!(failed.is_some_and(|copy| matches!(copy.state, State::Failed(_))));
    let left = cloud.leftovers().join("\n");
    assert!(
        left.contains("in us-west-2 is error") && left.contains("in us-east-1 is pending"),
        "{left}"
    );
    // Where the time is a region's own, only that region waits for it.
    cloud.settings().copy_by_region.insert(EAST.into(), Duration::ZERO);
    let left = cloud.leftovers().join("\n");
    assert!(left.contains("in us-east-1 belongs to no image"), "{left}");
    Ok(())
}

#[tokio::test]
async fn faults_reach_the_client() -> Result<()> {
    let cloud = cloud().await?;
    let fail = |message: &str| Effect::Fail {
        message: message.to_owned(),
    };
    let refuse = Effect::Refuse {
        status: 403,
        code: "UnauthorizedOperation".into(),
        message: "not for you".into(),
    };
    for fault in [
        Fault::on("DescribeImages", Effect::Throttle).times(2),
        Fault::on("DescribeImages", Effect::ServerError).times(1),
        Fault::on("DescribeImages", refuse).region(WEST),
        Fault::on("StartSnapshot", Effect::Throttle).times(1),
        Fault::on("PutObject", Effect::Throttle).after(1).times(1),
        Fault::on("CompleteSnapshot", Effect::LostAnswer).times(1),
        Fault::on("DeleteObject", Effect::Hang).times(1),
        Fault::on("PutObject", Effect::Stall).after(1),
        Fault::on("ImportSnapshot", fail("no disk")),
        Fault::on("CopySnapshot", fail("no copy")),
        Fault::on("RegisterImage", fail("no image")),
    ] {
        cloud.fault(fault);
    }
    let silent = async {
        cloud.wait_for_silence().await;
        Ok(cloud.calls().len())
    };
    let (_, before) = tokio::try_join!(script(&cloud, include_str!("aws/faults.py"), &[]), silent)?;
    assert!(before < cloud.calls().len());
    assert_eq!(cloud.objects("images"), ["first", "third"]);
    let snapshots = cloud.snapshots(EAST);
    assert_eq!(snapshots.len(), 1);
    assert_eq!(snapshots[0].state, State::Ready);
    let silent: Vec<_> = cloud
        .calls()
        .into_iter()
        .filter(|call| call.status == 0)
        .map(|call| call.action)
        .collect();
    assert_eq!(silent, ["CompleteSnapshot", "DeleteObject", "PutObject"]);
    assert!(cloud.changes().len() < cloud.calls().len());
    Ok(())
}

/// A call that the cloud would accept and Amazon would not is found by the model.
#[tokio::test]
async fn calls_are_validated_with_the_model() -> Result<()> {
    let cloud = cloud().await?;
    script(&cloud, include_str!("aws/strange.py"), &[]).await?;
    let Err(error) = cloud.validate_calls().await else {
        panic!("strange calls are in the model");
    };
    let error = format!("{error:#}");
    for problem in [
        "DescribeImages: ImageID is unknown",
        "DescribeImages.Filter.1: Values is unknown",
        "DeleteSnapshot: SnapshotId is missing",
        "DescribeRegions.AllRegions: 'perhaps' is no boolean",
        "StartSnapshot.VolumeSize: 'big' is no long",
    ] {
        assert!(error.contains(problem), "{problem} is not in {error}");
    }
    assert!(!error.contains("ImportSnapshot"), "{error}");
    cloud.forget_calls();
    assert_eq!(cloud.validate_calls().await?, 0);
    Ok(())
}
