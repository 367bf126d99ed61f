//! Credentials for a registry: basic authentication, or
//! [tokens](https://distribution.github.io/distribution/spec/auth/token/) that live a few minutes.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use tokio::sync::Mutex;
use url::{Host, Url};

use super::challenge::challenges;
use super::error::Error;
use crate::base::http;
use crate::base::secret::Secret;

/// Seconds that a token lives if its server says nothing, by the specification.
const LIFETIME: f64 = 60.0;
/// Seconds after which a token is renewed, however long it is said to live.
const LONGEST: f64 = 24.0 * 60.0 * 60.0;
/// A token is renewed this long before its end, or in the last quarter of a short life.
const MARGIN: Duration = Duration::from_secs(15);
/// Tokens have a few kB.
const LIMIT: usize = 1 << 20;

/// Credentials for one registry, in the form that its own refusals ask for.
#[derive(Debug)]
pub(super) struct Auth {
    user: Option<(String, Secret)>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scheme: Option<Scheme>,
    /// The scopes that challenges named, by our own; those differ where a proxy rewrites paths.
    named: HashMap<String, Vec<Scope>>,
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

/// A resource, such as `repository:fedora`, and what is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    resource: String,
    actions: Vec<String>,
}

impl Scope {
    fn parse(text: &str) -> Self {
        let (resource, actions) = text.rsplit_once(':').unwrap_or((text, ""));
        let actions = actions.split(',').filter(|action| !action.is_empty());
        Self {
            resource: resource.to_owned(),
            actions: actions.map(str::to_owned).collect(),
        }
    }

