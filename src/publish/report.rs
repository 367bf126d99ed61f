//! The result of the work on a compose: for the log, for the operator, and for the delivery.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::base::failure::{Class, Disposition, Failure};
use crate::base::health::{Health, Trouble};
use crate::base::metrics;
use crate::messaging::message::Request;
use crate::model::outcome::{Origin, Place, Superseded};
use crate::model::select::Deliverable;
use crate::providers::contract::Task;

/// The result of the work on a compose.
#[derive(Debug)]
pub struct Report {
    /// The compose's id.
    pub compose: String,
    /// One for each deliverable.
    pub published: Vec<Published>,
    /// One for each failure: of the compose, a deliverable, or a location.
    pub problems: Vec<Problem>,
    conf: PathBuf,
    arguments: Vec<String>,
    locations: BTreeSet<String>,
}

/// The announcements and failures reported for a compose, so that work that is repeated after a pause does not repeat them.
#[derive(Debug, Default)]
pub struct ReportLog {
    announced: Mutex<HashMap<String, Uuid>>,
    failures: Mutex<BTreeSet<Known>>,
}

/// The identity of a failure over time: deliverable, location, and cause.
type Known = (Option<String>, Option<String>, String);

impl ReportLog {
    /// True if the last message about the deliverable had this id.
    #[must_use]
    pub fn is_announced(&self, deliverable: &Deliverable, id: Uuid) -> bool {
        let announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        announced.get(&deliverable.name()) == Some(&id)
    }

    /// Records that a message with this id was sent about the deliverable.
    pub fn announced(&self, deliverable: &Deliverable, id: Uuid) {
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        announced.insert(deliverable.name(), id);
    }

    /// Those of these failures that the last report did not have.
    fn new_failures<'a>(&self, failures: &'a [Problem]) -> Vec<&'a Problem> {
        let known = failures.iter().map(Problem::known).collect();
        let mut reported = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *reported, known);
        let is_new = |problem: &&Problem| !before.contains(&problem.known());
        failures.iter().filter(is_new).collect()
    }
}

/// The result for one deliverable.
#[derive(Debug)]
pub struct Published {
    /// Its name.
    pub deliverable: String,
    /// Its release, as in names.
    pub release: String,
    /// The locations where it is live.
    pub places: Vec<Place>,
    /// The locations that hold something newer.
    pub superseded: Vec<Superseded>,
}

/// A failure, of a compose, a deliverable, or a location.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The deliverable's name; the whole compose when `None`.
    pub deliverable: Option<String>,
    /// The location; all when `None`.
    pub location: Option<String>,
    /// Reads after "failed to".
    pub what: String,
    /// Decides what becomes of the delivery.
    pub class: Class,
    /// A pattern for `--only` that selects the deliverable.
    only: Option<String>,
}

impl Published {
    /// `places` are where it is live.
    #[must_use]
    pub fn new(deliverable: &Deliverable, places: Vec<Place>, superseded: Vec<Superseded>) -> Self {
        Self {
            deliverable: deliverable.name(),
            release: deliverable.release.name.clone(),
            places,
            superseded,
        }
    }

