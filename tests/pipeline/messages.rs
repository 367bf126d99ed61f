//! Messages, good and bad, and their outcomes.

use std::time::Duration;

use cloud_image_uploader_test_support::archive::{message, noise};
use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use cloud_image_uploader_test_support::files::Fault;
use cloud_image_uploader_test_support::proxy::Proxy;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON};
use serde_json::{Value, json};

use crate::metrics::Scrape;
use crate::world::*;

/// With client certificates, permissions, and passive declares as in production, announced by the existing client.
#[tokio::test]
async fn a_compose_is_published_announced_and_acknowledged() {
    let world = World::new().await;
    let mut spy = world
        .admin
        .spy("org.fedoraproject.prod.fedora_image_uploader.#")
        .await
        .unwrap();
    let broker = format!("amqp_url = {:?}\n", world.rabbit.tls_url(DAEMON));
    let tls = world.rabbit.tls_table(DAEMON, world.folder.path()).unwrap();
    let daemon = world.consume_with(&world.config(&format!("{broker}{tls}"))).await;
    let client = FedoraMessaging::new().unwrap();
    client.publish(&world.rabbit, &[world.message()]).await.unwrap();

    let mut notices = vec![spy.next(LONG).await.unwrap(), spy.next(LONG).await.unwrap()];
    notices.sort_by(|a, b| a.routing_key.cmp(&b.routing_key));
    for (notice, (arch, seed)) in notices.iter().zip([("aarch64", 2), ("x86_64", 1)]) {
        let topic =
            format!("org.fedoraproject.prod.fedora_image_uploader.published.v1.local.nightly.Cloud_Base.{arch}");
        assert_eq!(notice.routing_key, topic);
        assert_eq!(notice.exchange, "amq.topic");
        let body = notice.json().unwrap();
        assert_eq!(
            (&body["compose_id"], &body["architecture"]),
            (&json!(COMPOSE), &json!(arch))
        );
        assert_eq!(std::fs::read(world.disk(arch)).unwrap(), noise(seed, 3 << 20));
        let headers = notice.headers();
        assert_eq!(headers["fedora_messaging_severity"], 20);
        let typed = notice.properties.headers().as_ref().unwrap().inner();
        let mut severity = typed
            .iter()
            .filter(|(name, _)| name.as_str() == "fedora_messaging_severity");
        // 32 bits, as the existing client sends it.
        assert_eq!(
            severity.next().map(|(_, value)| value),
            Some(&lapin::types::AMQPValue::LongInt(20))
        );
        assert_eq!(headers["fedora_messaging_schema"], "base.message");
        let sent: jiff::Timestamp = headers["sent-at"].as_str().unwrap().parse().unwrap();
        assert!(sent <= jiff::Timestamp::now());
        let properties = &notice.properties;
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
        assert_eq!(properties.content_encoding().as_ref().unwrap().as_str(), "utf-8");
        let id = properties.message_id().as_ref().unwrap().to_string();
        assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 5);
    }
    world.until_processed(1).await;
    world.until_settled(daemon).await;

    // A new process, given the same message: nothing is read, and the notices have the same ids.
    let before = world.files.requests_for(&World::image_path("x86_64")).len();
    let daemon = world.consume().await;
    world.announce().await;
    let mut repeated = [spy.next(LONG).await.unwrap(), spy.next(LONG).await.unwrap()];
    repeated.sort_by(|a, b| a.routing_key.cmp(&b.routing_key));
    for (again, first) in repeated.iter().zip(&notices) {
        assert_eq!(again.properties.message_id(), first.properties.message_id());
        assert_eq!(again.json().unwrap(), first.json().unwrap());
    }
    assert_eq!(world.files.requests_for(&World::image_path("x86_64")).len(), before);
    world.until_settled(daemon).await;
}

