//! A version of an image definition: made from a blob, replicated to regions, followed to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::Pace;
use super::error::Error;
use super::gallery::Gallery;
use crate::config::azure::{TargetRegion, canonical};
use crate::error::quote;
use crate::provider::{Mark, OWNER};

/// How often the log says how far replication is.
const PROGRESS: Duration = Duration::from_secs(300);
/// The value of the tag `delete` of what nobody may touch.
const NEVER: &str = "never";

/// Where a version is, or will be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) gallery: &'a Gallery,
    pub(super) definition: &'a str,
    pub(super) version: &'a str,
}

/// A version as Azure shows it.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) name: String,
    document: Value,
}

/// What a change left, and what the operation said if it failed.
pub(super) struct Changed {
    pub(super) version: Option<Version>,
    pub(super) error: Option<Error>,
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

    /// The version, if it is there, once nothing happens to it any more. Whatever began it, this process or another that
    /// is gone: the version itself tells how it is going.
    pub(super) async fn settled(&self) -> Result<Option<Version>, Error> {
        let what = format!("look at {}", self.name());
        let path = self.path();
        let mut pace = Pace::new();
        let mut told = Instant::now();
        loop {
            let arm = self.gallery.arm();
            let found = arm.get(&what, &path, &[("$expand", "ReplicationStatus")]).await?;
            let Some(document) = found else { return Ok(None) };
            let version = Version::new(self.name(), document);
            if !version.is_busy() {
                return Ok(Some(version));
            }
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                let (complete, all) = (version.complete().len(), version.targets().len());
                tracing::info!("{} is in {complete} of {all} regions", self.name());
            }
            pace.pause(None).await;
        }
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
        self.change(&format!("create {}", self.name()), &body, |_| true).await
    }

    /// Replicates the version to these regions too.
    pub(super) async fn add(&self, version: &Version, regions: &[&TargetRegion]) -> Result<Changed, Error> {
        let mut targets = version.targets().to_vec();
        targets.extend(regions.iter().map(|region| target(region)));
        let what = format!("replicate {} to more regions", self.name());
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
        let body = version.with_targets(targets);
        let will_do = |found: &Value| Version::new(String::new(), found.clone()).target_names() == wanted;
        self.change(what, &body, will_do).await
    }

    async fn change(&self, what: &str, body: &Value, will_do: impl Fn(&Value) -> bool) -> Result<Changed, Error> {
        let operation = self.gallery.arm().make(what, &self.path(), body, will_do).await?;
        // The version tells how far it is, and only the operation why it failed.
        self.settled().await?;
        let ended = match operation {
            Some(operation) => self.gallery.arm().finish(operation).await,
            None => Ok(()),
        };
        Ok(Changed {
            version: self.settled().await?,
            error: ended.err(),
        })
    }
}

impl Version {
    pub(super) fn new(name: String, document: Value) -> Self {
        Self { name, document }
    }

    fn properties(&self) -> &Value {
        &self.document["properties"]
    }

    fn profile(&self) -> &Value {
        &self.properties()["publishingProfile"]
    }

    fn state(&self) -> &str {
        self.properties()["provisioningState"].as_str().unwrap_or_default()
    }

    pub(super) fn tags(&self) -> BTreeMap<String, String> {
        let tags = self.document["tags"].as_object().into_iter().flatten();
        tags.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect()
    }

    /// The program's own mark, where it has one.
    pub(super) fn mark(&self) -> Option<Mark> {
        Mark::decode("", &self.tags())
    }

    /// Why nobody but its owner may touch it.
    pub(super) fn hands_off(&self) -> Option<String> {
        let tags = self.tags();
        match (tags.get("owner"), tags.get("delete")) {
            (Some(owner), _) if owner != OWNER => Some(format!("it belongs to {owner}")),
            (_, Some(delete)) if delete.eq_ignore_ascii_case(NEVER) => Some(format!("it is tagged delete={delete}")),
            _ => None,
        }
    }

