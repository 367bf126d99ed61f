//! `check`: one line per finding about configuration, broker, credentials, and targets.

use std::sync::Arc;

use super::exit::{FAILED, Stop, no_problems};
use super::setup::{Assembled, assemble, print};
use crate::base::failure::Chain;
use crate::base::progress::Board;
use crate::config::{self, Config, Environment};
use crate::messaging::broker::Broker;

/// Prints the findings; the exit code is 0 if all of them are good.
///
/// # Errors
///
/// A bad configuration.
pub async fn run(config: Config, offline: bool) -> Result<u8, Stop> {
    let environment = Environment::of_process();
    let broker_is_used =
        !matches!(config.provider, config::Provider::Local(_)) || config.provider.publish_amqp_messages();
    let mut problems = config.check_provider(&environment);
    if broker_is_used {
        problems.extend(config.check_broker());
    }
    no_problems(problems)?;
    let name = config.provider.name();
    print(&format!(
        "ok: configuration {}: provider {name}\n",
        config.path.display()
    ));
    if offline {
        return Ok(0);
    }
    let broker = Arc::new(Broker::new(config.amqp.clone()));
    let mut good = true;
    if broker_is_used {
        good &= match broker.check().await {
            Ok(queues) => finding(&format!("broker {}", broker.address()), &Ok(queues.join(", "))),
            Err(error) => finding(
                &format!("broker {}", broker.address()),
                &Err(format!("failed to {}", Chain(&error))),
            ),
        };
        broker.close().await;
    }
    let Assembled { pipeline, .. } = assemble(&config, &environment, broker, Board::log())?;
    for found in pipeline.provider.check().await {
        good &= finding(&found.subject, &found.result);
    }
    Ok(if good { 0 } else { FAILED })
}

/// Prints one finding, and returns whether it is good.
fn finding(subject: &str, result: &Result<String, String>) -> bool {
    match result {
        Ok(found) if found.is_empty() => print(&format!("ok: {subject}\n")),
        Ok(found) => print(&format!("ok: {subject}: {found}\n")),
        Err(wrong) => print(&format!("failed: {subject}: {wrong}\n")),
    }
    result.is_ok()
}
