//! Containers: [OCI layouts](https://github.com/opencontainers/image-spec/blob/main/image-layout.md), one index for all
//! architectures, which `skopeo inspect oci:FOLDER` and `podman pull oci:FOLDER` read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::stamp::{Live, Stamp, mark_of};
use super::{Error, at, beside};
use crate::base::failure::Failure;
use crate::base::metrics;
use crate::images::oci::{self, Blob, Body, Descriptor, Digest, INDEX, Index, Pieces, Store, Stores};
use crate::images::source::Form;
use crate::model::compose::Image;
use crate::model::mark::{ANNOTATIONS, Mark};
use crate::model::outcome::Origin;
use crate::model::select::Deliverable;
use crate::providers::contract::Task;

/// The file that makes a folder a layout.
const MARKER: (&str, &str) = ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);

/// Writes the layout under a temporary name, unless it is there.
pub(super) async fn stage(path: &Path, deliverable: &Deliverable, task: &Task) -> Result<Origin, Failure> {
    if live(path, deliverable)? == Live::Whole {
        return Ok(Origin::Found);
    }
    let staged = staged(path, deliverable);
    if staged.try_exists().map_err(at(&staged))? {
        return Ok(Origin::Created);
    }
    let partial = beside(path, "partial");
    remove(&partial).map_err(at(&partial))?;
    let written = write(&partial, deliverable, task).await;
    if let Err(failure) = written {
        // A leftover is removed by the next attempt; failing to remove it must not hide the cause.
        if let Err(error) = remove(&partial) {
            tracing::warn!(%error, "could not remove {}", partial.display());
        }
        return Err(failure);
    }
    fs::rename(&partial, &staged).map_err(at(&staged))?;
    Ok(Origin::Created)
}

/// Gives the layout its name.
pub(super) fn release(path: &Path, deliverable: &Deliverable) -> Result<(), Error> {
    if live(path, deliverable)? == Live::Whole {
        return Ok(());
    }
    let staged = staged(path, deliverable);
    let mark = mark_of(path);
    let written = Published {
        mark: Mark::of(deliverable, None).encode(""),
        content: content(deliverable),
        files: Stamp::of_all(&staged).map_err(at(&staged))?,
    };
    let text = serde_json::json!(written);
    fs::write(&mark, format!("{text:#}\n")).map_err(at(&mark))?;
    // A damaged layout makes room: a rename does not replace a folder.
    remove(path).map_err(at(path))?;
    fs::rename(&staged, path).map_err(at(path))
}

/// The layout's mark, in a file beside it.
#[derive(Serialize, Deserialize)]
struct Published {
    mark: BTreeMap<String, String>,
    /// As in the name of what was staged.
    content: String,
    files: BTreeMap<String, Stamp>,
}

/// Reports whether files of a layout are missing, or are not as they were published. A layout of an earlier version has no
/// mark beside it, and a file that was added is no damage.
fn is_changed(path: &Path) -> Result<bool, Error> {
    let mark = mark_of(path);
    let published: Published = match fs::read(&mark) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(published) => published,
            Err(_) => return Ok(true),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(at(&mark)(error)),
    };
    let now = Stamp::of_all(path).map_err(at(path))?;
    Ok(published.files.iter().any(|(name, then)| now.get(name) != Some(then)))
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The content of a layout in one word: the digest of its images' digests.
fn content(deliverable: &Deliverable) -> String {
    let digests: Vec<_> = deliverable.images.iter().map(|image| image.sha256.as_str()).collect();
    Digest::of(digests.join("\n").as_bytes()).hex().to_owned()
}

fn staged(path: &Path, deliverable: &Deliverable) -> PathBuf {
    beside(path, &format!("{}.staged", content(deliverable)))
}

/// Looks for the layout that is made of these images.
fn live(path: &Path, deliverable: &Deliverable) -> Result<Live, Error> {
    if !path.try_exists().map_err(at(path))? {
        return Ok(Live::Absent);
    }
    let mut found: Vec<_> = images_of(path)
        .unwrap_or_default()
        .manifests
        .iter()
        .filter_map(|entry| Mark::decode(ANNOTATIONS, &entry.annotations)?.image_sha256)
        .collect();
    let mut expected: Vec<_> = deliverable.images.iter().map(|image| image.sha256.clone()).collect();
    found.sort();
    expected.sort();
    let changed = is_changed(path)?;
    // A damaged index names nothing any more; the mark beside it says whose the folder is.
    if found == expected || (changed && found.is_empty() && is_of(path, deliverable)) {
        return Ok(Live::unless_changed(path, changed));
    }
    Err(Error::Taken {
        path: path.to_owned(),
        found: if found.is_empty() {
            "something without a mark".to_owned()
        } else {
            found.join(", ")
        },
        expected: expected.join(", "),
    })
}

/// Whether the mark beside a layout is of this very content.
fn is_of(path: &Path, deliverable: &Deliverable) -> bool {
    let read = || serde_json::from_slice::<Published>(&fs::read(mark_of(path)).ok()?).ok();
    read().is_some_and(|published| published.content == content(deliverable))
}

