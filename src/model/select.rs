//! Selection: the deliverables of a compose that this process publishes, by its provider's rules. No I/O.

use std::collections::BTreeMap;
use std::fmt;

use wildmatch::WildMatch;

use super::compose::release::Release;
use super::compose::{BadRow, Compose, Image, Row};
pub use super::deliverable::Deliverable;
pub use super::target::Target;
use super::target::{Group, Publisher};
use crate::base::failure::{Class, Classified};

/// The operator's choice by `--only`: a pattern with `*` and `?` over image paths, file names, and repositories.
#[derive(Debug, Clone)]
pub struct Only(WildMatch);

impl Only {
    /// Reads a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(WildMatch::new(pattern))
    }

    /// A repository is published whole or not at all, so one image of it selects the others.
    fn selects(&self, group: &Group, rows: &[&Row]) -> bool {
        let named = group.is_repository && self.0.matches(&group.key);
        let matches = |row: &&Row| self.0.matches(&row.path) || self.0.matches(row.file_name());
        named || rows.iter().any(matches)
    }
}

/// The outcome of selection.
#[derive(Debug, Default)]
pub struct Selection {
    /// Ordered by topic.
    pub deliverables: Vec<Deliverable>,
    /// Deliverables whose rows are bad or contradict each other.
    pub refused: Vec<Error>,
}

/// The deliverables of a compose that this publisher takes.
#[must_use]
pub fn select(publisher: &Publisher, compose: &Compose, release: &Release, only: Option<&Only>) -> Selection {
    let mut groups: BTreeMap<(Group, String), Vec<&Row>> = BTreeMap::new();
    for row in &compose.rows {
        if let Some(group) = publisher.rules.group(compose, row) {
            groups.entry((group, row.subvariant.clone())).or_default().push(row);
        }
    }
    let mut selection = Selection::default();
    for ((group, subvariant), rows) in groups {
        if only.is_some_and(|only| !only.selects(&group, &rows)) {
            continue;
        }
        let name = format!("{subvariant} ({})", group.key).escape_debug().to_string();
        let mut images = match checked(&rows) {
            Ok(images) => images,
            Err(rows) => {
                selection.refused.push(Error::Rows { name, rows: Rows(rows) });
                continue;
            }
        };
        images.sort_by(|a, b| a.arch.cmp(&b.arch));
        if let Some(twins) = images.windows(2).find(|pair| pair[0].arch == pair[1].arch) {
            selection.refused.push(Error::Twins {
                name,
                arch: twins[0].arch.clone(),
                paths: [twins[0].path.clone(), twins[1].path.clone()],
            });
            continue;
        }
        let deliverable = Deliverable {
            target: publisher.rules.target(&group, &images, compose, release),
            locations: publisher.locations.clone(),
            images,
            subvariant,
            compose: compose.id.clone(),
            release: release.clone(),
        };
        selection.deliverables.push(deliverable);
    }
    selection
        .deliverables
        .sort_by_key(|deliverable| (deliverable.topic(), deliverable.name()));
    selection
}

/// The images of a deliverable, each once: one file may be listed under several variants.
fn checked(rows: &[&Row]) -> Result<Vec<Image>, Vec<BadRow>> {
    let (mut images, mut bad) = (Vec::new(), Vec::new());
    for row in rows {
        match &row.image {
            Ok(image) if !images.contains(image) => images.push(image.clone()),
            Err(row) if !bad.contains(row) => bad.push(row.clone()),
            Ok(_) | Err(_) => {}
        }
    }
    if bad.is_empty() { Ok(images) } else { Err(bad) }
}

/// The bad rows of a deliverable; never empty.
#[derive(Debug)]
pub struct Rows(Vec<BadRow>);

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, row) in self.0.iter().enumerate() {
            let separator = if position > 0 { "; " } else { "" };
            write!(f, "{separator}{row}")?;
        }
        Ok(())
    }
}

/// A deliverable that cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The metadata does not describe its images properly.
    #[error("publish {name}: {rows}")]
    Rows {
        /// The subvariant, with architecture, repository, or file.
        name: String,
        /// The rows and their faults.
        rows: Rows,
    },
    /// Two different images for one architecture, either of which may be the right one.
    #[error("choose the {arch} image of {name}: the compose has {} and {}", paths[0], paths[1])]
    Twins {
        /// The repository or subvariant.
        name: String,
        /// The architecture that is there twice.
        arch: String,
        /// The two images.
        paths: [String; 2],
    },
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Rows { .. } | Self::Twins { .. } => Class::Deliverable,
        }
    }
}
