//! Snapshots: found by their tags, copied, waited for, and deleted when no image uses them.
//!
//! A copy gets its tags from the call that creates it, so a later process finds it. CopySnapshot takes no token: after a lost
//! answer, the program looks for the copy.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{ResourceType, Snapshot as Described, SnapshotState};

use super::client::{Region, call, pages};
use super::codes::is_busy;
use super::error::Error;
use super::spec::{AmiSpec, CREATED_BY, CreatedBy, hands_off, specification, tags_of};
use crate::base::failure::{Classified, reason};
use crate::base::retry::Policy;
use crate::providers::poll::{Look, Pace, Status, until};

/// The code for a snapshot that does not exist, or is not visible yet.
pub(super) const UNKNOWN: &str = "InvalidSnapshot.NotFound";
/// The longest time for which EC2 may not show a new snapshot.
const VISIBILITY_DELAY: Duration = Duration::from_secs(2 * 60);
/// The longest wait for a copy. Copies to far regions took two hours. A later process finds the copy by its tags.
const LONGEST: Duration = Duration::from_secs(4 * 60 * 60);
/// The number of looks, about six seconds in all, within which a copy shows whose answer was lost.
const LOOKS: u32 = 20;

/// The attributes of a snapshot that publishing needs.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) id: String,
    pub(super) state: SnapshotState,
    /// The reason for the state, with a colon before it.
    reason: String,
    /// The progress as EC2 writes it: `45%`.
    progress: String,
    /// The size in GiB.
    pub(super) size: i32,
    pub(super) tags: BTreeMap<String, String>,
    started: i64,
}

impl Snapshot {
    /// `None` for a snapshot in the Recycle Bin, which counts as deleted.
    fn parse(found: &Described) -> Option<Self> {
        let state = found.state().cloned().unwrap_or(SnapshotState::Pending);
        if matches!(state, SnapshotState::Recoverable | SnapshotState::Recovering) {
            return None;
        }
        Some(Self {
            id: found.snapshot_id().unwrap_or_default().to_owned(),
            state,
            reason: reason(found.state_message().unwrap_or_default()),
            progress: found
                .progress()
                .filter(|text| !text.is_empty())
                .unwrap_or("0%")
                .to_owned(),
            size: found.volume_size().unwrap_or_default(),
            tags: tags_of(found.tags()),
            started: found.start_time().map_or(i64::MAX, |time| time.secs()),
        })
    }

    pub(super) fn is_completed(&self) -> bool {
        self.state == SnapshotState::Completed
    }

    /// Reports whether it may still become complete. An unknown state counts as pending.
    pub(super) fn is_pending(&self) -> bool {
        !self.is_completed() && !self.is_failed()
    }

    /// Reports whether it will never be complete.
    pub(super) fn is_failed(&self) -> bool {
        self.state == SnapshotState::Error
    }

    /// Reports whether it is complete, or a copy in progress, which AWS completes by itself.
    pub(super) fn is_usable(&self) -> bool {
        self.is_completed() || (self.is_pending() && self.is_created_by(CreatedBy::Copy))
    }

    /// Reports whether it was created by this method.
    pub(super) fn is_created_by(&self, made: CreatedBy) -> bool {
        self.tags.get(CREATED_BY).is_some_and(|found| found == made.as_str())
    }

    fn failure(&self, region: &Region) -> Error {
        Error::SnapshotFailed {
            snapshot: self.id.clone(),
            region: region.name.clone(),
            state: self.state.as_str().to_owned(),
            reason: self.reason.clone(),
        }
    }
}

/// All snapshots of this image that carry our mark: complete ones first, then the older ones, so that every process takes
/// the same one.
pub(super) async fn find(region: &Region, spec: &AmiSpec) -> Result<Vec<Snapshot>, Error> {
    let what = format!("look for snapshots of {} in {}", spec.name, region.name);
    let mut found = pages(&what, async |token: Option<String>| {
        let answer = call("DescribeSnapshots", &what, || {
            region
                .ec2
                .describe_snapshots()
                .owner_ids("self")
                .set_filters(Some(spec.filters()))
                .set_next_token(token.clone())
                .send()
        })
        .await?;
        let found = answer.snapshots().iter().filter_map(Snapshot::parse);
        Ok((found.collect::<Vec<_>>(), answer.next_token().map(str::to_owned)))
    })
    .await?;
    found.sort_by_key(|snapshot| {
        (
            !snapshot.is_completed(),
            !snapshot.is_pending(),
            snapshot.started,
            snapshot.id.clone(),
        )
    });
    Ok(found)
}

/// Reads one snapshot; `None` if EC2 does not show it.
pub(super) async fn read(region: &Region, id: &str) -> Result<Option<Snapshot>, Error> {
    let what = format!("read {id} in {}", region.name);
    let answer = call("DescribeSnapshots", &what, || async {
        match region.ec2.describe_snapshots().snapshot_ids(id).send().await {
            // A missing snapshot is a result, not a failure to retry.
            Err(error) if Error::is(&error, UNKNOWN) => Ok(None),
            answer => answer.map(Some),
        }
    });
    Ok(answer
        .await?
        .and_then(|answer| answer.snapshots().first().and_then(Snapshot::parse)))
}

