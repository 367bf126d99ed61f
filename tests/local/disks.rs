//! Disks whose bytes are not what their row says: nothing of them is published, and the rest of the compose is.

use cloud_image_uploader_test_support::archive::{Row, gzip, noise, xz, zstd};
use cloud_image_uploader_test_support::azure::vhd;
use cloud_image_uploader_test_support::gcp::tarball;

use crate::{COMPOSE, Desk, assert_complete, compose};

const MIB: usize = 1 << 20;

fn raw(bytes: impl Into<Vec<u8>>) -> Row {
    Row::new("raw-xz", "raw.xz", "Cloud_Base", "x86_64", "Odd.raw.xz", bytes)
}

fn fixed(bytes: impl Into<Vec<u8>>) -> Row {
    Row::new(
        "vhd-compressed",
        "vhd.xz",
        "Cloud_Base",
        "x86_64",
        "Odd.vhdfixed.xz",
        bytes,
    )
}

fn gce(bytes: impl Into<Vec<u8>>) -> Row {
    Row::new("tar-gz", "tar.gz", "Cloud_Base", "x86_64", "Odd.tar.gz", bytes)
}

#[tokio::test]
async fn bytes_that_are_no_disk_are_not_published() {
    let random: Vec<u8> = {
        let mut bytes = noise(1, MIB);
        bytes[510..512].fill(0);
        bytes
    };
    let with = |start: &[u8]| {
        let mut disk = noise(1, MIB);
        disk[..start.len()].copy_from_slice(start);
        disk
    };
    let unbootable = "its first sector does not end with the boot signature 55 AA";
    let table = [
        ("bzip2", raw(with(b"BZh91AY&SY")), "it is bzip2, which is not supported"),
        ("an empty file", raw(b""), "it is empty"),
        ("xz of nothing", raw(xz(b"")), "it is empty"),
        ("random bytes", raw(random.clone()), unbootable),
        ("random bytes in xz", raw(xz(&random)), unbootable),
        (
            "an odd length",
            raw(xz(&noise(1, MIB + 1))),
            "which are not whole sectors of 512",
        ),
        (
            "xz in xz",
            raw(xz(&with(&xz(b"disk")))),
            "it is compressed once more with xz",
        ),
        ("qcow2", raw(xz(&with(b"QFI\xfb"))), "it is a qcow2 image"),
        ("a VHD in a raw row", raw(xz(&vhd(&noise(1, MIB)))), "it is a fixed VHD"),
        (
            "a raw disk in a VHD row",
            fixed(xz(&noise(1, MIB))),
            "its footer is not that of a fixed VHD",
        ),
        ("a VHD of random bytes", fixed(xz(&vhd(&random))), unbootable),
        (
            "a dynamic VHD",
            fixed(xz(&vhd(&with(b"conectix")))),
            "it is a dynamic VHD",
        ),
        ("a tarball of random bytes", gce(tarball::of(&random)), unbootable),
        (
            "a raw disk in a tarball's row",
            gce(gzip(&noise(1, MIB))),
            "as a tarball for Compute Engine",
        ),
    ];
    for (what, row, said) in table {
        let desk = Desk::new();
        let path = row.path();
        compose().image(row).write(&desk.compose()).unwrap();
        let exit = desk.reconsume(&[]).await;
        assert_eq!(exit.code, Some(1), "{what}: {}", exit.stderr);
        let last = exit.stderr.lines().last().unwrap();
        assert!(last.contains(said) && last.contains(&path), "{what}: {last}");
        // The others are there, and nothing else.
        assert_complete(&desk);
        let names = desk.names();
        assert!(!names.iter().any(|name| name.contains("Odd")), "{what}: {names:?}");
    }
}

#[tokio::test]
async fn disks_are_published_from_whatever_holds_them() {
    let disk = noise(1, MIB);
    // As pzstd writes it, with the size of the frame that follows.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let table = [
        ("pzstd", [&skippable[..], &zstd(&disk), &skippable].concat()),
        ("gzip with zeros behind it", [&gzip(&disk)[..], &[0; 512]].concat()),
        (
            "gzip of two members",
            [gzip(&disk[..1000]), gzip(&disk[1000..])].concat(),
        ),
        ("plain", disk.clone()),
    ];
    for (what, bytes) in table {
        let desk = Desk::new();
        compose().image(raw(bytes)).write(&desk.compose()).unwrap();
        let exit = desk.reconsume(&[]).await;
        assert_eq!(exit.code, Some(0), "{what}: {}", exit.stderr);
        assert_complete(&desk);
        let files = desk.files();
        assert!(files[&format!("{COMPOSE}/x86_64/Odd.raw")] == disk, "{what}");
    }
}
