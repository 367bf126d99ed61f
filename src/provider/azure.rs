//! Azure: disks as versions of image definitions in a
//! [compute gallery](https://learn.microsoft.com/azure/virtual-machines/azure-compute-gallery).
//!
//! In order: a page blob in the storage account, written sparse and in parallel; the gallery and the image definition, where
//! they are missing; a version made from the blob, excluded from latest and replicated to the target regions; then the blob
//! goes, and the retention policy runs. Replicas are billed as storage in every region, and the copies as traffic between
//! them. Promotion to latest is by hand.

mod blob;
mod check;
mod clean_up;
mod client;
mod error;
mod gallery;
mod identity;
mod pages;
mod upload;
mod version;
pub mod vhd;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Mutex;

use self::blob::{Blob, Container};
use self::client::ResourceManager;
use self::error::Error;
use self::gallery::Gallery;
use self::identity::Identity;
use self::version::{Changed, Slot, Version};
use super::{Failed, Fate, Finding, Mark, Origin, Place, Provider, Publication, Retired, Staged, Task};
use crate::config::Environment;
use crate::config::azure::{Azure, TargetRegion, canonical};
use crate::error::{Classified, Failure};
use crate::http;
use crate::select::{Deliverable, Target};

/// Publishes to a compute gallery.
#[derive(Debug)]
pub struct AzureProvider {
    section: Azure,
    identity: Arc<Identity>,
    container: Container,
    gallery: Gallery,
    /// The path of the resource group below Resource Manager.
    group: String,
    /// One run of the retention policy at a time.
    cleaning: Mutex<()>,
}

/// Why regions lack a version, by canonical name.
type Reasons = BTreeMap<String, Failure>;

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
            cleaning: Mutex::default(),
        })
    }
}

#[async_trait]
impl Provider for AzureProvider {
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

    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Staged, Failure> {
        let slot = self.slot(deliverable)?;
        let mark = Mark::of(deliverable, Some(&deliverable.images[0]));
        let wanted = self.wanted(task);
        let found = self.look(slot, &mark).await?;
        let before = found.as_ref().map(Version::complete).unwrap_or_default();
        let (version, reasons) = match found {
            Some(version) => self.repair(slot, version, &wanted).await,
            None if wanted.is_empty() => return Ok(Staged::default()),
            None => self.create(slot, deliverable, task, &mark, &wanted).await?,
        };
        let complete = version.complete();
        let mut staged = Staged::default();
        for location in &deliverable.locations {
            let region = canonical(location);
            if complete.contains(&region) {
                staged.places.push(Place {
                    location: location.clone(),
                    id: slot.path(),
                    origin: if before.contains(&region) {
                        Origin::Found
                    } else {
                        Origin::Created
                    },
                });
            } else if task.concerns(location) {
                let unknown = || Error::Region {
                    name: slot.name(),
                    region: location.clone(),
                    said: "Azure does not say that it is there".to_owned(),
                };
                let failure = reasons.get(&region).cloned().unwrap_or_else(|| unknown().into());
                staged.failed.push(Failed {
                    location: location.clone(),
                    failure,
                });
            }
        }
        Ok(staged)
    }

    async fn release(&self, deliverable: &Deliverable, staged: Staged, task: &Task) -> Result<Publication, Failure> {
        let slot = self.slot(deliverable)?;
        let mut publication = Publication {
            failed: staged.failed,
            ..Publication::default()
        };
        if staged.places.is_empty() {
            return Ok(publication);
        }
        let version = slot.settled().await?;
        let complete = version.as_ref().map(Version::complete).unwrap_or_default();
        let id = match self.gallery.community_name().await? {
            Some(gallery) => format!(
                "/CommunityGalleries/{gallery}/Images/{}/Versions/{}",
                slot.definition, slot.version
            ),
            None => format!("/{}", slot.path()),
        };
        for place in staged.places {
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
        if publication.places.iter().any(|place| place.origin == Origin::Created) {
            self.clean_up_after(slot).await;
        }
        Ok(publication)
    }

    async fn clean_up(&self, dry_run: bool) -> Result<Retired, Failure> {
        self.retire(&[], dry_run).await
    }
}

impl AzureProvider {
    fn slot<'a>(&'a self, deliverable: &'a Deliverable) -> Result<Slot<'a>, Error> {
        match &deliverable.target {
            Target::GalleryVersion { definition, version } => Ok(Slot {
                gallery: &self.gallery,
                definition,
                version,
            }),
            Target::Ami { .. }
            | Target::GceImage { .. }
            | Target::Repository { .. }
            | Target::Disk { .. }
            | Target::Layout { .. } => Err(Error::NotAVersion(deliverable.name())),
        }
    }

