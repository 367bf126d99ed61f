//! Configuration from outside: files that operators have, examples that we ship, files that are wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_image_uploader::config::amqp::Field;
use cloud_image_uploader::config::aws::{BootMode, SnapshotMethod};
use cloud_image_uploader::config::logging::Level;
use cloud_image_uploader::config::{Config, Provider};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn parse(text: &str) -> Config {
    match Config::parse(text, Path::new("config.toml")) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}\n{text}"),
    }
}

fn load(path: &str) -> Config {
    Config::load(&file(path)).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The content of `Config` apart from the file's name, and from a default that depends on the machine.
fn contents(mut config: Config) -> String {
    config.path = PathBuf::new();
    config.service.decode_threads = 0;
    format!("{config:#?}")
}

#[test]
fn every_example_loads() {
    let mut names = Vec::new();
    for entry in fs::read_dir(file("config")).expect("config") {
        let path = entry.expect("entry").path();
        let config = Config::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
        names.push(config.provider.name());
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        assert_eq!(stem, Some(config.provider.name()));
    }
    names.sort_unstable();
    assert_eq!(names, ["aws", "azure", "container", "gcp", "local"]);
}

/// The commented lines of an example state the defaults: with them in force nothing changes.
#[test]
fn examples_state_the_defaults() {
    for name in ["aws", "azure", "container", "gcp", "local"] {
        let path = format!("config/{name}.toml");
        let text = fs::read_to_string(file(&path)).expect("example");
        let mut stated = 0;
        let lines = text.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => {
                stated += 1;
                rest
            }
            _ => line,
        });
        let in_force = lines.collect::<Vec<_>>().join("\n");
        assert!(stated >= 10, "{path}: {stated}");
        assert_eq!(contents(parse(&in_force)), contents(load(&path)), "{path}");
    }
}

/// The previous service's files mean the same here, and the examples say what those say.
#[test]
fn production_files_load_unchanged() {
    for name in ["aws", "azure", "container", "gcp"] {
        let config = load(&format!("tests/fixtures/config/production-{name}.toml"));
        assert_eq!(config.provider.name(), name);
        assert!(config.provider.publish_amqp_messages());
        let example = load(&format!("config/{name}.toml"));
        assert_eq!(config.provider, example.provider);
        assert_eq!(config.service, example.service);

        let amqp = config.amqp;
        assert_eq!(amqp.url.host(), "rabbitmq.fedoraproject.org");
        assert_eq!((amqp.url.port(), amqp.url.is_tls()), (5671, true));
        assert_eq!((amqp.url.user(), amqp.url.vhost()), ("cloud-image-uploader", "/pubsub"));
        assert!(amqp.passive_declares);
        let certificate = Path::new("/etc/pki/rabbitmq/cert/cloud-image-uploader.crt");
        let key = Path::new("/etc/pki/rabbitmq/key/cloud-image-uploader.key");
        let tls = amqp.tls.expect("tls");
        assert_eq!(tls.client_certificate(), Some((certificate, key)));
        let queue = match name {
            "container" => "cloud-image-uploader-containers".to_owned(),
            name => format!("cloud-image-uploader-{name}"),
        };
        assert_eq!(amqp.queues.len(), 1);
        assert_eq!(amqp.queues[0].name, queue);
        assert!(amqp.queues[0].durable && !amqp.queues[0].exclusive && !amqp.queues[0].auto_delete);
        assert_eq!(amqp.bindings.len(), 1);
        assert_eq!(amqp.bindings[0].queue, Some(queue));
        let keys = ["org.fedoraproject.*.pungi.compose.status.change"];
        assert_eq!(amqp.bindings[0].routing_keys, keys);
        assert_eq!((amqp.qos.prefetch_count, amqp.qos.prefetch_size), (25, 0));
        assert_eq!(amqp.topic_prefix, "org.fedoraproject.prod");
        assert_eq!(amqp.publish_exchange, "amq.topic");

        assert_eq!(config.logging.root, Level::Error);
        assert_eq!(config.logging.level("fedora_image_uploader.aws"), Level::Info);
        assert_eq!(config.logging.level("pika"), Level::Warning);
        assert_eq!(config.logging.level("other"), Level::Error);
        let [mail] = config.logging.mail.as_slice() else {
            panic!("{:?}", config.logging.mail);
        };
        assert_eq!((mail.host.as_str(), mail.port), ("bastion", 25));
        assert_eq!(mail.level, Level::Error);
        assert_eq!(mail.to, ["cloud@lists.fedoraproject.org"]);
    }
}

