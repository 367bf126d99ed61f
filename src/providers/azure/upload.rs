//! From a source to a complete blob: pages are written in parallel, in the order in which they are decoded.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument;

use super::blob::{Blob, Container};
use super::claim::Claim;
use super::error::Error;
use super::pages::{Pages, Write};
use crate::base::failure::Failure;
use crate::base::retry;
use crate::images::source::{Form, Source};
use crate::images::vhd;
use crate::model::mark::Mark;

/// Concurrent writes of one image, 4 MiB each: enough for the bandwidth of one blob, also from far away.
const IN_FLIGHT: usize = 8;
/// Concurrent writes of all images: 64 MiB, however many images there are.
pub(super) const ALL_IN_FLIGHT: usize = 16;

/// The blob of an image. The digest in its name keeps images of the same version apart.
pub(super) fn blob(container: &Container, definition: &str, version: &str, sha256: &str) -> Result<Blob, Error> {
    let digest = sha256.get(..16).unwrap_or(sha256);
    container.blob(&format!("{definition}-{version}-{digest}.vhd"))
}

/// Completes the blob, unless it is complete already. A bad image leaves no blob. `slots` bounds the writes of all images.
pub(super) async fn upload(blob: &Blob, source: &Source, mark: &Mark, slots: &Arc<Semaphore>) -> Result<(), Failure> {
    if blob.is_ready(mark).await? {
        return Ok(());
    }
    let size = source.decompressed_size().await?;
    let blob_size = vhd::blob_size(size);
    let Some(claim) = Claim::on(blob, mark, blob_size).await? else {
        return Ok(());
    };
    let claim = Arc::new(claim);
    tracing::info!(
        blob = blob.name(),
        bytes = blob_size,
        "uploading {}",
        source.image().path
    );
    let sent = match send(&claim, source, size, slots).await {
        Ok(()) => claim.complete().await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    if sent.is_err() {
        claim.abandon().await;
    }
    sent
}

async fn send(claim: &Arc<Claim>, source: &Source, size: u64, slots: &Arc<Semaphore>) -> Result<(), Failure> {
    let wrong = |reason: String| Error::Vhd {
        path: source.image().path.clone(),
        reason,
    };
    let mut chunks = source.open_unordered(Form::RawOrVhd).await?;
    let mut pages = Pages::new(size);
    let mut writes = JoinSet::new();
    while let Some(chunk) = chunks.next().await? {
        let ready = pages.add(&chunk);
        drop(chunk);
        let ready = ready.ok_or_else(|| wrong(format!("it has more than the {size} bytes that it declares")))?;
        for write in ready {
            while writes.len() >= IN_FLIGHT {
                if let Some(written) = writes.join_next().await {
                    done(written)?;
                }
            }
            // The semaphore is never closed.
            let slot = slots.clone().acquire_owned().await.ok();
            let claim = claim.clone();
            let written = async move {
                let written = claim.write(&write).await;
                drop((write, slot));
                written
            };
            writes.spawn(retry::inherit(written.in_current_span()));
        }
    }
    while let Some(written) = writes.join_next().await {
        done(written)?;
    }
    if !pages.is_complete() {
        return Err(wrong(format!("it has less than the {size} bytes that it declares")).into());
    }
    let footer = vhd::complete(size, pages.end(), &source.image().sha256).map_err(wrong)?;
    if let Some(footer) = footer {
        let write = Write {
            offset: claim.size() - footer.len() as u64,
            bytes: footer.to_vec().into(),
        };
        claim.write(&write).await?;
    }
    Ok(())
}

/// The result of a write; a panic in the write continues here.
fn done(written: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    match written {
        Ok(written) => written,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
