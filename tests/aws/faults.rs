//! Transient failures, and slow regions.

use std::time::Duration;

use cloud_image_uploader_test_support::aws::{Effect, Fault};

use crate::world::*;

const THREE: [&str; 3] = ["us-east-1", "eu-west-1", "ap-south-1"];

/// The changing calls of each method.
fn steps(method: Method) -> Vec<&'static str> {
    let mut steps = match method {
        Method::Import => vec![
            "CreateMultipartUpload",
            "UploadPart",
            "CompleteMultipartUpload",
            "ImportSnapshot",
            "DeleteObject",
            "CreateTags",
            "CopySnapshot",
        ],
        Method::Direct => vec!["StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot", "CopySnapshot"],
        Method::DirectEverywhere => vec!["StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot"],
    };
    steps.extend([
        "RegisterImage",
        "EnableImageDeprecation",
        "ModifySnapshotAttribute",
        "ModifyImageAttribute",
    ]);
    steps
}

/// Snapshots of all regions at once; the other ways are in `tests/provider_contract`.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_was_lost_is_settled_by_looking() {
    let world = World::small(&TWO, Method::DirectEverywhere).await;
    for step in steps(Method::DirectEverywhere) {
        world.cloud.fault(Fault::on(step, Effect::LostAnswer).times(1));
    }
    world.published().await;
    world.assert_complete();
}

/// In the service's own words.
#[tokio::test(flavor = "multi_thread")]
async fn throttling_and_errors_of_the_service_are_retried() {
    for (method, effect) in [
        (Method::Import, Effect::Throttle),
        (Method::Direct, Effect::ServerError),
        (Method::DirectEverywhere, Effect::Throttle),
        (Method::Import, Effect::ServerError),
    ] {
        let world = World::small(&TWO, method).await;
        let looks = [
            "DescribeImages",
            "DescribeSnapshots",
            "DescribeImportSnapshotTasks",
            "HeadObject",
        ];
        for step in steps(method).into_iter().chain(looks) {
            world.cloud.fault(Fault::on(step, effect.clone()).times(2));
        }
        world.published().await;
        world.assert_complete();
    }
}

/// The previous service needed no such permission.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_may_not_list_uploads_starts_a_new_one() {
    let world = World::small(&TWO, Method::Import).await;
    for action in ["ListMultipartUploads", "ListParts"] {
        let refuse = Effect::Refuse {
            status: 403,
            code: "AccessDenied".into(),
            message: "Access Denied".into(),
        };
        world.cloud.fault(Fault::on(action, refuse));
    }
    world.published().await;
    world.assert_complete();
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_copies_are_waited_for() {
    let world = World::new(&THREE, Method::Direct).await;
    {
        let mut settings = world.cloud.settings();
        settings.copies = 1;
        settings.copy = Duration::from_secs(2);
    }
    world.published().await;
    world.assert_complete();
    let refused = world
        .cloud
        .calls()
        .into_iter()
        .filter(|call| call.action == "CopySnapshot" && call.status == 400);
    assert!(refused.count() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_fails_on_the_side_of_aws_is_created_again() {
    for (method, step, message) in [
        (
            Method::Import,
            "ImportSnapshot",
            "ServerError: an internal error has occurred during conversion.",
        ),
        (Method::Direct, "CopySnapshot", "the copy failed"),
        (Method::Direct, "CompleteSnapshot", "a checksum does not match"),
    ] {
        let world = World::small(&TWO, method).await;
        let message = message.to_owned();
        world.cloud.fault(Fault::on(step, Effect::Fail { message }).times(1));
        world.published().await;
        world.assert_complete();
    }
}

/// The others are announced, the message names what is live, and the repair needs one command.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_refuses_does_not_stop_the_others() {
    for (method, refusing) in [
        (Method::Import, "eu-west-1"),
        (Method::Direct, "us-east-1"),
        (Method::DirectEverywhere, "eu-west-1"),
    ] {
        let world = World::small(&THREE, method).await;
        let others: Vec<&str> = THREE.into_iter().filter(|region| *region != refusing).collect();
        for step in ["StartSnapshot", "CopySnapshot", "RegisterImage"] {
            let refuse = Effect::Refuse {
                status: 403,
                code: "UnauthorizedOperation".into(),
                message: "You are not authorized to perform this operation.".into(),
            };
            world.cloud.fault(Fault::on(step, refuse).region(refusing));
        }
        let exit = world.publish().await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        assert!(exit.stderr.contains(refusing), "{}", exit.stderr);
        assert!(exit.stderr.contains("UnauthorizedOperation"), "{}", exit.stderr);
        assert!(exit.stderr.contains("allow it in a policy"), "{}", exit.stderr);
        assert!(
            exit.stderr.contains(&format!("--location {refusing}")),
            "{}",
            exit.stderr
        );
        for region in others {
            assert!(world.image(region, "x86_64").permissions.public, "{region}");
        }
        assert!(world.cloud.images(refusing).is_empty());

        world.cloud.clear_faults();
        world.remove_images();
        world.cloud.forget_calls();
        let repair = world.reconsume(&["--location", refusing]).run(LONG).await.unwrap();
        assert_eq!(repair.code, Some(0), "{}", repair.stderr);
        world.assert_complete();
        let elsewhere: Vec<_> = world
            .cloud
            .changes()
            .into_iter()
            .filter(|call| call.region != refusing)
            .collect();
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_region_does_not_delay_the_others() {
    let world = World::small(&THREE, Method::Direct).await;
    world
        .cloud
        .settings()
        .copy_by_region
        .insert("ap-south-1".into(), Duration::from_secs(3600));
    let mut program = world.reconsume(&[]).start().unwrap();
    // Not before it counts as slow.
    program
        .wait_for_log("publish in ap-south-1 along with the others", LONG)
        .await
        .unwrap();
    for region in ["us-east-1", "eu-west-1"] {
        assert!(world.image(region, "x86_64").permissions.public, "{region}");
    }
    let log = program.stderr();
    assert!(log.contains("is at"), "{log}");
    world.cloud.settings().copy_by_region.clear();
    let exit = program.wait(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_complete();
}

/// A disk that ends where a part ends, as most do: the last parts are still on their way when the end is seen.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_whole_parts_is_complete_however_slow() {
    let mut disk = disk("x86_64");
    disk.truncate(16 << 20);
    disk[(16 << 20) - 1] = 1;
    let world = World::with(&TWO, Method::Import, vec![row("x86_64", &disk)]).await;
    let slow = Effect::Slow(Duration::from_secs(1));
    world.cloud.fault(Fault::on("UploadPart", slow));
    world.published().await;
    for region in TWO {
        let image = world.image(region, "x86_64");
        assert_content(&world.snapshot(region, &image.devices[0].snapshot), &disk);
    }
    assert_eq!(world.cloud.leftovers(), Vec::<String>::new());
}
