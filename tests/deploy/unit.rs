//! The systemd unit, as systemd itself reads it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cloud_image_uploader::config::Config;

use crate::{PROGRAM, file, folder, outcome, text};

const UNIT: &str = "deploy/systemd/cloud-image-uploader@.service";

/// Lines of `systemd-analyze verify` about our unit; it also tells of others on the machine.
fn findings(unit: &str) -> Vec<String> {
    let folder = folder();
    // The verifier looks whether the program is there.
    let unit = unit.replace("/usr/bin/cloud-image-uploader", PROGRAM);
    let path = folder.path().join("cloud-image-uploader@.service");
    fs::write(&path, unit).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(path);
    let (_, written) = outcome(&mut verify);
    let ours = |line: &&str| line.contains("cloud-image-uploader");
    written.lines().filter(ours).map(str::to_owned).collect()
}

#[test]
fn systemd_finds_nothing_wrong() {
    let unit = text(UNIT);
    assert_eq!(findings(&unit), [""; 0]);
    let worse = unit.replace("ProtectClock=", "ProtectClocks=");
    assert!(findings(&worse)[0].contains("ProtectClocks"));
}

#[test]
fn the_unit_is_hardened() {
    let folder = folder();
    let path = folder.path().join("cloud-image-uploader@.service");
    let exposure = |unit: &str| {
        fs::write(&path, unit).unwrap();
        let mut security = Command::new("systemd-analyze");
        // Tenths; what remains is that it uses the network, and that its user is not made for it alone.
        security
            .args(["security", "--offline=true", "--threshold=15", "--no-pager"])
            .arg(&path);
        outcome(&mut security)
    };
    let unit = text(UNIT);
    let (good, written) = exposure(&unit);
    assert!(good, "{written}");
    let (good, written) = exposure(&unit.replace("SystemCallFilter=", "#").replace("Protect", "#"));
    assert!(!good, "{written}");
}

#[test]
fn the_limits_fit_the_defaults() {
    let unit = text(UNIT);
    let value = |key: &str| {
        let found = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap().to_owned()
    };
    let config = Config::parse("consumer_config.local.directory = \"d\"", Path::new("f")).unwrap();
    let stop = Duration::from_secs(value("TimeoutStopSec").parse().unwrap());
    assert!(stop >= config.service.shutdown_grace + Duration::from_secs(30));
    let memory: u64 = value("MemoryMax").strip_suffix('M').unwrap().parse().unwrap();
    assert!(memory << 20 >= config.service.buffer_memory + (128 << 20));
}

#[test]
fn the_user_can_be_made() {
    let folder = folder();
    let installed = folder.path().join("usr/lib/sysusers.d");
    fs::create_dir_all(&installed).unwrap();
    fs::create_dir(folder.path().join("etc")).unwrap();
    let ours = file("deploy/systemd/cloud-image-uploader.sysusers.conf");
    fs::copy(ours, installed.join("cloud-image-uploader.conf")).unwrap();
    let mut sysusers = Command::new("systemd-sysusers");
    sysusers.arg("--root").arg(folder.path());
    let (good, written) = outcome(&mut sysusers);
    assert!(good, "{written}");
    let users = fs::read_to_string(folder.path().join("etc/passwd")).unwrap();
    let ours = users
        .lines()
        .find(|line| line.starts_with("cloud-image-uploader:"))
        .unwrap();
    assert!(ours.ends_with("nologin"), "{ours}");
}
