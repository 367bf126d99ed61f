//! Errors of the steps to an AMI, and their classes.

use std::error::Error as StdError;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;

use super::codes::{advice, class_of, is_about_the_role};
use crate::base::failure::{Chain, Class, Classified, quote, reason};
use crate::providers::call::CallError;
use crate::providers::ownership::HandsOff;

/// The service in errors.
const SERVICE: &str = "AWS";

/// The words before [a text that only some may decode](https://docs.aws.amazon.com/STS/latest/APIReference/API_DecodeAuthorizationMessage.html).
/// The text differs for each request, so the program cuts it off to recognize the same refusal again.
const ENCODED: &str = "Encoded authorization failure message";

/// A step to an AMI that failed. Each text reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A call that failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// No source has credentials, or the source failed.
    #[error("{what}: find credentials: {reason}{advice}")]
    Credentials {
        /// The step, as it reads after "failed to".
        what: String,
        /// The cause, in one line.
        reason: String,
        /// The remedy, with a semicolon before it.
        advice: &'static str,
    },
    /// An image with this name has other content.
    #[error(
        "publish {name} in {region}: {ami} already exists with different content (SHA-256 {found}, expected {expected}); \
         deregister it, or find out who created it"
    )]
    OtherContent {
        /// The image's name.
        name: String,
        /// The region.
        region: String,
        /// The image that has the name.
        ami: String,
        /// SHA-256 of the image file that it was created from.
        found: String,
        /// SHA-256 of the image file to be published.
        expected: String,
    },
    /// An image with this name has another owner.
    #[error("publish {name} in {region}: {ami} has this name and belongs to {owner}, according to its tags")]
    Foreign {
        /// The image's name.
        name: String,
        /// The region.
        region: String,
        /// The image that has the name.
        ami: String,
        /// The owner that its tags name.
        owner: String,
    },
    /// Several images have this name.
    #[error("publish {name} in {region}: {} have this name; deregister all but one", amis.join(" and "))]
    DuplicateNames {
        /// Of the images.
        name: String,
        /// The region.
        region: String,
        /// The ids of all of them.
        amis: Vec<String>,
    },
    /// The image is in a state that it does not leave by itself.
    #[error("use {ami} in {region}: it is {state}{reason}; deregister it, and try again")]
    Unusable {
        /// The image.
        ami: String,
        /// The region.
        region: String,
        /// The state, as AWS reports it.
        state: String,
        /// The reason, as AWS reports it, with a colon before it.
        reason: String,
    },
    /// A snapshot failed on the side of AWS.
    #[error("use snapshot {snapshot} in {region}: it ended in state {state}{reason}")]
    SnapshotFailed {
        /// The snapshot.
        snapshot: String,
        /// The region.
        region: String,
        /// The state, as AWS reports it.
        state: String,
        /// The reason, as AWS reports it, with a colon before it.
        reason: String,
    },
    /// An import task failed.
    #[error("import {object}: task {task} is {status}{reason}")]
    Import {
        /// Bucket and key.
        object: String,
        /// The task.
        task: String,
        /// The state, as AWS reports it.
        status: String,
        /// The reason, as AWS reports it, with a colon before it.
        reason: String,
    },
    /// This region takes longer than the others.
    #[error("publish in {region} along with the others: {state}")]
    Slow {
        /// The region.
        region: String,
        /// The progress of the region.
        state: String,
    },
    /// The account blocks public sharing in the region.
    #[error(
        "make {ami} public in {region}: the account blocks public sharing of images there; run `aws ec2 \
         disable-image-block-public-access --region {region}`, and wait some minutes"
    )]
    Blocked {
        /// The image.
        ami: String,
        /// The region.
        region: String,
    },
    /// A change that AWS accepted is not there when read back.
    #[error("{what}: AWS accepted the change, but it does not show when read back")]
    Unconfirmed {
        /// The change, as it reads after "failed to".
        what: String,
    },
    /// An operator keeps the image, and it is not as it has to be.
    #[error(
        "publish {ami} in {region}: {reason}, so it is not changed, and it is not public; remove that tag, or share it"
    )]
    Kept {
        /// The image.
        ami: String,
        /// The region.
        region: String,
        /// Why nothing may be changed.
        reason: HandsOff,
    },
    /// Another process has completed or aborted the upload. The next look tells which.
    #[error("upload {0}: another process has ended the upload")]
    UploadEnded(String),
    /// The image was visible, and no longer is.
    #[error("find {ami} in {region}: it existed a moment ago")]
    Vanished {
        /// The image.
        ami: String,
        /// The region.
        region: String,
    },
    /// A task of this process ended without a result.
    #[error("upload {0}: interrupted")]
    Interrupted(String),
    /// A region that is not configured. Never seen: locations come from the same configuration.
    #[error("find {0} among the configured regions")]
    UnknownRegion(String),
    /// A deliverable of another provider. Never seen: the selection knows the provider.
    #[error("publish {0} to AWS: it is not an image for EC2")]
    NotAnAmi(String),
}

