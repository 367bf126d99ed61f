//! Container registries.
//!
//! *Stage* pushes blobs, then each architecture's manifest, then an
//! [index](https://github.com/opencontainers/image-spec/blob/main/image-index.md) of them, all by digest: nothing that
//! anybody asks for. *Release* puts the index under its tags and reads them back. An archive is read once for all
//! registries that lack it. What it needs is in the registries alone: the index's annotations say which compose it came
//! from, and those of its entries which image files.

mod auth;
mod index;
mod registry;
mod upload;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use self::index::Held;
use self::registry::{Fetched, Registry, Repository};
use super::{Failed, Finding, Origin, Place, Provider, Publication, Staged, Superseded, Task};
use crate::compose::Image;
use crate::config::Environment;
use crate::config::container as config;
use crate::error::{Class, Classified, Failure};
use crate::oci::{self, Config, Descriptor, Digest, Index, Manifest, Store, Stores};
use crate::retry::Policy;
use crate::select::{Deliverable, Target};
use crate::source::Form;

/// A registry may show a tag's former state for a moment.
const READ_BACK: Policy = Policy {
    longest: Duration::from_secs(2),
    give_up_after: Duration::from_secs(10),
};

/// One tag is moved at a time: registries have no compare-and-swap. By location and repository.
type Locks = Mutex<HashMap<(String, String), Arc<tokio::sync::Mutex<()>>>>;

/// Publishes to container registries.
pub struct ContainerProvider {
    registries: Vec<Arc<Registry>>,
    repositories: Vec<String>,
    keep_missing: Duration,
    moving: Locks,
}

impl ContainerProvider {
    /// Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// Credentials or certificates that are missing or cannot be read.
    pub fn new(section: &config::Container, environment: &Environment) -> Result<Self, Failure> {
        let registries = section.registries.iter().map(|registry| {
            let failed = |failure| Error::Location {
                location: registry.url.clone(),
                failure,
            };
            Registry::new(registry, environment).map(Arc::new).map_err(failed)
        });
        Ok(Self {
            registries: registries.collect::<Result<_, _>>()?,
            repositories: section.repos.values().cloned().collect(),
            keep_missing: section.keep_missing_architecture,
            moving: Locks::default(),
        })
    }
}

#[async_trait]
impl Provider for ContainerProvider {
    async fn check(&self) -> Vec<Finding> {
        let findings = self.registries.iter().map(|registry| async move {
            let mut result = Ok("it lets us in".to_owned());
            if let Some(name) = self.repositories.first()
                && let Err(error) = registry.repository(name).check().await
            {
                result = Err(Failure::from(error).to_string());
            }
            Finding {
                subject: format!("registry {}", registry.url),
                result,
            }
        });
        join_all(findings).await
    }

    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Staged, Failure> {
        let tags = tags(deliverable)?;
        let mut staged = Staged::default();
        let mut pending: Vec<Pending> = Vec::new();
        let looks = self.repositories(deliverable).map(|(location, repository)| async move {
            let looked = match repository {
                Ok(repository) => look(&repository, tags, deliverable, task.allow_older)
                    .await
                    .map(|looked| (repository, looked)),
                Err(error) => Err(error),
            };
            (location, looked)
        });
        for (location, looked) in join_all(looks).await {
            match looked {
                Ok((_, Looked::Newer(by))) => staged.superseded.push(Superseded { location, by }),
                Ok((_, Looked::Complete { digest, tagged })) if tagged || task.concerns(&location) => {
                    staged.places.push(Place {
                        location,
                        id: digest.to_string(),
                        origin: if tagged { Origin::Found } else { Origin::Created },
                    })
                }
                Ok((repository, Looked::Lacking(former))) if task.concerns(&location) => {
                    pending.push(Pending::new(location, repository, former, deliverable));
                }
                Ok((_, Looked::Complete { .. } | Looked::Lacking(_))) => {}
                Err(failure) if task.concerns(&location) => staged.failed.push(Failed { location, failure }),
                Err(failure) => tracing::warn!(location, "failed to {failure}; left out"),
            }
        }
        push_images(&mut pending, deliverable, task, &mut staged.failed).await?;
        let pushes = pending.into_iter().map(|pending| async move {
            let pushed = self.push_index(&pending, deliverable).await;
            (pending.location, pushed)
        });
        for (location, pushed) in join_all(pushes).await {
            match pushed {
                Ok(digest) => staged.places.push(Place {
                    location,
                    id: digest.to_string(),
                    origin: Origin::Created,
                }),
                Err(failure) => staged.failed.push(Failed { location, failure }),
            }
        }
        in_order(&mut staged.places, deliverable);
        Ok(staged)
    }

