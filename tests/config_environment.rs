//! Requirements of running beside the file: variables, certificates, credentials files.

#![expect(clippy::expect_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use cloud_image_uploader::config::azure::Proof;
use cloud_image_uploader::config::container::Container;
use cloud_image_uploader::config::{Config, Environment, Provider};
use tempfile::TempDir;

const CERTIFICATE: &str = "text\n-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN RSA PRIVATE KEY-----\nAA==\n-----END RSA PRIVATE KEY-----\n";

fn env(variables: &[(&str, &str)]) -> Environment {
    variables.iter().copied().collect()
}

fn production(name: &str) -> Config {
    let path = format!("tests/fixtures/config/production-{name}.toml");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    Config::parse(&text.expect("fixture"), Path::new("f")).expect("config")
}

/// The things that the provider lacks, one printed problem a line.
fn missing(config: &Config, variables: &[(&str, &str)]) -> String {
    let problems = config.check_provider(&env(variables)).into_iter();
    let lines: Vec<_> = problems.map(|problem| problem.to_string()).collect();
    lines.join("\n")
}

fn write(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).expect("write");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn aws_credentials() {
    let config = production("aws");
    let home = TempDir::new().expect("directory");
    for good in [
        &[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "s")][..],
        &[("AWS_WEB_IDENTITY_TOKEN_FILE", "f"), ("AWS_ROLE_ARN", "r")],
        &[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x")],
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1/")],
    ] {
        assert_eq!(missing(&config, good), "", "{good:?}");
    }
    let home_variable = [("HOME", text(home.path()))];
    let all = "f: consumer_config.aws: no AWS credentials in the environment: set AWS_ACCESS_KEY_ID \
               and AWS_SECRET_ACCESS_KEY, or ";
    assert!(missing(&config, &home_variable).starts_with(all));
    assert!(missing(&config, &[("AWS_ROLE_ARN", "r")]).starts_with(all));
    fs::create_dir(home.path().join(".aws")).expect("directory");
    write(&home, ".aws/credentials", "[default]\n");
    assert_eq!(missing(&config, &home_variable), "");
    assert_eq!(
        missing(&config, &[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "")]),
        "f: consumer_config.aws: AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not"
    );
    assert_eq!(
        missing(&config, &[("AWS_SECRET_ACCESS_KEY", "hunter2")]),
        "f: consumer_config.aws: AWS_SECRET_ACCESS_KEY is set but AWS_ACCESS_KEY_ID is not"
    );
}

#[test]
fn azure_credentials_in_both_spellings() {
    let config = production("azure");
    let Provider::Azure(azure) = &config.provider else {
        panic!("not azure");
    };
    let id = ("AZURE_SUBSCRIPTION_ID", "sub");
    let client = ("AZURE_CLIENT_ID", "client");
    let old = [id, client, ("AZURE_SECRET", "hunter2"), ("AZURE_TENANT", "t")];
    let new = [id, client, ("AZURE_CLIENT_SECRET", "hunter2"), ("AZURE_TENANT_ID", "t")];
    for variables in [old, new] {
        let found = azure
            .credentials(&env(&variables), Path::new("f"))
            .expect("credentials");
        assert_eq!(
            (found.subscription_id.as_str(), found.client_id.as_str()),
            ("sub", "client")
        );
        assert_eq!(found.tenant_id, "t");
        assert!(matches!(&found.proof, Proof::Secret(secret) if secret.expose() == "hunter2"));
        assert!(!format!("{found:?}").contains("hunter2"));
    }
    let directory = TempDir::new().expect("directory");
    let token = write(&directory, "token", "jwt");
    let identity = ("AZURE_FEDERATED_TOKEN_FILE", text(&token));
    let found = azure.credentials(&env(&[id, client, ("AZURE_TENANT_ID", "t"), identity]), Path::new("f"));
    assert_eq!(found.expect("credentials").proof, Proof::TokenFile(token.clone()));

    assert_eq!(
        missing(&config, &[]),
        "f: consumer_config.azure: environment variable AZURE_SUBSCRIPTION_ID is not set\n\
         f: consumer_config.azure: environment variable AZURE_CLIENT_ID is not set\n\
         f: consumer_config.azure: environment variable AZURE_TENANT (or AZURE_TENANT_ID) is not set\n\
         f: consumer_config.azure: environment variable AZURE_SECRET (or AZURE_CLIENT_SECRET, or \
         AZURE_FEDERATED_TOKEN_FILE) is not set"
    );
    let both = [&old[..], &[("AZURE_CLIENT_SECRET", "other")]].concat();
    assert_eq!(
        missing(&config, &both),
        "f: consumer_config.azure: AZURE_SECRET and AZURE_CLIENT_SECRET are set to different values"
    );
    let gone = [id, client, old[3], ("AZURE_FEDERATED_TOKEN_FILE", "/no/such")];
    let told = missing(&config, &gone);
    assert!(
        told.contains("AZURE_FEDERATED_TOKEN_FILE: cannot read /no/such: "),
        "{told}"
    );
}

