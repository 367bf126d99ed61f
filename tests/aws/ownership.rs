//! Images and snapshots that an operator keeps with `delete=never`: nothing changes or deletes them.

use cloud_image_uploader_test_support::aws::{Effect, Fault, State};

use crate::world::*;

/// A copy of the base region's snapshot with the tags of ours and one more, as a former run would have left it.
fn copy(world: &World, region: &str, delete: &str) -> String {
    let source = &world.image("us-east-1", "x86_64").devices[0].snapshot;
    let script = format!(
        "import boto3\n\
         tags = boto3.client('ec2', 'us-east-1').describe_snapshots(SnapshotIds=['{source}'])['Snapshots'][0]['Tags']\n\
         tags = [tag for tag in tags if not tag['Key'].endswith('made-by')]\n\
         tags += [{{'Key': '{PREFIX}made-by', 'Value': 'copy'}}, {{'Key': 'Delete', 'Value': '{delete}'}}]\n\
         boto3.client('ec2', '{region}').copy_snapshot(SourceRegion='us-east-1', SourceSnapshotId='{source}', \
         TagSpecifications=[{{'ResourceType': 'snapshot', 'Tags': tags}}])\n"
    );
    let before: Vec<_> = world
        .cloud
        .snapshots(region)
        .into_iter()
        .map(|found| found.id)
        .collect();
    world.python("orphan.py", &script);
    let mut after = world.cloud.snapshots(region).into_iter();
    after.find(|found| !before.contains(&found.id)).unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_orphan_is_not_deleted() {
    let world = World::small(&TWO, Method::Direct).await;
    world.published().await;
    let kept = ["never", "NEVER", "Never"].map(|value| copy(&world, "eu-west-1", value));
    let orphan = copy(&world, "eu-west-1", "whenever");
    world.published().await;
    let left: Vec<_> = world
        .cloud
        .snapshots("eu-west-1")
        .into_iter()
        .map(|found| found.id)
        .collect();
    assert!(kept.iter().all(|kept| left.contains(kept)), "{left:?}");
    assert!(!left.contains(&orphan), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_snapshot_that_failed_is_not_deleted() {
    let world = World::small(&["us-east-1"], Method::Direct).await;
    world.published().await;
    world.cloud.enable_region("eu-west-1", true);
    let message = "the copy failed".to_owned();
    world
        .cloud
        .fault(Fault::on("CopySnapshot", Effect::Fail { message }).times(2));
    let (kept, failed) = (copy(&world, "eu-west-1", "Never"), copy(&world, "eu-west-1", "later"));
    let wider = World {
        regions: TWO.map(str::to_owned).to_vec(),
        ..world
    };
    wider.published().await;
    let left = wider.cloud.snapshots("eu-west-1");
    assert!(left.iter().any(|found| found.id == kept && found.state != State::Ready));
    assert!(left.iter().all(|found| found.id != failed));
    assert!(wider.image("eu-west-1", "x86_64").permissions.public);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_image_is_announced_as_it_is_and_never_changed() {
    let mut world = World::small(&["us-east-1"], Method::Direct).await;
    world.extra = "public = false\n".to_owned();
    world.published().await;
    let image = world.image("us-east-1", "x86_64").id;
    let client = "import boto3\nec2 = boto3.client('ec2', 'us-east-1')\n";
    let tag = format!("ec2.create_tags(Resources=['{image}'], Tags=[{{'Key': 'delete', 'Value': 'NEVER'}}])\n");
    world.python("keep.py", &format!("{client}{tag}"));
    world.extra = String::new();
    world.cloud.forget_calls();
    let exit = world.publish().await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("it is tagged delete=never"), "{}", exit.stderr);
    assert!(world.cloud.changes().is_empty(), "{:?}", world.cloud.changes());

    // Public already, and with a date that an operator chose.
    let share = format!(
        "ec2.modify_image_attribute(ImageId='{image}', LaunchPermission={{'Add': [{{'Group': 'all'}}]}})\n\
         ec2.disable_image_deprecation(ImageId='{image}')\n"
    );
    world.python("share.py", &format!("{client}{share}"));
    world.cloud.forget_calls();
    world.published().await;
    assert!(world.cloud.changes().is_empty(), "{:?}", world.cloud.changes());
}
