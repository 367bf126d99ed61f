//! Failures of Google Cloud: their texts, the advice in them, and their classes.

use std::path::PathBuf;
use std::time::Duration;

use google_cloud_gax::error::CredentialsError;
use google_cloud_gax::error::rpc::StatusDetails;
use reqwest::Response;
use serde_json::Value;

use crate::base::failure::{Class, Classified, remark};
use crate::base::http;
use crate::providers::call::CallError;

/// The service's name in error texts.
const SERVICE: &str = "the service";
/// The failure of an operation that creates what another process created first.
const EXISTS: &str = "RESOURCE_ALREADY_EXISTS";

/// Reasons of [refusals with 403](https://cloud.google.com/storage/docs/json_api/v1/status-codes#403-forbidden) that end
/// by themselves.
const TRANSIENT_REASONS: [&str; 4] = [
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "quotaExceeded",
    "resourceNotReady",
];
/// Failures of an [operation](https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation) that the
/// image does not cause.
const TRANSIENT_CODES: [&str; 8] = [
    "RESOURCE_NOT_READY",
    "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE",
    "RESOURCE_OPERATION_RATE_EXCEEDED",
    "RATE_LIMIT_EXCEEDED",
    "QUOTA_EXCEEDED",
    "INTERNAL_ERROR",
    "BACKEND_ERROR",
    // Another process, or the bucket's lifecycle rule, deleted the object first.
    "RESOURCE_NOT_FOUND",
];

/// A failure of this provider. Texts read after "failed to".
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The file with the credentials cannot be used. Its content is not quoted.
    #[error("use the credentials in {}: {why}", path.display())]
    Credentials {
        /// The file that `GOOGLE_APPLICATION_CREDENTIALS` names.
        path: PathBuf,
        /// The fault of the file.
        why: String,
    },
    /// The token endpoint refused, or did not answer.
    #[error(
        "get a token for Google Cloud: if it is refused, check the account in GOOGLE_APPLICATION_CREDENTIALS, its key, or \
         its workload identity (docs/gcp.md)"
    )]
    Token(#[source] CredentialsError),
    /// The client library does not start.
    #[error("set up the client for Compute Engine")]
    Client(#[source] google_cloud_gax::client_builder::Error),
    /// The HTTP client does not start.
    #[error("set up the client for Google Cloud Storage")]
    Http(#[source] http::Error),
    /// A call that failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The configured bucket does not exist.
    #[error("find bucket {0}: it does not exist; create it, or correct bucket_name")]
    NoBucket(String),
    /// The stored object differs from the bytes that were sent.
    #[error("upload {object}: the service stored {found}, and {expected} were sent")]
    Damaged {
        /// The object's name.
        object: String,
        /// Size and CRC32C, in base64, of the bytes sent.
        expected: String,
        /// Size and CRC32C that the service reports.
        found: String,
    },
    /// An image of that name was made of another file.
    #[error("create image {name}: it already exists with another content (SHA-256 {found}, expected {expected})")]
    OtherContent {
        /// The image's name.
        name: String,
        /// SHA-256 in the existing image's label.
        found: String,
        /// SHA-256 of the file to be published.
        expected: String,
    },
    /// An image of that name has the label of another owner.
    #[error("create image {name}: it already exists and belongs to {owner}")]
    Foreign {
        /// The image's name.
        name: String,
        /// The owner in its label.
        owner: String,
    },
    /// An import under that name failed, and its remains are not ours to delete.
    #[error("create image {name}: it already exists, its import failed, and {why}; delete it first")]
    FailedImport {
        /// The image's name.
        name: String,
        /// The reason to leave it alone.
        why: String,
    },
    /// An image that existed a moment ago cannot be found.
    #[error("find image {0}, which was just created or listed")]
    Vanished(String),
    /// A list that may lack images.
    #[error("list the images of project {project} in full: {warning}")]
    Partial {
        /// The project whose images were listed.
        project: String,
        /// The service's warning.
        warning: String,
    },
    /// A deliverable of another provider; the selection never sends one.
    #[error("publish {0} to Compute Engine: it is no image of Compute Engine")]
    NotAnImage(String),
}

impl Error {
    pub(super) fn odd(what: &str, answer: &str) -> Self {
        CallError::odd(what, SERVICE, answer).into()
    }

    pub(super) fn silent(what: &str, limit: Duration) -> Self {
        CallError::silent(what, limit).into()
    }

    pub(super) fn lost(what: &str, source: reqwest::Error) -> Self {
        Self::unanswered(what, source.without_url().into())
    }

    fn unanswered(what: &str, source: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::Call(CallError::Lost {
            what: what.to_owned(),
            source,
            class: Class::TRANSIENT,
        })
    }

    /// Reads an error of the client library.
    pub(super) fn of_compute(what: &str, error: google_cloud_gax::error::Error) -> Self {
        if let Some(error) = std::error::Error::source(&error).and_then(|source| source.downcast_ref()) {
            return Self::Token(CredentialsError::clone(error));
        }
        let Some(status) = error.http_status_code() else {
            return Self::unanswered(what, error.into());
        };
        let reason = error.status().and_then(|status| {
            status.details.iter().find_map(|detail| match detail {
                StatusDetails::ErrorInfo(info) => Some(info.reason.clone()),
                _ => None,
            })
        });
        let message = error.status().map_or_else(String::new, |status| status.message.clone());
        let after = error.http_headers().and_then(http::retry_after);
        Self::status(what, status, &reason.unwrap_or_default(), &message, after)
    }

    /// Reads a refusal of Cloud Storage, with the
    /// [reason in its body](https://cloud.google.com/storage/docs/json_api/v1/status-codes).
    pub(super) async fn of_storage(what: &str, response: Response) -> Self {
        let status = response.status().as_u16();
        let after = http::retry_after(response.headers());
        let said: Value = serde_json::from_slice(&http::refusal(response).await).unwrap_or_default();
        let text = |path: &str| said.pointer(path).and_then(Value::as_str).unwrap_or_default();
        Self::status(
            what,
            status,
            text("/error/errors/0/reason"),
            text("/error/message"),
            after,
        )
    }

    fn status(what: &str, status: u16, reason: &str, message: &str, after: Option<Duration>) -> Self {
        let is_transient = TRANSIENT_REASONS.contains(&reason);
        let advice = match status {
            401 => {
                "; the key in GOOGLE_APPLICATION_CREDENTIALS is not accepted: it was deleted or disabled, or this \
                 machine's clock is wrong"
            }
            403 if !is_transient => {
                "; the account in GOOGLE_APPLICATION_CREDENTIALS needs a role that permits this (docs/gcp.md)"
            }
            _ => "",
        };
        let class = match status {
            _ if is_transient => Class::Transient { after },
            // The next round looks again, which settles it.
            404 | 409 | 410 | 412 => Class::Transient { after },
            _ if is_damage(status, message) => Class::TRANSIENT,
            _ => Class::of_status(status, after),
        };
        Self::Call(CallError::Refused {
            what: what.to_owned(),
            service: SERVICE,
            status,
            code: reason.to_owned(),
            said: format!("{status}{}{advice}", remark(message)),
            class,
        })
    }

    /// Reads the error of an operation that ended.
    pub(super) fn of_operation(what: &str, code: &str, message: &str, status: u16) -> Self {
        let advice = match code {
            "QUOTA_EXCEEDED" => {
                "; ask for a higher quota of the project, or delete images that are not needed any more"
            }
            "PERMISSIONS_ERROR" => {
                "; the account in GOOGLE_APPLICATION_CREDENTIALS needs a role that permits this (docs/gcp.md)"
            }
            _ => "",
        };
        let class = match code {
            _ if TRANSIENT_CODES.contains(&code) || code == EXISTS => Class::TRANSIENT,
            _ => Class::of_status(status, None),
        };
        Self::Call(CallError::Operation {
            what: what.to_owned(),
            code: code.to_owned(),
            said: format!("failed: {code}{}{advice}", remark(message)),
            class,
        })
    }

    /// The thing does not exist, or not any more.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Call(call) if matches!(call.status(), Some(404 | 410)))
    }

    /// Another process created or changed the thing first.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            Self::Call(CallError::Refused { status: 409 | 412, .. }) => true,
            Self::Call(CallError::Operation { code, .. }) => code == EXISTS,
            _ => false,
        }
    }

    /// The account's token was refused.
    pub(super) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Call(call) if call.status() == Some(401))
    }

    /// The bytes that arrived have another checksum than those sent.
    fn is_damage(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { status, said, .. }) if is_damage(*status, said))
    }

    /// The class for one call: it is not repeated where only another look at the whole image can help.
    pub(super) fn class_of_call(&self) -> Class {
        if self.is_absent() || self.is_conflict() || self.is_damage() {
            Class::Deliverable
        } else {
            self.class()
        }
    }
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Credentials { .. } | Self::Client(_) | Self::Http(_) | Self::NoBucket(_) => Class::Everything,
            Self::Token(error) if error.is_transient() => Class::TRANSIENT,
            Self::Token(_) => Class::Everything,
            Self::Call(call) => call.class(),
            Self::Damaged { .. } | Self::Vanished(_) | Self::Partial { .. } => Class::TRANSIENT,
            Self::OtherContent { .. } | Self::Foreign { .. } | Self::FailedImport { .. } | Self::NotAnImage(_) => {
                Class::Deliverable
            }
        }
    }
}

