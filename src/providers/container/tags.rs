//! The tags of a repository: a look at them before anything is staged, and their move to what was staged.

use std::collections::BTreeMap;
use std::time::Duration;

use super::images::newest;
use super::index::{self, Judgment};
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

/// The state of a repository before anything is pushed.
pub(super) struct Looked {
    /// The content of each tag, in the order of the tags.
    pub(super) tags: Held,
    pub(super) state: State,
}

/// Digests of what tags hold.
pub(super) type Held = Vec<Option<String>>;

/// How much of a deliverable a repository has.
pub(super) enum State {
    /// The index is there; `tagged` if every tag has it.
    Complete { digest: Digest, tagged: bool },
    /// A tag holds a newer compose: the whole repository is left alone.
    Newer(String),
    /// An index, and maybe images, have to be pushed.
    Lacking(Lacking),
}

/// Indexes with entries for the one that is to be pushed.
#[derive(Default)]
pub(super) struct Lacking {
    /// The index that is replaced: what is kept of former architectures comes from it.
    pub(super) former: Option<Index>,
    /// An index of another tag, which has all images.
    pub(super) other: Option<Index>,
}

pub(super) async fn look(
    repository: &Repository,
    tags: &[String],
    deliverable: &Deliverable,
    allow_older: bool,
) -> Result<Looked, Failure> {
    let mut held = Vec::new();
    let mut lacking = Lacking::default();
    let mut number = None;
    for (position, tag) in tags.iter().enumerate() {
        let found = repository.tag(tag).await?;
        held.push(found.as_ref().map(|found| found.digest.to_string()));
        let Some(found) = found else { continue };
        let (index, judged) = judge(repository, tag, &found, deliverable, allow_older).await?;
        match judged {
            Judgment::Newer(by) => {
                return Ok(Looked {
                    tags: held,
                    state: State::Newer(by),
                });
            }
            Judgment::Complete if position == 0 => number = Some(found.digest),
            Judgment::Complete => lacking.other = lacking.other.or(Some(index)),
            Judgment::Replaceable if position == 0 => lacking.former = Some(index),
            Judgment::Replaceable => {}
        }
    }
    let state = match number {
        Some(digest) => State::Complete {
            tagged: held.iter().all(|held| held.as_deref() == Some(digest.as_str())),
            digest,
        },
        None => {
            // Where the number tag is gone, the other one has what was kept.
            lacking.former = lacking.former.or_else(|| lacking.other.clone());
            State::Lacking(lacking)
        }
    };
    Ok(Looked { tags: held, state })
}

/// Compares a tag's content with the deliverable.
async fn judge(
    repository: &Repository,
    tag: &str,
    held: &Fetched,
    deliverable: &Deliverable,
    allow_older: bool,
) -> Result<(Index, Judgment), Failure> {
    let index = index::parse(&held.bytes);
    let created = if allow_older || index::is_marked(&index) {
        None
    } else {
        newest(repository, held, &index).await?
    };
    let judged = index::judge(tag, &index, created, deliverable, allow_older)?;
    Ok((index, judged))
}

/// The outcome of moving tags.
pub(super) enum Moved {
    /// They have what was staged.
    Done,
    /// A newer compose has been put there instead.
    Newer(String),
    /// A tag has changed since staging: what was staged may lack something that is there now.
    Stale,
}

/// Puts exactly what was staged under each tag that lacks it, and reads all of them back.
///
/// `before` is what the tags held when it was staged.
pub(super) async fn move_tags(
    repository: &Repository,
    place: &Place,
    before: &Held,
    deliverable: &Deliverable,
    tags: &[String],
    allow_older: bool,
) -> Result<Moved, Failure> {
    let mut now: BTreeMap<&str, Option<Digest>> = BTreeMap::new();
    let mut former = None;
    let mut changed = before.len() != tags.len();
    for (position, tag) in tags.iter().enumerate() {
        let held = repository.tag(tag).await?;
        let digest = held.as_ref().map(|held| held.digest.as_str());
        if digest != Some(&place.id) {
            changed |= before.get(position).is_none_or(|before| before.as_deref() != digest);
            if let Some(held) = &held {
                let (index, judged) = judge(repository, tag, held, deliverable, allow_older).await?;
                if let Judgment::Newer(by) = judged {
                    return Ok(Moved::Newer(by));
                }
                if position == 0 {
                    former = Some(index);
                }
            }
        }
        now.insert(tag, held.map(|held| held.digest));
    }
    let is_staged = |held: &Option<Digest>| held.as_ref().is_some_and(|digest| digest.as_str() == place.id);
    if now.values().all(is_staged) {
        return Ok(Moved::Done);
    }
    if changed {
        return Ok(Moved::Stale);
    }
    let lost = || Error::Lost {
        repository: repository.shown().to_owned(),
        digest: place.id.clone(),
    };
    let staged = repository.manifest(&place.id).await?.ok_or_else(lost)?;
    // The number comes first: where this is cut off, what has gone on is the tag that moves least.
    for tag in tags {
        if now.get(tag.as_str()).is_some_and(is_staged) {
            continue;
        }
        repository.put_manifest(tag, &staged.media_type, &staged.bytes).await?;
        tracing::info!(
            location = place.location,
            tag,
            digest = %staged.digest,
            "moved tag {tag} of {}",
            repository.shown()
        );
    }
    if let Some(former) = &former {
        log_missing(repository, former, &index::parse(&staged.bytes), deliverable);
    }
    for tag in tags {
        let before = now.get(tag.as_str()).and_then(Option::as_ref);
        if let Some(by) = read_back(repository, tag, &staged.digest, deliverable, before).await? {
            return Ok(Moved::Newer(by));
        }
    }
    Ok(Moved::Done)
}

/// Logs which former entries were kept and dropped for architectures that this compose lacks.
fn log_missing(repository: &Repository, former: &Index, index: &Index, deliverable: &Deliverable) {
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

/// Compares what a tag has now. `Some` names a newer compose that another process has put there in between.
async fn read_back(
    repository: &Repository,
    tag: &str,
    put: &Digest,
    deliverable: &Deliverable,
    before: Option<&Digest>,
) -> Result<Option<String>, Failure> {
    let read = async || {
        let held = repository.tag(tag).await?;
        if held.as_ref().is_some_and(|held| held.digest == *put) {
            return Ok(None);
        }
        if let Some(held) = &held
            // The former content is the registry's own delay.
            && before != Some(&held.digest)
            && let (_, Judgment::Newer(by)) = judge(repository, tag, held, deliverable, false).await?
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
    /// The index was pushed a moment ago.
    #[error("find index {digest} in {repository}: it is gone since it was pushed")]
    Lost {
        /// Host and name.
        repository: String,
        /// Of the index.
        digest: String,
    },
    /// Another process writes there.
    #[error("move tag {tag} of {repository} to {expected}: it holds {found}")]
    Moved {
        /// The tag.
        tag: String,
        /// Host and name.
        repository: String,
        /// The digest that was put there.
        expected: String,
        /// The digest that is there.
        found: String,
    },
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Lost { .. } | Self::Moved { .. } => Class::TRANSIENT,
        }
    }
}
