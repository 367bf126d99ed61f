//! The main job on real servers: a compose announced by the existing client over TLS, pushed to registries, tagged, read
//! back by skopeo, announced to everybody, acknowledged.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cloud_image_uploader_test_support::amqp::{Admin, Received, Spy};
use cloud_image_uploader_test_support::archive::digest_of;
use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use cloud_image_uploader_test_support::files::{Fault, Files};
use cloud_image_uploader_test_support::process::free_port;
use cloud_image_uploader_test_support::program::{Program, Running};
use cloud_image_uploader_test_support::proxy::Proxy;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;
use cloud_image_uploader_test_support::token_server::Lifetime;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(120);
const QUEUE: &str = "cloud-image-uploader-containers";
const COMPOSE: &str = "Fedora-43-20251024.0";

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sample")
}

/// Broker and registries as in production: TLS, client certificates, permissions; a second registry with tokens.
struct World {
    rabbit: Rabbit,
    admin: Admin,
    client: FedoraMessaging,
    guarded: Registry,
    tokens: Registry,
    /// Before the second registry, to cut it off.
    proxy: Proxy,
    files: Files,
    folder: TempDir,
    monitoring: u16,
}

impl World {
    async fn new() -> Self {
        let rabbit = Rabbit::start(Options::default()).await.unwrap();
        let tokens = Registry::with_tokens(Lifetime::default()).await.unwrap();
        let port = tokens.host.rsplit(':').next().unwrap().parse().unwrap();
        Self {
            proxy: Proxy::start(port).await.unwrap(),
            tokens,
            admin: rabbit.admin().await.unwrap(),
            client: FedoraMessaging::new().unwrap(),
            guarded: Registry::guarded().await.unwrap(),
            files: Files::start(&sample()).await.unwrap(),
            folder: tempfile::tempdir().unwrap(),
            monitoring: free_port().unwrap(),
            rabbit,
        }
    }

    fn registries(&self) -> [String; 2] {
        [
            format!("{}/fedora", self.guarded.host),
            format!("localhost:{}/fedora", self.proxy.port()),
        ]
    }

    fn program(&self, command: &[&str]) -> Program {
        let release_data = sample().join("../release-data");
        let [guarded, tokens] = self.registries();
        let config = format!(
            r#"
amqp_url = "{url}"
passive_declares = true
publish_exchange = "amq.topic"
topic_prefix = "org.fedoraproject.prod"
{tls}
[client_properties]
app = "end to end"
{consuming}
[qos]
prefetch_count = 25
[monitoring]
address = "127.0.0.1"
port = {monitoring}
[consumer_config]
release_metadata_url = "{release_data}/release.json"
bodhi_url = "{release_data}"
location_patience = "1s"
[consumer_config.container]
publish_amqp_messages = true
[consumer_config.container.repos]
Container_Base = "fedora"
Container_Toolbox = "fedora-toolbox"
Silverblue = "fedora-silverblue"
[[consumer_config.container.registries]]
url = "{guarded}"
credential_prefix = "GUARDED_"
[[consumer_config.container.registries]]
url = "{tokens}"
credential_prefix = "TOKENS_"
insecure = true
"#,
            url = self.rabbit.tls_url(DAEMON),
            tls = self.rabbit.tls_table(DAEMON, self.folder.path()).unwrap(),
            consuming = rabbit::consuming(QUEUE),
            monitoring = self.monitoring,
            release_data = release_data.display(),
        );
        let mut program = Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader")).unwrap();
        program = program.config(&config).unwrap().args(command);
        for (prefix, registry) in [("GUARDED_", &self.guarded), ("TOKENS_", &self.tokens)] {
            let (user, password) = registry.access.credentials.clone().unwrap();
            program = program
                .env(&format!("{prefix}USER"), user)
                .env(&format!("{prefix}PASSWORD"), password);
            if let Some(folder) = &registry.access.cert_dir {
                program = program.env(&format!("{prefix}CERT_DIR"), folder);
            }
        }
        program
    }

