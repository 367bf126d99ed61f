//! How long the queues are, for the metrics.

use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};

use super::answered;
use crate::base::metrics;
use crate::config::amqp::Queue;

/// Between two looks: as often as Prometheus usually comes.
const INTERVAL: Duration = Duration::from_secs(30);

/// A queue's label in metrics. A queue that the server names has a new name after each connection.
pub(super) fn label(queue: &Queue) -> String {
    match queue.name.as_str() {
        "" => "named by the server".to_owned(),
        name => name.to_owned(),
    }
}

/// Looks at queues now and then, each with its label, until the connection is lost. A channel of its own is used: the
/// broker closes it if a queue is gone, which is for the consumer to find out.
pub(super) async fn watch(connection: Arc<Connection>, queues: Vec<(String, ShortString)>) {
    if let Err(error) = look(&connection, &queues).await {
        tracing::debug!(%error, "the queues are not looked at any more");
    }
}

async fn look(connection: &Connection, queues: &[(String, ShortString)]) -> lapin::Result<()> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let channel = answered(connection.create_channel()).await?;
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        for (label, name) in queues {
            let declare = channel.queue_declare(name.clone(), passive, FieldTable::default());
            let found = answered(declare).await?;
            metrics::queue(label, found.message_count(), found.consumer_count());
        }
    }
}
