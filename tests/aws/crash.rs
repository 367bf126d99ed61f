//! Processes that end between two steps, and two at once: the end is the same.

use std::time::Duration;

use cloud_image_uploader_test_support::aws::{Effect, Fault};

use crate::world::*;

/// Killed when the cloud has done the step, before the answer; then another process starts with nothing but the cloud.
async fn killed_after(method: Method, step: &str, calls: u32) {
    let world = World::small(&TWO, method).await;
    world.cloud.fault(Fault::on(step, Effect::Stall).after(calls).times(1));
    // Something must be under way when it ends.
    world.cloud.settings().copy = Duration::from_millis(300);
    let mut program = world.reconsume(&[]).start().unwrap();
    let mut seen = 0;
    // The call after those that went well is the one that gets no answer.
    tokio::time::timeout(LONG, async {
        while seen <= calls {
            let done = world.cloud.calls().into_iter().filter(|call| call.action == step);
            seen = u32::try_from(done.count()).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {step}: {}", program.stderr()));
    program.kill().unwrap();
    world.cloud.clear_faults();
    world.published().await;
    world.assert_complete();
}

/// The first call of each name is the contract's, which all providers have in common (`tests/provider_contract`).
#[tokio::test(flavor = "multi_thread")]
async fn killed_after_a_later_call_of_a_name() {
    for (method, step, calls) in [
        (Method::Import, "UploadPart", 1),
        (Method::Direct, "PutSnapshotBlock", 5),
        (Method::Direct, "RegisterImage", 1),
        (Method::Direct, "EnableImageDeprecation", 1),
        (Method::Direct, "ModifyImageAttribute", 1),
        (Method::DirectEverywhere, "StartSnapshot", 1),
        (Method::DirectEverywhere, "PutSnapshotBlock", 7),
        (Method::DirectEverywhere, "CompleteSnapshot", 1),
    ] {
        killed_after(method, step, calls).await;
    }
}

/// The parts that the killed process uploaded are not uploaded again.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_continued() {
    let world = World::small(&TWO, Method::Import).await;
    world
        .cloud
        .fault(Fault::on("CompleteMultipartUpload", Effect::Hang).times(1));
    let mut program = world.reconsume(&[]).start().unwrap();
    let step = world.cloud.wait_for_call("CompleteMultipartUpload", None);
    tokio::time::timeout(LONG, step).await.unwrap();
    program.kill().unwrap();
    world.cloud.forget_calls();
    world.published().await;
    world.assert_complete();
    let actions: Vec<_> = world.cloud.calls().into_iter().map(|call| call.action).collect();
    for action in ["CreateMultipartUpload", "UploadPart"] {
        assert!(!actions.iter().any(|found| found == action), "{action}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_at_once_make_one_image() {
    for method in Method::ALL {
        let world = World::new(&TWO, method).await;
        {
            let mut settings = world.cloud.settings();
            settings.copy = Duration::from_millis(500);
            settings.import_active = Duration::from_millis(500);
        }
        let both = [
            world.reconsume(&[]).start().unwrap(),
            world.reconsume(&[]).start().unwrap(),
        ];
        for program in both {
            let exit = program.wait(LONG).await.unwrap();
            assert_eq!(exit.code, Some(0), "{method:?}: {}", exit.stderr);
        }
        world.assert_complete();
    }
}

/// Snapshots left by processes that died at the same point, one after another.
#[tokio::test(flavor = "multi_thread")]
async fn orphaned_snapshots_are_deleted_in_the_end() {
    let mut world = World::small(&TWO, Method::Direct).await;
    // Every look is to be one of the copy's.
    world.service = "give_up_after = \"60s\"\n".to_owned();
    // The copy is created, and hidden from the looks for it.
    world
        .cloud
        .fault(Fault::on("CopySnapshot", Effect::LostAnswer).times(1));
    world.cloud.settings().hidden = 20;
    world.published().await;
    let copies = world
        .cloud
        .calls()
        .into_iter()
        .filter(|call| call.action == "CopySnapshot");
    assert_eq!(copies.count(), 2, "the first one was not seen in time");
    world.cloud.settings().hidden = 0;
    world.published().await;
    world.assert_complete();
}
