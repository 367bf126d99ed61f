//! Files that are refused, with every problem as the operator reads it.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::path::Path;

use cloud_image_uploader::config::Config;

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
            "bodhi_url: expected an https URL, found \"ftp://example.org\"",
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

/// Replaces one line of a good section, and expects one problem at it.
#[track_caller]
fn edited(section: &str, good: &str, old: &str, new: &str, expected: &str) {
    assert_eq!(problems(good), [""; 0], "the base is good");
    assert_eq!(good.matches(old).count(), 1, "{old}");
    let line = good[..good.find(old).expect("old")].matches('\n').count() + 1;
    let expected = expected.replace("{}", &format!("f:{line}: consumer_config.{section}"));
    refused(&good.replace(old, new), &[&expected]);
}

#[test]
fn aws() {
    const GOOD: &str = r#"[consumer_config.aws]
publish_amqp_messages = true
base_region = "us-east-1"
ami_volume_dev_name = "/dev/sda1"
ami_volume_type = "gp3"
ami_regions = ["us-east-1", "eu-west-1"]
s3_bucket_name = "images"
"#;
    let regions = "ami_regions = [\"us-east-1\", \"eu-west-1\"]";
    let bucket = "s3_bucket_name = \"images\"";
    for (old, new, expected) in [
        (
            "base_region = \"us-east-1\"",
            "base_region = \"us east\"",
            "{}.base_region: expected a region such as \"us-east-1\", found \"us east\"",
        ),
        (
            bucket,
            "s3_bucket_name = \"Images\"",
            "{}.s3_bucket_name: expected a bucket name (3 to 63 lower-case letters, digits, dots, hyphens), found \"Images\"",
        ),
        (
            bucket,
            "",
            "f:1: consumer_config.aws.s3_bucket_name: missing, but required",
        ),
        (
            regions,
            "ami_regions = [\"us-east-1\", \"us-east-1\"]",
            "{}.ami_regions: names \"us-east-1\" twice",
        ),
        (regions, "ami_regions = []", "{}.ami_regions: must not be empty"),
        (
            regions,
            "ami_regions = \"us-east-1\"",
            "{}.ami_regions: expected an array, found a string",
        ),
        (
            "\"/dev/sda1\"",
            "\"sda1\"",
            "{}.ami_volume_dev_name: expected a device such as \"/dev/sda1\", found \"sda1\"",
        ),
        (
            "\"gp3\"",
            "\"io2\"",
            "{}.ami_volume_type: expected one of \"gp3\", \"gp2\", \"standard\", found \"io2\"",
        ),
    ] {
        edited("aws", GOOD, old, new, expected);
    }
    for (line, expected) in [
        (
            "base_regoin = 1",
            "base_regoin: unknown key; did you mean \"base_region\"?",
        ),
        (
            "ami_description = \"x\"",
            "ami_description: unknown key; known here: publish_amqp_messages, base_region, ami_regions, ami_volume_dev_name, ami_volume_type, snapshot_method, import_role_name, ebs_requests, ebs_all_regions, s3_bucket_name, public, tags, boot_mode, imds_support, copy_concurrency",
        ),
        (
            "snapshot_method = \"s3\"",
            "snapshot_method: expected one of \"s3-import\", \"ebs-direct\", found \"s3\"",
        ),
        ("copy_concurrency = 0", "copy_concurrency: must be at least 1"),
        ("ebs_requests = 0", "ebs_requests: must be at least 1"),
        (
            "imds_support = 2",
            "imds_support: expected one of \"v2.0\", \"optional\", found an integer",
        ),
        (
            "tags = { \"aws:x\" = \"y\" }",
            "tags.\"aws:x\": a tag's name has 1 to 128 characters and no prefix \"aws:\"",
        ),
        ("tags = { x = 1 }", "tags.x: expected a string, found an integer"),
        (
            "boot_mode = { aarch64 = \"legacy-bios\" }",
            "boot_mode: aarch64 boots with \"uefi\" only; for the other architecture write { x86_64 = \"...\" }",
        ),
        (
            "boot_mode = { s390x = \"uefi\" }",
            "boot_mode.s390x: unknown key; known here: x86_64, aarch64",
        ),
        ("import_role_name = \"\"", "import_role_name: must not be empty"),
    ] {
        let expected = format!("{{}}.{expected}");
        edited("aws", GOOD, "publish_amqp_messages = true", line, &expected);
    }
}

