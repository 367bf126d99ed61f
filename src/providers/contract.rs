//! The contract of every provider: stage, then release.
//!
//! *Stage* looks first, adopts what exists, uploads under a private or temporary name, registers, and copies to every
//! location: all of it complete, nothing of it visible to users. *Release* makes it visible and re-reads what is live.
//! Both are safe to repeat, need no local state, and go on with the other locations when one fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::civil::Date;
use serde::Serialize;

use crate::base::failure::{Class, Classified, Failure};
use crate::config::{self, Environment};
use crate::images::source::{Source, Sources};
use crate::model::compose::Image;
use crate::model::select::Deliverable;

/// Publishes deliverables in one place: a cloud, the container registries, or a folder.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Proves credentials, permissions, and targets with cheap reads. Changes nothing.
    async fn check(&self) -> Vec<Finding>;

    /// Brings a deliverable to every location without showing it to users.
    ///
    /// A source is opened only if its bytes are needed. Locations that fail are in the result; the others are complete.
    ///
    /// # Errors
    ///
    /// What concerns all locations alike, such as an image that is not what its metadata says.
    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Staged, Failure>;

    /// Makes what was staged visible and returns what a reader now sees.
    ///
    /// # Errors
    ///
    /// What concerns all locations alike.
    async fn release(&self, deliverable: &Deliverable, staged: Staged, task: &Task) -> Result<Publication, Failure>;

    /// Applies the provider's retention policy to everything it published; with `dry_run` only tells what it would do.
    ///
    /// A provider without such a policy has nothing to retire.
    ///
    /// # Errors
    ///
    /// A list that could not be read in full. Nothing was removed then.
    async fn clean_up(&self, dry_run: bool) -> Result<Retired, Failure> {
        let _ = dry_run;
        Ok(Retired::default())
    }

    /// How often the retention policy is to be run while nothing is published; never when `None`.
    fn upkeep_interval(&self) -> Option<Duration> {
        None
    }
}

/// The provider of a configuration.
///
/// # Errors
///
/// Credentials that are missing or cannot be read, or a provider that this build leaves out.
pub fn build(section: &config::Provider, environment: &Environment) -> Result<Arc<dyn Provider>, Failure> {
    // Not every set of features has a provider that reads the environment.
    let _ = environment;
    match section {
        #[cfg(feature = "aws")]
        config::Provider::Aws(section) => Ok(Arc::new(super::aws::AwsProvider::new(section, environment))),
        #[cfg(feature = "azure")]
        config::Provider::Azure(section) => Ok(Arc::new(super::azure::AzureProvider::new(section, environment)?)),
        #[cfg(feature = "container")]
        config::Provider::Container(section) => Ok(Arc::new(super::container::ContainerProvider::new(
            section,
            environment,
        )?)),
        #[cfg(feature = "gcp")]
        config::Provider::Gcp(section) => Ok(Arc::new(super::gcp::GcpProvider::new(section, environment)?)),
        #[cfg(feature = "local")]
        config::Provider::Local(section) => Ok(Arc::new(super::local::LocalProvider::new(section))),
        #[allow(unreachable_patterns, reason = "a build with every client leaves none out")]
        other => Err(Absent(other.name()).into()),
    }
}

/// Runs the provider's retention policy at once and then after each interval, also when no image comes.
pub async fn upkeep(provider: Arc<dyn Provider>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        match provider.clean_up(false).await {
            Ok(retired) => retired.warn(),
            Err(failure) => tracing::warn!("nothing was retired: failed to {failure}"),
        }
    }
}

