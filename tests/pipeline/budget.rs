//! `give_up_after` bounds everything inside: each retry gets what is left of it.

use std::time::Duration;

use cloud_image_uploader_test_support::files::Fault;
use cloud_image_uploader_test_support::process::free_port;
use cloud_image_uploader_test_support::program::Exit;
use serde_json::json;

use crate::world::*;

const LIMIT: &str = "give_up_after = \"4s\"";
/// One call alone is retried for a minute where nothing else limits it.
const FAR_BELOW_A_MINUTE: Duration = Duration::from_secs(30);

async fn run(config: &str, arguments: &[&str]) -> Exit {
    let program = World::program(&config.replace("give_up_after = \"40s\"", LIMIT));
    program.args(arguments).run(FAR_BELOW_A_MINUTE).await.unwrap()
}

/// Metadata: of the message's compose, of one named on the command line, and for a plan.
#[tokio::test]
async fn a_host_that_refuses_connections_is_given_up_in_time() {
    let world = World::new().await;
    let config = world.config(&World::broker(world.rabbit.plain_port));
    let dead = format!("http://127.0.0.1:{}/compose", free_port().unwrap());
    let mut message = world.message();
    message["body"]["location"] = json!(dead);
    let file = world.folder.path().join("message.json");
    std::fs::write(&file, message.to_string()).unwrap();
    let file = file.to_str().unwrap();
    for arguments in [
        ["reconsume", "--file", file],
        ["reconsume", "--compose", &dead],
        ["plan", "--file", file],
        ["plan", "--compose", &dead],
    ] {
        let exit = run(&config, &arguments).await;
        assert_eq!(exit.code, Some(1), "{arguments:?}: {}", exit.stderr);
        assert!(
            exit.stderr.contains("Connection refused"),
            "{arguments:?}: {}",
            exit.stderr
        );
    }
}

/// Images: those of a server that always answers 503 are tried several times, the other one is published.
#[tokio::test]
async fn an_image_that_stays_away_is_given_up_in_time() {
    let world = World::new().await;
    let away = Fault::Status {
        code: 503,
        retry_after: None,
    };
    world.files.fault(&World::image_path("x86_64"), away, 1_000_000);
    let config = world.config(&World::broker(world.rabbit.plain_port));
    let file = world.folder.path().join("message.json");
    std::fs::write(&file, world.message().to_string()).unwrap();
    let exit = run(&config, &["reconsume", "--file", file.to_str().unwrap()]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("the server answered 503"), "{}", exit.stderr);
    let tries = world.files.requests_for(&World::image_path("x86_64")).len();
    // Half a second, one, and two between them.
    assert!((3..=8).contains(&tries), "{tries}");
    assert!(world.disk("aarch64").exists());
}

/// Targets: a registry that is away is given up in time, too.
#[cfg(feature = "container")]
#[tokio::test]
async fn a_registry_that_refuses_connections_is_given_up_in_time() {
    use cloud_image_uploader_test_support::archive::{ComposeBuilder, OciArchive, Row, xz};

    let folder = tempfile::tempdir().unwrap();
    let image = xz(&OciArchive::new("amd64").build());
    let compose =
        ComposeBuilder::new("Fedora-43-20251023.n.0", None).image(Row::container("Container_Base", "x86_64", image));
    compose.write(&folder.path().join("compose")).unwrap();
    let file = folder.path().join("message.json");
    std::fs::write(&file, compose.message("compose").to_string()).unwrap();
    let data = fixtures().join("release-data");
    let config = format!(
        "[consumer_config]\nrelease_metadata_url = \"{data}/release.json\"\nbodhi_url = \"{data}\"\n{LIMIT}\n\
         [consumer_config.container]\npublish_amqp_messages = false\n\
         [consumer_config.container.repos]\nContainer_Base = \"fedora\"\n\
         [[consumer_config.container.registries]]\nurl = \"127.0.0.1:{port}/team\"\ninsecure = true\n",
        data = data.display(),
        port = free_port().unwrap(),
    );
    let exit = run(&config, &["reconsume", "--file", file.to_str().unwrap()]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("Connection refused"), "{}", exit.stderr);
}
