//! Azure's refusals, and the decisions that follow from them.

use std::time::Duration;

use azure_core::error::ErrorKind;
use serde_json::Value;

use crate::base::failure::{Class, Classified, quote, reason};
use crate::base::http;
use crate::providers::call::CallError;
use crate::providers::ownership::HandsOff;

/// The service in errors.
const SERVICE: &str = "Azure";

/// A call to Azure failed, or Azure does not accept an image.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The environment lacks a credential.
    #[error("find credentials: {0}")]
    Credentials(String),
    /// The federated token cannot be read.
    #[error("read the federated token {path}")]
    TokenFile {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The authority refused the application's credentials.
    #[error("get a token for client {client}: {said}{advice}")]
    Identity {
        /// The application's id.
        client: String,
        /// The authority's reason.
        said: String,
        /// Advice to the operator.
        advice: &'static str,
        /// Its HTTP status.
        status: u16,
        /// The pause that it asks for.
        after: Option<Duration>,
    },
    /// A call that failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Another client changed the resource between our read and our write.
    #[error("{what}: another client changed it in the meantime")]
    Changed {
        /// The call, as words after "failed to".
        what: String,
    },
    /// Replication to a region failed.
    #[error("replicate {name} to {region}: {said}")]
    Region {
        /// The version.
        name: String,
        /// The region.
        region: String,
        /// Azure's reason.
        said: String,
    },
    /// Replication to a region has not ended within the limit.
    #[error(
        "replicate {name} to {region}: Azure has been updating this version for {} and rejects changes until it finishes; \
         repair the region after that",
        humantime::format_duration(*limit)
    )]
    Stuck {
        /// The version.
        name: String,
        /// The region.
        region: String,
        /// The limit.
        limit: Duration,
    },
    /// The version exists with other content.
    #[error(
        "publish {name}: it already exists with different content (SHA-256 {found}, expected {expected}); delete that \
         version first if it is wrong"
    )]
    Taken {
        /// The version.
        name: String,
        /// The digest of what is there.
        found: String,
        /// The digest of what should be.
        expected: String,
    },
    /// The version exists and has another owner.
    #[error("publish {name}: it already exists and belongs to {owner}")]
    Owned {
        /// The version.
        name: String,
        /// The owner that its tags name.
        owner: String,
    },
    /// The version exists and must not be changed.
    #[error("complete {name} in its regions: {reason}, so it is left as it is")]
    HandsOff {
        /// The version.
        name: String,
        /// The tag or the owner that forbids the change.
        reason: HandsOff,
    },
    /// The version exists, failed everywhere, and is not ours to delete.
    #[error(
        "publish {0}: it already exists, failed in every region, and was not created by this program; delete it first"
    )]
    Ruined(String),
    /// The definition's fixed attributes do not fit the image.
    #[error(
        "use image definition {definition}: {differences}; Azure cannot change these attributes: delete the definition \
         with its versions, and the next image creates it again"
    )]
    Definition {
        /// The definition.
        definition: String,
        /// Each attribute that does not fit.
        differences: String,
    },
    /// Another process holds the blob's lease.
    #[error("write blob {0}: another process is writing it, or was until a moment ago")]
    Busy(String),
    /// The image is not a disk that Azure accepts.
    #[error("use {path} as a fixed VHD: {reason}")]
    Vhd {
        /// The image.
        path: String,
        /// The fault of the disk.
        reason: String,
    },
    /// A deliverable of another provider; the selection never yields one.
    #[error("publish {0} to a gallery: it is not a gallery version")]
    NotAVersion(String),
}

impl Error {
    pub(super) fn odd(what: &str, answer: &str) -> Self {
        CallError::odd(what, SERVICE, answer).into()
    }

    pub(super) fn silent(what: &str, limit: Duration) -> Self {
        CallError::silent(what, limit).into()
    }

    /// From the HTTP client. Addresses are left out: some hold a signature.
    pub(super) fn lost(what: &str, source: reqwest::Error) -> Self {
        Self::Call(CallError::Lost {
            what: what.to_owned(),
            class: http::class(&source),
            source: source.without_url().into(),
        })
    }

    /// From an answer of Resource Manager that is not a success, with
    /// [what it says](https://github.com/microsoft/api-guidelines/blob/vNext/azure/Guidelines.md#handling-errors).
    pub(super) fn refused(what: &str, status: u16, body: &Value, after: Option<Duration>) -> Self {
        let (code, said) = code_and_words(&body["error"]);
        let advice = match (status, code.as_str()) {
            (_, "ResourceGroupNotFound" | "SubscriptionNotFound" | "InvalidSubscriptionId") => {
                "; check resource_group_name and AZURE_SUBSCRIPTION_ID"
            }
            (_, "MissingSubscriptionRegistration") => {
                "; run `az provider register --namespace Microsoft.Compute` in the subscription"
            }
            (401 | 403, _) => "; the application needs a role on the resource group that permits this (docs/azure.md)",
            _ => "",
        };
        Self::refusal(what, status, code, &(said + advice), after)
    }

    fn refusal(what: &str, status: u16, code: String, said: &str, after: Option<Duration>) -> Self {
        Self::Call(CallError::Refused {
            what: what.to_owned(),
            service: SERVICE,
            status,
            said: format!("{status} {code}{said}"),
            class: class_of_refusal(status, &code, after),
            code,
        })
    }

    /// From an operation that failed.
    pub(super) fn operation(what: &str, error: &Value) -> Self {
        let (code, said) = code_and_words(error);
        Self::Call(CallError::Operation {
            what: what.to_owned(),
            said: format!("ended with {code}{said}"),
            class: if is_lasting(&code) {
                Class::Deliverable
            } else {
                Class::TRANSIENT
            },
            code,
        })
    }

