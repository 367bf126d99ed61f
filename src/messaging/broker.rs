//! The broker: one connection, opened again whenever it is needed and lost.
//!
//! Who reconnects, and how often, is decided by the callers; nothing here waits. Server-named queues get a new name on
//! each connection, so that a library's own recovery, which declares under the old names, is of no use.

mod error;
mod queues;
mod values;

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{FieldTable, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ErrorKind};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use self::error::Error;
use self::error::{is_refusal, soft};
use self::values::{headers, table, text};
use crate::base::metrics;
use crate::config::amqp::{Amqp, Binding, Queue};

/// A broker that does not complete the handshake within this time is not there.
const CONNECT: Duration = Duration::from_secs(20);
/// A confirm that takes longer will not come.
const CONFIRM: Duration = Duration::from_secs(30);
/// Any other answer of the broker.
const ANSWER: Duration = Duration::from_secs(30);
/// Seconds between heartbeats unless the URL says otherwise: a lost broker is noticed after two of them.
const HEARTBEAT: u16 = 10;

/// The broker of the configuration file.
pub struct Broker {
    config: Amqp,
    connection: Mutex<Option<Arc<Connection>>>,
    publisher: Mutex<Option<Channel>>,
}

/// Never shows the URL's password.
impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("url", &self.config.url)
            .finish_non_exhaustive()
    }
}

/// The parts of a subscription: the channel that settles, and a consumer for each queue.
#[derive(Debug)]
pub struct Subscription {
    /// Deliveries are settled on it.
    pub channel: Channel,
    /// Their deliveries.
    pub consumers: Vec<Consumer>,
    /// Keeps the queues' metrics up to date.
    pub watch: AbortOnDropHandle<()>,
}

/// A message to be published.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// `message_id`.
    pub id: Uuid,
    /// Without the configured prefix.
    pub topic: String,
    /// Strings, integers, and booleans.
    pub headers: Map<String, Value>,
    /// JSON.
    pub body: Vec<u8>,
}

impl Broker {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(config: Amqp) -> Self {
        Self {
            config,
            connection: Mutex::default(),
            publisher: Mutex::default(),
        }
    }

