//! `clean-up`: runs the retention policy now.

use super::exit::{FAILED, Stop, no_problems};
use super::setup::{print, provider};
use crate::config::{Config, Environment};
use crate::providers::contract::{Action, Decision};

/// Runs the policy, or with `dry_run` only prints its decisions; one line per image.
///
/// # Errors
///
/// A bad configuration, or a list that could not be read in full.
pub async fn run(config: &Config, dry_run: bool) -> Result<u8, Stop> {
    let environment = Environment::of_process();
    no_problems(config.check_provider(&environment))?;
    let provider = provider(config, &environment)?;
    let Some(retire) = provider.retire else {
        print("Nothing to retire\n");
        return Ok(0);
    };
    let retired = retire.clean_up(dry_run).await?;
    if retired.decisions.is_empty() {
        print("Nothing to retire\n");
    }
    let mut good = true;
    for Decision { name, action, reason } in &retired.decisions {
        let line = match action {
            Action::Stays => format!("stays: {name}: {reason}\n"),
            Action::Goes if dry_run => format!("would go: {name}: {reason}\n"),
            Action::Goes => format!("gone: {name}: {reason}\n"),
            Action::GoesLater => format!("goes with the next run: {name}: {reason}\n"),
            Action::Failed(failure) => {
                good = false;
                tracing::error!("failed to retire {name}: {failure}");
                format!("failed: {name}: {failure}\n")
            }
        };
        print(&line);
    }
    Ok(if good { 0 } else { FAILED })
}