    async fn consume(&self) -> Running {
        let mut daemon = self.program(&["consume"]).start().unwrap();
        daemon.wait_for_log("consuming", LONG).await.unwrap();
        daemon
    }

    /// The sample's message, with the place where it is served.
    fn message(&self) -> Value {
        let mut message: Value =
            serde_json::from_slice(&std::fs::read(sample().join("message.json")).unwrap()).unwrap();
        message["body"]["location"] = json!(self.files.url("/compose"));
        message
    }

    async fn announce(&self) {
        self.client.publish(&self.rabbit, &[self.message()]).await.unwrap();
    }

    async fn spy(&self) -> Spy {
        self.admin
            .spy("org.fedoraproject.prod.fedora_image_uploader.#")
            .await
            .unwrap()
    }

    async fn metrics(&self) -> String {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.monitoring)).await;
        answer.unwrap().text().await.unwrap()
    }

    async fn until_acknowledged(&self, count: u64) {
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let ready = reqwest::get(format!("http://127.0.0.1:{}/ready", self.monitoring))
                .await
                .unwrap();
            let document: Value = ready.json().await.unwrap();
            if document["consumed"]["processed"] == count {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "it stays at {document}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn notices(spy: &mut Spy, count: usize) -> Vec<Received> {
    let mut notices = Vec::new();
    for _ in 0..count {
        notices.push(spy.next(LONG).await.unwrap());
    }
    notices.sort_by(|a, b| a.routing_key.cmp(&b.routing_key));
    notices
}

/// The digest of the manifest in an OCI archive, as skopeo reads it.
fn digest_in_archive(path: &str) -> String {
    let archive = format!("oci-archive:{}", sample().join("compose").join(path).display());
    let output = Command::new("skopeo")
        .args(["inspect", "--raw", &archive])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    digest_of(&output.stdout)
}

/// Fedora's architecture to the digest of its manifest.
fn entries(index: &Value) -> Vec<(String, String)> {
    let entry = |entry: &Value| {
        let arch = match entry["platform"]["architecture"].as_str().unwrap() {
            "amd64" => "x86_64",
            "arm64" => "aarch64",
            other => panic!("{other}"),
        };
        (arch.to_owned(), entry["digest"].as_str().unwrap().to_owned())
    };
    index["manifests"].as_array().unwrap().iter().map(entry).collect()
}

#[tokio::test]
async fn a_compose_is_pushed_tagged_announced_and_acknowledged() {
    let world = World::new().await;
    let mut spy = world.spy().await;
    let daemon = world.consume().await;
    world.announce().await;
    let first = notices(&mut spy, 3).await;
    world.until_acknowledged(1).await;
    let metrics = world.metrics().await;
    for registry in world.registries() {
        for repository in ["fedora", "fedora-silverblue", "fedora-toolbox"] {
            let labels = format!("provider=\"container\",image=\"{repository}\",location=\"{registry}\"");
            let counted = format!("uploader_publish_duration_seconds_count{{{labels}}} 1\n");
            assert!(metrics.contains(&counted), "{counted}{metrics}");
        }
    }
    // Both certificates that it shows: the broker's and the registry's.
    for credential in ["amqp", &world.registries()[0]] {
        let labels = format!("provider=\"container\",credential=\"{credential}\"");
        let expiry = format!("uploader_credential_expiry_timestamp_seconds{{{labels}}}");
        assert!(metrics.contains(&expiry), "{expiry}\n{metrics}");
    }

    for (notice, repository) in first.iter().zip(["fedora", "fedora-silverblue", "fedora-toolbox"]) {
        let topic = format!("org.fedoraproject.prod.fedora_image_uploader.published.v1.container.rc.{repository}");
        assert_eq!(notice.routing_key, topic);
        let expected = json!({
            "compose_id": COMPOSE,
            "release": 43,
            "architectures": ["aarch64", "x86_64"],
            "repository": repository,
            "registries": world.registries(),
            "tags": ["43", "latest"],
        });
        assert_eq!(notice.json().unwrap(), expected);
        for registry in world.registries() {
            let header = format!("fedora_messaging_container_{registry}/{repository}:latest");
            assert_eq!(notice.headers()[&header], true);
        }
    }
    // The existing package accepts them, by its own schema.
    let serialized: Vec<Value> = first.iter().map(|notice| notice.serialized().unwrap()).collect();
    let validated = world.client.validate(&serialized).await.unwrap();
    assert_eq!(validated.len(), 3);

    for registry in [&world.guarded, &world.tokens] {
        let skopeo = Skopeo::new(registry).unwrap();
        for repository in ["fedora", "fedora-silverblue", "fedora-toolbox"] {
            let digests: Vec<String> = {
                let mut digests = Vec::new();
                for tag in ["43", "latest"] {
                    digests.push(skopeo.digest(&format!("fedora/{repository}:{tag}")).await.unwrap());
                }
                digests
            };
            assert_eq!(digests[0], digests[1]);
        }
        // Source digests are kept.
        for (repository, path) in [
            (
                "fedora",
                "Container/ARCH/images/Fedora-Container-Base-Generic-43-1.7.ARCH.oci.tar.xz",
            ),
            (
                "fedora-silverblue",
                "Silverblue/ARCH/images/Fedora-Silverblue-ARCH-43.1.7.ociarchive",
            ),
        ] {
            let raw = skopeo.inspect_raw(&format!("fedora/{repository}:43")).await.unwrap();
            let index: Value = serde_json::from_slice(&raw).unwrap();
            for (arch, digest) in entries(&index) {
                assert_eq!(
                    digest,
                    digest_in_archive(&path.replace("ARCH", &arch)),
                    "{repository} {arch}"
                );
            }
        }
        // Everything can be pulled.
        let layout = world.folder.path().join(registry.host.replace(':', "-"));
        skopeo
            .copy_to_layout("fedora/fedora-toolbox:latest", &layout)
            .await
            .unwrap();
    }

    // The same message again, to a new process: the same result, nothing uploaded, nothing read.
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait(LONG).await.unwrap().code, Some(0));
    let writes = [
        world.guarded.writes().await.unwrap().len(),
        world.tokens.writes().await.unwrap().len(),
    ];
    let read = |files: &Files| {
        files
            .requests()
            .iter()
            .filter(|request| !request.path.contains("metadata"))
            .count()
    };
    let reads = read(&world.files);
    let daemon = world.consume().await;
    world.announce().await;
    let again = notices(&mut spy, 3).await;
    for (again, first) in again.iter().zip(&first) {
        assert_eq!(again.properties.message_id(), first.properties.message_id());
        assert_eq!(again.json().unwrap(), first.json().unwrap());
    }
    world.until_acknowledged(1).await;
    assert_eq!(
        writes,
        [
            world.guarded.writes().await.unwrap().len(),
            world.tokens.writes().await.unwrap().len()
        ]
    );
    assert_eq!(reads, read(&world.files));
    daemon.terminate().unwrap();
    let exit = daemon.wait(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0));
    for registry in [&world.guarded, &world.tokens] {
        let (_, password) = registry.access.credentials.clone().unwrap();
        assert!(!exit.stderr.contains(&password), "a password is in the log");
    }
    world
        .admin
        .wait_depth(QUEUE, LONG, |depth| depth.ready == 0 && depth.consumers == 0)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_corrupted_image_tags_nothing_of_its_repository_and_the_others_are_done() {
    let world = World::new().await;
    let mut spy = world.spy().await;
    let spoiled = "/compose/Container/x86_64/images/Fedora-Container-Toolbox-43-1.7.x86_64.tar.xz";
    world.files.fault(spoiled, Fault::Flip { offset: 5000 }, 1);
    let mut daemon = world.consume().await;
    world.announce().await;
    for (notice, repository) in notices(&mut spy, 2).await.iter().zip(["fedora", "fedora-silverblue"]) {
        assert!(
            notice.routing_key.ends_with(&format!(".{repository}")),
            "{}",
            notice.routing_key
        );
    }
    daemon
        .wait_for_log("failed to publish fedora-toolbox: verify", LONG)
        .await
        .unwrap();
    let line = daemon
        .stderr()
        .lines()
        .find(|line| line.contains("failed to publish"))
        .unwrap()
        .to_owned();
    assert!(line.contains("--only fedora-toolbox"), "{line}");
    for registry in [&world.guarded, &world.tokens] {
        let skopeo = Skopeo::new(registry).unwrap();
        assert!(
            skopeo.tags("fedora/fedora-toolbox").await.is_err(),
            "there is no tag, so no repository to list"
        );
        assert_eq!(skopeo.tags("fedora/fedora").await.unwrap(), ["43", "latest"]);
    }
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait(LONG).await.unwrap().code, Some(0));
    world
        .admin
        .wait_depth(QUEUE, LONG, |depth| depth.ready == 0 && depth.consumers == 0)
        .await
        .unwrap();

    // The repairing command, as the report gives it but for where the message is.
    let file = world.folder.path().join("message.json");
    std::fs::write(&file, world.message().to_string()).unwrap();
    let repair = world.program(&[
        "reconsume",
        "--file",
        file.to_str().unwrap(),
        "--only",
        "fedora-toolbox",
    ]);
    let exit = repair.run(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(notices(&mut spy, 1).await[0].routing_key.ends_with(".fedora-toolbox"));
    for registry in [&world.guarded, &world.tokens] {
        let tags = Skopeo::new(registry)
            .unwrap()
            .tags("fedora/fedora-toolbox")
            .await
            .unwrap();
        assert_eq!(tags, ["43", "latest"]);
    }
}