    /// Host and port, for messages to people.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.config.url.host(), self.config.url.port())
    }

    /// A channel on the current connection, or on a new one.
    ///
    /// # Errors
    ///
    /// The broker is away, refuses us, or a certificate cannot be used.
    pub async fn channel(&self) -> Result<Channel, Error> {
        let connection = self.connection().await?;
        answered(connection.create_channel()).await.map_err(Error::Channel)
    }

    async fn connection(&self) -> Result<Arc<Connection>, Error> {
        let mut current = self.connection.lock().await;
        match &*current {
            Some(connection) if connection.status().connected() => Ok(connection.clone()),
            _ => Ok(current.insert(Arc::new(self.connect().await?)).clone()),
        }
    }

    /// Declares the queues, binds them, and starts consuming.
    ///
    /// # Errors
    ///
    /// As [`Self::channel`]; and a queue or binding that is missing, or may not be read.
    pub async fn subscribe(&self) -> Result<Subscription, Error> {
        let connection = self.connection().await?;
        let channel = answered(connection.create_channel()).await.map_err(Error::Channel)?;
        let prefetch = self.config.qos.prefetch_count;
        answered(channel.basic_qos(prefetch, BasicQosOptions::default()))
            .await
            .map_err(Error::Channel)?;
        let (mut consumers, mut names) = (Vec::new(), Vec::new());
        for queue in &self.config.queues {
            let name = self.declare(&channel, queue).await?;
            for binding in self.config.bindings.iter().filter(|binding| binds(binding, queue)) {
                self.bind(&channel, &name, binding).await?;
            }
            let options = BasicConsumeOptions {
                exclusive: false,
                ..BasicConsumeOptions::default()
            };
            let tag = Uuid::new_v4().to_string().into();
            let consumer = answered(channel.basic_consume(name.clone(), tag, options, FieldTable::default())).await;
            consumers.push(consumer.map_err(|source| Error::Consume {
                queue: name.to_string(),
                source,
            })?);
            names.push((queues::label(queue), name));
        }
        let watch = AbortOnDropHandle::new(tokio::spawn(queues::watch(connection, names)));
        Ok(Subscription {
            channel,
            consumers,
            watch,
        })
    }

    /// Proves that the broker accepts our credentials and has the queues that are not ours to make, changing nothing. Returns the
    /// queues' names.
    ///
    /// # Errors
    ///
    /// As [`Self::subscribe`].
    pub async fn check(&self) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        for queue in self.config.queues.iter().filter(|queue| !queue.name.is_empty()) {
            let channel = self.channel().await?;
            let passive = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let declared = answered(channel.queue_declare(short(&queue.name), passive, FieldTable::default())).await;
            found.push(match declared {
                Ok(declared) => format!("{} ({} waiting)", queue.name, declared.message_count()),
                Err(source) if !self.config.passive_declares && soft(&source) == Some(AMQPSoftError::NOTFOUND) => {
                    format!("{} (not there yet: consume makes it)", queue.name)
                }
                Err(source) => {
                    return Err(Error::Declare {
                        queue: queue.name.clone(),
                        passive: self.config.passive_declares,
                        source,
                    });
                }
            });
        }
        if found.is_empty() {
            self.channel().await?;
        }
        Ok(found)
    }

    /// Publishes a message and waits for the broker's confirm, 30 s at most.
    ///
    /// # Errors
    ///
    /// As [`Self::channel`]; and the broker forbids the topic, rejects the message, or does not confirm.
    pub async fn publish(&self, message: &Outgoing) -> Result<(), Error> {
        let topic = match self.config.topic_prefix.trim_end_matches('.') {
            "" => message.topic.clone(),
            prefix => format!("{prefix}.{}", message.topic),
        };
        let outcome = timeout(CONFIRM, self.publish_now(&topic, message)).await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Unconfirmed { topic }),
        };
        if outcome.is_err() {
            // After any failure, the next try starts on a fresh channel.
            *self.publisher.lock().await = None;
        }
        outcome
    }

    async fn publish_now(&self, topic: &str, message: &Outgoing) -> Result<(), Error> {
        let channel = self.publisher().await?;
        let failed = |source: lapin::Error| match soft(&source) {
            Some(AMQPSoftError::ACCESSREFUSED | AMQPSoftError::NOTFOUND) => Error::Forbidden {
                topic: topic.to_owned(),
                exchange: self.config.publish_exchange.clone(),
                source,
            },
            _ => Error::Publish {
                topic: topic.to_owned(),
                source,
            },
        };
        let confirm = channel
            .basic_publish(
                short(&self.config.publish_exchange),
                short(topic),
                BasicPublishOptions::default(),
                &message.body,
                self.properties(message),
            )
            .await
            .map_err(failed)?;
        match confirm.await.map_err(failed)? {
            Confirmation::Ack(_) => Ok(()),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(Error::Rejected {
                topic: topic.to_owned(),
            }),
        }
    }

    async fn publisher(&self) -> Result<Channel, Error> {
        let mut current = self.publisher.lock().await;
        match &*current {
            Some(channel) if channel.status().connected() => Ok(channel.clone()),
            _ => {
                let channel = self.channel().await?;
                answered(channel.confirm_select(ConfirmSelectOptions::default()))
                    .await
                    .map_err(Error::Channel)?;
                Ok(current.insert(channel).clone())
            }
        }
    }

    fn properties(&self, message: &Outgoing) -> BasicProperties {
        let priority = self.config.publish_priority;
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(2)
            .with_message_id(message.id.to_string().into())
            .with_headers(headers(&message.headers, priority));
        match priority {
            Some(priority) => properties.with_priority(priority),
            None => properties,
        }
    }

    /// Ends the connection, if there is one. Deliveries that were not settled go back to the queue.
    pub async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take()
            && let Err(error) = answered(connection.close(200, "stopping".into())).await
        {
            tracing::debug!(%error, "the connection ended before it was closed");
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let tls = self.tls().await?;
        let mut properties = ConnectionProperties::default();
        for (name, value) in &self.config.client_properties {
            properties = properties.with_client_property(short(name), text(value).into());
        }
        for (name, value) in [
            ("product", env!("CARGO_PKG_NAME")),
            ("version", crate::VERSION),
            ("information", env!("CARGO_PKG_DESCRIPTION")),
        ] {
            properties = properties.with_client_property(name.into(), value.into());
        }
        let runtime = lapin::runtime::default_runtime().map_err(Error::Channel)?;
        let connecting = Connection::connect_uri_with_config(self.uri(), properties, tls, runtime);
        let address = self.address();
        match timeout(CONNECT, connecting).await {
            Ok(Ok(connection)) => {
                tracing::info!(broker = address, "connected to the broker at {address}");
                Ok(connection)
            }
            Ok(Err(source)) if is_refusal(&source) => Err(Error::Refused { address, source }),
            Ok(Err(source)) => Err(Error::Away { address, source }),
            Err(_) => Err(Error::Silent { address }),
        }
    }

    fn uri(&self) -> AMQPUri {
        let url = &self.config.url;
        let certificate = self.config.tls.as_ref().and_then(|tls| tls.client_certificate());
        AMQPUri {
            scheme: if url.is_tls() {
                AMQPScheme::AMQPS
            } else {
                AMQPScheme::AMQP
            },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: url.user().to_owned(),
                    password: url.password().expose().to_owned(),
                },
                host: url.host().to_owned(),
                port: url.port(),
            },
            vhost: url.vhost().to_owned(),
            query: AMQPQueryString {
                heartbeat: Some(url.heartbeat().unwrap_or(HEARTBEAT)),
                // With a client certificate the account is the certificate's name, and the URL's password is not used.
                auth_mechanism: certificate.map(|_| SASLMechanism::External),
                ..AMQPQueryString::default()
            },
        }
    }

    async fn tls(&self) -> Result<OwnedTLSConfig, Error> {
        let Some(tls) = &self.config.tls else {
            return Ok(OwnedTLSConfig::default());
        };
        let read = async |path: &std::path::Path| {
            tokio::fs::read(path).await.map_err(|source| Error::Certificate {
                path: path.to_owned(),
                source,
            })
        };
        let cert_chain = match &tls.ca_cert {
            Some(path) => Some(String::from_utf8_lossy(&read(path).await?).into_owned()),
            None => None,
        };
        let identity = match tls.client_certificate() {
            Some((certificate, key)) => {
                let pem = read(certificate).await?;
                metrics::certificate("amqp", &pem);
                let key = read(key).await?;
                Some(OwnedIdentity::PKCS8 { pem, key })
            }
            None => None,
        };
        Ok(OwnedTLSConfig { identity, cert_chain })
    }

    async fn declare(&self, channel: &Channel, queue: &Queue) -> Result<ShortString, Error> {
        let options = QueueDeclareOptions {
            // A queue that the server is to name does not exist yet.
            passive: self.config.passive_declares && !queue.name.is_empty(),
            durable: queue.durable,
            exclusive: queue.exclusive,
            auto_delete: queue.auto_delete,
            nowait: false,
        };
        let arguments = table(&queue.arguments);
        match answered(channel.queue_declare(short(&queue.name), options, arguments)).await {
            Ok(declared) => Ok(declared.name().clone()),
            Err(source) => Err(Error::Declare {
                queue: queue.name.clone(),
                passive: options.passive,
                source,
            }),
        }
    }

    /// The existing client binds even where it declares passively.
    async fn bind(&self, channel: &Channel, queue: &ShortString, binding: &Binding) -> Result<(), Error> {
        for key in &binding.routing_keys {
            answered(channel.queue_bind(
                queue.clone(),
                short(&binding.exchange),
                short(key),
                QueueBindOptions::default(),
                FieldTable::default(),
            ))
            .await
            .map_err(|source| Error::Bind {
                queue: queue.to_string(),
                exchange: binding.exchange.clone(),
                key: key.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

/// A binding without a queue is for every queue.
fn binds(binding: &Binding, queue: &Queue) -> bool {
    binding.queue.as_ref().is_none_or(|name| *name == queue.name)
}

/// An answer that does not come is a lost connection.
async fn answered<T>(call: impl Future<Output = lapin::Result<T>>) -> lapin::Result<T> {
    match timeout(ANSWER, call).await {
        Ok(result) => result,
        Err(_) => Err(ErrorKind::MissingHeartbeatError.into()),
    }
}

/// Names longer than AMQP allows were refused with the configuration; topics are shorter by far.
fn short(text: &str) -> ShortString {
    text.into()
}
