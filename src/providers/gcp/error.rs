//! Google's refusals, and what can be done about them.

use std::path::PathBuf;
use std::time::Duration;

use google_cloud_gax::error::CredentialsError;
use google_cloud_gax::error::rpc::StatusDetails;
use reqwest::Response;
use serde::Deserialize;

use crate::base::failure::{Class, Classified, remark};
use crate::base::http;
use crate::providers::call::CallError;

/// The service in errors.
const SERVICE: &str = "the service";
/// The failure of an operation whose name was taken meanwhile.
const EXISTS: &str = "RESOURCE_ALREADY_EXISTS";

/// Google [says these with 403](https://cloud.google.com/storage/docs/json_api/v1/status-codes#403-forbidden), though
/// waiting helps.
const PASSING_REASONS: [&str; 4] = [
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "quotaExceeded",
    "resourceNotReady",
];
/// Failures of an [operation](https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation) that are
/// not the image's fault.
const PASSING_CODES: [&str; 8] = [
    "RESOURCE_NOT_READY",
    "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE",
    "RESOURCE_OPERATION_RATE_EXCEEDED",
    "RATE_LIMIT_EXCEEDED",
    "QUOTA_EXCEEDED",
    "INTERNAL_ERROR",
    "BACKEND_ERROR",
    // Of two processes one was faster, or the bucket's own rule was.
    "RESOURCE_NOT_FOUND",
];

/// Something Google does not do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The file with the credentials cannot be used. What is in it is not quoted.
    #[error("use the credentials in {}: {why}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What to do about it.
        why: String,
    },
    /// No token.
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
    /// No such bucket.
    #[error("find bucket {0}: there is none of that name; make it, or correct bucket_name")]
    NoBucket(String),
    /// The service has other bytes than were sent.
    #[error("upload {object}: the service has a checksum of {found}, and {expected} was sent")]
    Damaged {
        /// The object.
        object: String,
        /// CRC32C of what was sent, in base64.
        expected: String,
        /// As the service has it.
        found: String,
    },
    /// The name belongs to something else.
    #[error("make image {name}: it is there already with another content: made of {found}, and now of {expected}")]
    Taken {
        /// The image.
        name: String,
        /// SHA-256 of what it was made of.
        found: String,
        /// SHA-256 of what it should be made of.
        expected: String,
    },
    /// The name belongs to somebody else.
    #[error("make image {name}: it is there already and belongs to {owner}")]
    Foreign {
        /// The image.
        name: String,
        /// As its label says.
        owner: String,
    },
    /// What is left of somebody's attempt.
    #[error("make image {name}: it is there already, its import failed, and {why}; delete it first")]
    Ruined {
        /// The image.
        name: String,
        /// Why this program leaves it alone.
        why: &'static str,
    },
    /// It was there a moment ago.
    #[error("find image {0} that was just made")]
    Vanished(String),
    /// A list with a hole.
    #[error("list the images of project {project} in full: {warning}")]
    Partial {
        /// The project.
        project: String,
        /// What the service said.
        warning: String,
    },
    /// Never seen: the selection knows the provider.
    #[error("publish {0} to Compute Engine: it is no image")]
    NotAnImage(String),
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

    /// From the client library.
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

    /// From an answer that is not a success, with
    /// [what the service says](https://cloud.google.com/storage/docs/json_api/v1/status-codes).
    pub(super) async fn of_storage(what: &str, response: Response) -> Self {
        let status = response.status().as_u16();
        let after = http::retry_after(response.headers());
        let said: Body = serde_json::from_slice(&http::refusal(response).await).unwrap_or_default();
        let reason = said.error.errors.first().map_or("", |error| &error.reason);
        Self::status(what, status, reason, &said.error.message, after)
    }

    fn status(what: &str, status: u16, reason: &str, message: &str, after: Option<Duration>) -> Self {
        let is_passing = PASSING_REASONS.contains(&reason);
        let advice = match status {
            401 => {
                "; the key in GOOGLE_APPLICATION_CREDENTIALS is not accepted: it was deleted or disabled, or this \
                 machine's clock is wrong"
            }
            403 if !is_passing => {
                "; the account in GOOGLE_APPLICATION_CREDENTIALS needs a role that permits this (docs/gcp.md)"
            }
            _ => "",
        };
        let class = match status {
            _ if is_passing => Class::Transient { after },
            // The next look settles whether the thing is there.
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

    /// From an operation that has ended.
    pub(super) fn of_operation(what: &str, code: &str, message: &str, status: u16) -> Self {
        let advice = match code {
            "QUOTA_EXCEEDED" => "; ask for a higher quota of the project, or delete what is not needed any more",
            "PERMISSIONS_ERROR" => {
                "; the account in GOOGLE_APPLICATION_CREDENTIALS needs a role that permits this (docs/gcp.md)"
            }
            _ => "",
        };
        let class = match code {
            _ if PASSING_CODES.contains(&code) || code == EXISTS => Class::TRANSIENT,
            _ => Class::of_status(status, None),
        };
        Self::Call(CallError::Operation {
            what: what.to_owned(),
            code: code.to_owned(),
            said: format!("failed: {code}{}{advice}", remark(message)),
            class,
        })
    }

    /// Whether the service does not know the thing, or knows it no more.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Call(call) if matches!(call.status(), Some(404 | 410)))
    }

    /// Whether the name is taken, as of a moment ago.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            Self::Call(CallError::Refused { status: 409 | 412, .. }) => true,
            Self::Call(CallError::Operation { code, .. }) => code == EXISTS,
            _ => false,
        }
    }

    /// Whether what arrived has another checksum than what was sent.
    fn is_damage(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { status, said, .. }) if is_damage(*status, said))
    }

    /// The class for one call: what only another look at the whole can mend is not asked for again as it is.
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
            Self::Taken { .. } | Self::Foreign { .. } | Self::Ruined { .. } | Self::NotAnImage(_) => Class::Deliverable,
        }
    }
}

/// Whether a refusal says that what arrived has another checksum than what was sent.
fn is_damage(status: u16, said: &str) -> bool {
    status == 400 && said.contains("CRC32C")
}

#[derive(Deserialize, Default)]
struct Body {
    #[serde(default)]
    error: Said,
}

#[derive(Deserialize, Default)]
struct Said {
    #[serde(default)]
    message: String,
    #[serde(default)]
    errors: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_and_what_does_not() {
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
