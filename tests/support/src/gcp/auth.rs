//! Accounts that are authenticated: a service account with a key of its own, and a workload identity whose token is exchanged.
//!
//! Tokens are those that [Google takes](https://developers.google.com/identity/protocols/oauth2/service-account): signed by
//! the account itself (RS256), or given by the token endpoint for such a signature, or exchanged.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

const EMAIL: &str = "uploader@test-project.iam.gserviceaccount.com";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// The audience of an assertion, whatever address it is sent to.
const TOKEN_AUDIENCE: &str = "https://oauth2.googleapis.com/token";
/// The audience of the workload identity.
const AUDIENCE: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/test/providers/test";
/// The token that the workload has from its own platform.
const SUBJECT_TOKEN: &str = "token-of-the-platform";
/// Google takes tokens of an hour, and forgives clocks a minute.
const LONGEST: i64 = 3660;

pub(super) struct Accounts {
    key: KeyPair,
    key_id: String,
    tokens: HashSet<String>,
}

impl Accounts {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            key: KeyPair::generate(KeySize::Rsa2048).context("make a key")?,
            key_id: Uuid::new_v4().simple().to_string(),
            tokens: HashSet::new(),
        })
    }

    /// Writes the key file of the service account. `token_uri` is for clients that ask the token endpoint.
    pub(super) fn write_key(&self, folder: &Path, url: &str) -> Result<PathBuf> {
        let der: Pkcs8V1Der<'_> = self.key.as_der().context("export the key")?;
        let body = BASE64_STANDARD.encode(der.as_ref());
        let lines: Vec<_> = body.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let key = json!({
            "type": "service_account",
            "project_id": super::PROJECT,
            "private_key_id": self.key_id,
            "private_key": format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")),
            "client_email": EMAIL,
            "client_id": "1",
            "token_uri": format!("{url}/token"),
            "universe_domain": "googleapis.com",
        });
        write(folder, "service-account.json", &key.to_string())
    }

    /// Writes the configuration of the workload identity, and the file with its platform's token.
    pub(super) fn write_workload(folder: &Path, url: &str) -> Result<PathBuf> {
        let token = write(folder, "platform-token", SUBJECT_TOKEN)?;
        let config = json!({
            "type": "external_account",
            "audience": AUDIENCE,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{url}/sts"),
            "credential_source": {"file": token},
        });
        write(folder, "workload-identity.json", &config.to_string())
    }

    /// Authenticates a request.
    pub(super) fn admit(&self, authorization: Option<&str>) -> Result<()> {
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let token = token.context("no bearer token")?;
        if self.tokens.contains(token) {
            return Ok(());
        }
        let claims = self.verify(token)?;
        ensure!(
            claims["scope"]
                .as_str()
                .is_some_and(|scope| scope.split(' ').any(|scope| scope == SCOPE)),
            "no scope for this: {claims}"
        );
        Ok(())
    }

    /// [The token endpoint](https://developers.google.com/identity/protocols/oauth2/service-account#httprest).
    pub(super) fn token(&mut self, form: &HashMap<String, String>, url: &str) -> Result<Value> {
        expect(form, "grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")?;
        let claims = self.verify(form.get("assertion").context("no assertion")?)?;
        let own = format!("{url}/token");
        ensure!(
            [own.as_str(), TOKEN_AUDIENCE]
                .iter()
                .any(|audience| claims["aud"] == *audience),
            "the assertion is for {}",
            claims["aud"]
        );
        ensure!(
            claims["scope"].as_str().is_some_and(|scope| scope.contains(SCOPE)),
            "no scope"
        );
        Ok(json!({"access_token": self.issue(), "expires_in": 3599, "token_type": "Bearer"}))
    }

    /// [The exchange](https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token) for a workload's token.
    pub(super) fn exchange(&mut self, form: &HashMap<String, String>) -> Result<Value> {
        expect(form, "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")?;
        expect(form, "audience", AUDIENCE)?;
        expect(form, "scope", SCOPE)?;
        expect(
            form,
            "requested_token_type",
            "urn:ietf:params:oauth:token-type:access_token",
        )?;
        expect(form, "subject_token_type", "urn:ietf:params:oauth:token-type:jwt")?;
        expect(form, "subject_token", SUBJECT_TOKEN)?;
        Ok(json!({
            "access_token": self.issue(),
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "token_type": "Bearer",
            "expires_in": 3599,
        }))
    }

    fn issue(&mut self) -> String {
        let token = format!("ya29.{}", Uuid::new_v4().simple());
        self.tokens.insert(token.clone());
        token
    }

    /// The claims of what the account signed.
    fn verify(&self, token: &str) -> Result<Value> {
        let (signed, signature) = token.rsplit_once('.').context("no signature")?;
        let (header, claims) = signed.split_once('.').context("no claims")?;
        let decode = |part: &str| -> Result<Vec<u8>> { Ok(BASE64_URL_SAFE_NO_PAD.decode(part)?) };
        let header: Value = serde_json::from_slice(&decode(header)?)?;
        ensure!(
            header["alg"] == "RS256" && header["kid"] == self.key_id,
            "signed otherwise: {header}"
        );
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.key.public_key().as_ref());
        if key.verify(signed.as_bytes(), &decode(signature)?).is_err() {
            bail!("the signature is wrong");
        }
        let claims: Value = serde_json::from_slice(&decode(claims)?)?;
        ensure!(claims["iss"] == EMAIL, "of somebody else: {claims}");
        let number = |name: &str| claims[name].as_i64().with_context(|| format!("no {name}"));
        let (issued, end, now) = (number("iat")?, number("exp")?, Timestamp::now().as_second());
        ensure!(
            issued <= now + 60 && now < end && end - issued <= LONGEST,
            "not valid now: {claims}"
        );
        Ok(claims)
    }
}

fn expect(form: &HashMap<String, String>, name: &str, value: &str) -> Result<()> {
    let found = form.get(name).map_or("", String::as_str);
    ensure!(found == value, "{name} is {found:?}");
    Ok(())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
