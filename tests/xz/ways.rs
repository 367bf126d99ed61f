//! The ways through the decoder, each with a file that needs it.

use liblzma::stream::Check;

use super::files::{MEMORY, Stored, collect, decode, noise, open, parallel, reference, serial, sources, text};

/// Five MiB with a hole in the middle, not a whole number of chunks.
fn content() -> Vec<u8> {
    let mut content = noise(1, 1 << 20);
    content.extend(vec![0; 2 << 20]);
    content.extend(text(2, (2 << 20) + 12_345));
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_file_comes_out_whole() {
    let content = content();
    let odd = 700_001;
    let two = [
        parallel(&content, 1 << 20, 0, Check::Crc64),
        serial(&content, odd, 1, Check::Sha256, false),
    ];
    let files = [
        ("sizes in headers", parallel(&content, 1 << 20, 0, Check::Crc64), 1),
        ("blocks of odd size", parallel(&content, odd as u64, 1, Check::Crc32), 1),
        ("tiny blocks", parallel(&content, 4096, 0, Check::None), 1),
        ("no sizes", serial(&content, odd, 6, Check::Sha256, false), 1),
        ("no sizes, filters", serial(&content, odd, 0, Check::Crc64, true), 1),
        ("one block", serial(&content, content.len(), 6, Check::Crc64, false), 1),
        ("two streams", two.concat(), 2),
        ("padding", [&two[0][..], &[0; 8], &two[1], &[0; 4]].concat(), 2),
        ("nothing", parallel(&[], 1 << 20, 6, Check::Crc64), 0),
    ];
    // With all memory, with some for blocks, with none.
    for memory in [MEMORY, 66 << 20, 32 << 20] {
        for (name, file, times) in &files {
            for ordered in [true, false] {
                let decoded = decode(file, ordered, memory).await.unwrap();
                assert!(
                    decoded == content.repeat(*times),
                    "{name}, {memory} bytes, in order: {ordered}"
                );
                assert!(reference(file).unwrap() == decoded, "{name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_are_told_as_holes() {
    let mut content = vec![0; 24 << 20];
    content.extend(text(1, 1 << 20));
    content.extend(vec![0; 7 << 20]);
    for file in [
        parallel(&content, 1 << 20, 6, Check::Crc64),
        parallel(&content, 3 << 20, 0, Check::Crc64),
        serial(&content, content.len(), 0, Check::Crc64, false),
    ] {
        let stored = Stored::new(&file);
        let source = sources(MEMORY, 2).source(&stored.image());
        for ordered in [true, false] {
            let (decoded, holes) = collect(open(&source, ordered).await, ordered).await.unwrap();
            assert!(decoded == content);
            assert_eq!(holes, 31 << 20);
        }
    }
}

/// The same compressed bytes may be followed by another check; those of the second must be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_twin_with_a_wrong_check_is_no_twin() {
    let mut file = parallel(&vec![0; 8 << 20], 1 << 20, 0, Check::Crc64);
    let blocks = file
        .windows(8)
        .filter(|window| *window == check_of_zeros(&file))
        .count();
    assert_eq!(blocks, 8);
    let check = check_of_zeros(&file);
    let last = file.windows(8).rposition(|window| window == check).unwrap();
    file[last + 3] ^= 0x10;
    let error = decode(&file, false, MEMORY).await.unwrap_err();
    assert_eq!(error.to_string(), "decompress disk.raw.xz as xz");
}

/// What stands behind the first block: found by what all blocks have in common.
fn check_of_zeros(file: &[u8]) -> [u8; 8] {
    let header = usize::from(file[12]) * 4 + 4;
    let block = &file[12..12 + header];
    let second = file[13..].windows(header).position(|window| window == block).unwrap() + 13;
    file[second - 8..second].try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_share_the_threads() {
    let content = content();
    let files = [
        parallel(&content, 1 << 20, 0, Check::Crc64),
        serial(&content, content.len(), 0, Check::Crc64, false),
        parallel(&content, 300_000, 0, Check::Crc32),
        serial(&content, 900_000, 1, Check::Crc64, false),
    ];
    let sources = sources(96 << 20, 2);
    let mut tasks = Vec::new();
    for round in 0..12 {
        let stored = Stored::new(&files[round % files.len()]);
        let source = sources.source(&stored.image());
        tasks.push(tokio::spawn(async move {
            let ordered = round % 3 > 0;
            let (decoded, _) = collect(open(&source, ordered).await, ordered).await.unwrap();
            drop(stored);
            decoded
        }));
    }
    for task in tasks {
        assert!(task.await.unwrap() == content);
    }
}
