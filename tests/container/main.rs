//! The container provider on real registries.

#![cfg(feature = "container")]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod advice;
mod faults;
mod hostile;
mod permissions;
mod publish;
mod tags;
mod trust;
mod world;