    /// True if this process created it anywhere.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.places.iter().any(|place| place.origin == Origin::Created)
    }

    /// One word for a table and a metric's label.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match (&self.places[..], &self.superseded[..]) {
            ([], []) => "failed",
            ([], _) => "superseded",
            _ if self.is_new() => "published",
            _ => "unchanged",
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

    fn known(&self) -> Known {
        (self.deliverable.clone(), self.location.clone(), self.cause())
    }

    /// The text without all that differs between two failures of one cause: words with digits, since servers name requests,
    /// times, and addresses, and the deliverable's own name, also at the end of a path.
    fn cause(&self) -> String {
        let has_no_digit = |word: &&str| !word.contains(|char: char| char.is_ascii_digit());
        let name = self.deliverable.as_deref().unwrap_or_default();
        let without_name = |word: &str| {
            let bare = word.trim_end_matches([':', ',', ';', '.']);
            match bare.strip_suffix(name) {
                Some(before) if before.is_empty() || before.ends_with('/') => before.to_owned(),
                _ => bare.to_owned(),
            }
        };
        let words = self.what.split_whitespace().filter(has_no_digit).map(without_name);
        words.collect::<Vec<_>>().join(" ")
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
            problems: Vec::new(),
            conf: conf.to_owned(),
            arguments,
            locations: task.locations.clone().unwrap_or_default(),
        }
    }

    /// The decision about the deliveries that asked for it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        if self.problems.is_empty() {
            Disposition::Ack
        } else if self.problems.iter().any(|problem| self.waits_for_operator(problem)) {
            Disposition::Requeue
        } else {
            Disposition::Drop
        }
    }

    /// True if nothing of it can be published until an operator fixes something. One location of several that refuses is
    /// for `reconsume --location`: the others are done.
    fn waits_for_operator(&self, problem: &Problem) -> bool {
        let is_live = |published: &Published| {
            Some(&published.deliverable) == problem.deliverable.as_ref() && !published.places.is_empty()
        };
        problem.class == Class::Everything && (problem.location.is_none() || !self.published.iter().any(is_live))
    }

    /// Counts the outcome. A compose that nothing can be published of until an operator fixes something is a trouble.
    pub fn count(&self, health: &Health) {
        let disposition = self.disposition();
        let is_waiting = disposition == Disposition::Requeue;
        for published in &self.published {
            let is_live = !published.places.is_empty();
            // Work that waits for an operator is repeated every half minute: only its changes count.
            if !is_waiting || published.is_new() {
                if is_live {
                    health.count_published();
                }
                metrics::deliverable(published.outcome());
            }
            if self.problems.is_empty() && is_live {
                metrics::succeeded(&published.release);
                health.set_trouble(Trouble::Check, None);
            }
        }
        for problem in self.problems.iter().filter(|_| !is_waiting) {
            metrics::failed(problem.class);
        }
        if disposition != Disposition::Ack {
            health.count_failed();
        }
        let cause = self.problems.iter().find(|problem| problem.class == Class::Everything);
        let cause = cause.filter(|_| is_waiting);
        let trouble = Trouble::Compose(self.compose.clone());
        health.set_trouble(trouble, cause.map(|problem| format!("failed to {}", problem.what)));
    }

    /// Writes the result to the log: failures once for each cause, and in repeated work only new ones.
    pub fn log(&self, log: &ReportLog) {
        self.log_published();
        let new = log.new_failures(&self.problems);
        for text in self.texts(new.iter().copied()) {
            tracing::error!("{text}");
        }
        if new.is_empty() && !self.problems.is_empty() {
            tracing::warn!("not fixed yet: {}", self.failures().join("\n"));
        }
    }

    /// Writes the failures to the log, one record for each cause.
    pub fn log_failures(&self) {
        for text in self.failures() {
            tracing::error!("{text}");
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
        if self.published.is_empty() && self.problems.is_empty() {
            tracing::info!("{} has nothing for this provider", self.compose);
        }
    }

    /// The failures as texts for people, one for each cause, each with the commands that repair it.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.texts(self.problems.iter())
    }

    fn texts<'a>(&self, problems: impl Iterator<Item = &'a Problem>) -> Vec<String> {
        let mut causes: Vec<(String, Vec<&Problem>)> = Vec::new();
        for problem in problems {
            let cause = problem.cause();
            match causes.iter_mut().find(|(other, _)| *other == cause) {
                Some((_, hit)) => hit.push(problem),
                None => causes.push((cause, vec![problem])),
            }
        }
        causes.iter().map(|(_, hit)| self.text(hit)).collect()
    }

    /// One cause on one line where it hit once; otherwise a line for the cause and one for each deliverable or location
    /// that it hit.
    fn text(&self, hit: &[&Problem]) -> String {
        let first = hit.first().map(|problem| problem.what.as_str()).unwrap_or_default();
        let is_same = hit.iter().all(|problem| problem.what == first);
        let what = |problem: &Problem| match &problem.location {
            Some(location) => format!("{} to {location}", self.subject(problem)),
            None => self.subject(problem).to_owned(),
        };
        if let [problem] = hit {
            let repair = self.repair(problem);
            return format!("failed to publish {}: {first}; repair: {repair}", what(problem));
        }
        let mut text = format!("failed to publish {} parts of {}", hit.len(), self.compose);
        if is_same {
            let _ = write!(text, ": {first}");
        } else {
            text.push_str(", for one cause:");
        }
        for problem in hit {
            let cause = if is_same {
                String::new()
            } else {
                format!(": {}", problem.what)
            };
            let _ = write!(text, "\n- {}{cause}; repair: {}", what(problem), self.repair(problem));
        }
        text
    }

    /// The name of what failed: the deliverable's, or the compose's.
    fn subject<'a>(&'a self, problem: &'a Problem) -> &'a str {
        problem.deliverable.as_deref().unwrap_or(&self.compose)
    }

    /// The command that repeats just what failed.
    #[must_use]
    pub fn repair(&self, problem: &Problem) -> String {
        let mut words = vec![
            "cloud-image-uploader".to_owned(),
            "--conf".to_owned(),
            self.conf.display().to_string(),
            "reconsume".to_owned(),
        ];
        words.extend(self.arguments.iter().cloned());
        if let Some(only) = &problem.only {
            words.extend(["--only".to_owned(), only.clone()]);
        }
        // Where all locations failed, those that the operator asked for.
        let locations: Vec<&String> = match &problem.location {
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
    use crate::base::resource::Resource;
    use crate::messaging::message::RequestSource;
    use crate::model::compose::ComposeId;

    fn problem(deliverable: &str, location: &str, what: &str) -> Problem {
        Problem {
            deliverable: Some(deliverable.to_owned()),
            location: Some(location.to_owned()),
            what: what.to_owned(),
            class: Class::Everything,
            only: Some(deliverable.to_owned()),
        }
    }

    fn report(problems: Vec<Problem>) -> Report {
        let id = "7dd7ee5c-3c9c-4c37-9c6d-52d4a6b5a9a1";
        let request = Request {
            compose: ComposeId::parse("Fedora-43-20251023.0").unwrap(),
            location: Resource::remote("https://kojipkgs.fedoraproject.org/compose").unwrap(),
            label: None,
            announced: jiff::Timestamp::UNIX_EPOCH,
            origin: RequestSource::Message(id.to_owned()),
        };
        Report {
            compose: request.compose.to_string(),
            published: Vec::new(),
            problems,
            conf: "/etc/conf.toml".into(),
            arguments: request.origin.arguments(),
            locations: BTreeSet::new(),
        }
    }

    #[test]
    fn a_failure_is_new_by_its_cause_and_place() {
        let log = ReportLog::default();
        let [a, b] = ["eu-west-1", "us-east-1"]
            .map(|region| problem("fedora", region, "make it: refused (request 7f3a, 12:00)"));
        assert_eq!(log.new_failures(&[a, b]).len(), 2);
        let [a, b] = ["us-east-1", "eu-west-1"]
            .map(|region| problem("fedora", region, "make it: refused (request 9c11, 12:01)"));
        assert_eq!(log.new_failures(&[a, b]).len(), 0, "another request, in another order");
        let one = problem("fedora", "eu-west-1", "make it: refused (request 9c12, 12:02)");
        let other = problem("fedora", "us-east-1", "find the bucket: there is none");
        assert_eq!(
            log.new_failures(&[one, other])[0].location.as_deref(),
            Some("us-east-1")
        );
    }

    #[test]
    fn one_cause_is_one_text_with_a_command_for_each_place() {
        let quay = "quay.io/fedora";
        let push = |repository: &str, registry: &str, answer: &str| {
            let what = format!("begin an upload to {registry}/{repository}: the registry answered {answer}");
            problem(repository, registry, &what)
        };
        let problems = vec![
            push("fedora", quay, "403 (denied)"),
            push("fedora-minimal", quay, "403 (denied)"),
            push("fedora", "registry.fedoraproject.org", "403 (denied)"),
            push("fedora-toolbox", quay, "507 (full)"),
        ];
        let repair =
            "repair: cloud-image-uploader --conf /etc/conf.toml reconsume 7dd7ee5c-3c9c-4c37-9c6d-52d4a6b5a9a1";
        let quay = format!(
            "failed to publish 2 parts of Fedora-43-20251023.0, for one cause:\n\
             - fedora to quay.io/fedora: begin an upload to quay.io/fedora/fedora: the registry answered 403 (denied); \
             {repair} --only fedora --location quay.io/fedora\n\
             - fedora-minimal to quay.io/fedora: begin an upload to quay.io/fedora/fedora-minimal: the registry answered \
             403 (denied); {repair} --only fedora-minimal --location quay.io/fedora"
        );
        let project = format!(
            "failed to publish fedora to registry.fedoraproject.org: begin an upload to \
             registry.fedoraproject.org/fedora: the registry answered 403 (denied); {repair} --only fedora --location \
             registry.fedoraproject.org"
        );
        let full = format!(
            "failed to publish fedora-toolbox to quay.io/fedora: begin an upload to quay.io/fedora/fedora-toolbox: the \
             registry answered 507 (full); {repair} --only fedora-toolbox --location quay.io/fedora"
        );
        assert_eq!(report(problems).failures(), [quay, project, full]);

        let problems = ["eu-west-1", "us-east-1"].map(|region| problem("disk", region, "renew the credentials"));
        let expected = format!(
            "failed to publish 2 parts of Fedora-43-20251023.0: renew the credentials\n\
             - disk to eu-west-1; {repair} --only disk --location eu-west-1\n\
             - disk to us-east-1; {repair} --only disk --location us-east-1"
        );
        assert_eq!(report(problems.to_vec()).failures(), [expected]);
    }
}