#[tokio::test]
async fn irrelevant_messages_are_acknowledged_while_work_runs() {
    let world = World::new().await;
    let daemon = world.begin().await;
    for number in 0..40 {
        let mut message = world.message();
        message["id"] = json!(uuid::Uuid::new_v4().to_string());
        match number % 3 {
            0 => message["body"]["status"] = json!("STARTED"),
            1 => message["body"]["compose_id"] = json!("Fedora-Epel-9-updates-20250911.0"),
            _ => message["body"]["compose_id"] = json!("Fedora-42-updates-testing-20251105.0"),
        }
        world.admin.publish_serialized(&message).await.unwrap();
    }
    let document = world
        .until_ready(|_, document| document["consumed"]["processed"] == 40)
        .await;
    assert_eq!(
        document["consumed"]["received"], 41,
        "the compose is still being worked on"
    );
    drop(daemon);
}

/// A queue whose rejected messages go to another one.
async fn with_dead_letters(world: &World) -> &'static str {
    world.admin.delete(QUEUE).await.unwrap();
    let arguments = json!({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"});
    world
        .admin
        .declare(QUEUE, rabbit::COMPOSE_CHANGES, arguments)
        .await
        .unwrap();
    world.admin.declare("dead", "nothing.at.all", json!({})).await.unwrap();
    "dead"
}

#[tokio::test]
async fn bad_messages_are_rejected_for_good_and_named() {
    let world = World::new().await;
    let dead = with_dead_letters(&world).await;
    let config = world.config(&World::broker(world.rabbit.plain_port));
    let config = config.replace(
        "give_up_after",
        "allowed_compose_hosts = [\"127.0.0.1\"]\ngive_up_after",
    );
    let mut daemon = world.consume_with(&config).await;
    let topic = "org.fedoraproject.prod.pungi.compose.status.change";
    let elsewhere = world.files.url("/nowhere");
    let finished = |key: &str, value: Value| {
        let mut body = world.message()["body"].clone();
        body[key] = value;
        body.to_string().into_bytes()
    };
    let bodies: Vec<(Vec<u8>, &str)> = vec![
        (b"\xff\xfe".to_vec(), "utf-8"),
        (b"not json".to_vec(), "expected ident"),
        (b"[1, 2]".to_vec(), "not a JSON object"),
        (b"{}".to_vec(), "\"status\" is missing"),
        (finished("compose_id", Value::Null), "\"compose_id\" is missing"),
        (finished("location", json!(17)), "\"location\" is missing"),
        (finished("location", json!("file:///etc")), "only http and https"),
        (
            finished("location", json!("http://somebody:hunter2@127.0.0.1/compose")),
            "without user name and password",
        ),
        (
            message(
                "Fedora-Cloud-43-20260307.0",
                None,
                &elsewhere.replace("127.0.0.1", "localhost"),
            )["body"]
                .to_string()
                .into_bytes(),
            "not one of allowed_compose_hosts",
        ),
        (finished("location", json!(elsewhere)), "find http"),
        (
            finished("compose_id", json!("Fedora-Cloud-43-20260306.0")),
            "the metadata there is of",
        ),
    ];
    let count = bodies.len();
    for (body, _) in &bodies {
        let properties =
            lapin::BasicProperties::default().with_message_id("9a0e4f7e-0000-4000-8000-000000000001".into());
        world.admin.publish("amq.topic", topic, properties, body).await.unwrap();
    }
    let wanted = u32::try_from(count).unwrap();
    world
        .admin
        .wait_depth(dead, LONG, |depth| depth.ready == wanted)
        .await
        .unwrap();
    for (_, text) in &bodies {
        daemon.wait_for_log(text, LONG).await.unwrap();
    }
    assert!(daemon.stderr().contains("9a0e4f7e-0000-4000-8000-000000000001"));
    assert!(!daemon.stderr().contains("hunter2"));
    world.until_settled(daemon).await;
}

#[tokio::test]
async fn a_corrupt_image_is_reported_once_and_the_others_are_done() {
    let world = World::new().await;
    let dead = with_dead_letters(&world).await;
    let mut spy = world
        .admin
        .spy("org.fedoraproject.prod.fedora_image_uploader.#")
        .await
        .unwrap();
    world
        .files
        .fault(&World::image_path("x86_64"), Fault::Flip { offset: 20_000 }, 1);
    let mut daemon = world.consume().await;
    world.announce().await;
    assert!(spy.next(LONG).await.unwrap().routing_key.ends_with(".aarch64"));
    world
        .admin
        .wait_depth(dead, LONG, |depth| depth.ready == 1)
        .await
        .unwrap();
    daemon.wait_for_log("its SHA-256 is", LONG).await.unwrap();
    let errors: Vec<String> = daemon
        .stderr()
        .lines()
        .filter(|line| line.contains("ERROR"))
        .map(str::to_owned)
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let repair = errors[0].split("repair: ").nth(1).unwrap();
    assert!(repair.starts_with("cloud-image-uploader --conf "), "{repair}");
    assert!(repair.contains("--only Cloud/x86_64/images/"), "{repair}");
    assert!(!world.disk("x86_64").exists());
    assert!(world.disk("aarch64").exists());
    let leftovers = std::fs::read_dir(world.disk("x86_64").parent().unwrap())
        .unwrap()
        .count();
    assert_eq!(leftovers, 0);
    world.until_settled(daemon).await;
}

/// The connection is cut while an image is read: the work goes on, the redelivered message joins it, one result.
#[tokio::test]
async fn a_redelivered_message_joins_the_work() {
    let world = World::new().await;
    let proxy = Proxy::start(world.rabbit.plain_port).await.unwrap();
    let mut spy = world
        .admin
        .spy("org.fedoraproject.prod.fedora_image_uploader.#")
        .await
        .unwrap();
    // Two seconds during which the connection can be cut; the source is tried again after that.
    let pause = Some("4".to_owned());
    world.files.fault(
        &World::image_path("x86_64"),
        Fault::Status {
            code: 503,
            retry_after: pause,
        },
        1,
    );
    let mut daemon = world.consume_with(&world.config(&World::broker(proxy.port()))).await;
    world.announce().await;
    daemon.wait_for_log("going on from there", LONG).await.unwrap();
    proxy.cut();
    daemon.wait_for_log("joins the work", LONG).await.unwrap();
    spy.next(LONG).await.unwrap();
    spy.next(LONG).await.unwrap();
    let document = world.until_processed(1).await;
    assert_eq!(document["consumed"]["received"], 2);
    assert_eq!(
        world.files.requests_for(&World::image_path("aarch64")).len(),
        1,
        "read once"
    );
    world.until_settled(daemon).await;
}

#[tokio::test]
async fn the_broker_may_restart_and_nothing_is_lost() {
    let mut world = World::new().await;
    world.files.fault(
        &World::image_path("x86_64"),
        Fault::Status {
            code: 503,
            retry_after: Some("3".to_owned()),
        },
        1,
    );
    let mut daemon = world.consume().await;
    world.announce().await;
    daemon.wait_for_log("going on from there", LONG).await.unwrap();
    world.rabbit.stop().await.unwrap();
    daemon.wait_for_log("lost the broker", LONG).await.unwrap();
    world
        .until_ready(|status, document| status == 503 && document["consuming"] == false)
        .await;
    let live = reqwest::get(format!("http://127.0.0.1:{}/live", world.monitoring))
        .await
        .unwrap();
    assert_eq!(live.json::<Value>().await.unwrap(), json!({"status": "OK"}));
    world.rabbit.start_again().await.unwrap();
    world.admin = world.rabbit.admin().await.unwrap();
    world
        .until_ready(|status, document| status == 200 && document["consumed"]["processed"] == 1)
        .await;
    assert!(world.disk("x86_64").exists() && world.disk("aarch64").exists());
    let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", world.monitoring))
        .await
        .unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("uploader_notifications_total{provider=\"local\"} 2"),
        "{metrics}"
    );
    world.until_settled(daemon).await;
}

