//! Faults of calls, on demand.

use std::time::Duration;

/// Something that happens to calls of one action.
#[derive(Clone, Debug)]
pub struct Fault {
    action: String,
    region: Option<String>,
    skip: u32,
    times: Option<u32>,
    effect: Effect,
}

/// The effect of a fault on a call.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Refused for its rate, in the words of the service: `RequestLimitExceeded`, `SlowDown`, …
    Throttle,
    /// Answered with an internal error (500). Nothing was done.
    ServerError,
    /// Refused with a code of the test's own, such as `UnauthorizedOperation` (403).
    Refuse {
        /// The status.
        status: u16,
        /// The error code.
        code: String,
        /// The message.
        message: String,
    },
    /// Never done and never answered; the connection stays.
    Hang,
    /// Done, but never answered; the connection stays. With [`super::Cloud::wait_for_silence`] this is where to kill a
    /// client right after a step.
    Stall,
    /// Done, and the connection breaks before the first byte of the answer.
    LostAnswer,
    /// Done, and answered this much later.
    Slow(Duration),
    /// Done, and the text of the answer changed.
    Rewrite(fn(&str) -> String),
    /// Done, and answered with another status. 204 has no body.
    Status(u16),
    /// Not done, and answered (200) as if it had been.
    Pretend(&'static str),
    /// Done, and what it makes comes to a bad end: an import is deleted, a copy or a completed snapshot becomes `error`, an
    /// image `failed`.
    Fail {
        /// The reason the service gives.
        message: String,
    },
}

impl Fault {
    /// A fault of an action such as `RegisterImage` or `UploadPart`, in every region, until the end.
    pub fn on(action: &str, effect: Effect) -> Self {
        Self {
            action: action.to_owned(),
            region: None,
            skip: 0,
            times: None,
            effect,
        }
    }

    /// Only in this region.
    pub fn region(mut self, region: &str) -> Self {
        self.region = Some(region.to_owned());
        self
    }

    /// Only this many times.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Only after this many calls went well.
    pub fn after(mut self, calls: u32) -> Self {
        self.skip = calls;
        self
    }
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes the effect of the first fault that concerns this call.
    pub(super) fn take(&mut self, action: &str, region: &str) -> Option<Effect> {
        for fault in &mut self.0 {
            let concerned = fault.action == action && fault.region.as_deref().is_none_or(|wanted| wanted == region);
            if !concerned || fault.times == Some(0) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            if let Some(times) = &mut fault.times {
                *times -= 1;
            }
            return Some(fault.effect.clone());
        }
        None
    }
}
