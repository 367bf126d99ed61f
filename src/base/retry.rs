//! The one retry policy: exponential back-off with jitter, limited in time, honoring the server's `Retry-After`.
//!
//! Budgets nest. One attempt may contain retries of its own: publishing an image contains calls, and a call may contain
//! another one for a token. Those inside get what is left of the budget outside, and what they spend counts against it. The
//! budget outside travels with the asynchronous task, so that no function needs a parameter for it; [`inherit`] takes it along
//! into a task that is spawned.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::base::failure::Class;
use crate::base::metrics;

/// The first wait. A short one: most transient failures are gone within a second.
const FIRST: Duration = Duration::from_millis(500);
/// A call that is retried for longer than this is logged at INFO, for an operator who wonders why nothing moves.
const NOTICEABLE: Duration = Duration::from_secs(10);

tokio::task_local! {
    /// The budget of the attempt that this task is part of.
    static OUTSIDE: Arc<Budget>;
}

/// How fast a transient failure is retried, and when that ends.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Upper bound on a wait, except where the server asks for a longer one.
    pub longest: Duration,
    /// An attempt that would start later than this after the first failure is not made.
    pub give_up_after: Duration,
}

impl Policy {
    /// For one call to a service. A call that still fails after a minute fails the round; the pipeline's next round keeps what
    /// is done.
    pub const CALL: Self = Self {
        longest: Duration::from_secs(15),
        give_up_after: Duration::from_secs(60),
    };

    /// For the rounds of one deliverable.
    #[must_use]
    pub fn work(give_up_after: Duration) -> Self {
        Self {
            longest: Duration::from_secs(300),
            give_up_after,
        }
    }

