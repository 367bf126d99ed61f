//! The daemon of one provider, and what is done to it.

use std::fs;
use std::time::{Duration, Instant};

use cloud_image_uploader_test_support::front::Trouble;
use cloud_image_uploader_test_support::program::{Exit, Running};
use serde_json::Value;

use super::stage::{Stage, announced};
use super::{Faults, Random};
use crate::survival::Outcome;
use crate::world::{Call, Found, LONG, World, assert_published, config, configured, reconsume};

/// Everything that is not the end of the world is over by then.
const LIMIT: Duration = Duration::from_secs(600);
/// Within this a process ends that was asked to.
const STOP: Duration = Duration::from_secs(10);
/// How often what was heard is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// `buffer_memory`, and what a daemon may need besides.
const BUFFER: u64 = 64 << 20;
const BESIDES: u64 = 128 << 20;

/// The faults that a daemon met, and how it ended.
pub struct Suffered {
    pub name: &'static str,
    pub faults: Faults,
    pub outcome: Outcome,
}

/// Killed, stopped, and started as luck will have it.
struct Daemon<'a, W> {
    world: &'a W,
    config: String,
    running: Option<Running>,
    /// The standard error of all its processes.
    log: String,
    peak_memory: u64,
}

impl<W: World> Daemon<'_, W> {
    fn start(&mut self) {
        let program = configured(self.world, &self.config).arg("consume");
        self.running = Some(program.start().unwrap());
    }

    /// The process; it does not end unless the test ends it.
    fn running(&mut self) -> &mut Running {
        let running = self.running.as_mut().unwrap();
        let ended = running.ended().unwrap();
        assert!(ended.is_none(), "{} ended: {ended:?}: {}", W::NAME, running.stderr());
        running
    }

    fn kill(&mut self) {
        let peak = self.running().peak_memory();
        self.peak_memory = self.peak_memory.max(peak);
        let mut running = self.running.take().unwrap();
        running.kill().unwrap();
        self.log += &running.stderr();
        self.log += "--- SIGKILL\n";
    }

    async fn stop(&mut self) -> Option<i32> {
        self.running();
        let running = self.running.take().unwrap();
        let asked = Instant::now();
        running.terminate().unwrap();
        let exit = running.wait(LONG).await.unwrap();
        self.peak_memory = self.peak_memory.max(exit.peak_memory);
        self.log += &exit.stderr;
        self.log += "--- SIGTERM\n";
        assert!(
            asked.elapsed() < STOP,
            "{}: {:?}: {}",
            W::NAME,
            asked.elapsed(),
            exit.stderr
        );
        exit.code
    }

    /// Waits until all announcements were received.
    async fn until_announced(&mut self, stage: &Stage<'_>, things: &[String], deadline: Instant) {
        loop {
            stage.listen().await;
            let missing = stage.missing(things, W::SKIPS_OLDER);
            if missing.is_empty() {
                return;
            }
            let said = self.running().stderr();
            let log = &self.log;
            assert!(
                Instant::now() < deadline,
                "{}: lost: {missing:#?}\n{log}{said}",
                W::NAME
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops it when it has acknowledged everything. A delivery that comes again after a signal is found done.
    async fn settle(&mut self, stage: &Stage<'_>, queue: &str, deadline: Instant) -> Option<i32> {
        loop {
            // Before that, it may be too young to know of signals.
            self.running().wait_for_log("consuming", LONG).await.unwrap();
            let code = self.stop().await;
            let depth = stage.until(queue, LONG, |depth| depth.consumers == 0).await;
            if depth.ready == 0 {
                return code;
            }
            let log = &self.log;
            assert!(Instant::now() < deadline, "{}: never acknowledged: {log}", W::NAME);
            self.start();
            stage.until(queue, LONG, |depth| depth.ready == 0).await;
        }
    }
}

/// Runs a daemon under faults until there are no more, waits until it has done all it should, and looks at what is there.
pub async fn suffer<W: World>(world: &W, stage: &Stage<'_>) -> Suffered {
    let name = W::NAME.replace(", ", "-");
    // The other way to AWS has the same topics, and images of its own.
    let prefix = match W::NAME {
        "aws, blocks" => "org.fedoraproject.stg",
        _ => "org.fedoraproject.prod",
    };
    let keys = format!("buffer_memory = \"{}MiB\"\nshutdown_grace = \"2s\"", BUFFER >> 20);
    let config = stage.consuming(&name, prefix) + &config(&keys, &world.sections(true));
    let things = planned(world, &config, prefix, stage).await;
    stage.expect(things.clone(), W::SKIPS_OLDER);
    let mut daemon = Daemon {
        world,
        config,
        running: None,
        log: String::new(),
        peak_memory: 0,
    };
    daemon.start();
    let mut faults = harm(&mut daemon, stage).await;
    for (_, trouble, times) in world.front().mend() {
        *faults.entry(title(trouble)).or_default() -= times;
    }
    stage.calm().await;

    let deadline = Instant::now() + LIMIT;
    daemon.until_announced(stage, &things, deadline).await;
    let code = daemon.settle(stage, &name, deadline).await;
    stage.listen().await;
    let doubled = stage.doubled(&things);
    assert!(doubled.is_empty(), "{}: one thing as two: {doubled:#?}", W::NAME);
    let peak = daemon.peak_memory;
    assert!(peak <= BUFFER + BESIDES, "{}: {} MiB", W::NAME, peak >> 20);
    println!("{}: at peace, {} MiB at most", W::NAME, peak >> 20);
    let exit = Exit {
        code,
        stdout: String::new(),
        stderr: daemon.log,
        peak_memory: peak,
    };
    let found = world.found().await;
    let expected = expected::<W>(stage, &found).await;
    Suffered {
        name: W::NAME,
        faults,
        outcome: Outcome::of(W::NAME.to_owned(), &exit, &found, &expected),
    }
}

/// The announcements expected of each compose, by the program's own plan of the first one.
async fn planned<W: World>(world: &W, config: &str, prefix: &str, stage: &Stage<'_>) -> Vec<String> {
    let program = configured(world, config);
    let file = program.folder().join("message.json");
    fs::write(&file, stage.first().to_string()).unwrap();
    let plan = program.args(["plan", "--format", "json", "--file"]).arg(file);
    let exit = plan.run(LONG).await.unwrap();
    assert_published(&exit, "the plan");
    let plan: Value = serde_json::from_str(&exit.stdout).unwrap();
    let entries = plan["publish"].as_array().unwrap().iter();
    let topic = |entry: &Value| format!("{prefix}.{}", entry["topic"].as_str().unwrap());
    entries
        .map(|entry| announced(&topic(entry), &entry["body"]).0)
        .collect()
}

/// Does harm until there has been enough.
async fn harm<W: World>(daemon: &mut Daemon<'_, W>, stage: &Stage<'_>) -> Faults {
    let mut random = Random::new(stage.seed(), W::NAME);
    let mut faults = Faults::new();
    while !stage.is_over() {
        random.pause().await;
        // A process that has said nothing yet does not know of signals either.
        let is_up = !daemon.running().stderr().is_empty();
        let (kind, times) = match random.below(20) {
            0 | 1 => {
                daemon.kill();
                daemon.start();
                ("SIGKILL", 1)
            }
            2 if is_up => {
                assert_eq!(daemon.stop().await, Some(0), "{}: {}", W::NAME, daemon.log);
                daemon.start();
                ("SIGTERM", 1)
            }
            _ => {
                let (trouble, times) = trouble(&mut random);
                let call = &W::CALLS[random.below(W::CALLS.len() as u64) as usize];
                let Some(times) = bearable(call, trouble, times) else {
                    continue;
                };
                daemon.world.front().trouble(call.name, trouble, times);
                (title(trouble), times)
            }
        };
        *faults.entry(kind).or_default() += times;
    }
    faults
}

fn trouble(random: &mut Random) -> (Trouble, usize) {
    let usual = [Trouble::Refused(503), Trouble::Throttled, Trouble::Cut, Trouble::Lost];
    // These take half a minute each.
    match random.below(30) {
        0 => (Trouble::Ignored, 1),
        1 => (Trouble::Unanswered, 1),
        _ => (random.of(&usual), 1 + random.below(2) as usize),
    }
}

/// How often in a row a call may meet this trouble. A call that only tidies up is given up after a minute, for buckets
/// have rules of their own; so that it comes to its end it never hangs, and fails once at a time.
fn bearable(call: &Call, trouble: Trouble, times: usize) -> Option<usize> {
    match trouble {
        Trouble::Ignored | Trouble::Unanswered if call.tidies => None,
        _ if call.tidies => Some(1),
        _ => Some(times),
    }
}

fn title(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Refused(_) => "503",
        Trouble::Throttled => "throttled",
        Trouble::Cut => "cut",
        Trouble::Lost => "answer lost",
        Trouble::Ignored | Trouble::Unanswered => "hangs",
    }
}

/// The expected end state. Composes that came late because a newer one was there already may be absent from it, or
/// there in part: a registry keeps blobs that no tag leads to, and forgets them by itself. Nothing else may be there.
async fn expected<W: World>(stage: &Stage<'_>, found: &Found) -> Found {
    let composes = stage.composes();
    let mut all = quiet::<W>(stage, &composes).await;
    if W::SKIPS_OLDER {
        let needed = quiet::<W>(stage, &composes[composes.len() - 1..]).await;
        all.retain(|name, _| needed.contains_key(name) || found.contains_key(name));
    }
    all
}

/// The end state when composes are published one after another, and nothing fails.
async fn quiet<W: World>(stage: &Stage<'_>, composes: &[String]) -> Found {
    let world = W::start().await;
    for compose in composes {
        let exit = reconsume(&world, compose, &stage.place(compose))
            .run(LONG)
            .await
            .unwrap();
        assert_published(&exit, compose);
    }
    world.found().await
}
