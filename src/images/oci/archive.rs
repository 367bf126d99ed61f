//! The walk over an archive's entries, whatever their order.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio_tar::{Archive, EntryType};

use super::contents::{Contents, Passed, Refusal, is_root_document, store_packed};
use super::layer::{Packing, Unpacked, pack, unpack, watch};
use super::{Blob, Digest, Error, Fault, Image, JSON_LIMIT, Stores};
use crate::base::failure::Failure;
use crate::images::source;

/// Bytes that are passed on at once.
const PIECE: usize = 256 << 10;
/// An image of a hundred layers has some four hundred entries in docker's oldest form.
const ENTRIES: usize = 10_000;
/// Headers between two entries: a long name and its records have a few hundred bytes. The tar library reads them into
/// memory whatever size they claim.
const HEADERS: u64 = 1 << 20;
/// Entries up to this size wait in memory.
const SMALL: u64 = JSON_LIMIT;
/// Bytes of small layers that wait in memory; further ones are stored at once, though nothing may reference them.
const HELD: u64 = 8 << 20;
/// Files below this size wait in any case: as many as [`ENTRIES`] of them take 5 MiB.
const TINY: u64 = 512;
/// Documents wait in any case, up to this many bytes of them: without them nothing can be understood.
const DOCUMENTS: u64 = 16 << 20;
/// Archives are padded to a multiple of 10 KiB, or of a few hundred at most.
const PADDING: u64 = 1 << 20;
/// How much of a broken archive is read on to learn whether its source is broken.
const DRAIN: u64 = 16 << 30;

/// Reads an archive to its last byte, and puts what its image consists of into the stores.
///
/// `image` names the archive in errors; `architecture` is Fedora's name of what it must be made for. `None` means that
/// no store is left; [`Stores::into_failures`] says why.
///
/// # Errors
///
/// [`Error`] for an archive that is not what it should be. Where the archive's [`source`] failed, its error is returned
/// and not what followed from it.
pub async fn read(
    image: &str,
    architecture: &str,
    archive: impl AsyncRead + Send + Unpin,
    stores: &mut Stores,
) -> Result<Option<Image>, Failure> {
    let failed = |source| Error {
        image: image.to_owned(),
        source,
    };
    let gauge = Arc::new(Gauge::default());
    let mut reader = Gauged {
        inner: archive,
        gauge: gauge.clone(),
    };
    let walked = walk(&mut reader, &gauge, stores).await;
    if !stores.any_left() {
        return Ok(None);
    }
    // Size and checksum of the stored file are known at its end only.
    gauge.allow(u64::MAX);
    let ended = drain(&mut reader, if walked.is_ok() { PADDING } else { DRAIN }).await;
    if let Some(error) = gauge.failure() {
        return Err(match source_error(error) {
            Ok(error) => error.into(),
            Err(error) => failed(Fault::Read(error)).into(),
        });
    }
    let contents = walked.map_err(failed)?;
    ended.map_err(failed)?;
    contents
        .finish(architecture, stores)
        .await
        .map_err(|fault| failed(fault).into())
}

/// The error of a [`source::Source`] inside an I/O error.
fn source_error(error: io::Error) -> Result<source::Error, io::Error> {
    error.downcast::<source::Error>()
}

async fn drain(reader: &mut (impl AsyncRead + Unpin), limit: u64) -> Result<(), Fault> {
    let mut buffer = vec![0; PIECE];
    let mut read = 0;
    loop {
        match reader.read(&mut buffer).await.map_err(Fault::Tar)? {
            0 => return Ok(()),
            more => read += more as u64,
        }
        if read > limit {
            return Err(Fault::Trailing(limit));
        }
    }
}

