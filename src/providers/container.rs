//! Container registries.
//!
//! *Stage* pushes blobs, then each architecture's manifest, then the
//! [index](https://github.com/opencontainers/image-spec/blob/main/image-index.md) that the tags are to have, with what is
//! kept of former architectures: all by digest, which no user asks for. *Release* moves the tags to exactly that index and
//! reads them back; where a tag has changed since, it moves nothing, and the location is staged again. An archive is read
//! once for all registries that lack it. All state is in the registries: the index's annotations say which compose it came
//! from, and those of its entries which image files.

mod auth;
mod challenge;
mod error;
mod images;
mod index;
mod memory;
mod push;
mod registry;
mod tags;
mod upload;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::sync::OwnedMutexGuard;

use self::images::{Pending, push_images, push_index};
use self::memory::Memory;
use self::registry::{Registry, Repository};
use self::tags::{Held, Looked, Moved, State, look, move_tags};
use super::contract::{Finding, Publish, Task};
use crate::base::failure::{Class, Classified, Failure};
use crate::config::Environment;
use crate::config::container as config;
use crate::model::outcome::{Failed, Origin, Outcome, Place, Superseded};
use crate::model::select::{Deliverable, Target};

/// One tag is moved at a time: registries have no compare-and-swap. By location and repository.
type Locks = Mutex<HashMap<(String, String), Arc<tokio::sync::Mutex<()>>>>;

/// Publishes to container registries.
pub struct ContainerProvider {
    registries: Vec<Arc<Registry>>,
    repositories: Vec<String>,
    keep_missing: Duration,
    moving: Locks,
    memory: Memory,
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
            memory: Memory::default(),
        })
    }
}

#[async_trait]
impl Publish for ContainerProvider {
    async fn check(&self) -> Vec<Finding> {
        let findings = self.registries.iter().map(|registry| async move {
            let mut result = Ok("authenticated".to_owned());
            if let Some(name) = self.repositories.first()
                && let Err(error) = registry.repository(name).check().await
            {
                result = Err(format!("failed to {}", Failure::from(error)));
            }
            Finding {
                subject: format!("registry {}", registry.url),
                result,
            }
        });
        join_all(findings).await
    }

    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure> {
        let tags = tags_of(deliverable)?;
        let mut staged = Outcome::default();
        let mut lacking = Vec::new();
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
            let found = looked.map(|(repository, Looked { tags, state })| {
                staged.basis.insert(location.clone(), tags);
                (repository, state)
            });
            match found {
                Ok((_, State::Newer(by))) => staged.superseded.push(Superseded { location, by }),
                Ok((_, State::Complete { digest, tagged })) if tagged || task.concerns(&location) => {
                    staged.places.push(Place {
                        location,
                        id: digest.to_string(),
                        origin: if tagged { Origin::Found } else { Origin::Created },
                    })
                }
                Ok((repository, State::Lacking(found))) if task.concerns(&location) => {
                    lacking.push(Pending::new(location, repository, found, deliverable, &self.memory));
                }
                Ok((_, State::Complete { .. } | State::Lacking(_))) => {}
                Err(failure) => {
                    staged.unseen.insert(location.clone());
                    if task.concerns(&location) {
                        staged.failed.push(Failed { location, failure });
                    } else {
                        tracing::warn!(location, "failed to {failure}; left out");
                    }
                }
            }
        }
        let mut pending = Vec::new();
        for found in join_all(lacking).await {
            match found {
                Ok(found) => pending.push(found),
                Err(failed) => staged.failed.push(failed),
            }
        }
        let pushed = push_images(&mut pending, deliverable, task, &self.memory, &mut staged.failed).await;
        if let Err(failure) = pushed {
            // Where the deliverable is live already, that counts, whatever is the matter with its images now.
            if staged.places.is_empty() {
                return Err(failure);
            }
            staged.failed.extend(pending.drain(..).map(|pending| Failed {
                location: pending.location,
                failure: failure.clone(),
            }));
        }
        let pushes = pending.into_iter().map(|pending| async move {
            let pushed = push_index(&pending, deliverable, self.keep_missing).await;
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
        staged.sort(deliverable);
        Ok(staged)
    }

    async fn release(&self, deliverable: &Deliverable, staged: Outcome, task: &Task) -> Result<Outcome, Failure> {
        let tags = tags_of(deliverable)?;
        let (mut publication, staged) = Outcome::without_places(staged);
        let basis = std::mem::take(&mut publication.basis);
        let releases = staged.into_iter().map(|place| {
            let before = basis.get(&place.location).cloned().unwrap_or_default();
            async move {
                // Looked at in the first step, and not to be changed.
                if !task.concerns(&place.location) {
                    return (place, Ok(Moved::Done));
                }
                let outcome = self
                    .release_place(deliverable, &place, &before, tags, task.allow_older)
                    .await;
                (place, outcome)
            }
        });
        for (place, outcome) in join_all(releases).await {
            let location = place.location.clone();
            match outcome {
                Ok(Moved::Done) => publication.places.push(place),
                Ok(Moved::Stale) => publication.stale.push(location),
                Ok(Moved::Newer(by)) => publication.superseded.push(Superseded { location, by }),
                Err(failure) => {
                    publication.unseen.insert(location.clone());
                    publication.failed.push(Failed { location, failure });
                }
            }
        }
        publication.sort(deliverable);
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

    async fn release_place(
        &self,
        deliverable: &Deliverable,
        place: &Place,
        before: &Held,
        tags: &[String],
        allow_older: bool,
    ) -> Result<Moved, Failure> {
        let name = deliverable.name();
        let repository = self.repository(&place.location, &name)?;
        let _writer = self.only_writer(place.location.clone(), name).await;
        move_tags(&repository, place, before, deliverable, tags, allow_older).await
    }

    async fn only_writer(&self, location: String, name: String) -> OwnedMutexGuard<()> {
        let lock = {
            let mut moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
            moving.entry((location, name)).or_default().clone()
        };
        lock.lock_owned().await
    }
}

fn tags_of(deliverable: &Deliverable) -> Result<&[String], Error> {
    let Target::Container(repository) = &deliverable.target else {
        return Err(Error::NotARepository(deliverable.name()));
    };
    Ok(&repository.tags)
}

/// A deliverable that cannot be published.
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
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Location { failure, .. } => failure.class(),
            Self::Unknown(_) | Self::NotARepository(_) => Class::Deliverable,
        }
    }
}
