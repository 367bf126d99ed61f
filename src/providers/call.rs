//! One failed call to a service, the same for every provider.
//!
//! A provider says what its service's refusals mean (their [`Class`], and the advice in `said`); everything else about a
//! call that failed is alike everywhere.

use std::error::Error as StdError;
use std::time::Duration;

use crate::base::failure::{Class, Classified};

/// A call that did not do what it was to do. Each text reads after "failed to"; `what` says what was to be done.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer, or one that ended early or cannot be read. The service may have done what it was asked.
    #[error("{what}")]
    Lost {
        /// What was to be done.
        what: String,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
        /// What can be done about it.
        class: Class,
    },
    /// No answer in time. The service may have done what it was asked.
    #[error("{what}: no answer within {} s", limit.as_secs())]
    Silent {
        /// What was to be done.
        what: String,
        /// How long the answer was awaited.
        limit: Duration,
    },
    /// The service refused.
    #[error("{what}: {service} answered {said}")]
    Refused {
        /// What was to be done.
        what: String,
        /// The service as people call it: `Azure`, `the registry`.
        service: &'static str,
        /// The HTTP status.
        status: u16,
        /// The service's own name of the refusal; empty where it has none.
        code: String,
        /// The answer for people: status or code, the service's words, what an operator can do.
        said: String,
        /// What the refusal means.
        class: Class,
    },
    /// The service accepted the call, and the operation that it started failed.
    #[error("{what}: the operation {said}")]
    Operation {
        /// What was to be done.
        what: String,
        /// The service's own name of the failure.
        code: String,
        /// How it ended, for people.
        said: String,
        /// What the failure means.
        class: Class,
    },
    /// The operation that the call started has not ended in time; it may still end well.
    #[error("{what}: {state} after {}", humantime::format_duration(*limit))]
    Unfinished {
        /// What was to be done.
        what: String,
        /// How far it is: `not done`, `pending`.
        state: String,
        /// How long its end was awaited.
        limit: Duration,
    },
    /// An answer that does not have what it must have.
    #[error("{what}: {service} answered with {answer}")]
    Odd {
        /// What was to be done.
        what: String,
        /// The service as people call it.
        service: &'static str,
        /// What came: `no token`.
        answer: String,
    },
}

impl CallError {
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
