//! The order of the steps: compose, selection, then for each deliverable stage, release, announce.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use reqwest::Client;
use tokio::sync::Notify;
use tracing::Instrument;

use crate::base::failure::{Class, Classified, Failure};
use crate::base::http::Hosts;
use crate::base::metrics::{self, Step};
use crate::base::retry::Policy;
use crate::config;
use crate::gates::gate::Gate;
use crate::images::signature::Signatures;
use crate::images::source::Sources;
use crate::messaging::message::Request;
use crate::messaging::notify::{self, Notice, Notifier};
use crate::model::compose::Compose;
use crate::model::compose::release::{Release, Releases};
use crate::model::outcome::{Failed, Origin, Outcome, Place};
use crate::model::select::{self, Deliverable, Only, Selection};
use crate::providers::contract::{Publish, Task};
use crate::publish::report::{Problem, Published, Report, ReportLog};

/// A compose, ready to be published.
#[derive(Debug)]
pub struct Prepared {
    /// Its metadata.
    pub compose: Compose,
    /// Its release.
    pub release: Release,
    /// What this process publishes of it.
    pub selection: Selection,
}

/// Everything up to the first write; what `plan` shows.
///
/// # Errors
///
/// Metadata or release data that cannot be had or understood.
pub async fn prepare(
    http: &Client,
    releases: &Releases,
    section: &config::Provider,
    request: &Request,
    only: Option<&Only>,
) -> Result<Prepared, Failure> {
    let compose = Compose::fetch(http, &request.location, &request.compose, request.label.as_deref()).await?;
    let release = releases.of(&compose).await?;
    let selection = select::select(&section.publisher(), &compose, &release, only);
    Ok(Prepared {
        compose,
        release,
        selection,
    })
}

/// How often a location that changes between stage and release is staged before that counts as a transient failure.
const STALE_TURNS: u32 = 3;

/// What an operator asked for beside the compose.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only these images or repositories.
    pub only: Option<Only>,
    /// Change only these locations.
    pub locations: Option<BTreeSet<String>>,
    /// Move container tags back.
    pub allow_older: bool,
    /// What has been said before.
    pub told: Arc<ReportLog>,
}

/// How far a deliverable is.
#[derive(Default)]
struct Progress {
    /// As of the last round that got through.
    live: Outcome,
    announced: Option<Vec<Place>>,
    broken: Vec<Problem>,
}

/// Publishes composes to one provider.
pub struct Pipeline {
    /// Reads metadata.
    pub http: Client,
    /// Where composes may be.
    pub hosts: Hosts,
    /// Who vouches for images.
    pub signatures: Signatures,
    /// Knows releases.
    pub releases: Releases,
    /// The provider's section.
    pub section: config::Provider,
    /// The provider.
    pub provider: Arc<dyn Publish>,
    /// What stands between stage and release, in order.
    pub gates: Vec<Arc<dyn Gate>>,
    /// Notified after each announcement, for the retention policy that is due then.
    pub announced: Arc<Notify>,
    /// Reads images.
    pub sources: Sources,
    /// Announces.
    pub notifier: Notifier,
    /// How long a failing location delays the announcement of the others.
    pub location_patience: Duration,
    /// How long a passing failure is retried.
    pub give_up_after: Duration,
    /// The configuration file, for the commands in reports.
    pub conf: PathBuf,
}

impl Pipeline {
    /// Publishes a compose. Whatever fails is in the report; the other deliverables are done.
    pub async fn run(&self, request: &Request, options: &Options) -> Report {
        let task = Task {
            sources: self.sources.clone(),
            locations: options.locations.clone(),
            allow_older: options.allow_older,
            patience: self.location_patience,
        };
        let mut report = Report::new(request, &task, &self.conf);
        let prepared = match self.prepare(request, options.only.as_ref()).await {
            Ok(prepared) => prepared,
            Err(failure) => {
                report.broken.push(Problem::compose(&failure));
                return report;
            }
        };
        for refused in prepared.selection.refused {
            report.broken.push(Problem::compose(&refused.into()));
        }
        let deliverables = &prepared.selection.deliverables;
        let work = deliverables.iter().map(|deliverable| {
            let span = tracing::info_span!("publish", deliverable = deliverable.name());
            self.publish(&prepared.compose, request.announced, deliverable, &task, &options.told)
                .instrument(span)
        });
        for (published, broken) in join_all(work).await {
            report.published.push(published);
            report.broken.extend(broken);
        }
        report
    }