/// Takes what the entries hold. Ends early, without a complaint, when no store is left.
async fn walk(
    reader: &mut (impl AsyncRead + Send + Unpin),
    gauge: &Gauge,
    stores: &mut Stores,
) -> Result<Contents, Fault> {
    let mut contents = Contents::default();
    let mut archive = Archive::new(reader);
    let mut entries = archive.entries().map_err(Fault::Tar)?;
    let mut count = 0;
    while stores.any_left() {
        gauge.allow(HEADERS);
        let Some(entry) = entries.next().await else { break };
        let mut entry = entry.map_err(Fault::Tar)?;
        gauge.allow(u64::MAX);
        count += 1;
        if count > ENTRIES {
            return Err(Fault::TooMany(ENTRIES));
        }
        let path = String::from_utf8_lossy(&entry.path_bytes().map_err(Fault::Tar)?).into_owned();
        let target = entry.link_name_bytes().map_err(Fault::Tar)?;
        let target = target.map(|target| String::from_utf8_lossy(&target).into_owned());
        let size = entry.effective_size();
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let path = below("", &path)?;
                file(&mut contents, path, size, &mut entry, stores).await?;
            }
            EntryType::Symlink => {
                contents.link(below("", &path)?, below(parent(&path), &target.unwrap_or_default())?)?
            }
            EntryType::Link => contents.link(below("", &path)?, below("", &target.unwrap_or_default())?)?,
            EntryType::Directory => drop(below("", &path)?),
            // Remarks of the program that wrote the archive.
            EntryType::XGlobalHeader => {}
            _ => {
                return Err(Fault::Entry {
                    path,
                    what: "it is neither a file, a folder, nor a link",
                });
            }
        }
        // The rest of an entry must not count as headers.
        tokio::io::copy(&mut entry, &mut tokio::io::sink())
            .await
            .map_err(Fault::Tar)?;
    }
    Ok(contents)
}

/// One file: kept in memory, passed on to the stores, or passed over.
async fn file(
    contents: &mut Contents,
    path: String,
    size: u64,
    entry: &mut (impl AsyncRead + Send + Unpin),
    stores: &mut Stores,
) -> Result<(), Fault> {
    let digest = match path.strip_prefix("blobs/") {
        Some(name) => match name.strip_prefix("sha256/").and_then(Digest::of_name) {
            Some(digest) => Some(digest),
            // Blobs by another algorithm, and leftovers of the program that wrote them.
            None => return Ok(()),
        },
        None => None,
    };
    // Equal blobs may be there twice; of two other files with one name nothing tells which is meant.
    if contents.knows(&path) {
        return match (digest, is_root_document(&path)) {
            (Some(_), _) => Ok(()),
            (None, false) => {
                contents.refuse(path, Refusal::Twice);
                Ok(())
            }
            (None, true) => Err(Refusal::Twice.fault(path)),
        };
    }
    if size > SMALL {
        return large_file(contents, path, size, digest, entry, stores).await;
    }
    let mut gathered = BytesMut::new();
    {
        let mut pieces = std::pin::pin!(pieces(size, entry));
        while let Some(piece) = pieces.next().await {
            gathered.extend_from_slice(&piece?);
        }
    }
    let bytes = gathered.freeze();
    if is_root_document(&path) || is_json(&bytes) {
        if !is_root_document(&path) && !is_about_images(&bytes) {
            contents.refuse(path, Refusal::Document);
        } else if contents.documents() + size > DOCUMENTS {
            contents.refuse(path, Refusal::Crowded(DOCUMENTS));
        } else {
            contents.hold_document(path, bytes);
        }
    } else if contents.held() + size <= HELD || size < TINY {
        contents.hold(path, bytes);
    } else if let Some(digest) = digest {
        let found = Digest::of(&bytes);
        if found != digest {
            contents.refuse(
                path,
                Refusal::Digest {
                    expected: digest,
                    found,
                },
            );
            return Ok(());
        }
        let blob = Blob { digest, size };
        stores.put_held(&blob, &bytes).await;
        let unpacked = unpack(bytes).await?;
        contents.passed(path, Passed { blob, unpacked });
    } else {
        let passed = store_packed(bytes, stores).await?;
        contents.passed(path, passed);
    }
    Ok(())
}

/// A file that does not fit into memory: a layer, or something that no image needs.
async fn large_file(
    contents: &mut Contents,
    path: String,
    size: u64,
    digest: Option<Digest>,
    entry: &mut (impl AsyncRead + Send + Unpin),
    stores: &mut Stores,
) -> Result<(), Fault> {
    if is_root_document(&path) {
        return Err(Refusal::Huge(SMALL).fault(path));
    }
    let mut pieces = Box::pin(pieces(size, entry));
    let Some(first) = pieces.next().await.transpose()? else {
        return Ok(());
    };
    if is_json(&first) {
        contents.refuse(path, Refusal::Huge(SMALL));
        return Ok(());
    }
    let packing = Packing::of(&first);
    let source = stream::iter([Ok(first)]).chain(pieces);
    let Some(digest) = digest else {
        let (packed, outcome) = pack(source).await?;
        let blob = stores.put_unknown(packed).await?;
        let unpacked = outcome.get().await?;
        contents.passed(path, Passed { blob, unpacked });
        return Ok(());
    };
    let blob = Blob { digest, size };
    let stored = match packing {
        Packing::Plain => {
            let stored = stores.put_passing(&blob, source).await;
            stored.map(|()| Unpacked::plain(blob.digest.clone()))
        }
        Packing::Gzip | Packing::Zstd => {
            let (passing, outcome) = watch(packing, source);
            match stores.put_passing(&blob, passing).await {
                Ok(()) => outcome.get().await,
                Err(fault) => Err(fault),
            }
        }
    };
    match stored {
        Ok(unpacked) => contents.passed(path, Passed { blob, unpacked }),
        // A fault only if an image needs it.
        Err(Fault::Digest { expected, found }) => contents.refuse(path, Refusal::Digest { expected, found }),
        Err(fault) => return Err(fault),
    }
    Ok(())
}

