//! The running work by compose and location: deliveries join it.
//!
//! Deliveries and work are two things. A broker may take a delivery away that is not acknowledged for hours, while the
//! work on its compose goes on; the redelivered message then joins it. A message may name a wrong location, by mistake or on
//! purpose, so a message with another location only shares the success of the running work, never its failure. A ticket
//! (`T`) stands for one delivery; this module only keeps it. Only one task owns a [`Work`], so nothing here is locked.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::base::failure::Disposition;
use crate::base::health::Health;
use crate::base::metrics;
use crate::messaging::jobs::{Ended, Jobs, Subject};
use crate::messaging::message::Request;
use crate::publish::pipeline::{Options, Pipeline};
use crate::publish::report::ReportLog;

/// How long a delivery rests before it goes back to the queue, since the broker delivers it again at once.
const PAUSE: Duration = Duration::from_secs(30);
/// How long the outcome of work is kept whose deliveries were taken away by the broker before it ended.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// All composes in work.
pub struct Work<T> {
    pipeline: Arc<Pipeline>,
    health: Arc<Health>,
    /// By compose id.
    composes: HashMap<String, InWork<T>>,
    tasks: JoinSet<()>,
    /// The reports on composes whose deliveries went back to the queue.
    logs: HashMap<Subject, Arc<ReportLog>>,
    outcomes: (mpsc::UnboundedSender<Outcome>, mpsc::UnboundedReceiver<Outcome>),
    settled_late: HashMap<Subject, (Instant, Disposition)>,
    stopping: CancellationToken,
}

/// A compose id, and the decision about its deliveries.
type Outcome = (String, Disposition);

/// One compose: at most one job runs, those with other locations wait for it to fail.
struct InWork<T> {
    running: Job<T>,
    task: AbortHandle,
    waiting: VecDeque<Job<T>>,
}

/// A compose in one location, and the deliveries that ask for it.
struct Job<T> {
    request: Request,
    tickets: Vec<T>,
}

impl<T> InWork<T> {
    fn jobs(&self) -> impl Iterator<Item = &Job<T>> {
        std::iter::once(&self.running).chain(&self.waiting)
    }
}

impl<T> Work<T> {
    /// No compose is in work yet.
    #[must_use]
    pub fn new(pipeline: Arc<Pipeline>, health: Arc<Health>) -> Self {
        Self {
            pipeline,
            health,
            composes: HashMap::new(),
            tasks: JoinSet::new(),
            logs: HashMap::new(),
            outcomes: mpsc::unbounded_channel(),
            settled_late: HashMap::new(),
            stopping: CancellationToken::new(),
        }
    }

    fn start(&mut self, running: Job<T>, waiting: VecDeque<Job<T>>) {
        let subject = Subject::of(&running.request);
        let (pipeline, health, outcomes) = (self.pipeline.clone(), self.health.clone(), self.outcomes.0.clone());
        let log = self.logs.entry(subject.clone()).or_default().clone();
        let (request, stopping) = (running.request.clone(), self.stopping.clone());
        let Subject { compose, location } = subject;
        let span = tracing::info_span!("compose", compose);
        let run = async move {
            tracing::info!("reading the compose at {location}");
            let options = Options {
                log: log.clone(),
                ..Options::default()
            };
            let report = pipeline.run(&request, &options).await;
            report.log(&log);
            report.count(&health);
            let disposition = report.disposition();
            if disposition == Disposition::Requeue {
                let _ = tokio::time::timeout(PAUSE, stopping.cancelled()).await;
            }
            // The receiver lives as long as this.
            let _ = outcomes.send((report.compose, disposition));
        };
        let task = self.tasks.spawn(run.instrument(span));
        let in_work = InWork { running, task, waiting };
        self.composes.insert(compose, in_work);
        self.measure();
    }

