//! Size and time of modification of what was published, kept beside it: a file that was damaged or changed since shows it.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A file's state when it was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Bytes, holes included.
    pub(super) size: u64,
    /// RFC 3339, to the nanosecond.
    pub(super) modified: String,
}

impl Stamp {
    /// The state of a file now.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Self::from_metadata(&fs::metadata(path)?)
    }

    fn from_metadata(found: &Metadata) -> io::Result<Self> {
        let modified = Timestamp::try_from(found.modified()?).map_err(io::Error::other)?;
        Ok(Self {
            size: found.len(),
            modified: modified.to_string(),
        })
    }

    /// The state of every file below a folder now, by its path there.
    pub(super) fn of_all(folder: &Path) -> io::Result<BTreeMap<String, Self>> {
        let mut stamps = BTreeMap::new();
        let mut folders = vec![(folder.to_owned(), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                let found = entry.metadata()?;
                if found.is_dir() {
                    folders.push((entry.path(), format!("{name}/")));
                } else {
                    stamps.insert(name, Self::from_metadata(&found)?);
                }
            }
        }
        Ok(stamps)
    }
}

/// The state of what is published under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Live {
    /// It is there as it was published.
    Whole,
    /// It was published here, and has been changed since: it is written again.
    Damaged,
    /// Nothing has the name.
    Absent,
}

impl Live {
    /// From whether the state is still the one of publication.
    pub(super) fn unless_changed(path: &Path, changed: bool) -> Self {
        if !changed {
            return Self::Whole;
        }
        tracing::warn!(
            "{} has changed since it was published; it is written again",
            path.display()
        );
        Self::Damaged
    }
}

/// The file beside a published one that says what it is.
pub(super) fn mark_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.mark.json"))
}
