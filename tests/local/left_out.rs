//! A build without a feature refuses a configuration that needs it, and names the feature.

use std::fs;

use crate::{Desk, assert_complete, compose};

#[cfg(not(feature = "signatures"))]
#[tokio::test]
async fn a_build_without_signatures_refuses_to_publish_unverified() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let keyring = desk.folder.path().join("keyring");
    fs::write(&keyring, "").unwrap();
    let text = fs::read_to_string(desk.conf()).unwrap();
    let keys = format!("[consumer_config]\nverify_signatures = \"if-present\"\nkeyring = {keyring:?}\n");
    fs::write(desk.conf(), text.replace("[consumer_config]\n", &keys)).unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(2), "{}", exit.stderr);
    assert!(
        exit.stderr.contains("lacks the feature `signatures`"),
        "{}",
        exit.stderr
    );
    assert!(!desk.published().exists());
    fs::write(desk.conf(), text).unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_complete(&desk);
}

#[cfg(not(feature = "mail"))]
#[tokio::test]
async fn a_build_without_mail_refuses_to_run_without_its_e_mails() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let text = fs::read_to_string(desk.conf()).unwrap();
    let mail = r#"
[log_config]
version = 1
[log_config.handlers.email]
class = "logging.handlers.SMTPHandler"
mailhost = "127.0.0.1"
fromaddr = "uploader@example.org"
toaddrs = ["one@example.org"]
subject = "failed"
[log_config.root]
level = "ERROR"
handlers = ["email"]
"#;
    fs::write(desk.conf(), text + mail).unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(2), "{}", exit.stderr);
    assert!(exit.stderr.contains("lacks the feature `mail`"), "{}", exit.stderr);
    assert!(!desk.published().exists());
}
