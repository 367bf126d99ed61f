//! Who we are to Azure: [tokens](https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow)
//! for a client secret, or for a federated assertion.
//!
//! One request, written here: the SDK's own credentials insist on an authority with https, so nothing on loopback could
//! stand in for it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use reqwest::Client;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use super::error::Error;
use crate::base::failure::{Classified, quote};
use crate::base::http;
use crate::base::retry::Policy;
use crate::config::azure::{Credentials, Proof};

/// Tokens for Resource Manager.
pub(super) const RESOURCE_MANAGER: &str = "https://management.azure.com/.default";
/// Tokens for blobs.
pub(super) const STORAGE: &str = "https://storage.azure.com/.default";
/// A token is renewed this long before its end, or in the last quarter of a short life.
const MARGIN: Duration = Duration::from_secs(300);
/// Tokens live about an hour; one that is said to live longer than a day is renewed all the same.
const LONGEST: u64 = 24 * 60 * 60;
/// How an assertion is to be read
/// ([RFC 7523](https://www.rfc-editor.org/rfc/rfc7523#section-2.2)).
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The application that the program runs as.
#[derive(Debug)]
pub(super) struct Identity {
    http: Client,
    endpoint: Url,
    credentials: Credentials,
    tokens: Mutex<HashMap<&'static str, Token>>,
}

#[derive(Debug)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

#[derive(Deserialize)]
struct Issued {
    access_token: String,
    expires_in: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusal {
    error: String,
    error_description: String,
    error_codes: Vec<u64>,
}

impl Identity {
    pub(super) fn new(http: Client, authority: &Url, credentials: Credentials) -> Self {
        let mut endpoint = authority.clone();
        if let Ok(mut segments) = endpoint.path_segments_mut() {
            let path = [credentials.tenant_id.as_str(), "oauth2", "v2.0", "token"];
            segments.pop_if_empty().extend(path);
        }
        Self {
            http,
            endpoint,
            credentials,
            tokens: Mutex::default(),
        }
    }

    /// What the environment says about the account.
    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// How long the credentials are good, in a few words. Entra tells applications nothing about their own secrets.
    pub(super) fn lifetime(&self) -> String {
        match &self.credentials.proof {
            Proof::Secret(_) => format!(
                "see when its secrets expire with \"az ad app credential list --id {}\"",
                self.credentials.client_id
            ),
            Proof::TokenFile(path) => {
                let assertion = std::fs::read_to_string(path).ok();
                match assertion.as_deref().and_then(expiry) {
                    Some(expiry) => format!("the federated token is good until {expiry}"),
                    None => "the federated token does not say how long it is good".to_owned(),
                }
            }
        }
    }

    /// The value of an `Authorization` header for this scope.
    pub(super) async fn token(&self, scope: &'static str) -> Result<HeaderValue, Error> {
        // The lock is held, so that many requests ask for one token.
        let mut tokens = self.tokens.lock().await;
        if let Some(token) = tokens.get(scope).filter(|token| Instant::now() < token.until) {
            return Ok(token.header.clone());
        }
        let token = Policy::CALL
            .run("azure token", Error::class, || self.fetch(scope))
            .await?;
        let header = token.header.clone();
        tokens.insert(scope, token);
        Ok(header)
    }

    /// A token was refused that should have been good.
    pub(super) async fn forget(&self, scope: &'static str, refused: &HeaderValue) {
        let mut tokens = self.tokens.lock().await;
        if tokens.get(scope).is_some_and(|token| token.header == refused) {
            tokens.remove(scope);
        }
    }

