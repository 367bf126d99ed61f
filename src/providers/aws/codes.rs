//! The error codes of AWS, and what can be done about each.

use std::time::Duration;

use crate::base::failure::Class;

/// Throttling, faults on the side of AWS, and refusals that hold for a moment only. EC2's
/// [list](https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html), and the lists of S3 and EBS direct.
const TRANSIENT: [&str; 30] = [
    "BadDigest",
    "BandwidthLimitExceeded",
    "ConcurrentLimitExceededException",
    "ConcurrentTagAccess",
    "ConditionalRequestConflict",
    "EC2ThrottledException",
    "IncompleteBody",
    // The state of a resource is not the same everywhere at once.
    "IncorrectState",
    "InternalError",
    "InternalFailure",
    "InternalServerException",
    "OperationAborted",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServerInternal",
    "ServiceUnavailable",
    "SlowDown",
    "SnapshotCreationPerVolumeRateExceeded",
    "Throttling",
    "ThrottledException",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
    "Unavailable",
    "UploadBusy",
    "XAmzContentChecksumMismatch",
];

/// Limits on what AWS does for an account at one time: imports, copies, and pending snapshots. Each ends when other work
/// does.
const BUSY: [&str; 6] = [
    "ConcurrentSnapshotLimitExceeded",
    "PendingSnapshotLimitExceeded",
    "ResourceCountExceeded",
    "ResourceCountLimitExceeded",
    "ResourceLimitExceeded",
    // Of EBS direct, for pending snapshots.
    "ServiceQuotaExceededException",
];

/// Actions that meet the same codes as a quota of what exists, such as public images. Only an operator ends that.
const QUOTA_OF_WHAT_EXISTS: [&str; 3] = ["ModifyImageAttribute", "ModifySnapshotAttribute", "RegisterImage"];

/// The pause after a [busy](is_busy) refusal: imports and copies take from ten minutes to hours.
const BUSY_PAUSE: Duration = Duration::from_secs(3 * 60);

/// A new resource is not visible at once, and another process may have deleted it. The next look tells.
const GONE: [&str; 4] = [
    "InvalidAMIID.NotFound",
    "InvalidAMIID.Unavailable",
    "InvalidSnapshot.NotFound",
    "ResourceNotFoundException",
];

/// Nothing can be published until an operator fixes it.
const REFUSED: [&str; 26] = [
    // Of an answer to HEAD, which has no other code.
    "301",
    "AccessDenied",
    "AccessDeniedException",
    "AccountDisabled",
    "AccountProblem",
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
    "NotSignedUp",
    "OptInRequired",
    "PendingVerification",
    "PermanentRedirect",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
];

/// The class of a refusal with this code.
pub(super) fn class_of(action: &str, code: &str, status: u16, after: Option<Duration>) -> Class {
    if is_busy(action, code) {
        let after = after.map_or(BUSY_PAUSE, |asked| asked.max(BUSY_PAUSE));
        return Class::Transient { after: Some(after) };
    }
    if TRANSIENT.contains(&code) || GONE.contains(&code) {
        return Class::Transient { after };
    }
    if REFUSED.contains(&code) {
        return Class::Everything;
    }
    match status {
        // Any other code is about the request itself; EC2 answers 400 to nearly everything.
        408 | 425 | 429 | 500 | 502..=599 => Class::Transient { after },
        _ if code == status.to_string() => Class::of_status(status, after),
        _ => Class::Deliverable,
    }
}

/// Reports whether AWS refuses for the work that it has already in progress for the account.
pub(super) fn is_busy(action: &str, code: &str) -> bool {
    BUSY.contains(&code) && !QUOTA_OF_WHAT_EXISTS.contains(&action)
}

/// Reports whether an import is refused for the role that AWS is to read the bucket with. AWS has no code for it.
pub(super) fn is_about_the_role(code: &str, message: &str) -> bool {
    code == "InvalidParameter" && message.contains("service role")
}

