//! The command line with the existing service's own configuration files, and the notices of every cloud under the
//! existing service's own schemas.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader::base::http;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::Config;
use cloud_image_uploader::messaging::message::{Request, RequestSource};
use cloud_image_uploader::messaging::notify::Notice;
use cloud_image_uploader::model::compose::ComposeId;
use cloud_image_uploader::model::compose::release::Releases;
use cloud_image_uploader::model::outcome::{self, Place};
use cloud_image_uploader::publish::prepare::prepare;
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise, xz};
use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use cloud_image_uploader_test_support::files::{Fault, Files};
#[cfg(feature = "mail")]
use cloud_image_uploader_test_support::mail::MailServer;
use cloud_image_uploader_test_support::program::{Exit, Program};
use serde_json::{Value, json};

/// A variable's name and value.
type Variable<'a> = (&'a str, &'a str);

const LONG: Duration = Duration::from_secs(60);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Exit {
    let mut program = Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader"))
        .unwrap()
        .args(arguments);
    for (name, value) in variables {
        program = program.env(name, value);
    }
    program.run(LONG).await.unwrap()
}

/// The production file with certificates that exist here.
fn production(name: &str, folder: &Path) -> PathBuf {
    let text = std::fs::read_to_string(fixtures().join(format!("config/production-{name}.toml"))).unwrap();
    for (file, content) in [("ca", "CERTIFICATE"), ("crt", "CERTIFICATE"), ("key", "PRIVATE KEY")] {
        let pem = format!("-----BEGIN {content}-----\nAAAA\n-----END {content}-----\n");
        std::fs::write(folder.join(format!("cloud-image-uploader.{file}")), pem).unwrap();
    }
    let here = |kind: &str| format!("/etc/pki/rabbitmq/{kind}");
    let text = [here("ca"), here("key"), here("cert")]
        .iter()
        .fold(text, |text, path| text.replace(path, folder.to_str().unwrap()));
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn the_existing_files_and_variables_are_accepted_offline() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("google.json");
    std::fs::write(&key, r#"{"type": "service_account"}"#).unwrap();
    let certificates = folder.path().join("registry");
    std::fs::create_dir(&certificates).unwrap();
    for (file, content) in [("x.cert", "CERTIFICATE"), ("x.key", "PRIVATE KEY")] {
        let pem = format!("-----BEGIN {content}-----\nAAAA\n-----END {content}-----\n");
        std::fs::write(certificates.join(file), pem).unwrap();
    }
    let table: [(&str, Vec<Variable>, &str); 4] = [
        (
            "aws",
            vec![("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "quite-secret")],
            "AWS_ACCESS_KEY_ID",
        ),
        (
            "azure",
            vec![
                ("AZURE_SUBSCRIPTION_ID", "s"),
                ("AZURE_CLIENT_ID", "c"),
                ("AZURE_SECRET", "quite-secret"),
                ("AZURE_TENANT", "t"),
            ],
            "AZURE_SECRET",
        ),
        (
            "gcp",
            vec![("GOOGLE_APPLICATION_CREDENTIALS", key.to_str().unwrap())],
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (
            "container",
            vec![
                ("FEDORA_REGISTRY_CERT_DIR", certificates.to_str().unwrap()),
                ("QUAY_IO_USER", "u"),
                ("QUAY_IO_PASSWORD", "quite-secret"),
            ],
            "QUAY_IO_PASSWORD",
        ),
    ];
    for (name, variables, needed) in table {
        let file = production(name, folder.path());
        let arguments = ["--conf", file.to_str().unwrap(), "check", "--offline"];
        let exit = run(&arguments, &variables).await;
        assert_eq!(exit.code, Some(0), "{name}: {}", exit.stderr);
        assert!(exit.stdout.contains(&format!("provider {name}")), "{}", exit.stdout);

        let exit = run(&arguments, &[]).await;
        assert_eq!(exit.code, Some(2), "{name}: {}", exit.stdout);
        assert!(exit.stderr.contains(needed), "{name}: {}", exit.stderr);
        let but_one: Vec<_> = variables
            .iter()
            .filter(|(variable, _)| *variable != needed)
            .copied()
            .collect();
        let exit = run(&arguments, &but_one).await;
        assert_eq!(exit.code, Some(2), "{name}: {}", exit.stdout);
        assert!(!exit.stderr.contains("quite-secret"), "{}", exit.stderr);
    }
    let sample = fixtures().join("sample/local.toml");
    let exit = run(&["--conf", sample.to_str().unwrap(), "check", "--offline"], &[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
}

#[tokio::test]
async fn the_variable_names_the_file_and_a_missing_one_is_told() {
    let sample = fixtures().join("sample/local.toml");
    let exit = run(
        &["check", "--offline"],
        &[("FEDORA_MESSAGING_CONF", sample.to_str().unwrap())],
    )
    .await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let exit = run(&["--conf", "/nowhere/at/all.toml", "consume"], &[]).await;
    assert_eq!(exit.code, Some(2));
    assert!(
        exit.stderr.contains("/nowhere/at/all.toml: cannot be read"),
        "{}",
        exit.stderr
    );
    let id = "9f9b2a41-0d3c-4c21-8f10-2e3d4c5b6a79";
    let bad: [(&[&str], &str); 8] = [
        (&["plan"], "required"),
        (
            &["reconsume", "2018-9f9b2a41-0d3c-4c21-8f10-2e3d4c5b6a79"],
            "invalid value",
        ),
        (&["reconsume", "--file", "a", "--compose", "b"], "cannot be used with"),
        (&["plan", "--file", "a", "--format", "xml"], "invalid value"),
        (&["publish"], "unrecognized subcommand"),
        (&["plan", id, "--datagrepper-url", "ftp://host"], "only http and https"),
        (&["plan", id, "--datagrepper-url", "host"], "only http and https"),
        (&["plan", id, "--datagrepper-url"], "a value is required"),
    ];
    for (arguments, text) in bad {
        let exit = run(arguments, &[]).await;
        assert_eq!(exit.code, Some(2), "{arguments:?}");
        assert!(exit.stderr.contains(text), "{arguments:?}: {}", exit.stderr);
    }
}

#[tokio::test]
async fn an_address_with_a_password_is_refused_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("message.json");
    let sample = fixtures().join("sample/local.toml");
    let conf = sample.to_str().unwrap();
    let id = "9f9b2a41-0d3c-4c21-8f10-2e3d4c5b6a79";
    for address in [
        "https://somebody:hunter2@localhost/compose",
        "https://hunter2@localhost/compose",
        "https://somebody:hunter2@localhost:nowhere/compose",
        "ftp://somebody:hunter2@localhost/compose",
        "somebody:hunter2@localhost/compose",
    ] {
        let body = json!({"status": "FINISHED", "compose_id": "Fedora-43-20251023.0", "location": address});
        std::fs::write(&file, json!({"topic": "t", "body": body}).to_string()).unwrap();
        let wishes: [&[&str]; 3] = [
            &["--compose", address],
            &["--file", file.to_str().unwrap()],
            &[id, "--datagrepper-url", address],
        ];
        for (command, wish) in ["plan", "reconsume"].iter().flat_map(|c| wishes.map(|wish| (c, wish))) {
            let exit = run(&[&["--conf", conf, command], wish].concat(), &[]).await;
            assert_eq!(exit.code, Some(2), "{command} {wish:?}: {}", exit.stderr);
            assert!(exit.stderr.contains("only http and https"), "{}", exit.stderr);
            assert!(
                !exit.stderr.contains("hunter2") && !exit.stdout.contains("hunter2"),
                "{}",
                exit.stderr
            );
        }
    }
}

#[tokio::test]
async fn a_provider_without_a_policy_has_nothing_to_retire() {
    let sample = fixtures().join("sample/local.toml");
    let conf = sample.to_str().unwrap();
    for arguments in [&["clean-up"][..], &["clean-up", "--dry-run"]] {
        let exit = run(&[&["--conf", conf], arguments].concat(), &[]).await;
        assert_eq!(
            (exit.code, exit.stdout.as_str()),
            (Some(0), "Nothing to retire\n"),
            "{}",
            exit.stderr
        );
    }
}

#[tokio::test]
async fn a_message_is_fetched_from_datagrepper() {
    let folder = tempfile::tempdir().unwrap();
    let id = "8b0c7a6e-5d43-4c21-8f10-2e3d4c5b6a79";
    let compose = fixtures().join("composes/Fedora-43-20251023.0");
    let served = folder.path().join("v2");
    std::fs::create_dir_all(&served).unwrap();
    let files = Files::start(folder.path()).await.unwrap();
    let mut message: Value = serde_json::from_slice(
        &std::fs::read(fixtures().join("messages/constructed/finished-Fedora-43-20251023.0.json")).unwrap(),
    )
    .unwrap();
    message["body"]["location"] = json!(files.url("/compose"));
    std::fs::write(served.join("id"), message.to_string()).unwrap();
    std::fs::create_dir_all(folder.path().join("compose/metadata")).unwrap();
    std::fs::copy(
        compose.join("metadata/images.json"),
        folder.path().join("compose/metadata/images.json"),
    )
    .unwrap();
    let sample = fixtures().join("sample/local.toml");
    let (conf, url) = (sample.to_str().unwrap(), files.url(""));
    let plan = [
        "--conf",
        conf,
        "plan",
        id,
        "--datagrepper-url",
        &url,
        "--format",
        "json",
    ];

    // Busy once: asked again.
    let busy = Fault::Status {
        code: 503,
        retry_after: Some("1".to_owned()),
    };
    files.fault("/v2/id", busy, 1);
    let exit = run(&plan, &[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(files.faults_met());
    let planned: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!(
        (&planned["compose_id"], &planned["stage"]),
        (&json!("Fedora-43-20251023.0"), &json!("rc"))
    );
    let table = run(&plan[..6], &[]).await;
    assert!(
        table
            .stdout
            .contains("Fedora-43-20251023.0: release 43 (43), stage rc, end of life 2026-12-09"),
        "{}",
        table.stdout
    );

    std::fs::remove_file(served.join("id")).unwrap();
    let exit = run(&plan, &[]).await;
    assert_eq!(exit.code, Some(2), "{}", exit.stderr);
    assert!(exit.stderr.contains(&format!("find message {id}")), "{}", exit.stderr);
    std::fs::write(served.join("id"), "<html></html>").unwrap();
    let exit = run(&plan, &[]).await;
    assert_eq!(exit.code, Some(2), "{}", exit.stderr);
    assert!(
        exit.stderr.contains(&format!("understand message {id}")),
        "{}",
        exit.stderr
    );
}

/// Every cloud's planned notices, with ids where only the cloud knows them.
#[tokio::test]
async fn notices_are_valid_under_the_existing_schemas() {
    let http = http::client().unwrap();
    let data = Resource::Folder(fixtures().join("release-data"));
    let releases = Releases::new(http.clone(), data.clone(), data.join("release.json"));
    let compose = "Fedora-43-20251023.0";
    let request = Request {
        compose: ComposeId::parse(compose).unwrap(),
        location: Resource::Folder(fixtures().join("composes").join(compose)),
        label: Some("RC-1.6".to_owned()),
        announced: jiff::Timestamp::now(),
        origin: RequestSource::Message(String::new()),
    };
    let mut messages = Vec::new();
    let mut classes = Vec::new();
    for (name, class) in [
        ("aws", "AwsPublishedV1"),
        ("azure", "AzurePublishedV1"),
        ("gcp", "GcpPublishedV1"),
        ("container", "ContainerPublishedV1"),
    ] {
        let config = Config::load(&fixtures().join(format!("config/production-{name}.toml"))).unwrap();
        let prepared = prepare(&http, &releases, &config.provider, &request, None)
            .await
            .unwrap();
        for deliverable in prepared.selection.deliverables {
            let place = |location: &String| Place {
                location: location.clone(),
                id: format!("id-in-{location}"),
                origin: outcome::Origin::Created,
            };
            let places: Vec<_> = deliverable.locations.iter().map(place).collect();
            let outgoing = Notice::of(&deliverable, &places).outgoing();
            messages.push(json!({
                "id": outgoing.id.to_string(),
                "topic": format!("org.fedoraproject.prod.{}", outgoing.topic),
                "headers": outgoing.headers,
                "body": serde_json::from_slice::<Value>(&outgoing.body).unwrap(),
                "queue": null,
                "priority": 0,
            }));
            classes.push(class);
        }
    }
    assert_eq!(messages.len(), 2 + 2 + 2 + 7);
    let validated = FedoraMessaging::new().unwrap().validate(&messages).await.unwrap();
    let found: Vec<_> = validated.iter().map(|message| message.class.as_str()).collect();
    assert_eq!(found, classes);
}

#[tokio::test]
async fn logs_are_objects_where_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let sample = fixtures().join("sample");
    let text = std::fs::read_to_string(sample.join("local.toml")).unwrap();
    let data = fixtures().join("release-data");
    let text = text
        .replace("../release-data", data.to_str().unwrap())
        .replace("target/sample", folder.path().to_str().unwrap());
    let conf = folder.path().join("conf.toml");
    std::fs::write(&conf, text).unwrap();
    let message = sample.join("message.json");
    let exit = run(
        &[
            "--conf",
            conf.to_str().unwrap(),
            "--log-format",
            "json",
            "reconsume",
            "--file",
            message.to_str().unwrap(),
            "--only",
            "*raw.xz",
        ],
        &[],
    )
    .await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let lines: Vec<Value> = exit
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let published = lines.iter().find(|line| line["outcome"] == "published").unwrap();
    assert!(published["message"].as_str().unwrap().contains("AmazonEC2"));
    // Each image's work is in a span of its own.
    assert!(lines.iter().any(|line| {
        line["span"]["deliverable"]
            .as_str()
            .is_some_and(|name| name.ends_with(".raw"))
    }));
}

/// The existing service's `log_config`: the recipients get an e-mail for each cause of failures, and none for successes.
#[cfg(feature = "mail")]
#[tokio::test]
async fn a_failure_is_mailed_once() {
    let mail = MailServer::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let compose = ComposeBuilder::new("Fedora-Cloud-43-20260305.0", None)
        .image(Row::new(
            "raw-xz",
            "raw.xz",
            "Cloud_Base",
            "x86_64",
            "good.raw.xz",
            xz(&noise(1, 512)),
        ))
        .image(
            Row::new(
                "raw-xz",
                "raw.xz",
                "Cloud_Base",
                "aarch64",
                "bad.raw.xz",
                xz(&noise(1, 512)),
            )
            .wrong_checksum(),
        );
    compose.write(&folder.path().join("compose")).unwrap();
    std::fs::write(
        folder.path().join("message.json"),
        compose.message("compose").to_string(),
    )
    .unwrap();
    let conf = folder.path().join("conf.toml");
    let text = format!(
        r#"
[consumer_config]
release_metadata_url = "{data}/release.json"
bodhi_url = "{data}"
[consumer_config.local]
directory = "{folder}/published"
[log_config]
version = 1
[log_config.handlers.email]
class = "logging.handlers.SMTPHandler"
mailhost = ["127.0.0.1", {port}]
fromaddr = "uploader@example.org"
toaddrs = ["one@example.org", "two@example.org"]
subject = "Cloud image uploader error"
level = "ERROR"
[log_config.loggers.fedora_image_uploader]
level = "INFO"
handlers = ["email"]
"#,
        data = fixtures().join("release-data").display(),
        folder = folder.path().display(),
        port = mail.port(),
    );
    std::fs::write(&conf, text).unwrap();
    let message = folder.path().join("message.json");
    let arguments = [
        "--conf",
        conf.to_str().unwrap(),
        "reconsume",
        "--file",
        message.to_str().unwrap(),
    ];
    let exit = run(&arguments, &[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    let letters = mail.letters();
    assert_eq!(letters.len(), 1, "{letters:#?}");
    for text in [
        "Subject: Cloud image uploader error",
        "one@example.org",
        "two@example.org",
        "bad.raw.xz",
    ] {
        assert!(letters[0].contains(text), "{text} is not in {}", letters[0]);
    }

    // An operator who runs `plan` sees its failures, so they are not mailed.
    let arguments = ["--conf", conf.to_str().unwrap(), "plan", "--file", "not-there.json"];
    let exit = run(&arguments, &[]).await;
    assert_eq!(exit.code, Some(2), "{}", exit.stderr);
    assert_eq!(mail.letters().len(), 1);
}
