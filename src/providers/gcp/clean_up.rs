//! Which images go: those past their end of life, and those that have been deprecated for long.
//!
//! Only what carries this program's mark is touched, and what the former service made if that is set; never the head of a
//! family, and nothing when the list could not be read in full. A run removes a bounded number; what is wrong with a policy
//! shows before everything is gone.
//!
//! A head stays past its end of life: whoever names the family would get nothing instead of an old image. An operator who
//! deprecates it ends the family, and the next run removes it.

use std::collections::BTreeSet;

use google_cloud_compute_v1::model::DeprecationStatus;
use google_cloud_compute_v1::model::deprecation_status::State as Deprecation;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::client::{Cloud, deprecated};
use super::error::Error;
use super::inventory::{Held, State};
use super::labels;
use super::promotion::{Rules, Turn, apply, heads, turns};
use crate::base::failure::Failure;
use crate::base::metrics;
use crate::providers::contract::{Action, Decision, Retired};

/// One run removes no more. Fedora makes about ten a day.
const CAP: usize = 30;
/// What was just made stays for this long, even past its end of life: somebody has been told of it.
const SETTLED: SignedDuration = SignedDuration::from_hours(24);

/// Promotes and removes what is due; with `dry_run` only says so.
pub(super) async fn run(cloud: &Cloud, rules: &Rules, dry_run: bool) -> Result<Retired, Failure> {
    let images = cloud.list().await?;
    let mut held = images.into_iter().map(Held::of).collect::<Result<Vec<_>, _>>()?;
    let now = Timestamp::now();
    let mut retired = Retired::default();
    // A family that could not be given its head keeps everything.
    let mut troubled = BTreeSet::new();
    for turn in turns(&held, rules, now) {
        if !dry_run && let Err(error) = take(cloud, &turn, &held, now).await {
            retired.decisions.push(Decision {
                name: turn.head.clone(),
                action: Action::Failed(error.into()),
                reason: format!("to be the head of {}", turn.family),
            });
            troubled.insert(turn.family);
            continue;
        }
        apply(&turn, &mut held, now);
    }
    held.retain(|image| image.family.as_ref().is_none_or(|family| !troubled.contains(family)));
    let decisions = decide(&held, rules, now);
    for (image, (action, reason)) in held.iter().zip(decisions) {
        let mut action = action;
        if !dry_run && matches!(action, Action::Goes) {
            match cloud.delete(&image.name, image.id).await {
                Ok(()) => {
                    tracing::info!(image = image.name, "removed {}: {reason}", image.name);
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

/// Gives a family its head. Each step may be the last one; the next run finishes.
async fn take(cloud: &Cloud, turn: &Turn, held: &[Held], now: Timestamp) -> Result<(), Error> {
    let family = &turn.family;
    if turn.is_new {
        let name = &turn.head;
        let image = cloud.image(name).await?.ok_or_else(|| Error::Vanished(name.clone()))?;
        let mut all = image.labels.clone();
        all.insert(labels::PROMOTED.to_owned(), labels::time(now));
        cloud.set_labels(&image, all).await?;
        let active = DeprecationStatus::new().set_state(Deprecation::Active);
        cloud.deprecate(name, active).await?;
        tracing::info!(image = name, family, "{name} is the head of {family} now");
    }
    let url = held
        .iter()
        .find(|image| image.name == turn.head)
        .map(|image| image.url.as_str());
    for name in &turn.former {
        cloud.deprecate(name, deprecated(now, url)).await?;
        tracing::info!(
            image = name,
            family,
            "{name} is deprecated: {} is the head of {family}",
            turn.head
        );
    }
    Ok(())
}

/// What becomes of each image, and why.
fn decide(images: &[Held], rules: &Rules, now: Timestamp) -> Vec<(Action, String)> {
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

/// Why an image stays; an error is why it goes.
fn decision(image: &Held, heads: &BTreeSet<u64>, rules: &Rules, now: Timestamp) -> Result<String, String> {
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
    let is_settled = now.duration_since(image.created) >= SETTLED;
    if let Some(end) = image.end_of_life.filter(|_| image.is_past_end_of_life(now)) {
        return match image.state {
            State::Unready => Ok("it is being made or removed".to_owned()),
            _ if is_settled => Err(format!("past its end of life on {end}")),
            _ => Ok(format!("past its end of life on {end}, and made just now")),
        };
    }
    match image.state {
        State::Active => Ok("it is in use".to_owned()),
        State::Deprecated(Some(since)) if since == now => Ok("it becomes deprecated".to_owned()),
        State::Deprecated(None) => Ok("it is deprecated, and not said since when".to_owned()),
        State::Deprecated(Some(since)) if now.duration_since(since) >= rules.delete_deprecated_after => {
            Err(format!("deprecated since {}", day(since)))
        }
        State::Deprecated(Some(since)) => Ok(format!("deprecated only since {}", day(since))),
        State::Withdrawn => Ok("an operator pulled it".to_owned()),
        State::Failed if is_settled => Err("its import failed".to_owned()),
        State::Failed => Ok("its import failed, and may be tried again".to_owned()),
        State::Unready => Ok("it is being made or removed".to_owned()),
    }
}

fn day(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::super::inventory::Owner;
    use super::*;

    fn now(day: i64) -> Timestamp {
        Held::sample("", day).created + SignedDuration::from_hours(1)
    }

    #[test]
    fn what_goes_and_what_stays() {
        let with = |day, change: &dyn Fn(&mut Held)| {
            let mut image = Held::sample("a", day);
            change(&mut image);
            image
        };
        let ended = |image: &mut Held| image.end_of_life = "2025-01-15".parse().ok();
        let active = |image: &mut Held| {
            image.state = State::Active;
            image.family = None;
        };
        let table: Vec<(&str, Held)> = vec![
            ("Goes: deprecated since 2025-01-16", with(15, &|_| {})),
            ("Stays: deprecated only since 2025-01-18", with(17, &|_| {})),
            (
                "Stays: it is deprecated, and not said since when",
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
                "Stays: past its end of life on 2025-01-15, and made just now",
                with(30, &ended),
            ),
            (
                "Stays: deprecated only since 2025-01-25",
                with(24, &|image| image.end_of_life = "2025-01-31".parse().ok()),
            ),
            (
                "Stays: an operator pulled it",
                with(1, &|image| image.state = State::Withdrawn),
            ),
            ("Goes: its import failed", with(1, &|image| image.state = State::Failed)),
            (
                "Stays: its import failed, and may be tried again",
                with(30, &|image| image.state = State::Failed),
            ),
            (
                "Stays: it is being made or removed",
                with(1, &|image| {
                    ended(image);
                    image.state = State::Unready;
                }),
            ),
            (
                "Stays: it belongs to CoreOS",
                with(1, &|image| image.owner = Owner::Other("CoreOS".to_owned())),
            ),
            (
                "Stays: its label says delete=never",
                with(1, &|image| image.owner = Owner::Kept),
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
            let unmarked = Held {
                owner: Owner::Unmarked,
                ..Held::sample(name, 1)
            };
            let (action, reason) = decide(&[unmarked], &rules, now(30)).remove(0);
            assert_eq!(matches!(action, Action::Goes), goes, "{name}: {reason}");
        }
    }

    #[test]
    fn a_run_removes_the_oldest_and_leaves_the_rest_to_the_next() {
        let mut images: Vec<Held> = (0..2 * CAP as i64).map(|day| Held::sample("a", day)).collect();
        images.reverse();
        let decisions = decide(&images, &Rules::sample(), now(400));
        let (later, gone) = decisions.split_at(CAP);
        assert!(gone.iter().all(|(action, _)| matches!(action, Action::Goes)));
        assert!(later.iter().all(|(action, _)| matches!(action, Action::GoesLater)));
    }

    /// A year of daily images, with days on which none comes, runs that end half-way, and images of others.
    #[test]
    fn a_year_goes_by() {
        let rules = Rules::sample();
        let foreign = |name: &str, day, state| Held {
            owner: Owner::Other("CoreOS".to_owned()),
            family: Some("g".to_owned()),
            state,
            ..Held::sample(name, day)
        };
        let others = [
            foreign("x", -1, State::Active),
            foreign("y", -2, State::Deprecated(None)),
        ];
        let mut images = others.to_vec();
        let mut chance = Chance(1);
        let (mut head, mut promotions, mut promoted_on) = (None, 0, 0);
        for day in 0..365 {
            // Twenty days after the end of life the last one comes.
            if day < 343 && chance.of(4) > 0 {
                images.push(Held {
                    is_prerelease: day < 40,
                    end_of_life: "2025-11-20".parse().ok(),
                    ..Held::sample(&format!("image-{day}"), day)
                });
            }
            for _ in 0..chance.of(3) {
                for turn in turns(&images, &rules, now(day)) {
                    // Each of its steps may be the last one.
                    let steps = chance.of(turn.former.len() as u64 + 3) as usize;
                    let part = Turn {
                        former: turn.former.iter().take(steps.saturating_sub(1)).cloned().collect(),
                        ..turn
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
            let is_ours = |image: &&Held| image.owner == Owner::Ours;
            let active: Vec<_> = images
                .iter()
                .filter(is_ours)
                .filter(|image| image.state == State::Active)
                .collect();
            let newest = active.iter().map(|image| image.age).max();
            assert!(newest >= head, "day {day}: the head is gone, or an older one");
            if newest > head {
                (head, promotions, promoted_on) = (newest, promotions + 1, day);
            }
            assert!(active.iter().all(|image| !image.is_prerelease), "day {day}");
            assert!(
                !(60..=320).contains(&day) || day - promoted_on < 20,
                "day {day}: nothing is promoted"
            );
            assert!(images.len() < 30, "day {day}: {} are left", images.len());
        }
        assert!((15..=24).contains(&promotions), "{promotions}");
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

    /// Numbers that look random and are the same in each run.
    struct Chance(u64);

    impl Chance {
        /// Below `limit`.
        fn of(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }
}
