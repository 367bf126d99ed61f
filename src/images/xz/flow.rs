//! Memory and order of what is between the download and the target.
//!
//! The budget is shared by all images and never waited for: an image that gets nothing of it decodes as a plain stream,
//! in constant memory. So no image can wait for another one, whatever their targets do.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, futures::Notified, mpsc};

use crate::images::source::{Content, Decoded};

/// Blocks of an image that are decoded or wait for it at the same time.
pub(super) const BLOCKS: usize = 64;
/// Decoded pieces of an image that wait for its target, before more blocks are begun. Holes take no memory of the
/// budget, so they are bounded by number.
const PIECES: usize = 1024;

/// Memory shared by all images, in bytes. It may be overdrawn by the little that a plain stream needs.
#[derive(Debug)]
pub(super) struct Budget(AtomicI64);

impl Budget {
    /// So many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(AtomicI64::new(bytes.try_into().unwrap_or(i64::MAX)))
    }

    fn take(&self, bytes: u64) -> bool {
        let bytes = bytes.try_into().unwrap_or(i64::MAX);
        let enough = |left: i64| (left >= bytes).then(|| left - bytes);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough)
            .is_ok()
    }

    fn overdraw(&self, bytes: u64) {
        self.0
            .fetch_sub(bytes.try_into().unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    fn give(&self, bytes: u64) {
        self.0
            .fetch_add(bytes.try_into().unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// One image on its way through the decoders.
#[derive(Debug)]
pub(super) struct Flow {
    budget: Arc<Budget>,
    state: Mutex<State>,
    changed: Notify,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of the budget that the image may hold.
    share: u64,
    /// Bytes held of the budget.
    held: u64,
    /// Blocks begun and not ended.
    blocks: usize,
    /// Pieces that the target has not taken yet.
    pieces: usize,
    failure: Option<io::Error>,
}

impl Flow {
    /// An image that may hold `share` bytes of the budget.
    pub fn new(budget: Arc<Budget>, share: u64) -> Arc<Self> {
        Arc::new(Self {
            budget,
            state: Mutex::new(State {
                share,
                ..State::default()
            }),
            changed: Notify::new(),
            stopped: AtomicBool::new(false),
        })
    }

    /// True once the reader of the image is gone, or a block failed.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends all work on the image early.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// The most memory that a block may take to be decoded at once: half of the share, so that there can be two.
    pub fn largest(&self) -> u64 {
        self.state().share / 2
    }

    /// Lets the image hold so many bytes of the budget, if it may not hold more.
    pub fn widen(&self, share: u64) {
        let mut state = self.state();
        state.share = state.share.max(share);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    /// Waits until `done` has an answer, unless a block failed.
    async fn until<T>(&self, mut done: impl FnMut(&mut State) -> Option<T>) -> io::Result<T> {
        loop {
            let mut changed = pin!(self.changed());
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(failure) = state.failure.take() {
                    return Err(failure);
                }
                if let Some(answer) = done(&mut state) {
                    return Ok(answer);
                }
            }
            changed.await;
        }
    }

    /// The next change. Once enabled, it is not missed, however many wait for it.
    fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Memory for a block, as soon as there is some. `None`: nothing of this image is under way, so waiting would not
    /// help.
    pub async fn room(self: &Arc<Self>, bytes: u64) -> io::Result<Option<Lease>> {
        let held = self
            .until(|state| {
                let few = state.blocks < BLOCKS && state.pieces < PIECES;
                if few && state.held + bytes <= state.share && self.budget.take(bytes) {
                    state.held += bytes;
                    return Some(true);
                }
                (state.blocks == 0 && state.pieces == 0).then_some(false)
            })
            .await?;
        Ok(held.then(|| Lease {
            flow: self.clone(),
            bytes,
        }))
    }

    /// Waits until the target has taken all but a few pieces.
    pub async fn taken(&self, but: usize) -> io::Result<()> {
        self.until(|state| (state.pieces <= but).then_some(())).await
    }

    /// As [`Self::taken`] for a block that is decoded beside others, and leaves their failures to the image; `false` once
    /// the image is stopped.
    pub async fn is_wanted(&self, but: usize) -> bool {
        loop {
            let mut changed = pin!(self.changed());
            changed.as_mut().enable();
            if self.is_stopped() {
                return false;
            }
            if self.state().pieces <= but {
                return true;
            }
            changed.await;
        }
    }

    /// Waits until all blocks are decoded and verified.
    pub async fn idle(&self) -> io::Result<()> {
        self.until(|state| (state.blocks == 0).then_some(())).await
    }

    /// Memory that is needed in any case.
    pub fn overdraw(self: &Arc<Self>, bytes: u64) -> Lease {
        self.budget.overdraw(bytes);
        self.state().held += bytes;
        Lease {
            flow: self.clone(),
            bytes,
        }
    }

    /// Notes that a block is begun.
    pub fn begin(self: &Arc<Self>) -> Begun {
        self.state().blocks += 1;
        Begun {
            flow: self.clone(),
            outcome: None,
        }
    }
}

/// Bytes of the budget, until dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    flow: Arc<Flow>,
    bytes: u64,
}

impl Lease {
    /// Gives back all but these.
    pub fn keep(&mut self, bytes: u64) {
        self.give_back(self.bytes.saturating_sub(bytes));
    }

    /// Gives back these, as far as they are here.
    pub fn give_back(&mut self, bytes: u64) {
        drop(self.split(bytes.min(self.bytes)));
    }

    /// These bytes by themselves: taken from here, or else needed in any case.
    pub fn take(&mut self, bytes: u64) -> Self {
        if bytes <= self.bytes {
            self.split(bytes)
        } else {
            self.flow.overdraw(bytes)
        }
    }

    fn split(&mut self, bytes: u64) -> Self {
        self.bytes -= bytes;
        Self {
            flow: self.flow.clone(),
            bytes,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.flow.budget.give(self.bytes);
            self.flow.change(|state| state.held -= self.bytes);
        }
    }
}

/// Decoded bytes and the memory they stand for.
struct Held {
    bytes: Vec<u8>,
    _lease: Lease,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A block that is being decoded. Dropped without [`Begun::end`], by a panic that is, it has failed.
pub(super) struct Begun {
    flow: Arc<Flow>,
    outcome: Option<io::Result<()>>,
}

impl Begun {
    /// How decoding ended.
    pub fn end(mut self, outcome: io::Result<()>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let broke = || Err(io::Error::other("a decoder broke down"));
        let failure = self.outcome.take().unwrap_or_else(broke).err();
        if failure.is_some() {
            self.flow.stop();
        }
        self.flow.change(|state| {
            state.blocks -= 1;
            state.failure = state.failure.take().or(failure);
        });
    }
}

/// A piece that the target has not taken yet.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Flow>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.change(|state| state.pieces -= 1);
    }
}

/// Where decoded pieces go: those of one block, or of the whole image.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    flow: Arc<Flow>,
    sender: mpsc::UnboundedSender<Decoded>,
}

impl Outlet {
    /// An outlet and its other end.
    pub fn new(flow: &Arc<Flow>) -> (Self, mpsc::UnboundedReceiver<Decoded>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let flow = flow.clone();
        (Self { flow, sender }, receiver)
    }

    /// The image.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Zeros.
    pub fn hole(&self, offset: u64, len: usize) {
        self.send(offset, Content::Hole(len));
    }

    /// Bytes, and the memory they take.
    pub fn data(&self, offset: u64, bytes: Vec<u8>, lease: Lease) {
        let held = Held { bytes, _lease: lease };
        self.send(offset, Content::Data(Bytes::from_owner(held)));
    }

    fn send(&self, offset: u64, content: Content) {
        self.flow.state().pieces += 1;
        // If the reader is gone, the piece is dropped.
        let _ = self.sender.send(Decoded {
            offset,
            content,
            waiting: Some(Waiting(self.flow.clone())),
        });
    }
}
