//! The RPM: built from the package's archive and vendored crates, without git and without network.

use std::fs;
use std::path::Path;
use std::process::Command;

use cloud_image_uploader_test_support::program::Program;

use crate::{LIMIT, file, folder, outcome};

fn run(command: &mut Command) -> String {
    let (good, written) = outcome(command);
    assert!(good, "{command:?}: {written}");
    written
}

fn cargo(arguments: &[&str], last: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).arg(last);
    run(&mut cargo);
}

#[tokio::test]
#[ignore = "builds a release from vendored crates: several minutes"]
async fn the_rpm_builds_and_its_program_runs() {
    let folder = folder();
    let sources = folder.path().join("SOURCES");
    fs::create_dir(&sources).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let archive = format!("cloud-image-uploader-{version}");

    let target = folder.path().join("target");
    cargo(
        &[
            "package",
            "--no-verify",
            "--allow-dirty",
            "--locked",
            "--offline",
            "--target-dir",
        ],
        &target,
    );
    fs::rename(
        target.join(format!("package/{archive}.crate")),
        sources.join(format!("{archive}.crate")),
    )
    .unwrap();
    cargo(
        &["vendor", "--locked", "--offline", "--quiet"],
        &folder.path().join("vendor"),
    );
    let mut tar = Command::new("tar");
    // As the spec's own instructions say, but quickly.
    tar.current_dir(folder.path())
        .args(["--create", "--use-compress-program", "xz -0 -T0", "--file"])
        .arg(sources.join(format!("{archive}-vendor.tar.xz")))
        .arg("vendor");
    run(&mut tar);
    fs::remove_dir_all(folder.path().join("vendor")).unwrap();

    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild
        // The spec names packages of another distribution.
        .args(["-bb", "--nodeps", "--define", "features local", "--define"])
        .arg(format!("_topdir {}", folder.path().display()))
        .arg(file("deploy/rpm/cloud-image-uploader.spec"))
        .env("CARGO_BUILD_JOBS", "2");
    run(&mut rpmbuild);

    let built = folder.path().join("RPMS");
    let found = run(Command::new("find").arg(&built).args(["-name", "*.rpm"]));
    let [package] = found.lines().collect::<Vec<_>>()[..] else {
        panic!("{found}");
    };
    let listed = run(Command::new("rpm").args(["--query", "--list", "--package", package]));
    for path in [
        "/usr/lib/systemd/system/cloud-image-uploader@.service",
        "/usr/lib/sysusers.d/cloud-image-uploader.conf",
        "/usr/share/bash-completion/completions/cloud-image-uploader.bash",
        "/usr/share/man/man1/cloud-image-uploader-reconsume.1",
        "/config/aws.toml",
    ] {
        assert!(listed.contains(path), "no {path} in {listed}");
    }
    let root = folder.path().join("root");
    let mut install = Command::new("rpm");
    install
        .arg("--root")
        .arg(&root)
        .args(["--install", "--nodeps", "--noscripts", package]);
    run(&mut install);
    let program = Program::new(root.join("usr/bin/cloud-image-uploader")).unwrap();
    let exit = program.arg("--version").run(LIMIT).await.unwrap();
    let expected = format!("cloud-image-uploader {version}-1");
    assert!(exit.stdout.starts_with(&expected), "{}", exit.stdout);
}
