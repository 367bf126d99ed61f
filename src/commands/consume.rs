//! `consume`: the daemon.

use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, anyhow};

use super::exit::{Stop, no_problems};
use super::monitoring::{self, Health};
use super::setup::{Assembled, assemble, stop_signal};
use crate::base::metrics;
use crate::base::progress::Board;
use crate::config::{Config, Environment};
use crate::lifecycle::run::upkeep;
use crate::messaging::broker::Broker;
use crate::messaging::consumer::{self, End};
use crate::publish::work::Work;

/// Consumes until a signal comes or the broker needs an operator.
///
/// # Errors
///
/// A bad configuration, or a broker that an operator has to fix, with the exit code that says which.
pub async fn run(config: Config, board: Board) -> Result<u8, Stop> {
    let environment = Environment::of_process();
    no_problems(config.check_environment(&environment))?;
    let health = Arc::new(Health::default());
    if let Some(address) = &config.monitoring {
        let metrics = metrics::start(config.provider.name()).context("failed to set up metrics")?;
        let bound = monitoring::start(address, health.clone(), metrics).await;
        let bound = bound
            .with_context(|| format!("failed to listen on {}:{}", address.address, address.port))
            .map_err(Stop::usage)?;
        tracing::info!("monitoring listens on {bound}");
    }
    let broker = Arc::new(Broker::new(config.amqp.clone()));
    let Assembled { pipeline, retire } = assemble(&config, &environment, broker.clone(), board.clone())?;
    let pipeline = Arc::new(pipeline);
    let mut stop = pin!(stop_signal()?);
    let findings = tokio::select! {
        findings = pipeline.provider.check() => findings,
        () = &mut stop => return Ok(0),
    };
    for finding in findings {
        match finding.result {
            Ok(found) => tracing::info!("{}: {found}", finding.subject),
            // The cloud may be back before the next message is; the operator is told at once all the same.
            Err(wrong) => tracing::error!("{}: {wrong}", finding.subject),
        }
    }
    tokio::spawn(async move { board.report().await });
    if let Some(retire) = retire {
        let interval = retire.interval();
        tokio::spawn(upkeep(retire, interval, pipeline.announced.clone()));
    }
    let mut work = Work::new(pipeline, health.clone());
    match consumer::consume(&broker, &mut work, &health, config.service.shutdown_grace, stop).await {
        End::Stopped => Ok(0),
        End::Broker { code, error } => Err(Stop {
            code,
            error: anyhow!(error).context("failed to consume"),
        }),
    }
}
