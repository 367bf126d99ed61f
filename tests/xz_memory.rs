//! The memory that decoding holds, measured from outside. One test, so that nothing else is in this process.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "xz/files.rs"]
#[expect(dead_code, reason = "shared with the other tests of .xz files")]
mod files;
#[path = "xz/resident.rs"]
mod resident;

use std::sync::Arc;
use std::time::Duration;

use files::{MEMORY, Stored, open, parallel, serial, sources};
use liblzma::stream::Check;
use resident::{disk, forget, peak, steady};
use tokio::sync::Barrier;

const MIB: u64 = 1 << 20;
/// Decoders, buffers of the allocator, and the program.
const BESIDE: u64 = 128 * MIB;

/// Opens the images at once, and takes nothing from any until all have decoded as far as they can.
async fn all(images: &[&Stored], memory: u64, ordered: bool) {
    let sources = sources(memory, 2);
    let started = Arc::new(Barrier::new(images.len()));
    let mut tasks = Vec::new();
    for stored in images {
        let source = sources.source(&stored.image());
        let started = started.clone();
        tasks.push(tokio::spawn(async move {
            let mut chunks = open(&source, ordered).await;
            started.wait().await;
            // All decoded bytes are held until then.
            steady(Duration::from_secs(20)).await;
            while chunks.next().await.unwrap().is_some() {}
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_whatever_the_images() {
    let content = disk(336);
    let blocks = Stored::new(&parallel(&content, 24 * MIB, 0, Check::Crc64));
    let single = Stored::new(&serial(&content, content.len(), 0, Check::Crc64, false));
    // Blocks larger than what may be decoded at once, and with a large dictionary.
    let large = Stored::new(&parallel(&content[..100 << 20], 96 * MIB, 8, Check::Crc64));
    // The same with the dictionary of `xz -9`, two of which are held at a time.
    let largest = Stored::new(&parallel(&content, 96 * MIB, 9, Check::Crc64));
    drop(content);
    // The stored files are in memory too, for the tests' convenience.
    let own: u64 = [&blocks, &single, &large, &largest]
        .iter()
        .map(|stored| stored.image().size)
        .sum();
    for (images, memory, ordered, limit) in [
        (vec![&blocks], MEMORY, true, 256 * MIB),
        (vec![&blocks], MEMORY, false, 256 * MIB),
        (vec![&single], MEMORY, true, 256 * MIB),
        (vec![&large], MEMORY, false, 256 * MIB),
        (vec![&largest], MEMORY, false, 256 * MIB),
        (vec![&largest; 2], MEMORY, false, MEMORY + BESIDE),
        (vec![&blocks; 4], MEMORY, false, MEMORY + BESIDE),
        (
            vec![&blocks, &blocks, &single, &large],
            96 * MIB,
            true,
            96 * MIB + BESIDE,
        ),
    ] {
        forget();
        all(&images, memory, ordered).await;
        let peak = peak() - own;
        eprintln!(
            "{} images, {} MiB, in order: {ordered}: {} MiB",
            images.len(),
            memory / MIB,
            peak / MIB
        );
        assert!(peak <= limit, "{} MiB of {}", peak / MIB, limit / MIB);
    }
}