    /// Time counts from the first failure. `call` names the retries in metrics.
    #[must_use]
    pub fn start(self, call: &'static str) -> Waits {
        Waits {
            policy: self,
            call,
            outside: OUTSIDE.try_with(Arc::clone).ok(),
            spent_inside: Duration::ZERO,
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
    /// names the retries in metrics.
    ///
    /// Only for calls that may be repeated after an unknown outcome.
    ///
    /// # Errors
    ///
    /// The last error of `attempt`.
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
            let error = match waits.attempt(attempt()).await {
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

/// Limits the retries inside `work` to `give_up_after`, each from its first failure.
pub async fn within<F: Future>(give_up_after: Duration, work: F) -> F::Output {
    let mut waits = Policy::work(give_up_after).start("command");
    let output = waits.attempt(work).await;
    if let Some(outside) = &waits.outside {
        outside.spend(waits.spent_inside);
    }
    output
}

/// Takes the budget of this task along into a spawned one: `tokio::spawn(inherit(work))`.
pub fn inherit<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let outside = OUTSIDE.try_with(Arc::clone).ok();
    async move {
        match outside {
            Some(budget) => OUTSIDE.scope(budget, work).await,
            None => work.await,
        }
    }
}

/// The limits of the retries inside one attempt.
#[derive(Debug)]
struct Budget {
    /// Of each, from its first failure.
    limit: Duration,
    /// The end of the retries outside, once one of their attempts has failed.
    deadline: Option<Instant>,
    /// The longest time for which a retry inside went on before it gave up.
    spent: Mutex<Duration>,
}

impl Budget {
    fn spend(&self, time: Duration) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        *spent = time.max(*spent);
    }

    fn spent(&self) -> Duration {
        *self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waits between the attempts at one thing.
#[derive(Debug)]
pub struct Waits {
    policy: Policy,
    call: &'static str,
    outside: Option<Arc<Budget>>,
    spent_inside: Duration,
    failing_since: Option<Instant>,
    backoff: ExponentialBackoff,
}

impl Waits {
    /// Makes one attempt, whose own retries end with these.
    pub async fn attempt<F: Future>(&mut self, attempt: F) -> F::Output {
        let deadlines = [
            self.failing_since
                .and_then(|since| since.checked_add(self.policy.give_up_after)),
            self.outside.as_ref().and_then(|outside| outside.deadline),
        ];
        let budget = Arc::new(Budget {
            limit: self.limit(),
            deadline: deadlines.into_iter().flatten().min(),
            spent: Mutex::default(),
        });
        let output = OUTSIDE.scope(budget.clone(), attempt).await;
        self.spent_inside = budget.spent();
        output
    }

    /// How long to wait after a failure of this class, which counts as another attempt; `None` when another attempt cannot
    /// help or the time is up. The time that retries inside the failed attempt spent counts.
    pub fn after(&mut self, class: Class) -> Option<Duration> {
        let Class::Transient { after } = class else {
            return None;
        };
        let own = self.backoff.next().unwrap_or(self.policy.longest);
        let wait = after.map_or(own, |asked| asked.max(own));
        let now = Instant::now();
        let spent = self.spent_inside;
        let since = self
            .failing_since
            .get_or_insert_with(|| now.checked_sub(spent).unwrap_or(now));
        let failing = now.duration_since(*since);
        let deadline = self.outside.as_ref().and_then(|outside| outside.deadline);
        let is_late = deadline.is_some_and(|deadline| now.checked_add(wait).is_none_or(|then| then > deadline));
        if is_late || failing.saturating_add(wait) > self.limit() {
            if let Some(outside) = &self.outside {
                outside.spend(failing);
            }
            return None;
        }
        metrics::retried(self.call);
        Some(wait)
    }

    fn limit(&self) -> Duration {
        let outside = self.outside.as_ref().map_or(Duration::MAX, |outside| outside.limit);
        self.policy.give_up_after.min(outside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permanent_failure_is_not_retried() {
        assert_eq!(Policy::CALL.start("test").after(Class::Deliverable), None);
        assert_eq!(Policy::CALL.start("test").after(Class::Everything), None);
    }

    #[test]
    fn the_first_wait_is_about_a_second_at_most() {
        let wait = Policy::CALL.start("test").after(Class::TRANSIENT);
        assert!(wait.is_some_and(|wait| wait <= Duration::from_millis(1100)), "{wait:?}");
    }

    #[test]
    fn a_retry_after_is_honored_within_the_budget() {
        let asked = |seconds| Class::Transient {
            after: Some(Duration::from_secs(seconds)),
        };
        let wait = Policy::CALL.start("test").after(asked(20));
        assert!(wait.is_some_and(|wait| wait >= Duration::from_secs(20)), "{wait:?}");
        assert_eq!(Policy::CALL.start("test").after(asked(3600)), None);
    }

    #[tokio::test]
    async fn retries_inside_get_what_is_left_outside() {
        let mut attempts = 0;
        let call = Policy::CALL.run(
            "test",
            |_: &std::fmt::Error| Class::TRANSIENT,
            || {
                attempts += 1;
                std::future::ready(Err::<(), _>(std::fmt::Error))
            },
        );
        assert!(within(Duration::ZERO, call).await.is_err());
        assert_eq!(attempts, 1);
        let wait = || async { Policy::CALL.start("test").after(Class::TRANSIENT) };
        let spawned = within(Duration::ZERO, async { tokio::spawn(inherit(wait())).await });
        assert_eq!(spawned.await.unwrap(), None);
        assert!(wait().await.is_some(), "nothing is outside any more");
    }

    #[tokio::test]
    async fn time_spent_inside_counts_outside() {
        let mut waits = Policy::work(Duration::from_secs(60)).start("test");
        let inside = waits.attempt(async {
            let mut waits = Policy::CALL.start("test");
            waits.failing_since = Instant::now().checked_sub(Duration::from_secs(60));
            waits.after(Class::TRANSIENT)
        });
        assert_eq!(inside.await, None);
        assert_eq!(waits.after(Class::TRANSIENT), None, "no minute of its own on top");

        let mut waits = Policy::work(Duration::from_secs(200)).start("test");
        waits.failing_since = Instant::now().checked_sub(Duration::from_secs(199));
        let inside = waits.attempt(async {
            let mut waits = Policy::CALL.start("test");
            [waits.after(Class::TRANSIENT), waits.after(Class::TRANSIENT)]
        });
        assert_eq!(inside.await[1], None, "a second is left, not a minute");
    }
}