    /// The regions that may be changed.
    fn wanted(&self, task: &Task) -> Vec<&TargetRegion> {
        let regions = self.section.target_regions.iter();
        regions.filter(|region| task.concerns(&region.name)).collect()
    }

    /// What is there already, if it is what it should be. What failed everywhere is removed.
    async fn look(&self, slot: Slot<'_>, mark: &Mark) -> Result<Option<Version>, Error> {
        let Some(version) = slot.settled().await? else {
            return Ok(None);
        };
        version.fits(mark)?;
        if !version.is_hopeless() {
            return Ok(Some(version));
        }
        if version.mark().is_none() || version.hands_off().is_some() {
            return Err(Error::Operation {
                what: format!("publish {}", slot.name()),
                code: "InvalidState".to_owned(),
                said: ": it is there already, has failed in every region, and was not made by this program; delete it \
                       first"
                    .to_owned(),
            });
        }
        tracing::info!("{} has failed in every region; making it again", slot.name());
        slot.delete().await?;
        Ok(None)
    }

    /// Uploads the disk and makes the version of it.
    async fn create(
        &self,
        slot: Slot<'_>,
        deliverable: &Deliverable,
        task: &Task,
        mark: &Mark,
        wanted: &[&TargetRegion],
    ) -> Result<(Version, Reasons), Failure> {
        let image = &deliverable.images[0];
        self.gallery.prepare(slot.definition, &image.arch).await?;
        let blob = self.blob(slot, deliverable)?;
        upload::upload(&blob, &task.source(image), mark).await?;
        // Another process may have been faster.
        if let Some(version) = self.look(slot, mark).await? {
            return Ok(self.repair(slot, version, wanted).await);
        }
        let source = json!({
            "uri": blob.url().as_str(),
            "storageAccountId": format!(
                "/{}/providers/Microsoft.Storage/storageAccounts/{}",
                self.group, self.section.storage_account_name
            ),
        });
        let Changed { version, error } = slot
            .create(&self.section.location, mark, &source, &self.with_home(wanted))
            .await?;
        match version {
            Some(version) if !version.is_hopeless() => {
                version.fits(mark)?;
                Ok(self.drop_failed(slot, version).await)
            }
            version => {
                let what = format!("create {}", slot.name());
                let error = error.unwrap_or_else(|| Error::odd(&what, "an operation that left nothing"));
                if version.is_some_and(|version| version.mark().as_ref() == Some(mark)) {
                    warn(slot.delete().await);
                }
                // A disk that Azure does not take is of no more use.
                if !error.class().is_transient() {
                    warn(blob.delete().await);
                }
                Err(error.into())
            }
        }
    }

