//! What became of a compose: for the log, for the operator, and for the delivery.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::base::failure::{Class, Disposition, Failure};
use crate::messaging::message::Request;
use crate::model::outcome::{Origin, Place, Superseded};
use crate::model::select::Deliverable;
use crate::providers::contract::Task;

/// What became of a compose.
#[derive(Debug)]
pub struct Report {
    /// The compose.
    pub compose: String,
    /// What is live now.
    pub published: Vec<Published>,
    /// What failed.
    pub broken: Vec<Problem>,
    conf: PathBuf,
    arguments: Vec<String>,
    locations: BTreeSet<String>,
}

/// What has been said of a compose already, so that work that is begun again after a pause does not repeat it.
#[derive(Debug, Default)]
pub struct ReportLog {
    announced: Mutex<HashMap<String, Uuid>>,
    failures: Mutex<BTreeSet<Known>>,
}

/// What makes a failure the same as one of another time: deliverable, location, and what it says.
type Known = (Option<String>, Option<String>, String);

impl ReportLog {
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

    /// Those of these failures that the last time did not have.
    fn new_failures<'a>(&self, failures: &'a [Problem]) -> Vec<&'a Problem> {
        let known = failures.iter().map(Problem::known).collect();
        let mut failures_before = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *failures_before, known);
        let is_new = |broken: &&Problem| !before.contains(&broken.known());
        failures.iter().filter(is_new).collect()
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
pub struct Problem {
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

impl Problem {
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

    /// Words with digits are left out: servers name requests, times, and addresses in what they say of the same thing.
    fn known(&self) -> Known {
        let is_same = |word: &&str| !word.contains(|char: char| char.is_ascii_digit());
        let words: Vec<&str> = self.what.split_whitespace().filter(is_same).collect();
        (self.deliverable.clone(), self.location.clone(), words.join(" "))
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
    fn waits_for_mending(&self, broken: &Problem) -> bool {
        let is_live = |published: &Published| {
            Some(&published.deliverable) == broken.deliverable.as_ref() && !published.places.is_empty()
        };
        broken.class == Class::Everything && (broken.location.is_none() || !self.published.iter().any(is_live))
    }

    /// Writes what became of it to the log: once, whatever was tried before, and again only what is new.
    pub fn log(&self, told: &ReportLog) {
        self.log_published();
        let new = told.new_failures(&self.broken);
        for broken in &new {
            tracing::error!("{}", self.failure(broken));
        }
        if new.is_empty() && !self.broken.is_empty() {
            tracing::warn!("not mended yet: {}", self.failures().join("; "));
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

    fn failure(&self, broken: &Problem) -> String {
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
    pub fn repair(&self, broken: &Problem) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_new_by_what_it_says_and_where() {
        let broken = |location: &str, what: &str| Problem {
            deliverable: Some("fedora".to_owned()),
            location: Some(location.to_owned()),
            what: what.to_owned(),
            class: Class::Everything,
            only: None,
        };
        let told = ReportLog::default();
        let [a, b] = ["eu-west-1", "us-east-1"].map(|region| broken(region, "make it: refused (request 7f3a, 12:00)"));
        assert_eq!(told.new_failures(&[a, b]).len(), 2);
        let [a, b] = ["us-east-1", "eu-west-1"].map(|region| broken(region, "make it: refused (request 9c11, 12:01)"));
        assert_eq!(told.new_failures(&[a, b]).len(), 0, "another request, in another order");
        let one = broken("eu-west-1", "make it: refused (request 9c12, 12:02)");
        let other = broken("us-east-1", "find the bucket: there is none");
        assert_eq!(
            told.new_failures(&[one, other])[0].location.as_deref(),
            Some("us-east-1")
        );
    }
}
