//! The second method to create a snapshot, block by block with
//! [EBS direct](https://docs.aws.amazon.com/ebs/latest/userguide/ebs-accessing-snapshots.html), which needs no bucket and
//! no role. Blocks of zeros are not sent. AWS bills each block, about a third of a cent for a GiB.
//!
//! A snapshot is pending until the program completes it, after the whole image was verified. Another process may continue a
//! pending snapshot, and two processes may do so at once: they put the same blocks. AWS gives a snapshot up that gets no
//! block for an hour.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256, digest};
use aws_sdk_ebs::primitives::ByteStream;
use aws_sdk_ebs::types::{ChecksumAggregationMethod, ChecksumAlgorithm, Status as Written, Tag};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument;

use super::client::{Region, call, change};
use super::error::Error;
use super::snapshot::{self, Snapshot};
use super::spec::{AmiSpec, CreatedBy};
use crate::base::failure::{Class, Classified, Failure};
use crate::base::metrics;
use crate::base::retry::{self, Policy};
use crate::images::source::{CHUNK, Content, Form, Source};
use crate::providers::poll::Status;

/// Volumes come in whole GiB.
const GIB: u64 = 1 << 30;
/// EBS direct answers for up to two minutes that a new snapshot does not exist.
const VISIBILITY: Policy = Policy {
    longest: Duration::from_secs(5),
    give_up_after: Duration::from_secs(150),
};
/// Minutes without a block after which AWS gives a snapshot up, from 10 to 4320. An hour tolerates a source that is
/// unreachable for a while, and limits the cost of an abandoned snapshot.
const TIMEOUT: i32 = 60;
/// The number of tokens that may lead to an unusable snapshot before the attempt fails.
const ATTEMPTS: usize = 8;

