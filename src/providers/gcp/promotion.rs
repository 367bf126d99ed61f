//! Promotion: the choice of the image that is the head of its family.
//!
//! New images are deprecated, so users who name the family do not get them. When the head is old enough, the newest image
//! of a minimum age becomes the head, and the previous head is deprecated with it as its replacement: in this order, so that
//! the family always has a head. A label holds the time of a promotion, since the program keeps no local state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::inventory::{OwnedImage, Owner, State};
use crate::config::gcp::Gcp;

/// The settings of promotion and clean-up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) promotion_interval: SignedDuration,
    pub(super) promotion_minimum_age: SignedDuration,
    pub(super) delete_deprecated_after: SignedDuration,
    pub(super) clean_up_unmarked: bool,
}

impl Rules {
    pub(super) fn of(section: &Gcp) -> Self {
        // Durations beyond the type's range never end in practice.
        let signed = |duration: Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        Self {
            promotion_interval: signed(section.promotion_interval),
            promotion_minimum_age: signed(section.promotion_minimum_age),
            delete_deprecated_after: signed(section.delete_deprecated_after),
            clean_up_unmarked: section.clean_up_unmarked,
        }
    }
}

/// The change of a family's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Promotion {
    pub(super) family: String,
    /// The head from now on.
    pub(super) head: String,
    /// The head is not active yet. Otherwise an earlier promotion ended half-way, and only `demoted` remain.
    pub(super) is_new: bool,
    /// The active images that are deprecated afterwards.
    pub(super) demoted: Vec<String>,
}

/// The promotions that are due now, at most one for each family.
pub(super) fn promotions(images: &[OwnedImage], rules: &Rules, now: Timestamp) -> Vec<Promotion> {
    let mut families: BTreeMap<&str, Vec<&OwnedImage>> = BTreeMap::new();
    for image in images {
        if let Some(family) = &image.family {
            families.entry(family).or_default().push(image);
        }
    }
    families
        .into_iter()
        .filter_map(|(family, images)| promotion(family, &images, rules, now))
        .collect()
}

fn promotion(family: &str, images: &[&OwnedImage], rules: &Rules, now: Timestamp) -> Option<Promotion> {
    let may_change = |image: &OwnedImage| image.hands_off(rules.clean_up_unmarked).is_none();
    let active = || images.iter().filter(|image| image.state == State::Active);
    let newest = |image: &&&OwnedImage| (image.compose, image.created);
    let head = active().max_by_key(newest);
    let is_due = head.is_none_or(|head| {
        let since = head.promoted.unwrap_or(head.created);
        now.duration_since(since) >= rules.promotion_interval
    });
    let next = images
        .iter()
        // Images of the previous service do not say whether they are prereleases.
        .filter(|image| matches!(image.state, State::Deprecated(_)) && image.owner == Owner::Ours)
        .filter(|image| !image.is_prerelease && !image.is_past_end_of_life(now))
        .filter(|image| now.duration_since(image.created) >= rules.promotion_minimum_age)
        .max_by_key(newest)
        // A family never returns to an older compose.
        .filter(|next| is_due && head.is_none_or(|head| next.compose > head.compose));
    let (head, is_new) = match (next, head) {
        (Some(next), _) => (next, true),
        // An earlier promotion may have ended half-way.
        (None, Some(head)) if may_change(head) => (head, false),
        (None, _) => return None,
    };
    let demoted: Vec<_> = active()
        .filter(|image| may_change(image) && image.id != head.id)
        .map(|image| image.name.clone())
        .collect();
    (is_new || !demoted.is_empty()).then(|| Promotion {
        family: family.to_owned(),
        head: head.name.clone(),
        is_new,
        demoted,
    })
}

/// Changes the images as the promotion changes them in the cloud.
pub(super) fn apply(promotion: &Promotion, images: &mut [OwnedImage], now: Timestamp) {
    for image in images {
        if image.name == promotion.head && promotion.is_new {
            image.state = State::Active;
            image.promoted = Some(now);
        } else if promotion.demoted.contains(&image.name) {
            image.state = State::Deprecated(Some(now));
        }
    }
}

/// The numbers of all families' heads, by the service's own rule: the active image that was created last.
pub(super) fn heads(images: &[OwnedImage]) -> BTreeSet<u64> {
    let mut heads: BTreeMap<&str, &OwnedImage> = BTreeMap::new();
    for image in images.iter().filter(|image| image.state == State::Active) {
        if let Some(family) = &image.family {
            let head = heads.entry(family).or_insert(image);
            if image.created > head.created {
                *head = image;
            }
        }
    }
    heads.into_values().map(|image| image.id).collect()
}

