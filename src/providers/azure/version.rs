//! A version of an image definition as Azure shows it: whose it is, how it is going, and where it is.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::Error;
use crate::base::failure::quote;
use crate::config::azure::canonical;
use crate::model::mark::{Mark, OWNER};

/// The value of the tag `delete` of what nobody may touch.
const NEVER: &str = "never";

/// A version as Azure shows it.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) name: String,
    document: Value,
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

    pub(super) fn state(&self) -> &str {
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

    /// Whether it ended badly, and is nowhere. What somebody promoted is worth a repair.
    pub(super) fn is_hopeless(&self) -> bool {
        matches!(self.state(), "Failed" | "Canceled") && self.complete().is_empty() && self.is_excluded()
    }

    /// Whether there are regions where users can have it, whatever happens elsewhere.
    pub(super) fn is_usable(&self) -> bool {
        self.state() != "Deleting" && !self.complete().is_empty()
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

    /// The target regions that lack it, by canonical name, with what Azure says of those where it failed. Where it is still
    /// being made, whatever failed elsewhere, is none of them.
    pub(super) fn lacking(&self) -> BTreeMap<String, Option<String>> {
        let mut failed: BTreeMap<String, String> = self
            .replicas()
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
            .collect();
        let on_its_way: BTreeSet<String> = self
            .replicas()
            .filter(|(_, replica)| replica["state"] == "Replicating")
            .map(|(region, _)| region)
            .collect();
        let complete = self.complete();
        let lacking = self
            .target_names()
            .into_iter()
            .filter(|region| !complete.contains(region) && !on_its_way.contains(region));
        lacking
            .map(|region| {
                let said = failed.remove(&region);
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

    /// The document to be put to change nothing.
    pub(super) fn as_it_is(&self) -> Value {
        self.with_targets(self.targets().to_vec())
    }

    /// The document to be put for other target regions: what Azure only tells is left out.
    pub(super) fn with_targets(&self, targets: Vec<Value>) -> Value {
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

pub(super) fn region_of(target: &Value) -> String {
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
            "publishingProfile": {
                "targetRegions": targets, "publishedDate": "2025-01-01T00:00:00Z", "excludeFromLatest": true,
            },
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
            found.lacking(),
            BTreeMap::from([
                ("japaneast".to_owned(), None),
                ("westeurope".to_owned(), Some("no room".to_owned()))
            ])
        );
        assert!(!found.is_busy() && !found.is_hopeless());
        assert!(version("Failed", &["East US"], &[("East US", "Failed")]).is_hopeless());
        assert!(version("Succeeded", &["East US"], &[("East US", "Replicating")]).is_busy());
        assert_eq!(version("Succeeded", &["East US"], &[]).complete().len(), 1);
        let mut nowhere = version("Failed", &["East US"], &[]);
        assert!(nowhere.is_hopeless());
        nowhere.document["properties"]["publishingProfile"]["excludeFromLatest"] = json!(false);
        assert!(!nowhere.is_hopeless());
    }

    #[test]
    fn what_azure_only_tells_is_not_put() {
        let found = version("Succeeded", &["East US"], &[]);
        let body = found.with_targets(vec![json!({"name": "westus"})]);
        assert_eq!(
            body,
            json!({"location": "eastus", "tags": {"owner": "x"}, "properties": {
                "publishingProfile": {"targetRegions": [{"name": "westus"}], "excludeFromLatest": true},
                "storageProfile": {"osDiskImage": {"source": {"uri": "https://x"}}},
                "safetyProfile": {"allowDeletionOfReplicatedLocations": true},
            }})
        );
    }
}
