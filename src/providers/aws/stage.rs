//! The order of the steps to an image in every region. The regions are independent once one of them has a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::ami::{self, Ami};
use super::client::{Clients, Region};
use super::error::Error;
use super::s3::Object;
use super::snapshot::{self, Snapshot};
use super::spec::AmiSpec;
use super::{ebs, import, register};
use crate::base::failure::Failure;
use crate::config::aws::{Aws, SnapshotMethod};
use crate::providers::contract::Task;
use crate::providers::poll::Status;

/// When half of the regions are done, the others get as much time again, and at least this much, before they count as slow.
/// Regions that are done wait no longer than the task's patience. AWS continues the slow ones by itself, and the pipeline's
/// next round looks at them again.
const GRACE: Duration = Duration::from_secs(30);

/// The inputs of the steps.
pub(super) struct Stage<'a> {
    pub(super) section: &'a Aws,
    pub(super) clients: &'a Clients,
    pub(super) spec: &'a AmiSpec,
    pub(super) task: &'a Task,
    /// Limits the copies in progress, by destination.
    pub(super) copies: &'a BTreeMap<String, Arc<Semaphore>>,
    /// Limits the memory of uploads, in chunks.
    pub(super) memory: &'a Arc<Semaphore>,
}

/// A region that lacks the image.
pub(super) struct MissingRegion<'a> {
    pub(super) region: &'a Region,
    /// The image, if it is being registered.
    pub(super) pending: Option<Ami>,
}

/// A complete snapshot that others are copied from.
#[derive(Debug, Clone)]
struct Seed {
    region: String,
    snapshot: String,
}

/// The result of one region.
pub(super) type RegionOutcome = (String, Result<Ami, Failure>);

