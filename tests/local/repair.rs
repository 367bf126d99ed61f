//! Failures halfway, their leftovers, and the repair.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, sha256, xz};
use cloud_image_uploader_test_support::files::{Fault, Files};
use cloud_image_uploader_test_support::program::{Exit, Program};

use crate::{
    COMPOSE, Desk, LIMIT, PROGRAM, assert_complete, assert_no_leftovers, compose, container_row, disk_path, disk_row,
};

/// Executes a command as an operator would who copies it from the log.
async fn execute(line: &str) -> Exit {
    let mut path = OsString::from(Path::new(PROGRAM).parent().unwrap());
    path.push(":/usr/bin:/bin");
    let shell = Program::new("sh").unwrap().args(["-c", line]).env("PATH", path);
    shell.run(LIMIT).await.unwrap()
}

/// The text of the last failure that hit once, and the command at its end.
fn last_words(exit: &Exit) -> (&str, &str) {
    let last = last_failure(exit);
    last.split_once("; repair: ").unwrap_or_else(|| panic!("{last}"))
}

/// The text of the last failure, which ends the log: one line, or one for each thing that it hit.
fn last_failure(exit: &Exit) -> &str {
    let (_, last) = exit
        .stderr
        .rsplit_once(" ERROR ")
        .unwrap_or_else(|| panic!("{}", exit.stderr));
    last.trim_end()
}

fn corrupt(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_corrupted_image_leaves_nothing_and_its_repair_repairs_it() {
    let table = [
        (disk_row("x86_64"), disk_path("x86_64")),
        (container_row("aarch64"), format!("{COMPOSE}/oci/Silverblue")),
    ];
    for (row, path) in table {
        let desk = Desk::new();
        compose().write(&desk.compose()).unwrap();
        corrupt(&desk.compose().join(row.path()));
        let exit = desk.reconsume(&[]).await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        let (words, command) = last_words(&exit);
        let start = format!("failed to publish {path}: verify {}: its SHA-256 is ", row.path());
        assert!(words.starts_with(&start), "{words}");
        assert!(
            words.ends_with(&format!(", and {} according to the metadata", sha256(&row.bytes))),
            "{words}"
        );
        assert_eq!(
            exit.stderr.matches("; repair: ").count(),
            1,
            "one failure: {}",
            exit.stderr
        );
        assert_no_leftovers(&desk);
        assert!(!desk.published().join(&path).exists());
        assert_eq!(exit.stdout.matches("| published |").count(), 2, "{}", exit.stdout);
        assert_eq!(exit.stdout.matches("failed ").count(), 1, "{}", exit.stdout);

        compose().write(&desk.compose()).unwrap();
        let repaired = execute(command).await;
        assert_eq!(repaired.code, Some(0), "{command}: {}", repaired.stderr);
        assert_complete(&desk);
        assert_eq!(
            repaired.stdout.matches("| published |").count(),
            1,
            "only that: {}",
            repaired.stdout
        );
    }
}

#[tokio::test]
async fn a_name_taken_by_other_content_is_left_alone() {
    for (row, name) in [
        (disk_row("x86_64"), disk_path("x86_64")),
        (container_row("x86_64"), format!("{COMPOSE}/oci/Silverblue")),
    ] {
        let desk = Desk::new();
        compose().write(&desk.compose()).unwrap();
        assert_eq!(desk.reconsume(&[]).await.code, Some(0));
        let before = desk.files();
        let other = Row {
            bytes: xz(b"something else"),
            ..row.clone()
        };
        let changed = sha256(&other.bytes);
        let replaced = ComposeBuilder::new(COMPOSE, Some("RC-1.7")).image(other);
        replaced.write(&desk.compose()).unwrap();
        let exit = desk.reconsume(&[]).await;
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        let (words, _) = last_words(&exit);
        for part in [&name, &changed, &sha256(&row.bytes), "already with another content"] {
            assert!(words.contains(part), "{part} in {words}");
        }
        assert!(desk.files() == before);
    }
}

/// The largest file below a folder of the published ones.
fn largest(desk: &Desk, below: &str) -> String {
    let files = desk.files().into_iter().filter(|(name, _)| name.starts_with(below));
    files.max_by_key(|(_, bytes)| bytes.len()).unwrap().0
}

#[tokio::test]
async fn a_disk_or_layout_that_was_damaged_is_written_again() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    assert_eq!(desk.reconsume(&[]).await.code, Some(0));
    let content = |desk: &Desk| {
        let mut files = desk.files();
        files.retain(|name, _| !name.ends_with(".mark.json"));
        files
    };
    let whole = content(&desk);
    let layout = format!("{COMPOSE}/oci/Silverblue");
    let blob = largest(&desk, &format!("{layout}/blobs"));
    let index = format!("{layout}/index.json");
    let truncate = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [(&str, Damage<'_>); 5] = [
        (&disk_path("x86_64"), &corrupt),
        (&disk_path("aarch64"), &truncate),
        (&blob, &corrupt),
        (&blob, &remove),
        (&index, &truncate),
    ];
    for (path, damage) in damages {
        damage(&desk.published().join(path));
        assert!(content(&desk) != whole, "{path}");
        let exit = desk.reconsume(&[]).await;
        assert_eq!(exit.code, Some(0), "{path}: {}", exit.stderr);
        assert!(
            exit.stderr.contains("has changed since it was published"),
            "{}",
            exit.stderr
        );
        assert!(content(&desk) == whole, "{path} is as it was");
        assert_eq!(
            exit.stdout.matches("| published |").count(),
            1,
            "{path}: {}",
            exit.stdout
        );
        assert_complete(&desk);
        let again = desk.reconsume(&[]).await;
        assert_eq!(again.stdout.matches("| published |").count(), 0, "{}", again.stdout);
    }
}

/// A file without a mark belongs to another owner: it is never adopted, never overwritten.
#[tokio::test]
async fn a_file_of_somebody_else_is_left_alone() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let path = desk.published().join(disk_path("x86_64"));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "mine").unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(
        last_words(&exit).0.contains("something without a mark"),
        "{}",
        exit.stderr
    );
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

