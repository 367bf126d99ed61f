//! Files made to break a decoder.

use std::error::Error as _;

use cloud_image_uploader::base::failure::{Class, Classified};
use cloud_image_uploader::images::source::Error;
use flate2::Crc;
use liblzma::stream::Check;

use super::files::{MEMORY, Stored, decode, noise, open, parallel, serial, sources, text};

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// A stream header for CRC64.
const HEADER: [u8; 12] = [0xfd, b'7', b'z', b'X', b'Z', 0, 0, 4, 0xe6, 0xd6, 0xb4, 0x46];

/// A stream header and a block header with these fields.
fn claiming(fields: &[u8]) -> Vec<u8> {
    let mut block = vec![0];
    block.extend(fields);
    block.resize((block.len() + 4).next_multiple_of(4) - 4, 0);
    block[0] = u8::try_from(block.len() / 4).unwrap();
    block.extend(crc32(&block));
    [&HEADER[..], &block].concat()
}

/// Bytes that look like a compressed chunk of LZMA2 at first.
fn garbage() -> Vec<u8> {
    [vec![0xe0; 40], noise(1, 100_000)].concat()
}

/// A good file that asks for a dictionary of 4 GiB.
fn large_dictionary() -> Vec<u8> {
    let mut file = serial(&text(1, 300_000), 1 << 20, 0, Check::Crc64, false);
    assert_eq!(file[14..16], [0x21, 1]);
    file[16] = 40;
    let end = 12 + usize::from(file[12]) * 4;
    let crc = crc32(&file[12..end]);
    file[end..end + 4].copy_from_slice(&crc);
    file
}

/// Header, blocks of 64 KiB, index, footer; and where the index begins.
fn valid() -> (Vec<u8>, usize) {
    let file = parallel(&text(1, 300_000), 64 << 10, 0, Check::Crc64);
    let footer = file.len() - 12;
    let backward: [u8; 4] = file[footer + 4..footer + 8].try_into().unwrap();
    let index = footer - (u32::from_le_bytes(backward) as usize + 1) * 4;
    assert_eq!(file[index], 0);
    (file, index)
}

/// Changes a byte and makes the checksum over the index right again.
fn lying_index(at: usize) -> Vec<u8> {
    let (mut file, index) = valid();
    file[index + at] ^= 1;
    let end = file.len() - 16;
    let crc = crc32(&file[index..end]);
    file[end..end + 4].copy_from_slice(&crc);
    file
}

fn cause(error: &Error) -> String {
    assert!(matches!(error, Error::Malformed { format: "xz", .. }), "{error:?}");
    assert_eq!(error.class(), Class::Deliverable);
    error.source().unwrap().to_string()
}

/// Of a block that is decoded at once, and of one that is decoded as it comes in.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_check_is_refused_both_ways() {
    let (mut file, index) = valid();
    file[index - 3] ^= 1;
    for (memory, expected) in [
        (MEMORY, "a block does not match its check"),
        (16 << 20, "lzma data error"),
    ] {
        let error = decode(&file, true, memory).await.unwrap_err();
        assert!(cause(&error).contains(expected), "{}", cause(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_refused_with_its_reason() {
    let (file, index) = valid();
    let changed = |at: usize| {
        let mut file = file.clone();
        file[at] ^= 1;
        file
    };
    // 100 GiB as a number of variable length.
    let huge = [0x80, 0x80, 0x80, 0x80, 0x90, 3];
    let claims = |fields: &[&[u8]]| [claiming(&fields.concat()), garbage()].concat();
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no more than a magic", HEADER[..6].to_vec(), "ends too early"),
        ("cut in a block", file[..index / 2].to_vec(), "ends too early"),
        ("cut in the index", file[..index + 3].to_vec(), "ends too early"),
        ("cut in the footer", file[..file.len() - 1].to_vec(), "ends too early"),
        ("stream header", changed(8), "a stream header is damaged"),
        ("block header", changed(14), "a block header is damaged"),
        ("data", changed(index / 2), "lzma data error"),
        ("number of records", lying_index(1), "the index tells of other blocks"),
        ("sizes in the index", lying_index(2), "the index tells of other blocks"),
        ("index checksum", changed(file.len() - 14), "the index is damaged"),
        ("footer", changed(file.len() - 5), "a stream footer is damaged"),
        ("padding", [&file[..], &[0; 3]].concat(), "not a multiple of four bytes"),
        (
            "padding between",
            [&file[..], &[0; 2], &file].concat(),
            "not a multiple of four bytes",
        ),
        (
            "rubbish",
            [&file[..], b"rubbish rubbish"].concat(),
            "neither a stream nor padding",
        ),
        (
            "claims 100 GiB",
            claims(&[&[0xc0, 40], &huge, &[0x21, 1, 22]]),
            "larger than its header says",
        ),
        (
            "compressed to 100 GiB",
            claims(&[&[0x40], &huge, &[0x21, 1, 22]]),
            "lzma",
        ),
        (
            "100 GiB of both",
            claims(&[&[0xc0], &huge, &huge, &[0x21, 1, 22]]),
            "lzma",
        ),
        ("dictionary of 4 GiB", large_dictionary(), "memory limit reached"),
        ("no LZMA2", claims(&[&[0, 3, 1, 0]]), "not compressed with lzma2"),
    ];
    for (name, bytes, expected) in table {
        for (ordered, memory) in [(true, MEMORY), (false, MEMORY), (true, 16 << 20)] {
            let error = decode(&bytes, ordered, memory).await.unwrap_err();
            let cause = cause(&error).replace("LZMA2", "lzma2");
            assert!(cause.contains(expected), "{name}: {cause}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_comes_before_what_it_broke() {
    let (file, index) = valid();
    let mut image = Stored::new(&file).image();
    let mut broken = file;
    broken[index / 2] ^= 1;
    let stored = Stored::new(&broken);
    image.location = stored.image().location;
    let source = sources(MEMORY, 2).source(&image);
    let mut chunks = open(&source, true).await;
    let error = loop {
        match chunks.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the file is broken"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Checksum { .. }), "{error:?}");
}

/// Sixteen GiB of zeros in two MiB: what is not taken is not decoded, and dropping it ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_flows_until_it_is_dropped() {
    let zeros = serial(&vec![0; 64 << 20], 64 << 20, 0, Check::Crc64, false);
    let blocks = parallel(&vec![0; 64 << 20], 1 << 20, 0, Check::Crc64);
    let mut ends = Vec::new();
    for (bomb, ordered) in [
        (zeros.repeat(256), true),
        (zeros.repeat(256), false),
        (blocks.repeat(256), false),
    ] {
        let stored = Stored::new(&bomb);
        let sources = sources(64 << 20, 2);
        let source = sources.source(&stored.image());
        let mut chunks = open(&source, ordered).await;
        let mut read = 0;
        while read < 100 << 20 {
            read += chunks.next().await.unwrap().unwrap().content.len();
        }
        drop(chunks);
        // The threads are free for others.
        let small = parallel(&text(1, 100_000), 1 << 20, 0, Check::Crc64);
        let small = Stored::new(&small);
        let mut chunks = open(&sources.source(&small.image()), ordered).await;
        let started = std::time::Instant::now();
        assert!(chunks.next().await.unwrap().is_some());
        ends.push(started.elapsed());
    }
    // Decoding the rest of a bomb takes a minute.
    assert!(ends.iter().all(|end| end.as_secs() < 10), "{ends:?}");
}
