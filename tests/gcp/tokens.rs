//! The token endpoint: one request at a time, whatever number of images is published.

use std::time::{Duration, Instant};

use cloud_image_uploader::providers::contract::{Publish, Retire};
use cloud_image_uploader_test_support::gcp::Fault;

use crate::world::*;

const OTHER: &str = "Fedora-Cloud-43-20251024.0";

#[tokio::test(flavor = "multi_thread")]
async fn images_published_at_once_share_one_token() {
    let mut world = World::new().await;
    world.credentials = world.cloud.workload_identity().unwrap();
    let first = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    let second = world.deliverable(OTHER, row(tarball(2, 1000))).await;
    let provider = world.provider();
    let (one, two, cleaned, _) = tokio::join!(
        publish(&provider, &first),
        publish(&provider, &second),
        provider.clean_up(false),
        provider.check()
    );
    one.unwrap();
    two.unwrap();
    cleaned.unwrap();
    assert_eq!(world.cloud.count("sts"), 1);
}

/// The client library waits ten seconds before it asks again, longer than this endpoint wants.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_asks_for_a_pause_gets_it_from_everybody() {
    let mut world = World::new().await;
    world.credentials = world.cloud.workload_identity().unwrap();
    let first = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    let second = world.deliverable(OTHER, row(tarball(2, 1000))).await;
    let pause = Fault::Refuse {
        status: 429,
        reason: "rateLimitExceeded",
        retry_after: Some(5),
    };
    world.cloud.fault("sts", pause, 1);
    let provider = world.provider();
    let began = Instant::now();
    let (one, two) = tokio::join!(publish(&provider, &first), publish(&provider, &second));
    one.unwrap();
    two.unwrap();
    assert_eq!(world.cloud.count("sts"), 2);
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
}

/// The library gives credentials up once they are refused; the next piece of work starts with new ones.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_were_refused_are_tried_again_by_the_next_work() {
    let mut world = World::new().await;
    world.credentials = world.cloud.workload_identity().unwrap();
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    let provider = world.provider();
    world.cloud.fault("sts", Fault::forbidden(), 2);
    publish(&provider, &deliverable).await.unwrap_err();
    world.cloud.mend();
    publish(&provider, &deliverable).await.unwrap();

    // A key that was replaced is read again.
    std::fs::copy(world.cloud.service_account().unwrap(), &world.credentials).unwrap();
    let asked = world.cloud.count("sts");
    publish(&provider, &deliverable).await.unwrap();
    assert_eq!(world.cloud.count("sts"), asked);
}