#[test]
fn gcp_credentials() {
    let config = production("gcp");
    let directory = TempDir::new().expect("directory");
    let with = |path: &Path| missing(&config, &[("GOOGLE_APPLICATION_CREDENTIALS", text(path))]);
    let good = write(&directory, "good", r#"{"type": "service_account", "private_key": "k"}"#);
    assert_eq!(with(&good), "");
    assert_eq!(
        missing(&config, &[]),
        "f: consumer_config.gcp: environment variable GOOGLE_APPLICATION_CREDENTIALS is not set"
    );
    for (name, content) in [("text", "hunter2"), ("list", "[]"), ("object", "{}")] {
        let path = write(&directory, name, content);
        assert_eq!(
            with(&path),
            format!(
                "f: consumer_config.gcp: GOOGLE_APPLICATION_CREDENTIALS: {} is not a JSON credentials \
                 file with a \"type\"",
                path.display()
            )
        );
    }
    let told = with(&directory.path().join("gone"));
    assert!(told.contains("GOOGLE_APPLICATION_CREDENTIALS: cannot read "), "{told}");
}

fn container(registry: &str) -> (Config, Container) {
    let text =
        format!("[consumer_config.container]\nrepos = {{ A = \"a\" }}\nregistries = [{{ url = \"r\", {registry} }}]");
    let config = Config::parse(&text, Path::new("f")).expect("config");
    let Provider::Container(container) = config.provider.clone() else {
        panic!("not container");
    };
    (config, container)
}

#[test]
fn registry_credentials() {
    let (_, anonymous) = container("tls_verify = true");
    let found = anonymous.registries[0]
        .credentials(&env(&[("USER", "me")]))
        .expect("none");
    assert_eq!(found, Default::default());

    let (config, with) = container("credential_prefix = \"P_\"");
    let registry = &with.registries[0];
    let password = [("P_USER", "me"), ("P_PASSWORD", "hunter2")];
    let found = registry.credentials(&env(&password)).expect("password");
    let (user, secret) = found.user.as_ref().expect("user");
    assert_eq!((user.as_str(), secret.expose()), ("me", "hunter2"));
    assert!(!format!("{found:?}").contains("hunter2"));

    let directory = TempDir::new().expect("directory");
    let certificates = [("P_CERT_DIR", text(directory.path()))];
    let told = |suffix: &str| {
        let key = "f: consumer_config.container.registries[0]: P_CERT_DIR:";
        format!("{key} {} {suffix}", directory.path().display())
    };
    assert_eq!(
        missing(&config, &certificates),
        told("holds no *.cert, no *.key, and no ca.crt")
    );
    let key = write(&directory, "x.key", KEY);
    assert_eq!(missing(&config, &certificates), told("holds a *.key but no *.cert"));
    let certificate = write(&directory, "x.cert", CERTIFICATE);
    let found = registry.credentials(&env(&certificates)).expect("certificates");
    assert_eq!(found.client_certificate, Some((certificate.clone(), key.clone())));
    assert_eq!((found.user, found.ca), (None, None));
    let ca = write(&directory, "ca.crt", CERTIFICATE);
    let found = registry.credentials(&env(&certificates)).expect("certificates");
    assert_eq!(found.ca, Some(ca));
    let other = write(&directory, "y.cert", CERTIFICATE);
    assert_eq!(
        missing(&config, &certificates),
        told("holds more than one *.cert or *.key")
    );
    fs::remove_file(other).expect("remove");
    fs::remove_file(&key).expect("remove");
    assert_eq!(missing(&config, &certificates), told("holds a *.cert but no *.key"));
    let key = write(&directory, "x.key", CERTIFICATE);
    assert!(
        missing(&config, &certificates)
            .ends_with(&format!("{} is not a PEM file with a private key in it", key.display()))
    );

    for (variables, expected) in [
        (&[][..], "neither P_USER and P_PASSWORD nor P_CERT_DIR is set"),
        (&password[..1], "P_USER is set but P_PASSWORD is not"),
        (&password[1..], "P_PASSWORD is set but P_USER is not"),
    ] {
        let expected = format!("f: consumer_config.container.registries[0]: {expected}");
        assert_eq!(missing(&config, variables), expected);
    }
    let told = missing(&config, &[("P_CERT_DIR", "/no/such")]);
    assert!(told.contains("P_CERT_DIR: cannot read /no/such: "), "{told}");
}

#[test]
fn a_registry_of_its_own_authority() {
    let directory = TempDir::new().expect("directory");
    let ca = write(&directory, "ca.pem", CERTIFICATE);
    let (config, with) = container(&format!("ca_cert = {:?}", text(&ca)));
    let found = with.registries[0].credentials(&env(&[])).expect("ca");
    assert_eq!(found.ca, Some(ca.clone()));
    fs::write(&ca, KEY).expect("write");
    assert_eq!(
        missing(&config, &[]),
        format!(
            "f: consumer_config.container.registries[0]: ca_cert: {} is not a PEM file with a \
             certificate in it",
            ca.display()
        )
    );
}

#[test]
fn certificates_of_the_broker() {
    let directory = TempDir::new().expect("directory");
    let certificate = write(&directory, "client.crt", CERTIFICATE);
    let key = write(&directory, "client.key", KEY);
    let gone = directory.path().join("gone.ca");
    let config = |ca: &Path, certificate: &Path, key: &Path| {
        let text = format!(
            "amqp_url = \"amqps://\"\ntls = {{ ca_cert = {ca:?}, certfile = {certificate:?}, keyfile = {key:?} }}\n\
             [consumer_config.local]\ndirectory = \"out\"\n"
        );
        Config::parse(&text, Path::new("f")).expect("config")
    };
    let good = config(&certificate, &certificate, &key);
    assert_eq!(good.check_environment(&env(&[])), []);
    let bad = config(&gone, &key, &certificate).check_environment(&env(&[]));
    let told: Vec<_> = bad.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].starts_with(&format!("f: tls.ca_cert: cannot read {}: ", gone.display())));
    assert!(told[1].starts_with("f: tls.certfile: ") && told[1].contains("with a certificate in it"));
    assert!(told[2].starts_with("f: tls.keyfile: ") && told[2].contains("with a private key in it"));
}

#[test]
fn debug_of_the_environment_shows_names_only() {
    let shown = format!("{:?}", env(&[("P_PASSWORD", "hunter2")]));
    assert_eq!(shown, "{\"P_PASSWORD\"}");
    assert!(Environment::of_process().get("PATH").is_some());
}
