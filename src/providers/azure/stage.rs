//! One version in all its regions: created, found and repaired, or created again.
//!
//! Azure repairs a version, and copies it to more regions, only as long as the blob exists that it was imported from. So no
//! change of regions is requested before the blob is there again, and [release](super::release) deletes it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use url::Url;

use super::blob::Blob;
use super::client::REPLICATION;
use super::error::Error;
use super::slot::{Changed, Slot};
use super::version::{Lack, Version};
use super::{AzureProvider, upload, warn};
use crate::base::failure::{Class, Classified, Failure};
use crate::config::azure::{TargetRegion, canonical};
use crate::model::mark::Mark;
use crate::model::outcome::{Failed, Origin, Outcome, Place};
use crate::model::select::Deliverable;
use crate::providers::contract::Task;

/// Why regions lack the version, by canonical name.
pub(super) type Reasons = BTreeMap<String, Failure>;

/// The reason for a region that is added in the next round, because the version was created without it.
const NOT_YET: &str = "the region will be added to the version that was created without it";

/// One image on its way to one version.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) slot: Slot<'a>,
    pub(super) deliverable: &'a Deliverable,
    pub(super) task: &'a Task,
    pub(super) mark: &'a Mark,
}

impl AzureProvider {
    /// Creates or repairs the version in the regions `wanted`, and reports on each location of `reported`.
    pub(super) async fn ensure_version(
        &self,
        job: Job<'_>,
        wanted: &[&TargetRegion],
        reported: impl Fn(&str) -> bool,
    ) -> Result<Outcome, Failure> {
        let Job { slot, deliverable, .. } = job;
        let found = self.look(slot, job.mark).await?;
        let before = found.as_ref().map(Version::complete).unwrap_or_default();
        let (version, reasons) = match found {
            Some(version) => self.repair(job, version, wanted).await,
            None if wanted.is_empty() => return Ok(Outcome::default()),
            None => self.create(job, wanted).await?,
        };
        let complete = version.complete();
        let mut outcome = Outcome::default();
        for location in &deliverable.locations {
            let region = canonical(location);
            if complete.contains(&region) {
                outcome.places.push(Place {
                    location: location.clone(),
                    id: slot.path(),
                    origin: if before.contains(&region) {
                        Origin::Found
                    } else {
                        Origin::Created
                    },
                });
            } else if reported(location) {
                outcome.failed.push(Failed {
                    location: location.clone(),
                    failure: reason(slot, &version, &reasons, location),
                });
            }
        }
        Ok(outcome)
    }

    /// The configured regions that the task may change.
    pub(super) fn wanted(&self, task: &Task) -> Vec<&TargetRegion> {
        let regions = self.section.target_regions.iter();
        regions.filter(|region| task.concerns(&region.name)).collect()
    }

    /// The configured region of the gallery itself.
    pub(super) fn home(&self) -> Vec<&TargetRegion> {
        self.with_home(&[])
    }

