//! The container provider on real registries.

#![cfg(feature = "container")]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod advice;
#[cfg(feature = "local")]
mod archives;
mod faults;
mod hostile;
mod odd;
mod permissions;
mod publish;
mod tags;
mod trust;
mod world;
