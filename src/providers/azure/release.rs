//! The end of a publication: read what is live, and delete the blob once nothing needs it.

use super::AzureProvider;
use super::slot::Slot;
use super::stage::{Job, Reasons, is_source, reason};
use super::version::Version;
use super::warn;
use crate::base::failure::Failure;
use crate::config::azure::canonical;
use crate::model::outcome::{Failed, Origin, Outcome, Place};
use crate::model::select::Deliverable;
use crate::providers::contract::Task;

impl AzureProvider {
    /// Reads which regions have the version that was staged. Behind a gate, adds the regions first that staging left out.
    pub(super) async fn publish_staged(&self, job: Job<'_>, staged: Outcome) -> Result<Outcome, Failure> {
        let Job {
            slot,
            deliverable,
            task,
            mark,
        } = job;
        let (mut outcome, staged) = Outcome::without_places(staged);
        if staged.is_empty() {
            return Ok(outcome);
        }
        let was_staged = |location: &str| staged.iter().find(|place| place.location == location);
        // The version was deleted, or replaced by one of other content: nothing of it is released.
        let Some(mut version) = slot.look().await?.filter(|version| version.fits(mark).is_ok()) else {
            let stale = staged.into_iter().map(|place| place.location);
            outcome.stale.extend(stale.filter(|location| task.concerns(location)));
            return Ok(outcome);
        };
        let mut reasons = Reasons::new();
        let before = version.complete();
        if self.gated {
            (version, reasons) = self.repair(job, version, &self.wanted(task)).await;
        }
        let complete = version.complete();
        let id = match self.gallery.community_name().await? {
            Some(gallery) => format!(
                "/CommunityGalleries/{gallery}/Images/{}/Versions/{}",
                slot.definition, slot.version
            ),
            None => format!("/{}", slot.path()),
        };
        for location in &deliverable.locations {
            let (region, staged) = (canonical(location), was_staged(location));
            let has_failed = outcome.failed.iter().any(|failed| failed.location == *location);
            if complete.contains(&region) && (staged.is_some() || self.gated) {
                let found = before.contains(&region).then_some(Origin::Found);
                outcome.places.push(Place {
                    location: location.clone(),
                    id: id.clone(),
                    origin: staged.map(|place| place.origin).or(found).unwrap_or(Origin::Created),
                });
            } else if !task.concerns(location) || has_failed {
                continue;
            } else if staged.is_some() {
                outcome.stale.push(location.clone());
            } else if self.gated {
                outcome.failed.push(Failed {
                    location: location.clone(),
                    failure: reason(slot, &version, &reasons, location),
                });
            }
        }
        if is_settled(&version, task, &outcome) {
            self.remove_blob(slot, deliverable).await;
        }
        Ok(outcome)
    }

    /// Deletes the blob of an image that cannot be published, unless Azure may still read it for a version.
    pub(super) async fn discard_blob(&self, slot: Slot<'_>, deliverable: &Deliverable) {
        let is_needed = async {
            let blob = self.blob(slot, deliverable)?;
            let version = slot.look().await?;
            Ok(version.is_some_and(|version| {
                is_source(&blob, &version) && !version.is_hopeless() && !version.has_succeeded()
            }))
        };
        match is_needed.await {
            Ok(true) => tracing::info!("keeping the blob of {}: the version is not complete", slot.name()),
            Ok(false) => self.remove_blob(slot, deliverable).await,
            Err(error) => warn(Err(error)),
        }
    }

    /// Deletes the blob if it exists.
    async fn remove_blob(&self, slot: Slot<'_>, deliverable: &Deliverable) {
        let removed = async {
            let blob = self.blob(slot, deliverable)?;
            match blob.hands_off().await? {
                Some(Some(reason)) => tracing::info!("keeping blob {}: {reason}", blob.name()),
                Some(None) => blob.delete(None).await?,
                None => {}
            }
            Ok(())
        };
        warn(removed.await);
    }
}

/// Every region has the version or was refused for good, so no repair will need the blob.
fn is_settled(version: &Version, task: &Task, outcome: &Outcome) -> bool {
    let will_be_repaired = |failed: &Failed| task.concerns(&failed.location) && failed.failure.class().is_transient();
    version.has_succeeded() && outcome.stale.is_empty() && !outcome.failed.iter().any(will_be_repaired)
}
