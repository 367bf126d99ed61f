//! `/metrics` while a compose is published, when something fails, and once the broker is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cloud_image_uploader::base::metrics::{ALL, Kind, Metric};
use cloud_image_uploader_test_support::files::Fault;
use cloud_image_uploader_test_support::rabbit::DAEMON;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::world::*;

type Labels = BTreeMap<String, String>;

/// The answer, as Prometheus reads it.
#[derive(Debug)]
pub struct Scrape {
    /// By name: its meaning.
    help: BTreeMap<String, String>,
    /// By name: its kind.
    kinds: BTreeMap<String, String>,
    series: Vec<(String, Labels, f64)>,
}

impl Scrape {
    pub async fn of(world: &World) -> Self {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/metrics", world.monitoring))
            .await
            .unwrap();
        assert_eq!(
            answer.headers()["content-type"],
            "text/plain; version=0.0.4; charset=utf-8"
        );
        Self::parse(&answer.text().await.unwrap())
    }

    /// Waits until it is as wanted.
    async fn until(world: &World, wanted: impl Fn(&Self) -> bool) -> Self {
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let scrape = Self::of(world).await;
            if wanted(&scrape) {
                return scrape;
            }
            assert!(tokio::time::Instant::now() < deadline, "it stays at {scrape:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    fn parse(text: &str) -> Self {
        let (mut help, mut kinds, mut series) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, text) = rest.split_once(' ').unwrap();
                help.insert(name.to_owned(), text.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                let (key, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = key.strip_suffix('}').unwrap().split_once('{').unwrap();
                let label = |label: &str| {
                    let (name, value) = label.split_once('=').unwrap();
                    (name.to_owned(), value.trim_matches('"').to_owned())
                };
                let labels = labels.split(',').map(label).collect();
                series.push((name.to_owned(), labels, value.parse().unwrap()));
            }
        }
        Self { help, kinds, series }
    }

    /// The value of the one series that has these labels, if it is there.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |found: &Labels| {
            labels
                .iter()
                .all(|(name, value)| found.get(*name).is_some_and(|found| found == value))
        };
        let found: Vec<_> = self.series.iter().filter(|(n, l, _)| n == name && fits(l)).collect();
        assert!(found.len() <= 1, "{name} {labels:?}: {found:?}");
        found.first().map(|(_, _, value)| *value)
    }

    #[track_caller]
    pub fn assert(&self, name: &str, labels: &[(&str, &str)], expected: f64) {
        assert_eq!(
            self.value(name, labels),
            Some(expected),
            "{name} {labels:?} in {self:#?}"
        );
    }

    /// Everything there is about one metric: its labels, beside those of histograms.
    fn labels(&self, metric: &Metric) -> BTreeSet<&str> {
        let ours = |name: &str| match metric.kind {
            Kind::Histogram => name.strip_prefix(metric.name).is_some_and(|rest| rest.starts_with('_')),
            Kind::Counter | Kind::Gauge => name == metric.name,
        };
        let series = self.series.iter().filter(|(name, _, _)| ours(name));
        let names = series.flat_map(|(_, labels, _)| labels.keys().map(String::as_str));
        names.filter(|name| *name != "le").collect()
    }
}

const X86_64: (&str, &str) = ("image", "Cloud_Base.x86_64");
const AARCH64: (&str, &str) = ("image", "Cloud_Base.aarch64");

