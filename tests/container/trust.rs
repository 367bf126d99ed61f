//! `tls_verify`: a registry whose certificate cannot be verified.

use cloud_image_uploader_test_support::archive::ComposeBuilder;
use cloud_image_uploader_test_support::program::{Exit, Program};
use cloud_image_uploader_test_support::registry::{PASSWORD, Registry, USER};

use crate::world::*;

/// Publishes an image to a registry whose authority the program does not know, with this line in the registry's entry.
async fn publish_to(registry: &Registry, line: &str) -> Exit {
    let folder = tempfile::tempdir().unwrap();
    let certificates = folder.path().join("certs.d");
    std::fs::create_dir(&certificates).unwrap();
    let known = registry.access.cert_dir.as_ref().unwrap();
    for file in ["client.cert", "client.key"] {
        std::fs::copy(known.join(file), certificates.join(file)).unwrap();
    }
    let compose = ComposeBuilder::new(FIRST, Some("RC-1.6")).image(x86("trust"));
    compose.write(&folder.path().join("compose")).unwrap();
    let message = folder.path().join("message.json");
    std::fs::write(&message, compose.message("compose").to_string()).unwrap();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/release-data");
    let config = format!(
        "[consumer_config]\nrelease_metadata_url = \"{data}/release.json\"\nbodhi_url = \"{data}\"\n\
         give_up_after = \"2s\"\n\
         [consumer_config.container]\npublish_amqp_messages = false\n\
         [consumer_config.container.repos]\nContainer_Base = \"fedora\"\n\
         [[consumer_config.container.registries]]\nurl = \"{}/team\"\ncredential_prefix = \"TEST_\"\n{line}\n",
        registry.host
    );
    let program = Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader")).unwrap();
    program
        .config(&config)
        .unwrap()
        .args(["reconsume", "--file"])
        .arg(&message)
        .env("TEST_USER", USER)
        .env("TEST_PASSWORD", PASSWORD)
        .env("TEST_CERT_DIR", &certificates)
        .run(LIMIT)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_certificate_that_cannot_be_verified_is_accepted_only_where_the_file_says_so() {
    let registry = Registry::guarded().await.unwrap();
    for line in ["", "tls_verify = true"] {
        let exit = publish_to(&registry, line).await;
        assert_eq!(exit.code, Some(1), "{line:?}: {}", exit.stderr);
        assert!(exit.stderr.contains("UnknownIssuer"), "{line:?}: {}", exit.stderr);
    }
    assert_eq!(registry.writes().await.unwrap(), []);
    let exit = publish_to(&registry, "tls_verify = false").await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(!registry.writes().await.unwrap().is_empty());
}
