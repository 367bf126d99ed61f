//! A gate stands between stage and release: a deliverable becomes visible only after it has passed every gate.

use async_trait::async_trait;

use crate::base::failure::Failure;
use crate::model::outcome::Outcome;
use crate::model::select::Deliverable;

/// Decides whether a staged deliverable may be released.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Lets the deliverable pass to release. The call is safe to repeat: a redelivered message repeats it.
    ///
    /// # Errors
    ///
    /// The deliverable must not be released, or the gate could not decide.
    async fn pass(&self, deliverable: &Deliverable, staged: &Outcome) -> Result<(), Failure>;
}
