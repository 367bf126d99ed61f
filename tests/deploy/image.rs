//! The container image: built, and its program run as OpenShift would: as some user, on a root that cannot be written to,
//! without a volume of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use cloud_image_uploader_test_support::files::Files;
use cloud_image_uploader_test_support::program::Program;
use cloud_image_uploader_test_support::rabbit::{self, DAEMON, Options, Rabbit};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::skopeo::Skopeo;
use serde_json::{Value, json};

use crate::{LIMIT, file, folder, outcome};

/// The user that a pod gets is a number from a range that belongs to its project.
const USER: u32 = 1_000_770_000;

/// Runs what comes after the two folders: in the first as root, unwritable, with the second as the configuration.
const CONFINED: &str = r#"
root=$1 config=$2; shift 2
mount --bind "$root" "$root"
mount --bind "$config" "$root/etc/fedora-messaging"
mount -o remount,ro,bind "$root"
mount -o remount,ro,bind "$root/etc/fedora-messaging"
exec chroot --groups=0 --userspec="$USER_ID:0" "$root" "$@"
"#;

struct Image {
    root: PathBuf,
    config: PathBuf,
}

impl Image {
    fn run(&self, arguments: &[&str]) -> Program {
        Program::new("unshare")
            .unwrap()
            .args(["--mount", "sh", "-euc", CONFINED, "sh"])
            .args([&self.root, &self.config])
            .args(arguments)
            .env("USER_ID", USER.to_string())
            .env("FEDORA_MESSAGING_CONF", "/etc/fedora-messaging/config.toml")
    }
}

#[tokio::test]
#[ignore = "builds a container image: several minutes and GiB"]
async fn the_image_publishes_as_any_user_on_a_read_only_root() {
    let folder = folder();
    let mut build = Command::new(file("tests/image"));
    let (good, written) = outcome(build.arg(folder.path()).arg("container,local"));
    assert!(good, "{written}");

    let said: Value = serde_json::from_slice(&fs::read(folder.path().join("image.json")).unwrap()).unwrap();
    let said = &said["OCIv1"]["config"];
    assert_eq!(said["User"], "1001");
    assert_eq!(said["Entrypoint"], json!(["/usr/bin/cloud-image-uploader"]));
    assert_eq!(said["Cmd"], json!(["consume"]));
    assert_eq!(said["Labels"]["org.opencontainers.image.title"], "cloud-image-uploader");
    assert_eq!(said["Volumes"], Value::Null);
    let root = fs::canonicalize(folder.path().join("root")).unwrap();
    for left in ["src", "opt/rust", "root/.cargo"] {
        assert!(!root.join(left).exists(), "{left} is in the image");
    }

    let config = folder.path().join("config");
    fs::create_dir_all(&config).unwrap();
    fs::create_dir_all(root.join("etc/fedora-messaging")).unwrap();
    // As in a pod, names of this machine are known.
    fs::copy("/etc/hosts", root.join("etc/hosts")).unwrap();
    let image = Image { root, config };
    let program = "/usr/bin/cloud-image-uploader";
    let exit = image.run(&[program, "--version"]).run(LIMIT).await.unwrap();
    assert_eq!(exit.stdout, "cloud-image-uploader 9.8.7\n", "{}", exit.stderr);
    let exit = image.run(&[program, "--help"]).run(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let exit = image
        .run(&["/bin/sh", "-c", "id -u; touch /tmp/x"])
        .run(LIMIT)
        .await
        .unwrap();
    assert_eq!(exit.stdout, format!("{USER}\n"));
    assert!(exit.stderr.contains("Read-only file system"), "{}", exit.stderr);

    publish_the_sample(&image, program).await;
}

/// The sample compose, announced by the existing client and read back by skopeo; before that a wrong password is found.
async fn publish_the_sample(image: &Image, program: &str) {
    let rabbit = Rabbit::start(Options::default()).await.unwrap();
    let registry = Registry::guarded().await.unwrap();
    let files = Files::start(&file("tests/fixtures")).await.unwrap();
    let text = configuration(&rabbit, &registry, &files, &image.config);
    fs::write(image.config.join("config.toml"), text).unwrap();
    let admin = rabbit.admin().await.unwrap();
    let mut spy = admin
        .spy("org.fedoraproject.prod.fedora_image_uploader.#")
        .await
        .unwrap();
    let (user, password) = registry.access.credentials.clone().unwrap();
    let run = |arguments: &[&str], password: &str| {
        image
            .run(&[&[program], arguments].concat())
            .env("TEST_USER", &user)
            .env("TEST_PASSWORD", password)
            .env("TEST_CERT_DIR", "/etc/fedora-messaging/registry")
    };

    let exit = run(&["check", "--offline"], &password).run(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let exit = run(&["check"], &password).run(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}{}", exit.stdout, exit.stderr);
    let exit = run(&["check"], "wrong").run(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(1), "{}", exit.stdout);
    assert!(
        exit.stdout.contains(&format!("failed: registry {}", registry.host)),
        "{}",
        exit.stdout
    );

    let mut daemon = run(&["consume"], &password).start().unwrap();
    daemon.wait_for_log("consuming", LIMIT).await.unwrap();
    let mut message: Value =
        serde_json::from_slice(&fs::read(file("tests/fixtures/sample/message.json")).unwrap()).unwrap();
    message["body"]["location"] = json!(files.url("/sample/compose"));
    FedoraMessaging::new()
        .unwrap()
        .publish(&rabbit, &[message])
        .await
        .unwrap();
    let notice = spy.next(LIMIT).await.unwrap().serialized().unwrap();
    assert_eq!(notice["body"]["repository"], "fedora");
    let index = Skopeo::new(&registry).unwrap().inspect("fedora:latest").await.unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "both architectures");
    daemon.terminate().unwrap();
    let exit = daemon.wait(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
}

/// Writes the files that a pod would mount, readable by all, and returns the configuration that names them.
fn configuration(rabbit: &Rabbit, registry: &Registry, files: &Files, folder: &Path) -> String {
    let tls = rabbit.tls_table(DAEMON, folder).unwrap();
    let tls = tls.replace(folder.to_str().unwrap(), "/etc/fedora-messaging");
    let certificates = folder.join("registry");
    fs::create_dir(&certificates).unwrap();
    for entry in fs::read_dir(registry.access.cert_dir.as_ref().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, certificates.join(path.file_name().unwrap())).unwrap();
    }
    let (good, written) = outcome(Command::new("chmod").args(["-R", "a+rX"]).arg(folder));
    assert!(good, "{written}");
    format!(
        r#"
amqp_url = "{url}"
passive_declares = true
topic_prefix = "org.fedoraproject.prod"
{tls}
{consuming}
[consumer_config]
release_metadata_url = "{data}/release.json"
bodhi_url = "{data}"
[consumer_config.container.repos]
Container_Base = "fedora"
[[consumer_config.container.registries]]
url = "{registry}"
credential_prefix = "TEST_"
"#,
        url = rabbit.tls_url(DAEMON),
        consuming = rabbit::consuming("cloud-image-uploader-containers"),
        data = files.url("/release-data"),
        registry = registry.host,
    )
}
