//! Daemons under faults at random, for as long as is asked for. Started by `tests/soak`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cloud_image_uploader_test_support::amqp::Admin;
use cloud_image_uploader_test_support::amqp_proxy::{AmqpProxy, Frame, Loss};
use cloud_image_uploader_test_support::archive::{ComposeBuilder, OciArchive, Row, layer, noise, xz, xz_blocks};
use cloud_image_uploader_test_support::files::{Fault, Files};
use cloud_image_uploader_test_support::front::{Call, Front, Trouble};
use cloud_image_uploader_test_support::program::{Program, Running};
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use cloud_image_uploader_test_support::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Everything that is not the end of the world is over by then.
const LIMIT: Duration = Duration::from_secs(300);
const ARCHES: [(&str, &str); 2] = [("x86_64", "amd64"), ("aarch64", "arm64")];
/// Of the local daemon, and of the one for the registry.
const QUEUES: [&str; 2] = ["cloud-image-uploader-aws", "cloud-image-uploader-containers"];
/// `buffer_memory` of both daemons, and what they may need besides.
const MEMORY: u64 = (64 + 128) << 20;

/// The daemon of one provider; killed, stopped, and started as luck will have it.
struct Daemon {
    program: PathBuf,
    config: String,
    running: Option<Running>,
    peak_memory: u64,
}

impl Daemon {
    fn start(&mut self) -> Result<()> {
        let program = Program::new(&self.program)?.config(&self.config)?.arg("consume");
        self.running = Some(program.start()?);
        Ok(())
    }

