//! Credentials that are not a key in the environment: profiles, a web identity, and a container's, each through the program.

use std::fs;

use cloud_image_uploader_test_support::aws::{
    ACCESS_KEY, CONTAINER_TOKEN, Effect, Fault, ROLE_ARN, SECRET_KEY, SESSION_SECRET, SESSION_TOKEN, WEB_IDENTITY_TOKEN,
};
use cloud_image_uploader_test_support::program::{Exit, Program};

use crate::world::*;

const USER: &str = "ok: credentials: they belong to arn:aws:iam::125523088429:user/uploader";
const SESSION: &str = "ok: credentials: they belong to arn:aws:sts::125523088429:assumed-role/uploader/";

async fn world() -> World {
    World::small(&["us-east-1"], Method::Import).await
}

/// The line of `check` about credentials.
async fn credentials(program: Program) -> (String, Exit) {
    let exit = program.run(LONG).await.unwrap();
    let secrets = [SECRET_KEY, SESSION_SECRET, SESSION_TOKEN, WEB_IDENTITY_TOKEN];
    for output in [&exit.stdout, &exit.stderr] {
        assert!(!secrets.iter().any(|secret| output.contains(secret)), "{output}");
    }
    let line = exit.stdout.lines().find(|line| line.contains(": credentials: "));
    (line.unwrap_or_default().to_owned(), exit)
}

/// The program with shared files that hold two profiles: one with a key, and one that assumes a role with it.
fn with_profile(world: &World, command: &[&str], profile: &str) -> Program {
    let (config, keys) = (
        world.folder.path().join("aws-config"),
        world.folder.path().join("aws-keys"),
    );
    let profiles = format!(
        "[profile fedora]\nregion = eu-west-1\n\n[profile session]\nrole_arn = {ROLE_ARN}\nsource_profile = fedora\n"
    );
    fs::write(&config, profiles).unwrap();
    let pair = format!("[fedora]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    fs::write(&keys, pair).unwrap();
    let program = world.keyless(command).env("AWS_PROFILE", profile);
    program
        .env("AWS_CONFIG_FILE", config)
        .env("AWS_SHARED_CREDENTIALS_FILE", keys)
}

fn with_web_identity(world: &World, command: &[&str], token: &str) -> Program {
    let file = world.folder.path().join("token");
    fs::write(&file, token).unwrap();
    let program = world.keyless(command).env("AWS_ROLE_ARN", ROLE_ARN);
    program.env("AWS_WEB_IDENTITY_TOKEN_FILE", file)
}

fn with_container(world: &World, command: &[&str], token: &str) -> Program {
    let uri = world.cloud.container_credentials();
    let program = world.keyless(command).env("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri);
    program.env("AWS_CONTAINER_AUTHORIZATION_TOKEN", token)
}

/// Publishes with these credentials, then reads back what they published.
async fn published(world: &World, program: impl Fn(&[&str]) -> Program) {
    let message = world.message();
    let exit = program(&["reconsume", "--file", message.to_str().unwrap()])
        .run(LONG)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_complete();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_with_a_key_publishes() {
    let world = world().await;
    let (line, exit) = credentials(with_profile(&world, &["check"], "fedora")).await;
    assert!(line.starts_with(USER), "{}{}", exit.stdout, exit.stderr);
    published(&world, |command| with_profile(&world, command, "fedora")).await;
    // The region of a profile is not the configured one.
    assert!(world.cloud.calls().iter().all(|call| call.region == "us-east-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_assumes_a_role_publishes() {
    let world = world().await;
    let (line, exit) = credentials(with_profile(&world, &["check"], "session")).await;
    assert!(line.starts_with(SESSION), "{}{}", exit.stdout, exit.stderr);
    published(&world, |command| with_profile(&world, command, "session")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_is_missing_is_named() {
    let world = world().await;
    let (line, exit) = credentials(with_profile(&world, &["check"], "former")).await;
    assert!(
        line.starts_with("failed: credentials: "),
        "{}{}",
        exit.stdout,
        exit.stderr
    );
    assert!(line.contains("AWS_PROFILE"), "{line}");
    assert_eq!(exit.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_identity_publishes() {
    let world = world().await;
    let (line, exit) = credentials(with_web_identity(&world, &["check"], WEB_IDENTITY_TOKEN)).await;
    assert!(line.starts_with(SESSION), "{}{}", exit.stdout, exit.stderr);
    published(&world, |command| with_web_identity(&world, command, WEB_IDENTITY_TOKEN)).await;
    assert!(world.cloud.validate_calls().await.unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_identity_that_is_refused_is_reported_in_the_words_of_sts() {
    let world = world().await;
    let (line, exit) = credentials(with_web_identity(&world, &["check"], "another-EXAMPLE-token")).await;
    assert!(
        line.starts_with("failed: credentials: "),
        "{}{}",
        exit.stdout,
        exit.stderr
    );
    assert!(line.contains("No OpenIDConnect provider found"), "{line}");
}

/// More failures than the SDK's own retries bear.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_identity_survives_an_sts_that_is_busy() {
    for effect in [Effect::Throttle, Effect::ServerError, Effect::LostAnswer] {
        let world = world().await;
        let busy = Fault::on("AssumeRoleWithWebIdentity", effect).times(4);
        world.cloud.fault(busy);
        published(&world, |command| with_web_identity(&world, command, WEB_IDENTITY_TOKEN)).await;
    }
}

/// Keys that are about to expire are replaced before each call.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_expire_are_replaced() {
    let world = world().await;
    world.cloud.settings().session = std::time::Duration::from_secs(1);
    published(&world, |command| with_web_identity(&world, command, WEB_IDENTITY_TOKEN)).await;
    let calls = world.cloud.calls().into_iter();
    assert!(calls.filter(|call| call.action == "AssumeRoleWithWebIdentity").count() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_container_publish() {
    let world = world().await;
    let (line, exit) = credentials(with_container(&world, &["check"], CONTAINER_TOKEN)).await;
    assert!(line.starts_with(SESSION), "{}{}", exit.stdout, exit.stderr);
    published(&world, |command| with_container(&world, command, CONTAINER_TOKEN)).await;

    let (line, exit) = credentials(with_container(&world, &["check"], "another-EXAMPLE-token")).await;
    assert!(
        line.starts_with("failed: credentials: "),
        "{}{}",
        exit.stdout,
        exit.stderr
    );
    assert_eq!(exit.code, Some(1));
}
