//! AWS: an AMI in each region, one for each architecture.
//!
//! *Stage* creates, in order: a snapshot in the base region, by import from an object in a bucket or block by block; a copy
//! of it in every other region; and an image from each snapshot, as soon as it is complete. All of it is private. The object
//! is deleted when the snapshot is complete; snapshots are kept as long as their images
//! ([what they cost](https://aws.amazon.com/ebs/pricing/): the data that is not zero, in each region). *Release* makes
//! snapshots and images public, sets the end of life as the deprecation date, and reads every change back.
//!
//! The program keeps no state between runs: it finds objects by their key and everything else by tags or name. Image names
//! are unique in a region, so two processes end with one image; each then deletes the snapshots that no image uses.

mod ami;
mod check;
mod client;
mod codes;
mod confirm;
mod ebs;
mod error;
mod import;
mod publish;
mod register;
mod s3;
mod snapshot;
mod spec;
mod stage;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::{OnceCell, Semaphore};

use self::client::{Clients, Region};
use self::error::Error;
use self::spec::AmiSpec;
use self::stage::{MissingRegion, Stage};
use super::contract::{Finding, Publish, Task};
use crate::base::failure::Failure;
use crate::config::Environment;
use crate::config::aws::{Aws, SnapshotMethod};
use crate::images::source::CHUNK;
use crate::model::outcome::{Failed, Origin, Outcome, Place};
use crate::model::select::Deliverable;

/// The memory for parts and blocks in flight to AWS, of all images together, besides `buffer_memory`. It suffices for all
/// parts in flight of two images, or for 128 blocks; the largest part must fit.
const UPLOAD_MEMORY: usize = 64 << 20;

/// Publishes to EC2.
pub struct AwsProvider {
    section: Aws,
    environment: Environment,
    clients: OnceCell<Clients>,
    copies: BTreeMap<String, Arc<Semaphore>>,
    memory: Arc<Semaphore>,
}

impl AwsProvider {
    /// Opens no connection. Credentials are looked up when they are needed.
    #[must_use]
    pub fn new(section: &Aws, environment: &Environment) -> Self {
        let copies = |region| (region, Arc::new(Semaphore::new(section.copy_concurrency)));
        let chunks = match section.snapshot_method {
            SnapshotMethod::S3Import { .. } => UPLOAD_MEMORY / CHUNK,
            // A larger configured number of requests raises the limit.
            SnapshotMethod::EbsDirect { requests, .. } => requests.max(UPLOAD_MEMORY / CHUNK),
        };
        Self {
            copies: section.regions().into_iter().map(copies).collect(),
            memory: Arc::new(Semaphore::new(chunks.min(Semaphore::MAX_PERMITS))),
            section: section.clone(),
            environment: environment.clone(),
            clients: OnceCell::new(),
        }
    }

    async fn clients(&self) -> &Clients {
        self.clients
            .get_or_init(|| Clients::new(&self.section, &self.environment))
            .await
    }
}

