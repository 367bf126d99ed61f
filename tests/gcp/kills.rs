//! The program killed after each step, and two of them at once: the same end.

use std::time::Duration;

use cloud_image_uploader_test_support::gcp::Fault;
use serde_json::Value;

use crate::world::*;

const IMAGES: [&str; 2] = ["fedora-cloud-43-1-7-aarch64", "fedora-cloud-43-1-7-x86-64"];

/// What is left must not depend on what happened: everything but times and numbers.
fn end_state(world: &World) -> Vec<Value> {
    let images = world.cloud.images().into_values().map(|mut image| {
        for field in ["id", "creationTimestamp", "labelFingerprint"] {
            image.as_object_mut().unwrap().remove(field);
        }
        image["deprecated"].as_object_mut().unwrap().remove("deprecated");
        image
    });
    images.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_each_step() {
    let undisturbed = World::new().await;
    let exit = undisturbed.reconsume().run(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let expected = end_state(&undisturbed);
    assert_eq!(expected.len(), 2);

    let steps = [
        "objects.insert",
        "objects.upload",
        "images.insert",
        "globalOperations.get",
        "objects.delete",
        "images.deprecate",
        "images.patch",
    ];
    for step in steps {
        let world = World::new().await;
        world.cloud.set_delay(Duration::from_millis(500));
        world.cloud.fault(step, Fault::Freeze, 1);
        let mut running = world.reconsume().start().unwrap();
        world.cloud.wait_for_call(step, 1).await.unwrap();
        running.kill().unwrap();
        world.cloud.mend();
        let exit = world.reconsume().run(LIMIT).await.unwrap();
        assert_eq!(exit.code, Some(0), "{step}: {}", exit.stderr);
        assert_eq!(end_state(&world), expected, "{step}");
        world.assert_only(&IMAGES).await;

        let writes = world.cloud.writes().len();
        let exit = world.reconsume().run(LIMIT).await.unwrap();
        assert_eq!(exit.code, Some(0), "{step}: {}", exit.stderr);
        assert_eq!(world.cloud.writes().len(), writes, "{step}: nothing is left to do");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_make_one() {
    for delay in [0, 300, 1000] {
        let world = World::new().await;
        world.cloud.set_delay(Duration::from_millis(delay));
        let run = async || world.reconsume().run(LIMIT).await.unwrap();
        let (first, second) = tokio::join!(run(), run());
        for exit in [first, second] {
            assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        }
        world.assert_only(&IMAGES).await;
        for image in world.cloud.images().into_values() {
            assert!(
                image["family"].is_string() && image["deprecated"]["state"] == "DEPRECATED",
                "{image}"
            );
        }
    }
}
