//! Counters and measurements, recorded where the events happen and served at `/metrics`.
//!
//! Nothing outside this module names a metric. Where `[monitoring]` is not configured, nothing is recorded.

mod catalog;

use std::sync::atomic::{AtomicU64, Ordering};

use ::metrics::{Counter, Gauge};
use jiff::Timestamp;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use x509_parser::pem::Pem;

pub use self::catalog::{ALL, Kind, Label, Metric};
use self::catalog::{
    COMPOSES, CONSUMING, CREDENTIAL_EXPIRY, DECODED, DELIVERABLES, DELIVERIES, DOWNLOADED, FAILURES, IGNORED,
    IMAGE_DECODED, IMAGE_READ, IMAGE_SIZE, IMAGES, INVALID, LAST_SUCCESS, MESSAGES, NOTIFICATIONS, OLDEST_COMPOSE,
    PUBLISH_DURATION, QUEUE_CONSUMERS, QUEUE_READY, RETIRED, RETRIES, STEPS, TROUBLE, UPLOADED,
};
use crate::base::failure::Class;

/// Bounds of the time until an image is published, in seconds: from a minute for a container image to a day for a region
/// that had to be waited for. Each costs a time series for every image and location.
const DURATIONS: [f64; 9] = [60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 86_400.0];

/// Starts counting for this provider, whose name becomes a label of every metric.
///
/// # Errors
///
/// When it was started before.
pub fn start(provider: &str) -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .add_global_label("provider", provider)
        .set_buckets_for_metric(Matcher::Full(PUBLISH_DURATION.name.to_owned()), &DURATIONS)?
        .install_recorder()?;
    for metric in ALL {
        metric.begin();
    }
    Ok(handle)
}

/// Whether the broker hands out messages to us.
pub fn consuming(consuming: bool) {
    CONSUMING.gauge(&[]).set(if consuming { 1.0 } else { 0.0 });
}

/// Sets the number of problems that an operator has to fix.
pub fn trouble(count: usize) {
    TROUBLE.gauge(&[]).set(count as f64);
}

/// Records the broker's figures of a queue.
pub fn queue(name: &str, ready: u32, consumers: u32) {
    QUEUE_READY.gauge(&[name]).set(ready);
    QUEUE_CONSUMERS.gauge(&[name]).set(consumers);
}

/// So many deliveries are to be settled.
pub fn deliveries(count: usize) {
    DELIVERIES.gauge(&[]).set(count as f64);
}

/// A delivery came in or was settled.
pub fn message(event: &str) {
    MESSAGES.counter(&[event]).increment(1);
}

/// Counts an irrelevant delivery.
pub fn ignored() {
    IGNORED.counter(&[]).increment(1);
}

/// A delivery is no message one could work on.
pub fn invalid() {
    INVALID.counter(&[]).increment(1);
}

/// A message was published and confirmed.
pub fn notified() {
    NOTIFICATIONS.counter(&[]).increment(1);
}

/// So many composes are being worked on; the oldest was announced then.
pub fn composes(count: usize, oldest: Option<Timestamp>) {
    COMPOSES.gauge(&[]).set(count as f64);
    OLDEST_COMPOSE.gauge(&[]).set(oldest.map_or(0.0, seconds));
}

/// A step on the way of a deliverable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its images' signatures.
    Verify,
    /// Upload and copies.
    Stage,
    /// It becomes visible.
    Release,
    /// The notification.
    Announce,
    /// Before another try.
    Wait,
}

/// Counts a deliverable as being at this step while `work` is done.
pub async fn during<T>(step: Step, work: impl Future<Output = T>) -> T {
    let step = match step {
        Step::Verify => "verify",
        Step::Stage => "stage",
        Step::Release => "release",
        Step::Announce => "announce",
        Step::Wait => "wait",
    };
    let _raised = Raised::new(STEPS.gauge(&[step]), 1.0);
    work.await
}

