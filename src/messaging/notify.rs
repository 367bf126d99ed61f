//! The outgoing message: what it says, and sending it confirmed by the broker.
//!
//! Bodies are valid under the schemas of the existing service's package, `fedora-image-uploader-messages`.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::base::failure::{Class, Classified};
use crate::base::metrics;
use crate::base::retry::Policy;
use crate::messaging::broker::{Broker, Outgoing};
use crate::model::deliverable::Deliverable;
use crate::model::outcome::Place;
use crate::model::target::Location;

/// The space in which topic and body make a message id. An arbitrary constant, which must never change.
const IDS: Uuid = Uuid::from_u128(0x6f0c_9c1e_52d0_4a63_9d63_1f0b_7c2a_9e58);
/// The package that holds the schemas, as its header names it.
const SCHEMA_PACKAGE: &str = "fedora_image_uploader_messages";

/// An announcement.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Made of topic and body, so that a repeat has the same one and a repair another.
    pub id: Uuid,
    /// Without the configured prefix.
    pub topic: String,
    /// The JSON object that consumers read.
    pub body: Value,
    /// The name of the body's schema; none for deliverables the package does not know.
    pub schema: Option<String>,
    /// One for each tag in each registry, for consumers that filter by header.
    pub containers: Vec<String>,
}

impl Notice {
    /// The notice of a publication without failures, with `null` for ids that only the provider knows.
    #[must_use]
    pub fn planned(deliverable: &Deliverable) -> Self {
        let configured: Vec<_> = deliverable
            .locations
            .iter()
            .map(|location| (location.as_str(), None))
            .collect();
        Self::new(deliverable, &configured)
    }

    /// The notice that the deliverable is at these places.
    #[must_use]
    pub fn of(deliverable: &Deliverable, places: &[Place]) -> Self {
        let live: Vec<_> = places
            .iter()
            .map(|place| (place.location.as_str(), Some(place.id.as_str())))
            .collect();
        Self::new(deliverable, &live)
    }

    fn new(deliverable: &Deliverable, places: &[Location<'_>]) -> Self {
        let target = deliverable.target.describe();
        let topic = deliverable.topic();
        let body = Value::Object(target.body(deliverable, places));
        let schema = target.has_schema().then(|| deliverable.schema());
        let containers = target.containers(places);
        Self {
            id: Uuid::new_v5(&IDS, format!("{topic}\n{}", sorted(&body)).as_bytes()),
            topic,
            body,
            schema,
            containers,
        }
    }

    /// As it is published.
    #[must_use]
    pub fn outgoing(&self) -> Outgoing {
        let mut headers = Map::new();
        match &self.schema {
            Some(schema) => {
                headers.insert("fedora_messaging_schema".to_owned(), json!(schema));
                headers.insert("fedora_messaging_schema_package".to_owned(), json!(SCHEMA_PACKAGE));
            }
            None => {
                headers.insert("fedora_messaging_schema".to_owned(), json!("base.message"));
            }
        }
        headers.insert("fedora_messaging_severity".to_owned(), json!(20));
        let sent = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string();
        headers.insert("sent-at".to_owned(), json!(sent));
        for container in &self.containers {
            headers.insert(format!("fedora_messaging_container_{container}"), json!(true));
        }
        Outgoing {
            id: self.id,
            topic: self.topic.clone(),
            headers,
            body: self.body.to_string().into_bytes(),
        }
    }
}

/// JSON with the keys of every object in order, so that equal values give equal text.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// Sends announcements, or does not, as configured.
#[derive(Debug, Clone)]
pub struct Notifier(Option<Arc<Broker>>);

impl Notifier {
    /// Announcements go to this broker; nowhere when `None`.
    #[must_use]
    pub fn new(broker: Option<Arc<Broker>>) -> Self {
        Self(broker)
    }

    /// Sends an announcement and waits until the broker has taken it.
    ///
    /// A broker that is away is waited for as long as `policy` says. The message may arrive twice then, under the same
    /// id.
    ///
    /// # Errors
    ///
    /// The broker refused the message, or was away for too long.
    pub async fn send(&self, notice: &Notice, policy: Policy) -> Result<(), Error> {
        let Some(broker) = &self.0 else { return Ok(()) };
        let outgoing = notice.outgoing();
        policy
            .run("publish", Classified::class, || async {
                broker.publish(&outgoing).await
            })
            .await
            .map_err(|source| Error {
                topic: notice.topic.clone(),
                source,
            })?;
        metrics::notified();
        tracing::info!(topic = notice.topic, id = %notice.id, "announced {} as message {}", notice.topic, notice.id);
        Ok(())
    }
}

/// An announcement that could not be sent.
#[derive(Debug, thiserror::Error)]
#[error("announce {topic}")]
pub struct Error {
    topic: String,
    source: crate::messaging::broker::Error,
}

impl Classified for Error {
    fn class(&self) -> Class {
        self.source.class()
    }
}
