//! Wire types in: the message a finished compose is announced by, from a broker, from datagrepper, or from a file.
//!
//! The form is that of [fedora-messaging](https://fedora-messaging.readthedocs.io/en/stable/api/wire-format.html); the
//! body is pungi's.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::base::resource::{Refused, Resource};
use crate::model::compose::{ComposeId, NotOurs};

/// Statuses of a compose whose images can be published.
const FINISHED: [&str; 2] = ["FINISHED", "FINISHED_INCOMPLETE"];
/// The severities fedora-messaging knows: debug, info, warning, error.
const SEVERITIES: [i64; 4] = [10, 20, 30, 40];

/// A compose to be published, and how an operator would ask for it again.
#[derive(Debug, Clone)]
pub struct Request {
    /// The compose.
    pub compose: ComposeId,
    /// Where it is.
    pub location: Resource,
    /// The label the message gives.
    pub label: Option<String>,
    /// When its message was sent, or else read: a message that is delivered again is as old as before.
    pub announced: Timestamp,
    /// Where the request came from.
    pub origin: RequestSource,
}

/// Where a request came from, in the words of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestSource {
    /// A message with this id.
    Message(String),
    /// A message in this file.
    File(PathBuf),
    /// No message: `--compose` with this URL.
    Compose(String),
}

impl RequestSource {
    /// The arguments of `reconsume` that name it.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        match self {
            Self::Message(id) => vec![id.clone()],
            Self::File(path) => vec!["--file".to_owned(), path.display().to_string()],
            Self::Compose(url) => vec!["--compose".to_owned(), url.clone()],
        }
    }
}

/// The request in a message.
#[derive(Debug, Clone)]
pub enum Intent {
    /// To publish a compose.
    Publish(Request),
    /// No action.
    Nothing(Reason),
}

impl Intent {
    /// The intent of an operator who names a compose instead of a message.
    #[must_use]
    pub fn of_compose(id: &str, location: Resource, origin: RequestSource) -> Self {
        match ComposeId::parse(id) {
            Ok(compose) => Self::Publish(Request {
                compose,
                location,
                label: None,
                announced: Timestamp::now(),
                origin,
            }),
            Err(why) => Self::Nothing(Reason::family(id, why)),
        }
    }

    /// The same intent, from another source.
    #[must_use]
    pub fn from(self, origin: RequestSource) -> Self {
        match self {
            Self::Publish(request) => Self::Publish(Request { origin, ..request }),
            Self::Nothing(reason) => Self::Nothing(reason),
        }
    }
}

/// The reason for doing nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It has not finished, or has failed.
    #[error("the compose's status is {status:?}")]
    Status {
        /// The compose, where the message names one.
        compose: Option<String>,
        /// The status.
        status: String,
    },
    /// This service does not publish such composes.
    #[error("{compose}: {why}")]
    Family {
        /// The compose.
        compose: String,
        /// The reason.
        why: NotOurs,
    },
}

impl Reason {
    fn family(compose: &str, why: NotOurs) -> Self {
        Self::Family {
            compose: compose.escape_debug().to_string(),
            why,
        }
    }

    /// The compose, where the message names one.
    #[must_use]
    pub fn compose(&self) -> Option<&str> {
        match self {
            Self::Status { compose, .. } => compose.as_deref(),
            Self::Family { compose, .. } => Some(compose),
        }
    }
}

/// A message, with no more of it read than is needed.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id; empty if the sender gave none.
    pub id: String,
    /// Its topic, with the prefix.
    pub topic: String,
    sent: Option<Timestamp>,
    body: Map<String, Value>,
}

/// The properties and headers of a delivery that are read.
#[derive(Debug, Default)]
pub struct Properties<'a> {
    /// The AMQP property `message_id`.
    pub message_id: Option<&'a str>,
    /// The AMQP property `content_encoding`.
    pub content_encoding: Option<&'a str>,
    /// The header `fedora_messaging_severity`.
    pub severity: Option<i64>,
    /// The header `sent-at`.
    pub sent_at: Option<&'a str>,
}

impl Message {
    /// Reads a delivery. Missing headers are tolerated, as the existing client does.
    ///
    /// # Errors
    ///
    /// A body that is not a JSON object in UTF-8, or a severity that does not exist.
    pub fn of_delivery(topic: &str, properties: &Properties<'_>, body: &[u8]) -> Result<Self, Error> {
        if let Some(encoding) = properties.content_encoding {
            // As Python, which the senders are written in, spells them.
            let spelling = encoding.to_ascii_lowercase().replace('_', "-");
            if !matches!(spelling.as_str(), "utf-8" | "utf8" | "us-ascii" | "ascii" | "") {
                return Err(Error::Encoding(encoding.to_owned()));
            }
        }
        if let Some(severity) = properties.severity
            && !SEVERITIES.contains(&severity)
        {
            return Err(Error::Severity(severity));
        }
        let text = std::str::from_utf8(body).map_err(Error::Utf8)?;
        Ok(Self {
            id: properties.message_id.unwrap_or_default().to_owned(),
            topic: topic.to_owned(),
            sent: properties.sent_at.and_then(|time| time.parse().ok()),
            body: object(serde_json::from_str(text).map_err(Error::Json)?)?,
        })
    }

