//! Faults that may happen to a call, and the end state that must be reached all the same.

use std::time::{Duration, Instant};

use cloud_image_uploader_test_support::front::Trouble;
use futures_util::{StreamExt, stream};
use tokio::sync::OnceCell;

use crate::survival::{Outcome, record};
use crate::world::{After, Call, Found, LONG, PATIENT, World, assert_known, publish};

/// Worlds at a time.
const AT_ONCE: usize = 4;
/// The same where they do nothing but wait.
const WAITING: usize = 12;
/// Within this a process ends that was asked to.
const STOP: Duration = Duration::from_secs(10);

/// A kind of fault. It happens to one call after another, each in a world of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answered 503, or not received.
    Fails,
    IsThrottled,
    /// Done, but the answer is lost.
    LosesItsAnswer,
    /// The first call that changes something.
    OneHangs,
    /// The process is killed while the call is on its way.
    Crash,
    /// The process is asked to stop.
    Signal,
    FailsTenTimes,
    Hangs,
}

/// One of them.
pub struct Case {
    call: &'static Call,
    trouble: Trouble,
    times: usize,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Fails,
        Self::IsThrottled,
        Self::LosesItsAnswer,
        Self::OneHangs,
        Self::Crash,
        Self::Signal,
        Self::FailsTenTimes,
        Self::Hangs,
    ];

    /// The row's title in `docs/reliability.md`.
    pub fn title(self) -> &'static str {
        match self {
            Self::Fails => "answered 503; connection broken before it reached the server",
            Self::IsThrottled => "throttled twice, with `Retry-After`",
            Self::LosesItsAnswer => "done, and the answer lost",
            Self::OneHangs => "done, and never answered (one call; all of them are below)",
            Self::Crash => {
                "SIGKILL while the call is on its way, before and after it reached the server; then a fresh process"
            }
            Self::Signal => "SIGTERM likewise: it ends within seconds with 0; then a fresh process",
            Self::FailsTenTimes => {
                "failed ten times (`tests/run --long`); a deletion is given up, with a warning, and left to the next run"
            }
            Self::Hangs => "hangs, before and after it reached the server (`tests/run --long`)",
        }
    }

    /// The faults of this kind that a provider with these calls suffers.
    pub fn cases(self, calls: &'static [Call]) -> Vec<Case> {
        // Calls that change something end differently when the server received them, so they are tried both ways.
        let silent = |call: &Call| {
            let mut troubles = vec![(Trouble::Ignored, 1)];
            troubles.extend(call.changes.then_some((Trouble::Unanswered, 1)));
            troubles
        };
        let troubles = |call: &Call| match self {
            Self::Fails => vec![(Trouble::Refused(503), 1), (Trouble::Cut, 1)],
            Self::IsThrottled => vec![(Trouble::Throttled, 2)],
            Self::LosesItsAnswer => vec![(Trouble::Lost, 1)],
            Self::OneHangs => vec![(Trouble::Unanswered, 1)],
            Self::Crash | Self::Signal | Self::Hangs => silent(call),
            Self::FailsTenTimes if call.tidies => Vec::new(),
            Self::FailsTenTimes => vec![(Trouble::Refused(503), 10)],
        };
        let cases = calls.iter().flat_map(|call| {
            let case = move |(trouble, times)| Case { call, trouble, times };
            troubles(call).into_iter().map(case)
        });
        match self {
            Self::OneHangs => {
                let one = calls.iter().position(|call| call.changes).unwrap_or_default();
                cases.skip(one).take(1).collect()
            }
            _ => cases.collect(),
        }
    }

    fn at_once(self) -> usize {
        match self {
            Self::Hangs | Self::FailsTenTimes => WAITING,
            _ => AT_ONCE,
        }
    }
}

/// Publishes once for each case, and compares what is there then with what is there when nothing fails.
pub async fn survives<W: World>(expected: &OnceCell<Found>, kind: Kind) {
    let sound = async || {
        let world = W::start().await;
        publish(&world, "nothing failed").await;
        world.found().await
    };
    let expected = expected.get_or_init(sound).await;
    let outcomes = stream::iter(kind.cases(W::CALLS)).map(|case| suffer::<W>(kind, case, expected));
    let outcomes: Vec<Outcome> = outcomes.buffer_unordered(kind.at_once()).collect().await;
    record(W::NAME, kind, &outcomes);
    let harms: Vec<String> = outcomes.iter().filter_map(Outcome::harm).collect();
    assert!(
        harms.is_empty(),
        "{} of {} came to harm:\n{}",
        harms.len(),
        outcomes.len(),
        harms.join("\n")
    );
}

async fn suffer<W: World>(kind: Kind, case: Case, expected: &Found) -> Outcome {
    let Case { call, trouble, times } = case;
    let what = format!("{} {trouble:?} {times} times", call.name);
    let world = W::start().await;
    match call.after {
        Some(After::Lost(before)) => world.front().trouble(before, Trouble::Lost, 1),
        Some(After::Crash(before)) => {
            world.front().trouble(before, Trouble::Unanswered, 1);
            end_midway(&world, Kind::Crash, &what).await;
        }
        None => {}
    }
    world.front().trouble(call.name, trouble, times);
    let dies = matches!(kind, Kind::Crash | Kind::Signal);
    if dies {
        end_midway(&world, kind, &what).await;
    }
    let exit = world.program().await.run(PATIENT).await.unwrap();
    assert_known(&world, &what);
    // A call that has failed for long enough is settled otherwise in the next round, or left to another run.
    let met = match kind {
        Kind::FailsTenTimes => world.front().calls().contains_key(call.name),
        _ => dies || world.front().troubles_met(),
    };
    assert!(met, "{what} did not happen");
    Outcome::of(what, &exit, &world.found().await, expected)
}

/// Starts a process, and ends it while a call waits for its answer.
async fn end_midway<W: World>(world: &W, kind: Kind, what: &str) {
    let mut running = world.program().await.start().unwrap();
    if let Err(error) = world.front().until_silent(LONG).await {
        panic!("{what}: {error}: {}", running.stderr());
    }
    if kind == Kind::Crash {
        running.kill().unwrap();
        return;
    }
    let asked = Instant::now();
    running.terminate().unwrap();
    let exit = running.wait(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0), "{what}: {}", exit.stderr);
    assert!(asked.elapsed() < STOP, "{what}: {:?}", asked.elapsed());
}
