//! The first step: images to where they are lacking, and the index that names them, all by digest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::civil::Date;
use serde_json::Value;
use tracing::Instrument;

use super::error::Error;
use super::index;
use super::memory::Memory;
use super::registry::{Fetched, Repository};
use super::tags::Lacking;
use crate::base::failure::Failure;
use crate::images::oci::{self, Descriptor, Digest, Index, Manifest, Store, Stores};
use crate::images::source::Form;
use crate::model::compose::Image;
use crate::model::outcome::Failed;
use crate::model::select::Deliverable;
use crate::providers::contract::Task;

/// A location that lacks the deliverable.
pub(super) struct Pending {
    pub(super) location: String,
    repository: Repository,
    former: Option<Index>,
    /// Of the index, as far as their manifests are there.
    entries: Vec<Descriptor>,
    /// Images that are not, by their place in the deliverable.
    lacks: Vec<usize>,
}

impl Pending {
    /// Looks for the images in the index that is to be replaced, in that of another tag, and among those that were pushed
    /// before.
    pub(super) async fn new(
        location: String,
        repository: Repository,
        lacking: Lacking,
        deliverable: &Deliverable,
        memory: &Memory,
    ) -> Result<Self, Failed> {
        let Lacking { former, other } = lacking;
        let mut entries = Vec::new();
        let mut lacks = Vec::new();
        for (number, image) in deliverable.images.iter().enumerate() {
            let mut indexes = former.iter().chain(&other);
            let entry = indexes.find_map(|index| index::reusable(index, image));
            let entry = match entry {
                Some(entry) => Some(entry.clone()),
                None => match remembered(&repository, image, memory).await {
                    Ok(entry) => entry,
                    Err(error) => {
                        let failure = error.into();
                        return Err(Failed { location, failure });
                    }
                },
            };
            match entry {
                Some(entry) => entries.push(Descriptor {
                    annotations: index::annotations(deliverable, image),
                    ..entry
                }),
                None => lacks.push(number),
            }
        }
        Ok(Self {
            location,
            repository,
            former,
            entries,
            lacks,
        })
    }
}

/// The entry for an image that this process has pushed, if it is still there.
async fn remembered(repository: &Repository, image: &Image, memory: &Memory) -> Result<Option<Descriptor>, Error> {
    let Some(entry) = memory.recall(repository, image) else {
        return Ok(None);
    };
    Ok(repository.has_manifest(&entry.digest).await?.then_some(entry))
}

/// Pushes all images to where they are lacking. Locations that fail go from `pending` to `failed`.
///
/// Fails with the first image that cannot be published, or else, after the others are done, with one that cannot be now.
/// The manifests of the others are remembered.
pub(super) async fn push_images(
    pending: &mut Vec<Pending>,
    deliverable: &Deliverable,
    task: &Task,
    memory: &Memory,
    failed: &mut Vec<Failed>,
) -> Result<(), Failure> {
    let mut pushes = FuturesUnordered::new();
    for (number, image) in deliverable.images.iter().enumerate() {
        let lacking = pending.iter().filter(|pending| pending.lacks.contains(&number));
        let lacking: Vec<_> = lacking
            .map(|pending| (pending.location.clone(), pending.repository.clone()))
            .collect();
        if !lacking.is_empty() {
            let span = tracing::info_span!("image", path = image.path);
            let push = async move { (image, push_image(image, lacking, task, memory).await) };
            pushes.push(push.instrument(span).boxed());
        }
    }
    let mut passing = None;
    let mut outcomes = Vec::new();
    while let Some((image, outcome)) = pushes.next().await {
        match outcome {
            Ok(pushed) => outcomes.push((image, pushed)),
            Err(failure) if failure.class().is_transient() => passing = Some(failure),
            Err(failure) => return Err(failure),
        }
    }
    drop(pushes);
    if let Some(failure) = passing {
        return Err(failure);
    }
    let mut failures: BTreeMap<String, Failure> = BTreeMap::new();
    for (image, pushed) in outcomes {
        for location in pushed.failures {
            failures.entry(location.0).or_insert(location.1);
        }
        if let Some(descriptor) = pushed.image {
            let annotations = index::annotations(deliverable, image);
            for pending in pending
                .iter_mut()
                .filter(|pending| pushed.locations.contains(&pending.location))
            {
                pending.entries.push(descriptor.descriptor(annotations.clone()));
            }
        }
    }
    pending.retain(|pending| !failures.contains_key(&pending.location));
    failed.extend(
        failures
            .into_iter()
            .map(|(location, failure)| Failed { location, failure }),
    );
    Ok(())
}

