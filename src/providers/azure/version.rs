//! A version of an image definition as Azure shows it: its owner, its state, and its regions.
//!
//! Azure adds states without notice. A provisioning state is final only if it is one of the three that
//! [Resource Manager](https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations#provisioningstate-values)
//! names as final, and a region has the version only if Azure says `Completed` of it. States are compared without case.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::error::Error;
use crate::base::failure::quote;
use crate::config::azure::canonical;
use crate::model::mark::Mark;
use crate::providers::ownership::{Comparison, HandsOff, compare, hands_off};

/// The members of a publishing profile that a request may have. Azure refuses members that only its answers have.
const PROFILE: [&str; 7] = [
    "targetRegions",
    "replicaCount",
    "excludeFromLatest",
    "endOfLifeDate",
    "storageAccountType",
    "replicationMode",
    "targetExtendedLocations",
];
/// The same of a target region.
const TARGET: [&str; 5] = [
    "name",
    "regionalReplicaCount",
    "storageAccountType",
    "encryption",
    "excludeFromLatest",
];
/// The same of a storage profile, of its operating system's disk, and of the disk's source.
const STORAGE: [&str; 3] = ["source", "osDiskImage", "dataDiskImages"];
const DISK: [&str; 2] = ["hostCaching", "source"];
const SOURCE: [&str; 3] = ["id", "uri", "storageAccountId"];

/// A version as Azure shows it.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) name: String,
    document: Value,
}

/// Why a target region lacks a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lack {
    /// Replication failed; Azure's reason.
    Failed(String),
    /// Azure says nothing of the region.
    Silent,
    /// Azure says something of the region that this program does not know.
    Unknown(String),
}

