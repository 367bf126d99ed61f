//! Mutates valid files and compares with liblzma for as long as is asked for: `XZ_FUZZ_SECONDS=600 cargo test --release
//! --test xz fuzz`. Two seconds in an ordinary run. Checksums of headers are fixed half of the time, or nothing behind
//! them would ever be reached.

use std::time::{Duration, Instant};

use flate2::Crc;
use liblzma::stream::Check;

use super::files::{MEMORY, decode, decompressed_size, noise, parallel, reference, serial, text};

fn corpus() -> Vec<Vec<u8>> {
    let content = [text(1, 40_000), vec![0; 50_000], noise(2, 3000), vec![0; 20_000]].concat();
    let sized = parallel(&content, 9000, 0, Check::Crc64);
    let unsized_blocks = serial(&content, 20_000, 1, Check::Sha256, false);
    let filtered = serial(&content, 50_000, 6, Check::Crc32, true);
    let unchecked = parallel(&content, 30_000, 0, Check::None);
    let empty = parallel(&[], 9000, 0, Check::Crc64);
    let several = [&sized[..], &[0; 4], &unsized_blocks, &empty, &filtered].concat();
    vec![sized, unsized_blocks, filtered, unchecked, empty, several]
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

fn mutate(random: &mut Random, file: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        // Beyond the magic; often near the beginning or the end, where headers and the index are.
        let range = file.len() - 6;
        let at = 6 + match random.below(3) {
            0 => random.below(range.min(64)),
            1 => range - 1 - random.below(range.min(64)),
            _ => random.below(range),
        };
        match random.below(6) {
            0 => file[at] ^= 1 << random.below(8),
            1 => file[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => file.truncate(at.max(8)),
            3 => file.insert(at, file[random.below(file.len())]),
            4 => drop(file.drain(at..(at + 1 + random.below(16)).min(file.len()))),
            _ => {
                let from = random.below(file.len());
                let piece = file[from..(from + 1 + random.below(64)).min(file.len())].to_vec();
                file.splice(at..at, piece);
            }
        }
        if file.len() < 8 {
            return;
        }
    }
    if random.below(2) == 0 {
        mend(file);
    }
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Makes the checksums of the stream header, the first block header, the last index, and the last footer right.
fn mend(file: &mut [u8]) {
    let len = file.len();
    if len < 64 {
        return;
    }
    let crc = crc32(&file[6..8]);
    file[8..12].copy_from_slice(&crc);
    let header = usize::from(file[12]) * 4;
    if header > 0 && 12 + header + 4 <= len {
        let crc = crc32(&file[12..12 + header]);
        file[12 + header..16 + header].copy_from_slice(&crc);
    }
    let crc = crc32(&file[len - 8..len - 2]);
    file[len - 12..len - 8].copy_from_slice(&crc);
    let backward = u32::from_le_bytes([file[len - 8], file[len - 7], file[len - 6], file[len - 5]]);
    let index = (backward as usize).saturating_add(1).saturating_mul(4);
    if let Some(start) = (len - 12).checked_sub(index) {
        let crc = crc32(&file[start..len - 16]);
        file[len - 16..len - 12].copy_from_slice(&crc);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fuzz() {
    let seconds = std::env::var("XZ_FUZZ_SECONDS").map_or(2, |seconds| seconds.parse().unwrap());
    let seed = std::env::var("XZ_FUZZ_SEED").map_or(1, |seed| seed.parse().unwrap());
    let corpus = corpus();
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut accepted, mut refused) = (0, 0);
    while Instant::now() < end {
        let mut file = corpus[random.below(corpus.len())].clone();
        mutate(&mut random, &mut file);
        if file.len() < 12 || !file.starts_with(b"\xfd7zXZ\0") {
            continue;
        }
        let expected = reference(&file).ok();
        let ordered = random.below(2) == 0;
        let memory = [MEMORY, 66 << 20, 16 << 20][random.below(3)];
        let decoded = decode(&file, ordered, memory).await.ok();
        if decoded != expected {
            let kept = std::env::temp_dir().join("differs.xz");
            std::fs::write(&kept, &file).unwrap();
            panic!(
                "in order: {ordered}, memory: {memory}, liblzma took it: {}; the file is {}",
                expected.is_some(),
                kept.display()
            );
        }
        // A file that cannot be decoded may get any answer; only reading it must not break.
        let told = decompressed_size(&file).await.ok();
        if let Some(content) = &expected {
            assert_eq!(told, Some(content.len() as u64));
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    assert!(refused > 0, "nothing was tried");
    eprintln!("{accepted} files accepted, {refused} refused");
}