    /// Adds the regions that lack the version. What fails is a matter of those regions only.
    async fn repair(&self, slot: Slot<'_>, version: Version, wanted: &[&TargetRegion]) -> (Version, Reasons) {
        let lacks = |version: &Version| {
            let complete = version.complete();
            wanted.iter().any(|region| !complete.contains(&canonical(&region.name)))
        };
        if !lacks(&version) {
            return (version, Reasons::new());
        }
        let (version, mut reasons) = self.drop_failed(slot, version).await;
        let targets = version.target_names();
        let missing: Vec<&TargetRegion> = wanted
            .iter()
            .copied()
            .filter(|region| !targets.contains(&canonical(&region.name)))
            .collect();
        if missing.is_empty() {
            return (version, reasons);
        }
        let (version, failure) = match slot.add(&version, &missing).await {
            Ok(Changed {
                version: Some(version),
                error,
            }) => (version, error),
            Ok(Changed { version: None, error }) => (version, error),
            Err(error) => (version, Some(error)),
        };
        if let Some(failure) = failure.map(Failure::from) {
            reasons.extend(missing.iter().map(|region| (canonical(&region.name), failure.clone())));
        }
        let (version, failed) = self.drop_failed(slot, version).await;
        reasons.extend(failed);
        (version, reasons)
    }

    /// Takes the version out of the regions where it failed, so that it succeeds in the others; they can be added again
    /// then. The region of the gallery itself cannot be left out.
    async fn drop_failed(&self, slot: Slot<'_>, version: Version) -> (Version, Reasons) {
        let failed = version.failed();
        let home = canonical(&self.section.location);
        let regions: BTreeSet<String> = failed.keys().filter(|region| **region != home).cloned().collect();
        let region_failed = |(region, said): (String, String)| {
            let error = Error::Region {
                name: slot.name(),
                region: region.clone(),
                said,
            };
            (region, error.into())
        };
        let reasons: Reasons = failed.into_iter().map(region_failed).collect();
        if regions.is_empty() {
            return (version, reasons);
        }
        let names: Vec<_> = regions.iter().map(String::as_str).collect();
        tracing::warn!("{} failed in {}; taking it out of there", slot.name(), names.join(", "));
        match slot.drop_regions(&version, &regions).await {
            Ok(Changed {
                version: Some(version),
                error,
            }) => {
                warn(error.map_or(Ok(()), Err));
                (version, reasons)
            }
            Ok(Changed { version: None, .. }) => (version, reasons),
            Err(error) => {
                warn(Err(error));
                (version, reasons)
            }
        }
    }

    /// An import goes through the region of the gallery, so that one is never left out.
    fn with_home<'a>(&'a self, wanted: &[&'a TargetRegion]) -> Vec<&'a TargetRegion> {
        let home = canonical(&self.section.location);
        let is_wanted = |region: &TargetRegion| wanted.iter().any(|wanted| wanted.name == region.name);
        let regions = self.section.target_regions.iter();
        regions
            .filter(|region| is_wanted(region) || canonical(&region.name) == home)
            .collect()
    }

    fn blob(&self, slot: Slot<'_>, deliverable: &Deliverable) -> Result<Blob, Error> {
        let sha256 = &deliverable.images[0].sha256;
        upload::blob(&self.container, slot.definition, slot.version, sha256)
    }

    /// Nothing needs the blob any more once a region has the version.
    async fn remove_blob(&self, slot: Slot<'_>, deliverable: &Deliverable) {
        let removed = async {
            let blob = self.blob(slot, deliverable)?;
            if blob.exists().await? {
                blob.delete().await?;
            }
            Ok(())
        };
        warn(removed.await);
    }

    async fn clean_up_after(&self, slot: Slot<'_>) {
        match self.retire(&[(slot.definition, slot.version)], false).await {
            Ok(retired) => {
                for verdict in retired.verdicts {
                    if let Fate::Failed(failure) = verdict.fate {
                        tracing::warn!("could not retire {}: {failure}", verdict.name);
                    }
                }
            }
            Err(failure) => tracing::warn!("could not retire old versions: {failure}"),
        }
    }

    async fn retire(&self, made: &[(&str, &str)], dry_run: bool) -> Result<Retired, Failure> {
        let _cleaning = self.cleaning.lock().await;
        let policy = clean_up::Policy {
            unmarked: self.section.clean_up_unmarked,
            now: Timestamp::now(),
        };
        clean_up::run(&self.gallery, policy, made, dry_run).await
    }
}

/// Clean-up that fails must not hide what it follows.
fn warn(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        tracing::warn!("could not {}", Failure::from(error));
    }
}
