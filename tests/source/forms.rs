//! The stored and the decompressed form of every compression, from a server and from a folder.

use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::images::source::{CHUNK, Chunk, Content, Form};
use cloud_image_uploader_test_support::archive::{gzip, noise, xz, xz_blocks, zstd};

use crate::{Shelf, assert_same, image, joined, read, sources};

/// Data and holes whose borders are nowhere near those of chunks and blocks.
fn disk() -> Vec<u8> {
    let zeros = |len| vec![0; len];
    [
        noise(1, CHUNK + 5_000),
        zeros(3 * CHUNK),
        noise(2, 100_000),
        zeros(2 * CHUNK + 777),
    ]
    .concat()
}

/// A frame of zstd that decoders pass over.
fn skippable(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
    [&[0x50 | kind, 0x2a, 0x4d, 0x18], &length[..], bytes].concat()
}

/// The same disk in every form of compression that may come.
fn stored(disk: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let (head, tail) = disk.split_at(CHUNK + 4_321);
    let twice = |compress: fn(&[u8]) -> Vec<u8>| [compress(head), compress(tail)].concat();
    let small_blocks = |bytes: &[u8]| xz_blocks(bytes, 200_001);
    vec![
        ("xz of one block", xz(disk)),
        ("xz of many blocks", small_blocks(disk)),
        ("xz of two streams", twice(xz)),
        (
            "xz of two streams with padding",
            [small_blocks(head), vec![0; 8], small_blocks(tail), vec![0; 4]].concat(),
        ),
        ("xz with an empty stream", [xz(b""), xz(disk)].concat()),
        ("gzip", gzip(disk)),
        ("gzip of two members", twice(gzip)),
        ("gzip with zeros behind it", [gzip(disk), vec![0; 70_000]].concat()),
        (
            "gzip of two members with a zero behind them",
            [twice(gzip), vec![0]].concat(),
        ),
        ("zstd", zstd(disk)),
        ("zstd of two frames", twice(zstd)),
        (
            "zstd as pzstd writes it",
            [
                skippable(0, &[1, 2, 3, 4]),
                zstd(head),
                skippable(0, &[1, 2, 3, 4]),
                zstd(tail),
            ]
            .concat(),
        ),
        (
            "zstd with skippable frames at both ends",
            [
                skippable(15, b""),
                skippable(7, &[0x28; 70_000]),
                zstd(head),
                zstd(tail),
                skippable(1, &[0xfd; 3]),
                skippable(0, b""),
            ]
            .concat(),
        ),
        ("plain", disk.to_vec()),
    ]
}

/// Every chunk is full but the last, and is a hole just when the disk has zeros there.
fn assert_aligned(chunks: &[Chunk], disk: &[u8], what: &str) {
    for (chunk, expected) in chunks.iter().zip(disk.chunks(CHUNK)) {
        assert_eq!(chunk.content.len(), expected.len(), "{what} at {}", chunk.offset);
        let hole = matches!(chunk.content, Content::Hole(_));
        let zeros = expected.iter().all(|byte| *byte == 0);
        assert_eq!(hole, zeros, "{what} at {}: told as a hole", chunk.offset);
    }
}

#[tokio::test]
async fn every_compression_gives_the_same_disk_and_its_own_bytes() {
    let (shelf, disk) = (Shelf::start().await, disk());
    for (number, (what, bytes)) in stored(&disk).into_iter().enumerate() {
        let name = format!("{number}.raw");
        let remote = shelf.put(&name, &bytes);
        let local = image(Resource::Folder(shelf.folder().join(&name)), &name, &bytes);
        for image in [remote, local] {
            let what = format!("{what} from {}", image.location);
            let chunks = shelf.read(&image, Form::Decompressed).await.unwrap();
            assert_same(&joined(&chunks), &disk, &what);
            assert_aligned(&chunks, &disk, &what);
            let chunks = shelf.read(&image, Form::Stored).await.unwrap();
            assert_same(&joined(&chunks), &bytes, &what);
        }
    }
}

#[tokio::test]
async fn an_image_of_zeros_is_all_hole() {
    let shelf = Shelf::start().await;
    let image = shelf.put("zeros.xz", &xz(&vec![0; 3 * CHUNK + 1]));
    let chunks = shelf.read(&image, Form::Decompressed).await.unwrap();
    let lengths: Vec<_> = chunks.iter().map(|chunk| chunk.content.clone()).collect();
    let full = Content::Hole(CHUNK);
    assert_eq!(lengths, [full.clone(), full.clone(), full, Content::Hole(1)]);
}

#[tokio::test]
async fn what_decompresses_to_nothing_is_nothing() {
    let shelf = Shelf::start().await;
    for (name, bytes) in [
        ("plain", vec![]),
        ("xz", xz(b"")),
        ("gzip", gzip(b"")),
        ("zstd", zstd(b"")),
        ("skippable", skippable(3, b"nothing but this")),
    ] {
        let image = shelf.put(name, &bytes);
        let chunks = shelf.read(&image, Form::Decompressed).await.unwrap();
        assert_eq!(chunks, [], "{name}");
    }
}

#[tokio::test]
async fn a_source_may_be_opened_again() {
    let shelf = Shelf::start().await;
    let bytes = noise(5, 300_000);
    let image = shelf.put("a", &bytes);
    let one = sources(1);
    for _ in 0..2 {
        assert_same(&joined(&read(&one, &image, Form::Stored).await.unwrap()), &bytes, "a");
    }
    assert_eq!(shelf.ranges("a"), ["", ""]);
}
