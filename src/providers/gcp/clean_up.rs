//! Clean-up: images past their end of life are deleted, and those that have been deprecated for long enough.
//!
//! Only images with this program's mark are deleted, and the previous service's if that is set; never the head of a family,
//! and nothing when the list could not be read in full. A run deletes a bounded number of images, so that a mistake in the
//! policy shows before everything is gone.
//!
//! A head is kept past its end of life: users who name the family would get nothing instead of an old image. An operator who
//! deprecates it ends the family, and the next run deletes it.

use std::collections::BTreeSet;

use google_cloud_compute_v1::model::DeprecationStatus;
use google_cloud_compute_v1::model::deprecation_status::State as Deprecation;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::client::{Cloud, deprecated};
use super::error::Error;
use super::inventory::{Inventory, OwnedImage, State, Unreadable};
use super::labels;
use super::promotion::{Promotion, Rules, apply, heads, promotions};
use crate::base::failure::Failure;
use crate::base::metrics;
use crate::providers::contract::{Action, Decision, Retired};

/// The most images that one run deletes. Fedora creates about ten a day.
const CAP: usize = 30;
/// Younger images are kept even past their end of life: they were announced only now.
const MINIMUM_AGE: SignedDuration = SignedDuration::from_hours(24);

/// Promotes and deletes the images that are due; with `dry_run` only reports them.
pub(super) async fn run(cloud: &Cloud, rules: &Rules, dry_run: bool) -> Result<Retired, Failure> {
    let Inventory { mut images, unreadable } = Inventory::of(&cloud.list().await?);
    let now = Timestamp::now();
    let mut retired = Retired::default();
    set_aside(&mut images, &unreadable, &mut retired);
    // A family whose promotion failed keeps all its images.
    let mut failed = BTreeSet::new();
    for promotion in promotions(&images, rules, now) {
        if !dry_run && let Err(error) = promote(cloud, &promotion, &images, now).await {
            retired.decisions.push(Decision {
                name: promotion.head.clone(),
                action: Action::Failed(error.into()),
                reason: format!("to be the head of {}", promotion.family),
            });
            failed.insert(promotion.family);
            continue;
        }
        apply(&promotion, &mut images, now);
    }
    images.retain(|image| image.family.as_ref().is_none_or(|family| !failed.contains(family)));
    let decisions = decide(&images, rules, now);
    for (image, (action, reason)) in images.iter().zip(decisions) {
        let mut action = action;
        if !dry_run && matches!(action, Action::Goes) {
            match cloud.delete(&image.name, Some(image.id)).await {
                Ok(()) => {
                    tracing::info!(image = image.name, "deleted {}: {reason}", image.name);
                    metrics::retired();
                }
                Err(error) => action = Action::Failed(error.into()),
            }
        }
        retired.decisions.push(Decision {
            name: image.name.clone(),
            action,
            reason,
        });
    }
    Ok(retired)
}

/// Takes images that cannot be read, and the rest of their families, out of the run: each of them may be a head.
fn set_aside(images: &mut Vec<OwnedImage>, unreadable: &[Unreadable], retired: &mut Retired) {
    let mut keep = |name: &str, reason: String| {
        retired.decisions.push(Decision {
            name: name.to_owned(),
            action: Action::Stays,
            reason,
        });
    };
    for image in unreadable {
        keep(&image.name, format!("the service lists it without {}", image.lacks));
    }
    images.retain(|image| {
        let peer = unreadable
            .iter()
            .find(|other| other.family.is_some() && other.family == image.family);
        if let Some(peer) = peer {
            keep(
                &image.name,
                format!("the service lists {} of its family without {}", peer.name, peer.lacks),
            );
        }
        peer.is_none()
    });
}

/// Changes the head of a family. A run may end after each step; the next run completes it.
async fn promote(cloud: &Cloud, promotion: &Promotion, images: &[OwnedImage], now: Timestamp) -> Result<(), Error> {
    let Promotion { family, head, .. } = promotion;
    if promotion.is_new {
        let image = cloud.image(head).await?.ok_or_else(|| Error::Vanished(head.clone()))?;
        let mut all = image.labels.clone();
        all.insert(labels::PROMOTED.to_owned(), labels::time(now));
        cloud.set_labels(&image, all).await?;
        let active = DeprecationStatus::new().set_state(Deprecation::Active);
        cloud.deprecate(head, active).await?;
        tracing::info!(image = head, family, "{head} is the head of {family} now");
    }
    let url = images
        .iter()
        .find(|image| image.name == *head)
        .map(|image| image.url.as_str());
    for name in &promotion.demoted {
        cloud.deprecate(name, deprecated(now, url)).await?;
        tracing::info!(
            image = name,
            family,
            "{name} is deprecated: {head} is the head of {family}"
        );
    }
    Ok(())
}

