//! The outcome of a deliverable, location by location.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::select::Deliverable;
use crate::base::failure::Failure;

/// The state of a deliverable in its locations, after staging or after release.
///
/// After staging, `places` are complete and ready to be released, or were live before; after release, they are live.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Locations that have the deliverable, in configured order.
    pub places: Vec<Place>,
    /// Locations left alone because they hold a newer compose.
    pub superseded: Vec<Superseded>,
    /// Locations that failed.
    pub failed: Vec<Failed>,
    /// Locations that changed between staging and release, so that releasing what was staged would no longer be right.
    /// They are staged, and pass the gates, again.
    pub stale: Vec<String>,
    /// Locations that could not be looked at, because they failed or are not to be changed.
    pub unseen: BTreeSet<String>,
    /// The state of each location that staging relied on, in the provider's own words. Release compares it, and reports the
    /// location as stale where it is another.
    pub basis: BTreeMap<String, Vec<Option<String>>>,
    /// How long the locations that are ready have waited for those that failed.
    pub waited: Duration,
}

impl Outcome {
    /// The outcome of a release: everything that staging found, without its places.
    #[must_use]
    pub fn without_places(staged: Self) -> (Self, Vec<Place>) {
        let mut outcome = staged;
        let places = std::mem::take(&mut outcome.places);
        (outcome, places)
    }

    /// Adds the places that were live before and could not be looked at now.
    pub fn keep_unseen(&mut self, before: &Self, deliverable: &Deliverable) {
        let is_unseen = |place: &&Place| self.unseen.contains(&place.location);
        let kept: Vec<Place> = before.places.iter().filter(is_unseen).cloned().collect();
        self.places.extend(kept);
        self.sort(deliverable);
    }

    /// Orders the places as configured, which is the order of the notification.
    pub fn sort(&mut self, deliverable: &Deliverable) {
        let position = |place: &Place| {
            let locations = &mut deliverable.locations.iter();
            locations.position(|location| *location == place.location)
        };
        self.places.sort_by_key(position);
    }
}

/// A deliverable in one location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The location's configured name: a region, a registry's url, a folder.
    pub location: String,
    /// Its name at that location: an AMI id, a resource id, a digest, a path.
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