impl Error {
    /// Converts an error of the SDK.
    pub(super) fn of<E>(action: &'static str, what: &str, error: SdkError<E>) -> Self
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let what = what.to_owned();
        if Self::is_unreadable_success(&error) {
            return Self::Call(CallError::Lost {
                what,
                source: error.into(),
                class: Class::TRANSIENT,
            });
        }
        match error {
            SdkError::ServiceError(refusal) => {
                let raw = refusal.raw();
                let status = raw.status().as_u16();
                let after = raw
                    .headers()
                    .get("retry-after")
                    .and_then(|value| value.trim().parse().ok());
                let code = refusal.err().code().map_or_else(|| status.to_string(), str::to_owned);
                let message = refusal.err().message().unwrap_or_default();
                let message = reason(message.split(ENCODED).next().unwrap_or_default());
                let advice = advice(action, &code, &message);
                let class = if is_about_the_role(&code, &message) {
                    Class::Everything
                } else {
                    class_of(action, &code, status, after.map(Duration::from_secs))
                };
                Self::Call(CallError::Refused {
                    what,
                    service: SERVICE,
                    status,
                    said: format!("{code}{message}{advice}"),
                    class,
                    code,
                })
            }
            other => match credentials_error(&other) {
                Some(error) => Self::Credentials {
                    what,
                    reason: quote(&Chain(error).to_string()),
                    advice: match error {
                        CredentialsError::CredentialsNotLoaded(_) => {
                            "; check that AWS_PROFILE names a profile that exists, or set another source of credentials \
                             (docs/aws.md)"
                        }
                        _ => "",
                    },
                },
                None => Self::Call(CallError::Lost {
                    what,
                    source: other.into(),
                    class: Class::TRANSIENT,
                }),
            },
        }
    }

    /// Reports whether AWS answered 2xx with a body that the SDK cannot read, which it reports as a refusal without a code.
    pub(super) fn is_unreadable_success(error: &SdkError<impl ProvideErrorMetadata>) -> bool {
        match error {
            SdkError::ServiceError(refusal) => refusal.raw().status().is_success() && refusal.err().code().is_none(),
            SdkError::ResponseError(answer) => answer.raw().status().is_success(),
            _ => false,
        }
    }

    /// An answer that lacks something.
    pub(super) fn lacking(what: &str, lacks: &str) -> Self {
        CallError::odd(what, SERVICE, format!("no {lacks}")).into()
    }

    /// The code of a refusal.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Call(call) => call.code(),
            _ => None,
        }
    }

    /// Reports whether the call may have taken effect although AWS did not confirm it.
    pub(super) fn may_have_taken_effect(&self) -> bool {
        match self {
            Self::Call(CallError::Lost { .. } | CallError::Odd { .. }) => true,
            Self::Call(CallError::Refused { status, .. }) => *status >= 500 && !self.is_throttling(),
            _ => false,
        }
    }

    /// Reports whether the credentials lack the permission, or the service lacks the action.
    pub(super) fn is_denied(&self) -> bool {
        matches!(
            self.code(),
            Some("AccessDenied" | "AccessDeniedException" | "NotImplemented" | "UnauthorizedOperation")
        )
    }

    /// Reports whether AWS refused with this code.
    pub(super) fn is(error: &SdkError<impl ProvideErrorMetadata>, code: &str) -> bool {
        error.as_service_error().and_then(|error| error.code()) == Some(code)
    }

    fn is_throttling(&self) -> bool {
        let codes = ["RequestLimitExceeded", "SlowDown", "Unavailable", "ServiceUnavailable"];
        self.code()
            .is_some_and(|code| code.contains("Throttl") || codes.contains(&code))
    }
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Call(call) => call.class(),
            Self::SnapshotFailed { .. }
            | Self::Slow { .. }
            | Self::Unconfirmed { .. }
            | Self::UploadEnded(_)
            | Self::Vanished { .. }
            | Self::Interrupted(_) => Class::TRANSIENT,
            Self::Import { reason, .. } if failed_at_aws(reason) => Class::TRANSIENT,
            Self::Credentials { .. } => Class::Everything,
            Self::Import { .. }
            | Self::OtherContent { .. }
            | Self::Foreign { .. }
            | Self::DuplicateNames { .. }
            | Self::Unusable { .. }
            | Self::Blocked { .. }
            | Self::Kept { .. }
            | Self::UnknownRegion(_)
            | Self::NotAnAmi(_) => Class::Deliverable,
        }
    }
}

/// Reports whether the import failed on the side of AWS, so that the next one may succeed.
fn failed_at_aws(reason: &str) -> bool {
    ["ServerError", "internal error", "InternalError"]
        .iter()
        .any(|word| reason.contains(word))
}

/// The error of a call that was not sent for want of credentials, unless the next attempt may find some.
fn credentials_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a CredentialsError> {
    let mut found = None;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            if matches!(error, CredentialsError::ProviderTimedOut(_)) {
                return None;
            }
            found = found.or(Some(error));
        }
        if is_transient::<AssumeRoleWithWebIdentityError>(error) || is_transient::<AssumeRoleError>(error) {
            return None;
        }
        next = error.source();
    }
    found
}

/// Reports whether a call to STS failed for a reason that the next attempt may not meet.
fn is_transient<E>(error: &(dyn StdError + 'static)) -> bool
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    match error.downcast_ref::<SdkError<E>>() {
        Some(SdkError::ServiceError(refusal)) => {
            let status = refusal.raw().status().as_u16();
            let code = refusal.err().code().map_or_else(|| status.to_string(), str::to_owned);
            class_of("AssumeRole", &code, status, None).is_transient()
        }
        Some(SdkError::ConstructionFailure(_)) | None => false,
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_may_have_taken_effect_is_open() {
        let refused = |code: &str, status| {
            Error::Call(CallError::Refused {
                what: String::new(),
                service: SERVICE,
                status,
                code: code.to_owned(),
                said: String::new(),
                class: class_of("RegisterImage", code, status, None),
            })
        };
        assert!(refused("InternalError", 500).may_have_taken_effect());
        assert!(!refused("RequestLimitExceeded", 503).may_have_taken_effect());
        assert!(!refused("InvalidParameterValue", 400).may_have_taken_effect());
    }
}
