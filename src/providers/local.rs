//! A local directory: disks as sparse raw files, containers as OCI layouts.
//!
//! Below `directory`, in order: `<compose>/<arch>/.<file>.partial` while it is written, `.<file>.<sha256>.staged` when
//! it is complete and verified, then `<file>` beside `<file>.mark.json`, which says what it is and when it was last
//! modified: a file that has changed since is written again. Only one process at a time writes to a directory.

mod disk;
mod layout;
mod stamp;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::contract::{Finding, Publish, Task};
use crate::base::failure::{Class, Classified, Failure};
use crate::config::local::Local;
use crate::model::outcome::{Outcome, Place};
use crate::model::select::{Deliverable, Target};
use crate::model::target::local::LocalImage;

/// Held while a process writes to the directory.
const LOCK: &str = ".lock";

/// Publishes to a directory of this machine.
#[derive(Debug)]
pub struct LocalProvider {
    directory: PathBuf,
    holders: Mutex<Holders>,
}

/// The tasks of this process that write to the directory.
#[derive(Debug, Default)]
struct Holders {
    count: usize,
    lock: Option<File>,
}

/// The right of one task to write to the directory. The last one to be dropped opens the directory to other processes.
struct Claim<'a>(&'a Mutex<Holders>);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holders.count -= 1;
        if holders.count == 0 {
            holders.lock = None;
        }
    }
}

impl LocalProvider {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(section: &Local) -> Self {
        Self {
            directory: section.directory.clone(),
            holders: Mutex::default(),
        }
    }

    /// Makes the directory ours until the claim is dropped. Several tasks of this process may hold claims at once.
    fn claim(&self) -> Result<Claim<'_>, Error> {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if holders.lock.is_none() {
            std::fs::create_dir_all(&self.directory).map_err(at(&self.directory))?;
            let path = self.directory.join(LOCK);
            let file = File::create(&path).map_err(at(&path))?;
            match file.try_lock() {
                Ok(()) => holders.lock = Some(file),
                Err(TryLockError::WouldBlock) => return Err(Error::InUse(self.directory.clone())),
                Err(TryLockError::Error(source)) => return Err(Error::File { path, source }),
            }
        }
        holders.count += 1;
        Ok(Claim(&self.holders))
    }

    fn location(&self) -> String {
        self.directory.display().to_string()
    }

    fn staged(&self, place: Place) -> Outcome {
        Outcome {
            places: vec![place],
            ..Outcome::default()
        }
    }
}

#[async_trait]
impl Publish for LocalProvider {
    async fn check(&self) -> Vec<Finding> {
        let result = match std::fs::metadata(&self.directory) {
            Ok(found) if found.is_dir() => Ok("is there".to_owned()),
            Ok(_) => Err("is not a directory; move it away, or name another one".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("will be made".to_owned()),
            Err(error) => Err(format!("failed to look at it: {error}")),
        };
        vec![Finding {
            subject: format!("directory {}", self.directory.display()),
            result,
        }]
    }

    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure> {
        let _claim = self.claim()?;
        let Target::Local(local) = &deliverable.target else {
            return Ok(Outcome::default());
        };
        let origin = match local {
            LocalImage::Disk { path } => disk::stage(&self.directory.join(path), deliverable, task).await?,
            LocalImage::Layout { path, .. } => layout::stage(&self.directory.join(path), deliverable, task).await?,
        };
        Ok(self.staged(Place {
            location: self.location(),
            id: self.directory.join(deliverable.name()).display().to_string(),
            origin,
        }))
    }

    async fn release(&self, deliverable: &Deliverable, staged: Outcome, _task: &Task) -> Result<Outcome, Failure> {
        let _claim = self.claim()?;
        if let Target::Local(local) = &deliverable.target {
            match local {
                LocalImage::Disk { path } => disk::release(&self.directory.join(path), deliverable)?,
                LocalImage::Layout { path, .. } => layout::release(&self.directory.join(path), deliverable)?,
            }
        }
        Ok(Outcome {
            places: staged.places,
            ..Outcome::default()
        })
    }
}

/// A hidden neighbour of a path.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{ending}"))
}

/// Puts the path into an error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

/// A deliverable that cannot be written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("write to {}: another process is writing there", .0.display())]
    InUse(PathBuf),
    #[error(
        "write {}: it is there already with another content: made of {found}, and now of {expected}; move it away first",
        path.display()
    )]
    Taken {
        path: PathBuf,
        found: String,
        expected: String,
    },
    #[error("write {}: the writer ended early", .0.display())]
    Interrupted(PathBuf),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::File { source, .. } => match source.kind() {
                // An operator has to make room, or to permit it.
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::AlreadyExists => Class::Everything,
                // The next name may be shorter, the next image smaller.
                io::ErrorKind::InvalidFilename | io::ErrorKind::FileTooLarge => Class::Deliverable,
                _ => Class::TRANSIENT,
            },
            Self::InUse(_) | Self::Interrupted(_) => Class::TRANSIENT,
            Self::Taken { .. } => Class::Deliverable,
        }
    }
}
