//! The daemon at work on real servers, told step by step. Started by `tests/demo`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use cloud_image_uploader_test_support::files::Files;
use cloud_image_uploader_test_support::program::Program;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const REPOSITORIES: [&str; 3] = ["fedora", "fedora-silverblue", "fedora-toolbox"];

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let program = PathBuf::from(arguments.next().context("usage: demo PROGRAM FIXTURES")?).canonicalize()?;
    let fixtures = PathBuf::from(arguments.next().context("usage: demo PROGRAM FIXTURES")?).canonicalize()?;
    let sample = fixtures.join("sample");

    println!(
        "Starting RabbitMQ (TLS, client certificates), a registry (TLS, password, client certificate), and a web server …"
    );
    let rabbit = Rabbit::start(Options::default()).await?;
    let registry = Registry::guarded().await?;
    let files = Files::start(&sample).await?;
    let folder = tempfile::tempdir()?;
    let mut spy = rabbit
        .admin()
        .await?
        .spy("org.fedoraproject.prod.fedora_image_uploader.#")
        .await?;

    println!("Starting the daemon …");
    let config = format!(
        r#"
amqp_url = "{url}"
passive_declares = true
topic_prefix = "org.fedoraproject.prod"
{tls}
{consuming}
[consumer_config]
release_metadata_url = "{fixtures}/release-data/release.json"
bodhi_url = "{fixtures}/release-data"
[consumer_config.container]
[consumer_config.container.repos]
Container_Base = "fedora"
Container_Toolbox = "fedora-toolbox"
Silverblue = "fedora-silverblue"
[[consumer_config.container.registries]]
url = "{registry}/fedora"
credential_prefix = "DEMO_"
"#,
        consuming = rabbit::consuming("cloud-image-uploader-containers"),
        url = rabbit.tls_url(DAEMON),
        tls = rabbit.tls_table(DAEMON, folder.path())?,
        fixtures = fixtures.display(),
        registry = registry.host,
    );
    let (user, password) = registry
        .access
        .credentials
        .clone()
        .context("the registry wants a password")?;
    let certificates = registry
        .access
        .cert_dir
        .clone()
        .context("the registry wants a certificate")?;
    let mut daemon = Program::new(program)?
        .config(&config)?
        .env("DEMO_USER", user)
        .env("DEMO_PASSWORD", password)
        .env("DEMO_CERT_DIR", certificates)
        .arg("consume")
        .start()?;
    daemon.wait_for_log("consuming", LIMIT).await?;

    println!("Announcing the sample compose with the existing client, `fedora-messaging publish` …");
    let mut message: Value = serde_json::from_slice(&std::fs::read(sample.join("message.json"))?)?;
    message["body"]["location"] = json!(files.url("/compose"));
    let client = FedoraMessaging::new()?;
    client.publish(&rabbit, &[message]).await?;

    let mut notices = Vec::new();
    for _ in REPOSITORIES {
        notices.push(spy.next(LIMIT).await?.serialized()?);
    }
    println!("\nNotifications, valid under the schemas of fedora-image-uploader-messages:");
    let validated = client.validate(&notices).await?;
    for (notice, validated) in notices.iter().zip(validated) {
        println!(
            "  {}\n    {}\n    {}",
            notice["topic"].as_str().unwrap_or_default(),
            validated.summary,
            notice["body"]
        );
    }
    println!("\nIn the registry, read back by skopeo:");
    let skopeo = Skopeo::new(&registry)?;
    for repository in REPOSITORIES {
        let image = format!("fedora/{repository}");
        let tags = skopeo.tags(&image).await?.join(", ");
        println!(
            "  {image}: {tags}: {}",
            skopeo.digest(&format!("{image}:latest")).await?
        );
    }
    daemon.terminate()?;
    let exit = daemon.wait(LIMIT).await?;
    println!("\nThe daemon's log:\n{}", exit.stderr);
    Ok(())
}
