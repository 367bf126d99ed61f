//! The e-mails of `log_config`: one for each cause, and over TLS where the file asks for it.

use std::path::Path;

use cloud_image_uploader_test_support::advice::Advice;
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise, xz};
use cloud_image_uploader_test_support::certs::Authority;
use cloud_image_uploader_test_support::mail::MailServer;
use cloud_image_uploader_test_support::program::Exit;
use tempfile::TempDir;

use crate::world::*;

const PASSWORD: &str = "mail-password";
const COMPOSE: &str = "Fedora-Cloud-43-20260305.0";

/// A compose of these disks beside its message.
fn compose(rows: Vec<Row>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let compose = rows
        .into_iter()
        .fold(ComposeBuilder::new(COMPOSE, None), ComposeBuilder::image);
    compose.write(&folder.path().join("compose")).unwrap();
    fs_write(folder.path(), "message.json", &compose.message("compose").to_string());
    folder
}

fn fs_write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

fn disk(arch: &str) -> Row {
    Row::new(
        "raw-xz",
        "raw.xz",
        "Cloud_Base",
        arch,
        &format!("{arch}.raw.xz"),
        xz(&noise(1, 512)),
    )
}

/// Publishes the compose in a folder, with e-mails through the server at this port and these settings of the handler.
async fn reconsume(folder: &TempDir, port: u16, settings: &str, authority: Option<&Authority>) -> Exit {
    let config = format!(
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
toaddrs = ["one@example.org"]
subject = "Cloud image uploader error"
level = "ERROR"
{settings}
[log_config.loggers.fedora_image_uploader]
level = "INFO"
handlers = ["email"]
"#,
        data = fixtures().join("release-data").display(),
        folder = folder.path().display(),
    );
    let mut program = World::program(&config)
        .args(["reconsume", "--file"])
        .arg(folder.path().join("message.json"));
    if let Some(authority) = authority {
        program = program.env("SSL_CERT_FILE", authority.write(folder.path()).unwrap());
    }
    program.run(LONG).await.unwrap()
}

/// The text of a letter as its reader sees it: its lines may be too long for SMTP, and are cut for the way.
fn decoded(letter: &str) -> String {
    letter.replace("\r\n", "\n").replace("=\n", "").replace("=3D", "=")
}

#[tokio::test]
async fn one_cause_is_one_letter_that_lists_what_it_hit() {
    let mail = MailServer::start().await.unwrap();
    let folder = compose(vec![disk("x86_64").missing(), disk("aarch64").missing()]);
    let exit = reconsume(&folder, mail.port(), "", None).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert_eq!(exit.stderr.matches(" ERROR ").count(), 1, "{}", exit.stderr);
    let letters = mail.letters();
    assert_eq!(letters.len(), 1, "{letters:#?}");
    let letter = decoded(&letters[0]);
    for arch in ["x86_64", "aarch64"] {
        let repair = format!("--only Cloud/{arch}/images/{arch}.raw.xz");
        assert!(letter.contains(&repair), "{repair} is not in {letter}");
        let line = exit.stderr.lines().find(|line| line.ends_with(&repair)).unwrap();
        assert!(line.contains("repair: cloud-image-uploader --conf "), "{line}");
    }

    // Two causes are two letters.
    let folder = compose(vec![disk("x86_64").missing(), disk("aarch64").wrong_checksum()]);
    let exit_of_two = reconsume(&folder, mail.port(), "", None).await;
    assert_eq!(
        exit_of_two.stderr.matches(" ERROR ").count(),
        2,
        "{}",
        exit_of_two.stderr
    );
    assert_eq!(mail.letters().len(), 1 + 2);

    let mut advice = Advice::default();
    advice.add("two images are missing", &exit);
    advice.add("one image is missing, another one has other content", &exit_of_two);
    insta::with_settings!({
        snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true,
    }, {
        insta::assert_snapshot!("advice-causes", advice.document());
    });
}

/// As Python's handler does it with `credentials` and `secure`: the password goes over TLS, and only there.
#[tokio::test]
async fn letters_with_a_password_go_over_tls_where_the_file_says_so() {
    let settings = format!("credentials = [\"uploader\", \"{PASSWORD}\"]\nsecure = []");
    let folder = compose(vec![disk("x86_64").missing()]);
    let authority = Authority::new().unwrap();

    let mail = MailServer::with_starttls(&authority.server().unwrap()).await.unwrap();
    let exit = reconsume(&folder, mail.port(), &settings, Some(&authority)).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert_eq!(mail.letters().len(), 1, "{}", exit.stderr);
    assert_eq!(mail.logins(), [("uploader".to_owned(), PASSWORD.to_owned(), true)]);

    // A server with a certificate of another authority, and one without TLS, never see the password.
    let stranger = Authority::new().unwrap();
    let mail = MailServer::with_starttls(&stranger.server().unwrap()).await.unwrap();
    let exit = reconsume(&folder, mail.port(), &settings, Some(&authority)).await;
    assert_eq!((mail.letters().len(), mail.logins().len()), (0, 0));
    assert!(
        exit.stderr.contains("failed to send an e-mail through 127.0.0.1"),
        "{}",
        exit.stderr
    );
    assert!(!exit.stderr.contains(PASSWORD), "{}", exit.stderr);
    let mail = MailServer::start().await.unwrap();
    let exit = reconsume(&folder, mail.port(), &settings, Some(&authority)).await;
    assert_eq!((mail.letters().len(), mail.logins().len()), (0, 0));
    assert!(
        exit.stderr.contains("failed to send an e-mail through 127.0.0.1"),
        "{}",
        exit.stderr
    );

    // Without `secure` the password goes as the server wants it.
    let mail = MailServer::start().await.unwrap();
    let settings = settings.replace("secure = []", "");
    let exit = reconsume(&folder, mail.port(), &settings, None).await;
    assert_eq!(mail.letters().len(), 1, "{}", exit.stderr);
    assert_eq!(mail.logins(), [("uploader".to_owned(), PASSWORD.to_owned(), false)]);
}
