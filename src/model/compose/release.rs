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
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
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
    /// True for the newest release that users are advised to run.
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

    /// The release of a compose. Transient failures are retried for about a minute.
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
        let numbers = Numbers::of(&self.read(&self.metadata).await?)?;
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
        let date = match self.read::<Map<String, Value>>(&url).await {
            Ok(release) => end_of_life(&release, &url),
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

/// Bodhi leaves it null until the end is near.
fn end_of_life(release: &Map<String, Value>, url: &Resource) -> Option<Date> {
    let eol = release.get("eol").filter(|eol| !eol.is_null() && *eol != "")?;
    let date = eol.as_str().and_then(|text| text.trim().parse().ok());
    if date.is_none() {
        tracing::warn!(%url, %eol, "the release's end of life is not a date, so its images get none");
    }
    date
}

/// The release metadata; a line that is missing or null has no releases.
#[derive(Debug, Clone)]
struct Numbers {
    fedora: Line,
    el: Line,
}

#[derive(Debug, Clone)]
struct Line {
    stable: Vec<u32>,
    branched: Vec<u32>,
}

impl Line {
    fn of(line: &Value) -> Self {
        let numbers = |key: &str| line[key].as_array().into_iter().flatten().filter_map(number).collect();
        Self {
            stable: numbers("stable"),
            branched: numbers("branched"),
        }
    }
}

/// A release's number, also where it stands in quotes; `None` for anything else.
fn number(value: &Value) -> Option<u32> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64().and_then(|number| u32::try_from(number).ok()),
    };
    number.filter(|number| (1..10_000).contains(number))
}

impl Numbers {
    fn of(document: &Map<String, Value>) -> Result<Self, Error> {
        let line = |key| Line::of(document.get(key).unwrap_or(&Value::Null));
        let (fedora, el) = (line("fedora"), line("el"));
        if fedora.stable.is_empty() && fedora.branched.is_empty() {
            return Err(Error::NoRelease("fedora"));
        }
        Ok(Self { fedora, el })
    }

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

/// A release that could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service did not answer.
    #[error("determine the compose's release")]
    Read(#[source] ReadError),
    /// The answer is not what it should be.
    #[error("understand {url}")]
    Json {
        /// The address that was read.
        url: String,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// The release metadata names no release at all.
    #[error("find the newest release: the release metadata has none under {0:?}")]
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
            // Both documents are edited by hand; their editors will fix them.
            Self::Json { .. } | Self::NoRelease(_) => Class::TRANSIENT,
            Self::NoNumber(_) => Class::Deliverable,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn odd_release_metadata_gives_the_numbers_that_it_has() {
        let table = [
            (
                json!({"fedora": {"stable": [42, 43], "branched": [44]}, "el": {"stable": [9, 10]}}),
                Some((45, Some(11))),
            ),
            (
                json!({"fedora": {"stable": ["42", "43"], "branched": null}, "el": null, "new": [1]}),
                Some((44, None)),
            ),
            (
                json!({"fedora": {"stable": [42, null, "eln", {}, -1, 43.5, 4_294_967_295_u32], "x": 1}, "el": []}),
                Some((43, None)),
            ),
            (
                json!({"fedora": {"branched": [44]}, "el": {"stable": "10"}}),
                Some((45, None)),
            ),
            (json!({"fedora": null}), None),
            (json!({"fedora": {"stable": []}}), None),
            (json!({}), None),
        ];
        for (document, expected) in table {
            let numbers = Numbers::of(document.as_object().unwrap());
            let found = numbers
                .ok()
                .map(|numbers| (numbers.rawhide().unwrap(), numbers.eln().ok()));
            assert_eq!(found, expected, "{document}");
        }
    }

    #[test]
    fn an_end_of_life_that_is_no_date_is_none() {
        let url = Resource::Folder("F43".into());
        let table = [
            (json!({"eol": "2026-12-09"}), Some("2026-12-09")),
            (json!({"eol": "2026-12-09 00:00:00", "name": null}), Some("2026-12-09")),
            (json!({"eol": null}), None),
            (json!({"eol": ""}), None),
            (json!({"eol": "to be decided"}), None),
            (json!({"eol": 20_261_209}), None),
            (json!({"name": "F43"}), None),
        ];
        for (release, expected) in table {
            let found = end_of_life(release.as_object().unwrap(), &url);
            assert_eq!(found.map(|date| date.to_string()).as_deref(), expected, "{release}");
        }
    }
}
