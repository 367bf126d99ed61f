//! The capabilities of a provider, one trait for each. A capability that a provider lacks is absent, not a method
//! that does nothing.
//!
//! *Stage* looks first, adopts what exists, uploads under a private or temporary name, registers, and copies to every
//! location; the result is complete, and no part of it is visible to users. *Release* makes exactly that result visible
//! and re-reads the live state. Both are safe to repeat, need no local state, and continue with the other locations
//! when one fails.

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
    /// Removes the published things that the provider's retention policy retires.
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
    /// A failure of all locations alike, such as an image that differs from its metadata.
    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure>;

    /// Makes exactly the staged result visible and returns the state that a reader now sees.
    ///
    /// A location that has changed since, so that the release would no longer be right, is left unchanged and reported
    /// as [stale](Outcome::stale).
    ///
    /// # Errors
    ///
    /// A failure of all locations alike.
    async fn release(&self, deliverable: &Deliverable, staged: Outcome, task: &Task) -> Result<Outcome, Failure>;
}

/// Removes published things. Removal is never part of publishing: an announcement does not wait for it.
#[async_trait]
pub trait Retire: Send + Sync {
    /// Applies the retention policy to everything the provider published; with `dry_run`, only returns the decisions.
    ///
    /// # Errors
    ///
    /// A list could not be read in full. In that case, the policy removed nothing.
    async fn clean_up(&self, dry_run: bool) -> Result<Retired, Failure>;

    /// The interval at which the policy runs even without publications; with `None`, it runs only after a publication.
    fn interval(&self) -> Option<Duration>;
}

/// The inputs of a provider besides the deliverable: the images' bytes, and the operator's options.
#[derive(Debug, Clone)]
pub struct Task {
    /// Opens images.
    pub sources: Sources,
    /// The locations that may be changed; with `None`, all may. The provider reads the others nevertheless, since an
    /// announcement names every location that has the image.
    pub locations: Option<BTreeSet<String>>,
    /// Lets a container tag move back to an older compose.
    pub allow_older: bool,
    /// The longest time that ready locations wait for the others.
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

/// The decisions of a retention policy, with their results.
#[derive(Debug, Default)]
pub struct Retired {
    /// The decisions, one for each published thing that the policy looked at.
    pub decisions: Vec<Decision>,
}

impl Retired {
    /// Logs the removals that failed. The next run tries them again.
    pub fn warn(&self) {
        for Decision { name, action, reason } in &self.decisions {
            if let Action::Failed(failure) = action {
                tracing::warn!(name, reason, "{name} is left as it is: failed to {failure}");
            }
        }
    }
}

/// The decision of a retention policy about one published thing.
#[derive(Debug)]
pub struct Decision {
    /// The thing's name for people: `Fedora-Cloud-43-x64/43.20250901.2`.
    pub name: String,
    /// The action on the thing, with its result.
    pub action: Action,
    /// The reason in a few words: `past its end of life on 2025-12-09`.
    pub reason: String,
}

/// The action of a retention policy on one published thing.
#[derive(Debug)]
pub enum Action {
    /// The thing is kept.
    Stays,
    /// The run removed the thing; a dry run only reports that it would.
    Goes,
    /// The next run removes the thing: this run has removed as much as one run may.
    GoesLater,
    /// The policy retires the thing, but its removal failed.
    Failed(Failure),
}

/// One line of `check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The thing that was checked: `registry quay.io/fedora`.
    pub subject: String,
    /// The state that the check found; an error states the problem and its remedy.
    pub result: Result<String, String>,
}
