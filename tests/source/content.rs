//! Files that are not what their metadata says, or do not decode.

use std::io::Read;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::images::source::{Content, Form};
use cloud_image_uploader::model::compose::Image;
use cloud_image_uploader_test_support::archive::{gzip, noise, sha256, xz, xz_blocks, zstd};
use cloud_image_uploader_test_support::files::Fault;
use cloud_image_uploader_test_support::http_server::HttpServer;
use futures_util::stream;
use liblzma::read::XzEncoder;
use liblzma::stream::{Check, Stream};

use crate::{LIMIT, Shelf, described, image, read, sources};

const BOTH: [Form; 2] = [Form::Stored, Form::Decompressed];

fn changed(mut bytes: Vec<u8>, place: usize) -> Vec<u8> {
    bytes[place] ^= 1;
    bytes
}

fn shortened(bytes: &[u8], by: usize) -> Vec<u8> {
    bytes[..bytes.len() - by].to_vec()
}

/// An xz file that is good but for the dictionary it asks for: 4 GiB, the most there is.
/// ([The xz format](https://tukaani.org/xz/xz-file-format.txt), 3.1 and 5.3.1.)
fn huge_dictionary() -> Vec<u8> {
    let plain = Stream::new_easy_encoder(1, Check::Crc64).unwrap();
    let mut bytes = Vec::new();
    XzEncoder::new_stream(&b"a little"[..], plain)
        .read_to_end(&mut bytes)
        .unwrap();
    assert_eq!(
        bytes[12..16],
        [2, 0, 0x21, 1],
        "a header of twelve bytes with LZMA2 and no sizes"
    );
    bytes[16] = 40;
    let mut sum = flate2::Crc::new();
    sum.update(&bytes[12..20]);
    bytes[20..24].copy_from_slice(&sum.sum().to_le_bytes());
    bytes
}