#[test]
fn production_providers_mean_what_they_did() {
    let Provider::Aws(aws) = load("tests/fixtures/config/production-aws.toml").provider else {
        panic!("not aws");
    };
    let regions = aws.regions();
    assert_eq!(regions.len(), 22);
    assert_eq!(regions[..3], ["us-east-1", "af-south-1", "eu-north-1"]);
    assert_eq!(
        aws.snapshot_method,
        SnapshotMethod::S3Import {
            bucket: "fedora-s3-bucket-fedimg".into(),
            role: "vmimport".into()
        }
    );
    assert_eq!(aws.boot_mode("x86_64"), BootMode::UefiPreferred);
    assert_eq!(aws.boot_mode("aarch64"), BootMode::Uefi);
    assert!(aws.public);

    let Provider::Azure(azure) = load("tests/fixtures/config/production-azure.toml").provider else {
        panic!("not azure");
    };
    assert_eq!(azure.target_regions.len(), 30);
    assert_eq!(azure.target_regions[29].name, "westus3");
    assert_eq!(azure.target_regions[29].regional_replica_count, 3);
    assert_eq!(
        azure.blob_endpoint.as_str(),
        "https://fedoraimageupload.blob.core.windows.net/"
    );

    let config = load("tests/fixtures/config/production-container.toml");
    let places = ["registry.fedoraproject.org", "quay.io/fedora"];
    assert_eq!(config.provider.locations(), places);
    let Provider::Container(container) = config.provider else {
        panic!("not container");
    };
    assert_eq!(container.repos.len(), 10);
    assert_eq!(container.repos["Onyx"], "fedora-budgie-atomic");
    let quay = &container.registries[1];
    assert_eq!(quay.base.as_str(), "https://quay.io/");
    assert_eq!(quay.repository("eln"), "fedora/eln");
    assert_eq!(container.registries[0].repository("eln"), "eln");
    assert_eq!(quay.credential_prefix.as_deref(), Some("QUAY_IO_"));
    assert!(quay.tls_verify && !quay.insecure);
}

#[test]
fn a_local_file_needs_two_lines() {
    let config = parse("[consumer_config.local]\ndirectory = \"out\"\n");
    assert_eq!(config.provider.name(), "local");
    assert_eq!(config.provider.locations(), ["out"]);
    assert!(!config.provider.publish_amqp_messages());
    assert_eq!(config.monitoring, None);
    assert_eq!(config.amqp.url.to_string(), "amqp://guest@localhost:5672/%2F");
    let queue = &config.amqp.queues[0];
    assert_eq!((queue.name.as_str(), queue.exclusive), ("", true));
    assert_eq!(config.amqp.bindings[0].queue, None);
    assert_eq!(config.amqp.bindings[0].routing_keys, ["#"]);
    assert_eq!(config.amqp.qos.prefetch_count, 10);
    let app = BTreeMap::from([("app".to_owned(), Field::String("Unknown".into()))]);
    assert_eq!(config.amqp.client_properties, app);
    let service = config.service;
    assert_eq!(service.max_concurrent_images, 4);
    assert_eq!(service.buffer_memory, 512 << 20);
    assert_eq!(service.give_up_after, Duration::from_secs(5 * 3600));
    assert_eq!(service.location_patience, Duration::from_secs(1800));
    assert_eq!(service.shutdown_grace, Duration::from_secs(25));
    assert!(service.decode_threads >= 1);
}

