//! The one retry policy: exponential back-off with jitter, limited in time, honouring the server's own wish.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::base::failure::Class;
use crate::base::metrics;

/// The first wait. A short one: most transient failures are gone within a second.
const FIRST: Duration = Duration::from_millis(500);
/// Somebody who waits for a call that takes longer asks why.
const NOTICEABLE: Duration = Duration::from_secs(10);

/// How fast something that failed for a passing reason is tried again, and when that ends.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// No wait is longer, except where the server asks for it.
    pub longest: Duration,
    /// No attempt starts later than this after the first failure.
    pub give_up_after: Duration,
}

impl Policy {
    /// For one call to a service. What still fails after a minute is the pipeline's business, which keeps what is done.
    pub const CALL: Self = Self {
        longest: Duration::from_secs(15),
        give_up_after: Duration::from_secs(60),
    };

    /// For the work on one deliverable.
    #[must_use]
    pub fn work(give_up_after: Duration) -> Self {
        Self {
            longest: Duration::from_secs(300),
            give_up_after,
        }
    }

    /// Starts counting with the first failure. `call` names it in metrics.
    #[must_use]
    pub fn start(self, call: &'static str) -> Waits {
        Waits {
            policy: self,
            call,
            failing_since: None,
            backoff: ExponentialBuilder::new()
                .with_min_delay(FIRST)
                .with_max_delay(self.longest)
                .with_jitter()
                .without_max_times()
                .build(),
        }
    }

    /// Runs `attempt` until it succeeds, fails for good, or the policy gives up; the last error is returned then. `call`
    /// names it in metrics.
    ///
    /// Only for calls that may be repeated after an unknown outcome.
    ///
    /// # Errors
    ///
    /// What the last `attempt` returned.
    pub async fn run<T, E, F>(
        self,
        call: &'static str,
        class: impl Fn(&E) -> Class,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, E>
    where
        E: std::fmt::Display,
        F: Future<Output = Result<T, E>>,
    {
        let mut waits = self.start(call);
        let began = Instant::now();
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(wait) = waits.after(class(&error)) else {
                return Err(error);
            };
            if began.elapsed() > NOTICEABLE {
                tracing::info!(call, wait_ms = wait.as_millis(), "still trying to {error}");
            } else {
                tracing::debug!(call, wait_ms = wait.as_millis(), "trying to {error}");
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// The waits between the tries of one thing.
#[derive(Debug)]
pub struct Waits {
    policy: Policy,
    call: &'static str,
    failing_since: Option<Instant>,
    backoff: ExponentialBackoff,
}

impl Waits {
    /// How long to wait after a failure of this class, which counts as another try; `None` when trying again is no use or
    /// the time is up.
    pub fn after(&mut self, class: Class) -> Option<Duration> {
        let Class::Transient { after } = class else {
            return None;
        };
        let own = self.backoff.next().unwrap_or(self.policy.longest);
        let wait = after.map_or(own, |asked| asked.max(own));
        let failing = self.failing_since.get_or_insert_with(Instant::now).elapsed();
        if failing.saturating_add(wait) > self.policy.give_up_after {
            return None;
        }
        metrics::retried(self.call);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permanent_failure_is_not_tried_again() {
        assert_eq!(Policy::CALL.start("test").after(Class::Deliverable), None);
        assert_eq!(Policy::CALL.start("test").after(Class::Everything), None);
    }

    #[test]
    fn the_first_wait_is_about_a_second_at_most() {
        let wait = Policy::CALL.start("test").after(Class::TRANSIENT);
        assert!(wait.is_some_and(|wait| wait <= Duration::from_millis(1100)), "{wait:?}");
    }

    #[test]
    fn the_server_is_obeyed_unless_it_asks_too_much() {
        let asked = |seconds| Class::Transient {
            after: Some(Duration::from_secs(seconds)),
        };
        let wait = Policy::CALL.start("test").after(asked(20));
        assert!(wait.is_some_and(|wait| wait >= Duration::from_secs(20)), "{wait:?}");
        assert_eq!(Policy::CALL.start("test").after(asked(3600)), None);
    }
}
