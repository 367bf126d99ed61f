//! Our identity: [tokens](https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow)
//! for a client secret, or for a federated assertion.
//!
//! The request is written here because the SDK's own credentials insist on an authority with https, so nothing on loopback
//! could stand in for it.

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

/// The scope of tokens for Resource Manager.
pub(super) const RESOURCE_MANAGER: &str = "https://management.azure.com/.default";
/// The scope of tokens for blobs.
pub(super) const STORAGE: &str = "https://storage.azure.com/.default";
/// A token is renewed this long before its end, or in the last quarter of a short life.
const MARGIN: Duration = Duration::from_secs(300);
/// Upper bound on the lifetime of a token. Tokens live about an hour.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The lifetime of a token whose issuer states none.
const UNSAID_LIFETIME: Duration = Duration::from_secs(300);
/// The type of a federated assertion
/// ([RFC 7523](https://www.rfc-editor.org/rfc/rfc7523#section-2.2)).
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The application that the program runs as.
#[derive(Debug)]
pub(super) struct Identity {
    http: Client,
    endpoint: Url,
    credentials: Credentials,
    state: Mutex<State>,
}

/// The tokens of all scopes, and the pause that their endpoint asked for. One request is in flight at a time: the lock is
/// held while it is.
#[derive(Debug, Default)]
struct State {
    tokens: HashMap<&'static str, Token>,
    pause: Option<Pause>,
}

/// The endpoint refused a request, of whatever scope, and asked for no other one before this time.
#[derive(Debug)]
struct Pause {
    until: tokio::time::Instant,
    status: u16,
    said: String,
}

#[derive(Debug)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

#[derive(Deserialize)]
struct Issued {
    access_token: String,
    #[serde(default)]
    expires_in: serde_json::Value,
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
            state: Mutex::default(),
        }
    }

    /// The credentials from the environment.
    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The end of the credentials' life, in a few words. Entra tells applications nothing about their own secrets.
    pub(super) fn lifetime(&self) -> String {
        match &self.credentials.proof {
            Proof::Secret(_) => format!(
                "see when its secrets expire with \"az ad app credential list --id {}\"",
                self.credentials.client_id
            ),
            Proof::TokenFile(path) => {
                let assertion = std::fs::read_to_string(path).ok();
                match assertion.as_deref().and_then(expiry) {
                    Some(expiry) => format!("the federated token is valid until {expiry}"),
                    None => "the federated token does not state its expiry".to_owned(),
                }
            }
        }
    }

    /// The value of an `Authorization` header for this scope.
    pub(super) async fn token(&self, scope: &'static str) -> Result<HeaderValue, Error> {
        let mut state = self.state.lock().await;
        if let Some(token) = state.tokens.get(scope).filter(|token| Instant::now() < token.until) {
            return Ok(token.header.clone());
        }
        let mut waits = Policy::CALL.start("azure token");
        let token = loop {
            // The pause that the endpoint asked another scope's request for fails this one too, unless it is short.
            let outcome = match self.pause(&state) {
                Some(error) => Err(error),
                None => self.fetch(scope).await,
            };
            let error = match outcome {
                Ok(token) => break token,
                Err(error) => error,
            };
            if let Error::Identity {
                said,
                status,
                after: Some(after),
                ..
            } = &error
                && error.class().is_transient()
            {
                let until = tokio::time::Instant::now() + *after;
                let (status, said) = (*status, said.clone());
                state.pause = Some(Pause { until, status, said });
            }
            let Some(wait) = waits.after(error.class()) else {
                return Err(error);
            };
            tracing::debug!(%error, wait_ms = wait.as_millis(), "asking for a token again");
            tokio::time::sleep(wait).await;
        };
        let header = token.header.clone();
        state.pause = None;
        state.tokens.insert(scope, token);
        Ok(header)
    }

    /// Drops a token that was refused before its time, so that the next call asks for another one.
    pub(super) async fn forget(&self, scope: &'static str, refused: &HeaderValue) {
        let tokens = &mut self.state.lock().await.tokens;
        if tokens.get(scope).is_some_and(|token| token.header == refused) {
            tokens.remove(scope);
        }
    }

    /// The refusal that the endpoint's last answer stands for, as long as the pause lasts that it asked for.
    fn pause(&self, state: &State) -> Option<Error> {
        let Pause { until, status, said } = state.pause.as_ref()?;
        let after = until.checked_duration_since(tokio::time::Instant::now())?;
        (!after.is_zero()).then(|| Error::Identity {
            client: self.credentials.client_id.clone(),
            said: said.clone(),
            advice: "",
            status: *status,
            after: Some(after),
        })
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
        let after = http::retry_after(response.headers());
        let bytes = response.bytes().await.map_err(lost)?;
        if !status.is_success() {
            let refusal = serde_json::from_slice(&bytes).unwrap_or_default();
            return Err(refused(client, status.as_u16(), &refusal, after));
        }
        // The parser's own message would quote the token.
        let issued: Issued = serde_json::from_slice(&bytes).map_err(|_| Error::odd(&what(), "no token"))?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", issued.access_token))
            .map_err(|_| Error::odd(&what(), "no token"))?;
        header.set_sensitive(true);
        let lifetime = lifetime(&issued.expires_in);
        Ok(Token {
            header,
            until: asked + lifetime - MARGIN.min(lifetime / 4),
        })
    }
}

