//! One row of images.json: everything that selection asks of it, and the image where the row describes one properly.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::base::resource::Resource;

/// One image of a compose, as a checked row describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Image {
    /// Below the compose's location, as the metadata has it.
    pub path: String,
    /// Where to read it.
    pub location: Resource,
    /// Fedora's name: `x86_64`, `aarch64`, `ppc64le`, `s390x`.
    pub arch: String,
    /// The content: `Cloud_Base`, `Silverblue`.
    pub subvariant: String,
    /// productmd's `type`, which names the tool or form: `raw-xz`, `ociarchive`.
    pub kind: String,
    /// The stated form of the file: `raw.xz`, `tar.gz`.
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
        file_name(&self.path)
    }

    /// The image's name without version, the same in every compose: `Cloud_Base.x86_64`.
    #[must_use]
    pub fn what(&self) -> String {
        format!("{}.{}", self.subvariant, self.arch)
    }
}

/// One row of images.json. The first fields decide who publishes it; only then does it matter whether `image` is good.
/// A text field that is absent, null, or no text is empty here.
#[derive(Debug, Clone)]
pub struct Row {
    /// As in [`Image`], unchecked.
    pub path: String,
    /// As in [`Image`]; the architecture that the row is listed under where it gives no proper one itself.
    pub arch: String,
    /// As in [`Image`], unchecked.
    pub subvariant: String,
    /// As in [`Image`].
    pub kind: String,
    /// As in [`Image`].
    pub format: String,
    /// The image, or the first thing that is wrong with the row.
    pub image: Result<Image, BadRow>,
}

impl From<Image> for Row {
    fn from(image: Image) -> Self {
        Self {
            path: image.path.clone(),
            arch: image.arch.clone(),
            subvariant: image.subvariant.clone(),
            kind: image.kind.clone(),
            format: image.format.clone(),
            image: Ok(image),
        }
    }
}

impl Row {
    /// Reads a row, which is at `place` in the metadata and listed under `arch`; `None` where it is no object.
    pub(super) fn read(row: &RawValue, place: &str, arch: &str, location: &Resource) -> Option<Self> {
        // Each field is parsed on its own, so that no value makes the others unreadable: a number
        // out of range, half of a surrogate pair, deep nesting.
        let fields = Fields(serde_json::from_str(row.get()).ok()?);
        let [path, own_arch, subvariant, kind, format] =
            ["path", "arch", "subvariant", "type", "format"].map(|key| fields.get::<String>(key).unwrap_or_default());
        let bad = |problem| BadRow {
            row: match path.is_empty() {
                true => place.escape_debug().to_string(),
                false => path.escape_debug().to_string(),
            },
            problem,
        };
        let image = match (fields.get("size"), fields.sha256()) {
            _ if !stays_below(&path) => Err(bad(
                "its path does not stay below the compose, or has other characters than printable ASCII",
            )),
            // These become parts of names, topics, and paths.
            _ if !is_plain_name(&own_arch) => Err(bad(
                "its arch has other characters than letters, digits, and .+_-, or is missing",
            )),
            _ if !is_plain_name(&subvariant) => Err(bad(
                "its subvariant has other characters than letters, digits, and .+_-",
            )),
            (None, _) => Err(bad("its size is no number of bytes")),
            (_, None) => Err(bad("it has no SHA-256 of 64 hexadecimal digits in its checksums")),
            (Some(size), Some(sha256)) => Ok(Image {
                path: path.clone(),
                location: location.join(&path),
                arch: own_arch.clone(),
                subvariant: subvariant.clone(),
                kind: kind.clone(),
                format: format.clone(),
                size,
                sha256,
            }),
        };
        Some(Self {
            path,
            arch: match is_plain_name(&own_arch) {
                true => own_arch,
                false => arch.to_owned(),
            },
            subvariant,
            kind,
            format,
            image,
        })
    }

    /// The last part of the path.
    #[must_use]
    pub fn file_name(&self) -> &str {
        file_name(&self.path)
    }
}

/// A row's fields by name, as they stand in the file.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    /// A field; `None` where it is absent or of another type.
    fn get<T: Deserialize<'a>>(&self, key: &str) -> Option<T> {
        serde_json::from_str(self.0.get(key)?.get()).ok()
    }

    fn sha256(&self) -> Option<String> {
        let digest: String = Fields(self.get("checksums")?).get("sha256")?;
        let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest.then(|| digest.to_ascii_lowercase())
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
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

/// A row that cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image \"{row}\" is not acceptable: {problem}")]
pub struct BadRow {
    /// The image's path, or else the row's place in the metadata; escaped.
    row: String,
    /// Names the field.
    problem: &'static str,
}
