//! Tokens for a client secret or a federated assertion, as Entra gives them.

use std::collections::{HashMap, HashSet};

use axum::{
    http::{HeaderMap, header::AUTHORIZATION},
    response::Response,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::reply::{self, Refusal};

/// The tenant that exists.
pub const TENANT: &str = "5c0f5f6d-31c3-4a3f-8bde-6b1c1f6c2a10";
/// The application that exists.
pub const CLIENT_ID: &str = "0f6b7a0e-6d8e-4d37-a8f2-9d1d3a5c7e42";
/// Its secret.
pub const SECRET: &str = "test~client.secret-0123456789";

/// How long tokens live, in seconds.
const LIFETIME: i64 = 3600;

#[derive(Default)]
pub(super) struct Tokens {
    assertion: Option<String>,
    good: HashSet<String>,
    issued: usize,
}

impl Tokens {
    pub(super) fn accept_assertion(&mut self, assertion: &str) {
        self.assertion = Some(assertion.to_owned());
    }

    pub(super) fn expire(&mut self) {
        self.good.clear();
    }

    pub(super) fn issued(&self) -> usize {
        self.issued
    }

    /// Answers a request for a token.
    pub(super) fn give(&mut self, tenant: &str, body: &[u8]) -> Result<Response, Refusal> {
        let form: HashMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
        let given = |name: &str| form.get(name).map(String::as_str);
        if tenant != TENANT {
            return Ok(refused(90_002, "invalid_request", "Tenant not found."));
        }
        if given("client_id") != Some(CLIENT_ID) {
            return Ok(refused(
                700_016,
                "unauthorized_client",
                "Application not found in the directory.",
            ));
        }
        if given("grant_type") != Some("client_credentials") {
            return Ok(refused(
                70_003,
                "unsupported_grant_type",
                "Only client_credentials is known.",
            ));
        }
        let audience = match given("scope") {
            Some("https://management.azure.com/.default") => "https://management.azure.com",
            Some("https://storage.azure.com/.default") => "https://storage.azure.com",
            _ => {
                return Ok(refused(
                    70_011,
                    "invalid_scope",
                    "The provided value for scope is not valid.",
                ));
            }
        };
        match (given("client_secret"), given("client_assertion")) {
            (Some(SECRET), None) if self.assertion.is_none() => {}
            (None, Some(assertion))
                if self.assertion.as_deref() == Some(assertion)
                    && given("client_assertion_type")
                        == Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer") => {}
            (Some("expired"), None) => {
                return Ok(refused(
                    7_000_222,
                    "invalid_client",
                    "The provided client secret keys are expired.",
                ));
            }
            (None, Some(_)) => {
                return Ok(refused(
                    70_021,
                    "invalid_client",
                    "No matching federated identity record found.",
                ));
            }
            _ => return Ok(refused(7_000_215, "invalid_client", "Invalid client secret provided.")),
        }
        let token = self.grant(audience);
        let body =
            json!({"token_type": "Bearer", "expires_in": LIFETIME, "ext_expires_in": LIFETIME, "access_token": token});
        Ok(reply::document(200, &body))
    }

    /// A token for this audience.
    pub(super) fn grant(&mut self, audience: &str) -> String {
        let token = jwt(audience);
        if audience.contains("management") {
            self.good.insert(token.clone());
        }
        self.issued += 1;
        token
    }

    /// Accepts a request with a token for Resource Manager.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = shown.and_then(|shown| shown.strip_prefix("Bearer "));
        match token {
            None => Err(Refusal::new(
                401,
                "AuthenticationFailed",
                "The 'Authorization' header is missing.",
            )),
            Some(token) if self.good.contains(token) => Ok(()),
            Some(_) => Err(Refusal::new(
                401,
                "ExpiredAuthenticationToken",
                "The access token is of no use here.",
            )),
        }
    }
}

fn refused(code: u32, error: &str, words: &str) -> Response {
    let trace = Uuid::new_v4().to_string();
    let description = format!("AADSTS{code}: {words} Trace ID: {trace}\r\nTimestamp: now");
    let body = json!({"error": error, "error_description": description, "error_codes": [code], "trace_id": trace});
    reply::document(if error == "invalid_client" { 401 } else { 400 }, &body)
}

/// A token with the claims that Azurite looks at. Neither it nor this server looks at the signature.
pub(super) fn jwt(audience: &str) -> String {
    let now = Timestamp::now().as_second();
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(&json!({"typ": "JWT", "alg": "RS256"}));
    let claims = encode(&json!({
        "aud": audience,
        "iss": format!("https://sts.windows.net/{TENANT}/"),
        "nbf": now - 60,
        "iat": now - 60,
        "exp": now + LIFETIME,
        "appid": CLIENT_ID,
        "tid": TENANT,
        "jti": Uuid::new_v4().to_string(),
    }));
    format!("{header}.{claims}.c2lnbmF0dXJl")
}