/// The index of all architectures in a layout; `None` if it has none that can be read.
fn images_of(path: &Path) -> Option<Index> {
    let outer: Index = serde_json::from_slice(&fs::read(path.join("index.json")).ok()?).ok()?;
    let [entry] = &outer.manifests[..] else { return None };
    serde_json::from_slice(&fs::read(blob_path(path, &entry.digest)).ok()?).ok()
}

fn blob_path(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs/sha256").join(digest.hex())
}

async fn write(path: &Path, deliverable: &Deliverable, task: &Task) -> Result<(), Failure> {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(at(&blobs))?;
    let folder = Arc::new(Folder {
        layout: path.to_owned(),
        writes: AtomicU64::new(0),
    });
    let mut images = Vec::new();
    for image in &deliverable.images {
        let span = tracing::info_span!("image", path = image.path);
        images.push(write_image(folder.clone(), deliverable, image, task).instrument(span));
    }
    let manifests = join_all(images).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let index = Index {
        schema_version: 2,
        media_type: Some(INDEX.to_owned()),
        manifests,
        annotations: Mark::of(deliverable, None).encode(ANNOTATIONS),
    };
    let inner = folder.keep(&index).await?;
    let outer = Index {
        schema_version: 2,
        media_type: Some(INDEX.to_owned()),
        manifests: vec![Descriptor {
            media_type: INDEX.to_owned(),
            digest: inner.digest,
            size: inner.size,
            platform: None,
            annotations: index.annotations,
            artifact_type: None,
        }],
        annotations: BTreeMap::new(),
    };
    for (name, text) in [(MARKER.0, MARKER.1.to_owned()), ("index.json", json(&outer))] {
        let file = path.join(name);
        fs::write(&file, text).map_err(at(&file))?;
    }
    Ok(())
}

async fn write_image(
    folder: Arc<Folder>,
    deliverable: &Deliverable,
    image: &Image,
    task: &Task,
) -> Result<Descriptor, Failure> {
    let archive = task.source(image).open(Form::Decompressed).await?;
    let mut stores = Stores::new([(String::new(), folder.clone() as Arc<dyn Store>)]);
    let Some(read) = oci::read(&image.path, &image.arch, archive.into_read(), &mut stores).await? else {
        let failure = stores.into_failures().pop().map(|(_, failure)| failure);
        return Err(failure.unwrap_or_else(|| Error::Interrupted(folder.layout.clone()).into()));
    };
    let manifest = Blob {
        digest: read.digest.clone(),
        size: read.manifest.len() as u64,
    };
    folder.put(&manifest, Body::Held(read.manifest.clone())).await?;
    Ok(read.descriptor(Mark::of(deliverable, Some(image)).encode(ANNOTATIONS)))
}

/// An index is always JSON.
fn json(index: &Index) -> String {
    serde_json::json!(index).to_string()
}

/// A layout that is being written.
struct Folder {
    layout: PathBuf,
    /// Two architectures may bring the same blob at once; each write has a name of its own.
    writes: AtomicU64,
}

impl Folder {
    fn temporary(&self) -> PathBuf {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        self.layout.join(format!("blobs/{number}.partial"))
    }

    async fn keep(&self, index: &Index) -> Result<Blob, Failure> {
        let bytes = Bytes::from(json(index));
        let blob = Blob {
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
        };
        self.put(&blob, Body::Held(bytes)).await?;
        Ok(blob)
    }

    /// Writes a body under a temporary name, which is returned.
    async fn write(&self, mut body: impl Stream<Item = io::Result<Bytes>> + Unpin) -> Result<PathBuf, Error> {
        let path = self.temporary();
        let written = async {
            let mut file = tokio::fs::File::create(&path).await?;
            while let Some(bytes) = body.next().await {
                let bytes = bytes?;
                metrics::uploaded(bytes.len() as u64);
                file.write_all(&bytes).await?;
            }
            file.flush().await?;
            file.sync_all().await
        };
        written.await.map_err(at(&path))?;
        Ok(path)
    }

    fn rename(&self, temporary: &Path, digest: &Digest) -> Result<(), Error> {
        let path = blob_path(&self.layout, digest);
        fs::rename(temporary, &path).map_err(at(&path))
    }
}

#[async_trait]
impl Store for Folder {
    async fn has(&self, blob: &Blob) -> Result<bool, Failure> {
        let path = blob_path(&self.layout, &blob.digest);
        Ok(path.try_exists().map_err(at(&path))?)
    }

    async fn put(&self, blob: &Blob, body: Body) -> Result<(), Failure> {
        let temporary = match body {
            Body::Held(bytes) => self.write(stream::iter([Ok(bytes)])).await?,
            Body::Passing(pieces) => self.write(pieces).await?,
        };
        Ok(self.rename(&temporary, &blob.digest)?)
    }

    async fn put_unknown(&self, body: Pieces, name: oneshot::Receiver<Blob>) -> Result<(), Failure> {
        let temporary = self.write(body).await?;
        let blob = name.await.map_err(|_| Error::Interrupted(temporary.clone()))?;
        Ok(self.rename(&temporary, &blob.digest)?)
    }
}
