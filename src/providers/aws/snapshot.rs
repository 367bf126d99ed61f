//! Snapshots: found by their tags, copied, waited for, and those that nobody needs deleted.
//!
//! A copy is tagged as it is made, so that whoever comes later finds it. CopySnapshot takes no token: a call whose answer
//! was lost is settled by looking.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{ResourceType, Snapshot as Described, SnapshotState};

use super::client::{Region, call};
use super::error::Error;
use super::wanted::{MADE_BY, Made, Wanted, is_kept, read, specification};
use crate::base::failure::{Classified, reason};
use crate::base::retry::Policy;
use crate::providers::poll::{Look, Pace, Status, until};

/// EC2's word for a snapshot that is not there, or not yet.
pub(super) const UNKNOWN: &str = "InvalidSnapshot.NotFound";
/// What was just made may not be seen for so long.
const UNSEEN: Duration = Duration::from_secs(2 * 60);
/// Copies to far regions were seen to take two hours. Whoever comes later finds the copy.
const LONGEST: Duration = Duration::from_secs(4 * 60 * 60);
/// A copy whose answer was lost shows within so many looks, about six seconds, or was not begun.
const LOOKS: u32 = 20;

/// A snapshot, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) id: String,
    pub(super) state: SnapshotState,
    /// Why it is in that state, with a colon before it.
    reason: String,
    /// As EC2 says it: `45%`.
    progress: String,
    /// In GiB.
    pub(super) size: i32,
    pub(super) tags: BTreeMap<String, String>,
    started: i64,
}

impl Snapshot {
    fn parse(found: &Described) -> Self {
        Self {
            id: found.snapshot_id().unwrap_or_default().to_owned(),
            state: found.state().cloned().unwrap_or(SnapshotState::Pending),
            reason: reason(found.state_message().unwrap_or_default()),
            progress: found
                .progress()
                .filter(|text| !text.is_empty())
                .unwrap_or("0%")
                .to_owned(),
            size: found.volume_size().unwrap_or_default(),
            tags: read(found.tags()),
            started: found.start_time().map_or(i64::MAX, |time| time.secs()),
        }
    }

    pub(super) fn is_completed(&self) -> bool {
        self.state == SnapshotState::Completed
    }

    pub(super) fn is_pending(&self) -> bool {
        self.state == SnapshotState::Pending
    }

    /// Whether it will never be complete.
    pub(super) fn is_spoilt(&self) -> bool {
        !self.is_completed() && !self.is_pending()
    }

    /// Whether nothing has to be done for it any more: it is complete, or a copy on its way.
    pub(super) fn is_usable(&self) -> bool {
        self.is_completed() || (self.is_pending() && self.is_made(Made::Copy))
    }

    /// Whether it was made in this way.
    pub(super) fn is_made(&self, made: Made) -> bool {
        self.tags.get(MADE_BY).is_some_and(|found| found == made.as_str())
    }

    fn spoilt(&self, region: &Region) -> Error {
        Error::Spoilt {
            snapshot: self.id.clone(),
            region: region.name.clone(),
            state: self.state.as_str().to_owned(),
            reason: self.reason.clone(),
        }
    }
}

