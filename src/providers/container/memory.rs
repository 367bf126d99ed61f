//! The images that this process has pushed, for a round after one that failed with another image, with the index, or with a
//! tag: no tag leads to them then. Only time depends on this memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::registry::Repository;
use crate::images::oci::{self, Descriptor};
use crate::model::compose::Image;

/// A compose has a hundred: a dozen repositories of five architectures, for two registries. The oldest are forgotten first.
const ENTRIES: usize = 1000;

/// Manifests of images, by repository.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<VecDeque<(Key, Descriptor)>>);

#[derive(Debug, PartialEq, Eq)]
struct Key {
    repository: String,
    arch: String,
    sha256: String,
}

impl Key {
    fn of(repository: &Repository, image: &Image) -> Self {
        Self {
            repository: repository.shown().to_owned(),
            arch: image.arch.clone(),
            sha256: image.sha256.clone(),
        }
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Key, Descriptor)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image's manifest is in the repository.
    pub(super) fn remember(&self, repository: &Repository, image: &Image, pushed: &oci::Image) {
        let key = Key::of(repository, image);
        let mut entries = self.lock();
        entries.retain(|(known, _)| *known != key);
        if entries.len() == ENTRIES {
            entries.pop_front();
        }
        entries.push_back((key, pushed.descriptor(BTreeMap::new())));
    }

    /// The image's manifest, if it was put there. It may be gone since.
    pub(super) fn recall(&self, repository: &Repository, image: &Image) -> Option<Descriptor> {
        let key = Key::of(repository, image);
        let entries = self.lock();
        let (_, descriptor) = entries.iter().find(|(known, _)| *known == key)?;
        Some(descriptor.clone())
    }
}
