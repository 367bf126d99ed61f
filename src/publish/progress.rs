//! The rounds of one deliverable as a state machine: what is live, what has been announced, what failed, what comes next.
//!
//! It has no clock and does no I/O. The pipeline tells it how a round ended and when, and does what it says: announce, wait,
//! or stop. Times are counted from the start of the first round.

use std::time::Duration;

use crate::base::failure::{Class, Failure};
use crate::model::outcome::{Failed, Origin, Outcome, Place};
use crate::model::select::Deliverable;
use crate::publish::report::{Problem, Published};

/// The state of one deliverable between its rounds of stage and release.
pub struct Progress<'a> {
    deliverable: &'a Deliverable,
    /// How long a failing location delays the announcement of the others.
    patience: Duration,
    /// As of the last round that got through.
    live: Outcome,
    /// The places of the last announcement.
    announced: Option<Vec<Place>>,
    /// Everything that is given up.
    problems: Vec<Problem>,
    failing_since: Option<Duration>,
}

/// The pipeline's orders after a round.
#[derive(Debug)]
pub struct Next {
    /// The locations where this round made the deliverable live.
    pub created: Vec<String>,
    /// Announce what is live, before anything else.
    pub announce: bool,
    /// Start another round; `None` when the deliverable is done.
    pub retry: Option<Retry>,
}

/// Another round.
#[derive(Debug)]
pub struct Retry {
    /// The pause before it.
    pub wait: Duration,
    /// The transient failures that it is for. A failure of the whole round has no location.
    pub because: Vec<Failed>,
}

impl<'a> Progress<'a> {
    /// Nothing has been tried yet.
    #[must_use]
    pub fn new(deliverable: &'a Deliverable, patience: Duration) -> Self {
        Self {
            deliverable,
            patience,
            live: Outcome::default(),
            announced: None,
            problems: Vec::new(),
            failing_since: None,
        }
    }

    /// How much longer the announcement of what is live may wait for the rest; `None` if nothing waits to be announced for
    /// the first time.
    #[must_use]
    pub fn patience(&self, now: Duration) -> Option<Duration> {
        let waits = self.announced.is_none() && !self.live.places.is_empty();
        let failing = self
            .failing_since
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
        waits.then(|| self.patience.saturating_sub(failing))
    }

    /// The places that an announcement now has to name; `None` when nothing is live, or the last one named just these.
    #[must_use]
    pub fn to_announce(&self) -> Option<&[Place]> {
        let places = &self.live.places;
        (!places.is_empty() && self.announced.as_ref() != Some(places)).then_some(places)
    }

    /// Records that what is live was announced.
    pub fn announced(&mut self) {
        self.announced = Some(self.live.places.clone());
    }

    /// Records that what is live could not be announced. It counts as live all the same.
    pub fn not_announced(&mut self, failure: &Failure) {
        self.problems.push(Problem::deliverable(self.deliverable, failure));
        self.announced();
    }

    /// Takes in how a round ended. `backoff` says how long to wait after a transient failure, or `None` when the time is up.
    pub fn ended(
        &mut self,
        round: Result<Outcome, Failure>,
        now: Duration,
        backoff: impl FnOnce(Class) -> Option<Duration>,
    ) -> Next {
        let (created, transient) = match round {
            Ok(outcome) => self.take(outcome, now),
            Err(failure) if failure.class().is_transient() => (Vec::new(), vec![everywhere(failure)]),
            Err(failure) => {
                self.give_up(&[everywhere(failure)]);
                (Vec::new(), Vec::new())
            }
        };
        let most_patient = transient.iter().map(|failed| failed.failure.class()).max_by_key(asked);
        let Some(wait) = most_patient.and_then(backoff) else {
            self.give_up(&transient);
            return Next {
                created,
                announce: true,
                retry: None,
            };
        };
        let since = *self.failing_since.get_or_insert(now);
        Next {
            created,
            announce: now.saturating_sub(since) >= self.patience,
            retry: Some(Retry {
                wait,
                because: transient,
            }),
        }
    }

