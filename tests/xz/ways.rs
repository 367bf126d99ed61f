//! The ways through the decoder, each with a file that needs it.

use std::io::Write;

use cloud_image_uploader::images::source::{CHUNK, Content};
use liblzma::stream::{Check, Filters, LzmaOptions, MtStreamBuilder};

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

/// The check behind the first block: found by what all blocks have in common.
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

/// Blocks as `xz -9` makes them are too large to be decoded at once: a target that takes them in any order gets pieces of
/// one before the other has ended, which only two decoders at work make.
#[tokio::test(flavor = "multi_thread")]
async fn two_blocks_with_large_dictionaries_are_decoded_side_by_side() {
    const BLOCK: usize = 144 << 20;
    let mut content = Vec::new();
    for number in 0..4 * BLOCK / CHUNK {
        content.extend(noise(number as u64, 4 << 10));
        content.resize(CHUNK * (number + 1), 0);
    }
    let file = large_blocks(&content, BLOCK as u64);
    let stored = Stored::new(&file);
    for (memory, ordered, side_by_side) in [(MEMORY, false, true), (66 << 20, false, false), (MEMORY, true, false)] {
        let source = sources(memory, 2).source(&stored.image());
        let mut chunks = open(&source, ordered).await;
        let (mut switches, mut last, mut seen) = (0, 0, 0);
        while let Some(chunk) = chunks.next().await.unwrap() {
            let at = usize::try_from(chunk.offset).unwrap();
            let Content::Data(bytes) = chunk.content else {
                panic!("a hole at {at}");
            };
            assert!(content[at..at + bytes.len()] == bytes, "{at}");
            seen += bytes.len();
            switches += usize::from(at / BLOCK != last);
            last = at / BLOCK;
        }
        assert_eq!(seen, content.len());
        assert_eq!(
            switches > 3,
            side_by_side,
            "{switches} switches, {memory} bytes, in order: {ordered}"
        );
    }
}

/// A damaged byte in any of them is found, and nothing hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_among_large_ones_is_refused() {
    let content: Vec<u8> = (0..300)
        .flat_map(|number| [noise(number, 4 << 10), vec![0; CHUNK]].concat())
        .collect();
    let good = large_blocks(&content, 100 << 20);
    assert!(decode(&good, false, MEMORY).await.unwrap() == content);
    for part in 1..8 {
        let mut file = good.clone();
        let at = file.len() * part / 8;
        file[at] ^= 1;
        let error = decode(&file, false, MEMORY).await.unwrap_err();
        assert_eq!(error.to_string(), "decompress disk.raw.xz as xz", "{at}");
    }
}

/// The dictionary of `xz -9` in no time.
fn large_blocks(content: &[u8], block: u64) -> Vec<u8> {
    let mut options = LzmaOptions::new_preset(0).unwrap();
    let mut filters = Filters::new();
    filters.lzma2(options.dict_size(64 << 20));
    let mut builder = MtStreamBuilder::new();
    let builder = builder
        .threads(1)
        .block_size(block)
        .check(Check::Crc64)
        .filters(filters);
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), builder.encoder().unwrap());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}
