//! Files that are refused, with every problem as the operator reads it.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::path::Path;

use cloud_image_uploader::config::Config;

mod providers;

const LOCAL: &str = "[consumer_config.local]\ndirectory = \"out\"\n";

/// The problems of a file, as printed.
fn problems(text: &str) -> Vec<String> {
    match Config::parse(text, Path::new("f")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.to_string().lines().map(str::to_owned).collect(),
    }
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    assert_eq!(problems(text), expected, "\n{text}");
}

/// Each row is a beginning of a file that is otherwise fine.
#[test]
fn keys_of_the_broker() {
    for (text, expected) in [
        ("amqp_url = 5", "f:1: amqp_url: expected a string, found an integer"),
        (
            "amqp_url = \"https://u:hunter2@h\"",
            "f:1: amqp_url: must start with amqp:// or amqps://",
        ),
        (
            "amqp_url = \"rabbit\"",
            "f:1: amqp_url: expected a URL such as \"amqps://user@broker.example.org/%2Fvhost\"",
        ),
        (
            "amqp_url = \"amqp://h/?heartbeat=soon\"",
            "f:1: amqp_url: heartbeat must be a number of seconds below 65536",
        ),
        (
            "amqp_ur = \"amqp://\"",
            "f:1: amqp_ur: unknown key; did you mean \"amqp_url\"?",
        ),
        (
            "Passive-Declares = true",
            "f:1: Passive-Declares: unknown key; did you mean \"passive_declares\"?",
        ),
        (
            "passive_declares = \"yes\"",
            "f:1: passive_declares: expected true or false, found a string",
        ),
        (
            "\n\npassive_declares = 1",
            "f:3: passive_declares: expected true or false, found an integer",
        ),
        (
            "callback = 1\nCallback = 2",
            "f:1: callback: given twice, in different spellings",
        ),
        ("tls = true", "f:1: tls: expected a table, found a boolean"),
        (
            "amqp_url = \"amqps://\"\n[tls]\ncertfile = \"a\"",
            "f:2: tls: has a certfile but no keyfile; both are needed",
        ),
        (
            "amqp_url = \"amqps://\"\n[tls]\nkeyfile = \"a\"",
            "f:2: tls: has a keyfile but no certfile; both are needed",
        ),
        (
            "tls.ca_cert = \"a\"",
            "f:1: tls: needs an amqp_url that starts with amqps://",
        ),
        ("tls.ca_cert = \"\"", "f:1: tls.ca_cert: must not be empty"),
        (
            "tls.ca_certs = \"a\"",
            "f:1: tls.ca_certs: unknown key; did you mean \"ca_cert\"?",
        ),
        (
            "client_properties.product = \"x\"",
            "f:1: client_properties.product: reserved: the program sets this property itself",
        ),
        (
            "client_properties.since = 2020-01-01",
            "f:1: client_properties.since: expected a string, a number, an array, or a table, found a datetime",
        ),
        ("queues.q = 1", "f:1: queues.q: expected a table, found an integer"),
        (
            "queues.\"a b\" = { durable = true, exclusive = false }",
            "f:1: queues.\"a b\".auto_delete: missing, but required",
        ),
        (
            "[[bindings]]\nqueue = \"q\"\nexchange = \"e\"\nrouting_keys = []",
            "f:2: bindings[0].queue: no queue \"q\" in [queues]",
        ),
        (
            "[[bindings]]\nexchange = \"e\"",
            "f:1: bindings[0].routing_keys: missing, but required",
        ),
        (
            "[[bindings]]\nexchange = \"e\"\nrouting_keys = [\n\"a\",\n1]",
            "f:5: bindings[0].routing_keys[1]: expected a string, found an integer",
        ),
        (
            "[[bindings]]\nexchange = \"e\"\nrouting_keys = \"a\"",
            "f:3: bindings[0].routing_keys: expected an array, found a string",
        ),
        ("bindings = {}", "f:1: bindings: expected an array, found a table"),
        (
            "exchanges.e = { type = \"topic\", durable = true }",
            "f:1: exchanges.e.auto_delete: missing, but required",
        ),
        (
            "qos.prefetch_count = -1",
            "f:1: qos.prefetch_count: must be between 0 and 65535",
        ),
        (
            "qos.prefetch_count = 1.5",
            "f:1: qos.prefetch_count: expected an integer, found a float",
        ),
        (
            "qos.prefech_count = 1",
            "f:1: qos.prefech_count: unknown key; did you mean \"prefetch_count\"?",
        ),
        (
            "publish_priority = 256",
            "f:1: publish_priority: must be between 0 and 255",
        ),
        (
            "monitoring.address = \"\"",
            "f:1: monitoring.port: missing, but required",
        ),
        (
            "monitoring.port = 65536",
            "f:1: monitoring.port: must be between 0 and 65535",
        ),
    ] {
        refused(&format!("{text}\n{LOCAL}"), &[expected]);
        assert!(!expected.contains("hunter2"));
    }
}