/// A token's lifetime. Entra's older endpoint writes it as a text, and RFC 6749 only recommends it.
fn lifetime(expires_in: &serde_json::Value) -> Duration {
    let text = expires_in.as_str().and_then(|text| text.trim().parse::<f64>().ok());
    let seconds = expires_in
        .as_f64()
        .or(text)
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
    seconds.map_or(UNSAID_LIFETIME, |seconds| {
        Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64()))
    })
}

/// The expiry of a [JWT](https://www.rfc-editor.org/rfc/rfc7519#section-4.1.4). Its signature is not checked.
fn expiry(token: &str) -> Option<Timestamp> {
    let claims = BASE64URL_NOPAD.decode(token.split('.').nth(1)?.as_bytes()).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Timestamp::from_second(claims["exp"].as_i64()?).ok()
}

/// The authority's refusal as an error, with advice by its
/// [code](https://learn.microsoft.com/entra/identity-platform/reference-error-codes).
fn refused(client: &str, status: u16, refusal: &Refusal, after: Option<Duration>) -> Error {
    let code = refusal.error_codes.first().copied().unwrap_or_default();
    let advice = match code {
        7_000_222 => "; the client secret has expired: issue a new one and set AZURE_SECRET",
        7_000_215 => "; check AZURE_SECRET: it must be the secret's value, not its id",
        700_016 => "; check AZURE_CLIENT_ID and AZURE_TENANT",
        90_002 => "; check AZURE_TENANT",
        700_024 => {
            "; the federated token has expired: the service that writes AZURE_FEDERATED_TOKEN_FILE no longer renews it"
        }
        70_021 | 700_211 | 700_212 | 700_213 => {
            "; the application has no federated credential that fits AZURE_FEDERATED_TOKEN_FILE"
        }
        _ => "",
    };
    let said = match (&*refusal.error_description, &*refusal.error) {
        ("", "") => format!("the authority answered {status}"),
        ("", error) => quote(error),
        // The rest is numbers for Microsoft's support.
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
        after,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::failure::Class;

    #[test]
    fn a_federated_token_may_state_its_expiry() {
        let token = |claims: &str| format!("e30.{}.c2ln\n", BASE64URL_NOPAD.encode(claims.as_bytes()));
        let found = expiry(&token(r#"{"exp": 1761523200, "sub": "x"}"#));
        assert_eq!(found, "2025-10-27T00:00:00Z".parse().ok());
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
    fn a_lifetime_is_a_number_a_text_or_absent() {
        for (written, seconds) in [
            (json!(3599), 3599),
            (json!("3599"), 3599),
            (json!(3599.9), 3599),
            (json!(1e30), 86400),
            (json!(-1), 300),
            (json!("soon"), 300),
            (json!(null), 300),
        ] {
            assert_eq!(lifetime(&written).as_secs(), seconds, "{written}");
        }
    }

    #[test]
    fn an_expired_secret_is_reported_and_needs_an_operator() {
        let refusal = Refusal {
            error: "invalid_client".to_owned(),
            error_description: "AADSTS7000222: The keys are expired.\r\nTrace ID: 1\r\nTimestamp: now".to_owned(),
            error_codes: vec![7_000_222],
        };
        let error = refused("app", 401, &refusal, None);
        assert_eq!(
            error.to_string(),
            "get a token for client app: AADSTS7000222: The keys are expired; the client secret has expired: issue a new \
             one and set AZURE_SECRET"
        );
        assert_eq!(error.class(), Class::Everything);
        let busy = refused("app", 503, &Refusal::default(), None);
        assert_eq!(busy.class(), Class::TRANSIENT);
        assert_eq!(
            busy.to_string(),
            "get a token for client app: the authority answered 503"
        );
    }
}
