//! A version in every region: made, found and repaired, or made again.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::blob::Blob;
use super::error::Error;
use super::version::{Changed, Slot, Version};
use super::{AzureProvider, upload, warn};
use crate::config::azure::{TargetRegion, canonical};
use crate::error::Failure;
use crate::provider::{Failed, Mark, Origin, Place, Staged, Task};
use crate::select::Deliverable;

/// Why regions lack a version, by canonical name.
type Reasons = BTreeMap<String, Failure>;

impl AzureProvider {
    /// Looks first, does what is missing, and tells which regions have the version.
    pub(super) async fn bring(
        &self,
        slot: Slot<'_>,
        deliverable: &Deliverable,
        task: &Task,
    ) -> Result<Staged, Failure> {
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
            return Err(Error::Ruined(slot.name()));
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
        upload::upload(&blob, &task.source(image), mark, &self.slots).await?;
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
            Ok(Changed { version: left, error }) => (left.unwrap_or(version), error),
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
            Ok(Changed { version: left, error }) => {
                warn(error.map_or(Ok(()), Err));
                (left.unwrap_or(version), reasons)
            }
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

    /// Deletes the blob, if it is there. Once a region has the version nothing needs it any more, nor if none ever will.
    pub(super) async fn remove_blob(&self, slot: Slot<'_>, deliverable: &Deliverable) {
        let removed = async {
            let blob = self.blob(slot, deliverable)?;
            if blob.exists().await? {
                blob.delete(None).await?;
            }
            Ok(())
        };
        warn(removed.await);
    }
}
