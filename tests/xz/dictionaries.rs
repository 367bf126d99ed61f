//! Images whose decoders must remember much: they take turns, and others pass.

use std::io::Write;
use std::time::{Duration, Instant};

use cloud_image_uploader::base::failure::Classified;
use cloud_image_uploader::images::source::{CHUNK, Sources};
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};

use super::files::{Stored, collect, noise, open, sources};

/// So little that blocks are decoded as they come in.
const MEMORY: u64 = 64 << 20;
/// Nothing here takes that long.
const LIMIT: Duration = Duration::from_secs(60);

/// A frame that asks for a window of so many bytes, whatever is in it.
fn zstd(bytes: &[u8], window: u32) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(window.ilog2()).unwrap();
    encoder.write_all(bytes).unwrap();
    // Otherwise the encoder knows the length, and asks for no more.
    encoder.flush().unwrap();
    encoder.finish().unwrap()
}

/// A stream of one block that asks for a dictionary of so many bytes.
fn xz(bytes: &[u8], dictionary: u32) -> Vec<u8> {
    let mut options = LzmaOptions::new_preset(0).unwrap();
    let mut filters = Filters::new();
    filters.lzma2(options.dict_size(dictionary));
    let stream = Stream::new_stream_encoder(&filters, Check::Crc64).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Makes a file of these bytes whose decoder remembers so many.
type Compress = fn(&[u8], u32) -> Vec<u8>;

/// Two that remember so many bytes are more than there may be at once.
const KINDS: [(&str, Compress, u32); 2] = [("zstd", zstd, 128 << 20), ("xz", xz, 96 << 20)];

/// More than waits between a decoder and its target.
fn disk() -> Vec<u8> {
    noise(1, 16 * CHUNK)
}

/// Whether a file decodes to the disk; or what is said of it.
async fn is(disk: &[u8], sources: &Sources, file: &Stored) -> Result<bool, String> {
    let chunks = open(&sources.source(&file.image()), true).await;
    match collect(chunks, true).await {
        Ok((bytes, _)) => Ok(bytes == disk),
        Err(error) => {
            assert!(error.class().is_transient(), "{error}");
            Err(error.to_string())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_remember_much_take_turns_and_others_pass() {
    let disk = disk();
    for (kind, compress, much) in KINDS {
        let sources = sources(MEMORY, 2);
        let large = Stored::new(&compress(&disk, much));
        let ordinary = Stored::new(&compress(&disk, 8 << 20));
        let first = open(&sources.source(&large.image()), true).await;
        let (for_second, image) = (sources.clone(), large.image());
        let second = tokio::spawn(async move { open(&for_second.source(&image), true).await });
        for _ in 0..2 {
            assert_eq!(is(&disk, &sources, &ordinary).await, Ok(true), "{kind}");
        }
        assert!(!second.is_finished(), "{kind}: the first one has not ended");
        let (bytes, _) = collect(first, true).await.unwrap();
        assert!(bytes == disk, "{kind}");
        let second = tokio::time::timeout(LIMIT, second).await.unwrap().unwrap();
        let (bytes, _) = collect(second, true).await.unwrap();
        assert!(bytes == disk, "{kind}");
    }
}

/// In the middle of an image its target may hold what the others need.
#[tokio::test(flavor = "multi_thread")]
async fn memory_for_a_later_part_is_not_waited_for() {
    let disk = disk();
    let (head, tail) = disk.split_at(CHUNK + 4_321);
    for (kind, compress, much) in KINDS {
        let sources = sources(MEMORY, 2);
        let large = Stored::new(&compress(&disk, much));
        let growing = Stored::new(&[compress(head, 1 << 20), compress(tail, much)].concat());
        let first = open(&sources.source(&large.image()), true).await;
        let said = is(&disk, &sources, &growing).await.unwrap_err();
        assert!(said.contains("other images have that now"), "{kind}: {said}");
        drop(first);
        // Its decoder ends when it notices.
        let deadline = Instant::now() + LIMIT;
        loop {
            match is(&disk, &sources, &growing).await {
                Ok(whole) => break assert!(whole, "{kind}"),
                Err(said) => assert!(Instant::now() < deadline, "{kind}: {said}"),
            }
        }
    }
}
