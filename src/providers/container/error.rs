//! A registry's refusals, and what can be done about them.

use std::time::Duration;

use reqwest::Response;
use serde_json::Value;

use crate::base::failure::{Class, Classified, remark};
use crate::base::http;
use crate::config::container as config;
use crate::images::oci::Digest;
use crate::providers::call::CallError;

/// The service in errors.
const SERVICE: &str = "the registry";

/// A registry that does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The environment lacks something.
    #[error("find credentials: {0}")]
    Credentials(String),
    /// A call that failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The registry takes no more of an upload.
    #[error("{what}: no progress for {seconds} s")]
    Stalled {
        /// The task, as a verb with its object.
        what: String,
        /// How long the registry took nothing.
        seconds: u64,
    },
    /// The archive failed, not the registry.
    #[error("{0}: its source broke off")]
    Withdrawn(String),
    /// No document is that long.
    #[error("{0}: it is longer than 4 MiB")]
    TooLong(String),
    /// A document whose bytes are not what its digest says.
    #[error("{what}: its bytes have the digest {digest}")]
    Content {
        /// The task, as a verb with its object.
        what: String,
        /// Of the bytes.
        digest: Digest,
    },
    /// Credentials would travel in the open.
    #[error("get a token from {0}: only https is accepted")]
    Realm(String),
}

impl Error {
    pub(super) fn odd(what: String, answer: &str) -> Self {
        CallError::odd(what, SERVICE, answer).into()
    }

    /// From the HTTP client. Addresses are left out: some hold a signature.
    pub(super) fn lost(what: String, source: reqwest::Error) -> Self {
        Self::Call(CallError::Lost {
            what,
            class: http::class(&source),
            source: source.without_url().into(),
        })
    }

    /// From an answer that is not a success, with
    /// [what the registry says](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes).
    pub(super) async fn of(what: String, response: Response) -> Self {
        let status = response.status().as_u16();
        let after = http::retry_after(response.headers());
        Self::refused(what, status, &errors(&http::refusal(response).await), after)
    }

    fn refused(what: String, status: u16, said: &str, after: Option<Duration>) -> Self {
        Self::Call(CallError::Refused {
            what,
            service: SERVICE,
            status,
            code: String::new(),
            said: format!("{status}{said}"),
            class: if is_forgotten(said) {
                Class::TRANSIENT
            } else {
                Class::of_status(status, after)
            },
        })
    }

    /// Adds what an operator can do about a refusal.
    pub(super) fn advise(mut self, registry: &config::Registry) -> Self {
        if let Self::Call(CallError::Refused { status, said, .. }) = &mut self {
            let advice = match (*status, &registry.credential_prefix) {
                (401, Some(prefix)) => {
                    format!("; check {prefix}USER and {prefix}PASSWORD or {prefix}CERT_DIR, and what they permit")
                }
                (403, Some(prefix)) => {
                    format!("; let the account of {prefix}USER or {prefix}CERT_DIR read and write this repository")
                }
                (401 | 403, None) => "; it may need a credential_prefix in the configuration".to_owned(),
                _ => return self,
            };
            said.push_str(&advice);
        }
        self
    }

    /// Whether the registry has something that cannot be read: no later try helps, and only what is read is concerned.
    pub(super) fn is_about_content(&self) -> bool {
        match self {
            Self::TooLong(_) | Self::Content { .. } => true,
            Self::Call(call) => matches!(call.status(), Some(400 | 405 | 406 | 410 | 415 | 422)),
            Self::Credentials(_) | Self::Stalled { .. } | Self::Withdrawn(_) | Self::Realm(_) => false,
        }
    }

    /// quay.io's answer to an index it accepts a moment later.
    pub(super) fn is_invalid(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { said, .. }) if said.contains("MANIFEST_INVALID"))
    }
}

/// Whether a refusal is about a blob or upload that the registry knew a moment ago: lost in its storage, not wrong.
fn is_forgotten(said: &str) -> bool {
    let codes = [
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_UNKNOWN",
        "MANIFEST_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
    ];
    codes.iter().any(|code| said.contains(code))
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Credentials(_) | Self::Realm(_) => Class::Everything,
            Self::Call(call) => call.class(),
            Self::Stalled { .. } | Self::Withdrawn(_) | Self::Content { .. } => Class::TRANSIENT,
            Self::TooLong(_) => Class::Deliverable,
        }
    }
}

/// ` (CODE: message)`, or nothing. Only texts that are meant for people: an error's details may hold anything.
fn errors(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let rows = body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<String> = rows
        .iter()
        .filter_map(|row| match (row["code"].as_str(), row["message"].as_str()) {
            (Some(code), None | Some("")) => Some(code.to_owned()),
            (code, Some(message)) => Some(format!("{}: {message}", code.unwrap_or_default())),
            (None, None) => None,
        })
        .collect();
    remark(&rows.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_to_be_read_is_quoted() {
        let body = br#"{"errors":[{"code":"DENIED","message":"not\nyours","detail":"secret"}]}"#;
        assert_eq!(errors(body), " (DENIED: not yours)");
        assert_eq!(errors(br#"{"errors":[{"code":"DENIED","message":null}]}"#), " (DENIED)");
        for nothing in ["<html>", "{}", r#"{"errors":null}"#, r#"{"errors":[7]}"#] {
            assert_eq!(errors(nothing.as_bytes()), "", "{nothing}");
        }
    }

    #[test]
    fn a_blob_that_was_there_a_moment_ago_is_pushed_again() {
        let error = |status, said: &str| Error::refused(String::new(), status, said, None);
        assert_eq!(error(404, " (MANIFEST_BLOB_UNKNOWN: x)").class(), Class::TRANSIENT);
        assert_eq!(error(404, " (NAME_UNKNOWN: x)").class(), Class::Deliverable);
        assert_eq!(error(403, "").class(), Class::Everything);
        assert_eq!(error(429, "").class(), Class::TRANSIENT);
    }
}
