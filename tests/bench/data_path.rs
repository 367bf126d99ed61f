//! `cargo bench`: what the data path costs, step by step, on input made here. For comparisons with other programs see
//! `tests/measure`.
//!
//! `cargo bench -- WORD` runs the lines whose name holds the word. Each line is the median of several runs, after one that
//! does not count; the spread is that of the fastest and the slowest. Processor time is that of one run, with the server
//! and the sink, which are in this process; on a machine that does something else too it is the steadier number.

mod path;

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use cloud_image_uploader::images::source::is_zero;
use cloud_image_uploader::model::compose::Image;
use cloud_image_uploader_test_support::archive::xz_blocks;
use cloud_image_uploader_test_support::files::Files;
use cloud_image_uploader_test_support::sink::Sink;
use tokio::runtime::Runtime;

use crate::path::{Shape, image, run, sources};

/// Runs that count.
const RUNS: usize = 5;
/// The disk: several blocks.
const DISK: usize = 192 << 20;
/// The length of the data at the start of the disk; zeros follow.
const USED: usize = 48 << 20;
/// The block size of `xz -T -6`.
const BLOCK: u64 = 24 << 20;
/// Linux reports processor time in this unit, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;
/// The input of hashing and of the test for zeros.
const PIECE: usize = 64 << 20;

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let bench = Bench { filter };
    let runtime = Runtime::new()?;

    let data = text(PIECE);
    bench.line("SHA-256, 64 MiB", PIECE, || {
        black_box(digest(&SHA256, &data));
        Ok(())
    })?;
    // Written once: memory that was only asked for is one page of zeros, over and over, which never leaves the cache.
    let mut zeros = black_box(vec![1; PIECE]);
    zeros.fill(0);
    bench.line("zero test, 64 MiB of zeros", PIECE, || {
        ensure!(zeros.chunks(512 << 10).all(is_zero));
        Ok(())
    })?;

    let folder = tempfile::tempdir()?;
    let mut disk = text(USED);
    disk.resize(DISK, 0);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let parallel = xz_blocks(&disk, BLOCK);
    let single = xz_blocks(&disk, DISK as u64);
    drop(disk);
    let files = runtime.block_on(Files::start(folder.path()))?;
    let sink = runtime.block_on(Sink::start())?;
    for (kind, bytes) in [("many blocks", &parallel), ("one block", &single)] {
        let name = format!("{}.xz", kind.replace(' ', "-"));
        let path = folder.path().join(&name);
        fs::write(&path, bytes)?;
        let sum: String = digest(&SHA256, bytes)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let made = |location: &str| image(location, bytes.len() as u64, &sum);
        let local = made(path.to_str().context("a path that is no text")?)?;
        let remote = made(&files.url(&format!("/{name}")))?;
        let lines: [(&str, &Image, Shape); 5] = [
            ("decode, from a file", &local, Shape::Nothing),
            ("decode, over HTTP", &remote, Shape::Nothing),
            ("whole path, dense", &remote, Shape::Dense),
            ("whole path, EBS blocks", &remote, Shape::Ebs),
            ("whole path, pages", &remote, Shape::Pages),
        ];
        for (what, image, shape) in lines {
            bench.line(&format!("{what}, {kind}"), DISK, || {
                let size = runtime.block_on(run(&sources()?, image, shape, &sink.url()))?;
                ensure!(size == DISK as u64, "{size} bytes");
                let sent = sink.take().bytes;
                let (least, most) = match shape {
                    Shape::Nothing => (0, 0),
                    Shape::Dense => (DISK, DISK),
                    Shape::Ebs | Shape::Pages => (USED, USED),
                };
                ensure!((least as u64..=most as u64).contains(&sent), "{sent} bytes sent");
                Ok(())
            })?;
        }
    }
    Ok(())
}

struct Bench {
    filter: Option<String>,
}

impl Bench {
    fn line(&self, name: &str, bytes: usize, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        if self.filter.as_ref().is_some_and(|word| !name.contains(word)) {
            return Ok(());
        }
        work().with_context(|| name.to_owned())?;
        let mut times: Vec<Duration> = Vec::with_capacity(RUNS);
        let before = processor_ticks()?;
        for _ in 0..RUNS {
            let start = Instant::now();
            work().with_context(|| name.to_owned())?;
            times.push(start.elapsed());
        }
        let cpu = (processor_ticks()? - before) as f64 / TICKS_PER_SECOND / RUNS as f64;
        times.sort();
        let (fastest, median, slowest) = (times[0], times[RUNS / 2], times[RUNS - 1]);
        let rate = bytes as f64 / 1e6 / median.as_secs_f64();
        println!("{name:<36} {median:>8.1?} ({fastest:.1?} to {slowest:.1?}), CPU {cpu:.3} s, {rate:.0} MB/s");
        Ok(())
    }
}

/// User and system time of this process and of its threads, ended ones too; see proc_pid_stat(5).
fn processor_ticks() -> Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').context("a stat line without a name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut field = || anyhow::Ok(fields.next().context("a short stat line")?.parse::<u64>()?);
    Ok(field()? + field()?)
}

/// Bytes that compress about as well as programs do, the same every time: words from a small vocabulary between noise.
fn text(size: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let vocabulary: Vec<[u8; 24]> = (0..2048)
        .map(|_| {
            let mut word = [0; 24];
            word.chunks_exact_mut(8)
                .for_each(|part| part.copy_from_slice(&next().to_le_bytes()));
            word
        })
        .collect();
    let mut bytes = Vec::with_capacity(size + 32);
    while bytes.len() < size {
        let choice = next();
        bytes.extend_from_slice(&vocabulary[(choice % 2048) as usize][..4 + (choice >> 32) as usize % 20]);
        bytes.extend_from_slice(&choice.to_be_bytes()[..(choice >> 60) as usize % 8]);
    }
    bytes.truncate(size);
    bytes
}