    async fn prepare(&self, request: &Request, only: Option<&Only>) -> Result<Prepared, Failure> {
        request.location.within(&self.hosts)?;
        Policy::work(self.give_up_after)
            .run("compose", Failure::class, || async {
                prepare(&self.http, &self.releases, &self.section, request, only).await
            })
            .await
    }

    /// Publishes a deliverable, and tells what became of it.
    async fn publish(
        &self,
        compose: &Compose,
        since: Timestamp,
        deliverable: &Deliverable,
        task: &Task,
        told: &ReportLog,
    ) -> (Published, Vec<Problem>) {
        let mut course = Progress::default();
        if let Err(error) = self.rounds(compose, since, deliverable, task, told, &mut course).await {
            course.broken.push(Problem::deliverable(deliverable, &error.into()));
            course.announced = Some(course.live.places);
        }
        let published = Published::new(deliverable, course.announced, course.live.superseded);
        (published, course.broken)
    }

    /// Rounds of stage and release until every location has the deliverable, has failed for good, or time is up.
    /// What is done stays done: each round looks first. What is live is announced as soon as nothing is missing, and
    /// otherwise when the patience with the rest ends, even in the middle of a round.
    async fn rounds(
        &self,
        compose: &Compose,
        since: Timestamp,
        deliverable: &Deliverable,
        task: &Task,
        told: &ReportLog,
        course: &mut Progress,
    ) -> Result<(), notify::Error> {
        let mut waits = Policy::work(self.give_up_after).start("deliverable");
        let mut task = task.clone();
        let mut wait = Duration::ZERO;
        let mut failing_since: Option<Instant> = None;
        loop {
            let patience = self
                .location_patience
                .saturating_sub(failing_since.map_or(Duration::ZERO, |since| since.elapsed()));
            let delays = course.announced.is_none() && !course.live.places.is_empty();
            let outcome = {
                let mut round = pin!(async {
                    metrics::during(Step::Wait, tokio::time::sleep(wait)).await;
                    self.round(compose, deliverable, &task).await
                });
                tokio::select! {
                    outcome = &mut round => outcome,
                    () = tokio::time::sleep(patience), if delays => {
                        self.announce(deliverable, told, course).await?;
                        round.await
                    }
                }
            };
            let pending = match outcome {
                Ok(mut publication) => {
                    let waited = publication.waited;
                    let failed = std::mem::take(&mut publication.failed);
                    // What this process made is found by its own later rounds.
                    for place in &mut publication.places {
                        let made = Place {
                            origin: Origin::Created,
                            ..place.clone()
                        };
                        if course.live.places.contains(&made) {
                            *place = made;
                        }
                    }
                    for place in made(&publication, &course.live) {
                        metrics::published(&deliverable.what(), &place.location, since);
                    }
                    if !failed.is_empty() {
                        failing_since = failing_since.or_else(|| Instant::now().checked_sub(waited));
                    }
                    publication.keep_unseen(&course.live, deliverable);
                    course.live = publication;
                    let (passing, lasting): (Vec<_>, Vec<_>) =
                        failed.into_iter().partition(|f| f.failure.class().is_transient());
                    for Failed { location, failure } in lasting {
                        course.broken.push(Problem::location(deliverable, &location, &failure));
                        exclude(&mut task, deliverable, &location);
                    }
                    passing
                }
                Err(failure) if failure.class().is_transient() => vec![Failed {
                    location: String::new(),
                    failure,
                }],
                Err(failure) => {
                    course.broken.push(Problem::deliverable(deliverable, &failure));
                    Vec::new()
                }
            };
            let next = pending
                .iter()
                .map(|failed| failed.failure.class())
                .max_by_key(asked)
                .and_then(|class| waits.after(class));
            let failing = failing_since.get_or_insert_with(Instant::now).elapsed();
            if next.is_none() || failing >= self.location_patience {
                self.announce(deliverable, told, course).await?;
            }
            let Some(next) = next else {
                course
                    .broken
                    .extend(pending.iter().map(|failed| match failed.location.as_str() {
                        "" => Problem::deliverable(deliverable, &failed.failure),
                        location => Problem::location(deliverable, location, &failed.failure),
                    }));
                return Ok(());
            };
            for failed in &pending {
                tracing::warn!(
                    location = failed.location,
                    wait_ms = next.as_millis(),
                    "failed to {}; trying again",
                    failed.failure
                );
            }
            wait = next;
        }
    }