/// Waits until a snapshot is complete.
pub(super) async fn completed(region: &Region, id: &str, status: &Status) -> Result<Snapshot, Error> {
    let what = format!("complete {id} in {}", region.name);
    let started = Instant::now();
    let seen = AtomicBool::new(false);
    let look = || async {
        let Some(snapshot) = read(region, id).await? else {
            // Another process may have deleted it as an orphan.
            if seen.load(Ordering::Relaxed) || started.elapsed() >= VISIBILITY_DELAY {
                return Err(deleted(region, id));
            }
            return Ok(Look::Wait(format!("{id} is not visible yet")));
        };
        seen.store(true, Ordering::Relaxed);
        if snapshot.is_failed() {
            return Err(snapshot.failure(region));
        }
        Ok(match snapshot.is_completed() {
            true => Look::Done(snapshot),
            false => Look::Wait(format!("{id} is at {}", snapshot.progress)),
        })
    };
    until(&what, LONGEST, status, look).await
}

/// The error for a snapshot that existed and no longer does.
pub(super) fn deleted(region: &Region, id: &str) -> Error {
    Error::SnapshotFailed {
        snapshot: id.to_owned(),
        region: region.name.clone(),
        state: "deleted".to_owned(),
        reason: String::new(),
    }
}

/// Starts a copy, and returns its id. Waits while the region has too many copies in progress.
pub(super) async fn copy(from: &str, id: &str, to: &Region, spec: &AmiSpec, status: &Status) -> Result<String, Error> {
    let what = format!("copy {id} from {from} to {}", to.name);
    let mut waits = Policy::CALL.start("CopySnapshot");
    let mut pace = Pace::within(LONGEST);
    loop {
        let tags = spec.tags_of_snapshot(CreatedBy::Copy);
        let copied = to
            .ec2
            .copy_snapshot()
            .source_region(from)
            .source_snapshot_id(id)
            .description(&spec.description)
            .tag_specifications(specification(ResourceType::Snapshot, &tags))
            .send()
            .await;
        let error = match copied {
            Ok(answer) => match answer.snapshot_id() {
                Some(id) => return Ok(id.to_owned()),
                None => Error::lacking(&what, "snapshot id"),
            },
            Err(error) => Error::of("CopySnapshot", &what, error),
        };
        // https://docs.aws.amazon.com/general/latest/gr/ebs-service.html: 20 for each destination, not adjustable.
        if error.code().is_some_and(|code| is_busy("CopySnapshot", code)) {
            status.set(format!("{} has too many copies in progress", to.name));
            pace.pause(&what, None).await?;
            continue;
        }
        if error.may_have_taken_effect()
            && let Some(found) = settle(to, spec).await?
        {
            return Ok(found);
        }
        let Some(wait) = waits.after(error.class()) else {
            return Err(error);
        };
        tracing::debug!(%error, wait_ms = wait.as_millis(), "trying again");
        tokio::time::sleep(wait).await;
    }
}

/// Looks for a copy that a call with a lost answer has started.
async fn settle(region: &Region, spec: &AmiSpec) -> Result<Option<String>, Error> {
    let mut pace = Pace::within(LONGEST);
    for _ in 0..LOOKS {
        let found = find(region, spec).await?;
        if let Some(found) = found
            .into_iter()
            .find(|found| found.is_completed() || found.is_pending())
        {
            return Ok(Some(found.id));
        }
        pace.pause("find the copy", None).await?;
    }
    Ok(None)
}

/// Deletes a snapshot, unless an operator keeps it; a failure is only logged.
pub(super) async fn delete(region: &Region, id: &str) {
    let what = format!("delete {id} in {}", region.name);
    match read(region, id).await {
        Ok(None) => return,
        Ok(Some(found)) => {
            if let Some(reason) = hands_off(&found.tags) {
                tracing::info!(region = region.name, "{id} in {} is kept: {reason}", region.name);
                return;
            }
        }
        Err(error) => {
            tracing::warn!(region = region.name, "failed to {what}: {error}; left over");
            return;
        }
    }
    let deleted = call("DeleteSnapshot", &what, || async {
        match region.ec2.delete_snapshot().snapshot_id(id).send().await {
            Err(error) if Error::is(&error, UNKNOWN) => Ok(()),
            answer => answer.map(drop),
        }
    })
    .await;
    match deleted {
        Ok(()) => tracing::info!(region = region.name, "deleted {id} in {}", region.name),
        // An image uses the snapshot, so it is needed.
        Err(error) if error.code() == Some("InvalidSnapshot.InUse") => {}
        Err(error) => tracing::warn!(region = region.name, "failed to {error}; left over"),
    }
}

/// Deletes our snapshots of this image that the finished image does not use. Two processes that work on the same image may
/// each have created one. The process that registers its image first decides which snapshot is kept in the region; the other
/// process notices when it looks again.
pub(super) async fn delete_orphans(region: &Region, spec: &AmiSpec, used: &[String]) {
    let found = match find(region, spec).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(region = region.name, "failed to {error}; orphans are kept");
            return;
        }
    };
    for orphan in found.iter().filter(|snapshot| !used.contains(&snapshot.id)) {
        delete(region, &orphan.id).await;
    }
}