/// A provider that this build leaves out.
#[derive(Debug, thiserror::Error)]
#[error("publish to {0}: this build has no client for it")]
struct Absent(&'static str);

impl Classified for Absent {
    fn class(&self) -> Class {
        Class::Everything
    }
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

/// What is complete, and not yet visible.
#[derive(Debug, Default)]
pub struct Staged {
    /// Locations that are ready to be released, or were live before.
    pub places: Vec<Place>,
    /// Locations left alone because they hold a newer compose.
    pub superseded: Vec<Superseded>,
    /// Locations that failed.
    pub failed: Vec<Failed>,
    /// How long those that are ready have waited for those that failed.
    pub waited: Duration,
    /// Locations that could not be looked at, whether they failed or are not to be changed.
    pub unseen: BTreeSet<String>,
}

/// What users can see.
#[derive(Debug, Default)]
pub struct Publication {
    /// Locations that have the deliverable, in configured order.
    pub places: Vec<Place>,
    /// Locations left alone because they hold a newer compose.
    pub superseded: Vec<Superseded>,
    /// Locations that failed.
    pub failed: Vec<Failed>,
    /// As in [`Staged`].
    pub unseen: BTreeSet<String>,
}

impl Publication {
    /// Adds the places that were live before and could not be looked at now.
    pub(crate) fn keep(&mut self, before: &Self, deliverable: &Deliverable) {
        let is_unseen = |place: &&Place| self.unseen.contains(&place.location);
        let kept: Vec<Place> = before.places.iter().filter(is_unseen).cloned().collect();
        self.places.extend(kept);
        in_order(&mut self.places, deliverable);
    }
}

/// A deliverable in one location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The location's configured name: a region, a registry's url, a folder.
    pub location: String,
    /// What it is called there: an AMI id, a resource id, a digest, a path.
    pub id: String,
    /// Whether this process made it.
    pub origin: Origin,
}

/// Where a published thing came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It was there, complete, before anything was done.
    Found,
    /// This process made or completed it.
    Created,
}

/// Orders places as configured, which is the order of the notification.
pub(crate) fn in_order(places: &mut [Place], deliverable: &Deliverable) {
    places.sort_by_key(|place| {
        deliverable
            .locations
            .iter()
            .position(|location| *location == place.location)
    });
}

/// A location that already has something newer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superseded {
    /// The location's configured name.
    pub location: String,
    /// The compose it holds.
    pub by: String,
}

/// A location that could not be completed.
#[derive(Debug)]
pub struct Failed {
    /// The location's configured name.
    pub location: String,
    /// Why.
    pub failure: Failure,
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

/// Whose images these are. Another owner in a mark means hands off.
pub const OWNER: &str = "cloud-image-uploader";

/// Before each name of a mark among the annotations of a container image.
pub const ANNOTATIONS: &str = "org.fedoraproject.cloud-image-uploader.";

/// What identifies a published image, encoded as tags, labels, or annotations, as each provider allows.
///
/// It is plain text that an operator can read and edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The compose it came from.
    pub compose_id: String,
    /// SHA-256 of the image file as stored in the compose, in hex; none on what holds several images.
    pub image_sha256: Option<String>,
    /// The compose's stage, as in topics.
    pub stage: String,
    /// When the release goes out of support.
    pub end_of_life: Option<Date>,
    /// Who looks after it.
    pub owner: String,
}

impl Mark {
    /// The mark of one of a deliverable's images, or of all of them together.
    #[must_use]
    pub fn of(deliverable: &Deliverable, image: Option<&Image>) -> Self {
        Self {
            compose_id: deliverable.compose.to_string(),
            image_sha256: image.map(|image| image.sha256.clone()),
            stage: deliverable.release.stage.to_string(),
            end_of_life: deliverable.release.end_of_life,
            owner: OWNER.to_owned(),
        }
    }

    /// The mark as names and values, each name with `prefix`.
    #[must_use]
    pub fn encode(&self, prefix: &str) -> BTreeMap<String, String> {
        let end_of_life = self.end_of_life.map(|date| date.to_string());
        [
            ("compose-id", Some(self.compose_id.clone())),
            ("image-sha256", self.image_sha256.clone()),
            ("stage", Some(self.stage.clone())),
            ("end-of-life", end_of_life),
            ("owner", Some(self.owner.clone())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((format!("{prefix}{name}"), value?)))
        .collect()
    }

    /// The mark among names and values; `None` where there is none of ours.
    #[must_use]
    pub fn decode(prefix: &str, values: &BTreeMap<String, String>) -> Option<Self> {
        let value = |name: &str| values.get(&format!("{prefix}{name}")).cloned();
        Some(Self {
            compose_id: value("compose-id")?,
            image_sha256: value("image-sha256"),
            stage: value("stage").unwrap_or_default(),
            end_of_life: value("end-of-life").and_then(|date| date.parse().ok()),
            owner: value("owner")?,
        })
    }
}