/// A snapshot that is being written.
struct Target {
    region: Region,
    snapshot: String,
    /// EBS direct has accepted a block, so the snapshot exists for it.
    seen: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// Writes the image to a snapshot in each of these regions while reading it once, and completes them.
///
/// Regions that fail are in the result; an image that cannot be read fails all of them.
pub(super) async fn write(
    regions: &[&Region],
    spec: &AmiSpec,
    source: &Source,
    requests: usize,
    memory: &Arc<Semaphore>,
    status: &Status,
) -> Result<Vec<(String, Result<Snapshot, Failure>)>, Failure> {
    status.set("writing the snapshot");
    let size = source.decompressed_size().await?;
    let volume = i64::try_from(size.div_ceil(GIB).max(1)).unwrap_or(i64::MAX);
    let begun = regions
        .iter()
        .map(|region| async move { (*region, begin(region, spec, volume).await) });
    let mut outcomes = Vec::new();
    let mut targets = Vec::new();
    for (region, begun) in join_all(begun).await {
        match begun {
            Ok(snapshot) => targets.push(Arc::new(Target {
                region: region.clone(),
                snapshot,
                seen: AtomicBool::new(false),
                failure: Mutex::default(),
            })),
            Err(error) => outcomes.push((region.name.clone(), Err(error.into()))),
        }
    }
    if targets.is_empty() {
        return Ok(outcomes);
    }
    let blocks = match put_all(&targets, source, requests, memory).await {
        Ok(blocks) => blocks,
        Err(failure) => {
            // After a transient failure, the next attempt continues.
            if !failure.class().is_transient() {
                join_all(
                    targets
                        .iter()
                        .map(|target| snapshot::delete(&target.region, &target.snapshot)),
                )
                .await;
            }
            return Err(failure);
        }
    };
    let blocks = &blocks;
    let ends = targets.iter().map(|target| async move {
        let snapshot = target.end(blocks, status).await;
        (target.region.name.clone(), snapshot.map_err(Failure::from))
    });
    outcomes.extend(join_all(ends).await);
    Ok(outcomes)
}

/// Finds the pending snapshot of an interrupted attempt, or starts one. Deletes snapshots that AWS has given up.
async fn begin(region: &Region, spec: &AmiSpec, volume: i64) -> Result<String, Error> {
    for found in snapshot::find(region, spec).await? {
        if !found.is_created_by(CreatedBy::Blocks) || found.is_completed() {
            continue;
        }
        if found.is_pending() && i64::from(found.size) == volume {
            return Ok(found.id);
        }
        // Given up by AWS, or of another size.
        snapshot::delete(region, &found.id).await;
    }
    let what = format!("start a snapshot of {} in {}", spec.name, region.name);
    let tags = spec.tags_of_snapshot(CreatedBy::Blocks);
    for attempt in 0..ATTEMPTS {
        let token = spec.token(&[&region.name, &volume.to_string()], attempt);
        let tags = tags
            .iter()
            .map(|(name, value)| Tag::builder().key(name).value(value).build());
        let tags: Vec<_> = tags.collect();
        let started = call("StartSnapshot", &what, || {
            region
                .ebs
                .start_snapshot()
                .volume_size(volume)
                .description(&spec.description)
                .client_token(&token)
                .timeout(TIMEOUT)
                .set_tags(Some(tags.clone()))
                .send()
        });
        let started = match started.await {
            Ok(started) => started,
            // The token was used before, with other parameters.
            Err(error) if error.code() == Some("ConflictException") => continue,
            Err(error) => return Err(error),
        };
        let Some(id) = started.snapshot_id() else {
            return Err(Error::lacking(&what, "snapshot id"));
        };
        // A token may lead to a snapshot that has ended or was deleted; the next token does not.
        let age = started.start_time().and_then(|time| SystemTime::try_from(*time).ok());
        let age = age.and_then(|time| time.elapsed().ok()).unwrap_or_default();
        let is_new = age < VISIBILITY.give_up_after;
        let is_pending = match snapshot::read(region, id).await? {
            Some(found) => found.is_pending(),
            None => is_new && *started.status().unwrap_or(&Written::Pending) == Written::Pending,
        };
        if is_pending {
            return Ok(id.to_owned());
        }
    }
    Err(Error::UploadEnded(format!(
        "a snapshot of {} in {}",
        spec.name, region.name
    )))
}

/// Puts every block that is not zero, and returns their digests by index once the image is verified.
async fn put_all(
    targets: &[Arc<Target>],
    source: &Source,
    requests: usize,
    memory: &Arc<Semaphore>,
) -> Result<BTreeMap<i32, [u8; 32]>, Failure> {
    let interrupted = || Error::Interrupted(source.image().path.clone());
    let mut chunks = source.open_unordered(Form::Raw).await?;
    let mut blocks = BTreeMap::new();
    let mut putting: JoinSet<(i32, [u8; 32])> = JoinSet::new();
    let mut keep = |put: Result<(i32, [u8; 32]), JoinError>| -> Result<(), Error> {
        let (index, sum) = put.map_err(|_| interrupted())?;
        blocks.insert(index, sum);
        Ok(())
    };
    while let Some(chunk) = chunks.next().await? {
        let Content::Data(bytes) = chunk.content else { continue };
        let index = i32::try_from(chunk.offset / CHUNK as u64).unwrap_or(i32::MAX);
        let permit = memory.clone().acquire_owned().await.map_err(|_| interrupted())?;
        if targets.iter().all(|target| target.has_failed()) {
            // Every target has failed; `Target::end` returns the reasons.
            return Ok(BTreeMap::new());
        }
        let targets = targets.to_vec();
        let put = async move {
            let bytes = whole(bytes);
            let sum = sha256(&bytes);
            join_all(targets.iter().map(|target| target.put(index, &bytes, &sum))).await;
            drop(permit);
            (index, sum)
        };
        putting.spawn(retry::inherit(put.in_current_span()));
        while putting.len() >= requests {
            let Some(put) = putting.join_next().await else { break };
            keep(put)?;
        }
    }
    while let Some(put) = putting.join_next().await {
        keep(put)?;
    }
    Ok(blocks)
}

impl Target {
    async fn put(&self, index: i32, bytes: &Bytes, sum: &[u8; 32]) {
        if self.has_failed() {
            return;
        }
        let what = format!("write block {index} of {} in {}", self.snapshot, self.region.name);
        let sum = BASE64_STANDARD.encode(sum);
        let seen = self.seen.load(Ordering::Relaxed);
        let policy = if seen { Policy::CALL } else { VISIBILITY };
        let class = |error: &Error| match error.code() {
            Some("ResourceNotFoundException") if self.seen.load(Ordering::Relaxed) => Class::Deliverable,
            _ => error.class(),
        };
        let put = policy.run("PutSnapshotBlock", class, || async {
            let put = self.region.ebs.put_snapshot_block().snapshot_id(&self.snapshot);
            let put = put
                .block_index(index)
                .block_data(ByteStream::from(bytes.clone()))
                .data_length(i32::try_from(bytes.len()).unwrap_or(i32::MAX))
                .checksum(&sum)
                .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256);
            put.send()
                .await
                .map_err(|error| Error::of("PutSnapshotBlock", &what, error))
        });
        match put.await {
            Ok(_) => {
                self.seen.store(true, Ordering::Relaxed);
                metrics::uploaded(bytes.len() as u64);
            }
            Err(error) => {
                self.failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Completes the snapshot, or finds it completed.
    async fn end(&self, blocks: &BTreeMap<i32, [u8; 32]>, status: &Status) -> Result<Snapshot, Error> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let completed = match failure {
            Some(error) => Err(error),
            None => self.complete(blocks).await,
        };
        let Err(error) = completed else {
            let snapshot = snapshot::completed(&self.region, &self.snapshot, status).await?;
            tracing::info!(
                region = self.region.name,
                snapshot = self.snapshot,
                "wrote {} in {}",
                self.snapshot,
                self.region.name
            );
            return Ok(snapshot);
        };
        match snapshot::read(&self.region, &self.snapshot).await? {
            // Completed by a call whose answer was lost, or by another process.
            Some(found) if found.is_completed() => Ok(found),
            _ if is_over(&error) => Err(Error::UploadEnded(format!("{} in {}", self.snapshot, self.region.name))),
            _ => {
                if !error.class().is_transient() {
                    snapshot::delete(&self.region, &self.snapshot).await;
                }
                Err(error)
            }
        }
    }

    async fn complete(&self, blocks: &BTreeMap<i32, [u8; 32]>) -> Result<(), Error> {
        let what = format!("complete {} in {}", self.snapshot, self.region.name);
        let mut all = Context::new(&SHA256);
        blocks.values().for_each(|sum| all.update(sum));
        let sum = BASE64_STANDARD.encode(all.finish());
        let complete = || {
            let complete = self.region.ebs.complete_snapshot().snapshot_id(&self.snapshot);
            complete
                .changed_blocks_count(i32::try_from(blocks.len()).unwrap_or(i32::MAX))
                .checksum(&sum)
                .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
                .checksum_aggregation_method(ChecksumAggregationMethod::ChecksumAggregationLinear)
                .send()
        };
        change("CompleteSnapshot", &what, complete).await
    }
}

/// Reports whether the snapshot accepts no more blocks: it is complete, given up, or deleted.
fn is_over(error: &Error) -> bool {
    let codes = ["ConflictException", "ResourceNotFoundException", "ValidationException"];
    error.code().is_some_and(|code| codes.contains(&code))
}

/// Fills the last block with zeros: a disk may end within a block, a snapshot has whole blocks only.
fn whole(bytes: Bytes) -> Bytes {
    if bytes.len() == CHUNK {
        return bytes;
    }
    let mut block = BytesMut::from(&bytes[..]);
    block.resize(CHUNK, 0);
    block.freeze()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}
