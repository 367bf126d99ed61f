//! The web server for `/live`, `/ready`, and `/metrics`.
//!
//! The first two have the form of fedora-messaging's own
//! [monitoring](https://fedora-messaging.readthedocs.io/en/stable/user-guide/configuration.html), except that a daemon
//! that does not consume answers 503.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::{TcpListener, lookup_host};

use crate::base::health::Health;
use crate::config::Monitoring;

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
