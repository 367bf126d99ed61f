//! Tarballs that Compute Engine would refuse, and images that are not what their metadata says: a clear error, and nothing
//! registered.

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader_test_support::archive::{Row, gzip, noise};
use cloud_image_uploader_test_support::gcp::tarball::{self, archive, header, seal};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_is_named_and_nothing_is_left() {
    let data = noise(1, 1000);
    let good = |name, kind, size| archive(&header(name, kind, size, 1000), &data);
    let whole = good("disk.raw", b'S', 1 << 30);
    let two = [&whole[..whole.len() - 1024], &whole[..]].concat();
    let pax = {
        let mut header = header("disk.raw", b'x', 0, 1000);
        header[257..265].copy_from_slice(b"ustar\x0000");
        archive(&seal(header), &data)
    };
    let gnu_pax = archive(&header("disk.raw", b'x', 0, 1000), &data);
    let large = tarball(1, 20 << 20);
    let with = |at: usize, bytes: &[u8]| {
        let mut disk = noise(1, 10_000);
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    };
    let (unbootable, qcow2) = (with(510, &[0, 0]), with(0, b"QFI\xfb"));
    let bzip2 = with(0, b"BZh91AY&SY");
    let table: Vec<(Row, &str)> = vec![
        (row(gzip(&gnu_pax)), "it has a PAX header"),
        (row(gzip(&pax)), "it is not in GNU format"),
        (row(gzip(&two)), "there is more in it than disk.raw"),
        (
            row(gzip(&good("sda.raw", b'S', 1 << 30))),
            "its member is named \"sda.raw\"",
        ),
        (
            row(gzip(&good("disk.raw", b'S', (1 << 30) + 512))),
            "not a whole number of GiB",
        ),
        (row(gzip(&whole[..whole.len() - 1024])), "without the mark of its end"),
        (
            row(large[..large.len() / 2].to_vec()),
            "as a tarball for Compute Engine",
        ),
        (
            row(large[..large.len() - 4].to_vec()),
            "as a tarball for Compute Engine",
        ),
        (
            row(tarball::of(&unbootable)),
            "disk.raw is no disk: its first sector does not end with the boot signature 55 AA",
        ),
        (row(tarball::of(&qcow2)), "disk.raw is no disk: it is a qcow2 image"),
        (row(bzip2), "as a tarball for Compute Engine: it is bzip2"),
        (row(b"no archive at all".to_vec()), "as a tarball for Compute Engine"),
        (row(large.clone()).wrong_checksum(), "its SHA-256 is"),
        (
            row(large.clone()).wrong_size(large.len() as u64 + 1),
            "according to the metadata",
        ),
        (row(large.clone()).wrong_size(1000), "according to the metadata"),
    ];
    let world = World::new().await;
    for (row, expected) in table {
        let deliverable = world.deliverable(COMPOSE, row).await;
        let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
        let text = failure.to_string();
        assert!(text.contains(expected), "{expected}: {text}");
        assert_eq!(failure.class(), Class::Deliverable, "{text}");
        assert_eq!(world.cloud.count("images.insert"), 0, "{expected}");
        world.assert_only(&[]).await;
    }
    assert!(world.cloud.count("objects.cancel") > 0, "what was sent is forgotten");
}