    /// The version, if it exists and is the image to be published. One that failed in every region is deleted.
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
        tracing::info!("{} failed in every region; creating it again", slot.name());
        slot.delete().await?;
        Ok(None)
    }

    /// Uploads the disk and creates the version from it.
    async fn create(&self, job: Job<'_>, wanted: &[&TargetRegion]) -> Result<(Version, Reasons), Failure> {
        let Job { slot, mark, .. } = job;
        let image = &job.deliverable.images[0];
        self.gallery.prepare(slot.definition, &image.arch).await?;
        let blob = self.blob(slot, job.deliverable)?;
        upload::upload(&blob, &job.task.source(image), mark, &self.slots).await?;
        // Another process may have created it during the upload.
        if let Some(version) = self.look(slot, mark).await? {
            return Ok(self.repair(job, version, wanted).await);
        }
        let source = json!({
            "uri": blob.url().as_str(),
            "storageAccountId": format!(
                "/{}/providers/Microsoft.Storage/storageAccounts/{}",
                self.group, self.section.storage_account_name
            ),
        });
        let create = |regions| slot.create(&self.section.location, mark, &source, regions);
        let mut reasons = Reasons::new();
        let (all, home) = (self.with_home(wanted), self.home());
        let Changed { version, error } = match create(&all).await {
            // One region that Azure refuses must not keep the image from the others. They are added in the next round.
            Err(error) if error.class() == Class::Deliverable && !home.is_empty() && all.len() > home.len() => {
                let created = create(&home).await?;
                tracing::warn!("created {} in {} only: {error}", slot.name(), self.section.location);
                for region in &all {
                    reasons.insert(canonical(&region.name), lacks(slot, &region.name, NOT_YET));
                }
                created
            }
            created => created?,
        };
        match version {
            Some(mut version) if !version.is_hopeless() => {
                version.fits(mark)?;
                warn(self.drop_failed(job, &mut version, &[], &mut reasons).await);
                Ok((version, reasons))
            }
            version => {
                let what = format!("create {}", slot.name());
                let error = error.unwrap_or_else(|| Error::odd(&what, "an operation that left no version"));
                let is_ours = |version: &Version| version.mark().as_ref() == Some(mark);
                if version.is_some_and(|version| is_ours(&version) && version.hands_off().is_none()) {
                    warn(slot.delete().await);
                }
                Err(error.into())
            }
        }
    }

    /// Completes the regions that lack the version. A failure concerns those regions only.
    pub(super) async fn repair(
        &self,
        job: Job<'_>,
        mut version: Version,
        wanted: &[&TargetRegion],
    ) -> (Version, Reasons) {
        let mut reasons = Reasons::new();
        if let Err(failure) = self.complete(job, &mut version, wanted, &mut reasons).await {
            // The version may have changed since it was read: the next round looks first.
            let regions = wanted.iter().map(|region| canonical(&region.name));
            reasons.extend(regions.map(|region| (region, failure.clone())));
        }
        (version, reasons)
    }

    async fn complete(
        &self,
        job: Job<'_>,
        version: &mut Version,
        wanted: &[&TargetRegion],
        reasons: &mut Reasons,
    ) -> Result<(), Failure> {
        let slot = job.slot;
        // A version of ours is not left failed, even if every region that is wanted now has it.
        let is_done = |version: &Version| {
            let complete = version.complete();
            let is_ours = || version.mark().is_some() && version.hands_off().is_none();
            wanted.iter().all(|region| complete.contains(&canonical(&region.name)))
                && !(version.has_failed() && is_ours())
        };
        if is_done(version) {
            return Ok(());
        }
        if let Some(reason) = version.hands_off() {
            return Err(Error::HandsOff {
                name: slot.name(),
                reason,
            }
            .into());
        }
        slot.await_replication_status(version, wanted).await?;
        self.drop_failed(job, version, wanted, reasons).await?;
        if version.is_busy() || is_done(version) {
            return Ok(());
        }
        self.ensure_source(job, version).await?;
        let targets = version.target_names();
        let is_missing = |region: &&TargetRegion| !targets.contains(&canonical(&region.name));
        let missing: Vec<&TargetRegion> = wanted.iter().copied().filter(is_missing).collect();
        let mut groups = vec![&missing[..]];
        while let Some(group) = groups.pop() {
            // An empty group has Azure try again what failed, such as the region of the gallery.
            if version.is_busy() || is_done(version) {
                break;
            }
            match slot.add(version, group).await {
                Ok(changed) => {
                    if let Some(failure) = changed.update(version).map(Failure::from) {
                        reasons.extend(group.iter().map(|region| (canonical(&region.name), failure.clone())));
                    }
                    self.drop_failed(job, version, &[], reasons).await?;
                    // Regions that are complete now do not wait for the others, which are added in the next round.
                    for region in groups.into_iter().flatten() {
                        reasons.insert(canonical(&region.name), lacks(slot, &region.name, NOT_YET));
                    }
                    return Ok(());
                }
                // One region that Azure refuses must not keep the version from the others. Halves find it in fewer steps
                // than single regions, and a step may take an hour.
                Err(error) if error.class() == Class::Deliverable && group.len() > 1 => {
                    let (one, other) = group.split_at(group.len() / 2);
                    groups.extend([other, one]);
                }
                Err(error) if error.class() == Class::Deliverable && group.len() == 1 => {
                    reasons.insert(canonical(&group[0].name), error.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Uploads the blob again that a version of ours was imported from, unless it still exists. Versions of other origin
    /// are changed without: their source is not ours to restore.
    async fn ensure_source(&self, job: Job<'_>, version: &Version) -> Result<(), Failure> {
        let blob = self.blob(job.slot, job.deliverable)?;
        if !is_source(&blob, version) {
            return Ok(());
        }
        let source = job.task.source(&job.deliverable.images[0]);
        upload::upload(&blob, &source, job.mark, &self.slots).await
    }

    /// Removes the regions where replication failed from the version, so that it succeeds in the others; they can be added
    /// again then. Regions of `silent` that Azure says nothing about are removed likewise. The gallery's own region cannot
    /// be removed.
    async fn drop_failed(
        &self,
        job: Job<'_>,
        version: &mut Version,
        silent: &[&TargetRegion],
        reasons: &mut Reasons,
    ) -> Result<(), Error> {
        let slot = job.slot;
        if version.is_busy() {
            return Ok(());
        }
        let home = canonical(&self.section.location);
        let is_silent = |name: &str| silent.iter().any(|region| canonical(&region.name) == name);
        let mut regions = BTreeSet::new();
        for (region, lack) in version.lacking() {
            let is_dropped = match &lack {
                Lack::Failed(_) => true,
                Lack::Silent if is_silent(&region) => true,
                Lack::Silent => continue,
                Lack::Unknown(_) => false,
            };
            reasons.insert(region.clone(), lacks(slot, &region, &lack.to_string()));
            if is_dropped && region != home {
                regions.insert(region);
            }
        }
        if regions.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = regions.iter().map(String::as_str).collect();
        let names = names.join(", ");
        tracing::warn!(
            "{} is not complete in {names}; removing these regions from it",
            slot.name()
        );
        // Without the blob Azure may refuse, and the version is no worse than before.
        if let Err(failure) = self.ensure_source(job, version).await {
            tracing::warn!("could not restore the blob of {}: failed to {failure}", slot.name());
        }
        let changed = slot.drop_regions(version, &regions).await?;
        warn(changed.update(version).map_or(Ok(()), Err));
        Ok(())
    }

    /// The regions `wanted` and the gallery's own, which every import goes through.
    fn with_home<'a>(&'a self, wanted: &[&'a TargetRegion]) -> Vec<&'a TargetRegion> {
        let home = canonical(&self.section.location);
        let is_wanted = |region: &TargetRegion| wanted.iter().any(|wanted| wanted.name == region.name);
        let regions = self.section.target_regions.iter();
        regions
            .filter(|region| is_wanted(region) || canonical(&region.name) == home)
            .collect()
    }

    pub(super) fn blob(&self, slot: Slot<'_>, deliverable: &Deliverable) -> Result<Blob, Error> {
        let sha256 = &deliverable.images[0].sha256;
        upload::blob(&self.container, slot.definition, slot.version, sha256)
    }
}

/// The version was imported from this blob.
pub(super) fn is_source(blob: &Blob, version: &Version) -> bool {
    let source = version.source().and_then(|source| Url::parse(source).ok());
    source.as_ref() == Some(blob.url())
}

/// Why a region lacks the version.
pub(super) fn reason(slot: Slot<'_>, version: &Version, reasons: &Reasons, location: &str) -> Failure {
    let unknown = || {
        if version.is_busy() {
            let error = Error::Stuck {
                name: slot.name(),
                region: location.to_owned(),
                limit: REPLICATION,
            };
            error.into()
        } else {
            lacks(slot, location, &Lack::Silent.to_string())
        }
    };
    reasons.get(&canonical(location)).cloned().unwrap_or_else(unknown)
}

fn lacks(slot: Slot<'_>, region: &str, said: &str) -> Failure {
    let error = Error::Region {
        name: slot.name(),
        region: region.to_owned(),
        said: said.to_owned(),
    };
    error.into()
}
