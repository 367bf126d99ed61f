//! `reconsume`: one compose in the foreground, without a queue.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::anyhow;

use super::arguments::Reconsume;
use super::exit::{FAILED, Stop, no_problems};
use super::plan;
use super::setup::{Assembled, assemble, print, request, warn_of_pattern};
use crate::base::progress::Board;
use crate::config::{Config, Environment};
use crate::lifecycle::run::after_publication;
use crate::messaging::broker::Broker;
use crate::messaging::message::Intent;
use crate::model::select::Only;
use crate::publish::pipeline::Options;
use crate::publish::report::Published;

/// Publishes one compose; the exit code says whether everything of it is live.
///
/// # Errors
///
/// A bad option or configuration, or a compose that cannot be read.
pub async fn run(config: Config, arguments: Reconsume, board: Board) -> Result<u8, Stop> {
    let environment = Environment::of_process();
    let mut problems = config.check_provider(&environment);
    if config.provider.publish_amqp_messages() {
        problems.extend(config.check_broker());
    }
    no_problems(problems)?;
    let known = config.provider.locations();
    if let Some(unknown) = arguments.location.iter().find(|location| !known.contains(location)) {
        let known = known.join(", ");
        return Err(Stop::usage(anyhow!(
            "there is no location {unknown:?}; configured are {known}"
        )));
    }
    let broker = Arc::new(Broker::new(config.amqp.clone()));
    let Assembled { pipeline, retire } = assemble(&config, &environment, broker.clone(), board.clone())?;
    let request = match request(&pipeline.http, &config, &arguments.subject).await? {
        Intent::Publish(request) => request,
        Intent::Nothing(reason) => {
            print(&format!("Nothing to publish: {reason}\n"));
            return Ok(0);
        }
    };
    let options = Options {
        only: arguments.subject.only.as_deref().map(Only::new),
        locations: (!arguments.location.is_empty()).then(|| BTreeSet::from_iter(arguments.location)),
        allow_older: arguments.allow_older,
        ..Options::default()
    };
    let reporting = tokio::spawn(async move { board.report().await });
    let report = pipeline.run(&request, &options).await;
    reporting.abort();
    report.log_published();
    if report.published.is_empty() && report.problems.is_empty() {
        warn_of_pattern(arguments.subject.only.as_deref());
    }
    broker.close().await;
    print(&format!("{}\n", plan::summary(&report)));
    report.log_failures();
    if let Some(retire) = retire
        && report.published.iter().any(Published::is_new)
    {
        after_publication(&*retire).await;
    }
    Ok(if report.problems.is_empty() { 0 } else { FAILED })
}
