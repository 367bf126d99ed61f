//! Two programs at once leave the same images as one.

use std::time::Duration;

use crate::world::*;

const IMAGES: [&str; 2] = ["fedora-cloud-43-1-7-aarch64", "fedora-cloud-43-1-7-x86-64"];

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_at_once_publish_each_image_once() {
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