    async fn release(&self, deliverable: &Deliverable, staged: Staged, task: &Task) -> Result<Publication, Failure> {
        let tags = tags(deliverable)?;
        let mut publication = Publication {
            places: Vec::new(),
            superseded: staged.superseded,
            failed: staged.failed,
        };
        let releases = staged.places.into_iter().map(|place| async move {
            // Looked at in the first step, and not to be changed.
            if !task.concerns(&place.location) {
                return (place, Ok(None));
            }
            let outcome = self.move_tags(deliverable, &place, tags, task.allow_older).await;
            (place, outcome)
        });
        for (place, outcome) in join_all(releases).await {
            let location = place.location.clone();
            match outcome {
                Ok(None) => publication.places.push(place),
                Ok(Some(by)) => publication.superseded.push(Superseded { location, by }),
                Err(failure) => publication.failed.push(Failed { location, failure }),
            }
        }
        in_order(&mut publication.places, deliverable);
        Ok(publication)
    }
}

impl ContainerProvider {
    /// The deliverable's repository in each of its locations.
    fn repositories(&self, deliverable: &Deliverable) -> impl Iterator<Item = (String, Result<Repository, Failure>)> {
        let name = deliverable.name();
        deliverable
            .locations
            .iter()
            .map(move |location| (location.clone(), self.repository(location, &name)))
    }

    fn repository(&self, location: &str, name: &str) -> Result<Repository, Failure> {
        let registry = self.registries.iter().find(|registry| registry.url == location);
        let registry = registry.ok_or_else(|| Error::Unknown(location.to_owned()))?;
        Ok(registry.repository(name))
    }

    /// Puts the index, by digest, after the manifests it names.
    async fn push_index(&self, pending: &Pending, deliverable: &Deliverable) -> Result<Digest, Failure> {
        let repository = &pending.repository;
        let mut entries = pending.entries.clone();
        if let Some(former) = &pending.former {
            for entry in index::missing(former, deliverable) {
                if self.keeps(repository, entry, deliverable).await? {
                    entries.push(entry.clone());
                }
            }
        }
        let (digest, bytes) = index::build(deliverable, entries)?;
        if !repository.has_manifest(&digest).await? {
            repository.put_manifest(digest.as_str(), oci::INDEX, &bytes).await?;
        }
        tracing::info!(location = pending.location, digest = %digest, "pushed index {digest} to {}", repository.shown());
        Ok(digest)
    }

    /// Whether an entry for an architecture that this compose lacks is young enough to stay.
    async fn keeps(
        &self,
        repository: &Repository,
        entry: &Descriptor,
        deliverable: &Deliverable,
    ) -> Result<bool, Failure> {
        let arch = entry
            .platform
            .as_ref()
            .map(|platform| oci::fedora_architecture(&platform.architecture));
        let arch = arch.unwrap_or_default();
        let date = match index::date_of(entry) {
            Some(date) => Some(date),
            None => created(repository, entry).await?,
        };
        let Some(date) = date else {
            tracing::warn!(
                arch,
                "dropped {arch} from {}: this compose lacks it, and nobody knows its age",
                repository.shown()
            );
            return Ok(false);
        };
        let days = (deliverable.compose.date - date).get_days();
        let age = Duration::from_secs(u64::try_from(days).unwrap_or(0) * 24 * 60 * 60);
        let keeps = age <= self.keep_missing;
        if keeps {
            tracing::info!(
                arch,
                "kept {arch} of {date} in {}: this compose lacks it",
                repository.shown()
            );
        } else {
            tracing::warn!(
                arch,
                "dropped {arch} of {date} from {}: no compose has had it since",
                repository.shown()
            );
        }
        Ok(keeps)
    }

