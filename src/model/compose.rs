//! A compose's metadata, fetched and parsed into typed images.
//!
//! The files are [productmd](https://productmd.readthedocs.io/en/latest/images-1.2.html)'s `metadata/images.json` and
//! `metadata/composeinfo.json` below the compose's location. They come from outside: sizes are bounded, paths must stay
//! below the location, and a file of an unknown major version is refused rather than guessed at.

pub mod id;
pub mod release;

use std::collections::{BTreeMap, HashSet};

use reqwest::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use self::id::{ComposeId, Family, NotOurs};
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

/// What a candidate is a candidate for.
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
    /// Everything it made, in the order of the metadata.
    pub images: Vec<Image>,
}

/// One row of images.json, checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Image {
    /// Below the compose's location, as the metadata has it.
    pub path: String,
    /// Where to read it.
    pub location: Resource,
    /// Fedora's name: `x86_64`, `aarch64`, `ppc64le`, `s390x`.
    pub arch: String,
    /// What is in it: `Cloud_Base`, `Silverblue`.
    pub subvariant: String,
    /// How it is made: `raw-xz`, `ociarchive`.
    pub kind: String,
    /// What its file is said to be: `raw.xz`, `tar.gz`.
    pub format: String,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
}

impl Image {
    /// The last part of the path.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// What it is in every compose: `Cloud_Base.x86_64`.
    #[must_use]
    pub fn what(&self) -> String {
        format!("{}.{}", self.subvariant, self.arch)
    }
}

impl Compose {
    /// The id of the compose at a location, as its metadata has it. Passing failures are retried for about a minute.
    ///
    /// # Errors
    ///
    /// As [`Self::fetch`].
    pub async fn id_at(http: &Client, location: &Resource) -> Result<String, Error> {
        let images: ImagesFile = read_json(http, &location.join("metadata/images.json")).await?;
        Ok(images.payload.compose.id)
    }

    /// Reads a compose's metadata. Passing failures are retried for about a minute.
    ///
    /// # Errors
    ///
    /// Metadata that cannot be had, or is not what it should be; see [`Error`].
    pub async fn fetch(http: &Client, location: &Resource, id: &ComposeId, label: Option<&str>) -> Result<Self, Error> {
        let images: ImagesFile = read_json(http, &location.join("metadata/images.json")).await?;
        images.header.check("productmd.images", location)?;
        if images.payload.compose.id != id.as_str() {
            return Err(Error::OtherCompose {
                expected: id.to_string(),
                found: images.payload.compose.id,
            });
        }
        let label = match (id.family, label) {
            (Family::Candidate, Some(label)) => Some(Label::parse(label)?),
            (Family::Candidate, None) => label_of_composeinfo(http, location, id).await?,
            _ => None,
        };
        let rows = images
            .payload
            .images
            .into_values()
            .flat_map(BTreeMap::into_values)
            .flatten();
        let (mut parsed, mut seen) = (Vec::new(), HashSet::new());
        for row in rows {
            let image = row.check(location)?;
            // One file may be listed under several variants.
            if seen.insert(image.clone()) {
                parsed.push(image);
            }
        }
        Ok(Self {
            id: id.clone(),
            label,
            images: parsed,
        })
    }
}

async fn label_of_composeinfo(http: &Client, location: &Resource, id: &ComposeId) -> Result<Option<Label>, Error> {
    let file = location.join("metadata/composeinfo.json");
    let info: ComposeinfoFile = match read_json(http, &file).await {
        Ok(info) => info,
        Err(Error::Read(ReadError::Missing(_))) => return Ok(None),
        Err(error) => return Err(error),
    };
    info.header.check("productmd.composeinfo", location)?;
    if info.payload.compose.id != id.as_str() {
        return Err(Error::OtherCompose {
            expected: id.to_string(),
            found: info.payload.compose.id,
        });
    }
    info.payload.compose.label.as_deref().map(Label::parse).transpose()
}

async fn read_json<T: DeserializeOwned>(http: &Client, file: &Resource) -> Result<T, Error> {
    let bytes = file
        .read(http, "compose metadata", METADATA_LIMIT)
        .await
        .map_err(Error::Read)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json {
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
    images: BTreeMap<String, BTreeMap<String, Vec<ImageRow>>>,
}

#[derive(Deserialize)]
struct ComposeinfoFile {
    header: Header,
    payload: ComposeinfoPayload,
}

#[derive(Deserialize)]
struct ComposeinfoPayload {
    compose: ComposeRow,
}

#[derive(Deserialize)]
struct ComposeRow {
    id: String,
    #[serde(default)]
    label: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    version: String,
}

impl Header {
    /// The formats are compatible within a major version.
    fn check(&self, kind: &str, location: &Resource) -> Result<(), Error> {
        let known =
            self.version.split('.').next() == Some("1") && self.kind.as_deref().is_none_or(|found| found == kind);
        if known {
            return Ok(());
        }
        Err(Error::Version {
            location: location.to_string(),
            kind: self.kind.as_deref().unwrap_or(kind).escape_debug().to_string(),
            version: self.version.escape_debug().to_string(),
        })
    }
}

#[derive(Deserialize)]
struct ImageRow {
    arch: String,
    checksums: BTreeMap<String, String>,
    format: String,
    path: String,
    size: u64,
    subvariant: String,
    #[serde(rename = "type")]
    kind: String,
}

impl ImageRow {
    fn check(self, location: &Resource) -> Result<Image, Error> {
        let error = |what| Error::Row {
            path: self.path.escape_debug().to_string(),
            what,
        };
        if !stays_below(&self.path) {
            return Err(error("its path does not stay below the compose, or is not plain text"));
        }
        // These become parts of names, topics, and paths.
        if [&self.arch, &self.subvariant].iter().any(|text| !is_plain_name(text)) {
            return Err(error(
                "its architecture or subvariant has other characters than letters, digits, and .+_-",
            ));
        }
        let sha256 = self.checksums.get("sha256").map(|digest| digest.to_ascii_lowercase());
        let Some(sha256) =
            sha256.filter(|digest| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
        else {
            return Err(error("it has no SHA-256"));
        };
        Ok(Image {
            location: location.join(&self.path),
            path: self.path,
            arch: self.arch,
            subvariant: self.subvariant,
            kind: self.kind,
            format: self.format,
            size: self.size,
            sha256,
        })
    }
}

/// ASCII only: other characters can make a line of the log look like another one.
fn stays_below(path: &str) -> bool {
    let plain = |c: char| (c.is_ascii_graphic() && c != '\\') || c == ' ';
    let below = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
    path.split('/').all(below)
}

fn is_plain_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+_-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

/// A compose that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the metadata is missing, or cannot be had.
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
    /// A format nobody here has seen.
    #[error("understand {kind} {version} in {location}: only major version 1 is known")]
    Version {
        /// The compose.
        location: String,
        /// What the file says it is.
        kind: String,
        /// What version it says it has.
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
    /// A row that cannot be true.
    #[error("accept the image {path:?}: {what}")]
    Row {
        /// The image's path as given.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A milestone that has no rule for names.
    #[error("name the images of a candidate labelled {0:?}: only Beta-x.y and RC-x.y are known")]
    Label(String),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Read(error) => error.class(),
            Self::Json { .. }
            | Self::Version { .. }
            | Self::OtherCompose { .. }
            | Self::Row { .. }
            | Self::Label(_) => Class::Deliverable,
        }
    }
}
