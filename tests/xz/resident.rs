//! The memory that this process holds, as the system sees it, and a disk to measure it with.

use std::time::{Duration, Instant};

use crate::files::noise;

/// The most this process ever held, in bytes.
pub fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Waits until the process holds no more than a moment ago.
pub async fn steady(limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut before = 0;
    while peak() > before && Instant::now() < deadline {
        before = peak();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A disk of so many chunks of 512 KiB. None is a hole, and yet it is made and decoded in no time.
pub fn disk(chunks: u64) -> Vec<u8> {
    let mut disk = Vec::new();
    for chunk in 1..=chunks {
        disk.extend(noise(chunk, 4 << 10));
        disk.resize((512 << 10) * usize::try_from(chunk).unwrap(), 0);
    }
    disk
}

/// Makes the peak what is held now.
pub fn forget() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}
