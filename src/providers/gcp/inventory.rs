//! The project's images as the policies see them.

use google_cloud_compute_v1::model;
use google_cloud_compute_v1::model::deprecation_status::State as Deprecation;
use google_cloud_compute_v1::model::image::Status;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::error::Error;
use super::labels;
use crate::model::compose::release::Stage;
use crate::model::mark::OWNER;

/// What the names of the former service's images begin with, as ours do. The project may have others of other people.
const FORMER: &str = "fedora-cloud-";

/// An image of the project, whoever made it.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) id: u64,
    /// Its address.
    pub(super) url: String,
    pub(super) family: Option<String>,
    pub(super) created: Timestamp,
    /// How new its content is.
    pub(super) age: Age,
    pub(super) state: State,
    pub(super) owner: Owner,
    /// Whether it comes before a release.
    pub(super) is_prerelease: bool,
    pub(super) end_of_life: Option<Date>,
    /// When it became the head of its family, where that is known.
    pub(super) promoted: Option<Timestamp>,
}

/// Orders images by the compose they are of: date, then respin. For images without a mark it is the day they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age {
    /// The date's digits as a number.
    date: u32,
    respin: u32,
}

/// What can be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It can be the head of its family.
    Active,
    /// It cannot, since then.
    Deprecated(Option<Timestamp>),
    /// An operator pulled it: it is obsolete, or marked as deleted.
    Withdrawn,
    /// Its import failed.
    Failed,
    /// It is being made or unmade.
    Unready,
}

/// Who looks after an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// This program.
    Ours,
    /// Nobody says so: perhaps the former service.
    Unmarked,
    /// Somebody else.
    Other(String),
    /// This program, but an operator wants it kept.
    Kept,
}

impl Held {
    /// Reads an image of a list.
    pub(super) fn of(image: model::Image) -> Result<Self, Error> {
        let name = image.name.unwrap_or_default();
        let strange = |what: &str| Error::odd(&format!("read image {name} of the list"), what);
        let created = image.creation_timestamp.as_deref().unwrap_or_default();
        let created: Timestamp = created.parse().map_err(|_| strange("no time of creation"))?;
        let id = image.id.ok_or_else(|| strange("no number"))?;
        let mark = labels::decode(&image.labels);
        let owner = match image.labels.get(labels::OWNER) {
            _ if labels::is_kept(&image.labels) => Owner::Kept,
            Some(owner) if owner != OWNER => Owner::Other(owner.clone()),
            _ if mark.is_some() => Owner::Ours,
            _ => Owner::Unmarked,
        };
        let state = match &image.status {
            Some(Status::Ready) => deprecation(image.deprecated.as_ref()),
            Some(Status::Failed) => State::Failed,
            _ => State::Unready,
        };
        let prereleases = [Stage::Branched, Stage::Beta].map(|stage| stage.to_string());
        Ok(Self {
            age: mark
                .as_ref()
                .and_then(|mark| Age::of_compose(&mark.compose_id))
                .unwrap_or_else(|| Age::of_day(created)),
            is_prerelease: mark.as_ref().is_some_and(|mark| prereleases.contains(&mark.stage)),
            end_of_life: mark.and_then(|mark| mark.end_of_life),
            promoted: image
                .labels
                .get(labels::PROMOTED)
                .and_then(|text| labels::parse_time(text)),
            url: image.self_link.unwrap_or_default(),
            family: image.family.filter(|family| !family.is_empty()),
            name,
            id,
            created,
            state,
            owner,
        })
    }

    /// Why it may not be changed; `None` if it may. `unmarked` is the setting `clean_up_unmarked`.
    pub(super) fn hands_off(&self, unmarked: bool) -> Option<String> {
        match &self.owner {
            Owner::Ours => None,
            Owner::Unmarked if !unmarked => Some("it has no mark of this program".to_owned()),
            Owner::Unmarked if self.name.starts_with(FORMER) => None,
            Owner::Unmarked => Some(format!(
                "it has no mark of this program, and its name does not begin with {FORMER}"
            )),
            Owner::Other(owner) => Some(format!("it belongs to {owner}")),
            Owner::Kept => Some("its label says delete=never".to_owned()),
        }
    }

    /// Whether its release is out of support.
    pub(super) fn is_past_end_of_life(&self, now: Timestamp) -> bool {
        self.end_of_life
            .is_some_and(|end| end < now.to_zoned(TimeZone::UTC).date())
    }
}

/// Whether an image that is ready can be its family's head; also one that says of itself that it is active can.
pub(super) fn deprecation(status: Option<&model::DeprecationStatus>) -> State {
    let Some(status) = status else { return State::Active };
    match &status.state {
        None | Some(Deprecation::Active) => State::Active,
        Some(Deprecation::Deprecated) => {
            State::Deprecated(status.deprecated.as_deref().and_then(|since| since.parse().ok()))
        }
        Some(_) => State::Withdrawn,
    }
}

impl Age {
    /// From a compose id as a label has it, `fedora-43-20251023_0`: its date and its last number.
    fn of_compose(id: &str) -> Option<Self> {
        let mut parts = id
            .split(['-', '_'])
            .skip_while(|part| part.len() != 8 || part.parse::<u32>().is_err());
        Some(Self {
            date: parts.next()?.parse().ok()?,
            respin: parts.last()?.parse().ok()?,
        })
    }

    fn of_day(at: Timestamp) -> Self {
        let digits = at.strftime("%Y%m%d").to_string();
        Self {
            date: digits.parse().unwrap_or_default(),
            respin: 0,
        }
    }
}

#[cfg(test)]
impl Held {
    /// An image of ours in family `f`, deprecated when it was made, some days after the first of January.
    pub(super) fn sample(name: &str, day: i64) -> Self {
        let first: Timestamp = "2025-01-01T06:00:00Z".parse().unwrap();
        let created = first + jiff::SignedDuration::from_hours(24 * day);
        Self {
            name: name.to_owned(),
            id: created.as_second().unsigned_abs(),
            url: format!("https://example.org/{name}"),
            family: Some("f".to_owned()),
            created,
            age: Age::of_day(created),
            state: State::Deprecated(Some(created)),
            owner: Owner::Ours,
            is_prerelease: false,
            end_of_life: None,
            promoted: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composes_are_ordered_by_date_and_respin() {
        let age = |id| Age::of_compose(id).unwrap();
        let ids = [
            "fedora-rawhide-20240829_n_1",
            "fedora-rawhide-20240829_n_12",
            "fedora-cloud-43-20251023_0",
            "fedora-43-20251023_1",
            "fedora-eln-20251101_n_0",
        ];
        assert!(ids.is_sorted_by(|a, b| age(a) < age(b)));
        for id in ["", "fedora-43", "fedora-43-20251023", "fedora-43-2025_0"] {
            assert_eq!(Age::of_compose(id), None, "{id}");
        }
    }
}