impl std::fmt::Display for Lack {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(reason) => formatter.write_str(reason),
            Self::Silent => formatter.write_str("Azure does not confirm that the region has it"),
            Self::Unknown(state) => write!(
                formatter,
                "Azure reports the state {state:?} for the region, which this program does not know"
            ),
        }
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

    /// The provisioning state; empty where Azure says none.
    pub(super) fn state(&self) -> &str {
        self.properties()["provisioningState"].as_str().unwrap_or_default()
    }

    fn is_in(&self, state: &str) -> bool {
        self.state().eq_ignore_ascii_case(state)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.is_in("Failed") || self.is_in("Canceled")
    }

    /// The last operation on it succeeded in all its regions.
    pub(super) fn has_succeeded(&self) -> bool {
        self.is_in("Succeeded") && !self.is_busy() && self.lacking().is_empty()
    }

    /// The tags, by names in lower case: Azure's names of tags have no case.
    pub(super) fn tags(&self) -> BTreeMap<String, String> {
        let tags = self.document["tags"].as_object().into_iter().flatten();
        tags.filter_map(|(name, value)| Some((name.to_lowercase(), value.as_str()?.to_owned())))
            .collect()
    }

    /// The program's own mark, where the version has one.
    pub(super) fn mark(&self) -> Option<Mark> {
        Mark::decode("", &self.tags())
    }

    /// Why the program must neither change nor delete the version.
    pub(super) fn hands_off(&self) -> Option<HandsOff> {
        let tags = self.tags();
        hands_off(&tags, tags.get("owner").map(String::as_str))
    }

    /// Checks that this is the image to be published. The previous service left no mark; its versions are known by name.
    ///
    /// # Errors
    ///
    /// Another owner, or another content.
    pub(super) fn fits(&self, mark: &Mark) -> Result<(), Error> {
        let tags = self.tags();
        let tag = |name: &str| tags.get(name).map(String::as_str);
        // Tags without a compose are not the program's mark, whatever else they say.
        let found = self.mark().and_then(|mark| mark.image_sha256);
        let expected = mark.image_sha256.clone().unwrap_or_default();
        match compare(tag("owner"), found.as_deref(), &expected) {
            Comparison::Same => Ok(()),
            Comparison::Foreign(owner) => Err(Error::Owned {
                name: self.name.clone(),
                owner,
            }),
            Comparison::OtherContent(found) => Err(Error::Taken {
                name: self.name.clone(),
                found,
                expected,
            }),
        }
    }

    /// Azure is creating, changing, or deleting it, or copying it to regions, and takes no change meanwhile.
    pub(super) fn is_busy(&self) -> bool {
        let is_final = self.state().is_empty() || self.is_in("Succeeded");
        if is_final {
            self.replicas().any(|(_, replica)| replica_is(replica, "Replicating"))
        } else {
            !self.has_failed()
        }
    }

    /// It failed in every region. A promoted version is not hopeless: users expect it, so it is repaired.
    pub(super) fn is_hopeless(&self) -> bool {
        self.has_failed() && self.complete().is_empty() && self.is_excluded()
    }

    /// Users in some region can have it, whatever happens in the others.
    pub(super) fn is_usable(&self) -> bool {
        !self.is_in("Deleting") && !self.complete().is_empty()
    }

    /// The target regions as Azure writes them; without any, Azure takes the version's own region.
    pub(super) fn targets(&self) -> Vec<Value> {
        match self.profile()["targetRegions"].as_array() {
            Some(targets) if !targets.is_empty() => targets.iter().map(|target| only(target, &TARGET)).collect(),
            _ => vec![json!({"name": self.document["location"]})],
        }
    }

    /// The target regions by canonical name.
    pub(super) fn target_names(&self) -> BTreeSet<String> {
        self.targets().iter().map(region_of).collect()
    }

    /// The regions that have it, by canonical name.
    pub(super) fn complete(&self) -> BTreeSet<String> {
        let states: BTreeMap<String, bool> = self
            .replicas()
            .map(|(region, replica)| (region, replica_is(replica, "Completed")))
            .collect();
        // A version that succeeded without any word on replicas is in every region.
        let unsaid = states.is_empty() && self.is_in("Succeeded");
        self.target_names()
            .into_iter()
            .filter(|region| states.get(region).copied().unwrap_or(unsaid))
            .collect()
    }

    /// The target regions that lack it, by canonical name, with the reason. Regions that Azure is still copying to are not
    /// among them.
    pub(super) fn lacking(&self) -> BTreeMap<String, Lack> {
        let replicas: BTreeMap<String, &Value> = self.replicas().collect();
        let complete = self.complete();
        let lack = |region: &String| match replicas.get(region) {
            None => Some(Lack::Silent),
            Some(replica) if replica_is(replica, "Replicating") => None,
            Some(replica) if replica_is(replica, "Failed") => {
                let details = quote(replica["details"].as_str().unwrap_or_default());
                let has_details = !details.is_empty();
                Some(Lack::Failed(if has_details { details } else { "it failed".to_owned() }))
            }
            Some(replica) => Some(match replica["state"].as_str() {
                None | Some("" | "Unknown") => Lack::Silent,
                Some(state) => Lack::Unknown(quote(state)),
            }),
        };
        self.target_names()
            .into_iter()
            .filter(|region| !complete.contains(region))
            .filter_map(|region| {
                let lack = lack(&region)?;
                Some((region, lack))
            })
            .collect()
    }

    /// Users get it only by its number.
    pub(super) fn is_excluded(&self) -> bool {
        self.profile()["excludeFromLatest"].as_bool().unwrap_or(false)
    }

    /// It is as it was when a decision to delete it was made, as far as that matters.
    pub(super) fn is_deletable_as(&self, judged: &Self) -> bool {
        self.tags() == judged.tags()
            && self.is_excluded() == judged.is_excluded()
            && self.end_of_life() == judged.end_of_life()
            && !self.is_busy()
    }

    /// The time of creation. `Err` holds a time that this program cannot read.
    pub(super) fn published(&self) -> Result<Option<Timestamp>, String> {
        let text = self.profile()["publishedDate"].as_str().unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        time(text).map(Some).ok_or_else(|| quote(text))
    }

    /// The end-of-life date, where there is one that this program can read.
    pub(super) fn end_of_life(&self) -> Option<Timestamp> {
        time(self.profile()["endOfLifeDate"].as_str()?)
    }

    /// The blob that the version was imported from.
    pub(super) fn source(&self) -> Option<&str> {
        self.properties()["storageProfile"]["osDiskImage"]["source"]["uri"].as_str()
    }

    /// The rows of the replication status, by the region's canonical name.
    fn replicas(&self) -> impl Iterator<Item = (String, &Value)> {
        let summary = self.properties()["replicationStatus"]["summary"].as_array();
        summary
            .into_iter()
            .flatten()
            .map(|replica| (canonical(replica["region"].as_str().unwrap_or_default()), replica))
    }

    /// The request that changes nothing.
    pub(super) fn as_it_is(&self) -> Value {
        self.with_targets(self.targets())
    }

    /// The request for other target regions. It leaves out members that only answers have.
    pub(super) fn with_targets(&self, targets: Vec<Value>) -> Value {
        let properties = self.properties();
        let mut profile = only(self.profile(), &PROFILE);
        profile["targetRegions"] = json!(targets);
        let mut storage = only(&properties["storageProfile"], &STORAGE);
        let disk = &properties["storageProfile"]["osDiskImage"];
        if !disk.is_null() {
            storage["osDiskImage"] = only(disk, &DISK);
            if !disk["source"].is_null() {
                storage["osDiskImage"]["source"] = only(&disk["source"], &SOURCE);
            }
        }
        // Regions that fail must be removed for the version to succeed.
        let mut safety = only(&properties["safetyProfile"], &["blockDeletionBeforeEndOfLife"]);
        safety["allowDeletionOfReplicatedLocations"] = json!(true);
        let tags: Map<String, Value> = self.document["tags"].as_object().cloned().unwrap_or_default();
        let tags: Map<String, Value> = tags.into_iter().filter(|(_, value)| value.is_string()).collect();
        json!({
            "location": self.document["location"],
            "tags": tags,
            "properties": {
                "publishingProfile": profile,
                "storageProfile": storage,
                "safetyProfile": safety,
            },
        })
    }
}

