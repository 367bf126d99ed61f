//! Where documents and images are read from: a web server, or a folder of this machine.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::Client;
use url::Url;

use crate::base::failure::{Class, Classified};
use crate::base::http::{self, Elsewhere, GetError, Hosts};
use crate::base::retry::Policy;

/// A base that paths are joined to, or a file below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// `http` or `https`.
    Http(Url),
    /// A folder or file of this machine; never from a broker.
    Folder(PathBuf),
}

impl Resource {
    /// Reads the location a broker's message gives: http(s) only, so that no message makes this machine's files public.
    ///
    /// # Errors
    ///
    /// Anything else, named unless it may hold a password.
    pub fn remote(text: &str) -> Result<Self, Refused> {
        web(text).map(Self::Http)
    }

    /// Reads a location an operator gives: http(s), `file:`, or a path relative to `folder`.
    ///
    /// # Errors
    ///
    /// A URL of another scheme.
    pub fn trusted(text: &str, folder: &Path) -> Result<Self, Refused> {
        match Url::parse(text) {
            Ok(url) if url.scheme() == "file" => match url.to_file_path() {
                Ok(path) => Ok(Self::Folder(path)),
                Err(()) => Err(Refused::of(text)),
            },
            Ok(_) => Self::remote(text),
            Err(url::ParseError::RelativeUrlWithoutBase) if !text.is_empty() => Ok(Self::Folder(folder.join(text))),
            Err(_) => Err(Refused::of(text)),
        }
    }

    /// Refuses a server that is not one of these. Folders are named by operators only.
    ///
    /// # Errors
    ///
    /// The host, where it is not allowed.
    pub fn within(&self, hosts: &Hosts) -> Result<(), Elsewhere> {
        match self {
            Self::Http(url) => hosts.check(url),
            Self::Folder(_) => Ok(()),
        }
    }

    /// A file below this location. A caller that takes `path` from outside checks first that it stays below.
    #[must_use]
    pub fn join(&self, path: &str) -> Self {
        match self {
            Self::Http(base) => {
                let mut url = base.clone();
                if let Ok(mut segments) = url.path_segments_mut() {
                    segments.pop_if_empty().extend(path.split('/'));
                }
                Self::Http(url)
            }
            Self::Folder(folder) => Self::Folder(folder.join(path)),
        }
    }

    /// Another file in the same folder.
    #[must_use]
    pub fn beside(&self, name: &str) -> Self {
        match self {
            Self::Http(file) => {
                let mut url = file.clone();
                if let Ok(mut segments) = url.path_segments_mut() {
                    segments.pop().push(name);
                }
                Self::Http(url)
            }
            Self::Folder(file) => Self::Folder(file.with_file_name(name)),
        }
    }

    /// Reads a small document whole. Transient failures are retried for about a minute; `what` names it in metrics.
    ///
    /// # Errors
    ///
    /// A document that is missing, cannot be read, or has more than `limit` bytes.
    pub async fn read(&self, http: &Client, what: &'static str, limit: u64) -> Result<Vec<u8>, ReadError> {
        match self {
            Self::Http(url) => Policy::CALL
                .run(what, GetError::class, || http::get(http, url, limit))
                .await
                .map_err(|error| match error {
                    GetError::Status {
                        url, status: 404 | 410, ..
                    } => ReadError::Missing(url),
                    other => ReadError::Get(other),
                }),
            Self::Folder(path) => read_file(path, limit).await,
        }
    }
}

/// Reads the address of a web server. User name and password are refused: addresses are repeated in logs, reports, and
/// errors.
///
/// # Errors
///
/// Anything else than http(s), and what has a user name or a password.
pub fn web(text: &str) -> Result<Url, Refused> {
    let is_plain = |url: &Url| {
        let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
        is_web && url.username().is_empty() && url.password().is_none()
    };
    let url = Url::parse(text).ok().filter(is_plain);
    url.ok_or_else(|| Refused::of(text))
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => url.fmt(f),
            Self::Folder(path) => path.display().fmt(f),
        }
    }
}

async fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let read = async {
        let size = tokio::fs::metadata(path).await?.len();
        if size > limit {
            let text = format!("it has {size} bytes, more than {limit}");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        tokio::fs::read(path).await
    };
    read.await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ReadError::Missing(path.display().to_string()),
        _ => ReadError::File {
            path: path.to_owned(),
            source,
        },
    })
}

/// Whether trying again is no use: the path leads to something that cannot be read, or is none.
#[must_use]
pub fn is_lasting(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(
        error.kind(),
        NotFound | PermissionDenied | IsADirectory | NotADirectory | InvalidFilename | FileTooLarge
    )
}

/// Not a place to read from.
#[derive(Debug, thiserror::Error)]
#[error(
    "read from {0}: only http and https are accepted, without user name and password, and files only where an operator \
     names them"
)]
pub struct Refused(String);

impl Refused {
    fn of(text: &str) -> Self {
        // Before an @ there may be a password, whatever the rest is.
        Self(match text.contains('@') {
            true => "an address with an @".to_owned(),
            false => format!("{text:?}"),
        })
    }
}

/// A document that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It does not exist.
    #[error("find {0}: it does not exist")]
    Missing(String),
    /// The server did not give it.
    #[error(transparent)]
    Get(GetError),
    /// A file that cannot be read.
    #[error("read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Classified for ReadError {
    fn class(&self) -> Class {
        match self {
            Self::Missing(_) => Class::Deliverable,
            Self::Get(error) => error.class(),
            Self::File { source, .. } if is_lasting(source) => Class::Deliverable,
            Self::File { .. } => Class::TRANSIENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_may_name_web_servers_only() {
        for good in [
            "https://host/compose",
            "http://host:8080//x/compose/",
            "https://host/a@b",
        ] {
            assert!(Resource::remote(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "compose",
            "/etc",
            "file:///etc",
            "ftp://host/x",
            "http:",
            "https://",
            "data:,x",
        ] {
            assert!(Resource::remote(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for bad in [
            "https://user:hunter2@host/compose",
            "https://hunter2@host/compose",
            "https://:hunter2@host/compose",
            "https:\\\\user:hunter2@host\\compose",
            "https://user:hunter2@host:port/compose",
            "https://user:hunter2@",
            "ftp://user:hunter2@host/compose",
            "file://user:hunter2@host/compose",
            "user:hunter2@host/compose",
        ] {
            for refused in [Resource::remote(bad), Resource::trusted(bad, Path::new("/"))] {
                let text = refused.unwrap_err().to_string();
                assert!(text.contains("without user name and password"), "{bad}: {text}");
                assert!(!text.contains("hunter2"), "{text}");
            }
        }
    }

    #[test]
    fn paths_are_joined_once() {
        for (base, expected) in [
            ("https://host/compose", "https://host/compose/a/b.json"),
            ("https://host/compose/", "https://host/compose/a/b.json"),
            ("https://host/compose?x=1", "https://host/compose/a/b.json?x=1"),
        ] {
            assert_eq!(Resource::remote(base).unwrap().join("a/b.json").to_string(), expected);
        }
        let odd = Resource::remote("https://host/c").unwrap().join("a b/c#d?e%f");
        assert_eq!(odd.to_string(), "https://host/c/a%20b/c%23d%3Fe%25f");
    }
}