    /// Whether this is the image that is to be published. The former service left no mark; its versions are known by name.
    pub(super) fn fits(&self, mark: &Mark) -> Result<(), Error> {
        if let Some(owner) = self.tags().get("owner").filter(|owner| *owner != OWNER) {
            return Err(Error::Owned {
                name: self.name.clone(),
                owner: owner.clone(),
            });
        }
        match self.mark().and_then(|found| found.image_sha256) {
            Some(found) if Some(&found) != mark.image_sha256.as_ref() => Err(Error::Taken {
                name: self.name.clone(),
                found,
                expected: mark.image_sha256.clone().unwrap_or_default(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether something is happening to it.
    pub(super) fn is_busy(&self) -> bool {
        match self.state() {
            "Creating" | "Updating" | "Migrating" | "Deleting" => true,
            "Succeeded" => self.replicas().any(|(_, replica)| replica["state"] == "Replicating"),
            _ => false,
        }
    }

    /// Whether it ended badly, and is nowhere.
    pub(super) fn is_hopeless(&self) -> bool {
        matches!(self.state(), "Failed" | "Canceled") && self.complete().is_empty()
    }

    /// Where it is to be, as Azure writes it.
    pub(super) fn targets(&self) -> &[Value] {
        self.profile()["targetRegions"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The same by canonical name.
    pub(super) fn target_names(&self) -> BTreeSet<String> {
        self.targets().iter().map(region_of).collect()
    }

    /// The regions that have it, by canonical name.
    pub(super) fn complete(&self) -> BTreeSet<String> {
        let states: BTreeMap<String, bool> = self
            .replicas()
            .map(|(region, replica)| (region, replica["state"] == "Completed"))
            .collect();
        // Without a word on replicas, what succeeded is everywhere.
        let unsaid = states.is_empty() && self.state() == "Succeeded";
        self.target_names()
            .into_iter()
            .filter(|region| states.get(region).copied().unwrap_or(unsaid))
            .collect()
    }

    /// The regions where it failed, by canonical name, with what Azure says of them.
    pub(super) fn failed(&self) -> BTreeMap<String, String> {
        self.replicas()
            .filter(|(_, replica)| replica["state"] == "Failed")
            .map(|(region, replica)| {
                let details = quote(replica["details"].as_str().unwrap_or_default());
                let said = if details.is_empty() {
                    "it failed".to_owned()
                } else {
                    details
                };
                (region, said)
            })
            .collect()
    }

    /// Whether users only get it by asking for it.
    pub(super) fn is_excluded(&self) -> bool {
        self.profile()["excludeFromLatest"].as_bool().unwrap_or(false)
    }

    /// When it was made.
    pub(super) fn published(&self) -> Option<Timestamp> {
        self.profile()["publishedDate"].as_str()?.parse().ok()
    }

    pub(super) fn end_of_life(&self) -> Option<Timestamp> {
        self.profile()["endOfLifeDate"].as_str()?.parse().ok()
    }

    fn replicas(&self) -> impl Iterator<Item = (String, &Value)> {
        let summary = self.properties()["replicationStatus"]["summary"].as_array();
        summary
            .into_iter()
            .flatten()
            .map(|replica| (canonical(replica["region"].as_str().unwrap_or_default()), replica))
    }

    /// The document to be put for other target regions: what Azure only tells is left out.
    fn with_targets(&self, targets: Vec<Value>) -> Value {
        let properties = self.properties();
        let mut profile = self.profile().clone();
        let mut safety = properties["safetyProfile"].clone();
        let mut storage = properties["storageProfile"].clone();
        remove(&mut profile, &["publishedDate"]);
        remove(&mut safety, &["reportedForPolicyViolation", "policyViolations"]);
        remove(&mut storage["osDiskImage"], &["sizeInGB"]);
        profile["targetRegions"] = json!(targets);
        if safety.is_null() {
            safety = json!({});
        }
        safety["allowDeletionOfReplicatedLocations"] = json!(true);
        json!({
            "location": self.document["location"],
            "tags": self.tags(),
            "properties": {"publishingProfile": profile, "storageProfile": storage, "safetyProfile": safety},
        })
    }
}

fn remove(value: &mut Value, names: &[&str]) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|name, _| !names.contains(&name.as_str()));
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

fn region_of(target: &Value) -> String {
    canonical(target["name"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(state: &str, targets: &[&str], summary: &[(&str, &str)]) -> Version {
        let targets: Vec<_> = targets
            .iter()
            .map(|name| json!({"name": name, "regionalReplicaCount": 1}))
            .collect();
        let summary: Vec<_> = summary
            .iter()
            .map(|(region, state)| json!({"region": region, "state": state, "details": "no\nroom"}))
            .collect();
        let document = json!({"location": "eastus", "tags": {"owner": "x"}, "properties": {
            "provisioningState": state,
            "publishingProfile": {"targetRegions": targets, "publishedDate": "2025-01-01T00:00:00Z"},
            "storageProfile": {"osDiskImage": {"sizeInGB": 5, "source": {"uri": "https://x"}}},
            "replicationStatus": {"summary": summary},
        }});
        Version::new("d/1.2.3".to_owned(), document)
    }

    #[test]
    fn regions_are_known_by_either_name() {
        let found = version(
            "Failed",
            &["East US", "West Europe", "Japan East"],
            &[
                ("East US", "Completed"),
                ("westeurope", "Failed"),
                ("Japan East", "Unknown"),
            ],
        );
        assert_eq!(found.complete(), BTreeSet::from(["eastus".to_owned()]));
        assert_eq!(
            found.failed(),
            BTreeMap::from([("westeurope".to_owned(), "no room".to_owned())])
        );
        assert!(!found.is_busy() && !found.is_hopeless());
        assert!(version("Failed", &["East US"], &[("East US", "Failed")]).is_hopeless());
        assert!(version("Succeeded", &["East US"], &[("East US", "Replicating")]).is_busy());
        assert_eq!(version("Succeeded", &["East US"], &[]).complete().len(), 1);
        assert!(version("Failed", &["East US"], &[]).is_hopeless());
    }

    #[test]
    fn what_azure_only_tells_is_not_put() {
        let found = version("Succeeded", &["East US"], &[]);
        let body = found.with_targets(vec![json!({"name": "westus"})]);
        assert_eq!(
            body,
            json!({"location": "eastus", "tags": {"owner": "x"}, "properties": {
                "publishingProfile": {"targetRegions": [{"name": "westus"}]},
                "storageProfile": {"osDiskImage": {"source": {"uri": "https://x"}}},
                "safetyProfile": {"allowDeletionOfReplicatedLocations": true},
            }})
        );
    }
}
