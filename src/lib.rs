//! Publishes the images of a finished compose to clouds and registries.

pub mod config;
pub mod secret;
