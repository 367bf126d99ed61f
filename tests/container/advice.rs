//! The texts that an operator reads about the likeliest mistakes: what, where, why, and what to do.

use cloud_image_uploader_test_support::advice::Advice;
use cloud_image_uploader_test_support::front::{Call, Front, Trouble};
use cloud_image_uploader_test_support::registry::Registry;
use cloud_image_uploader_test_support::token_server::Lifetime;

use crate::world::*;

/// Only the beginning of an upload is of interest here.
fn name(call: &Call<'_>) -> Option<&'static str> {
    let begins = call.method == "POST" && call.path.ends_with("/blobs/uploads/");
    Some(if begins { "begin an upload" } else { "another call" })
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_with_their_remedy() {
    let mut advice = Advice::default();
    let check = async |entry: &Entry| program(entry).arg("check").run(LIMIT).await.unwrap();

    for (mistake, registry) in [
        ("the password is wrong", Registry::guarded().await.unwrap()),
        (
            "the password is wrong, where tokens are used",
            Registry::with_tokens(Lifetime::default()).await.unwrap(),
        ),
    ] {
        let entry = Entry::under(&registry, "QUAY_").with_password("not-the-password");
        advice.add(mistake, &check(&entry).await);
    }

    let guarded = Registry::guarded().await.unwrap();
    for (mistake, missing) in [
        ("no password is given", &["QUAY_PASSWORD"][..]),
        (
            "no folder with the certificate and its authority is given",
            &["QUAY_CERT_DIR"],
        ),
        ("no variable is given", &["QUAY_USER", "QUAY_PASSWORD", "QUAY_CERT_DIR"]),
    ] {
        let entry = Entry::under(&guarded, "QUAY_");
        let entry = missing.iter().fold(entry, |entry, variable| entry.without(variable));
        advice.add(mistake, &check(&entry).await);
    }

    let registry = Registry::open().await.unwrap();
    let front = Front::start(&registry.url(), name).await.unwrap();
    front.trouble("begin an upload", Trouble::Refused(403), usize::MAX);
    let entry = Entry::at(front.url().trim_start_matches("http://"));
    let entry = entry.with_account("QUAY_", "robot", "robot-password");
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sample/message.json");
    let exit = program(&entry)
        .args(["reconsume", "--file", sample])
        .run(LIMIT)
        .await
        .unwrap();
    advice.add("the account may not push", &exit);

    insta::with_settings!({
        snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true,
    }, {
        insta::assert_snapshot!("advice-container", advice.document());
    });
}
