//! Composes whose metadata is not what it should be: what is said, and that nothing is written.

use std::fs;

use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise, xz};
use cloud_image_uploader_test_support::files::{Fault, Files};
use serde_json::{Value, json};

use crate::{COMPOSE, Desk, assert_complete, compose, disk_row};

/// Where the first row of the compose is in images.json.
const ROW: &str = "/payload/images/Cloud/x86_64/0";

fn metadata() -> Value {
    ComposeBuilder::new(COMPOSE, Some("RC-1.7"))
        .image(disk_row("x86_64"))
        .images_json()
}

fn with(pointer: &str, value: Value) -> Vec<u8> {
    let mut metadata = metadata();
    *metadata.pointer_mut(pointer).unwrap() = value;
    metadata.to_string().into_bytes()
}

fn with_row(key: &str, value: Value) -> Vec<u8> {
    with(&format!("{ROW}/{key}"), value)
}

/// Each fault of images.json, the content that has it, and the words that report it.
fn table() -> Vec<(&'static str, Option<Vec<u8>>, &'static str)> {
    let below = "its path does not stay below the compose";
    let letters = "its arch has other characters than letters, digits, and .+_-";
    vec![
        ("climbs", Some(with_row("path", json!("../x/Disk.raw.xz"))), below),
        (
            "climbs inside",
            Some(with_row("path", json!("Cloud/../../x.raw.xz"))),
            below,
        ),
        ("absolute", Some(with_row("path", json!("/etc/passwd"))), below),
        (
            "control characters",
            Some(with_row("path", json!("Cloud/\u{1b}[2J.raw.xz"))),
            below,
        ),
        ("a new line", Some(with_row("path", json!("Cloud/a\nb.raw.xz"))), below),
        ("empty", Some(with_row("path", json!(""))), below),
        ("backslash", Some(with_row("path", json!("..\\x.raw.xz"))), below),
        (
            "architecture climbs",
            Some(with_row("arch", json!("../x86_64"))),
            letters,
        ),
        (
            "no checksum",
            Some(with_row("checksums", json!({"md5": "0"}))),
            "it has no SHA-256",
        ),
        (
            "a short checksum",
            Some(with_row("checksums", json!({"sha256": "abc"}))),
            "it has no SHA-256",
        ),
        (
            "negative size",
            Some(with_row("size", json!(-1))),
            "its size is no number of bytes",
        ),
        (
            "unknown version",
            Some(with("/header/version", json!("2.0"))),
            "understand productmd.images 2.0",
        ),
        (
            "another kind of file",
            Some(with("/header/type", json!("productmd.rpms"))),
            "understand productmd.rpms 1.2",
        ),
        ("not JSON", Some(b"<html>It works!</html>".to_vec()), "expected value"),
        (
            "half of it",
            Some(metadata().to_string().into_bytes()[..200].to_vec()),
            "EOF while parsing",
        ),
        ("another form", Some(b"[]".to_vec()), "images.json"),
        ("nested deeply", Some(b"[".repeat(100_000)), "images.json"),
        ("empty file", Some(Vec::new()), "EOF while parsing"),
        ("missing", None, "images.json"),
    ]
}

/// From a folder and from a server; `plan` says the same.
#[tokio::test]
async fn a_compose_with_bad_metadata_is_refused() {
    let desk = Desk::new();
    let files = Files::start(desk.folder.path()).await.unwrap();
    let (local, remote) = (desk.compose().display().to_string(), files.url("/compose"));
    let images = desk.compose().join("metadata/images.json");
    // The message tells the compose id, so that the metadata's own is compared.
    let message = desk.folder.path().join("message.json");
    let text = compose().message("compose").to_string();
    fs::write(&message, text).unwrap();
    for (what, content, said) in table() {
        let rows = ComposeBuilder::new(COMPOSE, Some("RC-1.7")).image(disk_row("x86_64"));
        rows.write(&desk.compose()).unwrap();
        match content {
            Some(content) => fs::write(&images, content).unwrap(),
            None => fs::remove_file(&images).unwrap(),
        }
        for place in [
            ["--compose", &local],
            ["--compose", &remote],
            ["--file", message.to_str().unwrap()],
        ] {
            for verb in ["plan", "reconsume"] {
                let exit = desk.run(&[verb, place[0], place[1]]).await;
                assert_eq!(
                    exit.code,
                    Some(1),
                    "{what}: {verb} {place:?}: {}{}",
                    exit.stdout,
                    exit.stderr
                );
                assert!(exit.stderr.contains(said), "{what}: {verb} {place:?}: {}", exit.stderr);
                assert!(!exit.stderr.contains('\u{1b}'), "{what}: {:?}", exit.stderr);
            }
        }
        assert_eq!(desk.names(), [""; 0], "{what}");
    }
}

