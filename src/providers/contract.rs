//! What a provider can do, one trait for each capability. A capability that a provider lacks is absent, not a method that
//! does nothing.
//!
//! *Stage* looks first, adopts what exists, uploads under a private or temporary name, registers, and copies to every
//! location: all of it complete, nothing of it visible to users. *Release* makes exactly that visible and re-reads what is
//! live. Both are safe to repeat, need no local state, and go on with the other locations when one fails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::base::failure::Failure;
use crate::images::source::{Source, Sources};
use crate::model::compose::Image;
use crate::model::outcome::Outcome;
use crate::model::select::Deliverable;

/// One cloud, the container registries, or a folder: its capabilities.
#[derive(Clone)]
pub struct Provider {
    /// Publishes deliverables.
    pub publish: Arc<dyn Publish>,
    /// Takes away what the provider's retention policy retires.
    pub retire: Option<Arc<dyn Retire>>,
}

/// Publishes deliverables.
#[async_trait]
pub trait Publish: Send + Sync {
    /// Proves credentials, permissions, and targets with cheap reads. Changes nothing.
    async fn check(&self) -> Vec<Finding>;

    /// Brings a deliverable to every location without showing it to users.
    ///
    /// A source is opened only if its bytes are needed. Locations that fail are in the result; the others are complete.
    ///
    /// # Errors
    ///
    /// What concerns all locations alike, such as an image that is not what its metadata says.
    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure>;

    /// Makes exactly what was staged visible and returns what a reader now sees.
    ///
    /// A location that has changed since, so that this would no longer be right, is left alone and
    /// [stale](Outcome::stale).
    ///
    /// # Errors
    ///
    /// What concerns all locations alike.
    async fn release(&self, deliverable: &Deliverable, staged: Outcome, task: &Task) -> Result<Outcome, Failure>;
}

/// Takes published things away. Never part of publishing: an announcement does not wait for it.
#[async_trait]
pub trait Retire: Send + Sync {
    /// Applies the retention policy to everything the provider published; with `dry_run` only says what it would do.
    ///
    /// # Errors
    ///
    /// A list that could not be read in full. Nothing was removed then.
    async fn clean_up(&self, dry_run: bool) -> Result<Retired, Failure>;

    /// How often the policy is due even if nothing is published; `None`: only after a publication.
    fn interval(&self) -> Option<Duration>;
}

/// What a provider needs besides the deliverable: the images' bytes, and what the operator asked for.
#[derive(Debug, Clone)]
pub struct Task {
    /// Opens images.
    pub sources: Sources,
    /// Only these locations are to be changed; all when `None`. The others are looked at all the same, since an
    /// announcement names every location that has the image.
    pub locations: Option<BTreeSet<String>>,
    /// Move a container tag back to an older compose.
    pub allow_older: bool,
    /// How long locations that are ready may wait for the others.
    pub patience: Duration,
}

impl Task {
    /// The bytes of an image.
    #[must_use]
    pub fn source(&self, image: &Image) -> Source {
        self.sources.source(image)
    }

    /// Whether this location may be changed.
    #[must_use]
    pub fn concerns(&self, location: &str) -> bool {
        self.locations.as_ref().is_none_or(|only| only.contains(location))
    }
}

/// What a retention policy decided, and what became of it.
#[derive(Debug, Default)]
pub struct Retired {
    /// One for each published thing that was looked at.
    pub decisions: Vec<Decision>,
}

impl Retired {
    /// Writes what failed to the log. The next run tries it again.
    pub fn warn(&self) {
        for Decision { name, action, reason } in &self.decisions {
            if let Action::Failed(failure) = action {
                tracing::warn!(name, reason, "{name} is left as it is: failed to {failure}");
            }
        }
    }
}

/// What a retention policy decided about one published thing.
#[derive(Debug)]
pub struct Decision {
    /// What people call it: `Fedora-Cloud-43-x64/43.20250901.2`.
    pub name: String,
    /// What becomes of it.
    pub action: Action,
    /// Why, in a few words: `past its end of life on 2025-12-09`.
    pub reason: String,
}

/// What becomes of a published thing.
#[derive(Debug)]
pub enum Action {
    /// It stays.
    Stays,
    /// It was removed; in a dry run, it would have been.
    Goes,
    /// It is to be removed by the next run: this one has removed as much as one may.
    GoesLater,
    /// It should be gone, and could not be removed.
    Failed(Failure),
}

/// One line of `check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `registry quay.io/fedora`.
    pub subject: String,
    /// What was found, or what is wrong and what to do about it.
    pub result: Result<String, String>,
}
