//! Who we are to a registry: basic authentication, or
//! [tokens](https://distribution.github.io/distribution/spec/auth/token/) that live a few minutes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::{Host, Url};

use super::error::Error;
use crate::base::http;
use crate::base::secret::Secret;

/// What a token server that says nothing means, by its specification.
const LIFETIME: u64 = 60;
/// A token that is said to live longer is renewed all the same.
const LONGEST: u64 = 24 * 60 * 60;
/// A token is renewed this long before its end, or in the last quarter of a short life.
const MARGIN: Duration = Duration::from_secs(15);
/// Tokens have a few kB.
const LIMIT: usize = 1 << 20;

/// The way to be let in, learnt from the registry's own refusals.
#[derive(Debug)]
pub(super) struct Auth {
    user: Option<(String, Secret)>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scheme: Option<Scheme>,
    tokens: HashMap<String, Token>,
}

#[derive(Debug, Clone)]
enum Scheme {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

#[derive(Debug)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

#[derive(Deserialize)]
struct Issued {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) fn new(user: Option<(String, Secret)>) -> Self {
        Self {
            user,
            state: Mutex::default(),
        }
    }

    /// What to show with a request; nothing before the registry has asked for something.
    pub(super) async fn show(
        &self,
        http: &Client,
        scope: &str,
        request: RequestBuilder,
    ) -> Result<RequestBuilder, Error> {
        let mut state = self.state.lock().await;
        let (realm, service) = match &state.scheme {
            None => return Ok(request),
            Some(Scheme::Basic) => return Ok(self.sign(request)),
            Some(Scheme::Bearer { realm, service }) => (realm.clone(), service.clone()),
        };
        if let Some(token) = state.tokens.get(scope).filter(|token| Instant::now() < token.until) {
            return Ok(request.header(reqwest::header::AUTHORIZATION, token.header.clone()));
        }
        // The lock is held, so that many requests ask for one token.
        let token = self.fetch(http, &realm, service.as_deref(), scope).await?;
        let request = request.header(reqwest::header::AUTHORIZATION, token.header.clone());
        state.tokens.insert(scope.to_owned(), token);
        Ok(request)
    }

    /// Learns from a 401. The next [`Self::show`] does what the registry asked for.
    pub(super) async fn challenged(&self, scope: &str, headers: &HeaderMap) {
        let mut state = self.state.lock().await;
        // Whatever was shown is not good any more.
        state.tokens.remove(scope);
        if let Some(scheme) = scheme(headers) {
            state.scheme = Some(scheme);
        }
    }

    /// With user and password, where there are any.
    fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.user {
            Some((user, password)) => request.basic_auth(user, Some(password.expose())),
            None => request,
        }
    }

    async fn fetch(&self, http: &Client, realm: &Url, service: Option<&str>, scope: &str) -> Result<Token, Error> {
        if !is_private(realm) {
            return Err(Error::Realm(realm.to_string()));
        }
        let mut url = realm.clone();
        url.query_pairs_mut().append_pair("scope", scope);
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let what = || format!("get a token for {scope} from {}", realm.host_str().unwrap_or_default());
        let lost = |source: reqwest::Error| Error::lost(what(), source);
        let asked = Instant::now();
        let mut response = self
            .sign(http.get(url))
            .timeout(http::CALL)
            .send()
            .await
            .map_err(lost)?;
        if !response.status().is_success() {
            return Err(Error::of(what(), response).await);
        }
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(lost)? {
            body.extend_from_slice(&bytes);
            if body.len() > LIMIT {
                return Err(Error::odd(what(), "a token of more than 1 MiB"));
            }
        }
        // The parser's own message would quote the token.
        let issued: Issued = serde_json::from_slice(&body).map_err(|_| Error::odd(what(), "no token"))?;
        let token = issued.token.or(issued.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| Error::odd(what(), "no token"))?;
        let mut header =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Error::odd(what(), "no token"))?;
        header.set_sensitive(true);
        let lifetime = issued.expires_in.filter(|seconds| *seconds > 0).unwrap_or(LIFETIME);
        let lifetime = Duration::from_secs(lifetime.min(LONGEST));
        Ok(Token {
            header,
            until: asked + lifetime - MARGIN.min(lifetime / 4),
        })
    }
}

/// Whether credentials may travel there.
fn is_private(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

/// What the registry asks for; tokens rather than passwords, if it takes both.
fn scheme(headers: &HeaderMap) -> Option<Scheme> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let challenges = value
            .to_str()
            .ok()
            .and_then(|value| http_auth::parse_challenges(value).ok());
        for challenge in challenges.unwrap_or_default() {
            let value = |name: &str| {
                let parameter = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                parameter.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Scheme::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm").and_then(|realm| Url::parse(&realm).ok())
            {
                let service = value("service");
                return Some(Scheme::Bearer { realm, service });
            }
        }
    }
    basic
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (WWW_AUTHENTICATE, HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let both = headers(&[
            "Basic realm=\"r\"",
            "bearer realm=\"https://auth.example/token\",service=\"a \\\"b\\\"\"",
        ]);
        let Some(Scheme::Bearer { realm, service }) = scheme(&both) else {
            panic!("{:?}", scheme(&both));
        };
        assert_eq!(
            (realm.as_str(), service.as_deref()),
            ("https://auth.example/token", Some("a \"b\""))
        );
        assert!(matches!(scheme(&headers(&["Basic realm=\"r\""])), Some(Scheme::Basic)));
        assert!(scheme(&headers(&["Negotiate"])).is_none());
        assert!(scheme(&headers(&["Bearer realm=\"not a url\""])).is_none());
    }

    #[test]
    fn passwords_travel_encrypted_or_not_at_all() {
        for (url, expected) in [
            ("https://auth.example/token", true),
            ("http://127.0.0.1:5001/token", true),
            ("http://localhost/token", true),
            ("http://[::1]/token", true),
            ("http://auth.example/token", false),
            ("http://localhost.example/token", false),
            ("ftp://127.0.0.1/token", false),
        ] {
            assert_eq!(is_private(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
