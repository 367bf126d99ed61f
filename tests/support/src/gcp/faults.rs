//! What goes wrong with a call, and the record of all calls.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

/// What goes wrong with one call.
#[derive(Clone, Debug)]
pub enum Fault {
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
    /// Only half of the bytes of an upload arrive, and the connection breaks.
    Half,
    /// A byte of an upload changes on the way.
    Flip,
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

impl Fault {
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
    /// What it is about: an image, an operation, an object.
    pub target: String,
    /// The parameters after the `?`.
    pub query: Vec<(String, String)>,
    /// What was sent, where it is JSON.
    pub body: Option<Value>,
}

impl Call {
    /// Whether it changes, or tries to change, anything.
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
