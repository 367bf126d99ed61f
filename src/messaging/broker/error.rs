//! The errors of a broker, by what an operator can do.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use super::{CONFIRM, CONNECT};
use crate::base::failure::{Class, Classified};

/// Whether the broker, or its certificate, said no, rather than nothing.
pub(super) fn is_refusal(error: &lapin::Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => matches!(
            error.kind(),
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
        ),
        // rustls reports certificates it does not trust, and alerts, as invalid data.
        ErrorKind::IOError(error) => error.kind() == std::io::ErrorKind::InvalidData,
        ErrorKind::AuthProviderError(_) | ErrorKind::InvalidProtocolVersion(_) => true,
        _ => false,
    }
}

/// The reason a channel was closed for, if that is what happened.
pub(super) fn soft(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(error) => Some(error.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

/// An error of the broker or of the connection to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server answers at the address.
    #[error("connect to the broker at {address}")]
    Away {
        /// Host and port.
        address: String,
        /// Why.
        source: lapin::Error,
    },
    /// A server answers at the address, but not as a broker.
    #[error("connect to the broker at {address}: no answer within {} s", CONNECT.as_secs())]
    Silent {
        /// Host and port.
        address: String,
    },
    /// The TLS or AMQP handshake was refused.
    #[error(
        "log in to the broker at {address}: check amqp_url (user, password, virtual host) and the certificates of [tls]"
    )]
    Refused {
        /// Host and port.
        address: String,
        /// Why.
        source: lapin::Error,
    },
    /// A certificate or key cannot be read.
    #[error("read {} of [tls]", path.display())]
    Certificate {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection was lost.
    #[error("talk to the broker")]
    Channel(#[source] lapin::Error),
    /// A queue is missing, or is not as configured.
    #[error("declare the queue {queue:?}: {}", needed_to_declare(*passive))]
    Declare {
        /// The queue.
        queue: String,
        /// Whether it was only to be found, not made.
        passive: bool,
        /// Why.
        source: lapin::Error,
    },
    /// A binding is not allowed, or its exchange is missing.
    #[error(
        "bind the queue {queue:?} to {exchange:?} with {key:?}: the exchange has to exist, and the broker's user needs write \
         permission for the queue and read permission for the exchange"
    )]
    Bind {
        /// The queue.
        queue: String,
        /// The exchange.
        exchange: String,
        /// The routing key.
        key: String,
        /// Why.
        source: lapin::Error,
    },
    /// The queue may not be read.
    #[error("consume the queue {queue:?}: the broker's user needs read permission for it")]
    Consume {
        /// The queue.
        queue: String,
        /// Why.
        source: lapin::Error,
    },
    /// A message was lost on its way.
    #[error("publish to {topic}")]
    Publish {
        /// With the prefix.
        topic: String,
        /// Why.
        source: lapin::Error,
    },
    /// The broker's user may not publish this.
    #[error(
        "publish to {topic}: the broker's user needs write permission for {exchange:?} and this topic; check topic_prefix"
    )]
    Forbidden {
        /// With the prefix.
        topic: String,
        /// The exchange.
        exchange: String,
        /// Why.
        source: lapin::Error,
    },
    /// The broker could not take the message.
    #[error("publish to {topic}: the broker rejected the message")]
    Rejected {
        /// With the prefix.
        topic: String,
    },
    /// The broker says nothing.
    #[error("publish to {topic}: not confirmed within {} s", CONFIRM.as_secs())]
    Unconfirmed {
        /// With the prefix.
        topic: String,
    },
}

fn needed_to_declare(passive: bool) -> &'static str {
    if passive {
        "with passive_declares an administrator has to make it first"
    } else {
        "the broker's user needs configure permission for it, and one that is there has to have the settings of [queues]"
    }
}

impl Error {
    /// Whether a queue, binding, or consumer failed because the connection went away meanwhile.
    #[must_use]
    pub fn is_lost_connection(&self) -> bool {
        match self {
            Self::Declare { source, .. } | Self::Bind { source, .. } | Self::Consume { source, .. } => {
                soft(source).is_none()
            }
            Self::Away { .. } | Self::Silent { .. } | Self::Channel(_) | Self::Publish { .. } => true,
            Self::Refused { .. }
            | Self::Certificate { .. }
            | Self::Forbidden { .. }
            | Self::Rejected { .. }
            | Self::Unconfirmed { .. } => false,
        }
    }
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Refused { .. } | Self::Certificate { .. } | Self::Forbidden { .. } => Class::Everything,
            Self::Away { .. }
            | Self::Silent { .. }
            | Self::Channel(_)
            | Self::Declare { .. }
            | Self::Bind { .. }
            | Self::Consume { .. }
            | Self::Publish { .. }
            | Self::Rejected { .. }
            | Self::Unconfirmed { .. } => Class::TRANSIENT,
        }
    }
}
