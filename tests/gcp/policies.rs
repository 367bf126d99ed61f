//! Promotion and clean-up on the cloud over simulated months.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_image_uploader::lifecycle::run::upkeep;
use cloud_image_uploader::providers::contract::{Action, Retire, Retired};
use cloud_image_uploader_test_support::gcp::Fault;
use cloud_image_uploader_test_support::program::Program;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::world::*;

/// Moves all times in the cloud back by some days.
pub fn age(world: &World, days: i64) {
    let shift = SignedDuration::from_hours(24 * days);
    let earlier = |value: &mut Value| {
        if let Some(at) = value.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
            *value = json!((at - shift).strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
    };
    world.cloud.change_images(|image| {
        earlier(&mut image["creationTimestamp"]);
        if !image["deprecated"].is_null() {
            earlier(&mut image["deprecated"]["deprecated"]);
        }
        if let Some(promoted) = image["labels"]["promoted"].as_str() {
            let (date, time) = promoted.split_once('t').unwrap();
            let at: Timestamp = format!("{date}T{}Z", time.replace('-', ":")).parse().unwrap();
            image["labels"]["promoted"] = json!((at - shift).strftime("%Y-%m-%dt%H-%M-%S").to_string());
        }
    });
}

/// The date of a day; day 1 is the first of October.
fn date(day: u8) -> String {
    let date = jiff::civil::date(2025, 9, 30) + jiff::Span::new().days(day);
    date.strftime("%Y%m%d").to_string()
}

/// Publishes the image of a day and runs clean-up, as the daemon does. A failure of clean-up is no concern of publishing.
pub async fn make(world: &World, day: u8) -> String {
    let id = format!("Fedora-Cloud-43-{}.0", date(day));
    let deliverable = world.deliverable(&id, row(tarball(day.into(), 1000))).await;
    let provider = world.provider();
    publish(&provider, &deliverable).await.unwrap();
    let _ = provider.clean_up(false).await;
    deliverable.name()
}

fn others(world: &World) -> [(String, Value); 3] {
    let put = |name: &str, fields: Value| {
        world.cloud.put_image(name, fields);
        (name.to_owned(), world.cloud.images()[name].clone())
    };
    let old = "2020-01-01T00:00:00Z";
    let deprecated = json!({"state": "DEPRECATED", "deprecated": old});
    [
        put(
            "coreos",
            json!({"family": FAMILY, "labels": {"owner": "coreos"}, "deprecated": deprecated}),
        ),
        put("by-hand", json!({"creationTimestamp": old, "deprecated": deprecated})),
        put(
            "kept",
            json!({
                "deprecated": deprecated,
                "labels": {"owner": "cloud-image-uploader", "compose-id": "fedora-43-20200101_0", "delete": "Never"},
            }),
        ),
    ]
}

fn named(days: &[u8]) -> Vec<String> {
    let name = |day: &u8| format!("fedora-cloud-43-{}-0-x86-64", date(*day));
    days.iter().map(name).collect()
}

/// Names of our images in the cloud.
fn ours(world: &World) -> Vec<String> {
    let mut names: Vec<_> = world.cloud.images().into_keys().collect();
    names.retain(|name| name.starts_with("fedora-cloud-43-"));
    names
}

/// All heads of the family in order, without a gap.
fn heads(world: &World) -> Vec<String> {
    let heads = world.cloud.heads(FAMILY).into_iter();
    let heads: Vec<_> = heads
        .map(|head| head.unwrap_or_else(|| panic!("the family has lost its head")))
        .collect();
    assert!(heads.is_sorted(), "back to an older one: {heads:?}");
    heads
}

fn assert_untouched(world: &World, others: [(String, Value); 3]) {
    let images = world.cloud.images();
    for (name, was) in others {
        let mut is = images[&name].clone();
        is["creationTimestamp"] = was["creationTimestamp"].clone();
        is["deprecated"]["deprecated"] = was["deprecated"]["deprecated"].clone();
        assert_eq!(is, was, "{name} is touched");
    }
}

fn has_failed(retired: &Retired) -> bool {
    let failed = |action: &Action| matches!(action, Action::Failed(_));
    retired.decisions.iter().any(|decision| failed(&decision.action))
}

/// A new process each day; one image every other day for a month.
#[tokio::test(flavor = "multi_thread")]
async fn a_family_keeps_its_rules_for_months() {
    let world = World::new().await;
    world.cloud.set_page(2);
    let others = others(&world);
    for day in 1..=60u8 {
        if day.is_multiple_of(2) && day <= 30 {
            make(&world, day).await;
        }
        assert!(
            !has_failed(&world.provider().clean_up(false).await.unwrap()),
            "day {day}"
        );
        age(&world, 1);
    }
    assert_eq!(heads(&world), named(&[2, 16, 30]));
    assert_eq!(
        ours(&world),
        named(&[30]),
        "two weeks after the last promotion only the head is left"
    );

    // The head outlives its release, until an operator ends the family.
    world.cloud.change_images(|image| {
        if image["labels"]["end-of-life"].is_string() {
            image["labels"]["end-of-life"] = json!("2020-01-01");
        }
    });
    world.provider().clean_up(false).await.unwrap();
    assert_eq!(ours(&world), named(&[30]));
    world.cloud.change_images(|image| {
        if image["deprecated"].is_null() {
            image["deprecated"] = json!({"state": "DEPRECATED"});
        }
    });
    world.provider().clean_up(false).await.unwrap();
    assert_eq!(ours(&world), named(&[]));
    assert_untouched(&world, others);
    world.cloud.validate_calls().await.unwrap();
}

/// The same, while each kind of call is refused once, so that runs end half-way.
#[tokio::test(flavor = "multi_thread")]
async fn a_family_keeps_its_rules_through_months_of_failures() {
    let world = World::new().await;
    let others = others(&world);
    let turn = [
        ("images.setLabels", 0),
        ("images.deprecate", 0),
        ("images.deprecate", 1),
    ];
    let calls = [&turn[..], &[("images.delete", 0), ("images.list", 0)]].concat();
    let mut calls = [&calls[..], &calls].concat().into_iter().peekable();
    for day in 1..=80u8 {
        if day % 4 == 2 && day <= 50 {
            // A list during publication would be incomplete.
            world.cloud.set_partial(true);
            make(&world, day).await;
            world.cloud.set_partial(false);
        }
        if let Some((call, after)) = calls.peek() {
            for _ in 0..*after {
                world.cloud.fault(call, Fault::Nothing, 1);
            }
            world.cloud.fault(call, Fault::forbidden(), 1);
        }
        let is_troubled = !matches!(world.provider().clean_up(false).await, Ok(retired) if !has_failed(&retired));
        assert_eq!(
            is_troubled,
            calls.peek().is_some() && world.cloud.faults_met(),
            "day {day}"
        );
        if is_troubled {
            calls.next();
        }
        world.cloud.mend();
        age(&world, 1);
    }
    assert_eq!(calls.next(), None, "every call was refused some day");
    let heads = heads(&world);
    assert!((4..=5).contains(&heads.len()), "{heads:?}");
    assert_eq!(ours(&world), heads[heads.len() - 1..]);
    assert_untouched(&world, others);
}

/// Names distinguish the previous service's images from others without a mark.
#[tokio::test(flavor = "multi_thread")]
async fn clean_up_unmarked_includes_only_images_of_the_previous_service() {
    let world = World::new().await;
    let old = "2020-01-01T00:00:00Z";
    let deprecated = json!({"state": "DEPRECATED", "deprecated": old});
    let put = |name: &str, family: &str, deprecated: &Value| {
        let fields = json!({"family": family, "creationTimestamp": old, "deprecated": deprecated});
        world.cloud.put_image(name, fields);
    };
    put("builder-1", "builder", &deprecated);
    put("builder-2", "builder", &Value::Null);
    put("builder-3", FAMILY, &Value::Null);
    put("fedora-cloud-43-20250101-0-x86-64", FAMILY, &deprecated);
    put("fedora-cloud-43-20250102-0-x86-64", FAMILY, &Value::Null);
    let before = world.cloud.images();
    let name = make(&world, 1).await;
    age(&world, 2);

    let provider = world.provider_with("clean_up_unmarked = true\n");
    let retired = provider.clean_up(false).await.unwrap();
    assert!(!has_failed(&retired), "{retired:?}");
    assert_eq!(ours(&world), ["fedora-cloud-43-20250102-0-x86-64", &name]);
    let images = world.cloud.images();
    let former = &images["fedora-cloud-43-20250102-0-x86-64"]["deprecated"];
    assert_eq!(former["state"], "DEPRECATED", "the new head has taken its place");
    for builder in ["builder-1", "builder-2", "builder-3"] {
        let [is, was] = [&images, &before].map(|images| &images[builder]["deprecated"]["state"]);
        assert_eq!(is, was, "{builder} is touched");
    }
    let decision = retired
        .decisions
        .iter()
        .find(|decision| decision.name == "builder-1")
        .unwrap();
    assert!(
        decision.reason.contains("does not begin with fedora-cloud-"),
        "{}",
        decision.reason
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_previous_head_names_the_new_one_as_its_replacement() {
    let world = World::new().await;
    let first = make(&world, 1).await;
    age(&world, 20);
    let second = make(&world, 2).await;
    assert_eq!(world.cloud.head(FAMILY).as_ref(), Some(&first), "the second is too new");
    age(&world, 14);
    world.provider().clean_up(false).await.unwrap();
    let described = world.cloud.describe(&[FAMILY]).await.unwrap();
    assert_eq!(described["families"][FAMILY], json!(second));
    let former = &described["images"][&first]["deprecated"];
    assert_eq!(former["state"], "DEPRECATED");
    assert!(former["replacement"].as_str().unwrap().ends_with(&second), "{former}");
}

/// Without a broker no image arrives.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_promotes_by_itself() {
    let world = World::new().await;
    let name = make(&world, 1).await;
    age(&world, 2);
    let config = format!("amqp_url = \"amqp://127.0.0.1:1\"\n{}", world.config(""));
    let program = Program::new(PROGRAM).unwrap().config(&config).unwrap().arg("consume");
    let daemon = program
        .env("GOOGLE_APPLICATION_CREDENTIALS", &world.credentials)
        .start()
        .unwrap();
    world.cloud.wait_for_call("images.setLabels", 1).await.unwrap();
    world.cloud.wait_for_call("images.deprecate", 2).await.unwrap();
    assert_eq!(world.cloud.head(FAMILY), Some(name));
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait(LIMIT).await.unwrap().code, Some(0));
}

/// Nothing is published and nothing restarted. The daemon's hour is shorter here.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_process_promotes_again_and_again() {
    let world = World::new().await;
    let first = make(&world, 1).await;
    let provider: Arc<dyn Retire> = Arc::new(world.provider());
    assert!(provider.interval().is_some());
    // A run that fails is not the last one.
    world.cloud.fault("images.list", Fault::forbidden(), 1);
    let running = tokio::spawn(upkeep(provider, Some(Duration::from_millis(100)), Arc::default()));
    world.cloud.wait_for_call("images.list", 3).await.unwrap();
    assert_eq!(world.cloud.head(FAMILY), None);
    age(&world, 2);
    until_head(&world, &first).await;
    let second = make(&world, 2).await;
    age(&world, 14);
    until_head(&world, &second).await;
    running.abort();
    assert_eq!(heads(&world), [first, second]);
}

