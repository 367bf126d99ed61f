//! Brokers that go away, take back what they granted, or lose the frame that matters most.

use std::time::Duration;

use cloud_image_uploader_test_support::amqp_proxy::{AmqpProxy, Frame, Loss};
use cloud_image_uploader_test_support::archive::noise;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options};
use serde_json::json;

use crate::world::*;

fn impatient() -> Options {
    Options {
        consumer_timeout: Some(Duration::from_secs(3)),
        ..Options::default()
    }
}

/// The broker closes the channel, more than once; the work goes on, and the message joins it whenever it comes back.
#[tokio::test]
async fn work_that_takes_longer_than_the_broker_waits_is_done_once() {
    let world = World::with(impatient()).await;
    world.listen().await;
    world.busy("x86_64", 9);
    let mut daemon = world.consume().await;
    world.announce().await;
    world.until_processed(1).await;
    daemon.wait_for_log("joins the work", LONG).await.unwrap();
    assert!(
        world.rabbit.log().contains("Timeout value used: 3000 ms"),
        "{}",
        world.rabbit.log()
    );
    let heard = world.heard().await;
    assert_eq!(heard.len(), 2);
    assert!(heard.values().all(|times| *times == 1), "{heard:?}");
    assert_eq!(world.files.requests_for(&World::image_path("aarch64")).len(), 1);
    assert_eq!(std::fs::read(world.disk("x86_64")).unwrap(), noise(1, 3 << 20));
    world.until_settled(daemon).await;
}

#[tokio::test]
async fn a_long_queue_is_worked_off_within_the_brokers_patience() {
    let world = World::with(impatient()).await;
    world.listen().await;
    world.busy("x86_64", 8);
    for number in 0..40 {
        match number {
            0 => world.announce().await,
            13 | 39 => {
                let message = world.add(number / 13);
                world.admin.publish_serialized(&message).await.unwrap();
            }
            _ => {
                let mut message = world.message();
                message["id"] = json!(uuid::Uuid::new_v4().to_string());
                message["body"]["status"] = json!("STARTED");
                world.admin.publish_serialized(&message).await.unwrap();
            }
        }
    }
    let daemon = world.consume().await;
    world
        .until_ready(|_, document| document["consumed"]["processed"].as_u64() >= Some(40))
        .await;
    let heard = world.heard().await;
    assert_eq!(heard.len(), 6, "three composes of two images");
    assert!(heard.values().all(|times| *times == 1), "{heard:?}");
    world.until_settled(daemon).await;
}

#[tokio::test]
async fn a_broker_that_crashes_loses_nothing() {
    let mut world = World::new().await;
    world.listen().await;
    world.busy("x86_64", 3);
    let mut daemon = world.consume().await;
    world.announce().await;
    daemon.wait_for_log("going on from there", LONG).await.unwrap();
    world.rabbit.kill();
    daemon.wait_for_log("lost the broker", LONG).await.unwrap();
    world.rabbit.start_again().await.unwrap();
    world.admin = world.rabbit.admin().await.unwrap();
    world.until_processed(1).await;
    assert_eq!(world.heard().await.len(), 2);
    assert_eq!(world.files.requests_for(&World::image_path("aarch64")).len(), 1);
    world.until_settled(daemon).await;
}

/// A frame is lost between the daemon and the broker: every notification arrives, a repeat under the same id.
#[tokio::test]
async fn a_lost_frame_loses_no_notification() {
    let table = [
        (Frame::Publish, Loss::Cut),
        (Frame::Confirm, Loss::Cut),
        // It takes half a minute to give up waiting.
        (Frame::Confirm, Loss::Silence),
        // The message comes again, and so does all that follows from it.
        (Frame::Acknowledgement, Loss::Cut),
    ];
    for (frame, loss) in table {
        let world = World::new().await;
        world.listen().await;
        let proxy = AmqpProxy::start(world.rabbit.plain_port).await.unwrap();
        let daemon = world.consume_with(&world.config(&World::broker(proxy.port()))).await;
        proxy.lose(frame, loss);
        world.announce().await;
        // An acknowledgement that is lost looks like any other; the next one arrives.
        let settled = if frame == Frame::Acknowledgement { 2 } else { 1 };
        world.until_processed(settled).await;
        assert!(proxy.losses_met(), "{frame:?} {loss:?} did not happen");
        world.until_settled(daemon).await;
        let heard = world.heard().await;
        assert_eq!(heard.len(), 2, "{frame:?} {loss:?}");
        assert!(heard.values().all(|times| *times <= 2), "{frame:?} {loss:?}: {heard:?}");
        assert_eq!(
            world.files.requests_for(&World::image_path("aarch64")).len(),
            1,
            "{frame:?} {loss:?}"
        );
    }
}