    /// Announces what is live, unless nothing is, or just that has been announced.
    async fn announce(
        &self,
        deliverable: &Deliverable,
        told: &ReportLog,
        course: &mut Progress,
    ) -> Result<(), notify::Error> {
        let places = &course.live.places;
        if places.is_empty() || course.announced.as_ref() == Some(places) {
            return Ok(());
        }
        let notice = Notice::of(deliverable, places);
        if !told.is_announced(deliverable, notice.id) {
            let sending = self.notifier.send(&notice, Policy::work(self.give_up_after));
            metrics::during(Step::Announce, sending).await?;
            told.announced(deliverable, notice.id);
            if places.iter().any(|place| place.origin == Origin::Created) {
                self.announced.notify_one();
            }
        }
        course.announced = Some(places.clone());
        Ok(())
    }

    /// Stages, passes the gates, and releases. A location that changed in between goes through all of it again.
    async fn round(&self, compose: &Compose, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure> {
        let verifying = self.signatures.verify(&self.http, compose, &deliverable.images);
        metrics::during(Step::Verify, verifying).await?;
        let mut turns = 1..STALE_TURNS;
        loop {
            let staged = metrics::during(Step::Stage, self.provider.stage(deliverable, task)).await?;
            for gate in &self.gates {
                gate.pass(deliverable, &staged).await?;
            }
            let releasing = self.provider.release(deliverable, staged, task);
            let mut outcome = metrics::during(Step::Release, releasing).await?;
            if !outcome.stale.is_empty() && turns.next().is_some() {
                tracing::info!(
                    stale = outcome.stale.join(", "),
                    "staging again: it changed after it was staged"
                );
                continue;
            }
            let stale = std::mem::take(&mut outcome.stale).into_iter().map(|location| Failed {
                failure: Stale(deliverable.name()).into(),
                location,
            });
            outcome.failed.extend(stale);
            return Ok(outcome);
        }
    }
}

/// A location that keeps changing between stage and release.
#[derive(Debug, thiserror::Error)]
#[error("release {0}: something else is published there at the same time, and changed it after each staging")]
struct Stale(String);

impl Classified for Stale {
    fn class(&self) -> Class {
        Class::TRANSIENT
    }
}

/// The places where it was not live before this round, nor before this process.
fn made<'a>(publication: &'a Outcome, before: &'a Outcome) -> impl Iterator<Item = &'a Place> {
    let was_live = |place: &Place| before.places.iter().any(|other| other.location == place.location);
    let made = publication.places.iter();
    made.filter(move |place| place.origin == Origin::Created && !was_live(place))
}

/// Orders passing failures by how long the server wants to be left alone.
fn asked(class: &Class) -> Option<Duration> {
    match class {
        Class::Transient { after } => *after,
        Class::Deliverable | Class::Everything => None,
    }
}

/// A location that failed for good is not tried again in later rounds.
fn exclude(task: &mut Task, deliverable: &Deliverable, location: &str) {
    let all = || deliverable.locations.iter().cloned().collect();
    task.locations.get_or_insert_with(all).remove(location);
}