    /// Adds the actions that an earlier challenge named: a token serves both reading and writing.
    fn unite(&mut self, known: &[Self]) {
        let same = known.iter().filter(|known| known.resource == self.resource);
        for action in same.flat_map(|known| &known.actions) {
            if !self.actions.contains(action) {
                self.actions.push(action.clone());
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.actions[..] {
            [] => f.write_str(&self.resource),
            actions => write!(f, "{}:{}", self.resource, actions.join(",")),
        }
    }
}

impl State {
    /// The scopes to ask for: those that challenges named, else our own. `None`: the registry names other repositories than
    /// we do, and has not named this one yet.
    fn scopes(&self, ours: &str) -> Option<Vec<Scope>> {
        let own = Scope::parse(ours);
        if let Some(named) = self.named.get(ours) {
            return Some(named.clone());
        }
        let rewrites = self.named.iter().any(|(ours, named)| {
            let ours = Scope::parse(ours);
            named.iter().all(|named| named.resource != ours.resource)
        });
        (!rewrites).then(|| vec![own])
    }
}

impl Auth {
    pub(super) fn new(user: Option<(String, Secret)>) -> Self {
        Self {
            user,
            state: Mutex::default(),
        }
    }

    /// Adds credentials to a request; none before the registry has asked for some.
    pub(super) async fn authorize(
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
        let Some(scopes) = state.scopes(scope) else {
            return Ok(request);
        };
        // The lock is held, so that many requests ask for one token.
        let token = self.fetch(http, &realm, service.as_deref(), &scopes).await?;
        let request = request.header(reqwest::header::AUTHORIZATION, token.header.clone());
        state.tokens.insert(scope.to_owned(), token);
        Ok(request)
    }

    /// Learns from a refusal. The next [`Self::authorize`] does what the registry asked for; whether that differs from what
    /// was done before.
    pub(super) async fn challenged(&self, scope: &str, base: &Url, headers: &HeaderMap) -> bool {
        let mut state = self.state.lock().await;
        // A token that was refused is not used again.
        state.tokens.remove(scope);
        let Some((scheme, named)) = scheme(base, headers) else {
            return false;
        };
        let is_new = state.scheme.is_none();
        state.scheme = Some(scheme);
        let known = state.named.get(scope).cloned().unwrap_or_default();
        let mut named: Vec<_> = named
            .iter()
            .flat_map(|named| named.split_whitespace())
            .map(Scope::parse)
            .collect();
        named.iter_mut().for_each(|named| named.unite(&known));
        if named.is_empty() || named == known {
            return is_new;
        }
        state.named.insert(scope.to_owned(), named);
        true
    }

    /// With user and password, where there are any.
    fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.user {
            Some((user, password)) => request.basic_auth(user, Some(password.expose())),
            None => request,
        }
    }

    async fn fetch(&self, http: &Client, realm: &Url, service: Option<&str>, scopes: &[Scope]) -> Result<Token, Error> {
        if !is_private(realm) {
            return Err(Error::Realm(realm.to_string()));
        }
        let mut url = realm.clone();
        let texts: Vec<_> = scopes.iter().map(Scope::to_string).collect();
        for scope in &texts {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let what = || {
            let host = realm.host_str().unwrap_or_default();
            format!("get a token for {} from {host}", texts.join(" "))
        };
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
        let (header, lifetime) = issued(&body).ok_or_else(|| Error::odd(what(), "no token"))?;
        Ok(Token {
            header,
            until: asked + lifetime - MARGIN.min(lifetime / 4),
        })
    }
}

/// The token in an answer, and how long it lives. A lifetime that is absent, or that no token has, is the specification's.
fn issued(body: &[u8]) -> Option<(HeaderValue, Duration)> {
    // The parser's own message would quote the token.
    let answer: Value = serde_json::from_slice(body).ok()?;
    let text = |name: &str| answer[name].as_str().filter(|text| !text.is_empty());
    let token = text("token").or_else(|| text("access_token"))?;
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    let seconds = match &answer["expires_in"] {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    let seconds = seconds.filter(|seconds: &f64| *seconds > 0.0).unwrap_or(LIFETIME);
    Some((header, Duration::from_secs_f64(seconds.min(LONGEST))))
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

/// The scheme that a registry asks for, and the scope that it names: tokens rather than passwords, if it takes both.
fn scheme(base: &Url, headers: &HeaderMap) -> Option<(Scheme, Option<String>)> {
    let challenges = challenges(headers);
    let tokens = challenges.iter().filter(|challenge| challenge.scheme == "bearer");
    let mut tokens = tokens.filter_map(|challenge| {
        let realm = base.join(challenge.get("realm")?).ok()?;
        let service = challenge.get("service").map(str::to_owned);
        let scope = challenge.get("scope").map(str::to_owned);
        Some((Scheme::Bearer { realm, service }, scope))
    });
    let basic = challenges.iter().any(|challenge| challenge.scheme == "basic");
    tokens.next().or_else(|| basic.then_some((Scheme::Basic, None)))
}

#[cfg(test)]
mod tests {
    use reqwest::header::WWW_AUTHENTICATE;

    use super::*;

    fn scheme(headers: &HeaderMap) -> Option<(Scheme, Option<String>)> {
        super::scheme(&Url::parse("https://registry.example/").unwrap(), headers)
    }

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
        let Some((Scheme::Bearer { realm, service }, None)) = scheme(&both) else {
            panic!("{:?}", scheme(&both));
        };
        assert_eq!(
            (realm.as_str(), service.as_deref()),
            ("https://auth.example/token", Some("a \"b\""))
        );
        assert!(matches!(
            scheme(&headers(&["Basic realm=\"r\""])),
            Some((Scheme::Basic, None))
        ));
        assert!(scheme(&headers(&["Negotiate"])).is_none());
        assert!(scheme(&headers(&["Bearer realm=\"http://[\""])).is_none());
        assert!(scheme(&headers(&["Bearer service=\"s\""])).is_none());
        let Some((Scheme::Bearer { realm, .. }, Some(scope))) = scheme(&headers(&[
            "Negotiate YII==",
            "Bearer realm=/token, scope=\"repository:a:pull,push\"",
        ])) else {
            panic!("a realm may be relative");
        };
        assert_eq!(
            (realm.as_str(), scope.as_str()),
            ("https://registry.example/token", "repository:a:pull,push")
        );
    }

    #[test]
    fn token_answers_are_read_as_they_occur() {
        for (answer, token, seconds) in [
            (r#"{"token":"t","expires_in":300}"#, "t", 300.0),
            (r#"{"token":"","access_token":"a","expires_in":300}"#, "a", 300.0),
            (r#"{"token":null,"access_token":"a"}"#, "a", 60.0),
            (r#"{"token":"t","access_token":"a","expires_in":"300"}"#, "t", 300.0),
            (r#"{"token":"t","expires_in":-1}"#, "t", 60.0),
            (r#"{"token":"t","expires_in":0}"#, "t", 60.0),
            (r#"{"token":"t","expires_in":299.5}"#, "t", 299.5),
            (r#"{"token":"t","expires_in":1e300}"#, "t", LONGEST),
            (r#"{"token":"t","expires_in":"soon"}"#, "t", 60.0),
            (r#"{"token":"t","expires_in":"NaN"}"#, "t", 60.0),
            (r#"{"token":"t","expires_in":null,"issued_at":7}"#, "t", 60.0),
        ] {
            let (header, lifetime) = issued(answer.as_bytes()).unwrap_or_else(|| panic!("{answer}"));
            assert_eq!(header.to_str().unwrap(), format!("Bearer {token}"), "{answer}");
            assert_eq!(lifetime, Duration::from_secs_f64(seconds), "{answer}");
        }
        for nothing in ["", "null", "[]", "\"t\"", "{}", r#"{"token":7}"#, r#"{"token":"a\nb"}"#] {
            assert!(issued(nothing.as_bytes()).is_none(), "{nothing}");
        }
    }

    #[tokio::test]
    async fn the_scope_that_a_challenge_names_is_asked_for() {
        let auth = Auth::new(None);
        let base = Url::parse("https://registry.example/").unwrap();
        let (ours, other) = ("repository:team/fedora:pull,push", "repository:team/other:pull,push");
        let challenged = async |scope: &str| {
            let value = format!("Bearer realm=\"https://a.example/t\"{scope}");
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::try_from(value).unwrap())]);
            let is_new = auth.challenged(ours, &base, &headers).await;
            let state = auth.state.lock().await;
            let shown = |scopes: Vec<Scope>| scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(" ");
            (is_new, state.scopes(ours).map(shown), state.scopes(other).map(shown))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(challenged("").await, (true, some(ours), some(other)));
        let named = challenged(", scope=\"repository:team/fedora:pull\"").await;
        assert_eq!(named, (true, some("repository:team/fedora:pull"), some(other)));
        let named = challenged(", scope=\"repository:team/fedora:push\"").await;
        assert_eq!(named, (true, some("repository:team/fedora:push,pull"), some(other)));
        let named = challenged(", scope=\"repository:team/fedora:push,pull\"").await;
        assert!(!named.0, "nothing new");
        let named = challenged(", scope=\"repository:up/fedora:pull repository:up/base:pull\"").await;
        let both = some("repository:up/fedora:pull repository:up/base:pull");
        assert_eq!(named, (true, both, None), "of another repository it says nothing yet");
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
