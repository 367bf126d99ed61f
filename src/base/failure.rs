//! Failures by the remedy they need, and the decision about a delivery.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The remedy that a failure needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Another attempt may help: throttling, a server error, a lost connection. `after` is the server's
    /// [`Retry-After`](https://www.rfc-editor.org/rfc/rfc9110#name-retry-after).
    Transient {
        /// The server asks for no attempt before this much time has passed.
        after: Option<Duration>,
    },
    /// No attempt can publish this one deliverable: a wrong checksum, a name that is taken.
    Deliverable,
    /// Nothing can be published here until an operator fixes it: refused credentials, a missing bucket.
    Everything,
}

impl Class {
    /// Transient, without a `Retry-After`.
    pub const TRANSIENT: Self = Self::Transient { after: None };

    /// The class of an HTTP answer that is not a success, for services without rules of their own.
    ///
    /// 408, 425, 429, and 5xx are transient; 401, 403, and 407 need an operator; the rest is this deliverable's own.
    #[must_use]
    pub fn of_status(status: u16, after: Option<Duration>) -> Self {
        match status {
            408 | 425 | 429 | 500..=599 => Self::Transient { after },
            401 | 403 | 407 => Self::Everything,
            _ => Self::Deliverable,
        }
    }

    /// Says whether another attempt may help.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Transient { .. })
    }
}

/// The most of a server's own words that an error repeats, in characters.
const QUOTED: usize = 500;

/// A server's own words, for an error: on one line, without control characters or a full stop at the end, and cut to a
/// length that an operator reads.
#[must_use]
pub fn quote(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    line.trim_end_matches(['.', ' '])
        .chars()
        .filter(|char| !char.is_control())
        .take(QUOTED)
        .collect()
}

/// ` (words)`, or nothing, of a server's own [words](quote).
#[must_use]
pub fn remark(words: &str) -> String {
    let words = quote(words);
    if words.is_empty() { words } else { format!(" ({words})") }
}

/// `: words`, or nothing, of a server's own [words](quote). More may follow: the sentence has no end.
#[must_use]
pub fn reason(words: &str) -> String {
    let words = quote(words);
    if words.is_empty() { words } else { format!(": {words}") }
}

/// An error that knows the remedy it needs. Every module's error enum that can reach the pipeline implements it, matching its
/// variants without a wildcard, so that a new variant forces a choice.
pub trait Classified: StdError + Send + Sync + 'static {
    /// The remedy that this error needs.
    fn class(&self) -> Class;
}

/// Any module's error on its way to the pipeline.
#[derive(Clone)]
pub struct Failure(Arc<dyn Classified>);

impl Failure {
    /// The remedy that the error needs.
    #[must_use]
    pub fn class(&self) -> Class {
        self.0.class()
    }

    /// The error as its module made it, with its sources.
    #[must_use]
    pub fn error(&self) -> &(dyn StdError + 'static) {
        &*self.0
    }
}

impl<E: Classified> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The whole chain, outermost first: `push fedora to quay.io: put blob sha256:…: connection reset`.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        chain(f, self.error())
    }
}

/// Writes an error and its sources, each once, separated by colons.
///
/// Libraries often repeat their source in their own text; a source whose text has just been written is left out.
fn chain(f: &mut fmt::Formatter<'_>, error: &dyn StdError) -> fmt::Result {
    let mut written = error.to_string();
    f.write_str(&written)?;
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !written.ends_with(&text) {
            write!(f, ": {text}")?;
            written = text;
        }
        next = source.source();
    }
    Ok(())
}

/// An error and its sources in one line.
pub struct Chain<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        chain(f, self.0)
    }
}

/// The decision about a delivery whose work has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Acknowledge: everything is published, or nothing had to be done.
    Ack,
    /// Reject without requeue, for a dead-letter exchange to catch: another delivery would fail, too.
    Drop,
    /// Put back into the queue after a pause: an operator has to fix something first.
    Requeue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_quoted_in_bounds() {
        assert_eq!(quote("not\r\n\x1b[31m yours. "), "not [31m yours");
        assert_eq!(quote(&"a".repeat(5000)).len(), QUOTED);
        assert_eq!((remark("no."), remark("\n")), (" (no)".to_owned(), String::new()));
        assert_eq!((reason("no."), reason("")), (": no".to_owned(), String::new()));
    }
}
