//! The order of the steps: compose, selection, then for each deliverable stage, gates, release, announcement.

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
use crate::model::compose::release::Releases;
use crate::model::outcome::{Failed, Origin, Outcome, Place};
use crate::model::select::{Deliverable, Only};
use crate::providers::contract::{Publish, Task};
use crate::publish::prepare::{Prepared, prepare};
use crate::publish::progress::{Progress, Retry};
use crate::publish::report::{Problem, Published, Report, ReportLog};

/// How often a location that changes between stage and release is staged before that counts as a transient failure.
const STALE_TURNS: u32 = 3;

/// An operator's requests beside the compose.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only these images or repositories.
    pub only: Option<Only>,
    /// Change only these locations.
    pub locations: Option<BTreeSet<String>>,
    /// Move container tags back.
    pub allow_older: bool,
    /// The announcements and failures that earlier runs of the same work have reported.
    pub log: Arc<ReportLog>,
}

/// Publishes composes to one provider.
pub struct Pipeline {
    /// Reads metadata.
    pub http: Client,
    /// The hosts that composes may be on.
    pub hosts: Hosts,
    /// Verifies the images' signatures.
    pub signatures: Signatures,
    /// Finds out releases.
    pub releases: Releases,
    /// The provider's section.
    pub section: config::Provider,
    /// Stages and releases.
    pub provider: Arc<dyn Publish>,
    /// The gates between stage and release, in order.
    pub gates: Vec<Arc<dyn Gate>>,
    /// Notified after each announcement, for the retention policy that is due then.
    pub announced: Arc<Notify>,
    /// Reads images.
    pub sources: Sources,
    /// Announces.
    pub notifier: Notifier,
    /// How long a failing location delays the announcement of the others.
    pub location_patience: Duration,
    /// How long a transient failure is retried. Every retry inside gets what is left of it.
    pub give_up_after: Duration,
    /// The configuration file, for the commands in reports.
    pub conf: PathBuf,
}

impl Pipeline {
    /// Publishes a compose. The report has every failure; the other deliverables are done.
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
                report.problems.push(Problem::compose(&failure));
                return report;
            }
        };
        for refused in prepared.selection.refused {
            report.problems.push(Problem::compose(&refused.into()));
        }
        let deliverables = &prepared.selection.deliverables;
        let work = deliverables.iter().map(|deliverable| {
            let span = tracing::info_span!("publish", deliverable = deliverable.name());
            let run = Run {
                pipeline: self,
                compose: &prepared.compose,
                since: request.announced,
                deliverable,
                log: &options.log,
            };
            run.publish(task.clone()).instrument(span)
        });
        for (published, problems) in join_all(work).await {
            report.published.push(published);
            report.problems.extend(problems);
        }
        report
    }

    async fn prepare(&self, request: &Request, only: Option<&Only>) -> Result<Prepared, Failure> {
        request.location.within(&self.hosts)?;
        Policy::work(self.give_up_after)
            .run("compose", Failure::class, || {
                prepare(&self.http, &self.releases, &self.section, request, only)
            })
            .await
    }
}

/// The publication of one deliverable.
struct Run<'a> {
    pipeline: &'a Pipeline,
    compose: &'a Compose,
    /// The time of the compose's message.
    since: Timestamp,
    deliverable: &'a Deliverable,
    log: &'a ReportLog,
}

impl Run<'_> {
    /// Rounds of stage and release until every location has the deliverable, has failed for good, or time is up. Each round
    /// looks first, so that what is done stays done; [`Progress`] decides what comes after it. The live places are
    /// announced as soon as none is missing, and otherwise when the patience with the rest ends, even in the middle of a round.
    async fn publish(self, mut task: Task) -> (Published, Vec<Problem>) {
        let started = Instant::now();
        let mut progress = Progress::new(self.deliverable, self.pipeline.location_patience);
        let mut waits = Policy::work(self.pipeline.give_up_after).start("deliverable");
        let mut wait = Duration::ZERO;
        loop {
            let patience = progress.patience(started.elapsed());
            let round = {
                let mut round = pin!(waits.attempt(async {
                    metrics::during(Step::Wait, tokio::time::sleep(wait)).await;
                    self.round(&task).await
                }));
                tokio::select! {
                    round = &mut round => round,
                    () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => {
                        if let Err(error) = self.announce(&mut progress).await {
                            progress.not_announced(&error.into());
                            return progress.finish();
                        }
                        round.await
                    }
                }
            };
            let next = progress.ended(round, started.elapsed(), |class| waits.after(class));
            for location in &next.created {
                metrics::published(&self.deliverable.what(), location, self.since);
            }
            if next.announce
                && let Err(error) = self.announce(&mut progress).await
            {
                progress.not_announced(&error.into());
                return progress.finish();
            }
            let Some(retry) = next.retry else {
                return progress.finish();
            };
            warn(&retry);
            wait = retry.wait;
            for location in progress.excluded() {
                let all = || self.deliverable.locations.iter().cloned().collect();
                task.locations.get_or_insert_with(all).remove(location);
            }
        }
    }

    /// Announces what is live, unless nothing is, or the last announcement said just that.
    async fn announce(&self, progress: &mut Progress<'_>) -> Result<(), notify::Error> {
        let Some(places) = progress.to_announce() else {
            return Ok(());
        };
        let notice = Notice::of(self.deliverable, places);
        if !self.log.is_announced(self.deliverable, notice.id) {
            let policy = Policy::work(self.pipeline.give_up_after);
            metrics::during(Step::Announce, self.pipeline.notifier.send(&notice, policy)).await?;
            self.log.announced(self.deliverable, notice.id);
            if places.iter().any(|place: &Place| place.origin == Origin::Created) {
                self.pipeline.announced.notify_one();
            }
        }
        progress.announced();
        Ok(())
    }

    /// Stages, passes the gates, and releases. A location that changed in between goes through all of it again.
    async fn round(&self, task: &Task) -> Result<Outcome, Failure> {
        let (pipeline, deliverable) = (self.pipeline, self.deliverable);
        let verifying = pipeline
            .signatures
            .verify(&pipeline.http, self.compose, &deliverable.images);
        metrics::during(Step::Verify, verifying).await?;
        let mut turns = 1..STALE_TURNS;
        loop {
            let staged = metrics::during(Step::Stage, pipeline.provider.stage(deliverable, task)).await?;
            for gate in &pipeline.gates {
                gate.pass(deliverable, &staged).await?;
            }
            let releasing = pipeline.provider.release(deliverable, staged, task);
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

fn warn(retry: &Retry) {
    for Failed { location, failure } in &retry.because {
        let wait_ms = retry.wait.as_millis();
        tracing::warn!(location, wait_ms, "failed to {failure}; trying again");
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
