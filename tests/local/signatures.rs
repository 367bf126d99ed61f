//! Checksums signed by GnuPG, as a release has them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cloud_image_uploader_test_support::archive::sha256;
use cloud_image_uploader_test_support::process::{command, run, tool};

use crate::{COMPOSE, Desk, assert_complete, assert_no_leftovers, compose, container_row, disk, disk_path, disk_row};

/// A person with a key, and what they trust with it.
struct Signer {
    home: PathBuf,
}

impl Signer {
    async fn new(desk: &Desk, name: &str) -> Self {
        let home = desk.folder.path().join(name);
        fs::create_dir(&home).unwrap();
        let signer = Self { home };
        let mut make = signer.gpg();
        make.args(["--quick-generate-key", name, "rsa2048", "sign", "never"]);
        run(make).await.unwrap();
        signer
    }

    fn gpg(&self) -> Command {
        let mut gpg = command(tool("gpg").unwrap(), &self.home);
        gpg.arg("--homedir").arg(&self.home);
        gpg.args(["--batch", "--pinentry-mode", "loopback", "--passphrase", ""]);
        gpg
    }

    async fn public_key(&self, armor: bool) -> Vec<u8> {
        let mut export = self.gpg();
        export.args(if armor {
            &["--armor", "--export"][..]
        } else {
            &["--export"]
        });
        run(export).await.unwrap()
    }

    async fn sign(&self, text: &str, digest: &str) -> Vec<u8> {
        let file = self.home.join("text");
        fs::write(&file, text).unwrap();
        let mut sign = self.gpg();
        sign.args(["--digest-algo", digest, "--output", "-", "--clear-sign"])
            .arg(&file);
        run(sign).await.unwrap()
    }
}

/// GnuPG starts an agent for each home, which would outlive the test.
impl Drop for Signer {
    fn drop(&mut self) {
        let mut end = Command::new("gpgconf");
        end.arg("--homedir").arg(&self.home).args(["--kill", "gpg-agent"]);
        // Without an agent there is nothing to end.
        let _ = end.status();
    }
}

/// The lines of a CHECKSUM file for both images of an architecture.
fn checksums(arch: &str) -> String {
    let line =
        |name: &str, bytes: &[u8]| format!("# {name}: {} bytes\nSHA256 ({name}) = {}\n", bytes.len(), sha256(bytes));
    let (disk, container) = (disk_row(arch), container_row(arch));
    line(&disk.file_name, &disk.bytes) + &line(&container.file_name, &container.bytes)
}

/// The file for a variant, beside its images.
fn place(desk: &Desk, variant: &str, arch: &str) -> PathBuf {
    let folder = desk.compose().join(variant).join(arch).join("images");
    folder.join(format!("Fedora-{variant}-43-1.7-{arch}-CHECKSUM"))
}

/// Sound checksums, signed, for every variant and architecture.
async fn vouch(desk: &Desk, signer: &Signer) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for arch in ["aarch64", "x86_64"] {
        let signed = signer.sign(&checksums(arch), "SHA256").await;
        files.extend(["Cloud", "Silverblue"].map(|variant| (place(desk, variant, arch), signed.clone())));
    }
    files
}

fn configure(desk: &Desk, mode: &str, keyring: &Path) {
    let text = fs::read_to_string(desk.conf()).unwrap();
    let keys = format!("[consumer_config]\nverify_signatures = {mode:?}\nkeyring = {keyring:?}\n");
    fs::write(desk.conf(), text.replace("[consumer_config]\n", &keys)).unwrap();
}

#[tokio::test]
async fn signed_checksums_vouch_for_images() {
    for armor in [true, false] {
        let desk = Desk::new();
        compose().write(&desk.compose()).unwrap();
        let (other, signer) = (Signer::new(&desk, "other").await, Signer::new(&desk, "signer").await);
        let keyring = desk.folder.path().join("keyring");
        let keys = [other.public_key(armor).await, signer.public_key(armor).await].concat();
        fs::write(&keyring, keys).unwrap();
        configure(&desk, "require", &keyring);
        for (place, signed) in vouch(&desk, &signer).await {
            fs::write(place, signed).unwrap();
        }
        let exit = desk.reconsume(&[]).await;
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        assert_complete(&desk);
    }
}

