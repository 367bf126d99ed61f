//! `/ready` reports a trouble before the first message fails of it, and no longer than it lasts.

use std::fs;

use serde_json::{Value, json};

use crate::metrics::Scrape;
use crate::world::*;

#[tokio::test]
async fn a_check_that_failed_at_the_start_is_trouble_until_something_is_published() {
    let world = World::new().await;
    fs::write(world.published(), "in the way").unwrap();
    let daemon = world.consume().await;
    let (status, document) = world.ready().await;
    let trouble = document["trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains("is not a directory"), "{document}");
    assert_eq!(
        (status, &document["consuming"]),
        (200, &json!(true)),
        "it consumes all the same"
    );
    Scrape::of(&world).await.assert("uploader_trouble", &[], 1.0);

    fs::remove_file(world.published()).unwrap();
    world.announce().await;
    let document = world.until_processed(1).await;
    assert_eq!(document["trouble"], Value::Null);
    Scrape::of(&world).await.assert("uploader_trouble", &[], 0.0);
    world.until_settled(daemon).await;
}

#[tokio::test]
async fn a_check_that_succeeded_is_no_trouble() {
    let world = World::new().await;
    let daemon = world.consume().await;
    let (_, document) = world.ready().await;
    assert_eq!(document["trouble"], Value::Null);
    world.until_settled(daemon).await;
}
