//! A compose's metadata, fetched and parsed into typed rows.
//!
//! The files are [productmd](https://productmd.readthedocs.io/en/latest/images-1.2.html)'s `metadata/images.json` and
//! `metadata/composeinfo.json` below the compose's location. They come from outside: sizes are bounded, and a file of an
//! unknown major version is refused rather than guessed at. The rows of images that this process does not publish may
//! hold any JSON; see [`Row`].

pub mod id;
mod image;
pub mod release;

use std::collections::BTreeMap;

use reqwest::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

pub use self::id::{ComposeId, Family, NotOurs};
pub use self::image::{BadRow, Image, Row};
use crate::base::failure::{Class, Classified};
use crate::base::resource::{ReadError, Resource};

/// Fedora's largest images.json has 150 kB; one larger than this is an attack or a mistake.
const METADATA_LIMIT: u64 = 32 << 20;

/// A milestone's name in composeinfo and in the message: `RC-1.6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Which milestone.
    pub milestone: Milestone,
    /// The numbers: `1.6`.
    pub numbers: String,
}

/// The milestones that a candidate can become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// The beta release.
    Beta,
    /// The release.
    Release,
}

impl Label {
    /// Reads a label of a candidate.
    ///
    /// # Errors
    ///
    /// A label of another milestone or form: its images would get wrong names.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let error = || Error::Label(text.to_owned());
        let (milestone, numbers) = text.split_once('-').ok_or_else(error)?;
        let (major, minor) = numbers.split_once('.').ok_or_else(error)?;
        let digits = |text: &str| (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(major) || !digits(minor) {
            return Err(error());
        }
        let milestone = match milestone {
            "Beta" => Milestone::Beta,
            "RC" => Milestone::Release,
            _ => return Err(error()),
        };
        Ok(Self {
            milestone,
            numbers: numbers.to_owned(),
        })
    }
}

/// A finished compose.
#[derive(Debug, Clone)]
pub struct Compose {
    /// Its identity.
    pub id: ComposeId,
    /// A candidate's label, where it has one.
    pub label: Option<Label>,
    /// A row for each image, by variant and architecture.
    pub rows: Vec<Row>,
}

impl Compose {
    /// The id of the compose at a location, as its metadata has it. Transient failures are retried for about a minute.
    ///
    /// # Errors
    ///
    /// As [`Self::fetch`].
    pub async fn id_at(http: &Client, location: &Resource) -> Result<String, Error> {
        let images: ImagesFile = read_json(http, &location.join("metadata/images.json")).await?;
        Ok(images.payload.compose.id)
    }

    /// Reads a compose's metadata. Transient failures are retried for about a minute.
    ///
    /// # Errors
    ///
    /// Metadata that cannot be read or understood; see [`Error`].
    pub async fn fetch(http: &Client, location: &Resource, id: &ComposeId, label: Option<&str>) -> Result<Self, Error> {
        let file = location.join("metadata/images.json");
        let mut compose = Self::parse(&read(http, &file).await?, location, id)?;
        compose.label = match (id.family, label) {
            (Family::Candidate, Some(label)) if !label.is_empty() => Some(Label::parse(label)?),
            (Family::Candidate, _) => label_of_composeinfo(http, location, id).await?,
            _ => None,
        };
        Ok(compose)
    }

    /// Reads the content of images.json of the compose at `location`; the label is not in it.
    ///
    /// # Errors
    ///
    /// As [`Self::fetch`].
    pub fn parse(images: &[u8], location: &Resource, id: &ComposeId) -> Result<Self, Error> {
        let images: ImagesFile = parse_json(images, &location.join("metadata/images.json"))?;
        images.header.check("productmd.images", location)?;
        if images.payload.compose.id != id.as_str() {
            return Err(Error::OtherCompose {
                expected: id.to_string(),
                found: images.payload.compose.id,
            });
        }
        Ok(Self {
            id: id.clone(),
            label: None,
            rows: rows(&images.payload.images, location),
        })
    }
}

/// The rows of every variant and architecture. A map or row of another form belongs to no image that we know.
fn rows(variants: &BTreeMap<String, Box<RawValue>>, location: &Resource) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut unknown = 0;
    for (variant, arches) in variants {
        let Ok(arches) = serde_json::from_str::<BTreeMap<String, &RawValue>>(arches.get()) else {
            unknown += 1;
            continue;
        };
        for (arch, list) in arches {
            let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(list.get()) else {
                unknown += 1;
                continue;
            };
            for (position, row) in list.into_iter().enumerate() {
                let place = format!("{variant}.{arch}[{position}]");
                match Row::read(row, &place, &arch, location) {
                    Some(row) => rows.push(row),
                    None => unknown += 1,
                }
            }
        }
    }
    if unknown > 0 {
        tracing::warn!(unknown, %location, "images.json has {unknown} entries of unknown form, which are ignored");
    }
    rows
}