    /// Ends the running job of a compose. With success the waiting ones have ended, too; otherwise the next one starts.
    fn end(&mut self, compose: &str, disposition: Disposition) -> Option<Ended<T>> {
        let InWork {
            running, mut waiting, ..
        } = self.composes.remove(compose)?;
        let mut subjects = vec![Subject::of(&running.request)];
        let mut tickets = running.tickets;
        if disposition != Disposition::Requeue {
            self.logs.remove(&subjects[0]);
        }
        if disposition == Disposition::Ack {
            for job in waiting {
                subjects.push(Subject::of(&job.request));
                tickets.extend(job.tickets);
            }
        } else if let Some(next) = waiting.pop_front() {
            let location = &next.request.location;
            if self.stopping.is_cancelled() {
                tracing::warn!(compose, "{compose} at {location} is left to the next delivery");
            } else {
                tracing::info!(
                    compose,
                    "{compose} was not published; now the other message's location, {location}"
                );
                self.start(next, waiting);
            }
        }
        self.measure();
        Some(Ended {
            subjects,
            disposition,
            tickets,
        })
    }

    fn measure(&self) {
        let jobs = self.composes.values().flat_map(InWork::jobs);
        metrics::composes(self.composes.len(), jobs.map(|job| job.request.announced).min());
    }
}

impl<T: Send + 'static> Jobs<T> for Work<T> {
    fn join(&mut self, request: Request, ticket: T, redelivered: bool) -> Option<(T, Disposition)> {
        let subject = Subject::of(&request);
        let Subject { compose, location } = &subject;
        if let Some(in_work) = self.composes.get_mut(compose) {
            let mut jobs = std::iter::once(&mut in_work.running).chain(&mut in_work.waiting);
            if let Some(job) = jobs.find(|job| job.request.location == request.location) {
                tracing::info!(compose, "another delivery joins the work on {compose}");
                job.tickets.push(ticket);
            } else {
                tracing::warn!(
                    compose,
                    "another message names another location of {compose}, {location}; it waits for the work on {}",
                    in_work.running.request.location
                );
                in_work.waiting.push_back(Job {
                    request,
                    tickets: vec![ticket],
                });
            }
            return None;
        }
        let late = self.settled_late.remove(&subject);
        let late = late.filter(|(ended, _)| ended.elapsed() < REMEMBERED);
        if let Some((_, disposition)) = late
            && redelivered
        {
            return Some((ticket, disposition));
        }
        let tickets = vec![ticket];
        self.start(Job { request, tickets }, VecDeque::new());
        None
    }

    async fn next(&mut self) -> Ended<T> {
        loop {
            let (compose, disposition) = tokio::select! {
                // The sender is kept here, so the channel never closes.
                Some(outcome) = self.outcomes.1.recv() => outcome,
                Some(joined) = self.tasks.join_next_with_id() => match joined {
                    // Its outcome is on its way.
                    Ok(_) => continue,
                    Err(error) => {
                        let died = self.composes.iter().find(|(_, in_work)| in_work.task.id() == error.id());
                        let Some((compose, _)) = died else { continue };
                        tracing::error!(compose, "failed to publish {compose}: {error}");
                        (compose.clone(), Disposition::Drop)
                    }
                },
            };
            if let Some(ended) = self.end(&compose, disposition) {
                return ended;
            }
        }
    }

    fn remember(&mut self, subjects: Vec<Subject>, disposition: Disposition) {
        self.settled_late.retain(|_, (ended, _)| ended.elapsed() < REMEMBERED);
        let now = Instant::now();
        self.settled_late
            .extend(subjects.into_iter().map(|subject| (subject, (now, disposition))));
    }

    fn tickets(&self) -> impl Iterator<Item = &T> {
        let jobs = self.composes.values().flat_map(InWork::jobs);
        jobs.flat_map(|job| &job.tickets)
    }

    fn len(&self) -> usize {
        self.composes.len()
    }

    fn stop(&mut self) {
        self.stopping.cancel();
    }

    fn abandon(&mut self) {
        for (compose, in_work) in self.composes.drain() {
            tracing::warn!(compose, "{compose} is left to the next delivery");
            in_work.task.abort();
        }
    }
}
