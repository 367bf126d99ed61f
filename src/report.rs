//! What became of a compose: for the log, for the operator, and for the delivery.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::error::{Class, Disposition, Failure};
use crate::message::Request;
use crate::provider::{Origin, Place, Superseded, Task};
use crate::select::Deliverable;

/// What became of a compose.
#[derive(Debug)]
pub struct Report {
    /// The compose.
    pub compose: String,
    /// What is live now.
    pub published: Vec<Published>,
    /// What failed.
    pub broken: Vec<Broken>,
    conf: PathBuf,
    arguments: Vec<String>,
    locations: BTreeSet<String>,
}

/// What has been said of a compose already, so that work that is begun again after a pause does not repeat it.
#[derive(Debug, Default)]
pub struct Told {
    announced: Mutex<HashMap<String, Uuid>>,
    failures: Mutex<BTreeSet<String>>,
}

impl Told {
    /// Whether the last message about the deliverable was of this id.
    #[must_use]
    pub fn is_announced(&self, deliverable: &Deliverable, id: Uuid) -> bool {
        let announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        announced.get(&deliverable.name()) == Some(&id)
    }

    /// A message of this id was sent about the deliverable.
    pub fn announced(&self, deliverable: &Deliverable, id: Uuid) {
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        announced.insert(deliverable.name(), id);
    }

    /// Whether these failures are other ones than the last time, in whatever order they came.
    fn are_new_failures(&self, failures: &[String]) -> bool {
        let failures: BTreeSet<String> = failures.iter().cloned().collect();
        let mut last = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let new = *last != failures || failures.is_empty();
        *last = failures;
        new
    }
}

/// What became of a deliverable.
#[derive(Debug)]
pub struct Published {
    /// Its name.
    pub deliverable: String,
    /// Its release, as in names.
    pub release: String,
    /// Where it is live.
    pub places: Vec<Place>,
    /// Where something newer is.
    pub superseded: Vec<Superseded>,
}

/// Something that failed.
#[derive(Debug)]
pub struct Broken {
    /// The deliverable's name; the whole compose when `None`.
    pub deliverable: Option<String>,
    /// The location; all when `None`.
    pub location: Option<String>,
    /// Reads after "failed to".
    pub what: String,
    /// What can be done.
    pub class: Class,
    /// A pattern for `--only` that selects the deliverable.
    only: Option<String>,
}

impl Published {
    /// `places` are where it is live.
    #[must_use]
    pub fn new(deliverable: &Deliverable, places: Option<Vec<Place>>, superseded: Vec<Superseded>) -> Self {
        Self {
            deliverable: deliverable.name(),
            release: deliverable.release.name.clone(),
            places: places.unwrap_or_default(),
            superseded,
        }
    }

    /// Whether this process made it anywhere.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.places.iter().any(|place| place.origin == Origin::Created)
    }

    /// One word for a table: whether anything was done.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match (&self.places[..], &self.superseded[..]) {
            ([], []) => "failed",
            ([], _) => "superseded",
            _ if self.is_new() => "published",
            _ => "was there",
        }
    }
}

impl Broken {
    /// The compose could not be read.
    #[must_use]
    pub fn compose(failure: &Failure) -> Self {
        Self {
            deliverable: None,
            location: None,
            what: failure.to_string(),
            class: failure.class(),
            only: None,
        }
    }

    /// A deliverable failed everywhere.
    #[must_use]
    pub fn deliverable(deliverable: &Deliverable, failure: &Failure) -> Self {
        Self {
            deliverable: Some(deliverable.name()),
            location: None,
            what: failure.to_string(),
            class: failure.class(),
            only: Some(deliverable.selector().to_owned()),
        }
    }

    /// A deliverable failed in one location.
    #[must_use]
    pub fn location(deliverable: &Deliverable, location: &str, failure: &Failure) -> Self {
        Self {
            location: Some(location.to_owned()),
            ..Self::deliverable(deliverable, failure)
        }
    }
}

