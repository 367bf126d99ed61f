//! Memory for what decoders must remember, where that is much.
//!
//! A decoder looks back as far as its file says: 8 MiB in what `xz` and `zstd` make unless told otherwise, 64 MiB in
//! `xz -9`, 128 MiB in `zstd --ultra -22`. A decoder cannot do with less. So those that need much have a total, whatever
//! the number of images, and take turns.
//!
//! A turn is waited for before the first piece of the image is there, as a free place for the image is: a target may hold
//! something else that the others need once it has got a piece. An image that has a turn needs nothing but its own download and
//! its own target to get on.

use std::io;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const MIB: u64 = 1 << 20;
/// Bytes that every image may remember without a turn: as much as `xz -6` and `zstd -19` need.
const ORDINARY: u64 = 8 * MIB;
/// All that have a turn, in MiB: what a process may hold besides `buffer_memory`, and the most that one decoder gets.
const ALL: u32 = 128;

/// Shared by all images.
#[derive(Debug)]
pub(in crate::images) struct Dictionaries(Arc<Semaphore>);

impl Default for Dictionaries {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL as usize)))
    }
}

impl Dictionaries {
    /// Waits until so many bytes may be remembered of the image at `path`.
    pub async fn turn(&self, path: &str, bytes: u64) -> Turn {
        let mut turn = Turn {
            all: self.0.clone(),
            held: None,
        };
        if turn.extend(bytes).is_err() {
            tracing::info!("{path} waits for memory: its decoder needs much, and other images have it now");
            // It is never closed.
            turn.held = self.0.clone().acquire_many_owned(mebibytes(bytes)).await.ok();
        }
        turn
    }
}

/// The right to remember, until dropped.
#[derive(Debug)]
pub(in crate::images) struct Turn {
    all: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// Makes it suffice for so many bytes, if others leave them.
    ///
    /// # Errors
    ///
    /// They do not: [`io::ErrorKind::OutOfMemory`]. They are not waited for in the middle of an image.
    pub fn extend(&mut self, bytes: u64) -> io::Result<()> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = mebibytes(bytes).saturating_sub(u32::try_from(held).unwrap_or(ALL));
        if missing == 0 {
            return Ok(());
        }
        let more = self.all.clone().try_acquire_many_owned(missing);
        let more = more.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        match &mut self.held {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

/// The part of the total that so many bytes take. A decoder that asks for more than all is refused by its library.
fn mebibytes(bytes: u64) -> u32 {
    if bytes <= ORDINARY {
        return 0;
    }
    u32::try_from(bytes.div_ceil(MIB)).map_or(ALL, |much| much.min(ALL))
}
