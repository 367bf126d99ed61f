//! The place of a version in the gallery: creates it from a blob, changes its regions, and follows it until Azure is done.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::REPLICATION;
use super::error::Error;
use super::gallery::Gallery;
use super::version::{Lack, Version, region_of};
use crate::config::azure::{TargetRegion, canonical};
use crate::model::mark::Mark;
use crate::providers::poll::Pace;

/// The log reports the progress of replication this often.
const PROGRESS: Duration = Duration::from_secs(300);
/// The status of a region may appear this much later than the end of its operation. A region without any after that is
/// removed from the version and added again.
const STATUS_DELAY: Duration = Duration::from_secs(10 * 60);

/// The place of a version, whether it exists or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) gallery: &'a Gallery,
    pub(super) definition: &'a str,
    pub(super) version: &'a str,
}

/// The version after a change, and the operation's error if it failed.
pub(super) struct Changed {
    pub(super) version: Option<Version>,
    pub(super) error: Option<Error>,
}

impl Changed {
    /// Updates `version` to the state after the change, and returns the operation's error.
    pub(super) fn update(self, version: &mut Version) -> Option<Error> {
        if let Some(left) = self.version {
            *version = left;
        }
        self.error
    }
}

impl Slot<'_> {
    /// `Fedora-Cloud-43-x64/43.20250901.2`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.definition, self.version)
    }

    /// The path below Resource Manager's endpoint.
    pub(super) fn path(&self) -> String {
        self.gallery.version_path(self.definition, self.version)
    }

    /// The version as it is now, if it exists.
    pub(super) async fn look(&self) -> Result<Option<Version>, Error> {
        let what = format!("read {}", self.name());
        let arm = self.gallery.arm();
        let found = arm
            .get(&what, &self.path(), &[("$expand", "ReplicationStatus")])
            .await?;
        Ok(found.map(|document| Version::new(self.name(), document)))
    }

    /// The version, if it exists, once Azure has finished its current operation, whichever process started it: the version
    /// itself reports the progress. A stuck version is returned while it is still busy, so that the regions that have it
    /// need not wait for the others.
    pub(super) async fn settled(&self) -> Result<Option<Version>, Error> {
        self.follow(Pace::within(REPLICATION)).await
    }

    async fn follow(&self, mut pace: Pace) -> Result<Option<Version>, Error> {
        let what = format!("wait for {}", self.name());
        let mut logged = Instant::now();
        loop {
            let Some(version) = self.look().await? else {
                return Ok(None);
            };
            if !version.is_busy() {
                return Ok(Some(version));
            }
            if logged.elapsed() > PROGRESS {
                logged = Instant::now();
                let (complete, all) = (version.complete().len(), version.targets().len());
                tracing::info!("{} is in {complete} of {all} regions", self.name());
            }
            if let Err(stuck) = pace.pause(&what, None).await {
                return if version.is_usable() {
                    Ok(Some(version))
                } else {
                    Err(stuck.into())
                };
            }
        }
    }

    /// Waits until Azure reports success or failure for each of these target regions, within a limit.
    pub(super) async fn await_replication_status(
        &self,
        version: &mut Version,
        regions: &[&TargetRegion],
    ) -> Result<(), Error> {
        let what = format!("read the replication status of {}", self.name());
        let mut pace = Pace::within(STATUS_DELAY);
        let is_silent = |version: &Version| {
            let lacking = version.lacking();
            let is_unsaid = |lack: &Lack| matches!(lack, Lack::Silent | Lack::Unknown(_));
            let is_silent = |region: &&TargetRegion| lacking.get(&canonical(&region.name)).is_some_and(is_unsaid);
            !version.is_busy() && regions.iter().any(is_silent)
        };
        while is_silent(version) && pace.pause(&what, None).await.is_ok() {
            let Some(found) = self.settled().await? else { break };
            *version = found;
        }
        Ok(())
    }

    /// Creates the version from a blob of our storage account.
    pub(super) async fn create(
        &self,
        location: &str,
        mark: &Mark,
        source: &Value,
        regions: &[&TargetRegion],
    ) -> Result<Changed, Error> {
        let targets: Vec<Value> = regions.iter().map(|region| target(region)).collect();
        let mut body = json!({
            "location": location,
            "tags": mark.encode(""),
            "properties": {
                "publishingProfile": {
                    "targetRegions": targets,
                    // An operator tests and promotes it before users get it as the latest.
                    "excludeFromLatest": true,
                    "replicationMode": "Full",
                },
                "storageProfile": {"osDiskImage": {"source": source}},
                // Regions that fail must be removed for the version to succeed.
                "safetyProfile": {"allowDeletionOfReplicatedLocations": true},
            },
        });
        if let Some(date) = mark.end_of_life {
            body["properties"]["publishingProfile"]["endOfLifeDate"] = json!(format!("{date}T00:00:00Z"));
        }
        self.change(&format!("create {}", self.name()), &body, |found| Ok(found.is_some()))
            .await
    }

    /// Replicates the version to these regions too; without any, has Azure retry the failed ones.
    pub(super) async fn add(&self, version: &Version, regions: &[&TargetRegion]) -> Result<Changed, Error> {
        let mut targets = version.targets();
        targets.extend(regions.iter().map(|region| target(region)));
        let what = match regions {
            [] => format!("repair {}", self.name()),
            _ => format!("replicate {} to more regions", self.name()),
        };
        self.retarget(&what, version, targets).await
    }

    /// Removes these regions from the version.
    pub(super) async fn drop_regions(&self, version: &Version, regions: &BTreeSet<String>) -> Result<Changed, Error> {
        let mut targets = version.targets();
        targets.retain(|target| !regions.contains(&region_of(target)));
        let what = format!("remove regions that fail from {}", self.name());
        self.retarget(&what, version, targets).await
    }

    /// Deletes the version and waits for the end of the deletion.
    pub(super) async fn delete(&self) -> Result<(), Error> {
        let what = format!("delete {}", self.name());
        self.gallery.arm().delete(&what, &self.path()).await
    }

    async fn retarget(&self, what: &str, version: &Version, targets: Vec<Value>) -> Result<Changed, Error> {
        let wanted: BTreeSet<String> = targets.iter().map(region_of).collect();
        let is_other = wanted != version.target_names();
        let body = version.with_targets(targets);
        let will_do = |found: Option<Value>| {
            let found = found.map(|document| Version::new(self.name(), document));
            match found {
                Some(found) if found.target_names() == wanted && (is_other || found.state() != version.state()) => {
                    Ok(true)
                }
                Some(found) if found.as_it_is() == version.as_it_is() => Ok(false),
                // The body repeats the version as it was read, and would undo later changes of other clients.
                Some(_) | None => Err(Error::Changed { what: what.to_owned() }),
            }
        };
        self.change(what, &body, will_do).await
    }

    async fn change(
        &self,
        what: &str,
        body: &Value,
        will_do: impl Fn(Option<Value>) -> Result<bool, Error>,
    ) -> Result<Changed, Error> {
        let arm = self.gallery.arm();
        let operation = arm.ensure(what, &self.path(), body, will_do).await?;
        // The version reports its progress, and only the operation the cause of a failure.
        let pace = Pace::within(REPLICATION);
        let version = self.follow(pace).await?;
        let ended = match operation {
            Some(operation) if !version.as_ref().is_some_and(Version::is_busy) => arm.finish(operation, pace).await,
            Some(_) | None => return Ok(Changed { version, error: None }),
        };
        Ok(Changed {
            version: self.settled().await?,
            error: ended.err(),
        })
    }
}

/// A configured region in the form of a request.
fn target(region: &TargetRegion) -> Value {
    json!({
        "name": region.name,
        "regionalReplicaCount": region.regional_replica_count,
        "storageAccountType": region.storage_account_type,
    })
}