fn replica_is(replica: &Value, state: &str) -> bool {
    replica["state"]
        .as_str()
        .is_some_and(|found| found.eq_ignore_ascii_case(state))
}

/// A time with or without a fraction or an offset; without an offset it is UTC.
fn time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let without_offset = || Some(text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp());
    text.parse().ok().or_else(without_offset)
}

/// A copy of an object with these members, less those that are null.
fn only(value: &Value, names: &[&str]) -> Value {
    let mut object = value.as_object().cloned().unwrap_or_default();
    object.retain(|name, value| names.contains(&name.as_str()) && !value.is_null());
    Value::Object(object)
}

pub(super) fn region_of(target: &Value) -> String {
    canonical(target["name"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mark::OWNER;

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
    fn regions_match_by_either_of_their_names() {
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
                ("japaneast".to_owned(), Lack::Silent),
                ("westeurope".to_owned(), Lack::Failed("no room".to_owned()))
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
    fn a_request_has_no_members_of_answers() {
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

    #[test]
    fn an_unknown_provisioning_state_is_not_final() {
        for (state, busy, failed) in [
            ("Succeeded", false, false),
            ("succeeded", false, false),
            ("Failed", false, true),
            ("canceled", false, true),
            ("Creating", true, false),
            ("Validating", true, false),
            ("", false, false),
        ] {
            let found = version(state, &["East US"], &[("East US", "Completed")]);
            assert_eq!((found.is_busy(), found.has_failed()), (busy, failed), "{state}");
        }
    }

    #[test]
    fn a_region_has_the_version_only_if_azure_says_completed() {
        for (state, complete, lack) in [
            ("Completed", true, None),
            ("COMPLETED", true, None),
            ("Replicating", false, None),
            ("Ready", false, Some(Lack::Unknown("Ready".to_owned()))),
            ("Unknown", false, Some(Lack::Silent)),
            ("", false, Some(Lack::Silent)),
        ] {
            let found = version("Succeeded", &["East US"], &[("East US", state)]);
            assert_eq!(found.complete().len(), usize::from(complete), "{state}");
            assert_eq!(found.lacking().remove("eastus"), lack, "{state}");
        }
    }

    #[test]
    fn times_have_fractions_and_offsets_or_not() {
        for text in [
            "2025-01-01T00:00:00Z",
            "2025-01-01T00:00:00.0000000Z",
            "2025-01-01T00:00:00.000+00:00",
            "2025-01-01T01:00:00+01:00",
            "2025-01-01T00:00:00",
            "2025-01-01T00:00:00.000",
            "2025-01-01",
        ] {
            assert_eq!(time(text), "2025-01-01T00:00:00Z".parse().ok(), "{text}");
        }
        for text in ["", "soon", "01/02/2025 00:00:00"] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn hands_off_holds_in_any_letter_case() {
        for (name, value, expected) in [
            ("delete", "never", true),
            ("Delete", "Never", true),
            ("DELETE", "NEVER ", true),
            ("Owner", "CoreOS", true),
            ("owner", OWNER, false),
            ("delete", "later", false),
        ] {
            let found = Version::new("x".to_owned(), json!({"tags": {name: value}}));
            assert_eq!(found.hands_off().is_some(), expected, "{name}={value}");
        }
    }

    #[test]
    fn null_members_are_as_absent_ones() {
        let document = json!({"location": "eastus", "tags": null, "properties": {
            "provisioningState": "Succeeded",
            "publishingProfile": {"targetRegions": null, "endOfLifeDate": null, "replicaCount": null},
            "storageProfile": {"osDiskImage": {"hostCaching": null, "source": {"uri": "https://x", "id": null}}},
            "replicationStatus": null, "safetyProfile": null,
        }});
        let found = Version::new("x".to_owned(), document);
        assert_eq!(found.complete(), BTreeSet::from(["eastus".to_owned()]));
        assert_eq!(found.published(), Ok(None));
        assert_eq!(
            found.as_it_is(),
            json!({"location": "eastus", "tags": {}, "properties": {
                "publishingProfile": {"targetRegions": [{"name": "eastus"}]},
                "storageProfile": {"osDiskImage": {"source": {"uri": "https://x"}}},
                "safetyProfile": {"allowDeletionOfReplicatedLocations": true},
            }})
        );
    }
}
