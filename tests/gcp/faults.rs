//! Failures of the cloud, transient and permanent.

use std::time::{Duration, Instant};

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::providers::contract::Retire;
use cloud_image_uploader_test_support::gcp::{Emulator, Fault};
use cloud_image_uploader_test_support::proxy::Proxy;
use serde_json::Value;
use url::Url;

use crate::world::*;

/// All calls of a publication.
const CALLS: [&str; 10] = [
    "images.get",
    "objects.get",
    "objects.insert",
    "objects.upload",
    "images.insert",
    "globalOperations.get",
    "objects.delete",
    "images.deprecate",
    "images.patch",
    "images.list",
];

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_are_retried() {
    for fault in [
        Fault::unavailable(),
        Fault::throttled(),
        Fault::refuse(429, "rateLimitExceeded"),
    ] {
        let world = World::with(Emulator::GcpStorageEmulator).await;
        for call in CALLS {
            world.cloud.fault(call, fault.clone(), 1);
        }
        let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
        publish(&world.provider(), &deliverable).await.unwrap();
        world.provider().clean_up(false).await.unwrap();
        assert!(world.cloud.faults_met(), "{fault:?}");
        world.assert_only(&[IMAGE]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_resumes_where_it_stopped() {
    let world = World::with(Emulator::GcpStorageEmulator).await;
    world.cloud.fault("objects.upload", Fault::unavailable(), 1);
    world.cloud.fault("objects.upload", Fault::Half, 2);
    world.cloud.fault("objects.status", Fault::unavailable(), 1);
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 20 << 20))).await;
    publish(&world.provider(), &deliverable).await.unwrap();
    assert!(world.cloud.faults_met());
    assert_eq!(world.cloud.count("objects.insert"), 1, "it is still one upload");
    assert_eq!(world.cloud.content(IMAGE), Some(deliverable.images[0].sha256.clone()));
}

