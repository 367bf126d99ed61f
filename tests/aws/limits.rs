//! Limits on what AWS does at one time: they end by themselves, minutes later. A quota of what exists does not.

use cloud_image_uploader_test_support::aws::{Effect, Fault};

use crate::world::*;

fn refuse(status: u16, code: &str) -> Effect {
    Effect::Refuse {
        status,
        code: code.into(),
        message: "You have reached the limit.".into(),
    }
}

/// The wait in the line of the log that says so, in milliseconds.
fn wait(log: &str) -> u64 {
    let line = log.lines().find(|line| line.contains("trying again")).unwrap();
    let (_, rest) = line.split_once("wait_ms").unwrap();
    let digits: String = rest
        .chars()
        .skip_while(|char| !char.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_work_in_progress_is_waited_for_in_minutes() {
    for (method, action, code) in [
        (Method::Import, "ImportSnapshot", "ResourceLimitExceeded"),
        (Method::Import, "ImportSnapshot", "ResourceCountLimitExceeded"),
        (Method::Import, "ImportSnapshot", "ResourceCountExceeded"),
        (Method::Direct, "StartSnapshot", "ServiceQuotaExceededException"),
        (Method::Direct, "StartSnapshot", "PendingSnapshotLimitExceeded"),
    ] {
        let mut world = World::small(&["us-east-1"], method).await;
        world.service = "give_up_after = \"2h\"\n".to_owned();
        world.cloud.fault(Fault::on(action, refuse(400, code)));
        let mut program = world.reconsume(&[]).start().unwrap();
        program.wait_for_log("trying again", LONG).await.unwrap();
        let log = program.stderr();
        assert!(log.contains(code), "{log}");
        assert!(log.contains("ends by itself"), "{log}");
        assert!((60_000..=600_000).contains(&wait(&log)), "{log}");
        program.kill().unwrap();

        // The work that was done is kept.
        world.cloud.clear_faults();
        world.cloud.forget_calls();
        world.published().await;
        world.assert_complete();
        let calls = world.cloud.calls();
        assert!(calls.iter().all(|call| call.action != "UploadPart"), "{calls:#?}");
    }
}

/// A copy that another one has to end for is waited for on the spot.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_copies_is_waited_for_whatever_its_code() {
    for code in [
        "ResourceLimitExceeded",
        "ResourceCountLimitExceeded",
        "ConcurrentSnapshotLimitExceeded",
        "PendingSnapshotLimitExceeded",
    ] {
        let world = World::small(&TWO, Method::Direct).await;
        world.cloud.fault(Fault::on("CopySnapshot", refuse(400, code)).times(3));
        world.published().await;
        world.assert_complete();
    }
}

/// Refusals that the next attempt does not meet, in the words of EC2 and S3.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_moment_are_tried_again() {
    for (method, action, status, code) in [
        (Method::Import, "CreateTags", 400, "ConcurrentTagAccess"),
        (Method::Import, "UploadPart", 400, "BadDigest"),
        (Method::Import, "UploadPart", 400, "IncompleteBody"),
        (Method::Import, "CompleteMultipartUpload", 409, "OperationAborted"),
        (Method::Direct, "RegisterImage", 400, "IncorrectState"),
        (Method::Direct, "ModifyImageAttribute", 400, "IncorrectState"),
        (
            Method::Direct,
            "CopySnapshot",
            400,
            "SnapshotCreationPerVolumeRateExceeded",
        ),
    ] {
        let world = World::small(&TWO, method).await;
        world.cloud.fault(Fault::on(action, refuse(status, code)).times(1));
        world.published().await;
        world.assert_complete();
    }
}