#[test]
fn azure() {
    let good = r#"[consumer_config.azure]
location = "eastus"
resource_group_name = "group"
storage_account_name = "account"
gallery_name = "Fedora"
gallery_description = ""
storage_container_name = "vhds"
target_regions = [{ name = "eastus", regional_replica_count = 1, storage_account_type = "Standard_LRS" }]
resource_manager_endpoint = "http://127.0.0.1:1"
"#;
    let target = good.lines().nth(7).expect("line");
    let group = "resource_group_name = \"group\"";
    let endpoint = "resource_manager_endpoint = \"http://127.0.0.1:1\"";
    for (old, new, expected) in [
        (
            group.to_owned(),
            "resource_group_name = \"\"".to_owned(),
            "{}.resource_group_name: must not be empty",
        ),
        (
            "storage_account_name = \"account\"".into(),
            "storage_account_name = \"my-account\"".into(),
            "{}.storage_account_name: expected 3 to 24 lower-case letters and digits, found \"my-account\"",
        ),
        (
            "gallery_name = \"Fedora\"".into(),
            "gallery_name = \"Fedora-Cloud\"".into(),
            "{}.gallery_name: expected 1 to 80 letters, digits, dots, and underscores, found \"Fedora-Cloud\"",
        ),
        (
            target.into(),
            target.replace("count = 1", "count = 0"),
            "{}[0].regional_replica_count: must be between 1 and 100",
        ),
        (
            target.into(),
            target.replace("Standard_LRS", "LRS"),
            "{}[0].storage_account_type: expected one of \"Standard_LRS\", \"Standard_ZRS\", \"Premium_LRS\", found \"LRS\"",
        ),
        (target.into(), "target_regions = []".into(), "{}: must not be empty"),
        (
            target.into(),
            target.replace(
                "}]",
                "}, { name = \"East US\", regional_replica_count = 1, storage_account_type = \"Standard_LRS\" }]",
            ),
            "{}: names one region twice: \"eastus\" and \"East US\"",
        ),
        (
            endpoint.into(),
            endpoint.replace("127.0.0.1:1", "management.example.org"),
            "{}.resource_manager_endpoint: must be https; plain http is for loopback addresses only",
        ),
        (
            endpoint.into(),
            "clean_up_unmarked = \"no\"".into(),
            "{}.clean_up_unmarked: expected true or false, found a string",
        ),
    ] {
        let expected = if old.starts_with("target_regions") {
            expected.replace("{}", "{}.target_regions")
        } else {
            expected.to_owned()
        };
        edited("azure", good, &old, &new, &expected);
    }
}

#[test]
fn gcp() {
    let good = r#"[consumer_config.gcp]
project = "fedora-cloud"
bucket_name = "bucket"
storage_locations = ["us"]
promotion_interval = "14d"
"#;
    for (old, new, expected) in [
        (
            "project = \"fedora-cloud\"",
            "project = \"Fedora\"",
            "{}.project: expected a project id such as \"fedora-cloud\", found \"Fedora\"",
        ),
        (
            "storage_locations = [\"us\"]",
            "storage_locations = [\"\"]",
            "{}.storage_locations[0]: must not be empty",
        ),
        (
            "promotion_interval = \"14d\"",
            "promotion_interval = \"0d\"",
            "{}.promotion_interval: must be longer than zero, such as \"14d\"",
        ),
        (
            "promotion_interval = \"14d\"",
            "compute_endpoint = \"http://example.org\"",
            "{}.compute_endpoint: must be https; plain http is for loopback addresses only",
        ),
        (
            "promotion_interval = \"14d\"",
            "storage_endpoint = \"storage\"",
            "{}.storage_endpoint: expected a URL such as \"https://example.org/path\"",
        ),
    ] {
        edited("gcp", good, old, new, expected);
    }
}

