//! The retention policy: which versions go, and why. It is that of the former service, and runs after each new image.
//!
//! Versions past their end of life go; of those excluded from latest the newest seven of a definition stay; of Rawhide's
//! definitions the newest seven stay, whatever they are. Whether a version may be touched at all comes before that: one that
//! has just been made may not, since somebody is being told of it.

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

/// How many versions are kept.
const KEPT: usize = 7;
/// No run removes more than this: what should not have gone must not all be gone at once.
const MOST: usize = 25;
/// Azure takes minutes to delete a version with replicas in thirty regions.
const AT_ONCE: usize = 5;
/// What another process, or another image's task in this one, has made no longer ago than this has just been made.
const SETTLED: SignedDuration = SignedDuration::from_hours(24);
/// What the names of our definitions begin with. The gallery has others, which are not even looked into.
const OURS: &str = "Fedora-Cloud-";
const RAWHIDE: &str = "Fedora-Cloud-Rawhide-";

/// What the policy is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// Versions that carry no mark may go too.
    pub(super) unmarked: bool,
    /// Now.
    pub(super) now: Timestamp,
}

/// What becomes of a version.
struct Judged {
    definition: String,
    name: String,
    goes: bool,
    reason: String,
    /// The version as it was judged.
    version: Version,
}

/// Reads all versions of our definitions, judges them, and removes what is to go, the oldest of each definition first.
/// `made` are new ones, whatever Azure says of their age.
///
/// # Errors
///
/// A list that could not be read in full. Nothing was removed then.
pub(super) async fn run(
    gallery: &Gallery,
    policy: Policy,
    made: &[(&str, &str)],
    dry_run: bool,
) -> Result<Retired, Failure> {
    let mut judged = Vec::new();
    for (definition, versions) in read(gallery).await? {
        judged.extend(policy.judge(&definition, &versions, made));
    }
    let mut going = 0;
    let mut work = Vec::new();
    for judged in judged {
        going += usize::from(judged.goes);
        let in_turn = going <= MOST;
        work.push(async move {
            let action = match (judged.goes, in_turn) {
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

/// Every version of every definition of ours.
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
    /// Judges the versions of a definition, the oldest first.
    fn judge(&self, definition: &str, versions: &[Version], made: &[(&str, &str)]) -> Vec<Judged> {
        let mut ordered: Vec<(Option<[u32; 3]>, &Version)> = versions
            .iter()
            .map(|version| (numbers(&version.name), version))
            .collect();
        ordered.sort_by(|one, other| one.0.cmp(&other.0).then_with(|| one.1.name.cmp(&other.1.name)));
        let rawhide = definition.starts_with(RAWHIDE);
        // Of those that count, how many newer ones there are.
        let mut newer = 0;
        let mut judged: Vec<Judged> = ordered
            .iter()
            .rev()
            .map(|(numbers, version)| {
                let is_made = made.contains(&(definition, version.name.as_str())) || self.is_new(version);
                let past = version.end_of_life().filter(|end| *end < self.now && !is_made);
                let counted = past.is_none() && (rawhide || version.is_excluded());
                let rank = newer;
                newer += usize::from(counted);
                let (goes, reason) = if let Some(reason) = self.protects(version, numbers.is_none(), is_made) {
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
                    goes,
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

    /// Why a version stays, whatever its age.
    fn protects(&self, version: &Version, is_odd: bool, is_made: bool) -> Option<String> {
        if is_made {
            return Some("it has just been made".to_owned());
        }
        if let Some(reason) = version.hands_off() {
            return Some(reason);
        }
        if version.is_busy() {
            return Some("it is being made, changed, or deleted".to_owned());
        }
        if is_odd {
            return Some("its name is not three integers, so nobody can say how old it is".to_owned());
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

/// The three integers of a version's name, which order versions as Azure does.
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

    /// The names of what goes.
    fn gone(policy: Policy, definition: &str, versions: &[Version], made: &[(&str, &str)]) -> Vec<String> {
        let judged = policy.judge(definition, versions, made);
        assert_eq!(judged.len(), versions.len(), "each is told of");
        judged
            .into_iter()
            .filter(|judged| judged.goes)
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
    fn the_newest_seven_of_the_excluded_stay() {
        assert!(gone(policy(false), STABLE, &days(7, |_| true), &[]).is_empty());
        assert_eq!(
            gone(policy(false), STABLE, &days(9, |_| true), &[]),
            ["43.20251001.0", "43.20251002.0"]
        );
        // Promoted ones stay, and do not count.
        let odd = days(20, |day| day % 2 == 1);
        assert_eq!(
            gone(policy(false), STABLE, &odd, &[]),
            ["43.20251001.0", "43.20251003.0", "43.20251005.0"]
        );
        assert!(gone(policy(false), STABLE, &days(30, |_| false), &[]).is_empty());
    }

    #[test]
    fn of_rawhide_the_newest_seven_stay_whatever_they_are() {
        let mixed = days(9, |day| day % 2 == 1);
        assert_eq!(
            gone(policy(false), RAWHIDE_ARM, &mixed, &[]),
            ["43.20251001.0", "43.20251002.0"]
        );
    }

    #[test]
    fn versions_are_ordered_as_numbers() {
        let names = ["43.20251001.10", "43.20251001.9", "9.20251001.0", "43.20251001.100"];
        let versions: Vec<_> = names.iter().map(|name| version(name, ours(), true, YOUNG)).collect();
        let judged = policy(false).judge(STABLE, &versions, &[]);
        let ordered: Vec<_> = judged.iter().map(|judged| judged.name.as_str()).collect();
        assert_eq!(
            ordered,
            ["9.20251001.0", "43.20251001.9", "43.20251001.10", "43.20251001.100"]
        );
    }

    #[test]
    fn past_its_end_of_life_a_version_goes_and_does_not_count() {
        let mut versions = days(7, |_| true);
        versions.push(version("43.20251020.0", ours(), true, OLD));
        versions.push(version("43.20251021.0", ours(), false, OLD));
        assert_eq!(
            gone(policy(false), STABLE, &versions, &[]),
            ["43.20251020.0", "43.20251021.0"]
        );
        // The one just made stays and counts.
        let made = [(STABLE, "43.20251020.0")];
        assert_eq!(
            gone(policy(false), STABLE, &versions, &made),
            ["43.20251001.0", "43.20251021.0"]
        );
        let elsewhere = [("Fedora-Cloud-43-Arm64", "43.20251020.0")];
        assert_eq!(gone(policy(false), STABLE, &versions, &elsewhere).len(), 2);
    }

    #[test]
    fn what_was_made_within_a_day_stays_and_counts() {
        for (published, gone_names) in [
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
            assert_eq!(gone(policy(false), STABLE, &versions, &[]), gone_names, "{published:?}");
        }
    }

    #[test]
    fn what_is_not_ours_is_not_touched() {
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
                "delete=NEVER",
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
            (busy, [false, false], "being made"),
            (
                version("43.20251001.0", ours(), true, OLD),
                [true, true],
                "past its end of life, 2025-10-31",
            ),
            (version("43.20251001.0", ours(), true, ""), [false, false], "newest 7"),
        ];
        for (version, goes, reason) in table {
            for (unmarked, goes) in [false, true].into_iter().zip(goes) {
                let judged = policy(unmarked)
                    .judge(STABLE, std::slice::from_ref(&version), &[])
                    .remove(0);
                assert_eq!(judged.goes, goes, "{version:?} {unmarked}");
                if unmarked == goes || !unmarked {
                    assert!(!judged.reason.is_empty());
                }
                if !goes && !unmarked {
                    assert!(judged.reason.contains(reason), "{reason}: {}", judged.reason);
                }
            }
        }
    }
}