#[test]
fn logging() {
    const MAIL: &str = "[log_config]\nroot.handlers = [\"m\"]\n[log_config.handlers.m]\n\
                        class = \"logging.handlers.SMTPHandler\"\n";
    let mail = |lines: &str| format!("{MAIL}{lines}\n");
    let rest = "fromaddr = \"f\"\ntoaddrs = \"t\"\nsubject = \"s\"";
    for (text, expected) in [
        (
            "log_config = 1\n".into(),
            "f:1: log_config: expected a table, found an integer",
        ),
        (
            "log_config.root.level = \"LOUD\"\n".into(),
            "f:1: log_config.root.level: expected one of \"DEBUG\", \"INFO\", \"WARNING\", \"WARN\", \
             \"ERROR\", \"CRITICAL\", \"FATAL\", \"NOTSET\", found \"LOUD\"",
        ),
        (
            "log_config.loggers.a.level = -1\n".into(),
            "f:1: log_config.loggers.a.level: must be at least 0",
        ),
        (
            "log_config.root.handlers = [\"x\"]\n".into(),
            "f:1: log_config.root.handlers[0]: no handler \"x\" in log_config.handlers",
        ),
        (mail(rest), "f:3: log_config.handlers.m.mailhost: missing, but required"),
        (
            mail(&format!("mailhost = [\"h\"]\n{rest}")),
            "f:5: log_config.handlers.m.mailhost: expected \"mail.example.org\" or [\"mail.example.org\", 25]",
        ),
        (
            mail(&format!("mailhost = \"h\"\ncredentials = [\"hunter2\"]\n{rest}")),
            "f:6: log_config.handlers.m.credentials: expected [\"user\", \"password\"]",
        ),
        (
            mail("mailhost = \"h\"\nfromaddr = \"f\"\nsubject = \"s\"\ntoaddrs = []"),
            "f:8: log_config.handlers.m.toaddrs: must not be empty",
        ),
    ] {
        refused(&format!("{text}{LOCAL}"), &[expected]);
    }
}

#[test]
fn keys_of_the_service() {
    for (line, expected) in [
        (
            "give_up_after = \"5 parsecs\"",
            "give_up_after: expected a duration such as \"30m\" or \"5h\", found \"5 parsecs\"",
        ),
        (
            "give_up_after = 5",
            "give_up_after: expected a duration such as \"30m\" or \"5h\", found an integer",
        ),
        (
            "location_patience = \"-1h\"",
            "location_patience: expected a duration such as \"30m\" or \"5h\", found \"-1h\"",
        ),
        (
            "buffer_memory = \"512\"",
            "buffer_memory: expected a size such as \"512MiB\" or \"64 MB\", found \"512\"",
        ),
        (
            "buffer_memory = 512",
            "buffer_memory: expected a size such as \"512MiB\" or \"64 MB\", found an integer",
        ),
        (
            "buffer_memory = \"0 MB\"",
            "buffer_memory: must be more than zero, such as \"512MiB\"",
        ),
        ("allowed_compose_hosts = []", "allowed_compose_hosts: must not be empty"),
        (
            "allowed_compose_hosts = [\"https://host/\"]",
            "allowed_compose_hosts[0]: expected a host such as \"kojipkgs.fedoraproject.org\", found \"https://host/\"",
        ),
        (
            "verify_signatures = \"yes\"",
            "verify_signatures: expected one of \"off\", \"if-present\", \"require\", found \"yes\"",
        ),
        (
            "verify_signatures = \"if-present\"",
            "verify_signatures: needs a keyring with the keys of those who sign",
        ),
        ("max_concurrent_images = 0", "max_concurrent_images: must be at least 1"),
        ("decode_threads = 0", "decode_threads: must be at least 1"),
        (
            "decode_threads = 99999999999999999999",
            "decode_threads: must be at least 1",
        ),
        (
            "bodhi_url = \"bodhi\"",
            "bodhi_url: expected a URL such as \"https://example.org/path\"",
        ),
        (
            "bodhi_url = \"ftp://example.org\"",
            "bodhi_url: expected an https URL, found one that begins with \"ftp:\"",
        ),
        (
            "bodhi_url = \"user:hunter2@example.org\"",
            "bodhi_url: expected an https URL, found one that begins with \"user:\"",
        ),
        (
            "bodhi_url = \"https://u:hunter2@example.org\"",
            "bodhi_url: must not hold a user name or a password",
        ),
        (
            "datagrepper_url = \"https://example.org/?a=b\"",
            "datagrepper_url: must not have a query or a fragment",
        ),
        (
            "max_concurent_images = 1",
            "max_concurent_images: unknown key; did you mean \"max_concurrent_images\"?",
        ),
    ] {
        let text = format!("[consumer_config]\n{line}\n{LOCAL}");
        refused(&text, &[&format!("f:2: consumer_config.{expected}")]);
    }
}