    /// From an error of the storage client.
    pub(super) fn storage(what: &str, error: azure_core::Error) -> Self {
        let refusal = match error.kind() {
            ErrorKind::HttpResponse {
                status,
                error_code,
                raw_response,
            } => {
                let status = u16::from(*status);
                let headers = raw_response.as_ref().map(|response| response.headers());
                let after = headers.and_then(|headers| headers.get_optional_string(&"retry-after".into()));
                let code = error_code.clone().unwrap_or_default();
                let advice = match (status, code.as_str()) {
                    (_, "ContainerNotFound") => "; create the container, or correct storage_container_name",
                    // Not the role: https://learn.microsoft.com/troubleshoot/azure/azure-storage/blobs/alerts/storage-troubleshoot-403-errors
                    (403, "AuthorizationFailure") => {
                        "; the storage account's network rules or settings keep this machine out"
                    }
                    (401 | 403, _) => {
                        "; the application needs a role on the container that permits reading, writing, and deleting \
                         blobs (docs/azure.md)"
                    }
                    _ => "",
                };
                let after = after.and_then(|seconds| seconds.trim().parse().ok());
                Some(Self::refusal(
                    what,
                    status,
                    code,
                    advice,
                    after.map(Duration::from_secs),
                ))
            }
            _ => None,
        };
        refusal.unwrap_or_else(|| {
            Self::Call(CallError::Lost {
                what: what.to_owned(),
                source: error.into(),
                class: Class::TRANSIENT,
            })
        })
    }

    /// Azure's own name of the error, where it gave one.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Call(call) => call.code().unwrap_or_default(),
            _ => "",
        }
    }

    /// The HTTP status, where Azure refused.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Call(call) => call.status(),
            _ => None,
        }
    }
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Credentials(_) | Self::TokenFile { .. } => Class::Everything,
            Self::Identity { status: 400..=403, .. } => Class::Everything,
            Self::Identity { after, .. } => Class::Transient { after: *after },
            Self::Call(call) => call.class(),
            Self::Changed { .. } | Self::Region { .. } | Self::Busy(_) => Class::TRANSIENT,
            Self::Taken { .. }
            | Self::Owned { .. }
            | Self::HandsOff { .. }
            | Self::Ruined(_)
            | Self::Stuck { .. }
            | Self::Definition { .. }
            | Self::Vhd { .. }
            | Self::NotAVersion(_) => Class::Deliverable,
        }
    }
}

/// The class of a refusal.
fn class_of_refusal(status: u16, code: &str, after: Option<Duration>) -> Class {
    match (status, code) {
        // The program depends on these and creates none of them.
        (
            _,
            "ResourceGroupNotFound"
            | "SubscriptionNotFound"
            | "InvalidSubscriptionId"
            | "MissingSubscriptionRegistration"
            | "ContainerNotFound"
            | "AccountIsDisabled",
        ) => Class::Everything,
        (409, "PropertyChangeNotAllowed") => Class::Deliverable,
        // Another operation is running, or has just ended; a parent that was just created is not known everywhere yet; a
        // lease changed hands.
        (404 | 409 | 412, _) => Class::Transient { after },
        _ => Class::of_status(status, after),
    }
}

/// An operation that failed with this code will fail again. Other codes stand for trouble inside Azure, such as a failed
/// allocation of storage.
fn is_lasting(code: &str) -> bool {
    let lasting = [
        "Invalid",
        "Unsupported",
        "NotSupported",
        "Bad",
        "PropertyChange",
        "Authorization",
    ];
    lasting.iter().any(|start| code.starts_with(start)) || code.ends_with("NotFound") || code == "QuotaExceeded"
}

/// The code of an error object, and its message after a colon, bounded and in one line.
fn code_and_words(error: &Value) -> (String, String) {
    let code = error["code"].as_str().unwrap_or("without a code").to_owned();
    (quote(&code), reason(error["message"].as_str().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quotes_of_azure_are_bounded() {
        let body = json!({"error": {"code": "Conflict", "message": "not\r\nnow ".repeat(500)}});
        let text = Error::refused("put it", 409, &body, None).to_string();
        assert!(
            text.starts_with("put it: Azure answered 409 Conflict: not now not now"),
            "{text}"
        );
        assert!(text.len() < 600, "{}", text.len());
        let bare = Error::refused("put it", 500, &Value::Null, None).to_string();
        assert_eq!(bare, "put it: Azure answered 500 without a code");
    }

    #[test]
    fn refusals_are_classified_by_status_and_code() {
        let after = Some(Duration::from_secs(7));
        for (status, code, expected) in [
            (409, "Conflict", Class::TRANSIENT),
            (409, "PropertyChangeNotAllowed", Class::Deliverable),
            (404, "ParentResourceNotFound", Class::TRANSIENT),
            (404, "ResourceGroupNotFound", Class::Everything),
            (404, "ContainerNotFound", Class::Everything),
            (403, "AuthorizationFailed", Class::Everything),
            (400, "InvalidParameter", Class::Deliverable),
            (412, "LeaseIdMissing", Class::TRANSIENT),
            (503, "ServerBusy", Class::TRANSIENT),
        ] {
            assert_eq!(class_of_refusal(status, code, None), expected, "{status} {code}");
        }
        assert_eq!(
            class_of_refusal(429, "TooManyRequests", after),
            Class::Transient { after }
        );
        for (code, lasting) in [
            ("InvalidParameter", true),
            ("SourceBlobNotFound", true),
            ("InternalExecutionError", false),
            ("StorageAllocationFailure", false),
        ] {
            assert_eq!(is_lasting(code), lasting, "{code}");
        }
    }
}
