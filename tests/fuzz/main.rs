//! Input from outside, changed at random: messages, metadata, archives, disks. Nothing may panic, hang, or be believed.
//!
//! Two seconds each in an ordinary run; `FUZZ_SECONDS=600 FUZZ_SEED=7 cargo test --release --test fuzz` goes on for longer.
//! The decoder has a run of its own in `tests/xz`.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod archive;
mod message;
mod metadata;
mod structure;
#[cfg(feature = "gcp")]
mod tarball;
#[cfg(feature = "azure")]
mod vhd;

use std::time::{Duration, Instant};

use cloud_image_uploader_test_support::survival::leave;
use serde_json::{Value, json};

/// Calls `attempt` until the time is up; fails if it never said no. Returns how often it said yes, and no, and leaves the
/// numbers for `tests/survival`.
async fn attempts(what: &str, mut attempt: impl AsyncFnMut(&mut Random) -> bool) -> (usize, usize) {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let mut random = Random(number("FUZZ_SEED", 1));
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS", 2));
    let (mut accepted, mut refused) = (0, 0);
    while Instant::now() < end {
        match attempt(&mut random).await {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    eprintln!("{what}: {accepted} accepted, {refused} refused");
    let numbers = json!({"input": what, "tried": accepted + refused, "refused": refused});
    leave(env!("CARGO_TARGET_TMPDIR"), &format!("input-{what}"), &numbers).unwrap();
    assert!(refused > 0, "nothing was refused");
    (accepted, refused)
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Changes a few bytes of `file`, from `step` bytes on at multiples of it where that is where things are.
    fn spoil(&mut self, file: &mut Vec<u8>, step: usize) {
        for _ in 0..=self.below(4) {
            if file.is_empty() {
                return;
            }
            let at = match self.below(2) {
                0 => self.below(file.len()),
                _ => (self.below(file.len() / step + 1) * step + self.below(step)).min(file.len() - 1),
            };
            match self.below(6) {
                0 => file[at] ^= 1 << self.below(8),
                1 => file[at] = *self.of(&[0, 1, b'0', b'7', b'/', b'.', 0x7f, 0x80, 0xff]),
                2 => file.truncate(at),
                3 => file.insert(at, *self.of(b"\0\"{[/.9\x1b")),
                4 => drop(file.drain(at..(at + 1 + self.below(600)).min(file.len()))),
                _ => {
                    let from = self.below(file.len());
                    let piece = file[from..(from + 1 + self.below(600)).min(file.len())].to_vec();
                    file.splice(at..at, piece);
                }
            }
        }
    }

    /// Puts something hostile in the place of a value, or of a key, anywhere in a document.
    fn spoil_value(&mut self, value: &mut Value) {
        let hostile = [
            json!(null),
            json!(-1),
            json!(1e300),
            json!(u64::MAX),
            json!([]),
            json!({}),
            json!(""),
            json!(".."),
            json!("../../etc/passwd"),
            json!("/etc/passwd"),
            json!("a/../b"),
            json!("a//b"),
            json!("..\\x"),
            json!("http://[::1"),
            json!("file:///etc/passwd"),
            json!("\u{1b}[2J\r\nfake line"),
            json!("\u{202e}gnp.exe"),
            json!("x".repeat(70_000)),
            json!("Fedora-43-20251024.0"),
            json!("%2e%2e%2fx"),
        ];
        match value {
            Value::Object(object) if !object.is_empty() && self.below(8) > 0 => {
                let keys: Vec<String> = object.keys().cloned().collect();
                let key = self.of(&keys);
                match self.below(10) {
                    0 => drop(object.remove(key)),
                    1 => {
                        let inner = object.remove(key).unwrap_or_default();
                        let name = self.of(&hostile).as_str().unwrap_or("x").to_owned();
                        object.insert(name, inner);
                    }
                    _ => self.spoil_value(&mut object[key]),
                }
            }
            Value::Array(values) if !values.is_empty() && self.below(8) > 0 => {
                let position = self.below(values.len());
                self.spoil_value(&mut values[position]);
            }
            other => *other = self.of(&hostile).clone(),
        }
    }
}

/// True for text that may be part of a name, a topic, a path, a line of the log.
fn is_harmless(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_graphic() || c == ' ')
}