#[test]
fn exactly_one_provider() {
    refused("", &["f: consumer_config: missing, but required"]);
    refused(
        "\n[consumer_config]\n",
        &["f:2: consumer_config: no provider; expected one section of aws, azure, gcp, container, local"],
    );
    let gcp = "[consumer_config.gcp]\nproject = \"fedora-cloud\"\nbucket_name = \"bucket\"\n\
               storage_locations = [\"us\"]\n";
    refused(
        &format!("{gcp}{LOCAL}"),
        &["f:5: consumer_config.local: exactly one provider is possible, found gcp (line 1), local (line 5)"],
    );
    refused(
        "consumer_config.local = 1",
        &["f:1: consumer_config.local: expected a table, found an integer"],
    );
    refused(
        "[consumer_config.locale]\ndirectory = \"out\"",
        &[
            "f:1: consumer_config: no provider; expected one section of aws, azure, gcp, container, local",
            "f:1: consumer_config.locale: unknown key; did you mean \"local\"?",
        ],
    );
    refused(
        "[consumer_config.local]",
        &["f:1: consumer_config.local.directory: missing, but required"],
    );
}

#[test]
fn not_toml() {
    let found = problems("amqp_url = \"amqp://\"\nqueues = \"hunter2\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("f:2: not valid TOML: "), "{found:?}");
    assert!(!found[0].contains("hunter2"));
    let found = problems("a = 1\n\n[b]\n[b]\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("f:4: not valid TOML: "), "{found:?}");
}

#[test]
fn a_missing_file_is_named() {
    let found = Config::load(Path::new("no/such.toml"))
        .expect_err("missing")
        .to_string();
    assert!(found.starts_with("no/such.toml: cannot be read: "), "{found}");
}

#[test]
fn all_problems_at_once_in_the_order_of_the_file() {
    let text = r#"amqp_url = 5
[[bindings]]
queue = "q"
exchange = "e"
[consumer_config.container]
repos = { A = "x", B = "x" }
keep_missing_architecture = "a while"
registries = [{ url = "http://r" }, { prefix = 1 }]
[qos]
prefetch_count = "many"
[consumer_config]
shutdown_grace = 25
[consumer_config.aws]
base_region = "us-east-1"
[surprise]
"#;
    refused(
        text,
        &[
            "f:1: amqp_url: expected a string, found an integer",
            "f:2: bindings[0].routing_keys: missing, but required",
            "f:3: bindings[0].queue: no queue \"q\" in [queues]",
            "f:6: consumer_config.container.repos.B: subvariants A and B are both mapped to repository \"x\"",
            "f:7: consumer_config.container.keep_missing_architecture: expected a duration such as \"30m\" or \"5h\", found \"a while\"",
            "f:8: consumer_config.container.registries[0].url: plain http needs insecure = true and a loopback host",
            "f:8: consumer_config.container.registries[1].url: missing, but required",
            "f:8: consumer_config.container.registries[1].prefix: unknown key; known here: insecure, url, credential_prefix, ca_cert, tls_verify",
            "f:10: qos.prefetch_count: expected an integer, found a string",
            "f:12: consumer_config.shutdown_grace: expected a duration such as \"30m\" or \"5h\", found an integer",
            "f:13: consumer_config.aws.ami_regions: missing, but required",
            "f:13: consumer_config.aws.ami_volume_dev_name: missing, but required",
            "f:13: consumer_config.aws.ami_volume_type: missing, but required",
            "f:13: consumer_config.aws.s3_bucket_name: missing, but required",
            "f:13: consumer_config.aws: exactly one provider is possible, found container (line 5), aws (line 13)",
            "f:15: surprise: unknown key; known here: callback, amqp_url, passive_declares, tls, client_properties, exchanges, queues, bindings, qos, publish_exchange, topic_prefix, publish_priority, monitoring, log_config, consumer_config",
        ],
    );
}

#[test]
fn a_problem_knows_its_column() {
    let problems = Config::parse("qos = { prefetch_count = -1 }", Path::new("f")).expect_err("bad");
    let problem = problems.iter().find(|problem| problem.key == "qos.prefetch_count");
    assert_eq!(problem.map(|p| (p.line, p.column)), Some((Some(1), Some(9))));
}
