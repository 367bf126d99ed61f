//! Stands in for e-mails in a build without the feature `mail`: a configuration that asks for them is refused.

use tracing::Subscriber;
use tracing_subscriber::Layer;

use crate::config::logging::Mail;

/// A layer of the log that does nothing.
pub struct Mails;

/// The background tasks of a build that sends e-mails; this one has none.
pub struct Sending;

impl Mails {
    /// The layer, if no e-mails are configured.
    ///
    /// # Errors
    ///
    /// Any handler that sends e-mails.
    pub fn new(config: &[Mail]) -> Result<(Self, Sending), Error> {
        if config.is_empty() {
            Ok((Self, Sending))
        } else {
            Err(Error::LeftOut)
        }
    }
}

impl Sending {
    /// Returns at once.
    pub async fn finish(self) {}
}

impl<S: Subscriber> Layer<S> for Mails {}

/// The configuration asks for e-mails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This build cannot send them.
    #[error(
        "send e-mails: this build lacks the feature `mail`, so log_config must have no logging.handlers.SMTPHandler"
    )]
    LeftOut,
}
