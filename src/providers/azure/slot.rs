//! Where a version is, or will be: it is made there from a blob, replicated to regions, and followed to its end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::REPLICATION;
use super::error::Error;
use super::gallery::Gallery;
use super::version::{Version, region_of};
use crate::config::azure::{TargetRegion, canonical};
use crate::model::mark::Mark;
use crate::providers::poll::Pace;

/// How often the log says how far replication is.
const PROGRESS: Duration = Duration::from_secs(300);
/// What Azure says of a region may come so much later than the end of its operation. After that, it has forgotten it.
const SAYING: Duration = Duration::from_secs(10 * 60);

/// Where a version is, or will be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) gallery: &'a Gallery,
    pub(super) definition: &'a str,
    pub(super) version: &'a str,
}

/// What a change left, and what the operation said if it failed.
pub(super) struct Changed {
    pub(super) version: Option<Version>,
    pub(super) error: Option<Error>,
}

impl Changed {
    /// Makes `version` what was left of it. What the operation said if it failed.
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

    /// Below Resource Manager.
    pub(super) fn path(&self) -> String {
        self.gallery.version_path(self.definition, self.version)
    }

    /// The version as it is now, if it is there.
    pub(super) async fn look(&self) -> Result<Option<Version>, Error> {
        let what = format!("look at {}", self.name());
        let arm = self.gallery.arm();
        let found = arm
            .get(&what, &self.path(), &[("$expand", "ReplicationStatus")])
            .await?;
        Ok(found.map(|document| Version::new(self.name(), document)))
    }

    /// The version, if it is there, once nothing happens to it any more. Whatever began it, this process or another that
    /// is gone: the version itself tells how it is going. One that has got stuck is busy still: the regions that have it
    /// need not wait for the others.
    pub(super) async fn settled(&self) -> Result<Option<Version>, Error> {
        self.follow(Pace::within(REPLICATION)).await
    }

    async fn follow(&self, mut pace: Pace) -> Result<Option<Version>, Error> {
        let what = format!("follow {}", self.name());
        let mut told = Instant::now();
        loop {
            let Some(version) = self.look().await? else {
                return Ok(None);
            };
            if !version.is_busy() {
                return Ok(Some(version));
            }
            if told.elapsed() > PROGRESS {
                told = Instant::now();
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

    /// Waits until Azure has said something of each of these regions that the version is to be in, for a while.
    pub(super) async fn heard(&self, version: &mut Version, regions: &[&TargetRegion]) -> Result<(), Error> {
        let what = format!("hear of the regions of {}", self.name());
        let mut pace = Pace::within(SAYING);
        let is_silent = |version: &Version| {
            let lacking = version.lacking();
            let said = |region: &&TargetRegion| lacking.get(&canonical(&region.name)).is_some_and(Option::is_none);
            !version.is_busy() && regions.iter().any(said)
        };
        while is_silent(version) && pace.pause(&what, None).await.is_ok() {
            let Some(found) = self.settled().await? else { break };
            *version = found;
        }
        Ok(())
    }

    /// Makes the version from a blob of our storage account.
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
                    // Somebody tests it before users get it without asking for it.
                    "excludeFromLatest": true,
                    "replicationMode": "Full",
                },
                "storageProfile": {"osDiskImage": {"source": source}},
                // Regions that fail must be dropped for the version to succeed.
                "safetyProfile": {"allowDeletionOfReplicatedLocations": true},
            },
        });
        if let Some(date) = mark.end_of_life {
            body["properties"]["publishingProfile"]["endOfLifeDate"] = json!(format!("{date}T00:00:00Z"));
        }
        self.change(&format!("create {}", self.name()), &body, |found| Ok(found.is_some()))
            .await
    }

    /// Replicates the version to these regions too; without any, has Azure try again what failed.
    pub(super) async fn add(&self, version: &Version, regions: &[&TargetRegion]) -> Result<Changed, Error> {
        let mut targets = version.targets().to_vec();
        targets.extend(regions.iter().map(|region| target(region)));
        let what = match regions {
            [] => format!("try {} again", self.name()),
            _ => format!("replicate {} to more regions", self.name()),
        };
        self.retarget(&what, version, targets).await
    }

    /// Takes the version out of these regions.
    pub(super) async fn drop_regions(&self, version: &Version, regions: &BTreeSet<String>) -> Result<Changed, Error> {
        let mut targets = version.targets().to_vec();
        targets.retain(|target| !regions.contains(&region_of(target)));
        let what = format!("take {} out of regions that fail", self.name());
        self.retarget(&what, version, targets).await
    }

    /// Deletes the version and waits for that.
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
                // The body has all that was there when it was made, and would undo what has changed since.
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
        let operation = arm.make(what, &self.path(), body, will_do).await?;
        // The version tells how far it is, and only the operation why it failed.
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

/// A configured region as Azure takes it.
fn target(region: &TargetRegion) -> Value {
    json!({
        "name": region.name,
        "regionalReplicaCount": region.regional_replica_count,
        "storageAccountType": region.storage_account_type,
    })
}