/// The remedy that the text of a refusal ends with.
pub(super) fn advice(action: &str, code: &str, message: &str) -> &'static str {
    match code {
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
            "; allow it in a policy of the account that the credentials belong to (docs/aws.md)"
        }
        "AuthFailure" | "OptInRequired" | "InvalidClientTokenId" | "UnrecognizedClientException" => {
            "; check the credentials, and that the region is enabled for the account"
        }
        "ExpiredToken" | "ExpiredTokenException" => "; renew the credentials",
        // EC2 has one code for both causes.
        "RequestExpired" => "; renew the credentials, or set this machine's clock right",
        "RequestTimeTooSkewed" => "; set this machine's clock right",
        "403" => {
            "; allow it in a policy (docs/aws.md), including s3:ListBucket: without that, S3 answers 403 for a missing object"
        }
        "OperationNotPermitted" => {
            "; if the account blocks public sharing there, run `aws ec2 disable-snapshot-block-public-access` and \
             `aws ec2 disable-image-block-public-access`"
        }
        "NoSuchBucket" => "; create the bucket, or correct s3_bucket_name",
        "301" | "PermanentRedirect" | "AuthorizationHeaderMalformed" => {
            "; the bucket is in another region: imports need one in base_region"
        }
        _ if is_about_the_role(code, message) => {
            "; create it as docs/aws.md says, let it read the bucket, or correct import_role_name"
        }
        _ if is_busy(action, code) => {
            "; this ends by itself when other imports, copies, or snapshots of the account finish, or ask AWS for a higher \
             quota"
        }
        _ if BUSY.contains(&code) || (code.ends_with("LimitExceeded") && !TRANSIENT.contains(&code)) => {
            "; delete what is no longer needed there, or ask AWS for a higher quota"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_class() {
        let busy = Class::Transient {
            after: Some(BUSY_PAUSE),
        };
        for (action, code, status, class) in [
            ("DescribeImages", "RequestLimitExceeded", 503, Class::TRANSIENT),
            ("DescribeImages", "Throttling", 400, Class::TRANSIENT),
            ("UploadPart", "SlowDown", 503, Class::TRANSIENT),
            ("UploadPart", "BadDigest", 400, Class::TRANSIENT),
            ("CreateTags", "ConcurrentTagAccess", 400, Class::TRANSIENT),
            ("RegisterImage", "IncorrectState", 400, Class::TRANSIENT),
            ("CopySnapshot", "InvalidSnapshot.NotFound", 400, Class::TRANSIENT),
            (
                "PutSnapshotBlock",
                "ConcurrentLimitExceededException",
                400,
                Class::TRANSIENT,
            ),
            ("CopySnapshot", "SomethingNew", 500, Class::TRANSIENT),
            ("HeadObject", "429", 429, Class::TRANSIENT),
            ("ImportSnapshot", "ResourceLimitExceeded", 400, busy),
            ("ImportSnapshot", "ResourceCountLimitExceeded", 400, busy),
            ("CopySnapshot", "PendingSnapshotLimitExceeded", 400, busy),
            ("CopyImage", "ResourceLimitExceeded", 400, busy),
            ("StartSnapshot", "ServiceQuotaExceededException", 402, busy),
            ("ModifyImageAttribute", "ResourceLimitExceeded", 400, Class::Deliverable),
            ("RegisterImage", "ResourceLimitExceeded", 400, Class::Deliverable),
            ("CopySnapshot", "SnapshotLimitExceeded", 400, Class::Deliverable),
            ("DescribeImages", "AuthFailure", 401, Class::Everything),
            ("RegisterImage", "UnauthorizedOperation", 403, Class::Everything),
            ("HeadObject", "NoSuchBucket", 404, Class::Everything),
            ("HeadObject", "403", 403, Class::Everything),
            ("HeadObject", "PermanentRedirect", 301, Class::Everything),
            ("HeadObject", "301", 301, Class::Everything),
            ("UploadPart", "RequestTimeTooSkewed", 403, Class::Everything),
            ("RegisterImage", "InvalidParameterValue", 400, Class::Deliverable),
            ("ModifyImageAttribute", "OperationNotPermitted", 400, Class::Deliverable),
            ("CopySnapshot", "NotImplemented", 501, Class::Deliverable),
        ] {
            assert_eq!(class_of(action, code, status, None), class, "{action}: {code}");
        }
    }

    #[test]
    fn the_pause_that_aws_asks_for_may_be_longer() {
        let class = class_of(
            "ImportSnapshot",
            "ResourceLimitExceeded",
            400,
            Some(Duration::from_secs(900)),
        );
        assert_eq!(
            class,
            Class::Transient {
                after: Some(Duration::from_secs(900))
            }
        );
    }
}
