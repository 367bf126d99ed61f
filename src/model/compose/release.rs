//! A compose's release: number, stage, end of life.
//!
//! Which release is stable or branched is in a small file that Fedora's QA keeps by hand; the end of life is in
//! [Bodhi](https://bodhi.fedoraproject.org/docs/server_api/rest/releases.html). Both are cached, so that a burst of
//! composes asks once.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use jiff::civil::Date;
use reqwest::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::{Compose, Family, Milestone};
use crate::base::failure::{Class, Classified};
use crate::base::resource::{ReadError, Resource};

/// As long as Fedora's own tools keep it.
const CACHED: Duration = Duration::from_secs(20 * 60);
/// Both documents have a few kB.
const LIMIT: u64 = 4 << 20;

/// How far a compose is on its way to users; a word of every topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Nightly of the development branch.
    Rawhide,
    /// Nightly of the next Enterprise Linux.
    Eln,
    /// Nightly of a branched release.
    Branched,
    /// Candidate for the beta release.
    Beta,
    /// Candidate for the release.
    Rc,
    /// Candidate without a label.
    Production,
    /// Nightly of a release.
    Nightly,
    /// Updates of a release.
    Updates,
}

impl Stage {
    /// Whether its images come before the release, which AMI names tell.
    #[must_use]
    pub fn is_prerelease(self) -> bool {
        match self {
            Self::Branched | Self::Beta => true,
            Self::Rawhide | Self::Eln | Self::Rc | Self::Production | Self::Nightly | Self::Updates => false,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rawhide => "rawhide",
            Self::Eln => "eln",
            Self::Branched => "branched",
            Self::Beta => "beta",
            Self::Rc => "rc",
            Self::Production => "production",
            Self::Nightly => "nightly",
            Self::Updates => "updates",
        })
    }
}

/// The release a compose belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// In names: `43`, `Rawhide`, `ELN`.
    pub name: String,
    /// In messages and versions: Rawhide has the number it will be released under.
    pub number: u32,
    /// How far this compose is.
    pub stage: Stage,
    /// Whether it is the newest release users are told to run.
    pub newest_stable: bool,
    /// The last day of support, where one is set.
    pub end_of_life: Option<Date>,
}

/// Answers which release a compose belongs to.
#[derive(Debug)]
pub struct Releases {
    http: Client,
    bodhi: Resource,
    metadata: Resource,
    numbers: Mutex<Option<(Instant, Numbers)>>,
    ends: Mutex<HashMap<u32, (Instant, Option<Date>)>>,
}

impl Releases {
    /// `bodhi` and `metadata` are the settings `bodhi_url` and `release_metadata_url`.
    #[must_use]
    pub fn new(http: Client, bodhi: Resource, metadata: Resource) -> Self {
        Self {
            http,
            bodhi,
            metadata,
            numbers: Mutex::default(),
            ends: Mutex::default(),
        }
    }

    /// The release of a compose. Passing failures are retried for about a minute.
    ///
    /// # Errors
    ///
    /// Services that do not answer, or whose answer cannot be understood.
    pub async fn of(&self, compose: &Compose) -> Result<Release, Error> {
        let numbers = self.numbers().await?;
        let id = &compose.id;
        let (name, number) = match (id.family, id.number) {
            (Family::Rawhide, _) => ("Rawhide".to_owned(), numbers.rawhide()?),
            (Family::Eln, _) => ("ELN".to_owned(), numbers.eln()?),
            (_, Some(number)) => (number.to_string(), number),
            (_, None) => return Err(Error::NoNumber(id.to_string())),
        };
        let end_of_life = match id.number {
            Some(number) => self.end_of_life(number).await?,
            None => None,
        };
        Ok(Release {
            name,
            number,
            stage: stage(compose),
            newest_stable: id.number.is_some() && numbers.fedora.stable.iter().max() == id.number.as_ref(),
            end_of_life,
        })
    }

