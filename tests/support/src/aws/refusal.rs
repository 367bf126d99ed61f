//! Refusals of a service, in the form that each protocol has for them.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use uuid::Uuid;

use super::xml::escape;

/// The answer to a call that is not carried out.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: String,
    pub(super) message: String,
    /// EBS direct gives a machine-readable reason beside the code.
    pub(super) reason: Option<&'static str>,
}

pub(super) type Result<T> = std::result::Result<T, Refusal>;

impl Refusal {
    /// Status 400, as for nearly everything a client does wrong.
    pub(super) fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: code.into(),
            message: message.into(),
            reason: None,
        }
    }

    pub(super) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(super) fn reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }
}

/// The protocols, by how they spell a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// EC2's own form of the query protocol.
    Ec2,
    /// The query protocol of IAM and STS.
    Query,
    /// JSON over REST, of EBS direct.
    Rest,
    /// JSON over one path, of Service Quotas.
    Json,
    /// XML over REST.
    S3,
}

impl Protocol {
    /// By the service in the credential's scope.
    pub(super) fn of(service: &str) -> Option<Self> {
        Some(match service {
            "ec2" => Self::Ec2,
            "iam" | "sts" => Self::Query,
            "ebs" => Self::Rest,
            "servicequotas" => Self::Json,
            "s3" => Self::S3,
            _ => return None,
        })
    }

    /// Too many requests, as this service says it.
    pub(super) fn throttled(self) -> Refusal {
        let message = "the rate of requests is too high";
        match self {
            Self::Ec2 => Refusal::new("RequestLimitExceeded", message).status(StatusCode::SERVICE_UNAVAILABLE),
            Self::Query => Refusal::new("Throttling", message),
            Self::Rest => Refusal::new("RequestThrottledException", message).reason("ACCOUNT_THROTTLED"),
            Self::Json => Refusal::new("TooManyRequestsException", message),
            Self::S3 => Refusal::new("SlowDown", message).status(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// A fault of the service itself.
    pub(super) fn broken(self) -> Refusal {
        let code = match self {
            Self::Rest => "InternalServerException",
            Self::Json => "ServiceException",
            Self::Query => "InternalFailure",
            Self::Ec2 | Self::S3 => "InternalError",
        };
        Refusal::new(code, "an internal error has occurred").status(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The HTTP response.
    pub(super) fn refuse(self, refusal: &Refusal) -> Response {
        let id = Uuid::new_v4();
        let code = escape(&refusal.code);
        let message = escape(&refusal.message);
        let body = match self {
            Self::Ec2 => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code>\
                 <Message>{message}</Message></Error></Errors><RequestID>{id}</RequestID></Response>"
            ),
            Self::Query => format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
                 <RequestId>{id}</RequestId></ErrorResponse>"
            ),
            Self::S3 => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
                 <RequestId>{id}</RequestId></Error>"
            ),
            Self::Rest => json!({"Message": refusal.message, "Reason": refusal.reason}).to_string(),
            Self::Json => json!({"__type": refusal.code, "Message": refusal.message}).to_string(),
        };
        let mut response = (refusal.status, Body::from(body)).into_response();
        let kind = match self {
            Self::Rest | Self::Json => "application/json",
            _ => "text/xml;charset=UTF-8",
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if self == Self::Rest
            && let Ok(code) = HeaderValue::from_str(&refusal.code)
        {
            headers.insert(HeaderName::from_static("x-amzn-errortype"), code);
        }
        response
    }
}
