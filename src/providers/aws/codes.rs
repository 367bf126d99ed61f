//! What AWS means by the codes of its refusals, and what can be done about them.

use std::time::Duration;

use crate::base::failure::Class;

/// Asked too often, or broken on their side. EC2's
/// [list](https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html), and what S3 and EBS direct say.
const PASSING: [&str; 23] = [
    "BandwidthLimitExceeded",
    "ConcurrentLimitExceededException",
    "ConcurrentSnapshotLimitExceeded",
    "EC2ThrottledException",
    "InternalError",
    "InternalFailure",
    "InternalServerException",
    "PendingSnapshotLimitExceeded",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottledException",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
    "Unavailable",
    "UploadBusy",
];

/// What is made is not seen at once, and another process may have removed it: whoever looks again knows more.
const GONE: [&str; 4] = [
    "InvalidAMIID.NotFound",
    "InvalidAMIID.Unavailable",
    "InvalidSnapshot.NotFound",
    "ResourceNotFoundException",
];

/// Nothing works until somebody mends it.
const REFUSED: [&str; 22] = [
    // Of an answer to HEAD, which has no other code.
    "301",
    "AccessDenied",
    "AccessDeniedException",
    "AllAccessDisabled",
    "AuthFailure",
    "AuthorizationHeaderMalformed",
    "Blocked",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "MissingAuthenticationToken",
    "NoSuchBucket",
    "OptInRequired",
    "PendingVerification",
    "PermanentRedirect",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
];

/// What can be done about a refusal with this code.
pub(super) fn class_of(code: &str, status: u16, after: Option<Duration>) -> Class {
    if PASSING.contains(&code) || GONE.contains(&code) {
        return Class::Transient { after };
    }
    if REFUSED.contains(&code) {
        return Class::Everything;
    }
    match status {
        // Whose code says nothing of this kind is about the request itself; EC2 answers 400 to nearly everything.
        408 | 425 | 429 | 500 | 502..=599 => Class::Transient { after },
        _ if code == status.to_string() => Class::of_status(status, after),
        _ => Class::Deliverable,
    }
}

/// Whether an import is refused for the role that AWS is to read the bucket with. There is no code for it.
pub(super) fn is_about_the_role(code: &str, message: &str) -> bool {
    code == "InvalidParameter" && message.contains("service role")
}

/// What an operator can do about a refusal.
pub(super) fn advice(code: &str, message: &str) -> &'static str {
    match code {
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
            "; allow it in a policy of the account that the credentials belong to (docs/aws.md)"
        }
        "AuthFailure" | "OptInRequired" | "InvalidClientTokenId" | "UnrecognizedClientException" => {
            "; check the credentials, and that the region is enabled for the account"
        }
        "ExpiredToken" | "ExpiredTokenException" => "; renew the credentials",
        // EC2's word for both.
        "RequestExpired" => "; renew the credentials, or set this machine's clock right",
        "403" => {
            "; allow it in a policy (docs/aws.md), and s3:ListBucket too: without that, what is missing looks forbidden"
        }
        "OperationNotPermitted" => {
            "; where the account blocks public sharing there, `aws ec2 disable-snapshot-block-public-access` and \
             `disable-image-block-public-access` end that"
        }
        "NoSuchBucket" => "; make the bucket, or correct s3_bucket_name",
        "301" | "PermanentRedirect" | "AuthorizationHeaderMalformed" => {
            "; the bucket is in another region: imports need one in base_region"
        }
        _ if is_about_the_role(code, message) => {
            "; make it as docs/aws.md says, let it read the bucket, or correct import_role_name"
        }
        _ if code.ends_with("LimitExceeded") && !PASSING.contains(&code) => {
            "; remove there what is not needed any more, or ask AWS for a higher quota"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_what_can_be_done() {
        for (code, status, class) in [
            ("RequestLimitExceeded", 503, Class::TRANSIENT),
            ("Throttling", 400, Class::TRANSIENT),
            ("SlowDown", 503, Class::TRANSIENT),
            ("InvalidSnapshot.NotFound", 400, Class::TRANSIENT),
            ("SomethingNew", 500, Class::TRANSIENT),
            ("429", 429, Class::TRANSIENT),
            ("AuthFailure", 401, Class::Everything),
            ("UnauthorizedOperation", 403, Class::Everything),
            ("NoSuchBucket", 404, Class::Everything),
            ("403", 403, Class::Everything),
            ("PendingSnapshotLimitExceeded", 400, Class::TRANSIENT),
            ("PermanentRedirect", 301, Class::Everything),
            ("301", 301, Class::Everything),
            ("ResourceLimitExceeded", 400, Class::Deliverable),
            ("InvalidParameterValue", 400, Class::Deliverable),
            ("OperationNotPermitted", 400, Class::Deliverable),
            ("NotImplemented", 501, Class::Deliverable),
        ] {
            assert_eq!(class_of(code, status, None), class, "{code}");
        }
    }
}
