//! Promotion and clean-up on the cloud, while time goes by.

use cloud_image_uploader::provider::{Fate, Provider};
use cloud_image_uploader_test_support::gcp::Fault;
use cloud_image_uploader_test_support::program::Program;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::world::*;

/// Lets days go by for everything in the cloud.
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

pub async fn make(world: &World, day: u8) -> String {
    let id = format!("Fedora-Cloud-43-202510{day:02}.0");
    let deliverable = world.deliverable(&id, row(tarball(day, 1000))).await;
    publish(&world.provider(), &deliverable).await.unwrap();
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
                "labels": {"owner": "cloud-image-uploader", "compose-id": "fedora-43-20200101_0", "delete": "never"},
            }),
        ),
    ]
}

/// A new process each day; one image every other day.
#[tokio::test(flavor = "multi_thread")]
async fn months_go_by() {
    let world = World::new().await;
    world.cloud.set_page(2);
    let others = others(&world);
    let created = |value: &Value| value["creationTimestamp"].clone();
    let mut heads: Vec<String> = Vec::new();
    for day in 1..=60u8 {
        if day.is_multiple_of(2) && day <= 30 {
            make(&world, day).await;
        }
        world.provider().clean_up(false).await.unwrap();
        let head = world.cloud.head(FAMILY);
        assert!(
            head.is_some() || heads.is_empty(),
            "day {day}: the family has lost its head"
        );
        if let Some(head) = head
            && heads.last() != Some(&head)
        {
            assert!(heads.last() < Some(&head), "day {day}: back to {head} from {heads:?}");
            heads.push(head);
        }
        age(&world, 1);
    }
    let named = |days: &[u8]| {
        days.iter()
            .map(|day| format!("fedora-cloud-43-202510{day:02}-0-x86-64"))
            .collect::<Vec<_>>()
    };
    assert_eq!(heads, named(&[2, 16, 30]));
    let images = world.cloud.images();
    let left: Vec<_> = images
        .keys()
        .filter(|name| name.starts_with("fedora-cloud-43-"))
        .cloned()
        .collect();
    assert_eq!(
        left,
        named(&[30]),
        "two weeks after the last promotion only the head is left"
    );
    for (name, was) in others {
        let mut is = images[&name].clone();
        is["creationTimestamp"] = created(&was);
        is["deprecated"]["deprecated"] = was["deprecated"]["deprecated"].clone();
        assert_eq!(is, was, "{name} is touched");
    }
    world.cloud.validate_calls().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_head_points_to_the_new_one() {
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

/// There is no broker, so no image comes.
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

/// Each call of a turn fails once for good; the next run finishes, and the family always has a head.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_ends_half_way_is_finished_by_the_next_run() {
    for (call, skip) in [
        ("images.setLabels", 0),
        ("images.deprecate", 0),
        ("images.deprecate", 1),
    ] {
        let world = World::new().await;
        make(&world, 1).await;
        age(&world, 20);
        let second = make(&world, 2).await;
        age(&world, 14);
        // A fault that is none lets one call pass.
        for _ in 0..skip {
            world.cloud.fault(
                call,
                Fault::Fails {
                    code: "",
                    status: 0,
                    after: Default::default(),
                    leaves: false,
                },
                1,
            );
        }
        world.cloud.fault(call, Fault::forbidden(), 1);
        let retired = world.provider().clean_up(false).await.unwrap();
        assert!(
            retired
                .verdicts
                .iter()
                .any(|verdict| matches!(verdict.fate, Fate::Failed(_))),
            "{retired:?}"
        );
        assert!(world.cloud.head(FAMILY).is_some());
        world.provider().clean_up(false).await.unwrap();
        assert_eq!(world.cloud.head(FAMILY), Some(second), "{call}");
        let active = world
            .cloud
            .images()
            .into_values()
            .filter(|image| image["deprecated"].is_null())
            .count();
        assert_eq!(active, 1, "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_what_would_go_and_removes_it() {
    let world = World::new().await;
    let old = make(&world, 1).await;
    let ended = make(&world, 2).await;
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
        ["by-hand", "coreos", "kept"]
    );
}
