//! Turns a section of the configuration into the provider with its capabilities.

use std::sync::Arc;

#[cfg(any(feature = "azure", feature = "gcp"))]
use super::contract::Retire;
use super::contract::{Provider, Publish};
use crate::base::failure::{Class, Classified, Failure};
use crate::config::{self, Environment};

/// Creates the provider of a configuration, without any connection yet.
///
/// # Errors
///
/// Credentials are missing or cannot be read, or this build leaves the provider out.
pub fn connect(section: &config::Provider, environment: &Environment) -> Result<Provider, Failure> {
    // Not every set of features has a provider that reads the environment.
    let _ = environment;
    match section {
        #[cfg(feature = "aws")]
        config::Provider::Aws(section) => Ok(publishing(super::aws::AwsProvider::new(section, environment))),
        #[cfg(feature = "azure")]
        config::Provider::Azure(section) => Ok(retiring(super::azure::AzureProvider::new(section, environment)?)),
        #[cfg(feature = "container")]
        config::Provider::Container(section) => Ok(publishing(super::container::ContainerProvider::new(
            section,
            environment,
        )?)),
        #[cfg(feature = "gcp")]
        config::Provider::Gcp(section) => Ok(retiring(super::gcp::GcpProvider::new(section, environment)?)),
        #[cfg(feature = "local")]
        config::Provider::Local(section) => Ok(publishing(super::local::LocalProvider::new(section))),
        #[allow(unreachable_patterns, reason = "a build with every client leaves none out")]
        other => Err(Absent(other.name()).into()),
    }
}

/// A provider that publishes, and has no retention policy.
#[cfg(any(feature = "aws", feature = "container", feature = "local"))]
fn publishing(provider: impl Publish + 'static) -> Provider {
    Provider {
        publish: Arc::new(provider),
        retire: None,
    }
}

/// A provider that publishes, and has a retention policy.
#[cfg(any(feature = "azure", feature = "gcp"))]
fn retiring(provider: impl Publish + Retire + 'static) -> Provider {
    let provider = Arc::new(provider);
    Provider {
        publish: provider.clone(),
        retire: Some(provider),
    }
}

/// A provider that this build leaves out.
#[derive(Debug, thiserror::Error)]
#[error("publish to {0}: this build has no client for it")]
struct Absent(&'static str);

impl Classified for Absent {
    fn class(&self) -> Class {
        Class::Everything
    }
}