async fn until_head(world: &World, name: &str) {
    let deadline = Instant::now() + LIMIT;
    while world.cloud.head(FAMILY).as_deref() != Some(name) {
        assert!(Instant::now() < deadline, "{name} is not promoted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Prepares work for one run: the second image is the head, the fourth is due to replace it, and the third is due for
/// deletion. Returns the names of all four.
async fn work_for_a_run(world: &World) -> [String; 4] {
    let (first, second) = (make(world, 1).await, make(world, 2).await);
    age(world, 20);
    let names = [first, second, make(world, 3).await, make(world, 4).await];
    age(world, 14);
    assert_eq!(ours(world), names[1..]);
    assert_eq!(heads(world), names[1..2]);
    names
}

fn assert_done(world: &World, names: &[String; 4], what: &str) {
    let [_, second, _, fourth] = names.clone();
    assert_eq!(heads(world), [second.clone(), fourth.clone()], "{what}");
    assert_eq!(ours(world), [second, fourth], "{what}");
    let images = world.cloud.images();
    let active = images.values().filter(|image| image["deprecated"].is_null());
    assert_eq!(active.count(), 1, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_completed_by_the_next() {
    let calls = [
        ("images.setLabels", 0),
        ("images.deprecate", 0),
        ("images.deprecate", 1),
        ("images.delete", 0),
    ];
    for (call, after) in calls {
        let world = World::new().await;
        let names = work_for_a_run(&world).await;
        let done = world.cloud.count(call);
        for _ in 0..after {
            world.cloud.fault(call, Fault::Nothing, 1);
        }
        world.cloud.fault(call, Fault::Freeze, 1);
        let mut running = world.program().arg("clean-up").start().unwrap();
        world.cloud.wait_for_call(call, done + after + 1).await.unwrap();
        running.kill().unwrap();
        let exit = world.program().arg("clean-up").run(LIMIT).await.unwrap();
        assert_eq!(exit.code, Some(0), "{call}: {}", exit.stderr);
        assert_done(&world, &names, &format!("{call} + {after}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_at_once_do_as_one() {
    for delay in [0, 300] {
        let world = World::new().await;
        let names = work_for_a_run(&world).await;
        world.cloud.set_delay(Duration::from_millis(delay));
        let run = async || world.provider().clean_up(false).await.unwrap();
        tokio::join!(run(), run());
        assert_done(&world, &names, &format!("{delay} ms"));
        let writes = world.cloud.writes().len();
        assert!(!has_failed(&run().await));
        assert_eq!(world.cloud.writes().len(), writes, "nothing is left to do");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_of_a_run_are_settled_by_looking() {
    let world = World::new().await;
    let names = work_for_a_run(&world).await;
    for call in ["images.setLabels", "images.deprecate", "images.delete"] {
        world.cloud.fault(call, Fault::LostAnswer, 1);
    }
    let retired = world.provider().clean_up(false).await.unwrap();
    assert!(world.cloud.faults_met() && !has_failed(&retired), "{retired:?}");
    assert_done(&world, &names, "lost answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_reports_decisions_and_deletes_images() {
    let world = World::new().await;
    let old = make(&world, 1).await;
    let ended = make(&world, 2).await;
    let next = make(&world, 3).await;
    others(&world);
    world.cloud.change_images(|image| {
        if image["name"] == json!(ended) {
            image["labels"]["end-of-life"] = json!("2020-01-01");
        }
        if image["name"] == json!(old) {
            image["labels"]["stage"] = json!("beta");
        }
    });
    age(&world, 20);
    let writes = world.cloud.writes().len();
    let run = async |arguments: &[&str]| world.program().args(arguments).run(LIMIT).await.unwrap();
    let exit = run(&["clean-up", "--dry-run"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    for line in [
        format!("would go: {old}: deprecated since"),
        format!("would go: {ended}: past its end of life on 2020-01-01"),
        format!("stays: {next}: it becomes the head of {FAMILY}"),
        "stays: coreos: it belongs to coreos".to_owned(),
        "stays: by-hand: it has no mark".to_owned(),
        "stays: kept: its label says delete=never".to_owned(),
    ] {
        assert!(exit.stdout.contains(&line), "{line}: {}", exit.stdout);
    }
    assert_eq!(world.cloud.writes().len(), writes);

    world.cloud.set_partial(true);
    let exit = run(&["clean-up"]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stdout);
    assert_eq!(world.cloud.writes().len(), writes, "nothing goes on a partial list");
    world.cloud.set_partial(false);
    world.cloud.set_page(1);
    world.cloud.fault("images.list", Fault::forbidden(), 1);
    let exit = run(&["clean-up"]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stdout);
    assert_eq!(world.cloud.writes().len(), writes);

    let exit = run(&["clean-up"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(exit.stdout.contains(&format!("gone: {old}")), "{}", exit.stdout);
    assert_eq!(
        world.cloud.images().into_keys().collect::<Vec<_>>(),
        ["by-hand", "coreos", &next, "kept"]
    );
    assert_eq!(world.cloud.head(FAMILY), Some(next));
}
