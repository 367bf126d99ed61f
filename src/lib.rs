//! Publishes the images of a finished compose to clouds and registries.
//!
//! Each folder imports only from itself and from those listed above it; `tests/structure.rs` enforces that.

/// The parts that know no images: failures by their remedy, retries, HTTP, metrics.
pub mod base {
    pub mod failure;
    pub mod health;
    pub mod http;
    pub mod metrics;
    pub mod progress;
    pub mod resource;
    pub mod retry;
    pub mod secret;
}

/// Composes, images, and the names they are published under. Does no I/O.
pub mod model {
    pub mod compose;
    pub mod deliverable;
    pub mod mark;
    pub mod outcome;
    pub mod select;
    pub mod target;
}

/// Reads images: bytes in, verified chunks and facts out.
pub mod images {
    pub mod disk;
    mod gzip;
    mod magic;
    #[cfg(any(feature = "container", feature = "local"))]
    pub mod oci;
    pub mod signature;
    pub mod source;
    mod tarball;
    pub mod vhd;
    mod xz;
}

pub mod config;

/// The broker, and the messages that it carries.
pub mod messaging {
    pub mod broker;
    pub mod consumer;
    pub mod datagrepper;
    pub mod jobs;
    pub mod message;
    pub mod notify;
}

/// The clouds and registries, each behind the same contract.
pub mod providers {
    #[cfg(feature = "aws")]
    pub mod aws;
    #[cfg(feature = "azure")]
    pub mod azure;
    pub mod call;
    pub mod connect;
    #[cfg(feature = "container")]
    pub mod container;
    pub mod contract;
    #[cfg(feature = "gcp")]
    pub mod gcp;
    #[cfg(feature = "local")]
    pub mod local;
    pub mod ownership;
    pub mod poll;
}

/// The gates between stage and release: a deliverable passes them before users see it.
pub mod gates {
    pub mod gate;
}

/// The way from a message to live, announced images.
pub mod publish {
    pub mod pipeline;
    pub mod prepare;
    mod progress;
    pub mod report;
    pub mod work;
}

/// An image's life after its publication.
pub mod lifecycle {
    pub mod run;
}

/// The command line.
pub mod commands {
    pub mod arguments;
    pub mod check;
    pub mod clean_up;
    pub mod consume;
    pub mod exit;
    pub mod monitoring;
    pub mod package_files;
    pub mod plan;
    pub mod reconsume;
    pub mod setup;
    pub mod telemetry;
}

/// The version that `--version` prints: the git tag that was built, or the nearest version that the build could find.
pub const VERSION: &str = env!("CLOUD_IMAGE_UPLOADER_VERSION");
