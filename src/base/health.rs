//! The state of the daemon, for `/ready` and `/metrics`: counters in the words of fedora-messaging, and what an operator has
//! to fix.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::base::metrics;

/// Counters and troubles of one daemon, shared by everything that changes them.
#[derive(Debug, Default)]
pub struct Health {
    consuming: AtomicBool,
    troubles: Mutex<BTreeMap<Trouble, String>>,
    published: AtomicU64,
    received: AtomicU64,
    processed: AtomicU64,
    dropped: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
}

/// The part of the daemon that needs an operator. Each has one text at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The broker refuses, is away, or lacks a queue.
    Broker,
    /// The provider's check found something wrong, and nothing has succeeded since.
    Check,
    /// A compose (its id) waits for credentials, a permission, or a target.
    Compose(String),
}

/// An event of a delivery, in the words of fedora-messaging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// A delivery came in.
    Received,
    /// A delivery was acknowledged.
    Processed,
    /// A delivery was rejected for good.
    Dropped,
    /// A delivery went back to the queue.
    Rejected,
}

impl Health {
    /// Records that the broker delivers messages to this process, or does not. While it does, it is no trouble.
    pub fn set_consuming(&self, consuming: bool) {
        self.consuming.store(consuming, Ordering::Relaxed);
        metrics::consuming(consuming);
        if consuming {
            self.set_trouble(Trouble::Broker, None);
        }
    }

    /// Records why a part of the daemon needs an operator, or, with `None`, that it no longer does.
    pub fn set_trouble(&self, of: Trouble, why: Option<String>) {
        let mut troubles = self.troubles();
        match why {
            Some(why) => troubles.insert(of, why),
            None => troubles.remove(&of),
        };
        metrics::trouble(troubles.len());
    }

    /// True while a part of the daemon needs an operator.
    #[must_use]
    pub fn has_trouble(&self, of: &Trouble) -> bool {
        self.troubles().contains_key(of)
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<Trouble, String>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an event of a delivery.
    pub fn count(&self, event: Count) {
        let (counter, label) = match event {
            Count::Received => (&self.received, "received"),
            Count::Processed => (&self.processed, "processed"),
            Count::Dropped => (&self.dropped, "dropped"),
            Count::Rejected => (&self.rejected, "rejected"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        metrics::message(label);
    }

    /// Counts a deliverable that is live somewhere.
    pub fn count_published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a compose of which something failed.
    pub fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The document of `/ready`, and `true` while the daemon is ready: while it consumes.
    #[must_use]
    pub fn ready(&self) -> (bool, Value) {
        let consuming = self.consuming.load(Ordering::Relaxed);
        let troubles: Vec<String> = self.troubles().values().cloned().collect();
        let trouble = (!troubles.is_empty()).then(|| troubles.join("; "));
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let document = json!({
            "consuming": consuming,
            "published": value(&self.published),
            "consumed": {
                "received": value(&self.received),
                "processed": value(&self.processed),
                "dropped": value(&self.dropped),
                "rejected": value(&self.rejected),
                "failed": value(&self.failed),
            },
            "trouble": trouble,
        });
        (consuming, document)
    }
}