#[test]
fn container() {
    let good = "[consumer_config.container]\n\
                repos = { Base = \"fedora\" }\n\
                registries = [{ url = \"quay.io/fedora\" }]\n";
    let repos = "repos = { Base = \"fedora\" }";
    for (new, expected) in [
        ("repos = {}", "{}.repos: must name at least one subvariant"),
        (
            "repos = { Base = \"Fedora\" }",
            "{}.repos.Base: expected a repository name such as \"fedora-minimal\", found \"Fedora\"",
        ),
        (
            "repos = { Base = \"fedora:43\" }",
            "{}.repos.Base: expected a repository name such as \"fedora-minimal\", found \"fedora:43\"",
        ),
        (
            "repos = { Base = \"fedora\", Other = \"fedora\" }",
            "{}.repos.Other: subvariants Base and Other are both mapped to repository \"fedora\"",
        ),
    ] {
        edited("container", good, repos, new, expected);
    }
    let registries = "registries = [{ url = \"quay.io/fedora\" }]";
    for (new, expected) in [
        ("[]", "{}: must not be empty"),
        ("[{}]", "{}[0].url: missing, but required"),
        (
            "[{ url = \"http://quay.io\" }]",
            "{}[0].url: plain http needs insecure = true and a loopback host",
        ),
        (
            "[{ url = \"http://127.0.0.1:1\" }]",
            "{}[0].url: plain http needs insecure = true and a loopback host",
        ),
        (
            "[{ url = \"quay.io\", insecure = true }]",
            "{}[0].url: insecure = true is for loopback hosts only",
        ),
        (
            "[{ url = \"http://10.0.0.1:1\", insecure = true }]",
            "{}[0].url: insecure = true is for loopback hosts only",
        ),
        (
            "[{ url = \"https://localhost\", insecure = true }]",
            "{}[0].url: is https, but insecure = true asks for http",
        ),
        (
            "[{ url = \"u:hunter2@quay.io\" }]",
            "{}[0].url: must not hold a user name or a password",
        ),
        (
            "[{ url = \"docker://quay.io\" }]",
            "{}[0].url: expected host[:port][/path], such as \"quay.io/fedora\"",
        ),
        (
            "[{ url = \"\" }]",
            "{}[0].url: expected host[:port][/path], such as \"quay.io/fedora\"",
        ),
        (
            "[{ url = \"quay.io:port\" }]",
            "{}[0].url: expected host[:port][/path], such as \"quay.io/fedora\"",
        ),
        (
            "[{ url = \"quay.io?a=b\" }]",
            "{}[0].url: expected host[:port][/path], such as \"quay.io/fedora\"",
        ),
        (
            "[{ url = \"quay.io/Fedora\" }]",
            "{}[0].url: \"Fedora\" cannot be the beginning of a repository name",
        ),
        (
            "[{ url = \"quay.io/a\" }, { url = \"https://QUAY.io:443/a/\" }]",
            "{}[1]: the same registry twice: \"quay.io/a\" and \"https://QUAY.io:443/a/\"",
        ),
        (
            "[{ url = \"quay.io\", credential_prefix = \"QUAY-\" }]",
            "{}[0].credential_prefix: expected the beginning of a variable's name, such as \"QUAY_IO_\", found \"QUAY-\"",
        ),
        (
            "[{ url = \"quay.io\", tls_verfy = false }]",
            "{}[0].tls_verfy: unknown key; did you mean \"tls_verify\"?",
        ),
    ] {
        let expected = expected.replace("{}", "{}.registries");
        edited("container", good, registries, &format!("registries = {new}"), &expected);
    }
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
