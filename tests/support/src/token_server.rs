//! A token server for docker-registry: gives signed bearer tokens for a user name and password.
//! Protocol: <https://distribution.github.io/distribution/spec/auth/token/>.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::http_server::HttpServer;

/// The registry accepts a token this long after its end (`Leeway` in its token package), so tokens are dated back.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);

/// How long tokens live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// When the registry stops to accept a token.
    pub real: Duration,
    /// The lifetime announced to the client; more than the real one makes tokens fail in mid-push.
    pub announced: Duration,
}

impl Default for Lifetime {
    fn default() -> Self {
        let five_minutes = Duration::from_secs(300);
        Self {
            real: five_minutes,
            announced: five_minutes,
        }
    }
}

/// A running token server.
pub struct TokenServer {
    server: HttpServer,
    state: Arc<Tokens>,
}

struct Tokens {
    authorization: String,
    lifetime: Lifetime,
    key: EcdsaKeyPair,
    certificate: rcgen::Certificate,
    issued: AtomicU64,
    refused: AtomicU64,
}

impl TokenServer {
    /// The registry's name for itself.
    pub const SERVICE: &str = "test-registry";
    /// The token server's name for itself.
    pub const ISSUER: &str = "test-issuer";

    /// Starts a server that knows one user.
    pub async fn start(user: &str, password: &str, lifetime: Lifetime) -> Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["token.test".to_owned()])?.self_signed(&key)?;
        let state = Arc::new(Tokens {
            authorization: format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))),
            lifetime,
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der())?,
            certificate,
            issued: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let router = Router::new().route("/token", get(token)).with_state(state.clone());
        Ok(Self {
            server: HttpServer::start(router).await?,
            state,
        })
    }

    /// Where tokens are asked for.
    pub fn url(&self) -> String {
        format!("{}/token", self.server.url())
    }

    /// The certificate that the registry must trust, PEM.
    pub fn certificate(&self) -> String {
        self.state.certificate.pem()
    }

    /// Tokens given so far.
    pub fn issued(&self) -> u64 {
        self.state.issued.load(Ordering::SeqCst)
    }

    /// Requests refused so far, for a wrong password or for none.
    pub fn refused(&self) -> u64 {
        self.state.refused.load(Ordering::SeqCst)
    }
}

async fn token(State(tokens): State<Arc<Tokens>>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes().to_vec());
    if given.as_deref() != Some(tokens.authorization.as_bytes()) {
        tokens.refused.fetch_add(1, Ordering::SeqCst);
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({"errors": [{"code": "UNAUTHORIZED"}]})),
        )
            .into_response();
    }
    match tokens.issue(&query.unwrap_or_default()) {
        Ok(answer) => {
            tokens.issued.fetch_add(1, Ordering::SeqCst);
            Json(answer).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}")).into_response(),
    }
}

impl Tokens {
    fn issue(&self, query: &str) -> Result<Value> {
        let mut access = Vec::new();
        let mut audience = String::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "service" => audience = value.into_owned(),
                // Several scopes come as several parameters or in one, divided by spaces.
                "scope" => {
                    for scope in value.split_whitespace() {
                        access.push(grant(scope)?);
                    }
                }
                _ => {}
            }
        }
        let now = Timestamp::now();
        let end = now + SignedDuration::try_from(self.lifetime.real)? - LEEWAY;
        let claims = json!({
            "iss": TokenServer::ISSUER,
            "sub": "test",
            "aud": audience,
            "nbf": (now - LEEWAY * 2).as_second(),
            "iat": (now - LEEWAY * 2).as_second(),
            "exp": end.as_second(),
            "jti": Uuid::new_v4().to_string(),
            "access": access,
        });
        let header = json!({
            "typ": "JWT",
            "alg": "ES256",
            "x5c": [BASE64_STANDARD.encode(self.certificate.der())],
        });
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes())?;
        Ok(json!({
            "token": format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)),
            "expires_in": self.lifetime.announced.as_secs(),
            "issued_at": now.to_string(),
        }))
    }
}

/// `repository:name:pull,push` as the claim that allows it. Names may hold colons, in a host's port.
fn grant(scope: &str) -> Result<Value> {
    let (kind, rest) = scope.split_once(':').context("scope without name")?;
    let (name, actions) = rest.rsplit_once(':').context("scope without actions")?;
    Ok(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
}
