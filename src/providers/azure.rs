//! Azure: disks as versions of image definitions in a
//! [compute gallery](https://learn.microsoft.com/azure/virtual-machines/azure-compute-gallery).
//!
//! The program creates, in order: the gallery and the image definition, where they are missing; a page blob in the storage
//! account, written sparse and in parallel; a version imported from the blob, excluded from latest and replicated to the
//! target regions. Then it deletes the blob. Replicas are billed as storage in every region, and the copies as traffic
//! between regions. Operators promote a version to latest by hand.
//!
//! Azure creates a version as a whole: only at the end does it report that a region failed, and accept changes. It repairs a
//! version only as long as the source blob exists; without it, a change of regions leaves the version `Failed`. So the blob
//! is kept until the version is `Succeeded` and every wanted region has it or was refused for good. After the program gave up
//! on a transient failure, the blob serves `reconsume`, which uploads it again if it is gone. Fedora's storage account
//! deletes blobs after a week. The blob of a disk or a name that proved unfit is deleted at once.

mod blob;
mod check;
mod claim;
mod clean_up;
mod client;
mod error;
mod gallery;
mod identity;
mod pages;
mod release;
mod slot;
mod stage;
mod upload;
mod version;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::{Mutex, Semaphore};

use self::blob::Container;
use self::client::ResourceManager;
use self::error::Error;
use self::gallery::Gallery;
use self::identity::Identity;
use self::slot::Slot;
use self::stage::Job;
use super::contract::{Finding, Publish, Retire, Retired, Task};
use crate::base::failure::{Class, Failure};
use crate::base::http;
use crate::config::Environment;
use crate::config::azure::{Azure, canonical};
use crate::model::mark::Mark;
use crate::model::outcome::Outcome;
use crate::model::select::{Deliverable, Target};
use crate::model::target::azure::GalleryVersion;

/// Publishes to a compute gallery.
#[derive(Debug)]
pub struct AzureProvider {
    section: Azure,
    identity: Arc<Identity>,
    container: Container,
    gallery: Gallery,
    /// The path of the resource group below Resource Manager's endpoint.
    group: String,
    /// Bounds the writes of all images together.
    slots: Arc<Semaphore>,
    /// One run of the retention policy at a time.
    cleaning: Mutex<()>,
    /// Gates stand between stage and release.
    gated: bool,
}

impl AzureProvider {
    /// Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// Credentials that are missing.
    pub fn new(section: &Azure, environment: &Environment) -> Result<Self, Failure> {
        let credentials = section
            .credentials(environment, std::path::Path::new(""))
            .map_err(|problems| {
                let texts: Vec<_> = problems.into_iter().map(|problem| problem.text).collect();
                Error::Credentials(texts.join("; "))
            })?;
        let client = http::client()?;
        // A server that receives 4 MiB may be silent for longer than a dead one is waited for.
        let uploads = http::builder().read_timeout(blob::WRITE);
        let uploads = uploads.build().map_err(http::Error::Build)?;
        let group = format!(
            "subscriptions/{}/resourceGroups/{}",
            credentials.subscription_id, section.resource_group_name
        );
        let identity = Arc::new(Identity::new(client.clone(), &section.authority_host, credentials));
        let arm = ResourceManager::new(client, &section.resource_manager_endpoint, identity.clone());
        Ok(Self {
            container: Container::new(
                uploads,
                &section.blob_endpoint,
                &section.storage_container_name,
                identity.clone(),
            ),
            gallery: Gallery::new(Arc::new(arm), &group, section),
            section: section.clone(),
            identity,
            group,
            slots: Arc::new(Semaphore::new(upload::ALL_IN_FLIGHT)),
            cleaning: Mutex::default(),
            gated: false,
        })
    }

    /// Stages in the gallery's own region only. A community gallery has no private state: users can have a version in every
    /// region that it is in, so the other regions get it with the release, after the gates. The version is excluded from
    /// latest in either mode, until an operator promotes it.
    #[must_use]
    pub fn gated(self, gated: bool) -> Self {
        Self { gated, ..self }
    }
}

#[async_trait]
impl Publish for AzureProvider {
    async fn check(&self) -> Vec<Finding> {
        check::findings(
            &self.section,
            &self.identity,
            &self.container,
            &self.gallery,
            &self.group,
        )
        .await
    }

    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure> {
        let mark = Mark::of(deliverable, Some(&deliverable.images[0]));
        let job = self.job(deliverable, task, &mark)?;
        let (wanted, home) = (self.wanted(task), self.home());
        let waits = self.gated && !wanted.is_empty() && !home.is_empty();
        let regions = if waits { &home } else { &wanted };
        let reported = |location: &str| {
            let is_home = canonical(location) == canonical(&self.section.location);
            task.concerns(location) && (is_home || !waits)
        };
        let staged = self.ensure_version(job, regions, reported).await;
        if staged
            .as_ref()
            .is_err_and(|failure| failure.class() == Class::Deliverable)
        {
            self.discard_blob(job.slot, deliverable).await;
        }
        staged
    }

    async fn release(&self, deliverable: &Deliverable, staged: Outcome, task: &Task) -> Result<Outcome, Failure> {
        let mark = Mark::of(deliverable, Some(&deliverable.images[0]));
        let job = self.job(deliverable, task, &mark)?;
        self.publish_staged(job, staged).await
    }
}

#[async_trait]
impl Retire for AzureProvider {
    async fn clean_up(&self, dry_run: bool) -> Result<Retired, Failure> {
        let _cleaning = self.cleaning.lock().await;
        let policy = clean_up::Policy {
            unmarked: self.section.clean_up_unmarked,
            now: Timestamp::now(),
        };
        clean_up::run(&self.gallery, policy, dry_run).await
    }

    fn interval(&self) -> Option<Duration> {
        None
    }
}

impl AzureProvider {
    fn job<'a>(&'a self, deliverable: &'a Deliverable, task: &'a Task, mark: &'a Mark) -> Result<Job<'a>, Error> {
        let Target::Azure(GalleryVersion { definition, version }) = &deliverable.target else {
            return Err(Error::NotAVersion(deliverable.name()));
        };
        Ok(Job {
            slot: Slot {
                gallery: &self.gallery,
                definition,
                version,
            },
            deliverable,
            task,
            mark,
        })
    }
}

/// Logs a failed clean-up, which must not hide the error that it follows.
fn warn(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        tracing::warn!("could not {}", Failure::from(error));
    }
}