    /// Puts the index under each tag that lacks it, and reads all of them back. `Some` names a newer compose that has been
    /// put there instead.
    async fn move_tags(
        &self,
        deliverable: &Deliverable,
        place: &Place,
        tags: &[String],
        allow_older: bool,
    ) -> Result<Option<String>, Failure> {
        let name = deliverable.name();
        let repository = self.repository(&place.location, &name)?;
        let lock = {
            let mut moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
            moving.entry((place.location.clone(), name)).or_default().clone()
        };
        let _lock = lock.lock().await;
        // Another compose may have been released since this one was staged.
        let mut wrong = Vec::new();
        for tag in tags {
            match repository.manifest(tag).await? {
                Some(held) if held.digest.as_str() == place.id => {}
                Some(held) => {
                    if let Held::Newer(by) =
                        index::judge(tag, &parse(&repository, tag, &held)?, deliverable, allow_older)?
                    {
                        return Ok(Some(by));
                    }
                    wrong.push(tag);
                }
                None => wrong.push(tag),
            }
        }
        if wrong.is_empty() {
            return Ok(None);
        }
        let lost = || Error::Lost {
            repository: repository.shown().to_owned(),
            digest: place.id.clone(),
        };
        let index = repository.manifest(&place.id).await?.ok_or_else(lost)?;
        for tag in &wrong {
            repository.put_manifest(tag, oci::INDEX, &index.bytes).await?;
            tracing::info!(
                location = place.location,
                tag,
                digest = place.id,
                "moved tag {tag} of {}",
                repository.shown()
            );
        }
        for tag in tags {
            if let Some(by) = read_back(&repository, tag, place, deliverable).await? {
                return Ok(Some(by));
            }
        }
        Ok(None)
    }
}

/// What a look at a repository found.
enum Looked {
    /// The index is there; `tagged` if every tag has it.
    Complete { digest: Digest, tagged: bool },
    /// A tag holds a newer compose: the whole repository is left alone.
    Newer(String),
    /// Something has to be pushed. What the number tag holds may be of use.
    Lacking(Option<Index>),
}

async fn look(
    repository: &Repository,
    tags: &[String],
    deliverable: &Deliverable,
    allow_older: bool,
) -> Result<Looked, Failure> {
    let mut former = None;
    let mut complete: Vec<Digest> = Vec::new();
    for (position, tag) in tags.iter().enumerate() {
        let Some(held) = repository.manifest(tag).await? else {
            continue;
        };
        let index = parse(repository, tag, &held)?;
        match index::judge(tag, &index, deliverable, allow_older)? {
            Held::Newer(by) => return Ok(Looked::Newer(by)),
            Held::Complete => complete.push(held.digest),
            Held::Replaceable => {}
        }
        if position == 0 {
            former = Some(index);
        }
    }
    Ok(match complete.first() {
        Some(digest) => Looked::Complete {
            tagged: complete.len() == tags.len() && complete.iter().all(|other| other == digest),
            digest: digest.clone(),
        },
        None => Looked::Lacking(former),
    })
}

/// An index; an image of one architecture counts as one without entries.
fn parse(repository: &Repository, tag: &str, held: &Fetched) -> Result<Index, Error> {
    serde_json::from_slice(&held.bytes).map_err(|source| Error::Json {
        what: format!("{tag} of {} ({})", repository.shown(), held.media_type),
        source,
    })
}

/// A location that lacks the deliverable.
struct Pending {
    location: String,
    repository: Repository,
    former: Option<Index>,
    /// Of the index, as far as their manifests are there.
    entries: Vec<Descriptor>,
    /// Images that are not, by their place in the deliverable.
    lacks: Vec<usize>,
}

impl Pending {
    fn new(location: String, repository: Repository, former: Option<Index>, deliverable: &Deliverable) -> Self {
        let mut entries = Vec::new();
        let mut lacks = Vec::new();
        for (number, image) in deliverable.images.iter().enumerate() {
            match former.as_ref().and_then(|former| index::reusable(former, image)) {
                Some(entry) => entries.push(Descriptor {
                    annotations: index::annotations(deliverable, image),
                    ..entry.clone()
                }),
                None => lacks.push(number),
            }
        }
        Self {
            location,
            repository,
            former,
            entries,
            lacks,
        }
    }
}