    async fn numbers(&self) -> Result<Numbers, Error> {
        let mut cached = self.numbers.lock().await;
        if let Some((read, numbers)) = &*cached
            && read.elapsed() < CACHED
        {
            return Ok(numbers.clone());
        }
        let numbers: Numbers = self.read(&self.metadata).await?;
        *cached = Some((Instant::now(), numbers.clone()));
        Ok(numbers)
    }

    async fn end_of_life(&self, number: u32) -> Result<Option<Date>, Error> {
        let mut cached = self.ends.lock().await;
        if let Some((read, date)) = cached.get(&number)
            && read.elapsed() < CACHED
        {
            return Ok(*date);
        }
        let url = self.bodhi.join(&format!("releases/F{number}"));
        let date = match self.read::<BodhiRelease>(&url).await {
            Ok(release) => match release.eol.as_deref().map(str::parse) {
                None => None,
                Some(Ok(date)) => Some(date),
                Some(Err(source)) => {
                    return Err(Error::Date {
                        url: url.to_string(),
                        source,
                    });
                }
            },
            // A release that was just branched may not be there yet.
            Err(Error::Read(ReadError::Missing(_))) => {
                tracing::warn!(release = number, %url, "the release is not in Bodhi, so its images get no end of life");
                None
            }
            Err(error) => return Err(error),
        };
        cached.insert(number, (Instant::now(), date));
        Ok(date)
    }

    async fn read<T: DeserializeOwned>(&self, document: &Resource) -> Result<T, Error> {
        let body = document
            .read(&self.http, "release data", LIMIT)
            .await
            .map_err(Error::Read)?;
        serde_json::from_slice(&body).map_err(|source| Error::Json {
            url: document.to_string(),
            source,
        })
    }
}

fn stage(compose: &Compose) -> Stage {
    match compose.id.family {
        Family::Rawhide => Stage::Rawhide,
        Family::Eln => Stage::Eln,
        Family::Branched => Stage::Branched,
        Family::Cloud | Family::Container | Family::Iot => Stage::Nightly,
        Family::Updates => Stage::Updates,
        Family::Candidate => match compose.label.as_ref().map(|label| label.milestone) {
            Some(Milestone::Beta) => Stage::Beta,
            Some(Milestone::Release) => Stage::Rc,
            None => Stage::Production,
        },
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Numbers {
    fedora: Line,
    #[serde(default)]
    el: Line,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Line {
    #[serde(default)]
    stable: Vec<u32>,
    #[serde(default)]
    branched: Vec<u32>,
}

impl Numbers {
    fn rawhide(&self) -> Result<u32, Error> {
        let newest = self.fedora.stable.iter().chain(&self.fedora.branched).max();
        newest.map(|number| number + 1).ok_or(Error::NoRelease("fedora"))
    }

    fn eln(&self) -> Result<u32, Error> {
        self.el
            .stable
            .iter()
            .max()
            .map(|number| number + 1)
            .ok_or(Error::NoRelease("el"))
    }
}

#[derive(Deserialize)]
struct BodhiRelease {
    eol: Option<String>,
}

/// A release that could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service did not answer.
    #[error("find out the compose's release")]
    Read(#[source] ReadError),
    /// The answer is not what it should be.
    #[error("understand {url}")]
    Json {
        /// What was asked for.
        url: String,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// The end of life is not a date.
    #[error("understand the end of life in {url}")]
    Date {
        /// What was asked for.
        url: String,
        /// Why.
        source: jiff::Error,
    },
    /// The release metadata names no release at all.
    #[error("find the newest release: the release metadata has no stable one under {0:?}")]
    NoRelease(&'static str),
    /// An id without a number, of a family that has one.
    #[error("find the release number in {0}")]
    NoNumber(String),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            // A release file that is gone will be put back.
            Self::Read(ReadError::Missing(_)) => Class::TRANSIENT,
            Self::Read(error) => error.class(),
            // Both documents are edited by hand; somebody will mend them.
            Self::Json { .. } | Self::Date { .. } | Self::NoRelease(_) => Class::TRANSIENT,
            Self::NoNumber(_) => Class::Deliverable,
        }
    }
}
