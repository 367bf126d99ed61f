//! Every call that came, and how it was answered.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch;

/// One call. It is listed once its work is done, before the answer leaves.
#[derive(Clone, Debug)]
pub struct Call {
    /// The service, as in the credential's scope: `ec2`, `ebs`, `s3`, `iam`, `sts`, `servicequotas`.
    pub service: String,
    /// The action, such as `RegisterImage`.
    pub action: String,
    /// The region in the credential's scope.
    pub region: String,
    /// The request's parameters: form parameters of EC2 (`Filter.1.Name`), members of EBS direct (`SnapshotId`),
    /// bucket, key, query and `x-amz-` headers of S3.
    pub parameters: BTreeMap<String, String>,
    /// The status answered; 0 where no answer was given.
    pub status: u16,
    /// The request as the service's model describes it: form parameters, or path, query, headers and JSON body.
    pub(super) raw: Value,
}

impl Call {
    /// Whether the call could change anything.
    pub fn changes(&self) -> bool {
        !["Describe", "Get", "Head", "List"]
            .iter()
            .any(|verb| self.action.starts_with(verb))
    }
}

/// The calls in the order they were done.
#[derive(Debug)]
pub(super) struct Calls {
    list: Mutex<Vec<Call>>,
    count: watch::Sender<usize>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            list: Mutex::default(),
            count: watch::channel(0).0,
        }
    }
}

impl Calls {
    pub(super) fn add(&self, call: Call) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(call);
        self.count.send_replace(list.len());
    }

    pub(super) fn all(&self) -> Vec<Call> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn clear(&self) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits until the list holds a call that `wanted` accepts.
    pub(super) async fn wait_for(&self, wanted: impl Fn(&Call) -> bool) {
        let mut count = self.count.subscribe();
        loop {
            if self
                .list
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(&wanted)
            {
                return;
            }
            // The sender lives as long as `self`.
            let _ = count.changed().await;
        }
    }
}
