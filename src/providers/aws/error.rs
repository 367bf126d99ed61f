//! What AWS refuses and what goes wrong there, and what can be done about it.

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

/// What EC2 writes before [a text that only some may decode](https://docs.aws.amazon.com/STS/latest/APIReference/API_DecodeAuthorizationMessage.html).
/// It is another one for each request, and the same refusal has to be recognised.
const ENCODED: &str = "Encoded authorization failure message";

/// A step on the way to an AMI that cannot be taken. Each text reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A call that failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Nobody to act as.
    #[error("{what}: find credentials: {reason}{advice}")]
    Credentials {
        /// What was to be done.
        what: String,
        /// Why, in one line.
        reason: String,
        /// The remedy, with a semicolon before it.
        advice: &'static str,
    },
    /// The name belongs to other content.
    #[error(
        "publish {name} in {region}: {ami} has the name already and is made of {found}, and now it would be made of \
         {expected}; deregister it, or find out who made it"
    )]
    Taken {
        /// Of the image.
        name: String,
        /// Where.
        region: String,
        /// Who has it.
        ami: String,
        /// SHA-256 of what it was made of.
        found: String,
        /// SHA-256 of this image.
        expected: String,
    },
    /// The name belongs to somebody else.
    #[error("publish {name} in {region}: {ami} has the name already and belongs to {owner}, according to its tags")]
    Foreign {
        /// Of the image.
        name: String,
        /// Where.
        region: String,
        /// Who has it.
        ami: String,
        /// As tagged.
        owner: String,
    },
    /// Nobody can tell which one is meant.
    #[error("publish {name} in {region}: {} have that name; deregister all but one", amis.join(" and "))]
    Twins {
        /// Of the images.
        name: String,
        /// Where.
        region: String,
        /// All of them.
        amis: Vec<String>,
    },
    /// An image that will never be usable.
    #[error("use {ami} in {region}: it is {state}{reason}; deregister it, and try again")]
    Unusable {
        /// The image.
        ami: String,
        /// Where.
        region: String,
        /// According to AWS.
        state: String,
        /// According to AWS, with a colon before it.
        reason: String,
    },
    /// A copy, or an upload, that ended badly on their side.
    #[error("use snapshot {snapshot} in {region}: it ended in state {state}{reason}")]
    Spoilt {
        /// The snapshot.
        snapshot: String,
        /// Where.
        region: String,
        /// According to AWS.
        state: String,
        /// According to AWS, with a colon before it.
        reason: String,
    },
    /// AWS could not make a snapshot of the object.
    #[error("import {object}: task {task} is {status}{reason}")]
    Import {
        /// Bucket and key.
        object: String,
        /// The task.
        task: String,
        /// According to AWS.
        status: String,
        /// According to AWS, with a colon before it.
        reason: String,
    },
    /// The other regions are done, and this one is not.
    #[error("publish in {region} along with the others: {state}")]
    Slow {
        /// Where.
        region: String,
        /// How far it is.
        state: String,
    },
    /// The account forbids it.
    #[error(
        "make {ami} public in {region}: the account blocks public sharing of images there; run `aws ec2 \
         disable-image-block-public-access --region {region}`, and wait some minutes"
    )]
    Blocked {
        /// The image.
        ami: String,
        /// Where.
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
    /// Another process has completed it or given it up; looking again tells.
    #[error("upload {0}: somebody else has ended the upload")]
    Ended(String),
    /// The image was written, then gone.
    #[error("find {ami} in {region}: it was there a moment ago")]
    Lapsed {
        /// The image.
        ami: String,
        /// Where.
        region: String,
    },
    /// A task of ours ended without a result.
    #[error("upload {0}: interrupted")]
    Interrupted(String),
    /// Never seen: locations come from the same configuration.
    #[error("find {0} among the configured regions")]
    Unknown(String),
    /// Never seen: the selection knows the provider.
    #[error("publish {0} to AWS: it is no image of EC2")]
    NotAnAmi(String),
}

impl Error {
    /// From the SDK.
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
        Self::Call(CallError::Odd {
            what: what.to_owned(),
            service: SERVICE,
            answer: format!("no {lacks}"),
        })
    }

    /// The code of a refusal.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Call(call) => call.code(),
            _ => None,
        }
    }

    /// Whether AWS may have done what it was asked, though it did not say so.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Call(CallError::Lost { .. } | CallError::Odd { .. }) => true,
            Self::Call(CallError::Refused { status, .. }) => *status >= 500 && !self.is_throttling(),
            _ => false,
        }
    }

    /// Whether these credentials may not do that, or the service cannot.
    pub(super) fn is_denied(&self) -> bool {
        matches!(
            self.code(),
            Some("AccessDenied" | "AccessDeniedException" | "NotImplemented" | "UnauthorizedOperation")
        )
    }

    /// Whether what was asked for is not there; not a failure of the call.
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
            Self::Spoilt { .. }
            | Self::Slow { .. }
            | Self::Unconfirmed { .. }
            | Self::Ended(_)
            | Self::Lapsed { .. }
            | Self::Interrupted(_) => Class::TRANSIENT,
            Self::Import { reason, .. } if is_theirs(reason) => Class::TRANSIENT,
            Self::Credentials { .. } => Class::Everything,
            Self::Import { .. }
            | Self::Taken { .. }
            | Self::Foreign { .. }
            | Self::Twins { .. }
            | Self::Unusable { .. }
            | Self::Blocked { .. }
            | Self::Kept { .. }
            | Self::Unknown(_)
            | Self::NotAnAmi(_) => Class::Deliverable,
        }
    }
}

/// Whether a failed import may succeed the next time.
fn is_theirs(reason: &str) -> bool {
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
    fn what_may_have_been_done_is_open() {
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
        assert!(refused("InternalError", 500).is_open());
        assert!(!refused("RequestLimitExceeded", 503).is_open());
        assert!(!refused("InvalidParameterValue", 400).is_open());
    }
}
