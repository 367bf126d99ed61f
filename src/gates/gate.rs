//! A gate stands between stage and release: nothing becomes visible that has not passed it.

use async_trait::async_trait;

use crate::base::failure::Failure;
use crate::model::outcome::Outcome;
use crate::model::select::Deliverable;

/// Looks at what was staged and lets it pass, or not.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Lets the deliverable pass to release. Safe to repeat: a redelivered message asks again.
    ///
    /// # Errors
    ///
    /// A deliverable that must not be released, or that could not be judged.
    async fn pass(&self, deliverable: &Deliverable, staged: &Outcome) -> Result<(), Failure>;
}
