//! Faults of calls, and the record of all calls.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

/// A fault of one call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No fault, so that the next one meets a later call.
    Nothing,
    /// The answer is this error, and nothing is done.
    Refuse {
        /// The HTTP status.
        status: u16,
        /// The machine's word for it.
        reason: &'static str,
        /// The value of `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// No answer ever, and nothing is done.
    Hang,
    /// It is done, and the connection breaks before the answer is read.
    LostAnswer,
    /// It is done, and no answer ever comes. A process can be killed then.
    Freeze,
    /// Only half of the bytes of an upload arrive, and the connection breaks.
    Half,
    /// A byte of an upload changes on the way.
    Flip,
    /// The call is carried out, and its answer is another form of success.
    Altered(Answer),
    /// Nothing is done, and the answer claims success with this body.
    Pretends(Value),
    /// The operation begins well and fails.
    Fails {
        /// The machine's word for it.
        code: &'static str,
        /// The HTTP status it would have been.
        status: u16,
        /// How long it takes to fail.
        after: Duration,
        /// Whether an image of status FAILED is left.
        leaves: bool,
    },
}

/// An unusual answer to a call that succeeded.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Another HTTP status.
    pub status: Option<u16>,
    /// A `Range` header, as a piece of an upload is acknowledged.
    pub range: Option<String>,
    /// Makes the answer's body from the usual one; `None` is an empty body.
    pub body: fn(Value) -> Option<Value>,
}

impl Fault {
    /// Another status with the usual body.
    pub fn status(status: u16) -> Self {
        Self::Altered(Answer {
            status: Some(status),
            range: None,
            body: Some,
        })
    }

    /// The usual status with another body.
    pub fn body(body: fn(Value) -> Option<Value>) -> Self {
        Self::Altered(Answer {
            status: None,
            range: None,
            body,
        })
    }

    /// A status without a body.
    pub fn empty(status: u16) -> Self {
        Self::Altered(Answer {
            status: Some(status),
            range: None,
            body: |_| None,
        })
    }

    /// A piece of an upload is acknowledged by 308 with this `Range`.
    pub fn incomplete(range: &str) -> Self {
        Self::Altered(Answer {
            status: Some(308),
            range: Some(range.to_owned()),
            body: |_| None,
        })
    }

    /// The account lacks a permission.
    pub fn forbidden() -> Self {
        Self::refuse(403, "forbidden")
    }

    /// Too many calls.
    pub fn throttled() -> Self {
        Self::refuse(403, "rateLimitExceeded")
    }

    /// A failure of the service.
    pub fn unavailable() -> Self {
        Self::refuse(503, "backendError")
    }

    /// An error of this status and reason.
    pub fn refuse(status: u16, reason: &'static str) -> Self {
        Self::Refuse {
            status,
            reason,
            retry_after: None,
        }
    }
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Call {
    /// Its name: `images.insert`, `operations.get`, `objects.upload` for the bytes of an upload.
    pub name: String,
    /// Its object: an image, an operation, an object.
    pub target: String,
    /// The parameters after the `?`.
    pub query: Vec<(String, String)>,
    /// The body, if it is JSON.
    pub body: Option<Value>,
}

impl Call {
    /// Reports whether it changes, or tries to change, anything.
    pub fn changes(&self) -> bool {
        let verb = self.name.rsplit('.').next().unwrap_or_default();
        !matches!(verb, "get" | "list" | "getFromFamily" | "testIamPermissions" | "wait") && self.name.contains('.')
    }
}

/// Faults that wait, and calls that came.
#[derive(Default)]
pub(super) struct Record {
    pub(super) calls: Vec<Call>,
    /// Names of the calls that were carried out.
    pub(super) done: Vec<String>,
    pub(super) faults: Vec<(String, Fault, usize)>,
}

impl Record {
    /// The next fault of a call. Several of one name are used up in the order given.
    pub(super) fn take(&mut self, name: &str) -> Option<Fault> {
        let index = self.faults.iter().position(|(wanted, ..)| wanted == name)?;
        let (_, fault, times) = &mut self.faults[index];
        let fault = fault.clone();
        *times -= 1;
        if *times == 0 {
            self.faults.remove(index);
        }
        Some(fault)
    }
}
