//! Container registries.

use async_trait::async_trait;

use super::{Finding, Provider, Publication, Staged, Task};
use crate::config::{Environment, container::Container};
use crate::error::Failure;
use crate::select::Deliverable;

/// Publishes to container registries.
#[derive(Debug)]
pub struct ContainerProvider;

impl ContainerProvider {
    /// Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// Credentials that cannot be read.
    pub fn new(_section: &Container, _environment: &Environment) -> Result<Self, Failure> {
        Ok(Self)
    }
}

#[async_trait]
impl Provider for ContainerProvider {
    async fn check(&self) -> Vec<Finding> {
        Vec::new()
    }
    async fn stage(&self, _deliverable: &Deliverable, _task: &Task) -> Result<Staged, Failure> {
        Ok(Staged::default())
    }
    async fn release(&self, _deliverable: &Deliverable, _staged: Staged, _task: &Task) -> Result<Publication, Failure> {
        Ok(Publication::default())
    }
}
