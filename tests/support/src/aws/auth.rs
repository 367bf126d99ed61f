//! Signature version 4: who calls, which service, in which region. The endpoint is one for all regions, so the scope of the
//! credential is what tells them apart.
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use axum::http::{HeaderMap, StatusCode, header, request::Parts};

use super::{
    ACCESS_KEY, ACCOUNT, SECRET_KEY, SESSION_KEY, SESSION_SECRET, SESSION_TOKEN,
    refusal::{Refusal, Result},
};

/// The scope of a request's credential.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    date: String,
    pub(super) region: String,
    pub(super) service: String,
    /// The ARN behind the access key.
    pub(super) caller: String,
}

impl Scope {
    /// That of a request to a service that asks for no signature.
    pub(super) fn unsigned(service: &str) -> Self {
        Self {
            date: String::new(),
            region: String::new(),
            service: service.to_owned(),
            caller: "anonymous".to_owned(),
        }
    }
}

/// The secret of an access key, and the token that a request signed with it needs besides.
fn secret(access_key: &str) -> Option<(&'static str, &'static str, String)> {
    match access_key {
        ACCESS_KEY => Some((SECRET_KEY, "", format!("arn:aws:iam::{ACCOUNT}:user/uploader"))),
        SESSION_KEY => {
            let arn = format!("arn:aws:sts::{ACCOUNT}:assumed-role/uploader/session");
            Some((SESSION_SECRET, SESSION_TOKEN, arn))
        }
        _ => None,
    }
}

struct Authorization<'a> {
    scope: Scope,
    secret: &'static str,
    signed_headers: &'a str,
    signature: &'a str,
}

/// The scope, where the request names a credential that exists. The signature is not looked at.
pub(super) fn scope(headers: &HeaderMap) -> Result<Scope> {
    Ok(read(headers)?.scope)
}

/// Verifies the signature over method, path, query, the signed headers, and the body.
pub(super) fn verify(parts: &Parts, body: &[u8]) -> Result<Scope> {
    let Authorization {
        scope,
        secret,
        signed_headers,
        signature,
    } = read(&parts.headers)?;
    let text = |name: &str| {
        let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().trim()
    };
    let payload = match text("x-amz-content-sha256") {
        "" => hex(digest(&SHA256, body).as_ref()),
        given => given.to_owned(),
    };
    let mut query: Vec<_> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            if pair.contains('=') {
                pair.to_owned()
            } else {
                format!("{pair}=")
            }
        })
        .collect();
    query.sort();
    let mut names = signed_headers.split(';');
    if !names.clone().any(|name| name == "host") || !names.any(|name| name == "x-amz-date") {
        return Err(wrong_signature());
    }
    let headers: String = signed_headers
        .split(';')
        .map(|name| format!("{name}:{}\n", text(name)))
        .collect();
    // Nothing in the paths of these services needs to be encoded, so they stand here as they came.
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{signed_headers}\n{payload}",
        parts.method,
        parts.uri.path(),
        query.join("&"),
    );
    let Scope {
        date, region, service, ..
    } = &scope;
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{date}/{region}/{service}/aws4_request\n{}",
        text("x-amz-date"),
        hex(digest(&SHA256, canonical.as_bytes()).as_ref())
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [date.as_str(), region, service, "aws4_request"] {
        key = sign(&key, part);
    }
    if hex(&sign(&key, &to_sign)) != signature {
        return Err(wrong_signature());
    }
    Ok(scope)
}

fn read(headers: &HeaderMap) -> Result<Authorization<'_>> {
    let refused = || {
        Refusal::new("AuthFailure", "the provided credentials could not be validated").status(StatusCode::UNAUTHORIZED)
    };
    let value = headers.get(header::AUTHORIZATION).ok_or_else(|| {
        Refusal::new("MissingAuthenticationToken", "the request is not signed").status(StatusCode::FORBIDDEN)
    })?;
    let value = value.to_str().map_err(|_| refused())?;
    let value = value.strip_prefix("AWS4-HMAC-SHA256").ok_or_else(refused)?;
    let field = |name: &str| {
        let mut fields = value.split(',').filter_map(|field| field.trim().strip_prefix(name));
        fields.next().ok_or_else(refused)
    };
    let credential: Vec<_> = field("Credential=")?.split('/').collect();
    let [access_key, date, region, service, "aws4_request"] = credential[..] else {
        return Err(refused());
    };
    let (secret, token, caller) = secret(access_key).ok_or_else(refused)?;
    let given = headers.get("x-amz-security-token");
    if given.is_some_and(|given| given != token) || (given.is_none() && !token.is_empty()) {
        return Err(refused());
    }
    Ok(Authorization {
        scope: Scope {
            date: date.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            caller,
        },
        secret,
        signed_headers: field("SignedHeaders=")?,
        signature: field("Signature=")?,
    })
}

fn wrong_signature() -> Refusal {
    let message = "the signature of the request does not match the one computed from it";
    Refusal::new("SignatureDoesNotMatch", message).status(StatusCode::FORBIDDEN)
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
