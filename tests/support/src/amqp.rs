//! A test's own actions on a broker: publish, listen in, look at queues.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

/// The one exchange that matters.
pub const EXCHANGE: &str = "amq.topic";

/// The administrator's connection. It ends when this value is dropped.
pub struct Admin {
    connection: Connection,
    channel: Channel,
}

/// The numbers of messages and consumers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages that wait for delivery. Those delivered and not yet acknowledged are not counted: they return to this
    /// number when their consumer goes away.
    pub ready: u32,
    /// Consumers at the moment.
    pub consumers: u32,
}

/// A queue of a test's own that sees what an exchange carries.
pub struct Spy {
    consumer: Consumer,
    _channel: Channel,
}

/// A message as it was on the wire.
#[derive(Clone, Debug)]
pub struct Received {
    /// The exchange it was sent to.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// All properties, headers included.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

impl Admin {
    /// Connects, with publisher confirms.
    pub async fn connect(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .with_context(|| format!("connect to {url}"))?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// Publishes with the given properties and waits for the broker's confirmation.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<()> {
        let confirmation = self
            .channel
            .basic_publish(
                exchange.into(),
                routing_key.into(),
                BasicPublishOptions::default(),
                body,
                properties,
            )
            .await?
            .await?;
        match confirmation {
            Confirmation::Ack(_) => Ok(()),
            other => bail!("the broker did not take the message: {other:?}"),
        }
    }

    /// Publishes a message given in the form that the `fedora-messaging` client reads and datagrepper returns, with its
    /// topic as routing key.
    pub async fn publish_serialized(&self, message: &Value) -> Result<()> {
        let topic = message["topic"].as_str().context("the message has no topic")?;
        let mut headers = FieldTable::default();
        for (name, value) in message["headers"].as_object().into_iter().flatten() {
            headers.insert(name.as_str().into(), to_amqp(value));
        }
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(2)
            .with_headers(headers);
        if let Some(id) = message["id"].as_str() {
            properties = properties.with_message_id(id.into());
        }
        let body = serde_json::to_vec(&message["body"])?;
        self.publish(EXCHANGE, topic, properties, &body).await
    }

    /// Declares a durable queue and binds it to [`EXCHANGE`].
    pub async fn declare(&self, queue: &str, routing_key: &str, arguments: Value) -> Result<()> {
        let mut table = FieldTable::default();
        for (name, value) in arguments.as_object().into_iter().flatten() {
            table.insert(name.as_str().into(), to_amqp(value));
        }
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        self.channel.queue_declare(queue.into(), options, table).await?;
        self.bind(&self.channel, queue.into(), routing_key).await
    }

    /// Listens to everything that a pattern such as `#` lets through, from now on.
    pub async fn spy(&self, pattern: &str) -> Result<Spy> {
        let channel = self.connection.create_channel().await?;
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
        self.bind(&channel, queue.name().clone(), pattern).await?;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let consumer = channel
            .basic_consume(queue.name().clone(), "".into(), options, FieldTable::default())
            .await?;
        Ok(Spy {
            consumer,
            _channel: channel,
        })
    }

    /// Looks at a queue. Fails when it does not exist.
    pub async fn depth(&self, queue: &str) -> Result<Depth> {
        // A queue that is missing costs the channel, so it is not the one that publishes.
        let channel = self.connection.create_channel().await?;
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await?;
        let depth = Depth {
            ready: queue.message_count(),
            consumers: queue.consumer_count(),
        };
        channel.close(200, "looked".into()).await?;
        Ok(depth)
    }