/// The metadata says one thing, the server gives another.
#[tokio::test]
async fn a_file_that_is_not_the_one_described_is_refused() {
    let good = xz_blocks(&noise(1, 900_000), 250_000);
    let (size, digest) = (good.len(), sha256(&good));
    let flipped = changed(good.clone(), 300_000);
    let checksum = |found: &[u8]| {
        let found = sha256(found);
        format!("verify a: its SHA-256 is {found}, and {digest} according to the metadata")
    };
    let length = |found| format!("verify a: it has {found} bytes, and {size} according to the metadata");
    let longer = [&good[..], b"more"].concat();
    let table = [
        ("a flipped byte", flipped.clone(), checksum(&flipped)),
        (
            "a flipped magic",
            changed(good.clone(), 0),
            checksum(&changed(good.clone(), 0)),
        ),
        ("other bytes", noise(2, size), checksum(&noise(2, size))),
        ("shorter", shortened(&good, 4), length(size - 4)),
        ("longer", longer, length(size + 4)),
        ("empty", Vec::new(), length(0)),
    ];
    let shelf = Shelf::start().await;
    for (what, bytes, text) in table {
        let mut image = shelf.put("a", &bytes);
        (image.size, image.sha256) = (size as u64, digest.clone());
        for form in BOTH {
            let error = shelf.read(&image, form).await.unwrap_err();
            assert_eq!(
                described(&error),
                (text.clone(), Class::Deliverable),
                "{what}, {form:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_byte_that_changes_on_the_way_is_seen() {
    let shelf = Shelf::start().await;
    let image = shelf.put("a", &xz(&noise(1, 100_000)));
    for form in BOTH {
        shelf.files.fault("/a", Fault::Flip { offset: 50_000 }, 1);
        let (text, class) = described(&shelf.read(&image, form).await.unwrap_err());
        assert!(text.starts_with("verify a: its SHA-256 is "), "{text}");
        assert_eq!(class, Class::Deliverable);
    }
}

/// A server of an image whose answers carry no length, or a wrong one.
async fn read_from(body: Vec<u8>, length: Option<usize>, image_of: &[u8], form: Form) -> (String, Class) {
    let answer = move || {
        let body = stream::iter([Ok::<_, std::io::Error>(Bytes::from(body.clone()))]);
        let mut answer = Response::new(Body::from_stream(body));
        if let Some(length) = length {
            answer.headers_mut().insert("content-length", length.into());
        }
        std::future::ready(answer)
    };
    let server = HttpServer::start(Router::new().fallback(answer)).await.unwrap();
    let image = image(Resource::remote(&server.url()).unwrap(), "a", image_of);
    described(&read(&sources(1), &image, form).await.unwrap_err())
}

#[tokio::test]
async fn a_wrong_length_is_told_whatever_the_server_says_of_it() {
    let good = xz(&noise(1, 10_000));
    let size = good.len();
    let longer = [&good[..], &[0; 100]].concat();
    let table = [
        ("no length, shorter", shortened(&good, 9), None, size - 9),
        // Reading ends there; how much more would have come is not known.
        ("no length, longer", longer.clone(), None, size + 1),
        ("a length that lies, shorter", good.clone(), Some(size - 1), size - 1),
        ("a length that lies, longer", longer, Some(size + 100), size + 100),
    ];
    for (what, body, length, found) in table {
        for form in BOTH {
            let read = read_from(body.clone(), length, &good, form).await;
            let text = format!("verify a: it has {found} bytes, and {size} according to the metadata");
            assert_eq!(read, (text, Class::Deliverable), "{what}, {form:?}");
        }
    }
}

/// The fault is in the compose itself: the bytes are those of the metadata.
#[tokio::test]
async fn a_file_that_does_not_decode_is_refused() {
    let disk = noise(3, 700_000);
    let with = |bytes: Vec<u8>, tail: &[u8]| [&bytes[..], tail].concat();
    let magic = |magic: &[u8]| [magic, &noise(4, 5_000)].concat();
    let table = [
        ("truncated xz", "xz", shortened(&xz(&disk), 40)),
        ("xz without its last byte", "xz", shortened(&xz(&disk), 1)),
        (
            "xz of blocks, truncated",
            "xz",
            shortened(&xz_blocks(&disk, 100_000), 300_000),
        ),
        ("only the magic of xz", "xz", xz(&disk)[..6].to_vec()),
        ("rubbish after xz", "xz", with(xz(&disk), b"rubbish!")),
        ("padding of xz that is none", "xz", with(xz(&disk), &[0; 6])),
        ("a flipped byte in xz", "xz", changed(xz(&disk), 350_000)),
        ("the magic of xz, then noise", "xz", magic(b"\xfd7zXZ\0")),
        ("xz that asks for 4 GiB", "xz", huge_dictionary()),
        ("truncated gzip", "gzip", shortened(&gzip(&disk), 9)),
        ("rubbish after gzip", "gzip", with(gzip(&disk), b"rubbish!")),
        ("the magic of gzip, then noise", "gzip", magic(&[0x1f, 0x8b])),
        (
            "zeros after gzip, and then more",
            "gzip",
            with(gzip(&disk), &[0, 0, 0, 1]),
        ),
        (
            "a member after zeros",
            "gzip",
            with(with(gzip(&disk), &[0; 9]), &gzip(&disk)),
        ),
        (
            "a truncated second member",
            "gzip",
            with(gzip(&disk), &gzip(&disk)[..1000]),
        ),
        ("zeros after zstd", "zstd", with(zstd(&disk), &[0; 8])),
        (
            "a truncated skippable frame",
            "zstd",
            with(zstd(&disk), b"\x50\x2a\x4d\x18\x09\0\0\0rubbish!"),
        ),
        (
            "half a skippable frame's length",
            "zstd",
            with(zstd(&disk), b"\x50\x2a\x4d\x18\x09\0"),
        ),
        (
            "lz4 after a skippable frame",
            "zstd",
            b"\x50\x2a\x4d\x18\x01\0\0\0x\x04\x22\x4d\x18\x64\x40\xa7".to_vec(),
        ),
        ("truncated zstd", "zstd", shortened(&zstd(&disk), 9)),
        ("rubbish after zstd", "zstd", with(zstd(&disk), b"rubbish!")),
        (
            "the magic of zstd, then noise",
            "zstd",
            magic(&[0x28, 0xb5, 0x2f, 0xfd]),
        ),
    ];
    let shelf = Shelf::start().await;
    for (what, format, bytes) in table {
        let image = shelf.put("a", &bytes);
        let error = shelf.read(&image, Form::Decompressed).await.unwrap_err();
        let (text, class) = described(&error);
        let start = format!("decompress a as {format}: ");
        assert!(
            text.strip_prefix(&start).is_some_and(|why| !why.is_empty()),
            "{what}: {text}"
        );
        assert_eq!(class, Class::Deliverable, "{what}");
        // The stored bytes are given out all the same.
        assert!(shelf.read(&image, Form::Stored).await.is_ok(), "{what}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_refused() {
    let shelf = Shelf::start().await;
    let path = shelf.folder().join("nothing");
    let absent = image(Resource::Folder(path), "a", b"content");
    let folder = Image {
        location: Resource::Folder(shelf.folder().to_owned()),
        ..absent.clone()
    };
    for (image, cause) in [(absent, "No such file"), (folder, "directory")] {
        for form in BOTH {
            let (text, class) = described(&shelf.read(&image, form).await.unwrap_err());
            assert!(text.starts_with("read a: ") && text.contains(cause), "{text}");
            assert_eq!(class, Class::Deliverable, "{text}");
        }
    }
}

/// 128 GiB of zeros in 20 MB: no target takes that much, and it ends when it is too much.
#[tokio::test]
async fn a_bomb_ends_before_it_fills_a_disk() {
    let bomb = xz(&vec![0; 64 << 20]).repeat(2048);
    let shelf = Shelf::start().await;
    let image = shelf.put("bomb", &bomb);
    let too_long = ("read bomb: it has more than 64 GiB".to_owned(), Class::Deliverable);
    let told = shelf.sources.source(&image).decompressed_size().await.unwrap_err();
    assert_eq!(described(&told), too_long);
    let mut chunks = shelf.sources.source(&image).open(Form::Decompressed).await.unwrap();
    let error = loop {
        match tokio::time::timeout(LIMIT, chunks.next()).await.unwrap() {
            Ok(chunk) => assert!(chunk.unwrap().offset < 64 << 30),
            Err(error) => break error,
        }
    };
    assert_eq!(described(&error), too_long);

    let mut lie = shelf.put("lie", b"content");
    lie.size = 1 << 40;
    let error = shelf.read(&lie, Form::Stored).await.unwrap_err();
    assert_eq!(
        described(&error),
        ("read lie: it has more than 64 GiB".to_owned(), Class::Deliverable)
    );
    assert!(shelf.ranges("lie").is_empty(), "it is not even asked for");
}

/// The most memory this process ever had resident, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// 32 GiB of zeros in 5 MB: the stream flows as long as a reader takes it, and memory does not grow.
#[tokio::test]
async fn a_bomb_flows_until_its_reader_is_gone() {
    const TAKEN: u64 = 1 << 30;
    let bomb = xz(&vec![0; 64 << 20]).repeat(512);
    let shelf = Shelf::start().await;
    let image = shelf.put("bomb", &bomb);
    drop(bomb);
    let before = peak_memory();
    let mut chunks = shelf.sources.source(&image).open(Form::Decompressed).await.unwrap();
    let mut end = 0;
    while end < TAKEN {
        let chunk = tokio::time::timeout(LIMIT, chunks.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(matches!(chunk.content, Content::Hole(_)));
        end = chunk.offset + chunk.content.len() as u64;
    }
    let grown = peak_memory() - before;
    // Other tests of this program run beside it; the decoder's part is 30 MB.
    assert!(grown < 256 << 20, "{grown} bytes more");
}