#[async_trait]
impl Publish for AwsProvider {
    async fn check(&self) -> Vec<Finding> {
        check::check(&self.section, self.clients().await).await
    }

    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure> {
        let spec = &AmiSpec::of(deliverable, &self.section)?;
        let clients = self.clients().await;
        let looks = deliverable.locations.iter().map(|location| async move {
            let looked = match clients.region(location) {
                Ok(region) => ami::find(region, spec).await.map(|ami| (region, ami)),
                Err(error) => Err(error),
            };
            (location, looked)
        });
        let (mut staged, mut lacking, mut finished) = (Outcome::default(), Vec::new(), Vec::new());
        let mut taken = None;
        for (location, looked) in join_all(looks).await {
            match looked {
                Ok((region, Some(ami))) if ami.available => {
                    staged.places.push(place(location, &ami.id, Origin::Found));
                    finished.push((region, ami));
                }
                Ok((region, pending)) if task.concerns(location) => lacking.push(MissingRegion { region, pending }),
                Ok(_) => {}
                Err(error @ (Error::OtherContent { .. } | Error::Foreign { .. } | Error::DuplicateNames { .. })) => {
                    let failure = Failure::from(error);
                    taken.get_or_insert(failure.clone());
                    if task.concerns(location) {
                        staged.failed.push(failed(location, failure));
                    }
                }
                Err(error) => {
                    if !matches!(error, Error::Unusable { .. }) {
                        staged.unseen.insert(location.clone());
                    }
                    if task.concerns(location) {
                        staged.failed.push(failed(location, error));
                    } else {
                        tracing::warn!(location, "failed to {error}; left out");
                    }
                }
            }
        }
        // If the name stands for other content in one region, no region gets it.
        if let Some(failure) = taken.filter(|_| finished.is_empty()) {
            return Err(failure);
        }
        let stage = Stage {
            section: &self.section,
            clients,
            spec,
            task,
            copies: &self.copies,
            memory: &self.memory,
        };
        let regions: Vec<_> = lacking.iter().map(|lacking| lacking.region.name.clone()).collect();
        match Box::pin(stage.run(lacking, &finished)).await {
            Ok((outcomes, waited)) => {
                staged.waited = waited;
                for (location, outcome) in outcomes {
                    match outcome {
                        Ok(ami) => staged.places.push(place(&location, &ami.id, Origin::Created)),
                        Err(failure) => staged.failed.push(failed(&location, failure)),
                    }
                }
            }
            // Regions that have the image already count, even if its bytes cannot be read now.
            Err(failure) if staged.places.is_empty() => return Err(failure),
            Err(failure) => {
                let failures = regions.iter().map(|region| failed(region, failure.clone()));
                staged.failed.extend(failures);
            }
        }
        staged.sort(deliverable);
        Ok(staged)
    }

    async fn release(&self, deliverable: &Deliverable, staged: Outcome, task: &Task) -> Result<Outcome, Failure> {
        let clients = self.clients().await;
        let (mut publication, staged) = Outcome::without_places(staged);
        let releases = staged.into_iter().map(|place| async move {
            let released = match clients.region(&place.location) {
                Ok(region) => self.release_place(region, &place, deliverable, task).await,
                Err(error) => Err(error),
            };
            (place, released)
        });
        for (place, released) in join_all(releases).await {
            match released {
                Ok(Some(origin)) => publication.places.push(Place { origin, ..place }),
                Ok(None) => tracing::info!(location = place.location, "{} is not public; left out", place.id),
                Err(error) => {
                    if task.concerns(&place.location) {
                        publication.failed.push(failed(&place.location, error));
                    } else {
                        tracing::warn!(location = place.location, "failed to {error}; left out");
                    }
                    publication.unseen.insert(place.location);
                }
            }
        }
        publication.sort(deliverable);
        Ok(publication)
    }
}

impl AwsProvider {
    /// Releases one place; `None` if it may not be changed and users cannot find it.
    async fn release_place(
        &self,
        region: &Region,
        place: &Place,
        deliverable: &Deliverable,
        task: &Task,
    ) -> Result<Option<Origin>, Error> {
        if !task.concerns(&place.location) {
            let live = publish::is_live(region, &place.id, &self.section).await?;
            return Ok(live.then_some(place.origin));
        }
        let end_of_life = deliverable.release.end_of_life;
        let released = publish::publish(region, &place.id, &self.section, end_of_life).await?;
        Ok(Some(match place.origin {
            Origin::Found => released,
            Origin::Created => Origin::Created,
        }))
    }
}

fn place(location: &str, id: &str, origin: Origin) -> Place {
    Place {
        location: location.to_owned(),
        id: id.to_owned(),
        origin,
    }
}

fn failed(location: &str, failure: impl Into<Failure>) -> Failed {
    Failed {
        location: location.to_owned(),
        failure: failure.into(),
    }
}
