//! Which image is its family's head.
//!
//! New images are deprecated, so nobody gets them by the family. Every so often the newest one that has been there for a
//! while becomes the head, and the former head is deprecated with it as replacement: first the one, then the other, so
//! that the family is never without a head. When that happened is a label, since no local state is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::inventory::{Held, Owner, State};
use crate::config::gcp::Gcp;

/// The settings of both policies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) promotion_interval: SignedDuration,
    pub(super) promotion_minimum_age: SignedDuration,
    pub(super) delete_deprecated_after: SignedDuration,
    pub(super) clean_up_unmarked: bool,
}

impl Rules {
    pub(super) fn of(section: &Gcp) -> Self {
        // What does not fit is longer than anybody waits.
        let signed = |duration: Duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        Self {
            promotion_interval: signed(section.promotion_interval),
            promotion_minimum_age: signed(section.promotion_minimum_age),
            delete_deprecated_after: signed(section.delete_deprecated_after),
            clean_up_unmarked: section.clean_up_unmarked,
        }
    }
}

/// What is to be done with a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) family: String,
    /// Its head from now on.
    pub(super) head: String,
    /// Whether it is not the head yet.
    pub(super) is_new: bool,
    /// Those that are deprecated then.
    pub(super) former: Vec<String>,
}

/// What is to be done now.
pub(super) fn turns(images: &[Held], rules: &Rules, now: Timestamp) -> Vec<Turn> {
    let mut families: BTreeMap<&str, Vec<&Held>> = BTreeMap::new();
    for image in images {
        if let Some(family) = &image.family {
            families.entry(family).or_default().push(image);
        }
    }
    families
        .into_iter()
        .filter_map(|(family, images)| turn(family, &images, rules, now))
        .collect()
}

fn turn(family: &str, images: &[&Held], rules: &Rules, now: Timestamp) -> Option<Turn> {
    let may_change = |image: &Held| image.hands_off(rules.clean_up_unmarked).is_none();
    let active = || images.iter().filter(|image| image.state == State::Active);
    let newest = |image: &&&Held| (image.age, image.created);
    let head = active().max_by_key(newest);
    let is_due = head.is_none_or(|head| {
        let since = head.promoted.unwrap_or(head.created);
        now.duration_since(since) >= rules.promotion_interval
    });
    let next = images
        .iter()
        // Of what the former service made nobody knows whether it comes before a release.
        .filter(|image| matches!(image.state, State::Deprecated(_)) && image.owner == Owner::Ours)
        .filter(|image| !image.is_prerelease && !image.is_past_end_of_life(now))
        .filter(|image| now.duration_since(image.created) >= rules.promotion_minimum_age)
        .max_by_key(newest)
        // Never back to an older compose.
        .filter(|next| is_due && head.is_none_or(|head| next.age > head.age));
    let (head, is_new) = match (next, head) {
        (Some(next), _) => (next, true),
        // A turn may have ended half-way.
        (None, Some(head)) if may_change(head) => (head, false),
        (None, _) => return None,
    };
    let former: Vec<_> = active()
        .filter(|image| may_change(image) && image.id != head.id)
        .map(|image| image.name.clone())
        .collect();
    (is_new || !former.is_empty()).then(|| Turn {
        family: family.to_owned(),
        head: head.name.clone(),
        is_new,
        former,
    })
}

/// The images as they are after a turn.
pub(super) fn apply(turn: &Turn, images: &mut [Held], now: Timestamp) {
    for image in images {
        if image.name == turn.head && turn.is_new {
            image.state = State::Active;
            image.promoted = Some(now);
        } else if turn.former.contains(&image.name) {
            image.state = State::Deprecated(Some(now));
        }
    }
}

/// The heads of all families, by the service's own rule: of those that are not deprecated, the one made last.
pub(super) fn heads(images: &[Held]) -> BTreeSet<u64> {
    let mut heads: BTreeMap<&str, &Held> = BTreeMap::new();
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
    /// The defaults.
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

    fn now(day: i64) -> Timestamp {
        Held::sample("", day).created + SignedDuration::from_hours(1)
    }

    /// The head since `promoted`.
    fn head(name: &str, day: i64, promoted: i64) -> Held {
        Held {
            state: State::Active,
            promoted: Some(now(promoted)),
            ..Held::sample(name, day)
        }
    }

    /// What is done on day 30, as `head < former`; a new head has a `+`.
    fn done(images: &[Held], rules: &Rules) -> Vec<String> {
        let show = |turn: Turn| {
            let sign = if turn.is_new { "+" } else { "" };
            format!("{sign}{} < {}", turn.head, turn.former.join(" "))
                .trim_end_matches([' ', '<'])
                .to_owned()
        };
        turns(images, rules, now(30)).into_iter().map(show).collect()
    }

    #[test]
    fn who_becomes_the_head() {
        let waiting = Held::sample;
        let with = |image: Held, change: fn(&mut Held)| {
            let mut image = image;
            change(&mut image);
            image
        };
        let foreign = |image: &mut Held| image.owner = Owner::Other("CoreOS".to_owned());
        let table: Vec<(&str, Vec<Held>, &[&str])> = vec![
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
            ("somebody else's", vec![with(waiting("a", 20), foreign)], &[]),
            (
                "to be kept",
                vec![with(waiting("a", 20), |image| image.owner = Owner::Kept)],
                &[],
            ),
            (
                "pulled by an operator",
                vec![with(waiting("a", 20), |image| image.state = State::Withdrawn)],
                &[],
            ),
            (
                "not released",
                vec![with(waiting("a", 20), |image| image.family = None)],
                &[],
            ),
            (
                "half-way: the former head is active still",
                vec![head("a", 10, 10), head("b", 20, 29)],
                &["b < a"],
            ),
            (
                "a head of somebody else's stays and is not replaced by an older one",
                vec![with(head("x", 25, 10), foreign), waiting("a", 20)],
                &[],
            ),
            (
                "a head of somebody else's stays beside a newer one",
                vec![with(head("x", 10, 10), foreign), waiting("a", 20)],
                &["+a"],
            ),
            (
                "a head nobody promoted counts from when it was made",
                vec![with(head("a", 20, 0), |image| image.promoted = None), waiting("b", 25)],
                &[],
            ),
        ];
        for (what, images, expected) in table {
            assert_eq!(done(&images, &Rules::sample()), expected, "{what}");
        }
    }

    #[test]
    fn images_of_the_former_service_are_touched_only_if_that_is_set() {
        let unmarked = |image| Held {
            owner: Owner::Unmarked,
            ..image
        };
        let former = "fedora-cloud-40-1-14-x86-64";
        let images = [unmarked(head(former, 10, 10)), Held::sample("b", 20)];
        assert_eq!(done(&images, &Rules::sample()), ["+b"]);
        let rules = Rules {
            clean_up_unmarked: true,
            ..Rules::sample()
        };
        assert_eq!(done(&images, &rules), [format!("+b < {former}")]);
        let by_others = [unmarked(head("builder-7", 10, 10)), Held::sample("b", 20)];
        assert_eq!(done(&by_others, &rules), ["+b"]);
        let never_promoted = [unmarked(Held::sample(former, 25))];
        assert_eq!(done(&never_promoted, &rules), [""; 0]);
    }

    #[test]
    fn families_have_a_turn_each() {
        let other = Held {
            family: Some("g".to_owned()),
            ..Held::sample("x", 21)
        };
        assert_eq!(done(&[Held::sample("a", 20), other], &Rules::sample()), ["+a", "+x"]);
    }
}