/// In the second of three pieces.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_costs_no_more_than_one_piece() {
    let mut world = World::with(Emulator::GcpStorageEmulator).await;
    let bucket = Url::parse(&world.storage).unwrap();
    let proxy = Proxy::start(bucket.port().unwrap()).await.unwrap();
    world.storage = format!("http://127.0.0.1:{}", proxy.port());
    proxy.cut_after(12 << 20);
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 20 << 20))).await;
    publish(&world.provider(), &deliverable).await.unwrap();
    let count = |name| world.cloud.count(name);
    assert_eq!((count("objects.insert"), count("objects.upload")), (1, 3));
    assert_eq!(count("objects.status"), 1, "how far it had got was asked");
    assert_eq!(world.cloud.content(IMAGE), Some(deliverable.images[0].sha256.clone()));
    world.assert_only(&[IMAGE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_service_has_forgotten_starts_again() {
    let world = World::with(Emulator::GcpStorageEmulator).await;
    world.cloud.fault("objects.upload", Fault::refuse(410, "gone"), 1);
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
    assert!(failure.class().is_transient(), "{failure}");
    assert_eq!(world.cloud.count("objects.upload"), 1, "the session is gone for good");
    publish(&world.provider(), &deliverable).await.unwrap();
    assert_eq!(world.cloud.count("objects.insert"), 2);
    world.assert_only(&[IMAGE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_change_on_the_way_make_no_image() {
    for emulator in [Emulator::FakeGcsServer, Emulator::GcpStorageEmulator] {
        let world = World::with(emulator).await;
        world.cloud.fault("objects.upload", Fault::Flip, 1);
        let deliverable = world.deliverable(COMPOSE, row(tarball(1, 20 << 20))).await;
        let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
        assert!(failure.class().is_transient(), "{failure}");
        assert!(failure.to_string().contains("CRC32C"), "{failure}");
        assert_eq!(world.cloud.count("images.insert"), 0);
        world.assert_only(&[]).await;
        publish(&world.provider(), &deliverable).await.unwrap();
        assert_eq!(world.cloud.content(IMAGE), Some(deliverable.images[0].sha256.clone()));
    }
}

/// Another process uploads the object first; it is not overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_appears_meanwhile_is_used() {
    let world = World::new().await;
    let bytes = tarball(1, 1000);
    let deliverable = world.deliverable(COMPOSE, row(bytes.clone())).await;
    let sha256 = deliverable.images[0].sha256.clone();
    let object = format!("{IMAGE}-{sha256}.tar.gz");
    world
        .cloud
        .put_object(&object, bytes, &[("image-sha256", &sha256)])
        .await
        .unwrap();
    world.cloud.fault("objects.get", Fault::refuse(404, "notFound"), 1);
    publish(&world.provider(), &deliverable).await.unwrap();
    assert_eq!(
        (world.cloud.count("objects.insert"), world.cloud.count("objects.upload")),
        (1, 0)
    );
    world.assert_only(&[IMAGE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_after_long_is_tried_again() {
    for leaves in [true, false] {
        let world = World::new().await;
        let fails = |code, status| Fault::Fails {
            code,
            status,
            after: Duration::from_secs(2),
            leaves,
        };
        world.cloud.fault("images.insert", fails("INTERNAL_ERROR", 500), 1);
        let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
        let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
        assert!(failure.class().is_transient(), "{failure}");
        assert!(
            failure.to_string().contains("INTERNAL_ERROR (as the test wants it)"),
            "{failure}"
        );
        publish(&world.provider(), &deliverable).await.unwrap();
        assert_eq!(world.cloud.count("objects.upload"), 1, "the bytes are kept");
        world.assert_only(&[IMAGE]).await;

        // One that will not get better leaves nothing.
        let world = World::new().await;
        world.cloud.fault("images.insert", fails("INVALID_IMAGE", 400), 1);
        let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
        let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
        assert_eq!(failure.class(), Class::Deliverable, "{failure}");
        world.assert_only(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_an_operator_must_fix_are_reported_at_once() {
    let mut world = World::new().await;
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    let fails = async |world: &World| {
        let began = Instant::now();
        let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
        assert_eq!(failure.class(), Class::Everything, "{failure}");
        assert!(began.elapsed() < Duration::from_secs(20), "{failure}");
        failure.to_string()
    };
    for call in ["objects.insert", "images.insert", "images.deprecate", "images.patch"] {
        world.cloud.fault(call, Fault::forbidden(), 1);
        let text = fails(&world).await;
        assert!(
            text.contains("403") && text.contains("GOOGLE_APPLICATION_CREDENTIALS"),
            "{text}"
        );
    }
    world.cloud.fault("sts", Fault::forbidden(), 1);
    world.credentials = world.cloud.workload_identity().unwrap();
    let text = fails(&world).await;
    assert!(text.contains("get a token"), "{text}");
    // Once that is fixed, publishing succeeds.
    publish(&world.provider(), &deliverable).await.unwrap();
    world.assert_only(&[IMAGE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_bucket_is_reported() {
    let world = World::new().await;
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    world.cloud.fault("objects.get", Fault::refuse(404, "notFound"), 1);
    world.cloud.fault("objects.insert", Fault::refuse(404, "notFound"), 1);
    let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
    assert_eq!(failure.class(), Class::Everything);
    assert!(
        failure.to_string().contains("bucket test-bucket: it does not exist"),
        "{failure}"
    );
}

/// A failed run of clean-up does not affect publications.
#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_list_affects_only_clean_up() {
    let world = World::new().await;
    world.cloud.set_partial(true);
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    publish(&world.provider(), &deliverable).await.unwrap();
    let failure = world.provider().clean_up(false).await.unwrap_err();
    assert!(
        failure.to_string().contains("some images cannot be reached"),
        "{failure}"
    );
    assert_ne!(world.cloud.images()[IMAGE], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes: a service that says nothing is waited for that long"]
async fn no_call_hangs() {
    let world = World::new().await;
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    for call in ["objects.upload", "images.insert"] {
        world.cloud.fault(call, Fault::Hang, usize::MAX);
        let began = Instant::now();
        let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
        assert!(failure.class().is_transient(), "{failure}");
        assert!(began.elapsed() < Duration::from_secs(150), "{:?}", began.elapsed());
        world.cloud.mend();
    }
}