    async fn fetch(&self, scope: &str) -> Result<Token, Error> {
        let client = &self.credentials.client_id;
        let what = || format!("get a token for client {client}");
        let lost = |source: reqwest::Error| Error::lost(&what(), source);
        let body = {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "client_credentials")
                .append_pair("client_id", client)
                .append_pair("scope", scope);
            match &self.credentials.proof {
                Proof::Secret(secret) => {
                    form.append_pair("client_secret", secret.expose());
                }
                Proof::TokenFile(path) => {
                    let assertion = std::fs::read_to_string(path).map_err(|source| Error::TokenFile {
                        path: path.display().to_string(),
                        source,
                    })?;
                    form.append_pair("client_assertion_type", ASSERTION)
                        .append_pair("client_assertion", assertion.trim());
                }
            }
            form.finish()
        };
        let asked = Instant::now();
        let request = self
            .http
            .post(self.endpoint.clone())
            .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .timeout(http::CALL)
            .body(body);
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(lost)?;
        if !status.is_success() {
            let refusal = serde_json::from_slice(&bytes).unwrap_or_default();
            return Err(refused(client, status.as_u16(), &refusal));
        }
        // The parser's own message would quote the token.
        let issued: Issued = serde_json::from_slice(&bytes).map_err(|_| Error::odd(&what(), "no token"))?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", issued.access_token))
            .map_err(|_| Error::odd(&what(), "no token"))?;
        header.set_sensitive(true);
        let lifetime = Duration::from_secs(issued.expires_in.min(LONGEST));
        Ok(Token {
            header,
            until: asked + lifetime - MARGIN.min(lifetime / 4),
        })
    }
}

/// When a [JWT](https://www.rfc-editor.org/rfc/rfc7519#section-4.1.4) expires. Whether it is genuine is not for us to say.
fn expiry(token: &str) -> Option<Timestamp> {
    let claims = BASE64URL_NOPAD.decode(token.split('.').nth(1)?.as_bytes()).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Timestamp::from_second(claims["exp"].as_i64()?).ok()
}

/// What the authority said, and
/// [what its codes](https://learn.microsoft.com/entra/identity-platform/reference-error-codes) mean to an operator.
fn refused(client: &str, status: u16, refusal: &Refusal) -> Error {
    let code = refusal.error_codes.first().copied().unwrap_or_default();
    let advice = match code {
        7_000_222 => "; the client secret has expired: issue a new one and set AZURE_SECRET",
        7_000_215 => "; check AZURE_SECRET: it must be the secret's value, not its id",
        700_016 => "; check AZURE_CLIENT_ID and AZURE_TENANT",
        90_002 => "; check AZURE_TENANT",
        700_024 => "; the federated token has expired: whoever writes AZURE_FEDERATED_TOKEN_FILE has stopped doing so",
        70_021 | 700_211 | 700_212 | 700_213 => {
            "; the application has no federated credential that fits AZURE_FEDERATED_TOKEN_FILE"
        }
        _ => "",
    };
    let said = match (&*refusal.error_description, &*refusal.error) {
        ("", "") => format!("the authority answered {status}"),
        ("", error) => quote(error),
        // What follows is numbers for Microsoft's support.
        (description, _) => {
            let first = description.lines().next().unwrap_or_default();
            quote(first.split(" Trace ID:").next().unwrap_or_default())
        }
    };
    Error::Identity {
        client: client.to_owned(),
        said,
        advice,
        status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::Class;

    #[test]
    fn a_federated_token_may_tell_its_end() {
        let token = |claims: &str| format!("e30.{}.c2ln\n", BASE64URL_NOPAD.encode(claims.as_bytes()));
        let told = expiry(&token(r#"{"exp": 1761523200, "sub": "x"}"#));
        assert_eq!(told, "2025-10-27T00:00:00Z".parse().ok());
        for odd in [
            "",
            "a.b.c",
            "header.claims.signature",
            &token("{}"),
            &token(r#"{"exp": "soon"}"#),
        ] {
            assert_eq!(expiry(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn an_expired_secret_is_told_and_needs_an_operator() {
        let refusal = Refusal {
            error: "invalid_client".to_owned(),
            error_description: "AADSTS7000222: The keys are expired.\r\nTrace ID: 1\r\nTimestamp: now".to_owned(),
            error_codes: vec![7_000_222],
        };
        let error = refused("app", 401, &refusal);
        assert_eq!(
            error.to_string(),
            "get a token for client app: AADSTS7000222: The keys are expired; the client secret has expired: issue a new \
             one and set AZURE_SECRET"
        );
        assert_eq!(error.class(), Class::Everything);
        let busy = refused("app", 503, &Refusal::default());
        assert_eq!(busy.class(), Class::TRANSIENT);
        assert_eq!(
            busy.to_string(),
            "get a token for client app: the authority answered 503"
        );
    }
}