    /// Reads a serialized message: what datagrepper returns and `fedora-messaging publish` reads.
    ///
    /// # Errors
    ///
    /// Text that is not such a message.
    pub fn of_serialized(text: &[u8]) -> Result<Self, Error> {
        let mut message = object(serde_json::from_slice(text).map_err(Error::Json)?)?;
        // Neither is needed to publish a compose, so another type is no reason to refuse the message.
        let mut text = |key| match message.remove(key) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (id, topic) = (text("id"), text("topic"));
        let body = message.remove("body").filter(|body| !body.is_null());
        let body = object(body.ok_or(Error::Field("body"))?)?;
        Ok(Self {
            id,
            topic,
            sent: None,
            body,
        })
    }

    /// The request in the message. `folder` is where relative locations are taken from; `None` for messages that did
    /// not come from an operator, which may name http and https only.
    ///
    /// # Errors
    ///
    /// A finished compose without id or location, or with a location that is not allowed.
    pub fn wish(&self, folder: Option<&Path>) -> Result<Intent, Error> {
        let status = self.field("status")?;
        if !FINISHED.contains(&status) {
            return Ok(Intent::Nothing(Reason::Status {
                compose: self.field("compose_id").ok().map(str::to_owned),
                status: status.to_owned(),
            }));
        }
        let id = self.field("compose_id")?;
        let compose = match ComposeId::parse(id) {
            Ok(compose) => compose,
            Err(why) => {
                return Ok(Intent::Nothing(Reason::family(id, why)));
            }
        };
        let location = self.field("location")?;
        let location = match folder {
            Some(folder) => Resource::trusted(location, folder),
            None => Resource::remote(location),
        };
        let location = location.map_err(Error::Location)?;
        // Datagrepper knows messages by such ids only.
        let origin = match Uuid::parse_str(&self.id) {
            Ok(_) => RequestSource::Message(self.id.clone()),
            Err(_) => RequestSource::Compose(location.to_string()),
        };
        let now = Timestamp::now();
        Ok(Intent::Publish(Request {
            compose,
            location,
            // A sender whose clock is ahead must not date the message in the future.
            announced: self.sent.map_or(now, |sent| sent.min(now)),
            label: self
                .body
                .get("compose_label")
                .and_then(Value::as_str)
                .filter(|label| !label.is_empty())
                .map(str::to_owned),
            origin,
        }))
    }

    fn field(&self, key: &'static str) -> Result<&str, Error> {
        self.body.get(key).and_then(Value::as_str).ok_or(Error::Field(key))
    }
}

fn object(value: Value) -> Result<Map<String, Value>, Error> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Error::NoObject),
    }
}

