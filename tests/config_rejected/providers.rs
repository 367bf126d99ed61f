//! The sections of the providers: one fault in a good section, one problem at its line.

use super::{problems, refused};

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
            "[consumer_config.gcp]",
            "[consumer_config.gcp]\npromotion_minimum_age = \"14d\"",
            "{}: delete_deprecated_after must be longer than promotion_minimum_age, or no image is ever promoted",
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
fn local() {
    let good = "[consumer_config.local]\n\
                directory = \"out\"\n\
                repos = { Base = \"a\", Other = \"b\", Long = \"ab\", Deep = \"c/d\" }\n";
    for (old, new, expected) in [
        (
            "Other = \"b\"",
            "Other = \"a/b\"",
            "{}.repos.Other: the layout \"a/b\" of subvariant Other would lie within \"a\" of subvariant Base",
        ),
        (
            "Base = \"a\"",
            "Base = \"c/d/e/f\"",
            "{}.repos.Base: the layout \"c/d/e/f\" of subvariant Base would lie within \"c/d\" of subvariant Deep",
        ),
    ] {
        edited("local", good, old, new, expected);
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
