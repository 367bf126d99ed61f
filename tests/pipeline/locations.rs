//! Several messages about one compose that name different locations: a mistyped one, a forged one, a mirror.

use cloud_image_uploader_test_support::archive::{message, noise};
use cloud_image_uploader_test_support::process::free_port;
use cloud_image_uploader_test_support::proxy::Proxy;
use serde_json::{Value, json};

use crate::world::*;

/// The message of the compose with another location and an id of its own.
fn misplaced(location: &str) -> Value {
    let mut message = message(COMPOSE, None, location);
    message["id"] = json!(uuid::Uuid::new_v4().to_string());
    message
}

/// A location whose host refuses connections, so that the work on it is retried until `give_up_after`.
fn dead() -> String {
    format!("http://127.0.0.1:{}/compose", free_port().unwrap())
}

/// The locations in the messages that were rejected.
async fn rejected(world: &World) -> Vec<String> {
    world
        .admin
        .wait_depth(DEAD_LETTERS, LONG, |depth| depth.ready > 0)
        .await
        .unwrap();
    let letters = world.admin.drain(DEAD_LETTERS).await.unwrap();
    let location = |letter: &Value| letter["location"].as_str().unwrap().to_owned();
    letters.iter().map(|letter| location(&letter.json().unwrap())).collect()
}

#[tokio::test]
async fn a_wrong_location_is_rejected_alone() {
    let world = World::new().await;
    world.keep_dead_letters().await;
    world.listen().await;
    let config = world.config(&World::broker(world.rabbit.plain_port));
    let daemon = world.consume_with(&config.replace("\"40s\"", "\"6s\"")).await;
    let wrong = dead();
    world.admin.publish_serialized(&misplaced(&wrong)).await.unwrap();
    world
        .until_ready(|_, document| document["consumed"]["received"] == 1)
        .await;
    world.announce().await;
    world.announce().await;
    let document = world.until_processed(2).await;
    assert_eq!(document["consumed"]["dropped"], 1);
    assert_eq!(rejected(&world).await, [wrong]);
    assert_eq!(world.heard().await.len(), 2);
    assert_eq!(std::fs::read(world.disk("x86_64")).unwrap(), noise(1, 3 << 20));
    assert_eq!(world.files.requests_for(&World::image_path("aarch64")).len(), 1);
    world.until_settled(daemon).await;
}

/// The same when the broker delivers all of them again in the middle.
#[tokio::test]
async fn redelivered_messages_join_the_work_on_their_own_location() {
    let world = World::new().await;
    world.keep_dead_letters().await;
    world.listen().await;
    let proxy = Proxy::start(world.rabbit.plain_port).await.unwrap();
    let config = world.config(&World::broker(proxy.port()));
    let mut daemon = world.consume_with(&config.replace("\"40s\"", "\"10s\"")).await;
    let wrong = dead();
    world.admin.publish_serialized(&misplaced(&wrong)).await.unwrap();
    world
        .until_ready(|_, document| document["consumed"]["received"] == 1)
        .await;
    world.announce().await;
    world
        .until_ready(|_, document| document["consumed"]["received"] == 2)
        .await;
    proxy.cut();
    daemon.wait_for_log("joins the work", LONG).await.unwrap();
    let document = world.until_processed(1).await;
    assert_eq!(
        (&document["consumed"]["dropped"], &document["consumed"]["received"]),
        (&json!(1), &json!(4))
    );
    assert_eq!(rejected(&world).await, [wrong]);
    let heard = world.heard().await;
    assert_eq!(heard.len(), 2);
    assert!(heard.values().all(|times| *times == 1), "{heard:?}");
    world.until_settled(daemon).await;
}

/// The other location is not even read: the compose is published already.
#[tokio::test]
async fn another_location_shares_the_success_of_the_first() {
    let world = World::new().await;
    world.busy("x86_64", 3);
    let mut daemon = world.consume().await;
    world.announce().await;
    daemon.wait_for_log("going on from there", LONG).await.unwrap();
    let elsewhere = world.files.url("/elsewhere");
    world.admin.publish_serialized(&misplaced(&elsewhere)).await.unwrap();
    world.until_processed(2).await;
    let asked = world.files.requests_for("/elsewhere/metadata/images.json");
    assert_eq!(asked.len(), 0);
    world.until_settled(daemon).await;
}

/// The compose that waits for its turn is no work in hand.
#[tokio::test]
async fn a_signal_leaves_both_locations_to_redelivery() {
    let world = World::new().await;
    let daemon = world.consume().await;
    world.admin.publish_serialized(&misplaced(&dead())).await.unwrap();
    world
        .until_ready(|_, document| document["consumed"]["received"] == 1)
        .await;
    world.announce().await;
    world
        .until_ready(|_, document| document["consumed"]["received"] == 2)
        .await;
    daemon.terminate().unwrap();
    let exit = daemon.wait(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(!world.disk("x86_64").exists());
    world
        .admin
        .wait_depth(QUEUE, LONG, |depth| depth.ready == 2)
        .await
        .unwrap();
}