/// Decides on each image, with the reason.
fn decide(images: &[OwnedImage], rules: &Rules, now: Timestamp) -> Vec<(Action, String)> {
    let heads = heads(images);
    let mut decisions: Vec<_> = images
        .iter()
        .map(|image| match decision(image, &heads, rules, now) {
            Ok(reason) => (Action::Stays, reason),
            Err(reason) => (Action::Goes, reason),
        })
        .collect();
    let mut going: Vec<_> = (0..images.len())
        .filter(|index| matches!(decisions[*index].0, Action::Goes))
        .collect();
    going.sort_by_key(|index| images[*index].created);
    for index in going.into_iter().skip(CAP) {
        decisions[index].0 = Action::GoesLater;
    }
    decisions
}

/// The reason to keep an image; an error is the reason to delete it.
fn decision(image: &OwnedImage, heads: &BTreeSet<u64>, rules: &Rules, now: Timestamp) -> Result<String, String> {
    if let Some(reason) = image.hands_off(rules.clean_up_unmarked) {
        return Ok(reason);
    }
    if heads.contains(&image.id) {
        let family = image.family.as_deref().unwrap_or_default();
        return Ok(match image.promoted {
            Some(since) if since == now => format!("it becomes the head of {family}"),
            Some(since) => format!("it is the head of {family} since {}", day(since)),
            None => format!("it is the head of {family}"),
        });
    }
    let is_old_enough = now.duration_since(image.created) >= MINIMUM_AGE;
    if let Some(end) = image.end_of_life.filter(|_| image.is_past_end_of_life(now)) {
        return match image.state {
            State::Unready => Ok("it is being created or deleted".to_owned()),
            _ if is_old_enough => Err(format!("past its end of life on {end}")),
            _ => Ok(format!(
                "past its end of life on {end}, and created within the last day"
            )),
        };
    }
    match image.state {
        State::Active => Ok("it is in use".to_owned()),
        State::Deprecated(Some(since)) if since == now => Ok("it becomes deprecated".to_owned()),
        State::Deprecated(None) => Ok("it is deprecated at an unknown time".to_owned()),
        State::Deprecated(Some(since)) if now.duration_since(since) >= rules.delete_deprecated_after => {
            Err(format!("deprecated since {}", day(since)))
        }
        State::Deprecated(Some(since)) => Ok(format!("deprecated only since {}", day(since))),
        State::Withdrawn => Ok("an operator withdrew it".to_owned()),
        State::Failed if is_old_enough => Err("its import failed".to_owned()),
        State::Failed => Ok("its import failed within the last day, and may be retried".to_owned()),
        State::Unready => Ok("it is being created or deleted".to_owned()),
    }
}