impl Stage<'_> {
    /// Brings the image to the regions that lack it; `finished` have it. Regions that fail are in the result, beside how
    /// long those that are ready have waited for the others.
    pub(super) async fn run(
        &self,
        lacking: Vec<MissingRegion<'_>>,
        finished: &[(&Region, Ami)],
    ) -> Result<(Vec<RegionOutcome>, Duration), Failure> {
        let mut ready = None;
        let mut outcomes = Vec::new();
        if lacking.is_empty() {
            self.delete_orphans(&outcomes, finished, None).await;
            return Ok((outcomes, Duration::ZERO));
        }
        let mut held = self.held(&lacking, &mut outcomes).await;
        let mut seed = self.seed(&held, finished);
        let bare: Vec<&Region> = lacking
            .iter()
            .filter(|lacking| lacking.pending.is_none())
            .map(|lacking| lacking.region)
            .filter(|region| !held.contains_key(&region.name) && !is_in(&outcomes, region))
            .collect();
        if !bare.is_empty() && seed.is_none() {
            for (region, made) in Box::pin(self.make(&bare)).await? {
                match made {
                    Ok(snapshot) => drop(held.insert(region, snapshot)),
                    Err(failure) => outcomes.push((region, Err(failure))),
                }
            }
            seed = self.seed(&held, finished);
        } else if let (Some(object), Some(_)) = (self.object(), &seed) {
            // Left by a process that ended between two steps, or was late.
            object.clear().await;
        }
        let mut running = FuturesUnordered::new();
        let mut unfinished: BTreeMap<String, Status> = BTreeMap::new();
        for MissingRegion { region, pending } in lacking {
            if is_in(&outcomes, region) {
                continue;
            }
            let status = Status::default();
            unfinished.insert(region.name.clone(), status.clone());
            let (held, seed) = (held.remove(&region.name), seed.clone());
            running.push(async move {
                let outcome = self.complete(region, pending, held, seed, &status).await;
                (region.name.clone(), outcome.map_err(Failure::from))
            });
        }
        let mut done = finished.len();
        let all = done + running.len();
        let started = Instant::now();
        let mut patience = self.task.patience;
        if !finished.is_empty() {
            ready = Some(started);
            patience = patience.max(GRACE);
        }
        let mut grace = None;
        while !running.is_empty() {
            if grace.is_none() && 2 * done >= all {
                grace = Some(Instant::now() + started.elapsed().max(GRACE));
            }
            let enough = ready.map(|ready| ready + patience);
            let next = match grace.into_iter().chain(enough).min() {
                Some(deadline) => timeout_at(deadline, running.next()).await,
                None => Ok(running.next().await),
            };
            let Ok(Some((region, outcome))) = next else { break };
            done += 1;
            if outcome.is_ok() {
                ready.get_or_insert_with(Instant::now);
            }
            unfinished.remove(&region);
            outcomes.push((region, outcome));
        }
        outcomes.extend(unfinished.into_iter().map(|(region, status)| {
            let slow = Error::Slow {
                region: region.clone(),
                state: status.get(),
            };
            (region, Err(slow.into()))
        }));
        let whole = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
        self.delete_orphans(&outcomes, finished, seed.filter(|_| !whole)).await;
        Ok((outcomes, ready.map_or(Duration::ZERO, |ready| ready.elapsed())))
    }

    /// Our usable snapshots by region: complete ones, and copies in progress. Deletes failed ones.
    async fn held(
        &self,
        lacking: &[MissingRegion<'_>],
        outcomes: &mut Vec<RegionOutcome>,
    ) -> BTreeMap<String, Snapshot> {
        let mut regions: BTreeMap<&str, &Region> = lacking
            .iter()
            .map(|lacking| (lacking.region.name.as_str(), lacking.region))
            .collect();
        let lacking: BTreeSet<String> = regions.keys().map(|region| (*region).to_owned()).collect();
        if let Ok(base) = self.clients.region(&self.section.base_region) {
            regions.insert(&base.name, base);
        }
        let looks = regions.into_values().map(|region| async move {
            let found = snapshot::find(region, self.spec).await;
            (region, found)
        });
        let mut held = BTreeMap::new();
        for (region, found) in join_all(looks).await {
            let name = region.name.clone();
            match found {
                Ok(found) => {
                    let failed = found
                        .iter()
                        .filter(|found| found.is_failed() && lacking.contains(&name));
                    join_all(failed.map(|failed| snapshot::delete(region, &failed.id))).await;
                    held.extend(found.into_iter().find(Snapshot::is_usable).map(|found| (name, found)));
                }
                Err(error) if lacking.contains(&name) => outcomes.push((name, Err(error.into()))),
                Err(error) => tracing::warn!(region = name, "failed to {error}; left out"),
            }
        }
        held
    }

    /// The base region's snapshot if there is one, else that of another region.
    fn seed(&self, held: &BTreeMap<String, Snapshot>, finished: &[(&Region, Ami)]) -> Option<Seed> {
        let of_images = finished.iter().filter_map(|(region, ami)| {
            Some(Seed {
                region: region.name.clone(),
                snapshot: ami.snapshots.first()?.clone(),
            })
        });
        let of_held = held
            .iter()
            .filter(|(_, snapshot)| snapshot.is_completed())
            .map(|(region, snapshot)| Seed {
                region: region.clone(),
                snapshot: snapshot.id.clone(),
            });
        of_images
            .chain(of_held)
            .min_by_key(|seed| seed.region != self.section.base_region)
    }

    /// Makes a snapshot from the image's bytes.
    async fn make(&self, bare: &[&Region]) -> Result<Vec<(String, Result<Snapshot, Failure>)>, Failure> {
        let status = Status::default();
        let source = self.task.source(&self.spec.image);
        let base = self.clients.region(&self.section.base_region)?;
        match &self.section.snapshot_method {
            SnapshotMethod::S3Import { bucket, role } => {
                let object = Object::new(&self.clients.s3, bucket, &self.spec.image.sha256);
                let made = import::import(base, self.spec, &object, role, &source, self.memory, &status).await?;
                Ok(vec![(base.name.clone(), Ok(made))])
            }
            SnapshotMethod::EbsDirect { requests, all_regions } => {
                // The base region first: operators expect the original there.
                let first = bare.iter().position(|region| region.name == base.name).unwrap_or(0);
                let mut regions = bare.to_vec();
                regions.swap(0, first);
                let at_once = if *all_regions { regions.len() } else { 1 };
                let mut all = Vec::new();
                for regions in regions.chunks(at_once) {
                    let made = ebs::write(regions, self.spec, &source, *requests, self.memory, &status).await?;
                    // Another region is tried if this one fails for good; a transient failure is retried by the pipeline.
                    let next = made
                        .iter()
                        .all(|(_, made)| made.as_ref().is_err_and(|failure| !failure.class().is_transient()));
                    all.extend(made);
                    if !next {
                        break;
                    }
                }
                match all.iter().find_map(|(_, made)| made.as_ref().err()) {
                    Some(failure) if all.iter().all(|(_, made)| made.is_err()) => Err(failure.clone()),
                    _ => Ok(all),
                }
            }
        }
    }

    fn object(&self) -> Option<Object> {
        match &self.section.snapshot_method {
            SnapshotMethod::S3Import { bucket, .. } => {
                Some(Object::new(&self.clients.s3, bucket, &self.spec.image.sha256))
            }
            SnapshotMethod::EbsDirect { .. } => None,
        }
    }

    /// Brings one region from a snapshot, in any region, to an available image.
    async fn complete(
        &self,
        region: &Region,
        pending: Option<Ami>,
        held: Option<Snapshot>,
        seed: Option<Seed>,
        status: &Status,
    ) -> Result<Ami, Error> {
        if let Some(ami) = pending {
            return ami::available(region, &ami.id, status).await;
        }
        let snapshot = match (held, seed) {
            (Some(snapshot), _) if snapshot.is_completed() => snapshot,
            (Some(copy), _) => self.copied(region, &copy.id, status).await?,
            (None, Some(seed)) => self.copy(region, &seed, status).await?,
            (None, None) => return Err(Error::UploadEnded(format!("a snapshot for {}", region.name))),
        };
        register::register(region, self.spec, &snapshot, self.section, status).await
    }

    async fn copy(&self, region: &Region, seed: &Seed, status: &Status) -> Result<Snapshot, Error> {
        status.set(format!("waiting for other copies to {}", region.name));
        let copies = self.copies.get(&region.name);
        let copies = copies.ok_or_else(|| Error::UnknownRegion(region.name.clone()))?;
        let interrupted = |_| Error::Interrupted(region.name.clone());
        let _turn = copies.acquire().await.map_err(interrupted)?;
        let id = snapshot::copy(&seed.region, &seed.snapshot, region, self.spec, status).await?;
        self.copied(region, &id, status).await
    }

    /// Waits for a copy, and deletes it if it failed.
    async fn copied(&self, region: &Region, id: &str, status: &Status) -> Result<Snapshot, Error> {
        let copied = snapshot::completed(region, id, status).await;
        match &copied {
            Ok(_) => tracing::info!(
                region = region.name,
                snapshot = id,
                "copied {} to {}",
                self.spec.name,
                region.name
            ),
            Err(Error::SnapshotFailed { .. }) => snapshot::delete(region, id).await,
            Err(_) => {}
        }
        copied
    }

    /// Deletes the orphaned snapshots in regions whose image is complete, except the one that other regions are copied from.
    async fn delete_orphans(&self, outcomes: &[RegionOutcome], finished: &[(&Region, Ami)], seed: Option<Seed>) {
        let made = outcomes.iter().filter_map(|(region, outcome)| {
            let ami = outcome.as_ref().ok()?;
            Some((self.clients.region(region).ok()?, ami))
        });
        let found = finished.iter().map(|(region, ami)| (*region, ami));
        let regions = made
            .chain(found)
            .filter(|(region, ami)| self.task.concerns(&region.name) && !ami.snapshots.is_empty());
        join_all(regions.map(|(region, ami)| {
            let mut used = ami.snapshots.clone();
            used.extend(seed.as_ref().map(|seed| seed.snapshot.clone()));
            async move { snapshot::delete_orphans(region, self.spec, &used).await }
        }))
        .await;
    }
}

fn is_in(outcomes: &[RegionOutcome], region: &Region) -> bool {
    outcomes.iter().any(|(name, _)| *name == region.name)
}