/// A message that cannot be worked on, now or later.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body is in another encoding.
    #[error("read the message: the encoding {0:?} is not UTF-8")]
    Encoding(String),
    /// The body is not text.
    #[error("read the message")]
    Utf8(#[source] std::str::Utf8Error),
    /// The body is not JSON.
    #[error("read the message")]
    Json(#[source] serde_json::Error),
    /// The body is JSON, but no object.
    #[error("read the message: it is not a JSON object")]
    NoObject,
    /// A field that is needed is missing, or is no text.
    #[error("read the message: {0:?} is missing or has the wrong type")]
    Field(&'static str),
    /// A severity that does not exist.
    #[error("read the message: severity {0} is none of 10, 20, 30, 40")]
    Severity(i64),
    /// The compose is somewhere we do not go.
    #[error("read the message")]
    Location(#[source] Refused),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::Chain;

    fn delivery(body: &str) -> Result<Message, Error> {
        Message::of_delivery("t", &Properties::default(), body.as_bytes())
    }

    #[test]
    fn three_keys_are_enough() {
        let message = delivery(
            r#"{"status": "FINISHED", "compose_id": "Fedora-24-20151208.n.7", "location": "http://host//compose"}"#,
        );
        let Intent::Publish(request) = message.unwrap().wish(None).unwrap() else {
            panic!("it is to be published");
        };
        assert_eq!(request.compose.to_string(), "Fedora-24-20151208.n.7");
        assert_eq!(request.location.to_string(), "http://host//compose");
        assert_eq!(request.label, None);
    }

    #[test]
    fn an_irrelevant_message_says_why() {
        let table = [
            (r#"{"status": "STARTED"}"#, "the compose's status is \"STARTED\""),
            (
                r#"{"status": "DOOMED", "compose_id": "x"}"#,
                "the compose's status is \"DOOMED\"",
            ),
            (
                r#"{"status": "FINISHED", "compose_id": "Fedora-Epel-9-updates-20250911.0"}"#,
                "Fedora-Epel-9-updates-20250911.0: EPEL composes have no images",
            ),
            (
                r#"{"status": "FINISHED", "compose_id": "Fedora-42-updates-testing-20251105.0"}"#,
                "Fedora-42-updates-testing-20251105.0: updates-testing composes are not published",
            ),
        ];
        for (body, expected) in table {
            match delivery(body).unwrap().wish(None).unwrap() {
                Intent::Nothing(reason) => assert_eq!(reason.to_string(), expected),
                Intent::Publish(_) => panic!("{body} is to be ignored"),
            }
        }
    }

    #[test]
    fn bad_bodies_are_refused_by_name() {
        let table: [(&[u8], &str); 10] = [
            (b"\xff{}", "read the message"),
            (b"", "read the message"),
            (b"{", "read the message"),
            (b"[]", "it is not a JSON object"),
            (b"{}", "\"status\" is missing"),
            (br#"{"status": 1}"#, "\"status\" is missing or has the wrong type"),
            (br#"{"status": "FINISHED"}"#, "\"compose_id\" is missing"),
            (
                br#"{"status": "FINISHED", "compose_id": "Fedora-43-20251023.0"}"#,
                "\"location\" is missing",
            ),
            (
                br#"{"status": "FINISHED", "compose_id": "Fedora-43-20251023.0", "location": "file:///etc"}"#,
                "read the message",
            ),
            (
                br#"{"status": "FINISHED", "compose_id": "Fedora-43-20251023.0", "location": "https://user:hunter2@host/x"}"#,
                "read the message",
            ),
        ];
        for (body, expected) in table {
            let message = Message::of_delivery("t", &Properties::default(), body);
            let error = message.and_then(|message| message.wish(None)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!Chain(&error).to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_field_that_is_not_needed_may_hold_anything() {
        let needed = r#""status": "FINISHED", "compose_id": "Fedora-43-20251023.0", "location": "http://host/compose""#;
        for (more, label) in [
            ("", None),
            (r#", "compose_label": "RC-1.6""#, Some("RC-1.6")),
            (r#", "compose_label": """#, None),
            (r#", "compose_label": null"#, None),
            (r#", "compose_label": 1.6"#, None),
            (r#", "compose_label": ["RC-1.6"]"#, None),
            (
                r#", "compose_date": null, "compose_respin": "x", "release_short": {}, "new": [1e9]"#,
                None,
            ),
        ] {
            let body = format!("{{{needed}{more}}}");
            let serialized = [
                format!(r#"{{"body": {body}}}"#),
                format!(r#"{{"id": null, "topic": null, "headers": null, "priority": null, "body": {body}}}"#),
                format!(r#"{{"id": 7, "topic": [], "headers": 1, "queue": {{}}, "new": null, "body": {body}}}"#),
            ];
            let serialized = serialized.iter().map(|text| Message::of_serialized(text.as_bytes()));
            for message in std::iter::once(delivery(&body)).chain(serialized) {
                let Intent::Publish(request) = message.unwrap().wish(None).unwrap() else {
                    panic!("{body} is to be published");
                };
                assert_eq!(request.label.as_deref(), label, "{body}");
            }
        }
        for bad in [r#"{"id": "i"}"#, r#"{"body": null}"#, r#"{"body": []}"#, "null"] {
            assert!(Message::of_serialized(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_are_checked_where_present() {
        let with = |severity, content_encoding| {
            let properties = Properties {
                severity,
                content_encoding,
                ..Properties::default()
            };
            Message::of_delivery("t", &properties, b"{}")
        };
        for spelling in ["utf-8", "UTF-8", "utf8", "utf_8", "us-ascii", ""] {
            assert!(with(Some(20), Some(spelling)).is_ok(), "{spelling}");
        }
        assert!(matches!(with(Some(21), None), Err(Error::Severity(21))));
        assert!(matches!(with(None, Some("gzip")), Err(Error::Encoding(_))));
    }

    #[test]
    fn only_an_operators_file_may_name_files() {
        let text = br#"{"id": "i", "topic": "t", "body": {"status": "FINISHED",
            "compose_id": "Fedora-43-20251023.0", "location": "compose"}}"#;
        let message = Message::of_serialized(text).unwrap();
        assert!(message.wish(None).is_err());
        let Intent::Publish(request) = message.wish(Some(Path::new("/folder"))).unwrap() else {
            panic!("it is to be published");
        };
        assert_eq!(request.location, Resource::Folder("/folder/compose".into()));
    }
}
