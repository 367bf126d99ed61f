//! The broker behaves as the production one where the daemon depends on it.

use std::time::Duration;

use anyhow::Result;
use cloud_image_uploader_test_support::{
    amqp::EXCHANGE,
    fedora_messaging::FedoraMessaging,
    rabbit::{DAEMON, Options, Rabbit, url},
};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const QUEUE: &str = "cloud-image-uploader-containers";

fn compose_change(id: &str) -> Value {
    json!({
        "id": "8b0c7a6e-5d43-4c21-8f10-2e3d4c5b6a79",
        "topic": "org.fedoraproject.prod.pungi.compose.status.change",
        "headers": {"fedora_messaging_schema": "base.message", "fedora_messaging_severity": 20,
            "sent-at": "2025-10-23T12:00:00+00:00"},
        "body": {"compose_id": id, "status": "FINISHED", "location": "http://127.0.0.1/compose"},
        "queue": null,
        "priority": 0,
    })
}

/// One broker for all of it: each start costs seconds.
#[tokio::test]
async fn broker_as_in_production() -> Result<()> {
    let mut rabbit = Rabbit::start(Options::default()).await?;
    let admin = rabbit.admin().await?;

    // The Python client announces over TLS with its certificate; the bound queue and a spy get it.
    let mut spy = admin.spy("org.fedoraproject.#").await?;
    let message = compose_change("Fedora-43-20251024.0");
    FedoraMessaging::new()?
        .publish(&rabbit, std::slice::from_ref(&message))
        .await?;
    let seen = spy.next(SOON).await?;
    assert_eq!(seen.exchange, EXCHANGE);
    assert_eq!(seen.routing_key, message["topic"]);
    assert_eq!(seen.json()?, message["body"]);
    assert_eq!(seen.serialized()?["id"], message["id"]);
    assert_eq!(seen.headers()["fedora_messaging_severity"], 20);
    assert_eq!(*seen.properties.delivery_mode(), Some(2));
    admin.wait_depth(QUEUE, SOON, |depth| depth.ready == 1).await?;

    // The daemon's user may neither declare a queue nor send another's topic.
    let daemon = Connection::connect(&rabbit.plain_url(DAEMON), ConnectionProperties::default()).await?;
    let channel = daemon.create_channel().await?;
    let refused = channel
        .queue_declare("other".into(), Default::default(), Default::default())
        .await;
    assert!(format!("{refused:?}").contains("ACCESS"), "{refused:?}");
    for (topic, allowed) in [
        (
            "org.fedoraproject.prod.fedora_image_uploader.published.v1.aws.rc.x.y",
            true,
        ),
        ("fedora_image_uploader.published.v1.aws.rc.x.y", false),
    ] {
        let channel = daemon.create_channel().await?;
        channel.confirm_select(Default::default()).await?;
        let sent = channel
            .basic_publish(
                EXCHANGE.into(),
                topic.into(),
                Default::default(),
                b"{}",
                BasicProperties::default(),
            )
            .await?
            .await;
        assert_eq!(sent.is_ok(), allowed, "{topic}: {sent:?}");
    }

    // Durable messages survive a stop.
    rabbit.stop().await?;
    assert!(rabbit.admin().await.is_err());
    rabbit.start_again().await?;
    let admin = rabbit.admin().await?;
    assert_eq!(admin.depth(QUEUE).await?.ready, 1);
    admin.publish_serialized(&message).await?;
    admin.wait_depth(QUEUE, SOON, |depth| depth.ready == 2).await?;
    admin.purge(QUEUE).await?;
    assert_eq!(admin.depth(QUEUE).await?.ready, 0);
    admin.delete(QUEUE).await?;
    assert!(admin.depth(QUEUE).await.is_err());
    admin.declare("dead", "dead.#", json!({"x-max-length": 3})).await?;
    assert_eq!(admin.depth("dead").await?.consumers, 0);

    // A wrong password does not get in.
    let wrong = url("amqp", DAEMON, rabbit.plain_port).replace("test-password", "wrong");
    assert!(
        Connection::connect(&wrong, ConnectionProperties::default())
            .await
            .is_err()
    );
    Ok(())
}