/// Transient failures beyond `give_up_after` are permanent; until then they are retried.
#[tokio::test]
async fn a_source_that_stays_away_is_given_up_in_time() {
    let world = World::new().await;
    let dead = with_dead_letters(&world).await;
    let away = Fault::Status {
        code: 503,
        retry_after: None,
    };
    world.files.fault(&World::image_path("x86_64"), away, 1_000_000);
    let config = world
        .config(&World::broker(world.rabbit.plain_port))
        .replace("\"40s\"", "\"3s\"");
    let mut daemon = world.consume_with(&config).await;
    world.announce().await;
    world
        .admin
        .wait_depth(dead, Duration::from_secs(300), |depth| depth.ready == 1)
        .await
        .unwrap();
    daemon.wait_for_log("the server answered 503", LONG).await.unwrap();
    assert!(
        world.files.requests_for(&World::image_path("x86_64")).len() > 2,
        "it was tried again"
    );
    assert!(world.disk("aarch64").exists());
    world.until_settled(daemon).await;
}

/// A problem that an operator has to fix: the delivery comes back, `/ready` says why, and after the fix it is done.
#[tokio::test]
async fn a_missing_target_holds_the_message_until_it_is_fixed() {
    let world = World::new().await;
    std::fs::write(world.published(), "in the way").unwrap();
    let daemon = world.consume().await;
    world.announce().await;
    let failed = |document: &Value| document["trouble"].to_string().contains("failed to");
    let document = world.until_ready(|_, document| failed(document)).await;
    let why = document["trouble"].as_str().unwrap();
    assert!(why.contains("published"), "{why}");
    assert_eq!(document["consuming"], true);
    std::fs::remove_file(world.published()).unwrap();
    let document = world.until_processed(1).await;
    assert_eq!(document["consumed"]["rejected"], 1);
    assert_eq!(document["trouble"], Value::Null);
    assert!(world.disk("x86_64").exists());
    // `uploader_trouble` alone reports the retry: metrics of permanent failures call other people.
    let scrape = Scrape::of(&world).await;
    scrape.assert("uploader_failures_total", &[("kind", "everything")], 0.0);
    scrape.assert("uploader_deliverables_total", &[("outcome", "failed")], 0.0);
    scrape.assert("uploader_deliverables_total", &[("outcome", "published")], 2.0);
    world.until_settled(daemon).await;
}

