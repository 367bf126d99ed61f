//! The exit codes of the process.
//!
//! The codes of a lost or refused broker are those of the fedora-messaging client, so that scripts around it keep working.

use crate::base::failure::Failure;
use crate::config::{Problem, Problems};
use crate::messaging::consumer::Obstacle;

/// Publishing failed.
pub const FAILED: u8 = 1;
/// A bad option or configuration, or an invalid message.
pub const USAGE: u8 = 2;

/// The code of each obstacle that ends the daemon.
#[must_use]
pub fn of_obstacle(obstacle: Obstacle) -> u8 {
    match obstacle {
        Obstacle::Certificate => USAGE,
        Obstacle::NotDeclared => 10,
        Obstacle::QueueGone => 12,
        Obstacle::HandshakeRefused => 14,
        Obstacle::ReadForbidden => 15,
    }
}

/// An error that ends the process, and the exit code.
#[derive(Debug)]
pub struct Stop {
    /// The exit code.
    pub code: u8,
    /// The error, whose text reads as a sentence of its own.
    pub error: anyhow::Error,
}

impl Stop {
    /// An error in the operator's input: a bad option or configuration, or an invalid message.
    #[must_use]
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: USAGE,
            error: error.into(),
        }
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self { code: FAILED, error }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        anyhow::anyhow!("failed to {failure}").into()
    }
}

/// Refuses a configuration with problems, all of them named.
///
/// # Errors
///
/// [`USAGE`], if there is any problem.
pub fn no_problems(problems: Vec<Problem>) -> Result<(), Stop> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Stop::usage(Problems::new(problems)))
}