/// Counts a deliverable by its outcome.
pub fn deliverable(outcome: &str) {
    DELIVERABLES.counter(&[outcome]).increment(1);
}

/// Something failed for good.
pub fn failed(class: Class) {
    let kind = match class {
        Class::Transient { .. } => "transient",
        Class::Deliverable => "deliverable",
        Class::Everything => "everything",
    };
    FAILURES.counter(&[kind]).increment(1);
}

/// A call is tried again.
pub fn retried(call: &str) {
    RETRIES.counter(&[call]).increment(1);
}

/// An image of a compose that was announced then is live in a location now.
pub fn published(image: &str, location: &str, announced: Timestamp) {
    let took = Timestamp::now().duration_since(announced).as_secs_f64();
    PUBLISH_DURATION.histogram(&[image, location]).record(took);
}

/// A compose of this release is complete.
pub fn succeeded(release: &str) {
    LAST_SUCCESS.gauge(&[release]).set(seconds(Timestamp::now()));
}

/// The retention policy removed an image.
pub fn retired() {
    RETIRED.counter(&[]).increment(1);
}

/// Bytes were sent to the provider.
pub fn uploaded(bytes: u64) {
    UPLOADED.counter(&[]).increment(bytes);
}

/// Records the expiry of a client certificate (PEM) in use. A certificate that cannot be read is ignored here: its user
/// reports that.
pub fn certificate(credential: &str, pem: &[u8]) {
    let own = Pem::iter_from_buffer(pem)
        .filter_map(Result::ok)
        .find(|part| part.label == "CERTIFICATE");
    if let Some(own) = own
        && let Ok(certificate) = own.parse_x509()
    {
        let expires = certificate.validity().not_after.timestamp();
        CREDENTIAL_EXPIRY.gauge(&[credential]).set(expires as f64);
    }
}

/// Counts an image as waiting to be read, until dropped.
#[must_use]
pub fn waiting() -> Raised {
    Raised::new(IMAGES.gauge(&["waiting"]), 1.0)
}

/// Raises a gauge until it is dropped.
#[derive(Debug)]
pub struct Raised {
    gauge: Gauge,
    by: f64,
}

impl Raised {
    fn new(gauge: Gauge, by: f64) -> Self {
        gauge.increment(by);
        Self { gauge, by }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.gauge.decrement(self.by);
    }
}

/// An image that is being read. Dropping the value subtracts its progress from the gauges, so images with the same
/// label add up.
#[derive(Debug)]
pub struct Reading {
    /// As stored.
    pub read: Bytes,
    /// Decompressed.
    pub decoded: Bytes,
    _raised: [Raised; 2],
}

impl Reading {
    /// `image` is what it is, the same in each compose.
    #[must_use]
    pub fn new(image: &str, size: u64) -> Self {
        Self {
            read: Bytes::new(DOWNLOADED.counter(&[]), IMAGE_READ.gauge(&[image])),
            decoded: Bytes::new(DECODED.counter(&[]), IMAGE_DECODED.gauge(&[image])),
            _raised: [
                Raised::new(IMAGES.gauge(&["reading"]), 1.0),
                Raised::new(IMAGE_SIZE.gauge(&[image]), size as f64),
            ],
        }
    }
}

/// Bytes of one image, which are also added to those of all.
#[derive(Debug)]
pub struct Bytes {
    all: Counter,
    gauge: Gauge,
    here: AtomicU64,
}

impl Bytes {
    fn new(all: Counter, gauge: Gauge) -> Self {
        // It exists from now on.
        gauge.increment(0.0);
        Self {
            all,
            gauge,
            here: AtomicU64::new(0),
        }
    }

    /// So many more.
    pub fn add(&self, bytes: u64) {
        self.all.increment(bytes);
        self.gauge.increment(bytes as f64);
        self.here.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.gauge.decrement(*self.here.get_mut() as f64);
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_second() as f64
}
