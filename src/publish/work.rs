//! The running work by compose: deliveries join it.
//!
//! Deliveries and work are two things. A broker may take a delivery away that is not acknowledged for hours, while the
//! work on its compose goes on; the redelivered message then joins it. Only one task owns a [`Work`], so nothing here
//! is locked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lapin::message::Delivery;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::base::failure::Disposition;
use crate::base::metrics;
use crate::commands::monitoring::Health;
use crate::messaging::message::Request;
use crate::publish::pipeline::{Options, Pipeline};
use crate::publish::report::{Report, ReportLog};

/// How long a delivery rests before it goes back to the queue, since the broker would hand it out again at once.
const PAUSE: Duration = Duration::from_secs(30);
/// How long the outcome of work is kept whose deliveries were taken away by the broker before it ended.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// A delivery that waits for its compose.
#[derive(Debug)]
pub struct Held {
    /// To be settled. Of no use once its channel is closed; the broker delivers the message again then.
    pub delivery: Delivery,
    /// Which subscription it came from.
    pub epoch: u64,
}

/// Work that has ended, and the deliveries to be settled with it.
#[derive(Debug)]
pub struct Finished {
    /// The compose.
    pub compose: String,
    /// What becomes of the deliveries.
    pub disposition: Disposition,
    /// The deliveries that joined.
    pub held: Vec<Held>,
}

/// All composes being worked on.
pub struct Work {
    pipeline: Arc<Pipeline>,
    jobs: HashMap<String, Job>,
    tasks: JoinSet<()>,
    /// Of composes whose deliveries went back to the queue.
    told: HashMap<String, Arc<ReportLog>>,
    health: Arc<Health>,
    ended: (mpsc::UnboundedSender<Report>, mpsc::UnboundedReceiver<Report>),
    settled_late: HashMap<String, (Instant, Disposition)>,
    stopping: CancellationToken,
}

struct Job {
    held: Vec<Held>,
    announced: Timestamp,
    task: AbortHandle,
}

impl Work {
    /// Nothing to do yet.
    #[must_use]
    pub fn new(pipeline: Arc<Pipeline>, health: Arc<Health>) -> Self {
        Self {
            pipeline,
            health,
            jobs: HashMap::new(),
            tasks: JoinSet::new(),
            told: HashMap::new(),
            ended: mpsc::unbounded_channel(),
            settled_late: HashMap::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Starts work on a compose, or joins the work that is running. A message that comes back after its work has ended
    /// gets that outcome at once.
    pub fn join(&mut self, request: Request, held: Held, redelivered: bool) -> Option<(Held, Disposition)> {
        let compose = request.compose.to_string();
        if let Some(job) = self.jobs.get_mut(&compose) {
            tracing::info!(compose, "another delivery joins the work on {compose}");
            job.held.push(held);
            return None;
        }
        let late = self
            .settled_late
            .remove(&compose)
            .filter(|(ended, _)| ended.elapsed() < REMEMBERED);
        if let Some((_, disposition)) = late
            && redelivered
        {
            return Some((held, disposition));
        }
        let (pipeline, health, ended) = (self.pipeline.clone(), self.health.clone(), self.ended.0.clone());
        let told = self.told.entry(compose.clone()).or_default().clone();
        let announced = request.announced;
        let stopping = self.stopping.clone();
        let span = tracing::info_span!("compose", compose);
        let run = async move {
            tracing::info!("begins");
            let options = Options {
                told: told.clone(),
                ..Options::default()
            };
            let report = pipeline.run(&request, &options).await;
            report.log(&told);
            health.report(&report);
            if report.disposition() == Disposition::Requeue {
                let _ = tokio::time::timeout(PAUSE, stopping.cancelled()).await;
            }
            // The receiver lives as long as this.
            let _ = ended.send(report);
        };
        let task = self.tasks.spawn(run.instrument(span));
        let held = vec![held];
        let job = Job { held, announced, task };
        self.jobs.insert(compose, job);
        self.measure();
        None
    }

    /// Waits for the next work to end; for ever while there is none. May be dropped and called again.
    pub async fn next(&mut self) -> Finished {
        loop {
            let (compose, disposition) = tokio::select! {
                // The sender is kept here, so the channel never closes.
                Some(report) = self.ended.1.recv() => (report.compose.clone(), report.disposition()),
                Some(joined) = self.tasks.join_next_with_id() => match joined {
                    // Its report is on its way.
                    Ok(_) => continue,
                    Err(error) => {
                        let died = self.jobs.iter().find(|(_, job)| job.task.id() == error.id());
                        let Some((compose, _)) = died else { continue };
                        tracing::error!(compose, "failed to publish {compose}: {error}");
                        (compose.clone(), Disposition::Drop)
                    }
                },
            };
            if let Some(job) = self.jobs.remove(&compose) {
                self.measure();
                if disposition != Disposition::Requeue {
                    self.told.remove(&compose);
                }
                return Finished {
                    disposition,
                    compose,
                    held: job.held,
                };
            }
        }
    }

    /// Keeps an outcome that no delivery could be settled with, for when the message comes back.
    pub fn remember(&mut self, compose: String, disposition: Disposition) {
        self.settled_late.retain(|_, (ended, _)| ended.elapsed() < REMEMBERED);
        self.settled_late.insert(compose, (Instant::now(), disposition));
    }

    /// Deliveries of a subscription that wait for their compose.
    #[must_use]
    pub fn held(&self, epoch: u64) -> usize {
        let held = self.jobs.values().flat_map(|job| &job.held);
        held.filter(|held| held.epoch == epoch).count()
    }

    fn measure(&self) {
        metrics::composes(self.jobs.len(), self.jobs.values().map(|job| job.announced).min());
    }

    /// Composes being worked on.
    #[must_use]
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether nothing is being worked on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Drops the work that is running. Its deliveries stay unsettled and come back.
    pub fn abandon(&mut self) {
        for (compose, job) in self.jobs.drain() {
            tracing::warn!(compose, "{compose} is left to the next delivery");
            job.task.abort();
        }
    }

    /// Lets nothing rest any more before it goes back to the queue.
    pub fn stop_resting(&self) {
        self.stopping.cancel();
    }
}
