//! When the retention policy runs: beside publishing, never inside it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::providers::contract::Retire;

/// How long a command that published waits for the policy that is due after it. The next run does the rest.
const AFTER_PUBLICATION: Duration = Duration::from_secs(5 * 60);

/// Runs the policy at once and after each interval, if it has one, and after each publication. Never returns.
pub async fn upkeep(retire: Arc<dyn Retire>, interval: Option<Duration>, published: Arc<Notify>) {
    let mut ticks = interval.map(tokio::time::interval);
    loop {
        let tick = async {
            match &mut ticks {
                Some(ticks) => drop(ticks.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tick => {}
            () = published.notified() => {}
        }
        run(&*retire).await;
    }
}

/// Runs the policy once after a publication, for a command that ends afterwards.
pub async fn after_publication(retire: &dyn Retire) {
    if tokio::time::timeout(AFTER_PUBLICATION, run(retire)).await.is_err() {
        tracing::warn!(
            "the retention policy was stopped after {} minutes; the next run continues",
            AFTER_PUBLICATION.as_secs() / 60
        );
    }
}

/// A policy that fails is a warning: it never turns a publication into a failure.
async fn run(retire: &dyn Retire) {
    match retire.clean_up(false).await {
        Ok(retired) => retired.warn(),
        Err(failure) => tracing::warn!("the retention policy changed nothing: failed to {failure}"),
    }
}