/// Pushes all images to where they are lacking. Locations that fail go from `pending` to `failed`.
///
/// Fails with the first image that cannot be published, or else, after the others are done, with one that cannot be now.
async fn push_images(
    pending: &mut Vec<Pending>,
    deliverable: &Deliverable,
    task: &Task,
    failed: &mut Vec<Failed>,
) -> Result<(), Failure> {
    let mut pushes = FuturesUnordered::new();
    for (number, image) in deliverable.images.iter().enumerate() {
        let lacking = pending.iter().filter(|pending| pending.lacks.contains(&number));
        let lacking: Vec<_> = lacking
            .map(|pending| (pending.location.clone(), pending.repository.clone()))
            .collect();
        if !lacking.is_empty() {
            pushes.push(async move { (image, push_image(image, lacking, task).await) }.boxed());
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
async fn push_image(image: &Image, lacking: Vec<(String, Repository)>, task: &Task) -> Result<Pushed, Failure> {
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
                puts.push(async move { (location, put_image(&repository, read).await) }.boxed());
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

async fn put_image(repository: &Repository, image: &oci::Image) -> Result<(), registry::Error> {
    if repository.has_manifest(&image.digest).await? {
        return Ok(());
    }
    repository
        .put_manifest(image.digest.as_str(), &image.media_type, &image.manifest)
        .await
}

/// Compares what a tag has now. `Some` names a newer compose that somebody else has put there in between.
async fn read_back(
    repository: &Repository,
    tag: &str,
    place: &Place,
    deliverable: &Deliverable,
) -> Result<Option<String>, Failure> {
    let read = async || {
        let held = repository.manifest(tag).await?;
        if held.as_ref().is_some_and(|held| held.digest.as_str() == place.id) {
            return Ok(None);
        }
        if let Some(held) = &held
            && let Held::Newer(by) = index::judge(tag, &parse(repository, tag, held)?, deliverable, false)?
        {
            return Ok(Some(by));
        }
        Err(Failure::from(Error::Moved {
            tag: tag.to_owned(),
            repository: repository.shown().to_owned(),
            expected: place.id.clone(),
            found: held.map_or_else(|| "nothing".to_owned(), |held| held.digest.to_string()),
        }))
    };
    READ_BACK.run("registry read back", Failure::class, read).await
}

/// The day an unmarked entry's image was made.
async fn created(repository: &Repository, entry: &Descriptor) -> Result<Option<jiff::civil::Date>, Failure> {
    let Some(held) = repository.manifest(entry.digest.as_str()).await? else {
        return Ok(None);
    };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&held.bytes) else {
        return Ok(None);
    };
    let config = repository.small_blob(&manifest.config.digest).await?;
    let config = config.and_then(|bytes| serde_json::from_slice::<Config>(&bytes).ok());
    Ok(config
        .and_then(|config| config.created)
        .and_then(|created| index::date_of_created(&created)))
}

fn tags(deliverable: &Deliverable) -> Result<&[String], Error> {
    match &deliverable.target {
        Target::Repository { tags, .. } => Ok(tags),
        Target::Ami { .. }
        | Target::GalleryVersion { .. }
        | Target::GceImage { .. }
        | Target::Disk { .. }
        | Target::Layout { .. } => Err(Error::NotARepository(deliverable.name())),
    }
}

fn in_order(places: &mut [Place], deliverable: &Deliverable) {
    places.sort_by_key(|place| {
        deliverable
            .locations
            .iter()
            .position(|location| *location == place.location)
    });
}

/// What cannot be published.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// A registry that cannot be used at all.
    #[error("use registry {location}: {failure}")]
    Location {
        /// As configured.
        location: String,
        /// Why.
        failure: Failure,
    },
    /// Never seen: locations come from the same configuration.
    #[error("find {0} among the configured registries")]
    Unknown(String),
    /// Never seen: the selection knows the provider.
    #[error("publish {0} to a container registry: it is no repository")]
    NotARepository(String),
    /// A registry answered with something else.
    #[error("understand {what}")]
    Json {
        /// What was asked for.
        what: String,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// The index was pushed a moment ago.
    #[error("find index {digest} in {repository}: it is gone since it was pushed")]
    Lost {
        /// Host and name.
        repository: String,
        /// Of the index.
        digest: String,
    },
    /// Somebody else writes there.
    #[error("move tag {tag} of {repository} to {expected}: it holds {found}")]
    Moved {
        /// The tag.
        tag: String,
        /// Host and name.
        repository: String,
        /// What was put there.
        expected: String,
        /// What is there.
        found: String,
    },
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Location { failure, .. } => failure.class(),
            Self::Unknown(_) | Self::NotARepository(_) | Self::Json { .. } => Class::Deliverable,
            Self::Lost { .. } | Self::Moved { .. } => Class::TRANSIENT,
        }
    }
}
