//! The project's images as promotion and clean-up see them.

use google_cloud_compute_v1::model;
use google_cloud_compute_v1::model::deprecation_status::State as Deprecation;
use google_cloud_compute_v1::model::image::Status;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::labels;
use crate::model::compose::release::Stage;
use crate::providers::ownership::HandsOff;

/// The prefix of the previous service's image names and of ours. The project may have images of other teams.
const PREFIX: &str = "fedora-cloud-";

/// An image of the project, with the owner that its labels name.
#[derive(Debug, Clone)]
pub(super) struct OwnedImage {
    pub(super) name: String,
    pub(super) id: u64,
    /// The address that a deprecated image names as its replacement.
    pub(super) url: String,
    pub(super) family: Option<String>,
    pub(super) created: Timestamp,
    /// Orders images by their content.
    pub(super) compose: ComposeDate,
    pub(super) state: State,
    pub(super) owner: Owner,
    /// It belongs to a branched release or a beta.
    pub(super) is_prerelease: bool,
    pub(super) end_of_life: Option<Date>,
    /// The time at which it became the head of its family; `None` where no label has it.
    pub(super) promoted: Option<Timestamp>,
}

/// The images of a list, and those that cannot be read.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) images: Vec<OwnedImage>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// An image without a field that promotion and clean-up need. Its family is left as it is: the image may be its head.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) name: String,
    pub(super) family: Option<String>,
    /// The field that is missing: `a number`.
    pub(super) lacks: &'static str,
}

impl Inventory {
    /// Reads a complete list of the project's images.
    pub(super) fn of(list: &[model::Image]) -> Self {
        let mut inventory = Self::default();
        for image in list {
            match OwnedImage::of(image) {
                Ok(image) => inventory.images.push(image),
                Err(lacks) => inventory.unreadable.push(Unreadable {
                    name: image
                        .name
                        .clone()
                        .unwrap_or_else(|| "an image without a name".to_owned()),
                    family: image.family.clone().filter(|family| !family.is_empty()),
                    lacks,
                }),
            }
        }
        inventory
    }
}

/// The date and respin of an image's compose. For images without a mark, the day of their creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ComposeDate {
    /// The digits `20251023` as a number.
    date: u32,
    respin: u32,
}

/// An image's state, from its status and its deprecation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It can be the head of its family.
    Active,
    /// It cannot be the head, since this time.
    Deprecated(Option<Timestamp>),
    /// An operator withdrew it: it is obsolete, or marked as deleted, or in a state that we do not know.
    Withdrawn,
    /// Its import failed.
    Failed,
    /// It is being created or deleted.
    Unready,
}

/// The owner of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// This program.
    Ours,
    /// Unknown, since it has no mark: perhaps the previous service.
    Unmarked,
    /// Another owner, or an operator who keeps it.
    Other(HandsOff),
}

impl OwnedImage {
    /// Reads an image of a list. The error is the field that is missing.
    fn of(image: &model::Image) -> Result<Self, &'static str> {
        let image = image.clone();
        let name = image.name.filter(|name| !name.is_empty()).ok_or("a name")?;
        let created = image.creation_timestamp.as_deref().unwrap_or_default();
        let created: Timestamp = created.parse().map_err(|_| "a time of creation")?;
        let id = image.id.ok_or("a number")?;
        let mark = labels::decode(&image.labels);
        let owner = match labels::hands_off(&image.labels) {
            Some(hands_off) => Owner::Other(hands_off),
            None if mark.is_some() => Owner::Ours,
            None => Owner::Unmarked,
        };
        let state = match &image.status {
            Some(Status::Ready) => deprecation(image.deprecated.as_ref()),
            Some(Status::Failed) => State::Failed,
            _ => State::Unready,
        };
        let prereleases = [Stage::Branched, Stage::Beta].map(|stage| stage.to_string());
        Ok(Self {
            compose: mark
                .as_ref()
                .and_then(|mark| ComposeDate::of_compose(&mark.compose_id))
                .unwrap_or_else(|| ComposeDate::of_day(created)),
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

    /// The reason to leave it alone; `None` if it may be changed. `unmarked` is the setting `clean_up_unmarked`.
    pub(super) fn hands_off(&self, unmarked: bool) -> Option<String> {
        match &self.owner {
            Owner::Ours => None,
            Owner::Unmarked if !unmarked => Some("it has no mark of this program".to_owned()),
            Owner::Unmarked if self.name.starts_with(PREFIX) => None,
            Owner::Unmarked => Some(format!(
                "it has no mark of this program, and its name does not begin with {PREFIX}"
            )),
            Owner::Other(hands_off) => Some(labels::reason(hands_off)),
        }
    }

    /// Its release is out of support.
    pub(super) fn is_past_end_of_life(&self, now: Timestamp) -> bool {
        self.end_of_life
            .is_some_and(|end| end < now.to_zoned(TimeZone::UTC).date())
    }
}

/// The state of a ready image. Both an absent deprecation and one of state ACTIVE mean active.
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

/// A ready image would be the head of its family, or might: a state of deprecation that we do not know proves nothing.
pub(super) fn may_be_head(image: &model::Image) -> bool {
    let state = image.deprecated.as_ref().and_then(|status| status.state.as_ref());
    !matches!(
        state,
        Some(Deprecation::Deprecated | Deprecation::Obsolete | Deprecation::Deleted)
    )
}

impl ComposeDate {
    /// Reads a compose id in the form of a label, `fedora-43-20251023_0`: its date and its last number.
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
impl OwnedImage {
    /// An image of ours in family `f`, deprecated at its creation, `day` days after the first of January.
    pub(super) fn sample(name: &str, day: i64) -> Self {
        let first: Timestamp = "2025-01-01T06:00:00Z".parse().unwrap();
        let created = first + jiff::SignedDuration::from_hours(24 * day);
        Self {
            name: name.to_owned(),
            id: created.as_second().unsigned_abs(),
            url: format!("https://example.org/{name}"),
            family: Some("f".to_owned()),
            created,
            compose: ComposeDate::of_day(created),
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
        let date = |id| ComposeDate::of_compose(id).unwrap();
        let ids = [
            "fedora-rawhide-20240829_n_1",
            "fedora-rawhide-20240829_n_12",
            "fedora-cloud-43-20251023_0",
            "fedora-43-20251023_1",
            "fedora-eln-20251101_n_0",
        ];
        assert!(ids.is_sorted_by(|a, b| date(a) < date(b)));
        for id in ["", "fedora-43", "fedora-43-20251023", "fedora-43-2025_0"] {
            assert_eq!(ComposeDate::of_compose(id), None, "{id}");
        }
    }
}
