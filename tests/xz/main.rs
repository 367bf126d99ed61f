//! Decoding of .xz files: equal to liblzma on whatever there is, in bounded memory.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

mod files;
mod fuzz;
mod hostile;
mod properties;
mod ways;