/// A delivery that waits for an operator is no work in hand: it goes back at once.
#[tokio::test]
async fn a_signal_waits_for_nothing_that_waits_for_an_operator() {
    let world = World::new().await;
    std::fs::write(world.published(), "in the way").unwrap();
    let daemon = world.consume().await;
    world.announce().await;
    let failed = |document: &Value| document["trouble"].to_string().contains("failed to");
    world.until_ready(|_, document| failed(document)).await;
    daemon.terminate().unwrap();
    let exit = daemon.wait(Duration::from_secs(20)).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(!exit.stderr.contains("is left to the next delivery"), "{}", exit.stderr);
    world
        .admin
        .wait_depth(QUEUE, LONG, |depth| depth.ready == 1)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_signal_leaves_unfinished_work_to_redelivery() {
    let world = World::new().await;
    let daemon = world.begin().await;
    daemon.terminate().unwrap();
    let exit = daemon.wait(Duration::from_secs(20)).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world
        .admin
        .wait_depth(QUEUE, LONG, |depth| depth.ready == 1)
        .await
        .unwrap();

    let daemon = world.consume().await;
    world.until_processed(1).await;
    assert_eq!(std::fs::read(world.disk("x86_64")).unwrap(), noise(1, 3 << 20));
    world.until_settled(daemon).await;
}

#[tokio::test]
async fn an_error_for_the_operator_ends_the_process_with_its_code() {
    let world = World::new().await;
    world
        .admin
        .declare("somebody-elses", "nothing", json!({}))
        .await
        .unwrap();
    let good = world.config(&World::broker(world.rabbit.plain_port));
    let folder = world.folder.path();
    let without_certificate = {
        let ca = world.rabbit.authority.write(folder).unwrap();
        format!(
            "amqp_url = {:?}\n[tls]\nca_cert = {ca:?}\n",
            world.rabbit.tls_url(DAEMON)
        )
    };
    let table = [
        (
            good.replace(QUEUE, "cloud-image-uploader-nobody"),
            10,
            "declare the queue \"cloud-image-uploader-nobody\"",
        ),
        (good.replace("test-password", "wrong"), 14, "log in to the broker"),
        (world.config(&without_certificate), 14, "log in to the broker"),
        (
            good.replace(&format!("[queues.\"{QUEUE}\"]"), "[queues.somebody-elses]")
                .replace(&format!("queue = \"{QUEUE}\""), "queue = \"somebody-elses\"")
                .replace(
                    "routing_keys = [\"org.fedoraproject.*.pungi.compose.status.change\"]",
                    "routing_keys = []",
                ),
            15,
            "read permission",
        ),
        (
            good.replace("passive_declares", "pasive_declares"),
            2,
            "did you mean \"passive_declares\"",
        ),
    ];
    for (config, code, text) in table {
        let exit = World::program(&config).arg("consume").run(LONG).await.unwrap();
        assert_eq!(exit.code, Some(code), "{text}: {}", exit.stderr);
        assert!(exit.stderr.contains(text), "{text:?} is not in {}", exit.stderr);
        assert!(!exit.stderr.contains("test-password"), "{}", exit.stderr);
        assert_eq!(exit.stdout, "");
    }
}

#[tokio::test]
async fn a_forbidden_topic_says_what_to_check() {
    let world = World::new().await;
    let config = world
        .config(&World::broker(world.rabbit.plain_port))
        .replace("org.fedoraproject.prod\"", "org.elsewhere\"");
    let mut daemon = world.consume_with(&config).await;
    world.announce().await;
    daemon.wait_for_log("check topic_prefix", LONG).await.unwrap();
    assert!(
        daemon
            .stderr()
            .contains("org.elsewhere.fedora_image_uploader.published")
    );
    world.until_ready(|_, document| document["trouble"].is_string()).await;
    drop(daemon);
}

/// A server-named queue and active declares, as the existing client does without a configuration for queues.
#[tokio::test]
async fn a_queue_of_the_servers_naming_is_bound_again_on_each_connection() {
    let world = World::new().await;
    let proxy = Proxy::start(world.rabbit.plain_port).await.unwrap();
    let url = rabbit::url("amqp", rabbit::ADMIN, proxy.port());
    let config = world.config(&format!("amqp_url = {url:?}\n"));
    let config = config
        .replace("passive_declares = true", "passive_declares = false")
        .replace(
            &format!("[queues.\"{QUEUE}\"]\ndurable = true\nauto_delete = false\nexclusive = false"),
            "[queues.\"\"]\ndurable = false\nauto_delete = true\nexclusive = true",
        )
        .replace(&format!("queue = \"{QUEUE}\""), "queue = \"\"");
    let mut spy = world
        .admin
        .spy("org.fedoraproject.prod.fedora_image_uploader.#")
        .await
        .unwrap();
    let mut daemon = world.consume_with(&config).await;
    proxy.cut();
    daemon.wait_for_log("lost the broker", LONG).await.unwrap();
    world.until_ready(|status, _| status == 200).await;
    world.announce().await;
    spy.next(LONG).await.unwrap();
    world.until_processed(1).await;
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait(LONG).await.unwrap().code, Some(0));
}

