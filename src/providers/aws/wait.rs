//! Waiting for what takes AWS minutes or hours.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::Error;
use crate::providers::call::CallError;

/// Between the first two looks. Most states change within a second.
const FIRST: Duration = Duration::from_millis(200);
/// Between the later ones: 22 regions and two images make three calls a second then, far below what EC2
/// [allows](https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html).
const LONGEST: Duration = Duration::from_secs(15);
/// What has taken so long is noticed no later than this part of it: of many regions the slowest one counts, which chance
/// makes late.
const PART: u32 = 10;
/// Between two lines of the log about one thing.
const SAID: Duration = Duration::from_secs(60);

/// How far something is, also for those who do not wait for its end.
#[derive(Clone, Default)]
pub(super) struct Status(Arc<Mutex<String>>);

impl Status {
    pub(super) fn set(&self, text: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    pub(super) fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a look found.
pub(super) enum Look<T> {
    /// It is there.
    Done(T),
    /// How far it is.
    Wait(String),
}

/// Growing pauses between looks.
pub(super) struct Pauses(Instant);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    pub(super) async fn pause(&self) {
        let pause = self.0.elapsed() / PART;
        tokio::time::sleep(pause.clamp(FIRST, LONGEST)).await;
    }
}

/// Looks until it is there. `what` reads after "failed to".
pub(super) async fn until<T, F>(
    what: &str,
    limit: Duration,
    status: &Status,
    mut look: impl FnMut() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<Look<T>, Error>>,
{
    let started = Instant::now();
    let mut said = Instant::now();
    let pauses = Pauses::new();
    loop {
        let state = match look().await? {
            Look::Done(found) => return Ok(found),
            Look::Wait(state) => state,
        };
        if said.elapsed() >= SAID {
            said = Instant::now();
            tracing::info!(elapsed_s = started.elapsed().as_secs(), "waiting to {what}: {state}");
        }
        status.set(state.clone());
        if started.elapsed() >= limit {
            return Err(Error::Call(CallError::Unfinished {
                what: what.to_owned(),
                state,
                limit,
            }));
        }
        pauses.pause().await;
    }
}