#[tokio::test]
async fn check_finds_what_is_there_and_what_is_wrong() {
    let world = World::new().await;
    let exit = world.program(&["check"]).run(LONG).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}{}", exit.stdout, exit.stderr);
    assert_eq!(exit.stdout.lines().count(), 4, "{}", exit.stdout);
    assert!(
        exit.stdout.lines().all(|line| line.starts_with("ok: ")),
        "{}",
        exit.stdout
    );

    let exit = world
        .program(&["check"])
        .env("TOKENS_PASSWORD", "wrong")
        .run(LONG)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(1), "{}{}", exit.stdout, exit.stderr);
    let failed: Vec<_> = exit
        .stdout
        .lines()
        .filter(|line| line.starts_with("failed: "))
        .collect();
    assert_eq!(failed.len(), 1, "{}", exit.stdout);
    assert!(failed[0].contains("TOKENS_PASSWORD"), "{}", failed[0]);

    let exit = world
        .program(&["check", "--offline"])
        .env("TOKENS_PASSWORD", "")
        .run(LONG)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(2), "{}{}", exit.stdout, exit.stderr);
    assert!(
        exit.stderr.contains("TOKENS_USER is set but TOKENS_PASSWORD is not"),
        "{}",
        exit.stderr
    );
}

/// A registry that is away delays the others no longer than configured; once it is back, everything is announced again.
#[tokio::test]
async fn a_registry_that_is_away_is_repaired_and_announced_again() {
    let world = World::new().await;
    let mut spy = world.spy().await;
    world.proxy.close();
    let mut daemon = world.consume().await;
    world.announce().await;
    let [guarded, tokens] = world.registries();
    // The registry is tried for a minute before the others are announced without it.
    for notice in notices(&mut spy, 3).await {
        assert_eq!(notice.json().unwrap()["registries"], json!([guarded]));
        assert!(!notice.headers().keys().any(|header| header.contains(&tokens)));
    }
    daemon.wait_for_log("trying again", LONG).await.unwrap();
    world.proxy.open();
    for notice in notices(&mut spy, 3).await {
        assert_eq!(notice.json().unwrap()["registries"], json!([guarded, tokens]));
    }
    world.until_acknowledged(1).await;
    let read = world
        .files
        .requests_for("/compose/Silverblue/x86_64/images/Fedora-Silverblue-x86_64-43.1.7.ociarchive");
    assert_eq!(read.len(), 2, "once for each registry's round");
    daemon.terminate().unwrap();
    assert_eq!(daemon.wait(LONG).await.unwrap().code, Some(0));
}
