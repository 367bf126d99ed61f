//! What the tags of a repository hold, and how they are moved.

use std::collections::BTreeMap;
use std::time::Duration;

use super::images::{Pending, newest, push_index};
use super::index::{self, Held};
use super::registry::{Fetched, Repository};
use crate::base::failure::{Class, Classified, Failure};
use crate::base::retry::Policy;
use crate::images::oci::{self, Digest, Index};
use crate::model::outcome::Place;
use crate::model::select::Deliverable;

/// A registry may show a tag's former state for a moment.
const READ_BACK: Policy = Policy {
    longest: Duration::from_secs(2),
    give_up_after: Duration::from_secs(10),
};

/// What a look at a repository found.
pub(super) enum Looked {
    /// The index is there; `tagged` if every tag has it.
    Complete { digest: Digest, tagged: bool },
    /// A tag holds a newer compose: the whole repository is left alone.
    Newer(String),
    /// Something has to be pushed. What the number tag holds may be of use.
    Lacking(Option<Index>),
}

pub(super) async fn look(
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
        let (index, judged) = judge(repository, tag, &held, deliverable, allow_older).await?;
        match judged {
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

/// What a tag's content is to the deliverable.
async fn judge(
    repository: &Repository,
    tag: &str,
    held: &Fetched,
    deliverable: &Deliverable,
    allow_older: bool,
) -> Result<(Index, Held), Failure> {
    let index = parse(repository, tag, held)?;
    let created = if allow_older || index::is_marked(&index) {
        None
    } else {
        newest(repository, held, &index).await?
    };
    let judged = index::judge(tag, &index, created, deliverable, allow_older)?;
    Ok((index, judged))
}

/// Where tags have got to.
pub(super) enum Moved {
    /// They have the deliverable, in the index of this digest.
    To(String),
    /// A newer compose has been put there instead.
    Newer(String),
}

/// Puts the index under each tag that lacks it, and reads all of them back.
///
/// Another compose may have been released since this one was staged: what is kept of former architectures comes from what
/// the number tag holds now, and the index is made anew where that is something else.
pub(super) async fn move_tags(
    repository: &Repository,
    place: &Place,
    deliverable: &Deliverable,
    tags: &[String],
    keep_missing: Duration,
    allow_older: bool,
) -> Result<Moved, Failure> {
    let mut before: BTreeMap<&str, Option<Digest>> = BTreeMap::new();
    let mut former = None;
    for (position, tag) in tags.iter().enumerate() {
        let held = repository.manifest(tag).await?;
        if let Some(held) = held.as_ref().filter(|held| held.digest.as_str() != place.id) {
            let (index, judged) = judge(repository, tag, held, deliverable, allow_older).await?;
            if let Held::Newer(by) = judged {
                return Ok(Moved::Newer(by));
            }
            if position == 0 {
                former = Some(index);
            }
        }
        before.insert(tag, held.map(|held| held.digest));
    }
    let is_staged = |held: &Option<Digest>| held.as_ref().is_some_and(|digest| digest.as_str() == place.id);
    if before.values().all(is_staged) {
        return Ok(Moved::To(place.id.clone()));
    }
    let lost = || Error::Lost {
        repository: repository.shown().to_owned(),
        digest: place.id.clone(),
    };
    let mut index = repository.manifest(&place.id).await?.ok_or_else(lost)?;
    if let Some(former) = &former {
        let mut entries = parse(repository, &place.id, &index)?.manifests;
        entries.retain(|entry| index::is_own(entry, deliverable));
        let pending = Pending::complete(place.location.clone(), repository.clone(), former.clone(), entries);
        index = push_index(&pending, deliverable, keep_missing).await?;
    }
    // The number comes first: where this is cut off, what has gone on is the tag that moves least.
    for tag in tags {
        if before.get(tag.as_str()).and_then(Option::as_ref) == Some(&index.digest) {
            continue;
        }
        repository.put_manifest(tag, oci::INDEX, &index.bytes).await?;
        tracing::info!(
            location = place.location,
            tag,
            digest = %index.digest,
            "moved tag {tag} of {}",
            repository.shown()
        );
    }
    if let Some(former) = &former {
        tell(
            repository,
            former,
            &parse(repository, index.digest.as_str(), &index)?,
            deliverable,
        );
    }
    for tag in tags {
        let before = before.get(tag.as_str()).and_then(Option::as_ref);
        if let Some(by) = read_back(repository, tag, &index.digest, deliverable, before).await? {
            return Ok(Moved::Newer(by));
        }
    }
    Ok(Moved::To(index.digest.to_string()))
}

/// Says what became of the former entries for architectures that this compose lacks.
fn tell(repository: &Repository, former: &Index, index: &Index, deliverable: &Deliverable) {
    for entry in index::missing(former, deliverable) {
        let platform = entry.platform.as_ref();
        let arch = platform.map(|platform| oci::fedora_architecture(&platform.architecture));
        let arch = arch.unwrap_or_default();
        let date = index::date_of(entry).map_or_else(|| "without a mark".to_owned(), |date| format!("of {date}"));
        if index.manifests.contains(entry) {
            tracing::info!(
                arch,
                "kept {arch} {date} in {}: this compose lacks it",
                repository.shown()
            );
        } else {
            tracing::warn!(
                arch,
                "dropped {arch} {date} from {}: this compose lacks it, and it is too old to be kept",
                repository.shown()
            );
        }
    }
}

/// Compares what a tag has now. `Some` names a newer compose that somebody else has put there in between.
async fn read_back(
    repository: &Repository,
    tag: &str,
    put: &Digest,
    deliverable: &Deliverable,
    before: Option<&Digest>,
) -> Result<Option<String>, Failure> {
    let read = async || {
        let held = repository.manifest(tag).await?;
        if held.as_ref().is_some_and(|held| held.digest == *put) {
            return Ok(None);
        }
        if let Some(held) = &held
            // What was there before is the registry's own delay.
            && before != Some(&held.digest)
            && let (_, Held::Newer(by)) = judge(repository, tag, held, deliverable, false).await?
        {
            return Ok(Some(by));
        }
        Err(Failure::from(Error::Moved {
            tag: tag.to_owned(),
            repository: repository.shown().to_owned(),
            expected: put.to_string(),
            found: held.map_or_else(|| "nothing".to_owned(), |held| held.digest.to_string()),
        }))
    };
    READ_BACK.run("registry read back", Failure::class, read).await
}

/// Tags that cannot be understood or moved.
#[derive(Debug, thiserror::Error)]
enum Error {
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
            Self::Json { .. } => Class::Deliverable,
            Self::Lost { .. } | Self::Moved { .. } => Class::TRANSIENT,
        }
    }
}
