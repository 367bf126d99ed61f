//! A version in every region: made, found and repaired, or made again.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::blob::Blob;
use super::client::REPLICATION;
use super::error::Error;
use super::slot::{Changed, Slot};
use super::version::Version;
use super::{AzureProvider, upload, warn};
use crate::base::failure::{Class, Classified, Failure};
use crate::config::azure::{TargetRegion, canonical};
use crate::model::mark::Mark;
use crate::model::outcome::{Failed, Origin, Outcome, Place};
use crate::model::select::Deliverable;
use crate::providers::contract::Task;

/// Why regions lack a version, by canonical name.
type Reasons = BTreeMap<String, Failure>;

/// What there is to say of a region where Azure has not failed.
const UNSAID: &str = "Azure does not say that it is there";
const NOT_YET: &str = "it is not added yet to what was made without it";

impl AzureProvider {
    /// Looks first, does what is missing, and tells which regions have the version.
    pub(super) async fn bring(
        &self,
        slot: Slot<'_>,
        deliverable: &Deliverable,
        task: &Task,
    ) -> Result<Outcome, Failure> {
        let mark = Mark::of(deliverable, Some(&deliverable.images[0]));
        let wanted = self.wanted(task);
        let found = self.look(slot, &mark).await?;
        let before = found.as_ref().map(Version::complete).unwrap_or_default();
        let (version, reasons) = match found {
            Some(version) => self.repair(slot, version, &wanted).await,
            None if wanted.is_empty() => return Ok(Outcome::default()),
            None => self.create(slot, deliverable, task, &mark, &wanted).await?,
        };
        let complete = version.complete();
        let mut staged = Outcome::default();
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
                let unknown = || match version.is_busy() {
                    true => stuck(slot, location),
                    false => lacks(slot, location, UNSAID),
                };
                let failure = reasons.get(&region).cloned().unwrap_or_else(unknown);
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
        let make = |regions| slot.create(&self.section.location, mark, &source, regions);
        let mut reasons = Reasons::new();
        let (all, home) = (self.with_home(wanted), self.with_home(&[]));
        let Changed { version, error } = match make(&all).await {
            // One region that is refused must not keep the image from the others. They are added in the next round.
            Err(error) if error.class() == Class::Deliverable && !home.is_empty() && all.len() > home.len() => {
                let made = make(&home).await?;
                tracing::warn!("made {} in {} alone: {error}", slot.name(), self.section.location);
                for region in &all {
                    reasons.insert(canonical(&region.name), lacks(slot, &region.name, NOT_YET));
                }
                made
            }
            made => made?,
        };
        match version {
            Some(mut version) if !version.is_hopeless() => {
                version.fits(mark)?;
                warn(self.drop_failed(slot, &mut version, &[], &mut reasons).await);
                Ok((version, reasons))
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

    /// Completes the regions that lack the version. What fails is a matter of those regions only.
    async fn repair(&self, slot: Slot<'_>, mut version: Version, wanted: &[&TargetRegion]) -> (Version, Reasons) {
        let mut reasons = Reasons::new();
        if let Err(error) = self.complete(slot, &mut version, wanted, &mut reasons).await {
            // What there is to be changed may be another thing now: the next round looks first.
            let failure = Failure::from(error);
            let regions = wanted.iter().map(|region| canonical(&region.name));
            reasons.extend(regions.map(|region| (region, failure.clone())));
        }
        (version, reasons)
    }

    async fn complete(
        &self,
        slot: Slot<'_>,
        version: &mut Version,
        wanted: &[&TargetRegion],
        reasons: &mut Reasons,
    ) -> Result<(), Error> {
        let is_complete = |version: &Version| {
            let complete = version.complete();
            wanted.iter().all(|region| complete.contains(&canonical(&region.name)))
        };
        if is_complete(version) {
            return Ok(());
        }
        slot.heard(version, wanted).await?;
        self.drop_failed(slot, version, wanted, reasons).await?;
        let targets = version.target_names();
        let is_missing = |region: &&TargetRegion| !targets.contains(&canonical(&region.name));
        let missing: Vec<&TargetRegion> = wanted.iter().copied().filter(is_missing).collect();
        let mut groups = vec![&missing[..]];
        while let Some(group) = groups.pop() {
            // Nothing to be added may still be something to be tried again: the region of the gallery.
            if version.is_busy() || is_complete(version) {
                break;
            }
            match slot.add(version, group).await {
                Ok(changed) => {
                    if let Some(failure) = changed.update(version).map(Failure::from) {
                        reasons.extend(group.iter().map(|region| (canonical(&region.name), failure.clone())));
                    }
                    self.drop_failed(slot, version, &[], reasons).await?;
                    // Who has it now need not wait for the others: they are added in the next round.
                    for region in groups.into_iter().flatten() {
                        reasons.insert(canonical(&region.name), lacks(slot, &region.name, NOT_YET));
                    }
                    break;
                }
                // One region that is refused must not keep the version from the others. Halves find it in fewer steps
                // than single regions, and a step may take an hour.
                Err(error) if error.class() == Class::Deliverable && group.len() > 1 => {
                    let (one, other) = group.split_at(group.len() / 2);
                    groups.extend([other, one]);
                }
                Err(error) if error.class() == Class::Deliverable && group.len() == 1 => {
                    reasons.insert(canonical(&group[0].name), error.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the version out of the regions where it failed, so that it succeeds in the others; they can be added again
    /// then. So can those of `silent` of which Azure says nothing. The region of the gallery itself cannot be left out.
    async fn drop_failed(
        &self,
        slot: Slot<'_>,
        version: &mut Version,
        silent: &[&TargetRegion],
        reasons: &mut Reasons,
    ) -> Result<(), Error> {
        if version.is_busy() {
            return Ok(());
        }
        let home = canonical(&self.section.location);
        let is_silent = |name: &str| silent.iter().any(|region| canonical(&region.name) == name);
        let mut regions = BTreeSet::new();
        for (region, said) in version.lacking() {
            if said.is_none() && !is_silent(&region) {
                continue;
            }
            reasons.insert(region.clone(), lacks(slot, &region, said.as_deref().unwrap_or(UNSAID)));
            if region != home {
                regions.insert(region);
            }
        }
        if regions.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = regions.iter().map(String::as_str).collect();
        tracing::warn!(
            "{} is not complete in {}; taking it out of there",
            slot.name(),
            names.join(", ")
        );
        let changed = slot.drop_regions(version, &regions).await?;
        warn(changed.update(version).map_or(Ok(()), Err));
        Ok(())
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

/// Why a region lacks the version, until somebody has looked.
fn stuck(slot: Slot<'_>, region: &str) -> Failure {
    let error = Error::Stuck {
        name: slot.name(),
        region: region.to_owned(),
        limit: REPLICATION,
    };
    error.into()
}

/// Why a region lacks the version, for now.
fn lacks(slot: Slot<'_>, region: &str, said: &str) -> Failure {
    let error = Error::Region {
        name: slot.name(),
        region: region.to_owned(),
        said: said.to_owned(),
    };
    error.into()
}
