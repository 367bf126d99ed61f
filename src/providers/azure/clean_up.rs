//! The retention policy: which versions are deleted, and why. It is that of the previous service.
//!
//! Versions past their end of life are deleted; of those excluded from latest the newest seven of a definition are kept; of
//! Rawhide's definitions the newest seven are kept, excluded or not. Protected versions come before all that. A new version is
//! protected because its announcement may still be under way.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};

use super::error::Error;
use super::gallery::Gallery;
use super::slot::Slot;
use super::version::Version;
use crate::base::failure::Failure;
use crate::base::metrics;
use crate::providers::contract::{Action, Decision, Retired};

/// Versions kept of each definition.
const KEPT: usize = 7;
/// Upper bound on the deletions of one run, so that a mistake does not delete everything at once.
const MOST: usize = 25;
/// Azure takes minutes to delete a version with replicas in thirty regions.
const AT_ONCE: usize = 5;
/// Versions younger than this are never deleted, whichever process created them.
const SETTLED: SignedDuration = SignedDuration::from_hours(24);
/// Prefix of the names of our definitions. The gallery has others, which the policy does not read.
const OURS: &str = "Fedora-Cloud-";
const RAWHIDE: &str = "Fedora-Cloud-Rawhide-";

/// The parameters of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// Versions without a mark may be deleted too.
    pub(super) unmarked: bool,
    /// The time that ages are measured at.
    pub(super) now: Timestamp,
}

/// A version, and the decision about it.
struct Judged {
    definition: String,
    name: String,
    is_deleted: bool,
    reason: String,
    /// The version as it was judged.
    version: Version,
}

/// Reads all versions of our definitions, decides about each, and deletes, the oldest of each definition first.
///
/// # Errors
///
/// A list that could not be read in full. Nothing was deleted then.
pub(super) async fn run(gallery: &Gallery, policy: Policy, dry_run: bool) -> Result<Retired, Failure> {
    let mut judged = Vec::new();
    for (definition, versions) in read(gallery).await? {
        judged.extend(policy.judge(&definition, &versions));
    }
    let mut deletions = 0;
    let mut work = Vec::new();
    for judged in judged {
        deletions += usize::from(judged.is_deleted);
        let in_turn = deletions <= MOST;
        work.push(async move {
            let action = match (judged.is_deleted, in_turn) {
                (false, _) => Action::Stays,
                (true, false) => Action::GoesLater,
                (true, true) if dry_run => Action::Goes,
                (true, true) => remove(gallery, &judged).await,
            };
            Decision {
                name: format!("{}/{}", judged.definition, judged.name),
                action,
                reason: judged.reason,
            }
        });
    }
    let decisions = stream::iter(work).buffered(AT_ONCE).collect().await;
    Ok(Retired { decisions })
}

/// All versions of our definitions, by definition.
async fn read(gallery: &Gallery) -> Result<BTreeMap<String, Vec<Version>>, Error> {
    let mut found = BTreeMap::new();
    if gallery.look().await?.is_none() {
        return Ok(found);
    }
    for definition in gallery.definitions().await? {
        let what = "list the image definitions of the gallery";
        let name = definition["name"]
            .as_str()
            .ok_or_else(|| Error::odd(what, "one without a name"))?;
        if !name.starts_with(OURS) {
            continue;
        }
        let what = format!("list the versions of {name}");
        let path = format!("{}/versions", gallery.definition_path(name));
        let mut versions = Vec::new();
        for document in gallery.arm().list(&what, &path).await? {
            let version = document["name"].as_str().map(str::to_owned);
            let version = version.ok_or_else(|| Error::odd(&what, "one without a name"))?;
            versions.push(Version::new(version, document));
        }
        found.insert(name.to_owned(), versions);
    }
    Ok(found)
}

async fn remove(gallery: &Gallery, judged: &Judged) -> Action {
    let slot = Slot {
        gallery,
        definition: &judged.definition,
        version: &judged.name,
    };
    let deleted = async {
        // The version may have been promoted or tagged since the list was read.
        match slot.look().await? {
            Some(found) if found.is_deletable_as(&judged.version) => slot.delete().await,
            Some(_) => Err(Error::Changed {
                what: format!("delete {}", slot.name()),
            }),
            None => Ok(()),
        }
    };
    match deleted.await {
        Ok(()) => {
            tracing::info!("retired {}: {}", slot.name(), judged.reason);
            metrics::retired();
            Action::Goes
        }
        Err(error) => Action::Failed(error.into()),
    }
}