/// A compose served over HTTP whose disk for `x86_64` stops coming.
async fn stalled(desk: &Desk) -> (Files, String) {
    compose().write(&desk.compose()).unwrap();
    let files = Files::start(desk.folder.path()).await.unwrap();
    let path = format!("/compose/{}", disk_row("x86_64").path());
    // Far enough for the first pieces to have gone through download and decoder, which gather what comes.
    files.fault(&path, Fault::Stall { after: 1_400_000 }, 1);
    let url = files.url("/compose");
    (files, url)
}

/// Waits until the file has this many bytes.
async fn grown_to(file: &Path, size: u64) {
    let deadline = Instant::now() + LIMIT;
    while fs::metadata(file).map_or(0, |found| found.len()) < size {
        assert!(Instant::now() < deadline, "{} does not grow", file.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_process_killed_while_it_writes_is_completed_by_the_next() {
    let desk = Desk::new();
    let (files, url) = stalled(&desk).await;
    let mut first = desk.program(&["reconsume", "--compose", &url]).start().unwrap();
    let partial = desk
        .published()
        .join(format!("{COMPOSE}/x86_64/.Disk.x86_64.raw.partial"));
    grown_to(&partial, 512 << 10).await;
    first.kill().unwrap();
    assert!(files.faults_met() && partial.exists());
    assert!(!desk.published().join(disk_path("x86_64")).exists());

    let exit = desk.run(&["reconsume", "--compose", &url]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_complete(&desk);
}

#[tokio::test]
async fn a_stopped_process_leaves_what_the_next_completes() {
    let desk = Desk::new();
    let (_files, url) = stalled(&desk).await;
    let first = desk.program(&["reconsume", "--compose", &url]).start().unwrap();
    let partial = desk
        .published()
        .join(format!("{COMPOSE}/x86_64/.Disk.x86_64.raw.partial"));
    grown_to(&partial, 512 << 10).await;
    first.terminate().unwrap();
    let stopped = first.wait(LIMIT).await.unwrap();
    assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    assert!(!desk.published().join(disk_path("x86_64")).exists());
    let exit = desk.run(&["reconsume", "--compose", &url]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_complete(&desk);
}

#[tokio::test]
async fn a_second_process_waits_for_the_first() {
    let desk = Desk::new();
    let (_files, url) = stalled(&desk).await;
    let arguments = ["reconsume", "--compose", &url];
    let mut first = desk.program(&arguments).start().unwrap();
    grown_to(
        &desk
            .published()
            .join(format!("{COMPOSE}/x86_64/.Disk.x86_64.raw.partial")),
        1,
    )
    .await;
    let mut second = desk.program(&arguments).start().unwrap();
    second
        .wait_for_log("another process is writing there", LIMIT)
        .await
        .unwrap();
    first.kill().unwrap();
    let exit = second.wait(LIMIT).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_complete(&desk);
}

#[tokio::test]
async fn two_processes_at_once_end_with_one_result() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let (one, two) = tokio::join!(desk.reconsume(&[]), desk.reconsume(&[]));
    assert_eq!((one.code, two.code), (Some(0), Some(0)), "{}{}", one.stderr, two.stderr);
    let outcomes = |exit: &Exit| {
        (
            exit.stdout.matches("| published |").count(),
            exit.stdout.matches("unchanged").count(),
        )
    };
    let (one, two) = (outcomes(&one), outcomes(&two));
    assert_eq!(
        (one.0 + two.0, one.1 + two.1),
        (3, 3),
        "each is made once and found once"
    );
    assert_complete(&desk);
}

#[tokio::test]
async fn only_what_is_asked_for_is_published() {
    for (pattern, expected) in [
        ("*.x86_64.raw.xz", vec![disk_path("x86_64")]),
        ("Disk.aarch64.raw.xz", vec![disk_path("aarch64")]),
        ("Silverblue", vec![format!("{COMPOSE}/oci/Silverblue/index.json")]),
        ("nothing-of-this-name", vec![]),
    ] {
        let desk = Desk::new();
        compose().write(&desk.compose()).unwrap();
        let exit = desk.reconsume(&["--only", pattern]).await;
        assert_eq!(exit.code, Some(0), "{pattern}: {}", exit.stderr);
        let shown = |name: &String| name.ends_with(".raw") || name.ends_with("Silverblue/index.json");
        let found: Vec<_> = desk.names().into_iter().filter(shown).collect();
        assert_eq!(found, expected, "{pattern}");
    }
}

#[tokio::test]
async fn a_location_is_known_or_refused() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let exit = desk.reconsume(&["--location", "/elsewhere"]).await;
    assert_eq!(exit.code, Some(2), "{}", exit.stderr);
    let known = desk.published();
    let text = format!(
        "there is no location \"/elsewhere\"; configured are {}",
        known.display()
    );
    assert!(exit.stderr.contains(&text), "{}", exit.stderr);
    assert!(!known.exists(), "nothing was done");
    let exit = desk.reconsume(&["--location", known.to_str().unwrap()]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_complete(&desk);
}

/// Without the privilege of root to write wherever it likes.
#[tokio::test]
async fn a_directory_that_cannot_be_written_is_told_at_once() {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let file = desk.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let locked = desk.folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, PermissionsExt::from_mode(0o555)).unwrap();
    for (directory, cause) in [
        (locked.clone(), "Permission denied"),
        (locked.join("below"), "Permission denied"),
        (file.clone(), "File exists"),
        (file.join("below"), "Not a directory"),
    ] {
        desk.configure(&directory);
        let program = if root {
            let setpriv = Program::new("setpriv").unwrap();
            setpriv.args(["--bounding-set=-all", "--inh-caps=-all", PROGRAM])
        } else {
            Program::new(PROGRAM).unwrap()
        };
        let program = program.arg("--conf").arg(desk.conf());
        let program = program.args(["reconsume", "--compose"]);
        let exit = program.arg(desk.compose()).run(LIMIT).await.unwrap();
        assert_eq!(exit.code, Some(1), "{}", exit.stderr);
        let words = last_failure(&exit);
        assert!(words.contains(&format!(": write {}", directory.display())), "{words}");
        assert!(words.contains(cause), "{words}");
        assert_eq!(exit.stderr.matches(" ERROR ").count(), 1, "one cause: {}", exit.stderr);
    }
}
