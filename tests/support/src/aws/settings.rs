//! How the cloud behaves where nothing goes wrong: how long things take, and its limits.

use std::{collections::BTreeMap, time::Duration};

/// May be changed at any time. Durations count from when something was started, so a shorter one ends what waits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long an import task is `pending`.
    pub import_pending: Duration,
    /// How long it is `active` then.
    pub import_active: Duration,
    /// How long one that ends badly is `deleting` or `cancelling`.
    pub import_ending: Duration,
    /// How long a copy of a snapshot takes.
    pub copy: Duration,
    /// The same for some destination regions.
    pub copy_by_region: BTreeMap<String, Duration>,
    /// How long a snapshot of EBS direct is `pending` after it was completed.
    pub seal: Duration,
    /// How long an image is `pending`.
    pub image: Duration,
    /// How many times something new is overlooked by calls that look for it, as if news of it had to travel first.
    pub hidden: u32,
    /// How many writes to a new snapshot of EBS direct are refused, as if it did not exist yet.
    pub refused_writes: u32,
    /// Snapshot copies in flight for each destination region. AWS: 20, formerly 5.
    pub copies: usize,
    /// Public images in each region. AWS: 5 until more are asked for.
    pub public_images: usize,
    /// The most that one answer lists, where less than the client allows; it gets a token for the rest.
    pub page: Option<usize>,
    /// The role that imports may use, if there is one.
    pub import_role: Option<String>,
    /// How long the keys of a role's session are good for, by what is said of them.
    pub session: Duration,
}

impl Default for Settings {
    /// Everything at once, with the limits of an account in use.
    fn default() -> Self {
        Self {
            import_pending: Duration::ZERO,
            import_active: Duration::ZERO,
            import_ending: Duration::ZERO,
            copy: Duration::ZERO,
            copy_by_region: BTreeMap::new(),
            seal: Duration::ZERO,
            image: Duration::ZERO,
            hidden: 0,
            refused_writes: 0,
            copies: 20,
            public_images: 1000,
            page: None,
            import_role: Some("vmimport".into()),
            session: Duration::from_secs(3600),
        }
    }
}

impl Settings {
    pub(super) fn copy_to(&self, region: &str) -> Duration {
        self.copy_by_region.get(region).copied().unwrap_or(self.copy)
    }
}
