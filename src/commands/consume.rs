//! `consume`: the daemon.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::exit::{self, Stop, no_problems};
use super::monitoring;
use super::setup::{Assembled, assemble, stop_signal};
use crate::base::health::{Health, Trouble};
use crate::base::metrics;
use crate::base::progress::Board;
use crate::config::{Config, Environment};
use crate::lifecycle::run::upkeep;
use crate::messaging::broker::Broker;
use crate::messaging::consumer::{self, End};
use crate::providers::contract::{Finding, Publish};
use crate::publish::work::Work;

/// The pause before a check that failed is repeated. The check costs a few reads.
const CHECK_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Consumes until a signal comes or the broker needs an operator.
///
/// # Errors
///
/// A bad configuration, or a broker that an operator has to fix; the exit code names the problem.
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
    for finding in &findings {
        match &finding.result {
            Ok(found) => tracing::info!("{}: {found}", finding.subject),
            // The operator learns of the problem at once, even if the cloud recovers before the next message arrives.
            Err(wrong) => tracing::error!("{}: {wrong}", finding.subject),
        }
    }
    if let Some(wrong) = wrong(&findings) {
        health.set_trouble(Trouble::Check, Some(wrong));
        tokio::spawn(check_again(pipeline.provider.clone(), health.clone()));
    }
    tokio::spawn(async move { board.report().await });
    if let Some(retire) = retire {
        let interval = retire.interval();
        tokio::spawn(upkeep(retire, interval, pipeline.announced.clone()));
    }
    let mut work = Work::new(pipeline, health.clone());
    match consumer::consume(&broker, &mut work, &health, config.service.shutdown_grace, stop).await {
        End::Stopped => Ok(0),
        End::Broker { obstacle, error } => Err(Stop {
            code: exit::of_obstacle(obstacle),
            error: anyhow!(error).context("failed to consume"),
        }),
    }
}

/// The findings that report a problem, on one line.
fn wrong(findings: &[Finding]) -> Option<String> {
    let line = |finding: &Finding| match &finding.result {
        Ok(_) => None,
        Err(wrong) => Some(format!("{}: {wrong}", finding.subject)),
    };
    let lines: Vec<_> = findings.iter().filter_map(line).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// Repeats a failed check until it succeeds, or until a publication shows that the problem is gone.
async fn check_again(provider: Arc<dyn Publish>, health: Arc<Health>) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        if !health.has_trouble(&Trouble::Check) {
            return;
        }
        let wrong = wrong(&provider.check().await);
        if wrong.is_none() {
            tracing::info!("the provider's check succeeds now");
            health.set_trouble(Trouble::Check, None);
            return;
        }
        // A publication during the check clears the trouble, and it stays cleared.
        if health.has_trouble(&Trouble::Check) {
            health.set_trouble(Trouble::Check, wrong);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::base::failure::Failure;
    use crate::model::outcome::Outcome;
    use crate::model::select::Deliverable;
    use crate::providers::contract::Task;

    /// A provider whose checks end like this, the last one first.
    struct Checked(Mutex<Vec<Result<String, String>>>);

    #[async_trait]
    impl Publish for Checked {
        async fn check(&self) -> Vec<Finding> {
            let result = self.0.lock().unwrap().pop().unwrap();
            vec![Finding {
                subject: "bucket images".to_owned(),
                result,
            }]
        }

        async fn stage(&self, _: &Deliverable, _: &Task) -> Result<Outcome, Failure> {
            Ok(Outcome::default())
        }

        async fn release(&self, _: &Deliverable, staged: Outcome, _: &Task) -> Result<Outcome, Failure> {
            Ok(staged)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_check_is_repeated_until_it_succeeds() {
        let later = Mutex::new(vec![Ok(String::new()), Err("still missing".to_owned())]);
        let health = Arc::new(Health::default());
        health.set_trouble(Trouble::Check, Some("bucket images: missing".to_owned()));
        check_again(Arc::new(Checked(later)), health.clone()).await;
        assert!(!health.has_trouble(&Trouble::Check));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_check_is_not_repeated_after_a_publication() {
        let health = Arc::new(Health::default());
        // This check panics.
        check_again(Arc::new(Checked(Mutex::default())), health.clone()).await;
        assert!(!health.has_trouble(&Trouble::Check));
    }

    #[test]
    fn only_bad_findings_are_a_trouble() {
        let finding = |result| Finding {
            subject: "bucket images".to_owned(),
            result,
        };
        assert_eq!(wrong(&[finding(Ok("eu-west-1".to_owned()))]), None);
        let both = [Err("missing".to_owned()), Ok(String::new()), Err("refused".to_owned())].map(finding);
        assert_eq!(
            wrong(&both).as_deref(),
            Some("bucket images: missing; bucket images: refused")
        );
    }
}