impl Policy {
    /// Decides about the versions of a definition, the oldest first.
    fn judge(&self, definition: &str, versions: &[Version]) -> Vec<Judged> {
        let mut ordered: Vec<(Option<[u32; 3]>, &Version)> = versions
            .iter()
            .map(|version| (numbers(&version.name), version))
            .collect();
        ordered.sort_by(|one, other| one.0.cmp(&other.0).then_with(|| one.1.name.cmp(&other.1.name)));
        let rawhide = definition.starts_with(RAWHIDE);
        // The number of newer versions that count.
        let mut newer = 0;
        let mut judged: Vec<Judged> = ordered
            .iter()
            .rev()
            .map(|(numbers, version)| {
                let is_new = self.is_new(version);
                let past = version.end_of_life().filter(|end| *end < self.now && !is_new);
                let counted = past.is_none() && (rawhide || version.is_excluded());
                let rank = newer;
                newer += usize::from(counted);
                let (is_deleted, reason) = if let Some(reason) = self.protects(version, numbers.is_none(), is_new) {
                    (false, reason)
                } else if let Some(end) = past {
                    (true, format!("past its end of life, {}", end.strftime("%Y-%m-%d")))
                } else if !counted {
                    (false, "it is promoted: users get it as the latest".to_owned())
                } else if rank < KEPT {
                    (false, format!("among the newest {KEPT} {}", of_what(rawhide)))
                } else {
                    (true, format!("{rank} newer ones {}", of_what(rawhide)))
                };
                Judged {
                    definition: definition.to_owned(),
                    name: version.name.clone(),
                    is_deleted,
                    reason,
                    version: (*version).clone(),
                }
            })
            .collect();
        judged.reverse();
        judged
    }

    fn is_new(&self, version: &Version) -> bool {
        match version.published() {
            Ok(published) => published.is_some_and(|published| self.now.duration_since(published) < SETTLED),
            // A time that cannot be read is no proof of age.
            Err(_) => true,
        }
    }

    /// Why a version is kept, whatever its age.
    fn protects(&self, version: &Version, is_odd: bool, is_new: bool) -> Option<String> {
        if is_new {
            return Some("it is less than a day old".to_owned());
        }
        if let Some(reason) = version.hands_off() {
            return Some(reason.to_string());
        }
        if version.is_busy() {
            return Some("Azure is creating, changing, or deleting it".to_owned());
        }
        if is_odd {
            return Some("its name is not three integers, so its order is unknown".to_owned());
        }
        if version.mark().is_none() && !self.unmarked {
            return Some("it has no mark of this program (see clean_up_unmarked)".to_owned());
        }
        None
    }
}

fn of_what(rawhide: bool) -> &'static str {
    if rawhide { "of Rawhide" } else { "excluded from latest" }
}