#[tokio::test]
async fn reconsume_announces_with_the_prefix_and_check_reports() {
    let world = World::new().await;
    let mut spy = world
        .admin
        .spy("org.fedoraproject.prod.fedora_image_uploader.#")
        .await
        .unwrap();
    let config = world.config(&World::broker(world.rabbit.plain_port));
    let file = world.folder.path().join("message.json");
    std::fs::write(&file, world.message().to_string()).unwrap();
    let exit = World::program(&config)
        .args(["reconsume", "--file"])
        .arg(&file)
        .run(LONG)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(exit.stdout.contains("published"), "{}", exit.stdout);
    spy.next(LONG).await.unwrap();

    let exit = World::program(&config).arg("check").run(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}{}", exit.stdout, exit.stderr);
    assert!(exit.stdout.contains(&format!("{QUEUE} (0 waiting)")), "{}", exit.stdout);
    let exit = World::program(&config.replace(QUEUE, "cloud-image-uploader-nobody"))
        .arg("check")
        .run(LONG)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(1), "{}{}", exit.stdout, exit.stderr);
    assert!(exit.stdout.contains("failed: broker"), "{}", exit.stdout);

    let to_make = config
        .replace(QUEUE, "cloud-image-uploader-nobody")
        .replace("passive_declares = true", "passive_declares = false");
    let exit = World::program(&to_make).arg("check").run(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}{}", exit.stdout, exit.stderr);
    assert!(
        exit.stdout.contains("cloud-image-uploader-nobody (not there yet"),
        "{}",
        exit.stdout
    );
}
