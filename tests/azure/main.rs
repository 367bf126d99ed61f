//! The program with the azure provider, from outside: a stand-in for Resource Manager, a real Azurite for blobs, and the
//! vendor's SDK to read back what was published.

#![cfg(feature = "azure")]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod advice;
mod answers;
mod clean_up;
mod faults;
mod hostile;
mod kills;
mod permissions;
mod publish;
mod regions;
mod stuck;
mod world;