#[cfg(test)]
impl Rules {
    /// The default settings.
    pub(super) fn sample() -> Self {
        let days = |days: i64| SignedDuration::from_hours(24 * days);
        Self {
            promotion_interval: days(14),
            promotion_minimum_age: days(1),
            delete_deprecated_after: days(14),
            clean_up_unmarked: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::ownership::HandsOff;

    fn now(day: i64) -> Timestamp {
        OwnedImage::sample("", day).created + SignedDuration::from_hours(1)
    }

    /// An active image, promoted on day `promoted`.
    fn head(name: &str, day: i64, promoted: i64) -> OwnedImage {
        OwnedImage {
            state: State::Active,
            promoted: Some(now(promoted)),
            ..OwnedImage::sample(name, day)
        }
    }

    /// The promotions of day 30 as `head < demoted`; a new head has a `+`.
    fn done(images: &[OwnedImage], rules: &Rules) -> Vec<String> {
        let show = |promotion: Promotion| {
            let sign = if promotion.is_new { "+" } else { "" };
            format!("{sign}{} < {}", promotion.head, promotion.demoted.join(" "))
                .trim_end_matches([' ', '<'])
                .to_owned()
        };
        promotions(images, rules, now(30)).into_iter().map(show).collect()
    }

    #[test]
    fn the_newest_image_that_may_become_the_head_does() {
        let waiting = OwnedImage::sample;
        let with = |image: OwnedImage, change: fn(&mut OwnedImage)| {
            let mut image = image;
            change(&mut image);
            image
        };
        let foreign = |image: &mut OwnedImage| image.owner = Owner::Other(HandsOff::Owner("CoreOS".to_owned()));
        let table: Vec<(&str, Vec<OwnedImage>, &[&str])> = vec![
            ("an empty project", vec![], &[]),
            ("the first one", vec![waiting("a", 20)], &["+a"]),
            (
                "the newest of several",
                vec![waiting("a", 20), waiting("c", 22), waiting("b", 21)],
                &["+c"],
            ),
            ("too new", vec![waiting("a", 30)], &[]),
            (
                "too new, so the one before",
                vec![waiting("a", 25), waiting("b", 30)],
                &["+a"],
            ),
            ("due", vec![head("a", 10, 15), waiting("b", 20)], &["+b < a"]),
            ("not due yet", vec![head("a", 10, 18), waiting("b", 20)], &[]),
            ("nothing newer", vec![head("a", 10, 11), waiting("b", 9)], &[]),
            (
                "a prerelease",
                vec![with(waiting("a", 20), |image| image.is_prerelease = true)],
                &[],
            ),
            (
                "past its end of life",
                vec![with(waiting("a", 20), |image| {
                    image.end_of_life = "2025-01-29".parse().ok()
                })],
                &[],
            ),
            ("another owner's", vec![with(waiting("a", 20), foreign)], &[]),
            (
                "to be kept",
                vec![with(waiting("a", 20), |image| {
                    image.owner = Owner::Other(HandsOff::Kept)
                })],
                &[],
            ),
            (
                "withdrawn by an operator",
                vec![with(waiting("a", 20), |image| image.state = State::Withdrawn)],
                &[],
            ),
            (
                "not released",
                vec![with(waiting("a", 20), |image| image.family = None)],
                &[],
            ),
            (
                "half-way: the previous head is still active",
                vec![head("a", 10, 10), head("b", 20, 29)],
                &["b < a"],
            ),
            (
                "a head of another owner's stays and is not replaced by an older one",
                vec![with(head("x", 25, 10), foreign), waiting("a", 20)],
                &[],
            ),
            (
                "a head of another owner's stays beside a newer one",
                vec![with(head("x", 10, 10), foreign), waiting("a", 20)],
                &["+a"],
            ),
            (
                "a head without a time of promotion counts from its creation",
                vec![with(head("a", 20, 0), |image| image.promoted = None), waiting("b", 25)],
                &[],
            ),
        ];
        for (what, images, expected) in table {
            assert_eq!(done(&images, &Rules::sample()), expected, "{what}");
        }
    }

    #[test]
    fn images_of_the_previous_service_are_changed_only_if_that_is_set() {
        let unmarked = |image| OwnedImage {
            owner: Owner::Unmarked,
            ..image
        };
        let previous = "fedora-cloud-40-1-14-x86-64";
        let images = [unmarked(head(previous, 10, 10)), OwnedImage::sample("b", 20)];
        assert_eq!(done(&images, &Rules::sample()), ["+b"]);
        let rules = Rules {
            clean_up_unmarked: true,
            ..Rules::sample()
        };
        assert_eq!(done(&images, &rules), [format!("+b < {previous}")]);
        let by_others = [unmarked(head("builder-7", 10, 10)), OwnedImage::sample("b", 20)];
        assert_eq!(done(&by_others, &rules), ["+b"]);
        let never_promoted = [unmarked(OwnedImage::sample(previous, 25))];
        assert_eq!(done(&never_promoted, &rules), [""; 0]);
    }

    #[test]
    fn each_family_has_its_own_promotion() {
        let other = OwnedImage {
            family: Some("g".to_owned()),
            ..OwnedImage::sample("x", 21)
        };
        assert_eq!(
            done(&[OwnedImage::sample("a", 20), other], &Rules::sample()),
            ["+a", "+x"]
        );
    }
}