    fn crash(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            self.peak_memory = self.peak_memory.max(running.peak_memory());
            running.kill()?;
        }
        self.start()
    }

    async fn stop(&mut self) -> Result<()> {
        if let Some(running) = self.running.take() {
            running.terminate()?;
            let exit = running.wait(LIMIT).await?;
            self.peak_memory = self.peak_memory.max(exit.peak_memory);
            ensure!(
                exit.code == Some(0),
                "a signal ends with {:?}:\n{}",
                exit.code,
                exit.stderr
            );
        }
        Ok(())
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

struct World {
    rabbit: Rabbit,
    admin: Admin,
    amqp: AmqpProxy,
    registry: Registry,
    front: Front,
    files: Files,
    folder: TempDir,
    daemons: [Daemon; 2],
    composes: Vec<String>,
    faults: BTreeMap<&'static str, usize>,
    random: Random,
}

fn name(call: &Call<'_>) -> Option<&'static str> {
    Some(match call.method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "PUT" => "PUT",
        _ => return None,
    })
}

impl World {
    async fn start(program: &Path, fixtures: &Path, seed: u64) -> Result<Self> {
        let rabbit = Rabbit::start(Options::default()).await?;
        let admin = rabbit.admin().await?;
        let heard = "org.fedoraproject.prod.fedora_image_uploader.#";
        admin.declare("heard", heard, json!({})).await?;
        let amqp = AmqpProxy::start(rabbit.plain_port).await?;
        let registry = Registry::open().await?;
        let front = Front::start(&registry.url(), name).await?;
        let folder = tempfile::tempdir()?;
        let files = Files::start(folder.path()).await?;
        let daemon = |queue: &str, section: &str| Daemon {
            program: program.to_owned(),
            config: format!(
                r#"
amqp_url = "{url}"
passive_declares = true
topic_prefix = "org.fedoraproject.prod"
{consuming}
[consumer_config]
release_metadata_url = "{fixtures}/release-data/release.json"
bodhi_url = "{fixtures}/release-data"
buffer_memory = "64MiB"
shutdown_grace = "2s"
{section}
"#,
                url = rabbit::url("amqp", DAEMON, amqp.port()),
                consuming = rabbit::consuming(queue),
                fixtures = fixtures.display(),
            ),
            running: None,
            peak_memory: 0,
        };
        let local = format!(
            "[consumer_config.local]\ndirectory = \"{}/published\"\npublish_amqp_messages = true\n",
            folder.path().display()
        );
        let container = format!(
            "[consumer_config.container]\n[consumer_config.container.repos]\nContainer_Base = \"fedora\"\n\
             [[consumer_config.container.registries]]\nurl = \"{}/team\"\ninsecure = true\n",
            front.url().trim_start_matches("http://")
        );
        let daemons = [daemon(QUEUES[0], &local), daemon(QUEUES[1], &container)];
        let mut world = Self {
            rabbit,
            admin,
            amqp,
            registry,
            front,
            files,
            folder,
            daemons,
            composes: Vec::new(),
            faults: BTreeMap::new(),
            random: Random(seed),
        };
        for daemon in &mut world.daemons {
            daemon.start()?;
        }
        Ok(world)
    }

    /// A compose of disks and containers, later than all before it.
    async fn announce(&mut self) -> Result<()> {
        let number = self.composes.len() as u64;
        let (month, day) = (1 + number / 28 % 12, 1 + number % 28);
        let id = format!("Fedora-Cloud-43-{}{month:02}{day:02}.0", 2026 + number / 336);
        let mut compose = ComposeBuilder::new(&id, None);
        for (arch, ours) in ARCHES {
            let disk = Row::new(
                "raw-xz",
                "raw.xz",
                "Cloud_Base",
                arch,
                &format!("Disk.{arch}.raw.xz"),
                xz_blocks(&disk(number, arch), 256 << 10),
            );
            let archive = OciArchive::new(ours)
                .layer(layer(&format!("{number}-{arch}"), 20_000))
                .build();
            compose = compose
                .image(disk)
                .image(Row::container("Container_Base", arch, xz(&archive)));
        }
        compose.write(&self.folder.path().join(&id))?;
        let path = format!("/{id}/Cloud/{}/images", self.random.of(&ARCHES).0);
        let fault = match self.random.below(4) {
            0 => Fault::Cut {
                after: self.random.below(800_000),
            },
            1 => Fault::Status {
                code: 503,
                retry_after: Some("1".to_owned()),
            },
            2 => Fault::Stall {
                after: self.random.below(800_000),
            },
            _ => Fault::NoRange,
        };
        let disk = path
            .rsplit('/')
            .nth(1)
            .map(|arch| format!("{path}/Disk.{arch}.raw.xz"))
            .context("a path")?;
        self.files.fault(&disk, fault, 1);
        *self.faults.entry("source").or_default() += 1;
        self.admin
            .publish_serialized(&compose.message(&self.files.url(&format!("/{id}"))))
            .await?;
        self.composes.push(id);
        Ok(())
    }

    async fn harm(&mut self) -> Result<()> {
        let what = self.random.below(12);
        let which = self.random.below(2) as usize;
        let kind = match what {
            0 => {
                self.rabbit.stop().await?;
                self.broker_again().await?;
                "broker stopped"
            }
            1 => {
                self.rabbit.kill();
                self.broker_again().await?;
                "broker killed"
            }
            2 | 3 => {
                self.daemons[which].crash()?;
                "daemon killed"
            }
            4 => {
                self.daemons[which].stop().await?;
                self.daemons[which].start()?;
                "daemon stopped"
            }
            5 | 6 => {
                let frame = self
                    .random
                    .of(&[Frame::Publish, Frame::Confirm, Frame::Acknowledgement]);
                self.amqp.lose(frame, Loss::Cut);
                "frame lost"
            }
            _ => {
                let troubles = [Trouble::Refused(503), Trouble::Throttled, Trouble::Cut, Trouble::Lost];
                let trouble = self.random.of(&troubles);
                let call = self.random.of(&["GET", "HEAD", "POST", "PUT"]);
                self.front.trouble(call, trouble, 1 + self.random.below(3) as usize);
                "registry"
            }
        };
        *self.faults.entry(kind).or_default() += 1;
        Ok(())
    }

    async fn broker_again(&mut self) -> Result<()> {
        self.rabbit.start_again().await?;
        self.admin = self.rabbit.admin().await?;
        Ok(())
    }

    /// Stops the daemons; whether no message went back to its queue.
    async fn is_settled(&mut self) -> Result<bool> {
        for daemon in &mut self.daemons {
            daemon.stop().await?;
            ensure!(
                daemon.peak_memory <= MEMORY,
                "{} MiB of memory",
                daemon.peak_memory >> 20
            );
        }
        let mut waiting = 0;
        for queue in QUEUES {
            let depth = self
                .admin
                .wait_depth(queue, LIMIT, |depth| depth.consumers == 0)
                .await?;
            waiting += depth.ready;
        }
        Ok(waiting == 0)
    }

    fn published(&self) -> PathBuf {
        self.folder.path().join("published")
    }

    /// The compose that a tag holds, by the mark on its index.
    async fn tagged(&self, tag: &str) -> Result<String> {
        let url = format!("{}/v2/team/fedora/manifests/{tag}", self.registry.url());
        let request = reqwest::Client::new()
            .get(url)
            .header("accept", "application/vnd.oci.image.index.v1+json");
        let index: Value = request.send().await?.json().await?;
        let mark = &index["annotations"]["org.fedoraproject.cloud-image-uploader.compose-id"];
        Ok(mark.as_str().unwrap_or_default().to_owned())
    }

    /// Whether everything announced is published. What was heard is kept in `heard`: topic and compose to message ids.
    async fn is_done(&self, heard: &mut Heard) -> Result<bool> {
        for notice in self.admin.drain("heard").await? {
            let id = notice.properties.message_id().as_ref().context("no id")?.to_string();
            let compose = notice.json()?["compose_id"].as_str().unwrap_or_default().to_owned();
            *heard
                .entry((notice.routing_key, compose))
                .or_default()
                .entry(id)
                .or_default() += 1;
        }
        let of = |topic: &str, compose: &String| heard.keys().any(|(known, of)| known.contains(topic) && of == compose);
        let disks = |compose: &String| {
            ARCHES
                .iter()
                .all(|(arch, _)| of(&format!(".Cloud_Base.{arch}"), compose))
        };
        let newest = self.composes.last().context("nothing was announced")?;
        Ok(self.composes.iter().all(disks)
            && of(".container.", newest)
            && self.tagged("43").await? == *newest
            && self.tagged("latest").await? == *newest)
    }
}

type Heard = BTreeMap<(String, String), BTreeMap<String, usize>>;

fn disk(number: u64, arch: &str) -> Vec<u8> {
    let seed = number * 10 + arch.len() as u64;
    [noise(seed, 500_000), vec![0; 1 << 20], noise(seed + 1, 300_000)].concat()
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("usage: soak PROGRAM FIXTURES SECONDS SEED");
    let (program, fixtures) = (
        PathBuf::from(next()?).canonicalize()?,
        PathBuf::from(next()?).canonicalize()?,
    );
    let (seconds, seed): (u64, u64) = (next()?.parse()?, next()?.parse()?);
    println!("{seconds} s of faults with seed {seed}");
    let mut world = World::start(&program, &fixtures, seed).await?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        world.announce().await?;
        for _ in 0..world.random.below(4) {
            world.harm().await?;
            let pause = world.random.below(1500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    println!(
        "no more faults; waiting for the last of {} composes",
        world.composes.len()
    );
    let mut heard = Heard::new();
    let deadline = Instant::now() + LIMIT;
    while !world.is_done(&mut heard).await? {
        if Instant::now() > deadline {
            let logs = world.daemons.iter().filter_map(|daemon| daemon.running.as_ref());
            let logs: Vec<_> = logs.map(Running::stderr).collect();
            bail!(
                "lost: not everything is published; heard {heard:#?}\n{}",
                logs.join("\n\n")
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What comes again after a signal is found done.
    while !world.is_settled().await? {
        ensure!(Instant::now() < deadline, "lost: a message is never acknowledged");
        for daemon in &mut world.daemons {
            daemon.start()?;
        }
        for queue in QUEUES {
            world.admin.wait_depth(queue, LIMIT, |depth| depth.ready == 0).await?;
        }
    }
    world.is_done(&mut heard).await?;
    check_files(&world)?;
    let twice: Vec<_> = heard.iter().filter(|(_, ids)| ids.len() > 1).collect();
    ensure!(twice.is_empty(), "one thing was announced as two: {twice:#?}");
    let sent: usize = heard.values().flat_map(BTreeMap::values).sum();
    println!("faults: {:?}", world.faults);
    println!(
        "{} composes, {} announcements sent {sent} times under the same ids; lost 0, duplicated 0, leaked 0",
        world.composes.len(),
        heard.len()
    );
    Ok(())
}

/// The disks are there, byte for byte, and nothing else lies about.
fn check_files(world: &World) -> Result<()> {
    for (number, compose) in world.composes.iter().enumerate() {
        let folder = world.published().join(compose);
        for (arch, _) in ARCHES {
            let file = folder.join(arch).join(format!("Disk.{arch}.raw"));
            let found = fs::read(&file).with_context(|| file.display().to_string())?;
            ensure!(found == disk(number as u64, arch), "{} is another disk", file.display());
            let names: BTreeSet<_> = fs::read_dir(folder.join(arch))?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_>>()?;
            let expected = BTreeSet::from([format!("Disk.{arch}.raw"), format!("Disk.{arch}.raw.mark.json")]);
            ensure!(names == expected, "leaked: {names:?} in {}", folder.display());
        }
    }
    Ok(())
}
