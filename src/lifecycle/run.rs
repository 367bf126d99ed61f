//! The schedule of the retention policy, which runs beside publishing, never inside it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::providers::contract::Retire;

/// The longest time that a command waits for the policy after publishing. The next run does the rest.
const AFTER_PUBLICATION: Duration = Duration::from_secs(5 * 60);

/// Runs the policy after each publication and, if it has an interval, at once and after each interval. Never returns.
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

/// Runs the policy once. Its failure is logged as a warning and never turns a publication into a failure.
async fn run(retire: &dyn Retire) {
    match retire.clean_up(false).await {
        Ok(retired) => retired.warn(),
        Err(failure) => tracing::warn!("the retention policy changed nothing: failed to {failure}"),
    }
}
