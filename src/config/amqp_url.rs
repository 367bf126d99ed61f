//! The address of a broker, as pika's `URLParameters` reads it.
//!
//! <https://pika.readthedocs.io/en/stable/modules/parameters.html#urlparameters>

use std::fmt;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::reader::Value;
use crate::base::secret::Secret;

/// `amqp_url`, taken apart. `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl {
    tls: bool,
    host: String,
    port: u16,
    vhost: String,
    user: String,
    password: Secret,
    heartbeat: Option<u16>,
}

impl AmqpUrl {
    /// Reads a URL. The error is a fragment that does not repeat the URL.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected a URL such as \"amqps://user@broker.example.org/%2Fvhost\"";
        let url = Url::parse(text).map_err(|_| EXPECTED)?;
        let tls = match url.scheme() {
            "amqp" => false,
            "amqps" => true,
            _ => return Err("must start with amqp:// or amqps://"),
        };
        if !text[url.scheme().len()..].starts_with("://") {
            return Err(EXPECTED);
        }
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let vhost = url.path().trim_start_matches('/');
        let vhost = vhost.split('/').next().unwrap_or_default();
        let mut user = decode(url.username())?;
        let mut password = decode(url.password().unwrap_or_default())?;
        if user.is_empty() && url.password().is_none() {
            // The account of a fresh RabbitMQ, which it accepts from its own machine only.
            user = "guest".into();
            password = "guest".into();
        }
        let heartbeat = match url.query_pairs().find(|(name, _)| name == "heartbeat") {
            Some((_, seconds)) => Some(
                seconds
                    .parse()
                    .map_err(|_| "heartbeat must be a number of seconds below 65536")?,
            ),
            None => None,
        };
        Ok(Self {
            tls,
            host: or(decode(host)?, "localhost"),
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            vhost: or(decode(vhost)?, "/"),
            user,
            password: Secret::new(password),
            heartbeat,
        })
    }

    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        match Self::parse(&value.string()?) {
            Ok(url) => Some(url),
            Err(text) => value.refuse(text),
        }
    }

    /// Whether the scheme is `amqps`.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host name or address, IPv6 without brackets. Default: `localhost`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Default: 5672, with TLS 5671.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The virtual host, decoded: `%2Fpubsub` is `/pubsub`. Default: `/`.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// The account. Default: `guest`, if the URL has no password either.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The account's password, maybe empty.
    pub fn password(&self) -> &Secret {
        &self.password
    }

    /// The option `heartbeat` in seconds; 0 turns heartbeats off. Other options of the query string
    /// are about connecting once and have no meaning for a client that connects without end.
    pub fn heartbeat(&self) -> Option<u16> {
        self.heartbeat
    }
}

impl Default for AmqpUrl {
    /// The broker on this machine, with its own default account.
    fn default() -> Self {
        Self {
            tls: false,
            host: "localhost".into(),
            port: 5672,
            vhost: "/".into(),
            user: "guest".into(),
            password: Secret::new("guest"),
            heartbeat: None,
        }
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let vhost = utf8_percent_encode(&self.vhost, NON_ALPHANUMERIC);
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        write!(f, "{scheme}://{}@{host}:{}/{vhost}", self.user, self.port)
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AmqpUrl({self})")
    }
}

fn decode(text: &str) -> Result<String, &'static str> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err("has a percent-encoded part that is not UTF-8"),
    }
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::AmqpUrl;

    #[test]
    fn urls() {
        for (text, expected) in [
            ("amqp://", "amqp://guest@localhost:5672/%2F"),
            ("amqp://?connection_attempts=3", "amqp://guest@localhost:5672/%2F"),
            ("amqp://localhost/", "amqp://guest@localhost:5672/%2F"),
            ("amqp://a:b@127.0.0.1:1234/v", "amqp://a@127.0.0.1:1234/v"),
            ("amqp://a:b@[::1]:1234/v", "amqp://a@[::1]:1234/v"),
            (
                "amqps://cloud-image-uploader:@rabbitmq.fedoraproject.org/%2Fpubsub",
                "amqps://cloud-image-uploader@rabbitmq.fedoraproject.org:5671/%2Fpubsub",
            ),
        ] {
            let url = AmqpUrl::parse(text).expect(text);
            assert_eq!(url.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn parts_are_decoded() {
        let url = AmqpUrl::parse("amqp://us%40er:p%2Fw@host/%2Fpublic_pubsub?heartbeat=30");
        let url = url.expect("url");
        assert_eq!(url.user(), "us@er");
        assert_eq!(url.password().expose(), "p/w");
        assert_eq!(url.vhost(), "/public_pubsub");
        assert_eq!(url.heartbeat(), Some(30));
    }

    #[test]
    fn neither_debug_nor_an_error_shows_the_password() {
        let url = AmqpUrl::parse("amqp://user:hunter2@host/").expect("url");
        assert_eq!(format!("{url:?}"), "AmqpUrl(amqp://user@host:5672/%2F)");
        for bad in [
            "http://user:hunter2@host/",
            "amqp:user:hunter2@host",
            "user:hunter2@host",
            "amqp://user:hunter2@host:notaport/",
            "amqp://user:hunter2@host/?heartbeat=hunter2",
        ] {
            let text = AmqpUrl::parse(bad).expect_err(bad);
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
