//! `/live`, `/ready`, and `/metrics`.
//!
//! The first two have the form of fedora-messaging's own
//! [monitoring](https://fedora-messaging.readthedocs.io/en/stable/user-guide/configuration.html), except that a daemon
//! that does not consume answers 503.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::{TcpListener, lookup_host};

use crate::base::failure::{Class, Disposition};
use crate::base::metrics;
use crate::config::Monitoring;
use crate::publish::report::Report;

/// Where the broker's trouble is kept among that of composes.
const BROKER: &str = "broker";

/// What the daemon is doing.
#[derive(Debug, Default)]
pub struct Health {
    consuming: AtomicBool,
    /// By what has to be mended: the broker, or what a compose needs.
    trouble: Mutex<BTreeMap<String, String>>,
    published: AtomicU64,
    received: AtomicU64,
    processed: AtomicU64,
    dropped: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
}

/// Something that is counted, in the words of fedora-messaging.
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
    /// The broker hands out messages to us, or does not.
    pub fn set_consuming(&self, consuming: bool) {
        self.consuming.store(consuming, Ordering::Relaxed);
        metrics::consuming(consuming);
        if consuming {
            self.set_trouble(BROKER, None);
        }
    }

    /// Says what is wrong with the broker, until it lets us consume.
    pub fn set_broker_trouble(&self, why: String) {
        self.set_trouble(BROKER, Some(why));
    }

    fn set_trouble(&self, of: &str, why: Option<String>) {
        let mut trouble = self.trouble();
        match why {
            Some(why) => trouble.insert(of.to_owned(), why),
            None => trouble.remove(of),
        };
        metrics::trouble(trouble.len());
    }

    fn trouble(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts something.
    pub fn count(&self, what: Count) {
        let (counter, label) = match what {
            Count::Received => (&self.received, "received"),
            Count::Processed => (&self.processed, "processed"),
            Count::Dropped => (&self.dropped, "dropped"),
            Count::Rejected => (&self.rejected, "rejected"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        metrics::message(label);
    }

    /// Takes note of what became of a compose.
    pub fn report(&self, report: &Report) {
        let disposition = report.disposition();
        let again = disposition == Disposition::Requeue;
        for published in &report.published {
            // What waits for an operator is tried every half minute: only what that changes counts.
            if !again || published.is_new() {
                let is_live = !published.places.is_empty();
                self.published.fetch_add(is_live.into(), Ordering::Relaxed);
                metrics::deliverable(published.outcome());
            }
            if report.broken.is_empty() && !published.places.is_empty() {
                metrics::succeeded(&published.release);
            }
        }
        for broken in report.broken.iter().filter(|_| !again) {
            metrics::failed(broken.class);
        }
        if disposition != Disposition::Ack {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let mend = report.broken.iter().find(|broken| broken.class == Class::Everything);
        let mend = mend.filter(|_| again);
        self.set_trouble(&report.compose, mend.map(|mend| format!("failed to {}", mend.what)));
    }

    /// The document of `/ready`, and whether the daemon is.
    #[must_use]
    pub fn ready(&self) -> (bool, Value) {
        let consuming = self.consuming.load(Ordering::Relaxed);
        let trouble: Vec<String> = self.trouble().values().cloned().collect();
        let trouble = (!trouble.is_empty()).then(|| trouble.join("; "));
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

/// Serves until the process ends.
///
/// # Errors
///
/// When the address cannot be listened on.
pub async fn start(config: &Monitoring, health: Arc<Health>, metrics: PrometheusHandle) -> io::Result<SocketAddr> {
    let listener = listen(config).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/metrics", get(render))
        .with_state((health, metrics));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "monitoring ended");
        }
    });
    Ok(address)
}

/// An empty address is every interface, of both families where the machine has both.
async fn listen(config: &Monitoring) -> io::Result<TcpListener> {
    if config.address.is_empty() {
        let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), config.port);
        return match TcpListener::bind(both).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(("0.0.0.0", config.port)).await,
        };
    }
    let addresses: Vec<_> = lookup_host((config.address.as_str(), config.port)).await?.collect();
    TcpListener::bind(&addresses[..]).await
}

type Shared = State<(Arc<Health>, PrometheusHandle)>;

fn document(status: StatusCode, document: &Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        document.to_string(),
    )
        .into_response()
}

async fn live() -> Response {
    document(StatusCode::OK, &json!({"status": "OK"}))
}

async fn ready(State((health, _)): Shared) -> Response {
    let (ready, found) = health.ready();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    document(status, &found)
}

async fn render(State((_, metrics)): Shared) -> Response {
    let format = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, format)], metrics.render()).into_response()
}
