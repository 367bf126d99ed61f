//! Azure: disks as versions of image definitions in a
//! [compute gallery](https://learn.microsoft.com/azure/virtual-machines/azure-compute-gallery).
//!
//! In order: the gallery and the image definition, where they are missing; a page blob in the storage account, written
//! sparse and in parallel; a version made from the blob, excluded from latest and replicated to the target regions; then the
//! blob goes, and the retention policy runs. Replicas are billed as storage in every region, and the copies as traffic
//! between them. Promotion to latest is by hand.
//!
//! Azure makes a version as a whole: only at the end does it say that a region has failed, and take changes. A blob stays only
//! as long as it may be of use: not where its disk or its name turned out to be unfit, but where the program gave up on
//! passing failures, since `reconsume` needs no upload then. Fedora's storage account deletes blobs after a week.

mod blob;
mod check;
mod claim;
mod clean_up;
mod client;
mod error;
mod gallery;
mod identity;
mod pages;
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
use self::version::Version;
use super::contract::{Finding, Publish, Retire, Retired, Task};
use crate::base::failure::{Class, Failure};
use crate::base::http;
use crate::config::Environment;
use crate::config::azure::{Azure, canonical};
use crate::model::outcome::{Failed, Outcome, Place};
use crate::model::select::{Deliverable, Target};
use crate::model::target::azure::GalleryVersion;

/// Publishes to a compute gallery.
#[derive(Debug)]
pub struct AzureProvider {
    section: Azure,
    identity: Arc<Identity>,
    container: Container,
    gallery: Gallery,
    /// The path of the resource group below Resource Manager.
    group: String,
    /// For writes of all images.
    slots: Arc<Semaphore>,
    /// One run of the retention policy at a time.
    cleaning: Mutex<()>,
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
        // The silence of a server that takes 4 MiB is not that of a dead one.
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
        })
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
        let slot = self.slot(deliverable)?;
        let staged = self.bring(slot, deliverable, task).await;
        if staged
            .as_ref()
            .is_err_and(|failure| failure.class() == Class::Deliverable)
        {
            self.remove_blob(slot, deliverable).await;
        }
        staged
    }

    async fn release(&self, deliverable: &Deliverable, staged: Outcome, task: &Task) -> Result<Outcome, Failure> {
        let slot = self.slot(deliverable)?;
        let (mut publication, staged) = Outcome::without_places(staged);
        if staged.is_empty() {
            return Ok(publication);
        }
        let version = slot.look().await?;
        let complete = version.as_ref().map(Version::complete).unwrap_or_default();
        let id = match self.gallery.community_name().await? {
            Some(gallery) => format!(
                "/CommunityGalleries/{gallery}/Images/{}/Versions/{}",
                slot.definition, slot.version
            ),
            None => format!("/{}", slot.path()),
        };
        for place in staged {
            if complete.contains(&canonical(&place.location)) {
                publication.places.push(Place {
                    id: id.clone(),
                    ..place
                });
            } else if task.concerns(&place.location) {
                let gone = Error::Region {
                    name: slot.name(),
                    region: place.location.clone(),
                    said: "it was there a moment ago, and is not any more".to_owned(),
                };
                publication.failed.push(Failed {
                    location: place.location,
                    failure: gone.into(),
                });
            }
        }
        if !publication.places.is_empty() {
            self.remove_blob(slot, deliverable).await;
        }
        Ok(publication)
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
        clean_up::run(&self.gallery, policy, &[], dry_run).await
    }

    fn interval(&self) -> Option<Duration> {
        None
    }
}

impl AzureProvider {
    fn slot<'a>(&'a self, deliverable: &'a Deliverable) -> Result<Slot<'a>, Error> {
        let Target::Azure(GalleryVersion { definition, version }) = &deliverable.target else {
            return Err(Error::NotAVersion(deliverable.name()));
        };
        Ok(Slot {
            gallery: &self.gallery,
            definition,
            version,
        })
    }
}

/// Clean-up that fails must not hide what it follows.
fn warn(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        tracing::warn!("could not {}", Failure::from(error));
    }
}