/// Reports whether a refusal says that the bytes that arrived have another checksum than those sent.
fn is_damage(status: u16, said: &str) -> bool {
    status == 400 && said.contains("CRC32C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_and_failed_operations_have_classes() {
        let status = |status, reason| Error::status("get x", status, reason, "", None).class();
        assert_eq!(status(403, "forbidden"), Class::Everything);
        assert_eq!(status(403, "rateLimitExceeded"), Class::TRANSIENT);
        assert_eq!(status(401, "authError"), Class::Everything);
        assert_eq!(status(400, "invalid"), Class::Deliverable);
        assert_eq!(status(412, "conditionNotMet"), Class::TRANSIENT);
        let damaged = Error::status("put x", 400, "invalid", "Provided CRC32C \"x\" doesn't match", None);
        assert_eq!(damaged.class(), Class::TRANSIENT);
        assert_eq!(status(503, "backendError"), Class::TRANSIENT);
        let operation = |code, status| Error::of_operation("make x", code, "", status).class();
        assert_eq!(operation("INTERNAL_ERROR", 0), Class::TRANSIENT);
        assert_eq!(operation("QUOTA_EXCEEDED", 403), Class::TRANSIENT);
        assert_eq!(operation("PERMISSIONS_ERROR", 403), Class::Everything);
        assert_eq!(operation("INVALID_RAW_DISK", 400), Class::Deliverable);
        assert_eq!(operation("RESOURCE_ALREADY_EXISTS", 409), Class::TRANSIENT);
    }
}
