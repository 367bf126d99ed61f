//! Credentials: read from the file, and shared by all sessions, so that one token serves all images.
//!
//! The client library asks a token endpoint once at a time for each credentials object, waits ten seconds after a
//! transient failure, and reports that failure to everybody meanwhile. Sessions with credentials of their own would each
//! ask. The library does not pass on the endpoint's `Retry-After`: ten seconds is all the pause an endpoint gets.

use std::path::{Path, PathBuf};

use google_cloud_auth::credentials::service_account::AccessSpecifier;
use google_cloud_auth::credentials::{AccessTokenCredentials, external_account, service_account};
use serde_json::Value;
use tokio::sync::Mutex;

use super::error::Error;
use crate::base::http;

/// The scope of tokens. Roles decide what the account may do.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// The credentials of one provider.
pub(super) struct SharedCredentials {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of credentials objects so far.
    built: u64,
    current: Option<Generation>,
}

/// One credentials object. The library gives it up for good once the endpoint refuses it; then another one follows.
#[derive(Clone)]
pub(super) struct Generation {
    number: u64,
    /// The content of the file that it was built from.
    json: Vec<u8>,
    pub(super) credentials: AccessTokenCredentials,
}

impl SharedCredentials {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: Mutex::default(),
        }
    }

    /// Credentials whose first token request was answered. A refusal of new credentials is left to the first call to report.
    ///
    /// The library has no time-out: one request that is never answered would keep all calls of its credentials waiting.
    pub(super) async fn get(&self) -> Result<Generation, Error> {
        let mut failed = None;
        loop {
            let (generation, is_new) = self.current(failed).await?;
            match tokio::time::timeout(http::SILENCE, generation.credentials.access_token()).await {
                Ok(Ok(_)) => return Ok(generation),
                Ok(Err(error)) if error.is_transient() || is_new => return Ok(generation),
                Ok(Err(_)) => failed = Some(generation.number),
                Err(_) => return Ok(self.current(Some(generation.number)).await?.0),
            }
        }
    }

    /// Drops credentials whose token a service refused, so that the next session asks for another token.
    pub(super) async fn reject(&self, refused: &Generation) {
        let mut state = self.state.lock().await;
        if state
            .current
            .as_ref()
            .is_some_and(|current| current.number == refused.number)
        {
            state.current = None;
        }
    }

    /// The present credentials, and whether this call built them. The file is read each time: it may have been replaced.
    async fn current(&self, failed: Option<u64>) -> Result<(Generation, bool), Error> {
        let mut state = self.state.lock().await;
        let json = std::fs::read(&self.path).map_err(|error| unusable(&self.path, error.to_string()))?;
        if let Some(generation) = &state.current
            && generation.json == json
            && failed != Some(generation.number)
        {
            return Ok((generation.clone(), false));
        }
        state.built += 1;
        let generation = Generation {
            number: state.built,
            credentials: build(&self.path, &json)?,
            json,
        };
        state.current = Some(generation.clone());
        Ok((generation, true))
    }
}

fn unusable(path: &Path, why: String) -> Error {
    Error::Credentials {
        path: path.to_owned(),
        why,
    }
}

/// Credentials from a service account's key, or from the configuration of a workload identity.
fn build(path: &Path, json: &[u8]) -> Result<AccessTokenCredentials, Error> {
    // The parser's own error is left out: it may quote the key.
    let json: Value = serde_json::from_slice(json).map_err(|_| unusable(path, "it is not JSON".to_owned()))?;
    let kind = json.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let built = match kind.as_str() {
        "service_account" => service_account::Builder::new(json)
            .with_access_specifier(AccessSpecifier::from_scopes([SCOPE]))
            .build_access_token_credentials(),
        "external_account" => external_account::Builder::new(json)
            .with_scopes([SCOPE])
            .build_access_token_credentials(),
        _ => {
            let why = format!("its type is {kind:?}, and a service_account or an external_account is needed");
            return Err(unusable(path, why));
        }
    };
    built.map_err(|_| unusable(path, format!("something is missing in it, or it is no {kind}")))
}
