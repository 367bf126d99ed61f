//! The Google Cloud provider on a cloud of the tests' own.

#![cfg(feature = "gcp")]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod adopt;
mod advice;
mod faults;
mod hostile;
mod permissions;
mod policies;
mod publish;
mod together;
mod tokens;
mod tolerance;
mod world;
