//! The one HTTP client: time-outs, user agent, trust, and classes of its errors.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::read::MultiGzDecoder;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Response};
use url::Url;

use crate::base::failure::{Class, Classified};
use crate::base::metrics;

/// A server that does not take a connection for this long is not there.
pub const CONNECT: Duration = Duration::from_secs(10);
/// A connection that says nothing for this long is dead.
pub const SILENCE: Duration = Duration::from_secs(30);
/// A call without an upload that takes longer than this has failed.
pub const CALL: Duration = Duration::from_secs(60);
/// Upper bound on a `Retry-After` that is honored.
const LONGEST_WISH: Duration = Duration::from_secs(24 * 60 * 60);
/// More redirects than this are a loop.
const REDIRECTS: usize = 5;
/// The first bytes of every gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Upper bound on the body of a refusal that is read. They fit into a few hundred bytes.
const REFUSAL: usize = 64 << 10;

/// The hosts that composes are read from: anybody's, unless some are named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(Option<BTreeSet<String>>);

impl Hosts {
    /// Only these, as a URL has them: names in lower case, or addresses.
    pub fn only(hosts: impl IntoIterator<Item = String>) -> Self {
        Self(Some(hosts.into_iter().collect()))
    }

    /// Refuses a URL elsewhere, be it named or redirected to.
    ///
    /// # Errors
    ///
    /// The host, where it is not allowed.
    pub fn check(&self, url: &Url) -> Result<(), Elsewhere> {
        let host = url.host_str().unwrap_or_default();
        match &self.0 {
            Some(hosts) if !hosts.contains(host) => Err(Elsewhere(host.to_owned())),
            Some(_) | None => Ok(()),
        }
    }
}

/// A host that composes are not read from.
#[derive(Debug, thiserror::Error)]
#[error("read from {0}: it is not one of allowed_compose_hosts")]
pub struct Elsewhere(String);

impl Classified for Elsewhere {
    fn class(&self) -> Class {
        Class::Deliverable
    }
}

/// The settings of every client: nothing hangs, everybody can see who calls, and no redirect leads from https to http.
pub fn builder() -> ClientBuilder {
    within(Hosts::default())
}

/// The same, and no redirect leads to another host than these.
fn within(hosts: Hosts) -> ClientBuilder {
    let redirects = reqwest::redirect::Policy::custom(move |attempt| {
        let from_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > REDIRECTS {
            attempt.error("too many redirects")
        } else if from_https && attempt.url().scheme() != "https" {
            attempt.error("redirect from https to http")
        } else if let Err(elsewhere) = hosts.check(attempt.url()) {
            attempt.error(elsewhere)
        } else {
            attempt.follow()
        }
    });
    Client::builder()
        .user_agent(concat!("cloud-image-uploader/", env!("CLOUD_IMAGE_UPLOADER_VERSION")))
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .tcp_keepalive(SILENCE)
        .redirect(redirects)
}

/// A client for anybody's servers.
///
/// # Errors
///
/// When the platform's trust store cannot be read.
pub fn client() -> Result<Client, Error> {
    builder().build().map_err(Error::Build)
}

/// A client for composes, which are on these hosts.
///
/// # Errors
///
/// As [`client`].
pub fn client_within(hosts: Hosts) -> Result<Client, Error> {
    within(hosts).build().map_err(Error::Build)
}

/// Adds a PEM file of trusted authorities.
///
/// # Errors
///
/// When the file cannot be read or is not PEM.
pub fn trust(mut builder: ClientBuilder, path: &Path) -> Result<ClientBuilder, Error> {
    let pem = read(path)?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|source| Error::Pem {
        path: path.to_owned(),
        source,
    })?;
    for certificate in certificates {
        builder = builder.add_root_certificate(certificate);
    }
    Ok(builder)
}

/// A client certificate from its two PEM files; `whose` names it in metrics.
///
/// # Errors
///
/// When a file cannot be read, or the two do not make an identity.
pub fn identity(whose: &str, certificate: &Path, key: &Path) -> Result<Identity, Error> {
    let mut pem = read(certificate)?;
    metrics::certificate(whose, &pem);
    pem.push(b'\n');
    pem.extend(read(key)?);
    Identity::from_pem(&pem).map_err(|source| Error::Pem {
        path: certificate.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// The class of a request that got no answer, or not all of it.
#[must_use]
pub fn class(error: &reqwest::Error) -> Class {
    if error.is_builder() || error.is_redirect() {
        Class::Deliverable
    } else {
        Class::TRANSIENT
    }
}

/// How long the server asks to be left alone: seconds, or until a date.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds).min(LONGEST_WISH));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    let wish = SystemTime::from(date.timestamp())
        .duration_since(SystemTime::now())
        .ok()?;
    Some(wish.min(LONGEST_WISH))
}

/// The body of a refusal, as far as it came in time and is not too long.
pub async fn refusal(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(bytes)) = response.chunk().await {
            body.extend_from_slice(&bytes);
            if body.len() > REFUSAL {
                break;
            }
        }
    };
    // The refused request may have had no limit: that of an upload has none. The part that has come until then will do.
    let _ = tokio::time::timeout(SILENCE, read).await;
    body
}