async fn label_of_composeinfo(http: &Client, location: &Resource, id: &ComposeId) -> Result<Option<Label>, Error> {
    let file = location.join("metadata/composeinfo.json");
    let info: ComposeinfoFile = match read_json(http, &file).await {
        Ok(info) => info,
        Err(Error::Read(ReadError::Missing(_))) => return Ok(None),
        Err(error) => return Err(error),
    };
    info.header.check("productmd.composeinfo", location)?;
    let ComposeinfoRow { id: found, label } = info.payload.compose;
    if let Some(found) = found.filter(|found| found != id.as_str()) {
        return Err(Error::OtherCompose {
            expected: id.to_string(),
            found,
        });
    }
    match label {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(label)) if label.is_empty() => Ok(None),
        Some(Value::String(label)) => Label::parse(&label).map(Some),
        Some(other) => Err(Error::Label(other.to_string())),
    }
}

async fn read(http: &Client, file: &Resource) -> Result<Vec<u8>, Error> {
    let read = file.read(http, "compose metadata", METADATA_LIMIT);
    read.await.map_err(Error::Read)
}

async fn read_json<T: DeserializeOwned>(http: &Client, file: &Resource) -> Result<T, Error> {
    parse_json(&read(http, file).await?, file)
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8], file: &Resource) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json {
        file: file.to_string(),
        source,
    })
}

#[derive(Deserialize)]
struct ImagesFile {
    header: Header,
    payload: ImagesPayload,
}

#[derive(Deserialize)]
struct ImagesPayload {
    compose: ComposeRow,
    /// By variant: a map by architecture of lists of rows, each read on its own.
    images: BTreeMap<String, Box<RawValue>>,
}

#[derive(Deserialize)]
struct ComposeinfoFile {
    header: Header,
    payload: ComposeinfoPayload,
}

#[derive(Deserialize)]
struct ComposeinfoPayload {
    compose: ComposeinfoRow,
}

#[derive(Deserialize)]
struct ComposeRow {
    id: String,
}

#[derive(Deserialize)]
struct ComposeinfoRow {
    id: Option<String>,
    label: Option<Value>,
}

#[derive(Deserialize)]
struct Header {
    /// Absent in format 1.0.
    #[serde(rename = "type")]
    kind: Option<Value>,
    version: Value,
}

impl Header {
    /// The formats are compatible within a major version.
    fn check(&self, kind: &str, location: &Resource) -> Result<(), Error> {
        let version = plain(&self.version);
        let is_kind = self.kind.as_ref().is_none_or(|found| *found == kind);
        if version.split('.').next() == Some("1") && is_kind {
            return Ok(());
        }
        Err(Error::Version {
            location: location.to_string(),
            kind: self.kind.as_ref().map_or(kind.to_owned(), plain),
            version,
        })
    }
}

/// A value as a harmless word: the text itself, or JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.escape_debug().to_string(),
        other => other.to_string().escape_debug().to_string(),
    }
}

/// A compose that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the metadata is missing, or cannot be read.
    #[error("read the compose's metadata")]
    Read(#[source] ReadError),
    /// Not JSON, or not of the form productmd describes.
    #[error("understand {file}")]
    Json {
        /// The file.
        file: String,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// A major version of the format that this program does not know.
    #[error("understand {kind} {version} in {location}: only major version 1 is known")]
    Version {
        /// The compose.
        location: String,
        /// The type that the file states.
        kind: String,
        /// The version that the file states.
        version: String,
    },
    /// The location holds another compose than the message says.
    #[error("find compose {expected}: the metadata there is of {found:?}")]
    OtherCompose {
        /// The message's compose.
        expected: String,
        /// The metadata's compose.
        found: String,
    },
    /// A milestone that has no rule for names.
    #[error("name the images of a candidate labelled {0:?}: only Beta-x.y and RC-x.y are known")]
    Label(String),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Read(error) => error.class(),
            Self::Json { .. } | Self::Version { .. } | Self::OtherCompose { .. } | Self::Label(_) => Class::Deliverable,
        }
    }
}