#[tokio::test]
async fn the_metadata_of_another_compose_is_refused() {
    let desk = Desk::new();
    compose()
        .metadata_id("Fedora-43-20251025.0")
        .write(&desk.compose())
        .unwrap();
    let message = desk.folder.path().join("message.json");
    fs::write(&message, compose().message("compose").to_string()).unwrap();
    for verb in ["plan", "reconsume"] {
        let exit = desk.run(&[verb, "--file", message.to_str().unwrap()]).await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        let said = format!("find compose {COMPOSE}: the metadata there is of \"Fedora-43-20251025.0\"");
        assert!(exit.stderr.contains(&said), "{}", exit.stderr);
    }
}

#[tokio::test]
async fn metadata_without_end_is_not_read_to_it() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let images = desk.compose().join("metadata/images.json");
    // Sparse: a gigabyte that takes no room.
    fs::File::create(&images).unwrap().set_len(1 << 30).unwrap();
    let files = Files::start(desk.folder.path()).await.unwrap();
    for place in [desk.compose().display().to_string(), files.url("/compose")] {
        for verb in ["plan", "reconsume"] {
            let exit = desk.run(&[verb, "--compose", &place]).await;
            assert_eq!(exit.code, Some(1), "{}", exit.stderr);
            assert!(exit.stderr.contains(&(32 << 20).to_string()), "{}", exit.stderr);
            assert!(exit.peak_memory < 256 << 20, "{} bytes", exit.peak_memory);
        }
    }
}

#[tokio::test]
async fn a_compose_of_nobody_is_nothing_to_do() {
    let desk = Desk::new();
    let epel = ComposeBuilder::new("Fedora-Epel-Playground-8-20201025.n.0", None);
    epel.image(disk_row("x86_64")).write(&desk.compose()).unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(exit.stdout.starts_with("Nothing to publish: "), "{}", exit.stdout);
    assert!(!desk.published().exists());
}

/// A name that no file system takes is that image's own failure, told at once.
#[tokio::test]
async fn a_name_that_is_too_long_is_told_at_once() {
    let desk = Desk::new();
    let long = "x".repeat(240);
    let row = Row::new(
        "raw-xz",
        "raw.xz",
        "Cloud_Base",
        "x86_64",
        &format!("{long}.raw.xz"),
        xz(&noise(1, 512)),
    );
    compose().image(row).write(&desk.compose()).unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    let last = exit.stderr.lines().last().unwrap();
    assert!(last.contains(&long) && last.contains("File name too long"), "{last}");
    assert_complete(&desk);
}

#[tokio::test]
async fn a_served_compose_is_planned_and_published() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let files = Files::start(desk.folder.path()).await.unwrap();
    let url = files.url("/compose");
    files.fault(
        "/compose/metadata/images.json",
        Fault::Status {
            code: 503,
            retry_after: None,
        },
        1,
    );
    let exit = desk.run(&["plan", "--compose", &url, "--format", "json"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let plan: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!((&plan["compose_id"], &plan["release"]), (&json!(COMPOSE), &json!(43)));
    assert_eq!(plan["publish"].as_array().unwrap().len(), 3);
    let asked: Vec<_> = files.requests().into_iter().map(|request| request.path).collect();
    assert!(
        asked.iter().all(|path| path.starts_with("/compose/metadata/")),
        "{asked:?}"
    );
    assert!(!desk.published().exists());

    let exit = desk.run(&["reconsume", "--compose", &url]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_complete(&desk);
    assert!(files.faults_met());
}
