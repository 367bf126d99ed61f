//! One stream of blobs into several stores at once.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::future::{join, join_all};
use futures_util::{Stream, StreamExt};
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

use super::{Blob, Body, Digest, Fault, Pieces, Store};
use crate::base::failure::Failure;

/// Pieces that wait for one store. The slowest store sets the pace.
const QUEUE: usize = 4;

/// The stores an image goes to. One that fails drops out, and the others go on.
pub struct Stores(Vec<Slot>);

struct Slot {
    name: String,
    store: Arc<dyn Store>,
    failure: Option<Failure>,
}

impl Stores {
    /// Each with the name its failure is reported under.
    pub fn new(stores: impl IntoIterator<Item = (String, Arc<dyn Store>)>) -> Self {
        let slots = stores.into_iter().map(|(name, store)| Slot {
            name,
            store,
            failure: None,
        });
        Self(slots.collect())
    }

    /// Whether any store has not failed.
    #[must_use]
    pub fn any_left(&self) -> bool {
        self.0.iter().any(|slot| slot.failure.is_none())
    }

    /// The stores that failed.
    #[must_use]
    pub fn into_failures(self) -> Vec<(String, Failure)> {
        self.0
            .into_iter()
            .filter_map(|slot| Some((slot.name, slot.failure?)))
            .collect()
    }

    /// Stores a blob that is in memory.
    pub(super) async fn put_held(&mut self, blob: &Blob, bytes: &Bytes) {
        let live = self.0.iter_mut().filter(|slot| slot.failure.is_none());
        join_all(live.map(|slot| async move {
            let outcome = match slot.store.has(blob).await {
                Ok(true) => return,
                Ok(false) => slot.store.put(blob, Body::Held(bytes.clone())).await,
                Err(failure) => Err(failure),
            };
            slot.failure = outcome.err();
        }))
        .await;
    }

    /// Passes a blob on to the stores that lack it, and verifies it.
    pub(super) async fn put_passing(
        &mut self,
        blob: &Blob,
        source: impl Stream<Item = Result<Bytes, Fault>>,
    ) -> Result<(), Fault> {
        let live = self.0.iter_mut().filter(|slot| slot.failure.is_none());
        let lacking = join_all(live.map(|slot| async move {
            match slot.store.has(blob).await {
                Ok(true) => None,
                Ok(false) => Some(slot),
                Err(failure) => {
                    slot.failure = Some(failure);
                    None
                }
            }
        }))
        .await;
        pass(lacking.into_iter().flatten(), Some(blob), source).await?;
        Ok(())
    }

    /// Passes a blob on to all stores; its name comes out at the end.
    pub(super) async fn put_unknown(
        &mut self,
        source: impl Stream<Item = Result<Bytes, Fault>>,
    ) -> Result<Blob, Fault> {
        let live = self.0.iter_mut().filter(|slot| slot.failure.is_none());
        pass(live, None, source).await
    }
}

/// The way to one store.
struct Tap {
    pieces: mpsc::Sender<Option<Bytes>>,
    name: oneshot::Sender<Blob>,
}

async fn pass(
    slots: impl Iterator<Item = &mut Slot>,
    expected: Option<&Blob>,
    source: impl Stream<Item = Result<Bytes, Fault>>,
) -> Result<Blob, Fault> {
    let slots: Vec<&mut Slot> = slots.collect();
    let mut taps = Vec::new();
    let mut puts = Vec::new();
    for slot in &slots {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (name, named) = oneshot::channel();
        taps.push(Tap { pieces: sender, name });
        let (store, pieces) = (slot.store.clone(), Pieces::new(receiver));
        puts.push(async move {
            match expected {
                Some(blob) => store.put(blob, Body::Passing(pieces)).await,
                None => store.put_unknown(pieces, named).await,
            }
        });
    }
    let (outcome, stored) = join(pump(taps, expected, source), join_all(puts)).await;
    let blob = outcome?;
    // After a failure of the pump the stores' failures would only repeat it.
    for (slot, outcome) in slots.into_iter().zip(stored) {
        slot.failure = outcome.err();
    }
    Ok(blob)
}

/// Hashes what passes, and lets the last piece go only when everything is right.
async fn pump(
    mut taps: Vec<Tap>,
    expected: Option<&Blob>,
    source: impl Stream<Item = Result<Bytes, Fault>>,
) -> Result<Blob, Fault> {
    let mut source = pin!(source);
    let mut hash = Context::new(&SHA256);
    let mut size = 0;
    let mut last: Option<Bytes> = None;
    while let Some(piece) = source.next().await {
        let piece = piece?;
        size += piece.len() as u64;
        hash.update(&piece);
        if let Some(before) = last.replace(piece) {
            send(&mut taps, Some(before)).await;
        }
    }
    let blob = Blob {
        digest: Digest::finished(hash.finish()),
        size,
    };
    if let Some(expected) = expected {
        blob.must_be(expected)?;
    }
    if last.is_some() {
        send(&mut taps, last).await;
    }
    send(&mut taps, None).await;
    for tap in taps {
        // A store that is gone has said why.
        let _ = tap.name.send(blob.clone());
    }
    Ok(blob)
}

/// To all stores that still listen.
async fn send(taps: &mut Vec<Tap>, piece: Option<Bytes>) {
    let mut index = 0;
    while index < taps.len() {
        match taps[index].pieces.send(piece.clone()).await {
            Ok(()) => index += 1,
            Err(_) => drop(taps.swap_remove(index)),
        }
    }
}

impl Blob {
    pub(super) fn of(bytes: &Bytes) -> Self {
        Self {
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
        }
    }

    pub(super) fn must_be(&self, expected: &Self) -> Result<(), Fault> {
        if self.size != expected.size {
            return Err(Fault::Size {
                what: format!("blob {}", expected.digest),
                expected: expected.size,
                found: self.size,
            });
        }
        if self.digest != expected.digest {
            return Err(Fault::Digest {
                expected: expected.digest.clone(),
                found: self.digest.clone(),
            });
        }
        Ok(())
    }
}