    /// Replaces the live places. Returns the locations that became live, and the failures worth another round.
    fn take(&mut self, mut outcome: Outcome, now: Duration) -> (Vec<String>, Vec<Failed>) {
        let failed = std::mem::take(&mut outcome.failed);
        let before = &self.live.places;
        // A later round finds what an earlier one created; it stays created by this process.
        for place in &mut outcome.places {
            let created = Place {
                origin: Origin::Created,
                ..place.clone()
            };
            if before.contains(&created) {
                *place = created;
            }
        }
        let was_live = |place: &Place| before.iter().any(|other| other.location == place.location);
        let is_new = |place: &&Place| place.origin == Origin::Created && !was_live(place);
        let new = outcome.places.iter().filter(is_new);
        let created = new.map(|place| place.location.clone()).collect();
        if !failed.is_empty() {
            let since = now.saturating_sub(outcome.waited);
            self.failing_since.get_or_insert(since);
        }
        outcome.keep_unseen(&self.live, self.deliverable);
        self.live = outcome;
        let (transient, permanent): (Vec<_>, Vec<_>) = failed
            .into_iter()
            .partition(|failed| failed.failure.class().is_transient());
        self.give_up(&permanent);
        (created, transient)
    }

    fn give_up(&mut self, failures: &[Failed]) {
        let problem = |failed: &Failed| match failed.location.as_str() {
            "" => Problem::deliverable(self.deliverable, &failed.failure),
            location => Problem::location(self.deliverable, location, &failed.failure),
        };
        let problems: Vec<_> = failures.iter().map(problem).collect();
        self.problems.extend(problems);
    }

    /// The locations that failed for good. Later rounds leave them alone.
    pub fn excluded(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().filter_map(|problem| problem.location.as_deref())
    }

    /// The result, once no round is to follow.
    #[must_use]
    pub fn finish(self) -> (Published, Vec<Problem>) {
        let places = self.announced.unwrap_or_default();
        let published = Published::new(self.deliverable, places, self.live.superseded);
        (published, self.problems)
    }
}

/// A failure of a whole round.
fn everywhere(failure: Failure) -> Failed {
    Failed {
        location: String::new(),
        failure,
    }
}