/// All snapshots of ours for this image. Those that are complete come first, then the older ones: everybody who looks
/// takes the same.
pub(super) async fn find(region: &Region, wanted: &Wanted) -> Result<Vec<Snapshot>, Error> {
    let what = format!("look for snapshots of {} in {}", wanted.name, region.name);
    let mut found = Vec::new();
    let mut page: Option<String> = None;
    loop {
        let answer = call("DescribeSnapshots", &what, || {
            region
                .ec2
                .describe_snapshots()
                .owner_ids("self")
                .set_filters(Some(wanted.filters()))
                .set_next_token(page.clone())
                .send()
        })
        .await?;
        found.extend(answer.snapshots().iter().map(Snapshot::parse));
        page = answer.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        if page.is_none() {
            break;
        }
    }
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

/// One snapshot; `None` if it is not seen.
pub(super) async fn again(region: &Region, id: &str) -> Result<Option<Snapshot>, Error> {
    let what = format!("read {id} in {}", region.name);
    let read = call("DescribeSnapshots", &what, || async {
        match region.ec2.describe_snapshots().snapshot_ids(id).send().await {
            // Not a failure here, and nothing to be tried again.
            Err(error) if Error::is(&error, UNKNOWN) => Ok(None),
            answer => answer.map(Some),
        }
    });
    Ok(read
        .await?
        .and_then(|answer| answer.snapshots().first().map(Snapshot::parse)))
}

/// Waits until a snapshot can be used.
pub(super) async fn completed(region: &Region, id: &str, status: &Status) -> Result<Snapshot, Error> {
    let what = format!("complete {id} in {}", region.name);
    let started = Instant::now();
    let seen = AtomicBool::new(false);
    let look = || async {
        let Some(snapshot) = again(region, id).await? else {
            // Another process may have deleted it as a spare one.
            if seen.load(Ordering::Relaxed) || started.elapsed() >= UNSEEN {
                return Err(deleted(region, id));
            }
            return Ok(Look::Wait(format!("{id} is not seen yet")));
        };
        seen.store(true, Ordering::Relaxed);
        if snapshot.is_spoilt() {
            return Err(snapshot.spoilt(region));
        }
        Ok(match snapshot.is_completed() {
            true => Look::Done(snapshot),
            false => Look::Wait(format!("{id} is at {}", snapshot.progress)),
        })
    };
    until(&what, LONGEST, status, look).await
}

/// What to say of a snapshot that was there.
pub(super) fn deleted(region: &Region, id: &str) -> Error {
    Error::Spoilt {
        snapshot: id.to_owned(),
        region: region.name.clone(),
        state: "deleted".to_owned(),
        reason: String::new(),
    }
}

/// Begins a copy, and returns its id. A region that has its fill of copies is waited for.
pub(super) async fn copy(from: &str, id: &str, to: &Region, wanted: &Wanted, status: &Status) -> Result<String, Error> {
    let what = format!("copy {id} from {from} to {}", to.name);
    let mut waits = Policy::CALL.start("CopySnapshot");
    let mut pace = Pace::within(LONGEST);
    loop {
        let tags = wanted.tags_of_snapshot(Made::Copy);
        let copied = to
            .ec2
            .copy_snapshot()
            .source_region(from)
            .source_snapshot_id(id)
            .description(&wanted.description)
            .tag_specifications(specification(ResourceType::Snapshot, &tags))
            .send()
            .await;
        let error = match copied {
            Ok(answer) => match answer.snapshot_id() {
                Some(id) => return Ok(id.to_owned()),
                None => Error::lacking(&what, "the snapshot's id"),
            },
            Err(error) => Error::of(&what, error),
        };
        // https://docs.aws.amazon.com/general/latest/gr/ebs-service.html: 20 for each destination, not adjustable.
        if error.code() == Some("ResourceLimitExceeded") {
            status.set(format!("{} has too many copies in progress", to.name));
            pace.pause(&what, None).await?;
            continue;
        }
        if error.is_open()
            && let Some(found) = settle(to, wanted).await?
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

/// Whether a copy was begun after all.
async fn settle(region: &Region, wanted: &Wanted) -> Result<Option<String>, Error> {
    let mut pace = Pace::within(LONGEST);
    for _ in 0..LOOKS {
        let found = find(region, wanted).await?;
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

/// Deletes what nobody needs; a failure is only told.
pub(super) async fn delete(region: &Region, id: &str) {
    let what = format!("delete {id} in {}", region.name);
    let deleted = call("DeleteSnapshot", &what, || async {
        match region.ec2.delete_snapshot().snapshot_id(id).send().await {
            Err(error) if Error::is(&error, UNKNOWN) => Ok(()),
            answer => answer.map(drop),
        }
    })
    .await;
    match deleted {
        Ok(()) => tracing::info!(region = region.name, "deleted {id} in {}", region.name),
        // An image uses it: then somebody needs it.
        Err(error) if error.code() == Some("InvalidSnapshot.InUse") => {}
        Err(error) => tracing::warn!(region = region.name, "failed to {error}; left over"),
    }
}

/// Deletes our snapshots of this image that the finished image does not use. Two processes at work on the same image may
/// each have made one; the one that registered its own first has decided which stays, in this region for ever. Whoever
/// still works with another finds that out by looking again.
pub(super) async fn delete_spares(region: &Region, wanted: &Wanted, used: &[String]) {
    let found = match find(region, wanted).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(region = region.name, "failed to {error}; spare ones stay");
            return;
        }
    };
    let spares = found
        .iter()
        .filter(|snapshot| !used.contains(&snapshot.id) && !is_kept(&snapshot.tags));
    for spare in spares {
        delete(region, &spare.id).await;
    }
}