#[tokio::test]
async fn metrics_answer_an_operators_questions() {
    let mut world = World::new().await;
    let broker = format!("amqp_url = {:?}\n", world.rabbit.tls_url(DAEMON));
    let tls = world.rabbit.tls_table(DAEMON, world.folder.path()).unwrap();
    let daemon = world.consume_with(&world.config(&format!("{broker}{tls}"))).await;
    let queue = ("queue", QUEUE);
    let scrape = Scrape::until(&world, |scrape| {
        scrape.value("uploader_queue_consumers", &[queue]) == Some(1.0)
    })
    .await;
    scrape.assert("uploader_consuming", &[("provider", "local")], 1.0);
    scrape.assert("uploader_trouble", &[], 0.0);
    scrape.assert("uploader_queue_messages_ready", &[queue], 0.0);
    // Events that have not happened yet are 0, not absent.
    scrape.assert("uploader_failures_total", &[("kind", "deliverable")], 0.0);
    scrape.assert("uploader_oldest_unfinished_compose_timestamp_seconds", &[], 0.0);
    let expires = scrape.value(
        "uploader_credential_expiry_timestamp_seconds",
        &[("credential", "amqp")],
    );
    assert!(expires.unwrap() > Timestamp::now().as_second() as f64);

    // How far it is, while it is being read.
    world.busy("x86_64", 0);
    let slow = Fault::Slow {
        piece: 256 << 10,
        pause: std::time::Duration::from_millis(300),
    };
    world.files.fault(&World::image_path("x86_64"), slow, 1);
    let sent = Timestamp::now() - SignedDuration::from_hours(3);
    let mut message = world.message();
    message["headers"]["sent-at"] = json!(format!("{sent:.0}").replace('Z', "+00:00"));
    world.admin.publish_serialized(&message).await.unwrap();
    let sizes = ["x86_64", "aarch64"].map(|arch| {
        let path = format!("served{}", World::image_path(arch));
        fs::metadata(world.folder.path().join(path)).unwrap().len() as f64
    });
    let scrape = Scrape::until(&world, |scrape| {
        scrape
            .value("uploader_image_read_bytes", &[X86_64])
            .is_some_and(|read| read > 0.0)
    })
    .await;
    let read = scrape.value("uploader_image_read_bytes", &[X86_64]).unwrap();
    assert!(read < sizes[0], "{read} of {}", sizes[0]);
    scrape.assert("uploader_image_size_bytes", &[X86_64], sizes[0]);
    assert!(scrape.value("uploader_images_in_progress", &[("state", "reading")]) >= Some(1.0));
    assert!(scrape.value("uploader_deliverables_in_progress", &[("step", "stage")]) >= Some(1.0));
    scrape.assert("uploader_composes_in_progress", &[], 1.0);
    scrape.assert("uploader_deliveries_in_hand", &[], 1.0);
    let oldest = "uploader_oldest_unfinished_compose_timestamp_seconds";
    scrape.assert(oldest, &[], sent.as_second() as f64);

    // The finished work, and nothing in progress.
    world.until_processed(1).await;
    let scrape = Scrape::until(&world, |scrape| {
        scrape.value("uploader_deliveries_in_hand", &[]) == Some(0.0)
    })
    .await;
    for (name, labels, value) in &scrape.series {
        if name.ends_with("_in_progress") || name.starts_with("uploader_image_") || name == oldest {
            assert_eq!(*value, 0.0, "{name} {labels:?}");
        }
    }
    scrape.assert("uploader_downloaded_bytes_total", &[], sizes[0] + sizes[1]);
    scrape.assert("uploader_decoded_bytes_total", &[], f64::from(6 << 20));
    scrape.assert("uploader_uploaded_bytes_total", &[], f64::from(6 << 20));
    scrape.assert("uploader_retries_total", &[("call", "download")], 1.0);
    scrape.assert("uploader_notifications_total", &[], 2.0);
    scrape.assert("uploader_deliverables_total", &[("outcome", "published")], 2.0);
    scrape.assert("uploader_messages_total", &[("event", "processed")], 1.0);
    let now = Timestamp::now().as_second() as f64;
    let success = scrape.value("uploader_last_success_timestamp_seconds", &[("release", "43")]);
    assert!((now - success.unwrap()).abs() < 60.0);
    let folder = world.published().display().to_string();
    for image in [X86_64, AARCH64] {
        let labels = [image, ("location", folder.as_str())];
        let took = scrape.value("uploader_publish_duration_seconds_sum", &labels).unwrap();
        assert!(
            (10_800.0..10_860.0).contains(&took),
            "since the message was sent: {took}"
        );
        for (bound, count) in [("7200", 0.0), ("14400", 1.0), ("+Inf", 1.0)] {
            let bucket = [image, ("le", bound)];
            scrape.assert("uploader_publish_duration_seconds_bucket", &bucket, count);
        }
    }

    // Failures.
    let corrupt = world.add(1);
    let id = earlier(1);
    let images = id.trim_start_matches("Fedora-Cloud-");
    let path = format!("/{id}/Cloud/x86_64/images/Fedora-Cloud-Base-AmazonEC2-{images}.x86_64.raw.xz");
    world.files.fault(&path, Fault::Flip { offset: 1000 }, 1000);
    world.admin.publish_serialized(&corrupt).await.unwrap();
    let mut started = world.message();
    started["body"]["status"] = json!("STARTED");
    world.admin.publish_serialized(&started).await.unwrap();
    started["body"] = json!({});
    world.admin.publish_serialized(&started).await.unwrap();
    let scrape = Scrape::until(&world, |scrape| {
        scrape.value("uploader_messages_total", &[("event", "dropped")]) == Some(2.0)
    })
    .await;
    scrape.assert("uploader_invalid_messages_total", &[], 1.0);
    scrape.assert("uploader_ignored_messages_total", &[], 1.0);
    scrape.assert("uploader_failures_total", &[("kind", "deliverable")], 1.0);
    scrape.assert("uploader_deliverables_total", &[("outcome", "failed")], 1.0);
    scrape.assert("uploader_deliverables_total", &[("outcome", "published")], 3.0);
    let later = scrape.value("uploader_last_success_timestamp_seconds", &[("release", "43")]);
    assert_eq!(later, success, "a compose that lacks an image is no success");

    // The program's own list is what it serves.
    let help: BTreeMap<_, _> = ALL.iter().map(|m| (m.name.to_owned(), m.help.to_owned())).collect();
    assert_eq!(scrape.help, help);
    for metric in ALL {
        assert_eq!(scrape.kinds[metric.name], format!("{:?}", metric.kind).to_lowercase());
        let mut labels: BTreeSet<_> = metric.labels.iter().map(|label| label.name).collect();
        labels.insert("provider");
        assert_eq!(scrape.labels(metric), labels, "{}", metric.name);
        for label in metric.labels.iter().filter(|label| !label.values.is_empty()) {
            let series = scrape.series.iter().filter(|(name, _, _)| name == metric.name);
            let found: BTreeSet<_> = series.map(|(_, labels, _)| labels[label.name].as_str()).collect();
            assert_eq!(found, label.values.iter().copied().collect(), "{}", metric.name);
        }
    }

    world.rabbit.stop().await.unwrap();
    let scrape = Scrape::until(&world, |scrape| scrape.value("uploader_consuming", &[]) == Some(0.0)).await;
    scrape.assert("uploader_trouble", &[], 1.0);
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait(LONG).await.unwrap().code, Some(0));
}