/// Orders transient failures by the time for which the server asks to be left alone.
fn asked(class: &Class) -> Option<Duration> {
    match class {
        Class::Transient { after } => *after,
        Class::Deliverable | Class::Everything => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::Classified;
    use crate::base::resource::Resource;
    use crate::model::compose::release::{Release, Stage};
    use crate::model::compose::{ComposeId, Image};
    use crate::model::outcome::Superseded;
    use crate::model::select::Target;
    use crate::model::target::local::LocalImage;

    #[derive(Debug, Clone, Copy, thiserror::Error)]
    #[error("reach it")]
    struct Fault(Class);

    impl Classified for Fault {
        fn class(&self) -> Class {
            self.0
        }
    }

    const PATIENCE: Duration = Duration::from_secs(30);
    const PERMANENT: Class = Class::Deliverable;

    fn test_deliverable() -> Deliverable {
        let image = Image {
            path: "Cloud/x86_64/images/disk.raw.xz".to_owned(),
            location: Resource::Folder("disk.raw.xz".into()),
            arch: "x86_64".to_owned(),
            subvariant: "Cloud_Base".to_owned(),
            kind: "raw-xz".to_owned(),
            format: "raw.xz".to_owned(),
            size: 1,
            sha256: "0".repeat(64),
        };
        Deliverable {
            target: Target::Local(LocalImage::Disk {
                path: "disk.raw".to_owned(),
            }),
            locations: ["a", "b", "c"].map(str::to_owned).to_vec(),
            images: vec![image],
            subvariant: "Cloud_Base".to_owned(),
            compose: ComposeId::parse("Fedora-43-20251023.0").unwrap(),
            release: Release {
                name: "43".to_owned(),
                number: 43,
                stage: Stage::Production,
                newest_stable: true,
                end_of_life: None,
            },
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn place(location: &str, origin: Origin) -> Place {
        Place {
            location: location.to_owned(),
            id: format!("id-{location}"),
            origin,
        }
    }

    /// A round after which these locations are live, as created now, and those failed.
    fn round(live: &[&str], failed: &[(&str, Class)]) -> Result<Outcome, Failure> {
        Ok(Outcome {
            places: live.iter().map(|location| place(location, Origin::Created)).collect(),
            failed: failed
                .iter()
                .map(|(location, class)| Failed {
                    location: (*location).to_owned(),
                    failure: Fault(*class).into(),
                })
                .collect(),
            ..Outcome::default()
        })
    }

    fn failure(class: Class) -> Result<Outcome, Failure> {
        Err(Fault(class).into())
    }

    /// The pipeline's actions after a round: `announce`, then a wait in seconds or `done`.
    fn orders(progress: &mut Progress<'_>, round: Result<Outcome, Failure>, now: u64, wait: Option<u64>) -> String {
        let next = progress.ended(round, seconds(now), |_| wait.map(seconds));
        let mut orders = Vec::new();
        if next.announce && progress.to_announce().is_some() {
            progress.announced();
            orders.push("announce".to_owned());
        }
        orders.push(match next.retry {
            Some(retry) => format!("wait {} for {}", retry.wait.as_secs(), retry.because.len()),
            None => "done".to_owned(),
        });
        orders.join(", ")
    }

    #[test]
    fn the_orders_after_each_round() {
        type Step<'a> = (u64, Result<Outcome, Failure>, Option<u64>, &'a str);
        const PASSES: Class = Class::TRANSIENT;
        let table: Vec<(&str, Vec<Step<'_>>, &[&str])> = vec![
            (
                "everything works",
                vec![(1, round(&["a", "b"], &[]), Some(1), "announce, done")],
                &[],
            ),
            (
                "a location recovers within the patience: one announcement",
                vec![
                    (1, round(&["a"], &[("b", PASSES)]), Some(1), "wait 1 for 1"),
                    (3, round(&["a", "b"], &[]), Some(1), "announce, done"),
                ],
                &[],
            ),
            (
                "a location recovers after the patience: two announcements",
                vec![
                    (1, round(&["a"], &[("b", PASSES)]), Some(1), "wait 1 for 1"),
                    (40, round(&["a"], &[("b", PASSES)]), Some(9), "announce, wait 9 for 1"),
                    (50, round(&["a"], &[("b", PASSES)]), Some(9), "wait 9 for 1"),
                    (60, round(&["a", "b"], &[]), Some(9), "announce, done"),
                ],
                &[],
            ),
            (
                "a location fails for good: the other one is announced at once",
                vec![(1, round(&["a"], &[("b", PERMANENT)]), Some(1), "announce, done")],
                &["b"],
            ),
            (
                "one fails for good, one is tried again",
                vec![
                    (
                        1,
                        round(&["a"], &[("b", PERMANENT), ("c", PASSES)]),
                        Some(1),
                        "wait 1 for 1",
                    ),
                    (3, round(&["a", "c"], &[]), Some(1), "announce, done"),
                ],
                &["b"],
            ),
            (
                "the time is up: what is live is announced, the rest is given up",
                vec![
                    (1, round(&["a"], &[("b", PASSES)]), Some(1), "wait 1 for 1"),
                    (9, round(&["a"], &[("b", PASSES)]), None, "announce, done"),
                ],
                &["b"],
            ),
            (
                "nothing works for a while",
                vec![
                    (1, failure(PASSES), Some(1), "wait 1 for 1"),
                    (50, failure(PASSES), Some(9), "wait 9 for 1"),
                    (60, round(&["a"], &[]), Some(9), "announce, done"),
                ],
                &[],
            ),
            (
                "nothing works, and the time is up",
                vec![(1, failure(PASSES), None, "done")],
                &["everywhere"],
            ),
            (
                "the image is wrong",
                vec![(1, failure(Class::Everything), Some(1), "done")],
                &["everywhere"],
            ),
            (
                "a round that fails as a whole keeps what is live",
                vec![
                    (1, round(&["a"], &[("b", PASSES)]), Some(1), "wait 1 for 1"),
                    (3, failure(PERMANENT), Some(1), "announce, done"),
                ],
                &["everywhere"],
            ),
        ];
        let deliverable = test_deliverable();
        for (what, steps, problems) in table {
            let mut progress = Progress::new(&deliverable, PATIENCE);
            for (now, round, wait, expected) in steps {
                assert_eq!(orders(&mut progress, round, now, wait), expected, "{what}, at {now} s");
            }
            let found: Vec<_> = progress
                .finish()
                .1
                .into_iter()
                .map(|problem| problem.location)
                .collect();
            let found: Vec<_> = found
                .iter()
                .map(|location| location.as_deref().unwrap_or("everywhere"))
                .collect();
            assert_eq!(found, problems, "{what}");
        }
    }

    #[test]
    fn the_patience_counts_from_the_first_failure_and_only_until_the_announcement() {
        let deliverable = test_deliverable();
        let mut progress = Progress::new(&deliverable, PATIENCE);
        assert_eq!(progress.patience(seconds(5)), None, "nothing is live");
        let mut first = round(&["a"], &[("b", Class::TRANSIENT)]).unwrap();
        first.waited = seconds(4);
        progress.ended(Ok(first), seconds(10), |_| Some(seconds(1)));
        assert_eq!(progress.patience(seconds(10)), Some(seconds(26)), "a was ready at 6");
        assert_eq!(progress.patience(seconds(100)), Some(Duration::ZERO));
        progress.announced();
        assert_eq!(progress.patience(seconds(101)), None);
        assert_eq!(progress.to_announce(), None, "just that was announced");
    }

    #[test]
    fn created_stays_created_and_is_counted_once() {
        let deliverable = test_deliverable();
        let mut progress = Progress::new(&deliverable, PATIENCE);
        let next = progress.ended(round(&["a"], &[("b", Class::TRANSIENT)]), seconds(1), |_| {
            Some(seconds(1))
        });
        assert_eq!(next.created, ["a"]);
        let second = Outcome {
            places: vec![place("a", Origin::Found), place("b", Origin::Found)],
            superseded: vec![Superseded {
                location: "c".to_owned(),
                by: "Fedora-43-20251023.0".to_owned(),
            }],
            ..Outcome::default()
        };
        let next = progress.ended(Ok(second), seconds(2), |_| None);
        assert_eq!(next.created, [""; 0]);
        progress.announced();
        let (published, _) = progress.finish();
        let origins: Vec<_> = published.places.iter().map(|place| place.origin).collect();
        assert_eq!(origins, [Origin::Created, Origin::Found]);
        assert_eq!(published.superseded.len(), 1);
    }

    #[test]
    fn the_wait_is_the_longest_that_a_server_asks_for() {
        let deliverable = test_deliverable();
        let mut progress = Progress::new(&deliverable, PATIENCE);
        let after = |seconds| Class::Transient {
            after: Some(Duration::from_secs(seconds)),
        };
        let failed = [("a", after(3)), ("b", after(20)), ("c", Class::TRANSIENT)];
        let mut chosen = None;
        progress.ended(round(&[], &failed), seconds(1), |class| {
            chosen = Some(class);
            None
        });
        assert_eq!(chosen, Some(after(20)));
        assert_eq!(progress.excluded().collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn an_announcement_that_fails_is_a_problem_of_something_live() {
        let deliverable = test_deliverable();
        let mut progress = Progress::new(&deliverable, PATIENCE);
        progress.ended(round(&["a"], &[]), seconds(1), |_| None);
        progress.not_announced(&Fault(Class::Everything).into());
        let (published, problems) = progress.finish();
        assert_eq!((published.places.len(), problems.len()), (1, 1));
        assert_eq!(problems[0].location, None);
    }
}
