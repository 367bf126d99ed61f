//! One failed call to a service, the same for every provider.
//!
//! A provider interprets its service's refusals (their [`Class`], and the advice in `said`); all other properties of a
//! failed call are the same everywhere.

use std::error::Error as StdError;
use std::time::Duration;

use crate::base::failure::{Class, Classified};

/// A call that failed. Each text reads after "failed to"; `what` is the action.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The answer is missing, ended early, or cannot be read. The service may have performed the action.
    #[error("{what}")]
    Lost {
        /// The action, reading after "failed to".
        what: String,
        /// The underlying error.
        source: Box<dyn StdError + Send + Sync>,
        /// The remedy that the failure needs.
        class: Class,
    },
    /// The answer did not arrive in time. The service may have performed the action.
    #[error("{what}: no answer within {} s", limit.as_secs())]
    Silent {
        /// The action, reading after "failed to".
        what: String,
        /// The time that the call waited for the answer.
        limit: Duration,
    },
    /// The service refused the call.
    #[error("{what}: {service} answered {said}")]
    Refused {
        /// The action, reading after "failed to".
        what: String,
        /// The service as people call it: `Azure`, `the registry`.
        service: &'static str,
        /// The HTTP status.
        status: u16,
        /// The service's own name of the refusal; empty where it has none.
        code: String,
        /// The answer for people: the status or code, the service's words, and advice for operators.
        said: String,
        /// The remedy that the refusal needs.
        class: Class,
    },
    /// The service accepted the call, and the operation that it started failed.
    #[error("{what}: the operation {said}")]
    Operation {
        /// The action, reading after "failed to".
        what: String,
        /// The service's own name of the failure.
        code: String,
        /// The operation's end, for people.
        said: String,
        /// The remedy that the failure needs.
        class: Class,
    },
    /// The operation that the call started has not ended in time; it may still succeed.
    #[error("{what}: {state} after {}", humantime::format_duration(*limit))]
    Unfinished {
        /// The action, reading after "failed to".
        what: String,
        /// The operation's last known state: `not done`, `pending`.
        state: String,
        /// The time that the program waited for the operation's end.
        limit: Duration,
    },
    /// The answer lacks a required part.
    #[error("{what}: {service} answered with {answer}")]
    Odd {
        /// The action, reading after "failed to".
        what: String,
        /// The service as people call it.
        service: &'static str,
        /// The answer as received: `no token`.
        answer: String,
    },
}

impl CallError {
    /// An answer of `service` that does not have what it must have.
    pub fn odd(what: impl Into<String>, service: &'static str, answer: impl Into<String>) -> Self {
        Self::Odd {
            what: what.into(),
            service,
            answer: answer.into(),
        }
    }

    /// No answer within `limit`.
    pub fn silent(what: impl Into<String>, limit: Duration) -> Self {
        Self::Silent {
            what: what.into(),
            limit,
        }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Operation { .. }
            | Self::Unfinished { .. }
            | Self::Odd { .. } => None,
        }
    }

    /// The service's own name of a refusal or of an operation's failure.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } | Self::Operation { code, .. } => Some(code),
            Self::Lost { .. } | Self::Silent { .. } | Self::Unfinished { .. } | Self::Odd { .. } => None,
        }
    }
}

impl Classified for CallError {
    fn class(&self) -> Class {
        match self {
            Self::Lost { class, .. } | Self::Refused { class, .. } | Self::Operation { class, .. } => *class,
            Self::Silent { .. } | Self::Unfinished { .. } | Self::Odd { .. } => Class::TRANSIENT,
        }
    }
}
