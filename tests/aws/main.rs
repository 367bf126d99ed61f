//! The AWS provider: the program as its own process, on a cloud that Amazon's own SDK for Python takes for the real one.

#![cfg(feature = "aws")]
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod advice;
mod announce;
mod check;
mod crash;
mod credentials;
mod faults;
mod limits;
mod ownership;
mod permissions;
mod publish;
mod refuse;
mod tolerance;
mod world;
