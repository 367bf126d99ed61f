//! Which version the program says it is, wherever it is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cloud_image_uploader::VERSION;

use crate::{LIMIT, file, folder, outcome, program};

/// The build script for a package in `manifest`, built as cargo would.
fn build_script(manifest: &Path, into: &Path) -> PathBuf {
    let script = into.join("build");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    rustc
        .args(["--edition", "2024", "-o"])
        .arg(&script)
        .arg(file("src/build.rs"))
        .env("CARGO_MANIFEST_DIR", manifest)
        .env("CARGO_PKG_VERSION", "0.1.0");
    let (good, written) = outcome(&mut rustc);
    assert!(good, "{written}");
    script
}

fn git(folder: &Path, arguments: &[&str]) {
    let mut git = Command::new("git");
    git.current_dir(folder)
        .args(["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"])
        .args(["-c", "commit.gpgSign=false", "-c", "tag.gpgSign=false"])
        .args(arguments);
    let (good, written) = outcome(&mut git);
    assert!(good, "{arguments:?}: {written}");
}

#[test]
fn the_version_is_the_tag_where_there_is_one() {
    let folder = folder();
    let package = folder.path().join("package");
    fs::create_dir(&package).unwrap();
    let script = build_script(&package, folder.path());
    let version = |variable: &str| {
        let mut run = Command::new(&script);
        run.current_dir(&package)
            .env("CLOUD_IMAGE_UPLOADER_VERSION", variable)
            .env("GIT_CEILING_DIRECTORIES", folder.path().parent().unwrap());
        let (good, written) = outcome(&mut run);
        assert!(good, "{written}");
        let line = written
            .lines()
            .find_map(|line| line.strip_prefix("cargo::rustc-env=CLOUD_IMAGE_UPLOADER_VERSION="));
        line.unwrap().to_owned()
    };
    let commit = ["commit", "--quiet", "--allow-empty", "--message", "change"];

    assert_eq!(version(""), "0.1.0", "an unpacked archive");
    git(folder.path(), &["init", "--quiet"]);
    git(folder.path(), &commit);
    git(folder.path(), &["tag", "v7.7.7"]);
    assert_eq!(
        version(""),
        "0.1.0",
        "an archive unpacked in a checkout of something else"
    );

    git(&package, &["init", "--quiet"]);
    assert_eq!(version(""), "0.1.0", "nothing is committed");
    git(&package, &commit);
    let untagged = version("");
    assert!(untagged.starts_with("0.1.0+") && untagged.len() > 10, "{untagged}");
    git(&package, &["tag", "other"]);
    assert_eq!(version(""), untagged, "not a version's tag");
    git(&package, &["tag", "v1.2.0"]);
    assert_eq!(version(""), "1.2.0");
    git(&package, &commit);
    assert!(version("").starts_with("1.2.0-1-g"), "{}", version(""));
    assert_eq!(version("3.0.0-4.fc43"), "3.0.0-4.fc43", "the builder knows better");
}

#[tokio::test]
async fn the_program_says_its_version() {
    let exit = program().arg("--version").run(LIMIT).await.unwrap();
    assert_eq!(exit.stdout, format!("cloud-image-uploader {VERSION}\n"));
    let package = env!("CARGO_PKG_VERSION");
    let spec = crate::text("deploy/rpm/cloud-image-uploader.spec");
    assert!(
        spec.contains(&format!("Version:        {package}\n")),
        "the RPM has another version than the package"
    );
}
