//! The stage that all daemons share: the broker, the composes, and the record of announcements.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use cloud_image_uploader_test_support::amqp::{Admin, Depth};
use cloud_image_uploader_test_support::amqp_proxy::{AmqpProxy, Frame, Loss};
use cloud_image_uploader_test_support::archive::{ComposeBuilder, message};
use cloud_image_uploader_test_support::files::Fault;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use serde_json::{Value, json};
use tokio::sync::Barrier;

use super::{Faults, Random};
use crate::local::Folder;

/// Composes that are being published at a time.
const AT_ONCE: usize = 8;
/// No run has many more composes than this: all that was published of them is held in memory, and is published once more.
const MOST: u32 = 200;
/// Before the next compose, at least.
const SOONEST: Duration = Duration::from_secs(2);
/// The queue that keeps announcements.
const HEARD: &str = "heard";
/// A queue for each daemon.
pub const QUEUES: [&str; 6] = ["aws-blocks", "aws-import", "azure", "gcp", "container", "local"];

/// Each announcement and its compose, with the ids of the messages, and how often each was sent.
type Heard = BTreeMap<(String, String), BTreeMap<String, usize>>;

/// Where it all happens.
pub struct Stage<'a> {
    local: &'a Folder,
    seed: u64,
    time: Duration,
    end: Instant,
    broker: tokio::sync::Mutex<Broker>,
    proxy: AmqpProxy,
    shared: Mutex<Shared>,
    /// Where all wait for the end of the faults.
    calm: Barrier,
}

struct Broker {
    rabbit: Rabbit,
    admin: Admin,
}

#[derive(Default)]
struct Shared {
    /// In the order of their announcement.
    composes: Vec<String>,
    heard: Heard,
    /// The announcements that every daemon owes for each compose, and whether older composes may be left out.
    expected: Vec<(Vec<String>, bool)>,
}

impl<'a> Stage<'a> {
    /// Everything is there, and the first compose is ready to be announced.
    pub async fn set(local: &'a Folder, time: Duration, seed: u64) -> Self {
        let queues = QUEUES.map(queue).to_vec();
        let rabbit = Rabbit::start(Options {
            queues,
            ..Options::default()
        });
        let rabbit = rabbit.await.unwrap();
        let admin = rabbit.admin().await.unwrap();
        let all = "org.fedoraproject.*.fedora_image_uploader.#";
        admin.declare(HEARD, all, json!({})).await.unwrap();
        write(local.place(&id(0)), 0).await;
        Self {
            local,
            seed,
            time,
            end: Instant::now() + time,
            proxy: AmqpProxy::start(rabbit.plain_port).await.unwrap(),
            broker: tokio::sync::Mutex::new(Broker { rabbit, admin }),
            shared: Mutex::default(),
            calm: Barrier::new(QUEUES.len() + 1),
        }
    }

    /// Announces composes and harms what all daemons need, until it is over. How often that was done.
    pub async fn play(&self) -> Faults {
        let mut random = Random::new(self.seed, "stage");
        let mut faults = Faults::new();
        let mut announced: Option<Instant> = None;
        let interval = SOONEST.max(self.time / MOST);
        while !self.is_over() {
            self.listen().await;
            if self.unfinished() < AT_ONCE && announced.is_none_or(|last| last.elapsed() > interval) {
                self.announce(&mut random, &mut faults).await;
                announced = Some(Instant::now());
            }
            self.harm(&mut random, &mut faults).await;
            random.pause().await;
        }
        *faults.entry("frame lost").or_default() -= self.proxy.mend();
        *faults.entry("source").or_default() -= self.local.files().mend();
        println!(
            "no more faults; waiting for the last of {} composes",
            self.composes().len()
        );
        self.calm.wait().await;
        faults
    }

    async fn announce(&self, random: &mut Random, faults: &mut Faults) {
        let number = self.composes().len();
        let id = id(number);
        write(self.local.place(&id), number as u64).await;
        let path = random.of(&[
            "Cloud/x86_64/images/Fedora-Cloud-Base-AmazonEC2.x86_64.raw.xz",
            "Cloud/x86_64/images/Fedora-Cloud-Base-Azure.x86_64.vhdfixed.xz",
            "Cloud/x86_64/images/Fedora-Cloud-Base-GCE.x86_64.tar.gz",
            "Container/x86_64/images/Fedora-Container-Base.x86_64.oci.tar.xz",
            "metadata/images.json",
        ]);
        let after = random.below(300_000);
        let retry_after = Some("1".to_owned());
        let (fault, times) = match random.below(5) {
            0 | 1 => (Fault::Cut { after }, 3),
            2 => (Fault::Status { code: 503, retry_after }, 3),
            3 => (Fault::NoRange, 3),
            // Takes half a minute.
            _ => (Fault::Stall { after }, 1),
        };
        self.local.files().fault(&format!("/{id}/{path}"), fault, times);
        *faults.entry("source").or_default() += times;
        let message = message(&id, None, &self.local.served_at(&id));
        let broker = self.broker.lock().await;
        broker.admin.publish_serialized(&message).await.unwrap();
        self.shared().composes.push(id);
    }

