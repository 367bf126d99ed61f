//! Publishes the images of a finished compose.

pub mod compose;
pub mod config;
pub mod error;
pub mod http;
pub mod provider;
pub mod retry;
pub mod select;
pub mod source;
pub mod telemetry;