    /// Waits until a queue holds what `wanted` accepts.
    pub async fn wait_depth(&self, queue: &str, limit: Duration, wanted: impl Fn(Depth) -> bool) -> Result<Depth> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let depth = self.depth(queue).await?;
            if wanted(depth) {
                return Ok(depth);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("queue {queue} stays at {depth:?}");
            }
            tokio::time::sleep(crate::process::POLL).await;
        }
    }

    /// Publishes many messages with one topic, each with an id of its own, and waits for all confirmations together.
    pub async fn flood(&self, routing_key: &str, bodies: impl IntoIterator<Item = Vec<u8>>) -> Result<()> {
        let mut confirms = Vec::new();
        for body in bodies {
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(uuid::Uuid::new_v4().to_string().into());
            let options = BasicPublishOptions::default();
            let publish = self
                .channel
                .basic_publish(EXCHANGE.into(), routing_key.into(), options, &body, properties);
            confirms.push(publish.await?);
        }
        for confirm in confirms {
            match confirm.await? {
                Confirmation::Ack(_) => {}
                other => bail!("the broker did not take a message: {other:?}"),
            }
        }
        Ok(())
    }

    /// Takes everything out of a queue.
    pub async fn drain(&self, queue: &str) -> Result<Vec<Received>> {
        let mut messages = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(message) = self.channel.basic_get(queue.into(), options).await? {
            messages.push(Received::of(message.delivery));
        }
        Ok(messages)
    }

    /// Empties a queue of what is not delivered yet.
    pub async fn purge(&self, queue: &str) -> Result<()> {
        let options = QueuePurgeOptions::default();
        self.channel.queue_purge(queue.into(), options).await?;
        Ok(())
    }

    /// Deletes a queue. Its consumers are cancelled by the broker.
    pub async fn delete(&self, queue: &str) -> Result<()> {
        let options = QueueDeleteOptions::default();
        self.channel.queue_delete(queue.into(), options).await?;
        Ok(())
    }

    async fn bind(&self, channel: &Channel, queue: ShortString, pattern: &str) -> Result<()> {
        let options = QueueBindOptions::default();
        channel
            .queue_bind(queue, EXCHANGE.into(), pattern.into(), options, FieldTable::default())
            .await?;
        Ok(())
    }
}

impl Spy {
    /// The next message, or an error when none comes in time.
    pub async fn next(&mut self, limit: Duration) -> Result<Received> {
        self.next_if_any(limit)
            .await?
            .with_context(|| format!("no message within {limit:?}"))
    }

    /// The next message, or `None` when none comes in time.
    pub async fn next_if_any(&mut self, limit: Duration) -> Result<Option<Received>> {
        let Ok(delivery) = timeout(limit, self.consumer.next()).await else {
            return Ok(None);
        };
        let delivery = delivery.context("the broker ended the spy")??;
        Ok(Some(Received::of(delivery)))
    }
}

impl Received {
    fn of(delivery: Delivery) -> Self {
        Self {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties,
            body: delivery.data,
        }
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).context("parse the body of a message")
    }

    /// The headers, as JSON values.
    pub fn headers(&self) -> BTreeMap<String, Value> {
        let Some(headers) = self.properties.headers() else {
            return BTreeMap::new();
        };
        headers
            .inner()
            .iter()
            .map(|(name, value)| (name.to_string(), from_amqp(value)))
            .collect()
    }

    /// The message in the form that the `fedora-messaging` client reads.
    pub fn serialized(&self) -> Result<Value> {
        Ok(json!({
            "id": self.properties.message_id().as_ref().map(ToString::to_string),
            "topic": self.routing_key,
            "headers": Map::from_iter(self.headers()),
            "body": self.json()?,
            "queue": null,
            "priority": self.properties.priority().unwrap_or(0),
        }))
    }
}

fn to_amqp(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => AMQPValue::LongLongInt(number.as_i64().unwrap_or_default()),
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        other => AMQPValue::LongString(other.to_string().into()),
    }
}

fn from_amqp(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(number) => json!(number),
        AMQPValue::ShortShortUInt(number) => json!(number),
        AMQPValue::ShortInt(number) => json!(number),
        AMQPValue::ShortUInt(number) => json!(number),
        AMQPValue::LongInt(number) => json!(number),
        AMQPValue::LongUInt(number) => json!(number),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::ShortString(text) => json!(text.to_string()),
        AMQPValue::LongString(text) => json!(text.to_string()),
        AMQPValue::Void => Value::Null,
        // Dead-letter headers are lists of tables; a test that wants them reads the properties.
        other => json!(format!("{other:?}")),
    }
}