/// Only the disk of `x86_64` has what is described; the other images have sound checksums.
#[tokio::test]
async fn whatever_is_wrong_with_the_checksums_that_image_is_refused() {
    let desk = Desk::new();
    let (signer, stranger) = (Signer::new(&desk, "signer").await, Signer::new(&desk, "stranger").await);
    let keyring = desk.folder.path().join("keyring");
    fs::write(&keyring, signer.public_key(true).await).unwrap();
    configure(&desk, "MODE", &keyring);
    let conf = fs::read_to_string(desk.conf()).unwrap();
    let sound_files = vouch(&desk, &signer).await;
    let sound = checksums("x86_64");
    let signed = signer.sign(&sound, "SHA256").await;
    let as_text = String::from_utf8(signed.clone()).unwrap();
    let digest = sha256(&disk_row("x86_64").bytes);
    let other = sha256(&disk("x86_64"));
    let listed = format!("SHA256 (Disk.x86_64.raw.xz) = {digest}\n");
    let not_signed = "it is not signed by a key of the keyring";
    let missing = "there are no signed checksums (Fedora-Cloud-43-1.7-x86_64-CHECKSUM or Fedora-Cloud-43-x86_64-20251024.0-CHECKSUM)";
    let table: Vec<(&str, Option<Vec<u8>>, &str, bool)> = vec![
        ("missing", None, missing, true),
        ("not signed", Some(sound.clone().into_bytes()), missing, true),
        (
            "of a stranger",
            Some(stranger.sign(&sound, "SHA256").await),
            not_signed,
            false,
        ),
        (
            "weakly signed",
            Some(signer.sign(&sound, "SHA1").await),
            not_signed,
            false,
        ),
        (
            "changed afterwards",
            Some(as_text.replace(&digest, &other).into_bytes()),
            not_signed,
            false,
        ),
        (
            "cut off",
            Some(signed[..signed.len() - 100].to_vec()),
            not_signed,
            false,
        ),
        (
            "of another content",
            Some(signer.sign(&sound.replace(&digest, &other), "SHA256").await),
            "according to the signed Fedora-Cloud-43-1.7-x86_64-CHECKSUM",
            false,
        ),
        (
            "of other files",
            Some(signer.sign("SHA256 (x) = 00\n", "SHA256").await),
            "does not list it",
            false,
        ),
        (
            "with a line behind what was signed",
            Some([&signer.sign("SHA256 (x) = 00\n", "SHA256").await[..], listed.as_bytes()].concat()),
            not_signed,
            false,
        ),
        (
            "with a line before what was signed",
            Some([listed.as_bytes(), &signer.sign("SHA256 (x) = 00\n", "SHA256").await[..]].concat()),
            missing,
            true,
        ),
    ];
    for mode in ["require", "if-present"] {
        for (what, file, said, passes_if_absent) in &table {
            fs::write(desk.conf(), conf.replace("MODE", mode)).unwrap();
            let _ = fs::remove_dir_all(desk.compose());
            let _ = fs::remove_dir_all(desk.published());
            compose().write(&desk.compose()).unwrap();
            for (place, signed) in &sound_files {
                fs::write(place, signed).unwrap();
            }
            match file {
                Some(file) => fs::write(place(&desk, "Cloud", "x86_64"), file).unwrap(),
                None => fs::remove_file(place(&desk, "Cloud", "x86_64")).unwrap(),
            }
            let exit = desk.reconsume(&[]).await;
            if mode == "if-present" && *passes_if_absent {
                assert_eq!(exit.code, Some(0), "{what}: {}", exit.stderr);
                assert_complete(&desk);
                continue;
            }
            assert_eq!(exit.code, Some(1), "{mode} {what}: {}", exit.stderr);
            assert!(exit.stderr.contains(said), "{mode} {what}: {}", exit.stderr);
            assert!(!desk.published().join(disk_path("x86_64")).exists(), "{mode} {what}");
            assert!(desk.published().join(disk_path("aarch64")).exists(), "{mode} {what}");
            assert_no_leftovers(&desk);
        }
    }
}

#[tokio::test]
async fn a_keyring_that_is_none_is_told_at_once() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let keyring = desk.folder.path().join("keyring");
    configure(&desk, "require", &keyring);
    for (content, said) in [(None, "No such file"), (Some("nobody"), "there is no public key in it")] {
        if let Some(content) = content {
            fs::write(&keyring, content).unwrap();
        }
        let exit = desk.reconsume(&[]).await;
        assert_eq!(exit.code, Some(2), "{}", exit.stderr);
        assert!(exit.stderr.contains(said), "{}", exit.stderr);
    }
    let text = fs::read_to_string(desk.conf()).unwrap();
    let without: Vec<_> = text.lines().filter(|line| !line.starts_with("keyring")).collect();
    fs::write(desk.conf(), without.join("\n")).unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(2), "{}", exit.stderr);
    assert!(
        exit.stderr.contains("verify_signatures: needs a keyring"),
        "{}",
        exit.stderr
    );
    assert!(!desk.published().join(COMPOSE).exists());
}
