//! What every provider owes its operators, whatever fails, each of its calls by name: the same end as if nothing had
//! failed, nothing twice, nothing left over.
//!
//! A provider joins with a [`World`] of its own and one line at the end of this file.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod container;
mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cloud_image_uploader_test_support::archive::message;
use cloud_image_uploader_test_support::front::{Front, Trouble};
use cloud_image_uploader_test_support::program::{Exit, Program};
use futures_util::{StreamExt, stream};

/// Far more than anything here takes, but for what waits for time-outs.
const LONG: Duration = Duration::from_secs(120);
/// Ten failures of an upload, which only a new round repeats, take a quarter of an hour and more of waiting.
const PATIENT: Duration = Duration::from_secs(40 * 60);
/// Worlds at a time.
const AT_ONCE: usize = 4;

/// A call of a provider.
struct Call {
    name: &'static str,
    /// Whether it changes anything.
    changes: bool,
}

const fn reads(name: &'static str) -> Call {
    Call { name, changes: false }
}

const fn changes(name: &'static str) -> Call {
    Call { name, changes: true }
}

/// A provider's servers, and a compose to be published there.
trait World: Sized {
    /// Every call that publishing takes. The front's namer knows just these.
    const CALLS: &'static [Call];

    async fn start() -> Self;

    /// What the calls go through.
    fn front(&self) -> &Front;

    /// A fresh process that publishes the compose; see [`program`].
    async fn program(&self) -> Program;

    /// Everything that a reader finds, by name; with nothing in it that differs from one sound run to another.
    async fn found(&self) -> BTreeMap<String, String>;
}

/// A process that publishes what a message announces, with these sections below `[consumer_config]`.
fn program(sections: &str, compose: &str, location: &str) -> Program {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/release-data");
    let config = format!(
        "[consumer_config]\nrelease_metadata_url = \"{data}/release.json\"\nbodhi_url = \"{data}\"\n{sections}",
        data = data.display(),
    );
    let program = Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader")).unwrap();
    let program = program.config(&config).unwrap();
    let file = program.folder().join("message.json");
    fs::write(&file, message(compose, None, location).to_string()).unwrap();
    program.args(["reconsume", "--file"]).arg(file)
}

async fn publish<W: World>(world: &W, what: &str) -> Exit {
    let exit = world.program().await.run(PATIENT).await.unwrap();
    assert_published(&exit, what);
    exit
}

/// Publishes, and compares what is there then.
async fn complete<W: World>(world: &W, expected: &BTreeMap<String, String>, what: &str) {
    let exit = publish(world, what).await;
    let found = world.found().await;
    let differing = |name: &&String| found.get(*name) != expected.get(*name);
    let names: BTreeSet<_> = found.keys().chain(expected.keys()).filter(differing).collect();
    assert!(
        names.is_empty(),
        "{what}: {names:#?} differ:\n{}{}",
        exit.stdout,
        exit.stderr
    );
}

#[track_caller]
fn assert_published(exit: &Exit, what: &str) {
    assert_eq!(exit.code, Some(0), "{what}: {}{}", exit.stdout, exit.stderr);
}

/// What is there when nothing fails.
async fn reference<W: World>() -> BTreeMap<String, String> {
    let world = W::start().await;
    publish(&world, "nothing failed").await;
    world.found().await
}

/// The names say all there is: each call has one, and each name is that of a call. A second run changes nothing.
async fn names_are_complete<W: World>() {
    let world = W::start().await;
    publish(&world, "first").await;
    assert_eq!(world.front().unknown(), [""; 0]);
    let made: BTreeSet<_> = world.front().calls().into_keys().collect();
    let known: BTreeSet<_> = W::CALLS.iter().map(|call| call.name).collect();
    assert_eq!(made, known);
    let (calls, found) = (world.front().calls(), world.found().await);
    publish(&world, "second").await;
    for call in W::CALLS.iter().filter(|call| call.changes) {
        assert_eq!(world.front().calls()[call.name], calls[call.name], "{}", call.name);
    }
    assert_eq!(world.found().await, found);
}

/// Runs with trouble for each call, in worlds of their own.
async fn weathers<W: World>(troubles: &[(Trouble, usize)]) {
    let expected = reference::<W>().await;
    let cases = W::CALLS
        .iter()
        .flat_map(|call| troubles.iter().map(move |trouble| (call, trouble)));
    let worlds = cases.map(async |(call, (trouble, times))| {
        let what = format!("{} {trouble:?} {times} times", call.name);
        let world = W::start().await;
        world.front().trouble(call.name, *trouble, *times);
        complete(&world, &expected, &what).await;
        assert!(world.front().troubles_met(), "{what} did not happen");
    });
    stream::iter(worlds).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
}

/// Ends the process while a call is on its way; the next one completes what it finds.
async fn is_completed_after<W: World>(death: Death) {
    let expected = reference::<W>().await;
    // Whether the server has heard of the call makes the difference for those that change something.
    let cases = W::CALLS.iter().flat_map(|call| {
        let heard = call.changes.then_some(Trouble::Unanswered);
        [Some(Trouble::Ignored), heard]
            .into_iter()
            .flatten()
            .map(move |trouble| (call, trouble))
    });
    let worlds = cases.map(async |(call, trouble)| {
        let what = format!("{} {trouble:?} {death:?}", call.name);
        let world = W::start().await;
        world.front().trouble(call.name, trouble, 1);
        let mut running = world.program().await.start().unwrap();
        world
            .front()
            .until_silent(LONG)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        match death {
            Death::Crash => running.kill().unwrap(),
            Death::Signal => {
                let asked = Instant::now();
                running.terminate().unwrap();
                let exit = running.wait(LONG).await.unwrap();
                assert_eq!(exit.code, Some(0), "{what}: {}", exit.stderr);
                assert!(
                    asked.elapsed() < Duration::from_secs(10),
                    "{what}: {:?}",
                    asked.elapsed()
                );
            }
        }
        complete(&world, &expected, &what).await;
    });
    stream::iter(worlds).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
}

#[derive(Clone, Copy, Debug)]
enum Death {
    Crash,
    Signal,
}

macro_rules! contract {
    ($provider:ident, $world:ty) => {
        mod $provider {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_has_a_name_and_a_repeat_changes_nothing() {
                names_are_complete::<$world>().await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_may_fail_once() {
                weathers::<$world>(&[(Trouble::Refused(503), 1), (Trouble::Cut, 1)]).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_may_be_throttled() {
                weathers::<$world>(&[(Trouble::Throttled, 2)]).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_answer_may_be_lost() {
                weathers::<$world>(&[(Trouble::Lost, 1)]).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "takes half an hour: what fails ten times is waited for longer and longer"]
            async fn every_call_may_fail_ten_times() {
                weathers::<$world>(&[(Trouble::Refused(503), 10)]).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            #[ignore = "takes minutes: a call that hangs is waited for a minute"]
            async fn every_call_may_hang() {
                weathers::<$world>(&[(Trouble::Ignored, 1), (Trouble::Unanswered, 1)]).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_may_be_the_last_of_a_crash() {
                is_completed_after::<$world>(Death::Crash).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn every_call_may_be_the_last_before_a_signal() {
                is_completed_after::<$world>(Death::Signal).await;
            }
        }
    };
}

mod contract {
    use super::*;

    contract!(container, crate::container::Registries);
    contract!(local, crate::local::Folder);
}
