//! The sample compose that is shipped, and the program that makes it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cloud_image_uploader_test_support::archive::{digest_of, sha256};
use cloud_image_uploader_test_support::process::{command, run, tool};
use cloud_image_uploader_test_support::program::Program;
use cloud_image_uploader_test_support::skopeo::inspect_layout;
use serde_json::{Value, json};

use crate::{COMPOSE, Desk, LIMIT, PROGRAM, fixtures};

fn sample() -> PathBuf {
    fixtures().join("sample")
}

fn rows() -> Vec<Value> {
    let text = fs::read(sample().join("compose/metadata/images.json")).unwrap();
    let metadata: Value = serde_json::from_slice(&text).unwrap();
    let variants = metadata["payload"]["images"].as_object().unwrap();
    let arches = variants
        .values()
        .flat_map(|arches| arches.as_object().unwrap().values());
    arches.flat_map(|rows| rows.as_array().unwrap().clone()).collect()
}

fn decompressed(path: &Path) -> Vec<u8> {
    let stored = fs::read(path).unwrap();
    let mut bytes = Vec::new();
    if stored.starts_with(&[0x1f, 0x8b]) {
        flate2::read::GzDecoder::new(&stored[..])
            .read_to_end(&mut bytes)
            .unwrap();
    } else if stored.starts_with(b"\xfd7zXZ") {
        liblzma::read::XzDecoder::new(&stored[..])
            .read_to_end(&mut bytes)
            .unwrap();
    } else {
        bytes = stored;
    }
    bytes
}

fn skopeo(home: &Path) -> Command {
    let mut skopeo = command(tool("skopeo").unwrap(), home);
    skopeo.arg("--insecure-policy").arg("--tmpdir").arg(home);
    skopeo
}

#[test]
fn the_metadata_of_the_sample_is_true() {
    let rows = rows();
    assert_eq!(rows.len(), 14);
    for row in rows {
        let path = row["path"].as_str().unwrap();
        let bytes = fs::read(sample().join("compose").join(path)).unwrap();
        assert_eq!(row["size"], bytes.len(), "{path}");
        assert_eq!(row["checksums"]["sha256"], sha256(&bytes), "{path}");
    }
}

#[tokio::test]
async fn the_sample_is_what_its_generator_makes() {
    let home = tempfile::tempdir().unwrap();
    let mut check = command(tool("python3").unwrap(), home.path());
    check.arg(sample().join("generate")).arg("--check");
    run(check).await.unwrap();
}

/// As the README has it: the files that are shipped, from whatever folder.
#[tokio::test]
async fn the_sample_is_published_as_shipped() {
    let desk = Desk::new();
    let (conf, message) = (sample().join("local.toml"), sample().join("message.json"));
    let line = format!(
        "cd \"$0\" && exec \"$1\" --conf '{}' reconsume --file '{}'",
        conf.display(),
        message.display()
    );
    let shell = Program::new("sh").unwrap().args(["-c", &line]);
    let exit = shell.arg(desk.folder.path()).arg(PROGRAM).run(LIMIT).await.unwrap();
    // The shipped file names web services relative to itself, and the directory relative to where one is.
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let published = desk.folder.path().join("target/sample").join(COMPOSE);

    let disks = rows().into_iter().filter(|row| row["subvariant"] == "Cloud_Base");
    let mut seen = 0;
    for row in disks {
        let (path, arch) = (row["path"].as_str().unwrap(), row["arch"].as_str().unwrap());
        let name = Path::new(path).file_stem().unwrap();
        let disk = published.join(arch).join(name);
        let expected = decompressed(&sample().join("compose").join(path));
        assert!(fs::read(&disk).unwrap() == expected, "{path}");
        let mark = fs::read(format!("{}.mark.json", disk.display())).unwrap();
        let mut mark: Value = serde_json::from_slice(&mark).unwrap();
        let mark_fields = mark.as_object_mut().unwrap();
        // Both notice later damage.
        let size = mark_fields.remove("file-size").unwrap();
        assert_eq!(size.as_str().unwrap(), expected.len().to_string(), "{path}");
        assert!(mark_fields.remove("file-modified").is_some(), "{path}");
        let wanted = json!({
            "compose-id": COMPOSE,
            "image-sha256": row["checksums"]["sha256"],
            "stage": "rc",
            "end-of-life": "2026-12-09",
            "owner": "cloud-image-uploader",
        });
        assert_eq!(mark, wanted, "{path}");
        if expected.len() >= 8 << 20 {
            let on_disk = fs::metadata(&disk).unwrap().blocks() * 512;
            assert!(on_disk < expected.len() as u64 / 2, "{path} takes {on_disk} bytes");
        }
        seen += 1;
    }
    assert_eq!(seen, 6);

    for repository in ["Container_Base", "Container_Toolbox", "Silverblue"] {
        assert_layout(&published.join("oci").join(repository), repository).await;
    }
}

/// Both architectures of a layout as skopeo reads them; manifests of OCI archives keep their digests.
async fn assert_layout(layout: &Path, subvariant: &str) {
    let home = tempfile::tempdir().unwrap();
    let index = inspect_layout(layout).await.unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 2, "{subvariant}");
    for (arch, ours) in [("aarch64", "arm64"), ("x86_64", "amd64")] {
        let mut inspect = skopeo(home.path());
        inspect.args(["--override-os", "linux", "--override-arch", ours, "inspect"]);
        inspect.arg(format!("oci:{}", layout.display()));
        let found: Value = serde_json::from_slice(&run(inspect).await.unwrap()).unwrap();
        assert_eq!(found["Architecture"], ours, "{subvariant}");

        let entry = manifests
            .iter()
            .find(|entry| entry["platform"]["architecture"] == ours)
            .unwrap();
        let row = rows()
            .into_iter()
            .find(|row| row["subvariant"] == subvariant && row["arch"] == arch)
            .unwrap();
        let mark = "org.fedoraproject.cloud-image-uploader.image-sha256";
        assert_eq!(entry["annotations"][mark], row["checksums"]["sha256"]);
        // A docker archive has no manifest to keep.
        if subvariant != "Container_Toolbox" {
            let archive = home.path().join(format!("{arch}.tar"));
            fs::write(
                &archive,
                decompressed(&sample().join("compose").join(row["path"].as_str().unwrap())),
            )
            .unwrap();
            let mut inspect = skopeo(home.path());
            inspect
                .args(["inspect", "--raw"])
                .arg(format!("oci-archive:{}", archive.display()));
            let manifest = run(inspect).await.unwrap();
            assert_eq!(entry["digest"], digest_of(&manifest), "{subvariant} {arch}");
        }
        // Copying reads every blob and checks its digest.
        let mut copy = skopeo(home.path());
        copy.args(["--override-os", "linux", "--override-arch", ours, "copy"]);
        copy.arg(format!("oci:{}", layout.display()));
        copy.arg(format!("dir:{}", home.path().join(ours).display()));
        run(copy).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_run_reads_no_image_and_changes_nothing() {
    let desk = Desk::new();
    crate::compose().write(&desk.compose()).unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(exit.stdout.matches("| published |").count(), 3, "{}", exit.stdout);
    crate::assert_complete(&desk);
    let before = desk.files();

    for folder in ["Cloud", "Silverblue"] {
        fs::remove_dir_all(desk.compose().join(folder)).unwrap();
    }
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(exit.stdout.matches("unchanged").count(), 3, "{}", exit.stdout);
    assert!(desk.files() == before);
}
