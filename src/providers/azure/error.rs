//! Azure's refusals, and what can be done about them.

use std::time::Duration;

use azure_core::error::ErrorKind;
use serde_json::Value;

use crate::base::failure::{Class, Classified, quote, reason};
use crate::base::http;
use crate::providers::call::CallError;

/// The service in errors.
const SERVICE: &str = "Azure";

/// Azure does not do what it is asked, or an image is not what Azure takes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The environment lacks something.
    #[error("find credentials: {0}")]
    Credentials(String),
    /// The federated token cannot be read.
    #[error("read the federated token {path}")]
    TokenFile {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody knows us, or not any more.
    #[error("get a token for client {client}: {said}{advice}")]
    Identity {
        /// Who we say we are.
        client: String,
        /// What the authority said.
        said: String,
        /// What an operator can do.
        advice: &'static str,
        /// Its HTTP status.
        status: u16,
    },
    /// A call that failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Somebody else was there in the middle of it.
    #[error("{what}: somebody has changed it meanwhile")]
    Changed {
        /// What was asked for.
        what: String,
    },
    /// Replicas could not be made in a region.
    #[error("replicate {name} to {region}: {said}")]
    Region {
        /// The version.
        name: String,
        /// The region.
        region: String,
        /// What Azure says of it.
        said: String,
    },
    /// Replicas are being made in a region for longer than ever.
    #[error(
        "replicate {name} to {region}: Azure is at work on it since {} and takes no change until that is over; look at \
         the version there, and repair the region then",
        humantime::format_duration(*limit)
    )]
    Stuck {
        /// The version.
        name: String,
        /// The region.
        region: String,
        /// How long it was waited.
        limit: Duration,
    },
    /// Somebody else's content.
    #[error(
        "publish {name}: it is there already with another content: made of {found}, and now of {expected}; delete that \
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
    /// Somebody else's version.
    #[error("publish {name}: it is there already and belongs to {owner}")]
    Owned {
        /// The version.
        name: String,
        /// Who looks after it.
        owner: String,
    },
    /// What is left of somebody's attempt.
    #[error(
        "publish {0}: it is there already, has failed in every region, and was not made by this program; delete it first"
    )]
    Ruined(String),
    /// Attributes that nobody can change any more.
    #[error(
        "use image definition {definition}: {differences}; these attributes are fixed, so delete it with its versions, and \
         it is made anew"
    )]
    Definition {
        /// The definition.
        definition: String,
        /// What is different.
        differences: String,
    },
    /// Another process writes the blob.
    #[error("write blob {0}: another process is writing it, or was until a moment ago")]
    Busy(String),
    /// Not a disk that Azure takes.
    #[error("use {path} as a fixed VHD: {reason}")]
    Vhd {
        /// The image.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Never seen: the selection knows the provider.
    #[error("publish {0} to a gallery: it is no gallery version")]
    NotAVersion(String),
}

impl Error {
    pub(super) fn odd(what: &str, answer: &str) -> Self {
        Self::Call(CallError::Odd {
            what: what.to_owned(),
            service: SERVICE,
            answer: answer.to_owned(),
        })
    }

    pub(super) fn silent(what: &str, limit: Duration) -> Self {
        Self::Call(CallError::Silent {
            what: what.to_owned(),
            limit,
        })
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

    /// From an operation that ended badly.
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

    /// From the storage client.
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
                    (_, "ContainerNotFound") => "; make the container, or correct storage_container_name",
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
            Self::Identity { .. } => Class::TRANSIENT,
            Self::Call(call) => call.class(),
            Self::Changed { .. } | Self::Region { .. } | Self::Busy(_) => Class::TRANSIENT,
            Self::Taken { .. }
            | Self::Owned { .. }
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
        // Nothing of ours exists without these, and the program makes none of them.
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
        // Another operation is going on, or one that has ended is not forgotten yet; a parent that was made a moment ago
        // is not known everywhere; a lease has changed hands.
        (404 | 409 | 412, _) => Class::Transient { after },
        _ => Class::of_status(status, after),
    }
}

/// Whether an operation that failed so will fail again. Others are trouble inside Azure, such as a failed allocation of
/// storage.
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

/// The code of an error object, and its words after a colon, in bounds and in one line.
fn code_and_words(error: &Value) -> (String, String) {
    let code = error["code"].as_str().unwrap_or("without a code").to_owned();
    (quote(&code), reason(error["message"].as_str().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn azure_is_quoted_in_bounds() {
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
    fn refusals_have_classes() {
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