/// Whether bytes open like a document. No layer does.
fn is_json(bytes: &[u8]) -> bool {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(first, Some(b'{' | b'['))
}

/// The keys of manifests, indexes, and configurations.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sketch {
    schema_version: Option<IgnoredAny>,
    architecture: Option<IgnoredAny>,
    rootfs: Option<IgnoredAny>,
}

/// Whether a document can be one of an image's; statements about images need not wait in memory. One that is damaged
/// can, so that it is reported.
fn is_about_images(bytes: &[u8]) -> bool {
    match serde_json::from_slice::<Sketch>(bytes) {
        Ok(sketch) => sketch.schema_version.is_some() || sketch.architecture.is_some() || sketch.rootfs.is_some(),
        Err(_) => true,
    }
}

/// An entry's bytes in full pieces, all of them or an error.
fn pieces<'a>(
    size: u64,
    entry: &'a mut (impl AsyncRead + Send + Unpin),
) -> impl Stream<Item = Result<Bytes, Fault>> + Send + 'a {
    stream::try_unfold((entry, 0), move |(entry, mut found)| async move {
        let mut piece = BytesMut::with_capacity(PIECE.min(usize::try_from(size - found).unwrap_or(PIECE)));
        while piece.len() < piece.capacity() {
            let read = entry.read_buf(&mut piece).await.map_err(Fault::Tar)?;
            found += read as u64;
            if read == 0 {
                return Err(Fault::Tar(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let piece = piece.freeze();
        Ok((!piece.is_empty()).then_some((piece, (entry, found))))
    })
}

/// The folder an entry is in.
fn parent(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder)
}

/// A path below the archive's root, from one that is relative to a folder of it.
fn below(folder: &str, path: &str) -> Result<String, Fault> {
    let outside = || Fault::Outside { path: path.to_owned() };
    if path.starts_with('/') || path.contains(['\0', '\\', '\u{fffd}']) {
        return Err(outside());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            // In an entry's own name there is no reason for it, even if it does not lead out.
            ".." if folder.is_empty() => return Err(outside()),
            ".." => drop(parts.pop().ok_or_else(outside)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Counts what may be read, and keeps the error that reading ended with.
#[derive(Default)]
struct Gauge {
    left: AtomicU64,
    failure: Mutex<Option<io::Error>>,
}

impl Gauge {
    fn allow(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    fn failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct Gauged<R> {
    inner: R,
    gauge: Arc<Gauge>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Gauged<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Err(error) = ready!(Pin::new(&mut self.inner).poll_read(context, buffer)) {
            let copy = io::Error::new(error.kind(), "the archive's source failed");
            // The first is the cause; a source that is read on after it has nothing more to say.
            let mut failure = self.gauge.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(error);
            return Poll::Ready(Err(copy));
        }
        let read = (buffer.filled().len() - before) as u64;
        let left = self.gauge.left.load(Ordering::Relaxed);
        if read > left {
            return Poll::Ready(Err(io::Error::other(format!(
                "its headers have more than {HEADERS} bytes"
            ))));
        }
        self.gauge.left.store(left - read, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        let accepted = [
            ("", "./a/b", "a/b"),
            ("", "a//b/", "a/b"),
            ("a", "../b.tar", "b.tar"),
            ("a/b", "../c", "a/c"),
        ];
        for (folder, path, expected) in accepted {
            assert_eq!(below(folder, path).unwrap(), expected, "{folder} {path}");
        }
        for (folder, path) in [
            ("", "../a"),
            ("", "/a"),
            ("", "a/../b"),
            ("a", "../../b"),
            ("a", "/b"),
            ("", "a\\b"),
        ] {
            assert!(
                matches!(below(folder, path), Err(Fault::Outside { .. })),
                "{folder} {path}"
            );
        }
    }
}