fn day(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::inventory::Owner;
    use super::*;
    use crate::providers::ownership::HandsOff;

    fn now(day: i64) -> Timestamp {
        OwnedImage::sample("", day).created + SignedDuration::from_hours(1)
    }

    #[test]
    fn each_image_is_kept_or_deleted_for_a_reason() {
        let with = |day, change: &dyn Fn(&mut OwnedImage)| {
            let mut image = OwnedImage::sample("a", day);
            change(&mut image);
            image
        };
        let ended = |image: &mut OwnedImage| image.end_of_life = "2025-01-15".parse().ok();
        let active = |image: &mut OwnedImage| {
            image.state = State::Active;
            image.family = None;
        };
        let table: Vec<(&str, OwnedImage)> = vec![
            ("Goes: deprecated since 2025-01-16", with(15, &|_| {})),
            ("Stays: deprecated only since 2025-01-18", with(17, &|_| {})),
            (
                "Stays: it is deprecated at an unknown time",
                with(1, &|image| image.state = State::Deprecated(None)),
            ),
            (
                "Stays: it is the head of f",
                with(1, &|image| {
                    ended(image);
                    image.state = State::Active;
                }),
            ),
            ("Stays: it is in use", with(1, &active)),
            (
                "Goes: past its end of life on 2025-01-15",
                with(1, &|image| {
                    active(image);
                    ended(image);
                }),
            ),
            (
                "Stays: past its end of life on 2025-01-15, and created within the last day",
                with(30, &ended),
            ),
            (
                "Stays: deprecated only since 2025-01-25",
                with(24, &|image| image.end_of_life = "2025-01-31".parse().ok()),
            ),
            (
                "Stays: an operator withdrew it",
                with(1, &|image| image.state = State::Withdrawn),
            ),
            ("Goes: its import failed", with(1, &|image| image.state = State::Failed)),
            (
                "Stays: its import failed within the last day, and may be retried",
                with(30, &|image| image.state = State::Failed),
            ),
            (
                "Stays: it is being created or deleted",
                with(1, &|image| {
                    ended(image);
                    image.state = State::Unready;
                }),
            ),
            (
                "Stays: it belongs to CoreOS",
                with(1, &|image| {
                    image.owner = Owner::Other(HandsOff::Owner("CoreOS".to_owned()))
                }),
            ),
            (
                "Stays: its label says delete=never",
                with(1, &|image| image.owner = Owner::Other(HandsOff::Kept)),
            ),
            (
                "Stays: it has no mark of this program",
                with(1, &|image| image.owner = Owner::Unmarked),
            ),
        ];
        for (expected, image) in table {
            let (action, reason) = decide(&[image], &Rules::sample(), now(30)).remove(0);
            assert_eq!(format!("{action:?}: {reason}"), expected);
        }
        let rules = Rules {
            clean_up_unmarked: true,
            ..Rules::sample()
        };
        for (name, goes) in [("fedora-cloud-40-1-14-x86-64", true), ("builder-7", false)] {
            let unmarked = OwnedImage {
                owner: Owner::Unmarked,
                ..OwnedImage::sample(name, 1)
            };
            let (action, reason) = decide(&[unmarked], &rules, now(30)).remove(0);
            assert_eq!(matches!(action, Action::Goes), goes, "{name}: {reason}");
        }
    }

    #[test]
    fn a_run_deletes_the_oldest_and_leaves_the_rest_to_the_next() {
        let mut images: Vec<OwnedImage> = (0..2 * CAP as i64).map(|day| OwnedImage::sample("a", day)).collect();
        images.reverse();
        let decisions = decide(&images, &Rules::sample(), now(400));
        let (later, gone) = decisions.split_at(CAP);
        assert!(gone.iter().all(|(action, _)| matches!(action, Action::Goes)));
        assert!(later.iter().all(|(action, _)| matches!(action, Action::GoesLater)));
    }

    /// A year of daily images, with days without an image, runs that end half-way, and images of another owner.
    #[test]
    fn a_year_of_runs_keeps_the_rules() {
        let rules = Rules::sample();
        let foreign = |name: &str, day, state| OwnedImage {
            owner: Owner::Other(HandsOff::Owner("CoreOS".to_owned())),
            family: Some("g".to_owned()),
            state,
            ..OwnedImage::sample(name, day)
        };
        let others = [
            foreign("x", -1, State::Active),
            foreign("y", -2, State::Deprecated(None)),
        ];
        let mut images = others.to_vec();
        let mut chance = Chance(1);
        let (mut head, mut changes, mut promoted_on) = (None, 0, 0);
        for day in 0..365 {
            // The last image is created twenty days after the end of life.
            if day < 343 && chance.of(4) > 0 {
                images.push(OwnedImage {
                    is_prerelease: day < 40,
                    end_of_life: "2025-11-20".parse().ok(),
                    ..OwnedImage::sample(&format!("image-{day}"), day)
                });
            }
            for _ in 0..chance.of(3) {
                for promotion in promotions(&images, &rules, now(day)) {
                    // The run may end after each step.
                    let steps = chance.of(promotion.demoted.len() as u64 + 3) as usize;
                    let part = Promotion {
                        demoted: promotion
                            .demoted
                            .iter()
                            .take(steps.saturating_sub(1))
                            .cloned()
                            .collect(),
                        ..promotion
                    };
                    if steps > 0 {
                        apply(&part, &mut images, now(day));
                    }
                }
                let actions = decide(&images, &rules, now(day));
                let mut actions = actions
                    .into_iter()
                    .map(|(action, _)| matches!(action, Action::Goes) && chance.of(5) > 0);
                images.retain(|_| !actions.next().unwrap());
            }
            let is_ours = |image: &&OwnedImage| image.owner == Owner::Ours;
            let active: Vec<_> = images
                .iter()
                .filter(is_ours)
                .filter(|image| image.state == State::Active)
                .collect();
            let newest = active.iter().map(|image| image.compose).max();
            assert!(newest >= head, "day {day}: the head is gone, or an older one");
            if newest > head {
                (head, changes, promoted_on) = (newest, changes + 1, day);
            }
            assert!(active.iter().all(|image| !image.is_prerelease), "day {day}");
            assert!(
                !(60..=320).contains(&day) || day - promoted_on < 20,
                "day {day}: nothing is promoted"
            );
            assert!(images.len() < 30, "day {day}: {} are left", images.len());
        }
        assert!((15..=24).contains(&changes), "{changes}");
        let left: Vec<_> = images.iter().filter(|image| image.owner == Owner::Ours).collect();
        assert_eq!(left.len(), 1, "past the end of life only the head is left: {left:?}");
        for other in others {
            assert!(
                images
                    .iter()
                    .any(|image| image.name == other.name && image.state == other.state)
            );
        }
    }

    /// Pseudo-random numbers, the same in each run.
    struct Chance(u64);

    impl Chance {
        /// The next number, below `limit`.
        fn of(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }
}