/// The three integers of a version's name, by which Azure orders versions.
fn numbers(name: &str) -> Option<[u32; 3]> {
    let numbers: Option<Vec<u32>> = name.split('.').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2025-11-01T12:00:00Z";
    const OLD: &str = "2025-10-31T00:00:00Z";
    const YOUNG: &str = "2026-05-13T00:00:00Z";

    fn policy(unmarked: bool) -> Policy {
        Policy {
            unmarked,
            now: NOW.parse().unwrap(),
        }
    }

    fn ours() -> Value {
        json!({"owner": "cloud-image-uploader", "compose-id": "Fedora-43-20251023.0", "image-sha256": "00"})
    }

    fn version(name: &str, tags: Value, excluded: bool, end: &str) -> Version {
        let document = json!({"name": name, "tags": tags, "properties": {
            "provisioningState": "Succeeded",
            "publishingProfile": {"excludeFromLatest": excluded, "endOfLifeDate": end},
        }});
        Version::new(name.to_owned(), document)
    }

    /// The names of the versions that are deleted.
    fn deleted(policy: Policy, definition: &str, versions: &[Version]) -> Vec<String> {
        let judged = policy.judge(definition, versions);
        assert_eq!(judged.len(), versions.len(), "each has a decision");
        judged
            .into_iter()
            .filter(|judged| judged.is_deleted)
            .map(|judged| judged.name)
            .collect()
    }

    const STABLE: &str = "Fedora-Cloud-43-x64";
    const RAWHIDE_ARM: &str = "Fedora-Cloud-Rawhide-Arm64";

    fn days(count: u32, excluded: impl Fn(u32) -> bool) -> Vec<Version> {
        (1..=count)
            .map(|day| version(&format!("43.202510{day:02}.0"), ours(), excluded(day), YOUNG))
            .collect()
    }

    #[test]
    fn the_newest_seven_excluded_versions_are_kept() {
        assert!(deleted(policy(false), STABLE, &days(7, |_| true)).is_empty());
        assert_eq!(
            deleted(policy(false), STABLE, &days(9, |_| true)),
            ["43.20251001.0", "43.20251002.0"]
        );
        // Promoted versions are kept, and do not count.
        let odd = days(20, |day| day % 2 == 1);
        assert_eq!(
            deleted(policy(false), STABLE, &odd),
            ["43.20251001.0", "43.20251003.0", "43.20251005.0"]
        );
        assert!(deleted(policy(false), STABLE, &days(30, |_| false)).is_empty());
    }

    #[test]
    fn the_newest_seven_versions_of_rawhide_are_kept() {
        let mixed = days(9, |day| day % 2 == 1);
        assert_eq!(
            deleted(policy(false), RAWHIDE_ARM, &mixed),
            ["43.20251001.0", "43.20251002.0"]
        );
    }

    #[test]
    fn versions_are_ordered_by_number() {
        let names = ["43.20251001.10", "43.20251001.9", "9.20251001.0", "43.20251001.100"];
        let versions: Vec<_> = names.iter().map(|name| version(name, ours(), true, YOUNG)).collect();
        let judged = policy(false).judge(STABLE, &versions);
        let ordered: Vec<_> = judged.iter().map(|judged| judged.name.as_str()).collect();
        assert_eq!(
            ordered,
            ["9.20251001.0", "43.20251001.9", "43.20251001.10", "43.20251001.100"]
        );
    }

    #[test]
    fn a_version_past_its_end_of_life_is_deleted_and_does_not_count() {
        let mut versions = days(7, |_| true);
        versions.push(version("43.20251020.0", ours(), true, OLD));
        versions.push(version("43.20251021.0", ours(), false, OLD));
        assert_eq!(
            deleted(policy(false), STABLE, &versions),
            ["43.20251020.0", "43.20251021.0"]
        );
    }

    #[test]
    fn a_version_created_within_a_day_is_kept_and_counts() {
        for (published, expected) in [
            ("2025-11-01T11:00:00Z", &["43.20251001.0"][..]),
            ("2025-10-31T13:00:00Z", &["43.20251001.0"]),
            ("2025-10-31T11:00:00Z", &["43.20251020.0"]),
            ("2025-11-01T11:00:00.1234567", &["43.20251001.0"]),
            ("an hour ago", &["43.20251001.0"]),
            ("", &["43.20251020.0"]),
        ] {
            let mut versions = days(7, |_| true);
            let document = json!({"tags": ours(), "properties": {
                "provisioningState": "Succeeded",
                "publishingProfile": {"excludeFromLatest": true, "endOfLifeDate": OLD, "publishedDate": published},
            }});
            versions.push(Version::new("43.20251020.0".to_owned(), document));
            assert_eq!(deleted(policy(false), STABLE, &versions), expected, "{published:?}");
        }
    }

    #[test]
    fn protected_versions_are_kept() {
        let mut busy = version("43.20251001.0", ours(), true, OLD);
        busy = Version::new(
            busy.name,
            json!({"tags": ours(), "properties": {
                "provisioningState": "Creating", "publishingProfile": {"excludeFromLatest": true, "endOfLifeDate": OLD},
            }}),
        );
        let mut never = ours();
        never["Delete"] = json!("NEVER");
        let table = [
            (
                version("43.20251001.0", json!({"owner": "CoreOS"}), true, OLD),
                [false, false],
                "belongs to CoreOS",
            ),
            (
                version("43.20251001.0", never, true, OLD),
                [false, false],
                "delete=never",
            ),
            (
                version("43.20251001.0", json!({"delete": "never"}), true, OLD),
                [false, false],
                "delete=never",
            ),
            (
                version("43.20251001.0", Value::Null, true, OLD),
                [false, true],
                "no mark",
            ),
            (
                version("43.20251001.0", json!({"team": "x"}), true, OLD),
                [false, true],
                "no mark",
            ),
            (version("latest", ours(), true, OLD), [false, false], "three integers"),
            (busy, [false, false], "Azure is creating"),
            (
                version("43.20251001.0", ours(), true, OLD),
                [true, true],
                "past its end of life, 2025-10-31",
            ),
            (version("43.20251001.0", ours(), true, ""), [false, false], "newest 7"),
        ];
        for (version, expected, reason) in table {
            for (unmarked, expected) in [false, true].into_iter().zip(expected) {
                let judged = policy(unmarked).judge(STABLE, std::slice::from_ref(&version)).remove(0);
                assert_eq!(judged.is_deleted, expected, "{version:?} {unmarked}");
                if unmarked == expected || !unmarked {
                    assert!(!judged.reason.is_empty());
                }
                if !expected && !unmarked {
                    assert!(judged.reason.contains(reason), "{reason}: {}", judged.reason);
                }
            }
        }
    }
}