    async fn harm(&self, random: &mut Random, faults: &mut Faults) {
        let kind = match random.below(40) {
            what @ 0..2 => {
                let mut broker = self.broker.lock().await;
                match what {
                    0 => broker.rabbit.stop().await.unwrap(),
                    _ => broker.rabbit.kill(),
                }
                broker.rabbit.start_again().await.unwrap();
                broker.admin = broker.rabbit.admin().await.unwrap();
                ["broker stopped", "broker killed"][what as usize]
            }
            2..20 => {
                let frame = random.of(&[Frame::Publish, Frame::Confirm, Frame::Acknowledgement]);
                self.proxy.lose(frame, Loss::Cut);
                "frame lost"
            }
            _ => return,
        };
        *faults.entry(kind).or_default() += 1;
    }

    /// Hears what has been announced since the last time.
    pub async fn listen(&self) {
        let notices = self.broker.lock().await.admin.drain(HEARD).await.unwrap();
        let mut shared = self.shared();
        for notice in notices {
            let id = notice.properties.message_id().as_ref().unwrap().to_string();
            let (what, compose) = announced(&notice.routing_key, &notice.json().unwrap());
            let ids = shared.heard.entry((what, compose)).or_default();
            *ids.entry(id).or_default() += 1;
        }
    }

    /// Waits for the end of the faults.
    pub async fn calm(&self) {
        self.calm.wait().await;
    }

    pub fn is_over(&self) -> bool {
        Instant::now() > self.end
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn seconds(&self) -> u64 {
        self.time.as_secs()
    }

    /// Those that were announced, in this order.
    pub fn composes(&self) -> Vec<String> {
        self.shared().composes.clone()
    }

    /// Where a compose is for programs that are to meet no faults.
    pub fn place(&self, compose: &str) -> String {
        self.local.place(compose).display().to_string()
    }

    /// Announces the first one to programs that are to meet no faults.
    pub fn first(&self) -> Value {
        message(&id(0), None, &self.place(&id(0)))
    }

    /// The broker's part of a daemon's configuration.
    pub fn consuming(&self, name: &str, prefix: &str) -> String {
        format!(
            "amqp_url = {:?}\npassive_declares = true\ntopic_prefix = {prefix:?}\n{}",
            rabbit::url("amqp", DAEMON, self.proxy.port()),
            rabbit::consuming(&queue(name)),
        )
    }

    /// Has these things of each compose be announced.
    pub fn expect(&self, things: Vec<String>, skips_older: bool) {
        self.shared().expected.push((things, skips_older));
    }

    /// The announcements that are missing. A newer one makes up for an older one where that may be left out.
    pub fn missing(&self, things: &[String], skips_older: bool) -> Vec<(String, String)> {
        let shared = self.shared();
        let mut missing = Vec::new();
        for thing in things {
            for compose in shared.composes.iter().rev() {
                let announcement = (thing.clone(), compose.clone());
                if !shared.heard.contains_key(&announcement) {
                    missing.push(announcement);
                } else if skips_older {
                    break;
                }
            }
        }
        missing
    }

    /// Composes that not everybody has published.
    fn unfinished(&self) -> usize {
        let expected = self.shared().expected.clone();
        let missing = expected
            .iter()
            .flat_map(|(things, skips_older)| self.missing(things, *skips_older));
        let composes: BTreeSet<_> = missing.map(|(_, compose)| compose).collect();
        composes.len()
    }

    /// Announcements under more than one id.
    pub fn doubled(&self, things: &[String]) -> Vec<String> {
        let shared = self.shared();
        let doubled = shared
            .heard
            .iter()
            .filter(|((thing, _), ids)| things.contains(thing) && ids.len() > 1);
        doubled
            .map(|(announced, ids)| format!("{announced:?}: {ids:?}"))
            .collect()
    }

    /// How many there were, and how often they were sent.
    pub fn announcements(&self) -> (usize, usize) {
        let shared = self.shared();
        let sent = shared.heard.values().flat_map(BTreeMap::values).sum();
        (shared.heard.len(), sent)
    }

    /// Waits until a daemon's queue is as it should be.
    pub async fn until(&self, name: &str, limit: Duration, wanted: impl Fn(Depth) -> bool) -> Depth {
        let broker = self.broker.lock().await;
        broker.admin.wait_depth(&queue(name), limit, wanted).await.unwrap()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }
}

/// The part of an announcement that every compose has alike, and the id of its compose. A topic may be that of several
/// files in a directory.
pub fn announced(topic: &str, body: &Value) -> (String, String) {
    let compose = body["compose_id"].as_str().unwrap();
    let path = body["path"].as_str().unwrap_or_default();
    (
        format!("{topic} {}", path.trim_start_matches(compose)),
        compose.to_owned(),
    )
}

fn queue(name: &str) -> String {
    format!("{DAEMON}-{name}")
}

/// Each is later than the one before it.
fn id(number: usize) -> String {
    let (month, day) = (1 + number / 28 % 12, 1 + number % 28);
    format!("Fedora-Cloud-43-{}{month:02}{day:02}.0", 2026 + number / 336)
}

/// Writes the `number`th compose, with an image for every provider. A local directory takes them all.
async fn write(folder: PathBuf, number: u64) {
    let id = id(number as usize);
    let written = tokio::task::spawn_blocking(move || {
        let mut rows = crate::container::rows(number, 300_000);
        rows.extend([
            crate::aws::row(number),
            crate::azure::row(number),
            crate::gcp::row(number),
        ]);
        let compose = ComposeBuilder::new(&id, None);
        rows.into_iter().fold(compose, ComposeBuilder::image).write(&folder)
    });
    written.await.unwrap().unwrap();
}
