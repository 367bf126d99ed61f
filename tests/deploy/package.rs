//! The files that a package installs beside the program, and the archive that packages are built from.

use std::process::Command;

use crate::{LIMIT, folder, outcome, program};

const COMMANDS: [&str; 5] = ["consume", "reconsume", "plan", "check", "package-files"];

#[tokio::test]
async fn manual_pages_and_completions_tell_every_command() {
    let folder = folder();
    let share = folder.path().join("usr/share");
    let write = || program().arg("package-files").arg(&share).run(LIMIT);
    let exit = write().await.unwrap();
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""));
    let exit = write().await.unwrap();
    assert_eq!(exit.code, Some(0), "again: {}", exit.stderr);

    for (page, texts) in [
        ("cloud-image-uploader.1", &COMMANDS[..]),
        ("cloud-image-uploader-reconsume.1", &["--allow-older", "--location"]),
        ("cloud-image-uploader-check.1", &["--offline", "--conf"]),
    ] {
        let mut man = Command::new("man");
        man.args(["--warnings", "--local-file"])
            .arg(share.join("man/man1").join(page))
            .env("LC_ALL", "C.UTF-8")
            .env("MANWIDTH", "120");
        let output = man.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{page}");
        let shown = String::from_utf8(output.stdout).unwrap();
        for text in texts {
            assert!(shown.contains(text), "{text} is not in {page}:\n{shown}");
        }
    }

    let bash = share.join("bash-completion/completions/cloud-image-uploader.bash");
    let ask = format!(
        "source {}; [[ $(complete -p cloud-image-uploader) =~ -F\\ ([^\\ ]*) ]]; COMP_WORDS=(cloud-image-uploader re); \
         COMP_CWORD=1; ${{BASH_REMATCH[1]}} cloud-image-uploader re cloud-image-uploader; echo \"${{COMPREPLY[@]}}\"",
        bash.display()
    );
    let (good, answer) = outcome(Command::new("bash").args(["-euc", &ask]));
    assert!(good, "{answer}");
    assert_eq!(answer, "reconsume\n");
    for other in [
        "zsh/site-functions/_cloud-image-uploader",
        "fish/vendor_completions.d/cloud-image-uploader.fish",
    ] {
        let text = std::fs::read_to_string(share.join(other)).unwrap();
        for command in COMMANDS {
            assert!(text.contains(command), "{command} is not in {other}");
        }
    }
}

#[tokio::test]
async fn package_files_say_where_they_could_not_be_written() {
    let exit = program()
        .args(["package-files", "/proc/share"])
        .run(LIMIT)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(1));
    assert!(
        exit.stderr.contains("failed to write below /proc/share: "),
        "{}",
        exit.stderr
    );
}

#[test]
fn the_archive_holds_what_building_and_running_take() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["package", "--list", "--allow-dirty", "--offline", "--locked"]);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).unwrap();
    let listed: Vec<_> = listed.lines().collect();
    for needed in [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "src/build.rs",
        "src/main.rs",
        "src/images/xz/block.rs",
        "config/container.toml",
        "deploy/systemd/cloud-image-uploader@.service",
        "docs/architecture.md",
    ] {
        assert!(listed.contains(&needed), "{needed} is not in {listed:#?}");
    }
    let strange: Vec<_> = listed.iter().filter(|path| path.starts_with("tests/")).collect();
    assert!(strange.is_empty(), "{strange:#?}");
}
