//! The length that a file states for its decompressed bytes, and the requests that it takes to learn it.

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader_test_support::archive::{gzip, noise, xz, xz_blocks, zstd};
use cloud_image_uploader_test_support::files::Fault;

use crate::{Shelf, described};

fn status(code: u16) -> Fault {
    Fault::Status {
        code,
        retry_after: None,
    }
}

#[tokio::test]
async fn an_xz_file_tells_at_its_end() {
    let shelf = Shelf::start().await;
    let content = noise(1, 300_000);
    let blocks = xz_blocks(&content, 4096);
    let single = xz(&content);
    let far_apart = [&single[..], &vec![0; 200_000], &blocks, &[0; 8]].concat();
    let table = [
        ("one block", single, 1),
        ("many blocks", blocks, 1),
        ("two streams with much between them", far_apart, 2),
        ("nothing", xz(&[]), 0),
    ];
    for (what, bytes, times) in table {
        let image = shelf.put("disk.xz", &bytes);
        let before = shelf.ranges("disk.xz").len();
        let size = shelf.sources.source(&image).decompressed_size().await.unwrap();
        assert_eq!(size, 300_000 * times, "{what}");
        let ranges = shelf.ranges("disk.xz");
        assert!(
            ranges[before..].iter().all(|range| range.starts_with("bytes=")),
            "{what}: {ranges:?}"
        );
    }
}

#[tokio::test]
async fn a_plain_file_is_as_long_as_it_is() {
    let shelf = Shelf::start().await;
    for bytes in [noise(1, 100_000), noise(1, 3)] {
        let image = shelf.put("disk.raw", &bytes);
        let size = shelf.sources.source(&image).decompressed_size().await.unwrap();
        assert_eq!(size, bytes.len() as u64);
        assert!(shelf.ranges("disk.raw").iter().all(|range| range.starts_with("bytes=")));
    }
}

/// Files and servers that do not tell: the image is read once.
#[tokio::test]
async fn what_does_not_tell_is_counted() {
    let shelf = Shelf::start().await;
    let content = noise(2, 1_300_000);
    for (what, bytes) in [("gzip", gzip(&content)), ("zstd", zstd(&content))] {
        let image = shelf.put(what, &bytes);
        let size = shelf.sources.source(&image).decompressed_size().await.unwrap();
        assert_eq!(size, 1_300_000, "{what}");
        assert_eq!(shelf.ranges(what).last().unwrap(), "", "{what}");
    }
    let image = shelf.put("no-range.xz", &xz(&content));
    shelf.files.fault("/no-range.xz", Fault::NoRange, 1);
    let size = shelf.sources.source(&image).decompressed_size().await.unwrap();
    assert_eq!(size, 1_300_000);
    assert!(shelf.files.faults_met());
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let shelf = Shelf::start().await;
    let bytes = xz(&noise(3, 400_000));
    let image = shelf.put("disk.xz", &bytes);
    for fault in [status(503), Fault::Cut { after: 2 }, Fault::Stall { after: 0 }] {
        shelf.files.fault("/disk.xz", fault, 1);
    }
    let size = shelf.sources.source(&image).decompressed_size().await.unwrap();
    assert_eq!(size, 400_000);
    assert!(shelf.files.faults_met());
}

/// The index lies, or is damaged: reading the image reports it.
#[tokio::test]
async fn a_file_that_is_wrong_is_refused() {
    let shelf = Shelf::start().await;
    let good = xz_blocks(&noise(4, 100_000), 20_000);
    let mut damaged = good.clone();
    let index = damaged.len() - 20;
    damaged[index] ^= 1;
    let truncated = good[..good.len() - 4].to_vec();
    for (what, bytes) in [("damaged", damaged), ("truncated", truncated)] {
        let image = shelf.put(what, &bytes);
        let error = shelf.sources.source(&image).decompressed_size().await.unwrap_err();
        let (text, class) = described(&error);
        assert!(text.starts_with(&format!("decompress {what} as xz: ")), "{text}");
        assert_eq!(class, Class::Deliverable, "{what}");
    }
    let mut image = shelf.put("short.xz", &good);
    image.size += 10;
    let error = shelf.sources.source(&image).decompressed_size().await.unwrap_err();
    let (text, class) = described(&error);
    assert!(text.starts_with("verify short.xz: it has "), "{text}");
    assert_eq!(class, Class::Deliverable);
    let image = shelf.put("missing.xz", &good);
    shelf.files.fault("/missing.xz", status(404), 1);
    let error = shelf.sources.source(&image).decompressed_size().await.unwrap_err();
    assert_eq!(described(&error).0, "read missing.xz: the server answered 404");
}