#[test]
fn keys_are_read() {
    let config = parse(
        r#"
            AMQP_URL = "amqps://user:pass@[::1]:5673/v?heartbeat=20"
            Topic_Prefix = "org.example.."
            publish_priority = 3
            callback = 7
            monitoring = { port = 0, address = "127.0.0.1" }

            [client_properties]
            app_contacts_email = ["a@example.org", "b@example.org"]

            [queues."two"]
            durable = true
            auto_delete = false
            exclusive = false
            [queues."one"]
            durable = true
            auto_delete = false
            exclusive = false
            arguments = { x-max-length = 5, x-deep = { on = true, by = 0.5 } }

            [exchanges.other]
            type = "topic"
            durable = true
            auto_delete = false
            arguments = {}

            [log_config]
            handlers.a = { class = "logging.handlers.SMTPHandler", mailhost = ["m", 2525], fromaddr = "f@example.org", toaddrs = "t@example.org", subject = "s", credentials = ["u", "p"], secure = [], extra = 1 }
            handlers.unused = { class = "logging.handlers.SMTPHandler" }
            handlers.console = { class = "some.other.Handler", anything = [1, 2] }
            loggers.x = { level = 10, handlers = ["a", "console"] }
            loggers."x.y" = { level = "NOTSET" }
            root = { level = "CRITICAL" }

            [consumer_config]
            bodhi_url = "http://127.0.0.1:1/bodhi"
            buffer_memory = "64 MB"
            give_up_after = "0s"
            decode_threads = 0x3

            [consumer_config.container]
            publish_amqp_messages = false
            keep_missing_architecture = "36h"
            repos = { A = "x/y", B = "z" }
            registries = [
              { url = "localhost:5000", insecure = true },
              { url = "http://127.0.0.1:5001/sub/path/", insecure = true },
              { url = "https://R.example.org:5000", tls_verify = false, ca_cert = "ca.pem" },
            ]
        "#,
    );
    assert_eq!(config.amqp.url.host(), "::1");
    assert_eq!(config.amqp.url.heartbeat(), Some(20));
    assert_eq!(config.amqp.topic_prefix, "org.example");
    assert_eq!(config.amqp.publish_priority, Some(3));
    assert_eq!(config.amqp.queues[0].name, "two", "the order of the file");
    assert_eq!(config.amqp.queues[1].arguments["x-max-length"], Field::Integer(5));
    assert_eq!(config.amqp.exchanges["other"].kind, "topic");
    assert!(!config.amqp.exchanges.contains_key("amq.topic"));
    assert!(
        !config.amqp.client_properties.contains_key("app"),
        "a section replaces the default"
    );
    assert_eq!(
        config.monitoring.map(|m| (m.address, m.port)),
        Some(("127.0.0.1".into(), 0))
    );
    let [mail] = config.logging.mail.as_slice() else {
        panic!("{:?}", config.logging.mail);
    };
    assert_eq!((mail.host.as_str(), mail.port, mail.starttls), ("m", 2525, true));
    assert_eq!(mail.to, ["t@example.org"]);
    let (user, password) = mail.credentials.as_ref().expect("credentials");
    assert_eq!((user.as_str(), password.expose()), ("u", "p"));
    assert_eq!(config.logging.level("x.y.z"), Level::Debug);
    assert_eq!(config.logging.root, Level::Critical);
    assert_eq!(config.service.buffer_memory, 64_000_000);
    assert_eq!(config.service.give_up_after, Duration::ZERO);
    assert_eq!(config.service.decode_threads, 3);
    let Provider::Container(container) = config.provider else {
        panic!("not container");
    };
    assert_eq!(container.keep_missing_architecture, Duration::from_secs(36 * 3600));
    let [plain, path, tls] = container.registries.as_slice() else {
        panic!("{:?}", container.registries);
    };
    assert_eq!(plain.base.as_str(), "http://localhost:5000/");
    assert_eq!(path.repository("z"), "sub/path/z");
    assert_eq!(path.url, "http://127.0.0.1:5001/sub/path/");
    assert_eq!(tls.base.as_str(), "https://r.example.org:5000/");
    assert!(!tls.tls_verify && tls.ca_cert.is_some());
}

#[test]
fn a_word_changes_the_snapshot_method() {
    let text = fs::read_to_string(file("tests/fixtures/config/production-aws.toml"));
    let text = text.expect("fixture").replace(
        "s3_bucket_name = \"fedora-s3-bucket-fedimg\"",
        "snapshot_method = \"ebs-direct\"\nboot_mode = \"uefi\"\ntags = { a = \"b\" }",
    );
    let Provider::Aws(aws) = parse(&text).provider else {
        panic!("not aws");
    };
    assert_eq!(
        aws.snapshot_method,
        SnapshotMethod::EbsDirect {
            requests: 64,
            all_regions: false
        }
    );
    assert_eq!(aws.boot_mode("x86_64"), BootMode::Uefi);
    assert_eq!(aws.tags["a"], "b");
}

#[test]
fn which_file() {
    let option = Path::new("a.toml");
    let variable = std::ffi::OsStr::new("b.toml");
    let empty = std::ffi::OsStr::new("");
    let default = Path::new("/etc/fedora-messaging/config.toml");
    assert_eq!(Config::path(Some(option), Some(variable)), option);
    assert_eq!(Config::path(None, Some(variable)), Path::new("b.toml"));
    assert_eq!(Config::path(None, Some(empty)), default);
    assert_eq!(Config::path(None, None), default);
}

#[test]
fn debug_shows_no_password() {
    let config = parse(
        r#"
            amqp_url = "amqps://user:hunter2@host/"
            [log_config.handlers.m]
            class = "logging.handlers.SMTPHandler"
            mailhost = "m"
            fromaddr = "f"
            toaddrs = "t"
            subject = "s"
            credentials = ["u", "hunter2"]
            [log_config.root]
            handlers = ["m"]
            [consumer_config.local]
            directory = "out"
        "#,
    );
    assert_eq!(config.amqp.url.password().expose(), "hunter2");
    assert_eq!(config.logging.mail.len(), 1);
    assert!(!format!("{config:?}{config:#?}").contains("hunter2"));
}
