//! Disks: sparse files, verified, renamed when complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use tokio::sync::mpsc;

use super::stamp::{Live, Stamp, mark_of};
use super::{Error, at, beside};
use crate::base::failure::Failure;
use crate::base::metrics;
use crate::images::source::{Chunk, Content, Form, Source};
use crate::model::compose::Image;
use crate::model::mark::Mark;
use crate::model::outcome::Origin;
use crate::model::select::Deliverable;
use crate::providers::contract::Task;

/// The disk's length in its mark, in bytes.
const SIZE: &str = "file-size";
/// The disk's time of modification in its mark.
const MODIFIED: &str = "file-modified";
/// Pieces that wait for the file system.
const QUEUE: usize = 4;
/// Bytes after which the file system is asked to write to the device: what it keeps is waited for in the end.
const WRITE_BACK: u64 = 64 << 20;

/// Writes the disk under a temporary name, unless it is there.
pub(super) async fn stage(path: &Path, deliverable: &Deliverable, task: &Task) -> Result<Origin, Failure> {
    let image = &deliverable.images[0];
    if live(path, &image.sha256)? == Live::Whole {
        return Ok(Origin::Found);
    }
    let staged = staged(path, &image.sha256);
    if staged.try_exists().map_err(at(&staged))? {
        return Ok(Origin::Created);
    }
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(at(folder))?;
    let partial = beside(path, "partial");
    let written = write(&partial, task.source(image), form(image), image.size).await;
    if let Err(failure) = written {
        // A leftover is overwritten by the next attempt; failing to remove it must not hide the cause.
        if let Err(error) = fs::remove_file(&partial)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "could not remove {}", partial.display());
        }
        return Err(failure);
    }
    fs::rename(&partial, &staged).map_err(at(&staged))?;
    Ok(Origin::Created)
}

/// Gives the disk its name.
pub(super) fn release(path: &Path, deliverable: &Deliverable) -> Result<(), Error> {
    let image = &deliverable.images[0];
    if live(path, &image.sha256)? == Live::Whole {
        return Ok(());
    }
    let staged = staged(path, &image.sha256);
    let stamp = Stamp::of(&staged).map_err(at(&staged))?;
    let mark = mark_of(path);
    let mut values = Mark::of(deliverable, Some(image)).encode("");
    values.insert(SIZE.to_owned(), stamp.size.to_string());
    values.insert(MODIFIED.to_owned(), stamp.modified);
    let text = serde_json::json!(values);
    fs::write(&mark, format!("{text:#}\n")).map_err(at(&mark))?;
    fs::rename(&staged, path).map_err(at(path))
}

/// Looks for the disk that is made of this image.
fn live(path: &Path, sha256: &str) -> Result<Live, Error> {
    if !path.try_exists().map_err(at(path))? {
        return Ok(Live::Absent);
    }
    let mark = mark_of(path);
    let values: BTreeMap<String, String> = match fs::read(&mark) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(at(&mark)(error)),
    };
    let found = Mark::decode("", &values).and_then(|mark| mark.image_sha256);
    if found.as_deref() == Some(sha256) {
        let now = Stamp::of(path).map_err(at(path))?;
        // Marks of earlier versions do not have them.
        let differs = |name: &str, now: &str| values.get(name).is_some_and(|then| then != now);
        let changed = differs(SIZE, &now.size.to_string()) || differs(MODIFIED, &now.modified);
        return Ok(Live::unless_changed(path, changed));
    }
    Err(Error::Taken {
        path: path.to_owned(),
        found: found.unwrap_or_else(|| "something without a mark".to_owned()),
        expected: sha256.to_owned(),
    })
}

/// The digest in the name says what it is made of, so that another process can go on with it.
fn staged(path: &Path, sha256: &str) -> PathBuf {
    beside(path, &format!("{sha256}.staged"))
}

/// The form that the row of an image promises.
fn form(image: &Image) -> Form {
    match image.kind.as_str() {
        "vhd-compressed" => Form::Vhd,
        "tar-gz" | "docker" => Form::Tar,
        _ => Form::Raw,
    }
}

async fn write(path: &Path, source: Source, form: Form, stored: u64) -> Result<(), Failure> {
    let mut chunks = source.open_unordered(form).await?;
    tracing::info!(stored_bytes = stored, "writing {}", path.display());
    let (sender, receiver) = mpsc::channel(QUEUE);
    let file = path.to_owned();
    let writer = tokio::task::spawn_blocking(move || write_chunks(&file, receiver));
    let read = loop {
        match chunks.next().await {
            Ok(Some(chunk)) => {
                if sender.send(chunk).await.is_err() {
                    // The writer is gone, and says why.
                    break Ok(false);
                }
            }
            Ok(None) => break Ok(true),
            Err(error) => break Err(error),
        }
    };
    drop(sender);
    // Waited for in any case: what follows must not meet a writer that is still at it.
    let interrupted = || Error::Interrupted(path.to_owned());
    let written = writer.await.map_err(|_| interrupted())?.map_err(at(path));
    let complete = read?;
    written?;
    if complete { Ok(()) } else { Err(interrupted().into()) }
}

/// Holes are left out of the file; the file system reads them as zeros.
fn write_chunks(path: &Path, chunks: mpsc::Receiver<Chunk>) -> io::Result<()> {
    let file = File::create(path)?;
    let size = thread::scope(|scope| {
        let (write_back, asked) = sync_channel(1);
        let device = scope.spawn(|| asked.into_iter().try_for_each(|()| file.sync_data()));
        let size = write_data(&file, chunks, &write_back);
        drop(write_back);
        match device.join() {
            Ok(done) => done?,
            Err(panic) => resume_unwind(panic),
        }
        size
    })?;
    file.set_len(size)?;
    file.sync_all()
}

/// Returns the size with all holes.
fn write_data(file: &File, mut chunks: mpsc::Receiver<Chunk>, write_back: &SyncSender<()>) -> io::Result<u64> {
    let (mut size, mut waiting) = (0, 0);
    while let Some(Chunk { offset, content }) = chunks.blocking_recv() {
        size = size.max(offset + content.len() as u64);
        if let Content::Data(bytes) = content {
            metrics::uploaded(bytes.len() as u64);
            file.write_all_at(&bytes, offset)?;
            waiting += bytes.len() as u64;
        }
        if waiting >= WRITE_BACK {
            waiting = 0;
            // No room: it is being done, and will be done once more.
            let _ = write_back.try_send(());
        }
    }
    Ok(size)
}
