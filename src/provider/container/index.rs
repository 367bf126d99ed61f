//! What a tag holds, and the index that takes its place. Pure functions, no I/O.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::Date;

use crate::compose::{ComposeId, Image};
use crate::error::{Class, Classified};
use crate::oci::{Descriptor, Digest, INDEX, Index, architecture, fedora_architecture};
use crate::provider::{Mark, OWNER};
use crate::select::Deliverable;

/// Before the names of the mark in annotations.
const PREFIX: &str = "org.fedoraproject.cloud-image-uploader.";
/// An operator's word that an image must stay.
const DELETE: &str = "org.fedoraproject.cloud-image-uploader.delete";
/// [Predefined](https://github.com/opencontainers/image-spec/blob/main/annotations.md): when it was made.
const CREATED: &str = "org.opencontainers.image.created";

/// What a tag holds, as far as the deliverable is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Every image of the deliverable.
    Complete,
    /// Something that may be replaced: an older compose, the former service's work, a part of ours.
    Replaceable,
    /// A newer compose.
    Newer(String),
}

/// What a tag's index is to a deliverable.
pub(super) fn judge(tag: &str, index: &Index, deliverable: &Deliverable, allow_older: bool) -> Result<Held, Error> {
    // The former service left no mark. Its tags are taken over.
    let Some(mark) = Mark::decode(PREFIX, &index.annotations) else {
        return Ok(Held::Replaceable);
    };
    if mark.owner != OWNER {
        return Err(Error::Owner {
            tag: tag.to_owned(),
            owner: mark.owner,
        });
    }
    if mark.compose_id == deliverable.compose.as_str() {
        for image in &deliverable.images {
            let ours = |entry: &&Descriptor| is_for(entry, image) && compose_of(entry) == Some(mark.compose_id.clone());
            let Some(entry) = index.manifests.iter().find(ours) else {
                return Ok(Held::Replaceable);
            };
            let found = Mark::decode(PREFIX, &entry.annotations).and_then(|mark| mark.image_sha256);
            if found.as_ref() != Some(&image.sha256) {
                return Err(Error::OtherContent {
                    tag: tag.to_owned(),
                    arch: image.arch.clone(),
                    compose: mark.compose_id,
                    expected: image.sha256.clone(),
                    found: found.unwrap_or_else(|| "unknown".to_owned()),
                });
            }
        }
        return Ok(Held::Complete);
    }
    if index.annotations.get(DELETE).is_some_and(|value| value == "never") {
        return Err(Error::Kept { tag: tag.to_owned() });
    }
    match ComposeId::parse(&mark.compose_id) {
        Ok(held) if held.age(&deliverable.compose) == Ordering::Greater && !allow_older => {
            Ok(Held::Newer(mark.compose_id))
        }
        // An id that nobody can read was edited by an operator, who wants it replaced.
        Ok(_) | Err(_) => Ok(Held::Replaceable),
    }
}

fn is_for(entry: &Descriptor, image: &Image) -> bool {
    let wanted = architecture(&image.arch);
    entry
        .platform
        .as_ref()
        .is_some_and(|platform| platform.architecture == wanted)
}

fn compose_of(entry: &Descriptor) -> Option<String> {
    Mark::decode(PREFIX, &entry.annotations).map(|mark| mark.compose_id)
}

/// The entry that already is this very image, from whatever compose.
pub(super) fn reusable<'a>(index: &'a Index, image: &Image) -> Option<&'a Descriptor> {
    index.manifests.iter().find(|entry| {
        let mark = Mark::decode(PREFIX, &entry.annotations);
        is_for(entry, image) && mark.is_some_and(|mark| mark.image_sha256.as_ref() == Some(&image.sha256))
    })
}

/// The former entries of architectures that the deliverable lacks.
pub(super) fn missing<'a>(index: &'a Index, deliverable: &'a Deliverable) -> impl Iterator<Item = &'a Descriptor> {
    index.manifests.iter().filter(|entry| {
        let reference = entry.annotations.contains_key("vnd.docker.reference.type");
        let unknown = entry
            .platform
            .as_ref()
            .is_none_or(|platform| platform.architecture == "unknown");
        !reference && !unknown && !deliverable.images.iter().any(|image| is_for(entry, image))
    })
}

/// The day of the compose an entry came from, if it is marked.
pub(super) fn date_of(entry: &Descriptor) -> Option<Date> {
    compose_of(entry)
        .and_then(|id| ComposeId::parse(&id).ok())
        .map(|id| id.date)
}

/// The day in a configuration's `created`.
pub(super) fn date_of_created(created: &str) -> Option<Date> {
    let created: Timestamp = created.parse().ok()?;
    Some(created.to_zoned(jiff::tz::TimeZone::UTC).date())
}

/// Annotations of an image's entry.
pub(super) fn annotations(deliverable: &Deliverable, image: &Image) -> BTreeMap<String, String> {
    deliverable.mark(Some(image)).encode(PREFIX)
}

/// The index: the same entries give the same bytes.
pub(super) fn build(deliverable: &Deliverable, mut entries: Vec<Descriptor>) -> Result<(Digest, Bytes), Error> {
    entries.sort_by_key(|entry| {
        let platform = entry.platform.clone();
        let arch = platform
            .as_ref()
            .map(|platform| fedora_architecture(&platform.architecture).to_owned());
        (
            arch,
            platform.and_then(|platform| platform.variant),
            entry.digest.clone(),
        )
    });
    let mut annotations = deliverable.mark(None).encode(PREFIX);
    let midnight = format!("{}T00:00:00Z", deliverable.compose.date);
    annotations.insert(CREATED.to_owned(), midnight);
    let index = Index {
        schema_version: 2,
        media_type: Some(INDEX.to_owned()),
        manifests: entries,
        annotations,
    };
    let bytes = serde_json::to_vec(&index).map_err(Error::Json)?;
    Ok((Digest::of(&bytes), bytes.into()))
}

/// A tag that may not be moved.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Somebody else looks after it.
    #[error(
        "move tag {tag}: its index is marked as owned by {owner:?}; remove that mark or the tag to let it be moved"
    )]
    Owner {
        /// The tag.
        tag: String,
        /// By its mark.
        owner: String,
    },
    /// An operator wants it to stay.
    #[error("move tag {tag}: its index is marked delete=never")]
    Kept {
        /// The tag.
        tag: String,
    },
    /// The same name with other content.
    #[error("move tag {tag}: it holds the {arch} image of {compose} with SHA-256 {found}, and this one has {expected}")]
    OtherContent {
        /// The tag.
        tag: String,
        /// The architecture that differs.
        arch: String,
        /// The compose of both.
        compose: String,
        /// Of the image to be published.
        expected: String,
        /// Of the published one.
        found: String,
    },
    /// Never seen.
    #[error("write the index")]
    Json(#[source] serde_json::Error),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Owner { .. } | Self::Kept { .. } | Self::OtherContent { .. } | Self::Json(_) => Class::Deliverable,
        }
    }
}
