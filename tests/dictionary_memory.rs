//! The memory of decoders' dictionaries, measured from outside. One test, so that nothing else is in this process.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "xz/files.rs"]
#[expect(dead_code, reason = "shared with the other tests of .xz files")]
mod files;
#[path = "xz/resident.rs"]
mod resident;

use std::io::Write;
use std::time::{Duration, Instant};

use cloud_image_uploader::images::source::Chunks;
use files::{Stored, open, sources};
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use resident::{disk, forget, peak, steady};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 64 * MIB;
/// Decoders, buffers of the allocator, and the program.
const BESIDE: u64 = 128 * MIB;
/// Nothing takes so long.
const LIMIT: Duration = Duration::from_secs(120);
/// More than any decoder remembers.
const CONTENT: u64 = 192 * MIB;

/// As `zstd --ultra -22` makes it, but in no time.
fn zstd(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// As `xz -9` on one processor makes it.
fn xz(content: &[u8]) -> Vec<u8> {
    let mut options = LzmaOptions::new_preset(0).unwrap();
    let mut filters = Filters::new();
    filters.lzma2(options.dict_size(64 << 20));
    let stream = Stream::new_stream_encoder(&filters, Check::Crc64).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Reads an image. Before its end it waits until the process holds no more than a moment ago, so that all that get on at
/// the same time are there.
async fn read(mut chunks: Chunks) {
    let mut decoded = 0;
    while let Some(chunk) = chunks.next().await.unwrap() {
        let before = decoded;
        decoded += chunk.content.len() as u64;
        if before < CONTENT * 3 / 4 && decoded >= CONTENT * 3 / 4 {
            steady(LIMIT).await;
        }
    }
    assert_eq!(decoded, CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_dictionaries_are_bounded_whatever_the_number_of_images() {
    let content = disk(CONTENT / (512 << 10));
    let files = [("zstd", zstd(&content)), ("xz", xz(&content))];
    drop(content);
    for (name, file) in files {
        let stored = Stored::new(&file);
        // The stored file is in memory too, for the test's convenience.
        let own = 2 * file.len() as u64;
        let sources = sources(MEMORY, 2);
        forget();
        let began = Instant::now();
        let mut tasks = Vec::new();
        for ordered in [true, false, true, false] {
            let source = sources.source(&stored.image());
            tasks.push(tokio::spawn(async move { read(open(&source, ordered).await).await }));
        }
        for task in tasks {
            let read = tokio::time::timeout(LIMIT, task).await;
            read.expect("an image must not wait for ever").unwrap();
        }
        let peak = peak() - own;
        eprintln!("{name}: {} MiB in {:?}", peak / MIB, began.elapsed());
        assert!(peak <= MEMORY + BESIDE, "{name}: {} MiB", peak / MIB);
    }
}