/// The queue takes its messages with it, but not the work on them.
#[tokio::test]
async fn a_queue_that_is_deleted_and_declared_again_is_consumed_again() {
    let world = World::new().await;
    world.listen().await;
    world.busy("x86_64", 4);
    let mut daemon = world.consume().await;
    world.announce().await;
    daemon.wait_for_log("going on from there", LONG).await.unwrap();
    world.admin.delete(QUEUE).await.unwrap();
    daemon.wait_for_log("the queue was deleted", LONG).await.unwrap();
    world
        .until_ready(|status, document| status == 503 && document["trouble"].is_string())
        .await;
    world
        .admin
        .declare(QUEUE, rabbit::COMPOSE_CHANGES, json!({}))
        .await
        .unwrap();
    world.until_ready(|status, _| status == 200).await;
    world.until_disk("x86_64").await;
    world.announce().await;
    world.until_processed(1).await;
    assert_eq!(world.heard().await.len(), 2);
    assert_eq!(world.files.requests_for(&World::image_path("aarch64")).len(), 1);
    world.until_settled(daemon).await;
}

#[tokio::test]
#[ignore = "takes five minutes: a queue that is gone is waited for that long"]
async fn a_queue_that_stays_away_ends_the_process() {
    let world = World::new().await;
    let daemon = world.consume().await;
    world.admin.delete(QUEUE).await.unwrap();
    let exit = daemon.wait(Duration::from_secs(7 * 60)).await.unwrap();
    assert_eq!(exit.code, Some(12), "{}", exit.stderr);
    assert!(exit.stderr.contains(QUEUE), "{}", exit.stderr);
}

#[tokio::test]
async fn a_withdrawn_permission_is_reported_and_waited_for() {
    let mut world = World::new().await;
    let mut daemon = world.consume().await;
    world.rabbit.stop().await.unwrap();
    world.rabbit.let_read(false).unwrap();
    world.rabbit.start_again().await.unwrap();
    daemon.wait_for_log("needs read permission", LONG).await.unwrap();
    let document = world
        .until_ready(|status, document| status == 503 && document["trouble"].is_string())
        .await;
    assert!(
        document["trouble"].as_str().unwrap().contains("read permission"),
        "{document}"
    );
    world.rabbit.stop().await.unwrap();
    world.rabbit.let_read(true).unwrap();
    world.rabbit.start_again().await.unwrap();
    world.admin = world.rabbit.admin().await.unwrap();
    world.announce().await;
    world.until_processed(1).await;
    world.until_settled(daemon).await;
}

/// The broker's own: reported, and waited for, since an operator may be renewing it.
#[tokio::test]
async fn an_expired_broker_certificate_is_reported_and_waited_for() {
    let mut world = World::new().await;
    let broker = format!("amqp_url = {:?}\n", world.rabbit.tls_url(DAEMON));
    let tls = world.rabbit.tls_table(DAEMON, world.folder.path()).unwrap();
    let config = world.config(&format!("{broker}{tls}"));
    let mut daemon = world.consume_with(&config).await;
    world.rabbit.stop().await.unwrap();
    let expired = world.rabbit.authority.expired_server().unwrap();
    world.rabbit.identify_as(&expired).unwrap();
    world.rabbit.start_again().await.unwrap();
    daemon.wait_for_log("log in to the broker", LONG).await.unwrap();
    let document = world
        .until_ready(|status, document| status == 503 && document["trouble"].to_string().contains("log in"))
        .await;
    assert!(
        document["trouble"].as_str().unwrap().contains("ertificate"),
        "{document}"
    );
    let exit = World::program(&world.elsewhere(&config))
        .arg("consume")
        .run(LONG)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(14), "at the start the process ends: {}", exit.stderr);
    world.rabbit.stop().await.unwrap();
    let renewed = world.rabbit.authority.server().unwrap();
    world.rabbit.identify_as(&renewed).unwrap();
    world.rabbit.start_again().await.unwrap();
    world.admin = world.rabbit.admin().await.unwrap();
    world.announce().await;
    world.until_processed(1).await;
    world.until_settled(daemon).await;
}

/// Ours: the files are read again on each connection, so that a renewed one needs no restart.
#[tokio::test]
async fn an_expired_client_certificate_is_reported_and_its_successor_used() {
    let mut world = World::new().await;
    let broker = format!("amqp_url = {:?}\n", world.rabbit.tls_url(DAEMON));
    let tls = world.rabbit.tls_table(DAEMON, world.folder.path()).unwrap();
    let config = world.config(&format!("{broker}{tls}"));
    let mut daemon = world.consume_with(&config).await;
    let expired = world.rabbit.authority.expired_client(DAEMON).unwrap();
    expired.write(world.folder.path(), DAEMON).unwrap();
    world.rabbit.stop().await.unwrap();
    world.rabbit.start_again().await.unwrap();
    daemon.wait_for_log("log in to the broker", LONG).await.unwrap();
    let exit = World::program(&world.elsewhere(&config))
        .arg("consume")
        .run(LONG)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(14), "{}", exit.stderr);
    world.rabbit.tls_table(DAEMON, world.folder.path()).unwrap();
    world.admin = world.rabbit.admin().await.unwrap();
    world.announce().await;
    world.until_processed(1).await;
    world.until_settled(daemon).await;
}
