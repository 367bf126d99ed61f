//! Real servers, fakes, and archives for the tests.

pub mod certs;
pub mod process;
