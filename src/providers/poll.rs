//! The one polling loop: waits for an operation that takes a service seconds, minutes, or hours.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::call::CallError;

/// The shortest pause between two looks at a state. Most states change within a second.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause. With 22 regions and two images it makes three calls a second, far below the limit of
/// [EC2](https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html); an Azure subscription has a limited
/// number of reads, too.
const LONGEST: Duration = Duration::from_secs(15);
/// A pause is this part of the time waited so far, so the end is noticed at most a tenth too late. The last of many
/// regions sets the total time, and chance delays that one.
const PART: u32 = 10;
/// The time between two log lines about one operation.
const LOGGED: Duration = Duration::from_secs(60);

/// Growing pauses between looks, up to a limit.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    started: Instant,
    limit: Duration,
}

impl Pace {
    /// Starts now. `limit` bounds the whole wait.
    #[must_use]
    pub fn within(limit: Duration) -> Self {
        Self {
            started: Instant::now(),
            limit,
        }
    }

    /// Pauses before the next look, at least for `wish`, the pause that the service asks for.
    ///
    /// # Errors
    ///
    /// [`CallError::Unfinished`] once the limit has passed. `what` is the action, reading after "failed to".
    pub async fn pause(&mut self, what: &str, wish: Option<Duration>) -> Result<(), CallError> {
        self.pause_while(what, "not done", wish).await
    }

    async fn pause_while(&self, what: &str, state: &str, wish: Option<Duration>) -> Result<(), CallError> {
        let elapsed = self.started.elapsed();
        let left = self.limit.saturating_sub(elapsed);
        if left.is_zero() {
            return Err(CallError::Unfinished {
                what: what.to_owned(),
                state: state.to_owned(),
                limit: self.limit,
            });
        }
        let own = (elapsed / PART).clamp(FIRST, LONGEST);
        let pause = wish.map_or(own, |wish| wish.max(own));
        tokio::time::sleep(pause.min(left)).await;
        Ok(())
    }
}

/// The progress of an operation, shared with tasks that do not wait for its end.
#[derive(Debug, Clone, Default)]
pub struct Status(Arc<Mutex<String>>);

impl Status {
    /// Replaces the text.
    pub fn set(&self, text: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    /// The latest text.
    #[must_use]
    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The result of one look.
#[derive(Debug)]
pub enum Look<T> {
    /// The operation has finished.
    Done(T),
    /// The operation's state; the loop continues.
    Wait(String),
}

/// Looks until the operation has finished. `what` is the action, reading after "failed to"; `status` follows the state
/// that each look finds.
///
/// # Errors
///
/// The error of the first look that fails, or [`CallError::Unfinished`] with the state once `limit` has passed.
pub async fn until<T, E, F>(what: &str, limit: Duration, status: &Status, mut look: impl FnMut() -> F) -> Result<T, E>
where
    E: From<CallError>,
    F: Future<Output = Result<Look<T>, E>>,
{
    let pace = Pace::within(limit);
    let mut logged = Instant::now();
    loop {
        let state = match look().await? {
            Look::Done(found) => return Ok(found),
            Look::Wait(state) => state,
        };
        if logged.elapsed() >= LOGGED {
            logged = Instant::now();
            let elapsed_s = pace.started.elapsed().as_secs();
            tracing::info!(elapsed_s, "waiting to {what}: {state}");
        }
        status.set(state.clone());
        pace.pause_while(what, &state, None).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_at_the_limit() {
        let limit = Duration::from_secs(600);
        let mut pace = Pace::within(limit);
        let (mut last, mut looks) = (Instant::now(), 0);
        let error = loop {
            if let Err(error) = pace.pause("make it", None).await {
                break error;
            }
            assert!(last.elapsed() <= LONGEST, "{:?}", last.elapsed());
            last = Instant::now();
            looks += 1;
        };
        assert_eq!(error.to_string(), "make it: not done after 10m");
        assert_eq!(pace.started.elapsed(), limit, "the last pause ends with the limit");
        assert!((50..100).contains(&looks), "{looks}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_service_may_wish_for_longer_pauses() {
        let mut pace = Pace::within(Duration::from_secs(600));
        let before = Instant::now();
        pace.pause("make it", Some(Duration::from_secs(40))).await.unwrap();
        assert_eq!(before.elapsed(), Duration::from_secs(40));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_state_is_in_the_error() {
        let (status, states) = (Status::default(), Mutex::new(0));
        let look = || async {
            let mut looks = states.lock().unwrap();
            *looks += 1;
            Ok::<Look<()>, CallError>(Look::Wait(format!("pending, {looks}")))
        };
        let error = until("copy it", Duration::from_secs(1), &status, look)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), format!("copy it: {} after 1s", status.get()));
    }
}
