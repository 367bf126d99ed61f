//! Decoding of .xz files: equal to liblzma on whatever there is, in bounded memory.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod dictionaries;
mod files;
mod fuzz;
mod hostile;
mod properties;
mod ways;