/// Reads a small document into memory: one try, bounded in time and size.
///
/// The document is asked for as it is. Some servers and caches send it compressed with gzip all the same.
///
/// # Errors
///
/// No answer, an answer that is not a success, one that does not decode, or one longer than `limit` bytes, before or
/// after decoding.
pub async fn get(http: &Client, url: &Url, limit: u64) -> Result<Vec<u8>, GetError> {
    let lost = |source: reqwest::Error| GetError::Lost {
        url: url.to_string(),
        source: source.without_url(),
    };
    let mut response = http
        .get(url.clone())
        .header(ACCEPT, "application/json")
        .header(ACCEPT_ENCODING, "identity")
        .timeout(CALL)
        .send()
        .await
        .map_err(lost)?;
    if !response.status().is_success() {
        return Err(GetError::Status {
            url: url.to_string(),
            status: response.status().as_u16(),
            after: retry_after(response.headers()),
        });
    }
    let too_long = || GetError::TooLong {
        url: url.to_string(),
        limit,
    };
    let is_gzip = is_gzip(response.headers()).map_err(|encoding| GetError::Encoding {
        url: url.to_string(),
        encoding,
    })?;
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(lost)? {
        body.extend_from_slice(&bytes);
        if body.len() as u64 > limit {
            return Err(too_long());
        }
    }
    // Some label what they have not compressed.
    if !is_gzip || !body.starts_with(&GZIP) {
        return Ok(body);
    }
    let mut document = Vec::new();
    let decoded = MultiGzDecoder::new(&body[..])
        .take(limit.saturating_add(1))
        .read_to_end(&mut document);
    decoded.map_err(|source| GetError::Undecodable {
        url: url.to_string(),
        source,
    })?;
    if document.len() as u64 > limit {
        return Err(too_long());
    }
    Ok(document)
}

/// Whether a document is compressed with gzip; otherwise it is not compressed.
///
/// # Errors
///
/// Any other `Content-Encoding`.
fn is_gzip(headers: &HeaderMap) -> Result<bool, String> {
    let mut encodings = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        let names = text
            .split(',')
            .map(str::trim)
            .filter(|name| !matches!(*name, "" | "identity"));
        encodings.extend(names.map(str::to_owned));
    }
    match &encodings[..] {
        [] => Ok(false),
        [one] if matches!(one.as_str(), "gzip" | "x-gzip") => Ok(true),
        other => Err(other.join(", ").escape_debug().to_string()),
    }
}

/// A document that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No answer, or not all of it.
    #[error("get {url}")]
    Lost {
        /// The document.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server refused.
    #[error("get {url}: the server answered {status}")]
    Status {
        /// The document.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's wish.
        after: Option<Duration>,
    },
    /// A compression that was not asked for, other than gzip.
    #[error("get {url}: the answer is encoded as {encoding}, and only gzip is supported")]
    Encoding {
        /// The document.
        url: String,
        /// The value of `Content-Encoding`.
        encoding: String,
    },
    /// An answer that is labelled as gzip, begins so, and does not decode.
    #[error("get {url}: decode the answer as gzip")]
    Undecodable {
        /// The document.
        url: String,
        /// The first thing that is wrong with it.
        source: io::Error,
    },
    /// More than anybody would write.
    #[error("get {url}: longer than {limit} bytes")]
    TooLong {
        /// The document.
        url: String,
        /// Bytes that are accepted.
        limit: u64,
    },
}

impl Classified for GetError {
    fn class(&self) -> Class {
        match self {
            Self::Lost { source, .. } => class(source),
            Self::Status { status, after, .. } => Class::of_status(*status, *after),
            Self::TooLong { .. } | Self::Encoding { .. } | Self::Undecodable { .. } => Class::Deliverable,
        }
    }
}

/// A client that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or may not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("use {} as certificate and key in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: reqwest::Error,
    },
    /// The TLS library refused its configuration.
    #[error("set up the HTTP client")]
    Build(#[source] reqwest::Error),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Read { .. } | Self::Pem { .. } | Self::Build(_) => Class::Everything,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_allowed_by_its_whole_name() {
        let hosts = Hosts::only(["kojipkgs.fedoraproject.org", "127.0.0.1", "[::1]"].map(str::to_owned));
        for (url, allowed) in [
            ("https://kojipkgs.fedoraproject.org/compose", true),
            ("https://KOJIPKGS.fedoraproject.org:8443/compose", true),
            ("http://127.0.0.1:8080/compose", true),
            ("http://0x7f.1/compose", true),
            ("http://[0::1]/compose", true),
            ("https://kojipkgs.fedoraproject.org.evil.example/compose", false),
            ("https://evil-kojipkgs.fedoraproject.org/compose", false),
            ("https://fedoraproject.org/compose", false),
            ("https://kojipkgs.fedoraproject.org@evil.example/compose", false),
            ("http://127.0.0.2/compose", false),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(hosts.check(&url).is_ok(), allowed, "{url}");
            assert!(Hosts::default().check(&url).is_ok(), "{url}");
        }
    }
}
