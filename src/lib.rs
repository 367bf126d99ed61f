//! Publishes the images of a finished compose to clouds and registries.

pub mod amqp;
pub mod cli;
pub mod compose;
pub mod config;
pub mod consumer;
pub mod error;
pub mod http;
pub mod location;
pub mod message;
pub mod metrics;
pub mod monitoring;
pub mod notify;
#[cfg(any(feature = "container", feature = "local"))]
pub mod oci;
pub mod pipeline;
pub mod plan;
pub mod provider;
pub mod report;
pub mod retry;
pub mod secret;
pub mod select;
pub mod signature;
pub mod source;
pub mod telemetry;
pub mod work;

/// What `--version` says: the git tag that was built, else as near to it as the build could know.
pub const VERSION: &str = env!("CLOUD_IMAGE_UPLOADER_VERSION");