impl Report {
    /// Nothing done yet.
    #[must_use]
    pub fn new(request: &Request, task: &Task, conf: &Path) -> Self {
        let mut arguments = request.origin.arguments();
        if task.allow_older {
            arguments.push("--allow-older".to_owned());
        }
        Self {
            compose: request.compose.to_string(),
            published: Vec::new(),
            broken: Vec::new(),
            conf: conf.to_owned(),
            arguments,
            locations: task.locations.clone().unwrap_or_default(),
        }
    }

    /// What becomes of the deliveries that asked for it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        if self.broken.is_empty() {
            Disposition::Ack
        } else if self.broken.iter().any(|broken| self.waits_for_mending(broken)) {
            Disposition::Requeue
        } else {
            Disposition::Drop
        }
    }

    /// Whether nothing of it can be published until somebody mends something. One location of several that refuses is
    /// for `reconsume --location`: the others are done.
    fn waits_for_mending(&self, broken: &Broken) -> bool {
        let is_live = |published: &Published| {
            Some(&published.deliverable) == broken.deliverable.as_ref() && !published.places.is_empty()
        };
        broken.class == Class::Everything && (broken.location.is_none() || !self.published.iter().any(is_live))
    }

    /// Writes what became of it to the log: once, whatever was tried before, and again only what is new.
    pub fn log(&self, told: &Told) {
        self.log_published();
        let failures = self.failures();
        if told.are_new_failures(&failures) {
            self.log_failures();
        } else {
            tracing::warn!("nothing was mended yet: {}", failures.join("; "));
        }
    }

    /// Writes what failed to the log, a line each.
    pub fn log_failures(&self) {
        for line in self.failures() {
            tracing::error!("{line}");
        }
    }

    /// Writes what is live to the log.
    pub fn log_published(&self) {
        for published in &self.published {
            let deliverable = &published.deliverable;
            for superseded in &published.superseded {
                let Superseded { location, by } = superseded;
                tracing::warn!(
                    deliverable,
                    location,
                    by,
                    "{location} has a newer {deliverable}, of {by}"
                );
            }
            if !published.places.is_empty() {
                let places: Vec<_> = published.places.iter().map(|place| place.location.as_str()).collect();
                let (outcome, places) = (published.outcome(), places.join(", "));
                tracing::info!(deliverable, outcome, places, "{deliverable}: {outcome} in {places}");
            }
        }
        if self.published.is_empty() && self.broken.is_empty() {
            tracing::info!("{} has nothing for this provider", self.compose);
        }
    }

    /// The failures as lines for people, each with the command that repairs it.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.broken.iter().map(|broken| self.failure(broken)).collect()
    }

    fn failure(&self, broken: &Broken) -> String {
        let mut line = String::from("failed to ");
        match (&broken.deliverable, &broken.location) {
            (Some(name), Some(location)) => drop(write!(line, "publish {name} to {location}: ")),
            (Some(name), None) => drop(write!(line, "publish {name}: ")),
            (None, _) => drop(write!(line, "publish {}: ", self.compose)),
        }
        let _ = write!(line, "{}; repair: {}", broken.what, self.repair(broken));
        line
    }

    /// The command that does just what failed.
    #[must_use]
    pub fn repair(&self, broken: &Broken) -> String {
        let mut words = vec![
            "cloud-image-uploader".to_owned(),
            "--conf".to_owned(),
            self.conf.display().to_string(),
            "reconsume".to_owned(),
        ];
        words.extend(self.arguments.iter().cloned());
        if let Some(only) = &broken.only {
            words.extend(["--only".to_owned(), only.clone()]);
        }
        // Those that the operator asked for, where all of them failed.
        let locations: Vec<&String> = match &broken.location {
            Some(location) => vec![location],
            None => self.locations.iter().collect(),
        };
        for location in locations {
            words.extend(["--location".to_owned(), location.clone()]);
        }
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