/// Where an image has got to.
struct Pushed {
    image: Option<oci::Image>,
    locations: Vec<String>,
    failures: Vec<(String, Failure)>,
}

/// Reads one archive, and pushes its blobs and then its manifest to all registries that lack it.
async fn push_image(
    image: &Image,
    lacking: Vec<(String, Repository)>,
    task: &Task,
    memory: &Memory,
) -> Result<Pushed, Failure> {
    let chunks = task.source(image).open(Form::Decompressed).await?;
    let stores = lacking
        .iter()
        .map(|(location, repository)| (location.clone(), Arc::new(repository.clone()) as Arc<dyn Store>));
    let mut stores = Stores::new(stores);
    let read = oci::read(&image.path, &image.arch, chunks.into_read(), &mut stores).await?;
    let mut failures = stores.into_failures();
    let mut locations = Vec::new();
    if let Some(read) = &read {
        let mut puts = Vec::new();
        for (location, repository) in lacking {
            if !failures.iter().any(|(failed, _)| *failed == location) {
                let put = async move {
                    let put = put_image(&repository, read).await;
                    if put.is_ok() {
                        memory.remember(&repository, image, read);
                    }
                    (location, put)
                };
                puts.push(put.boxed());
            }
        }
        for (location, put) in join_all(puts).await {
            match put {
                Ok(()) => locations.push(location),
                Err(error) => failures.push((location, error.into())),
            }
        }
    }
    Ok(Pushed {
        image: read,
        locations,
        failures,
    })
}

async fn put_image(repository: &Repository, image: &oci::Image) -> Result<(), Error> {
    if repository.has_manifest(&image.digest).await? {
        return Ok(());
    }
    repository
        .put_manifest(image.digest.as_str(), &image.media_type, &image.manifest)
        .await
}

/// Puts the index that the tags are to have, by digest, after the manifests it names.
pub(super) async fn push_index(
    pending: &Pending,
    deliverable: &Deliverable,
    keep_missing: Duration,
) -> Result<Digest, Failure> {
    let repository = &pending.repository;
    let mut entries = pending.entries.clone();
    if let Some(former) = &pending.former {
        for entry in index::missing(former, deliverable) {
            if !entries.contains(entry) && keeps(repository, entry, deliverable, keep_missing).await? {
                entries.push(entry.clone());
            }
        }
    }
    let (digest, bytes) = index::build(deliverable, entries)?;
    if !repository.has_manifest(&digest).await? {
        repository.put_manifest(digest.as_str(), oci::INDEX, &bytes).await?;
        tracing::info!(location = pending.location, digest = %digest, "pushed index {digest} to {}", repository.shown());
    }
    Ok(digest)
}

/// Whether an entry for an architecture that this compose lacks is young enough to stay. One of unknown age is not.
async fn keeps(
    repository: &Repository,
    entry: &Descriptor,
    deliverable: &Deliverable,
    keep_missing: Duration,
) -> Result<bool, Failure> {
    let date = match index::date_of(entry) {
        Some(date) => Some(date),
        None => created(repository, entry).await?,
    };
    Ok(date.is_some_and(|date| {
        let days = (deliverable.compose.date - date).get_days();
        let age = Duration::from_secs(u64::try_from(days).unwrap_or(0) * 24 * 60 * 60);
        age <= keep_missing
    }))
}

/// The day the newest of a tag's images was made.
pub(super) async fn newest(repository: &Repository, held: &Fetched, index: &Index) -> Result<Option<Date>, Failure> {
    // A tag without an index holds one image itself.
    let mut newest = created_of(repository, &held.bytes).await?;
    for entry in index.manifests.iter().filter(|entry| entry.is_image()) {
        newest = newest.max(created(repository, entry).await?);
    }
    Ok(newest)
}

/// The day of the build of an unmarked entry's image.
async fn created(repository: &Repository, entry: &Descriptor) -> Result<Option<Date>, Failure> {
    match repository.foreign_manifest(entry.digest.as_str()).await? {
        Some(bytes) => created_of(repository, &bytes).await,
        None => Ok(None),
    }
}

/// The day in the configuration that a manifest names. Anything else than an image has none.
async fn created_of(repository: &Repository, manifest: &[u8]) -> Result<Option<Date>, Failure> {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else {
        return Ok(None);
    };
    let config = repository.foreign_blob(&manifest.config.digest).await?;
    let config = config.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    Ok(config.and_then(|config| index::date_of_created(config["created"].as_str()?)))
}
