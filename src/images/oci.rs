//! Container images as archives hold them, read as a stream.
//!
//! An archive is read once, from its first byte to its last. Large blobs go into one or several [`Store`]s *as they come*;
//! small ones wait in memory, so that manifests can be read and only the blobs that they reference are stored. The result is
//! an [`Image`] with its manifest, which the caller stores last.
//!
//! Two forms are known: the [OCI image layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md) in a
//! tar archive, whose bytes are kept as they are, and the archive of `docker save`, whose plain layers are compressed on the
//! way. Both are read strictly where bytes are published (digests, sizes, diff ids, labels, platform), and leniently
//! everywhere else: entries that the image does not need may be anything.
//!
//! The types are ours and not those of `oci-spec`: that crate keeps annotations in a hash map, so that the same index
//! would have other bytes, and another digest, each time it is written.

mod archive;
mod choose;
mod contents;
mod error;
mod layer;
mod lenient;
mod stores;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use aws_lc_rs::digest;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

pub use self::archive::read;
pub use self::error::{Error, Fault};
pub use self::stores::Stores;
use crate::base::failure::Failure;

/// Media type of an image of one architecture.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of the list of an image's architectures.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's form of [`MANIFEST`], with the same keys.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's form of [`INDEX`], with the same keys.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of an image's configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer that is not compressed.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a layer compressed with zstd.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Media type of a layer compressed with gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Registries [accept no larger manifest](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-manifests).
pub const JSON_LIMIT: u64 = 4 << 20;

/// How [build tools](https://docs.docker.com/build/metadata/attestations/attestation-storage/) mark what is no image.
const REFERENCE: &str = "vnd.docker.reference.type";

/// `sha256:` and 64 lower-case digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finished(digest::digest(&digest::SHA256, bytes))
    }

    /// From a finished computation of SHA-256.
    fn finished(digest: digest::Digest) -> Self {
        Self::of_hex(&HEXLOWER.encode(digest.as_ref()))
    }

    fn of_hex(hex: &str) -> Self {
        Self(format!("sha256:{hex}"))
    }

    /// From the name of a file; `None` for any other name.
    fn of_name(hex: &str) -> Option<Self> {
        Self::parse(&format!("sha256:{hex}"))
    }

    /// Reads one as it is written; `None` for another algorithm or form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let digits = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (hex.len() == 64 && digits).then(|| Self(text.to_owned()))
    }

    /// With its algorithm.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without its algorithm, as files are named by it.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
            .ok_or_else(|| format!("not a SHA-256 digest: {:?}", text.chars().take(80).collect::<String>()))
    }
}

/// The reference to a blob in a manifest or index
/// ([descriptor](https://github.com/opencontainers/image-spec/blob/main/descriptor.md)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The form of what it names; empty where that is not said.
    #[serde(default, deserialize_with = "lenient::text")]
    pub media_type: String,
    /// SHA-256 of what it names.
    pub digest: Digest,
    /// Length of what it names, in bytes.
    pub size: u64,
    /// The platform that an image runs on; in indexes only.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::platform"
    )]
    pub platform: Option<Platform>,
    /// Further knowledge, ordered by name.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "lenient::texts"
    )]
    pub annotations: BTreeMap<String, String>,
    /// The type of something that is no image: a signature, a list of contents.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::some_text"
    )]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// The blob it names.
    #[must_use]
    pub fn blob(&self) -> Blob {
        Blob {
            digest: self.digest.clone(),
            size: self.size,
        }
    }

    /// Whether an entry of an index is an image, and no statement about one: how it was built, what is in it.
    #[must_use]
    pub fn is_image(&self) -> bool {
        let unknown = |platform: &Platform| platform.architecture == "unknown" || platform.os == "unknown";
        !self.platform.as_ref().is_some_and(unknown)
            && !self.annotations.contains_key(REFERENCE)
            && self.artifact_type.is_none()
    }
}

/// The system and processor that an image runs on, in the words of Go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, `ppc64le`, `s390x`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// `v8`; mostly left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The only system that Fedora's images run on.
    #[must_use]
    pub fn is_linux(&self) -> bool {
        self.os == "linux"
    }
}

/// The image of one architecture.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2 in everything written since 2016.
    #[serde(default, deserialize_with = "lenient::version")]
    pub schema_version: u32,
    /// The form that it claims to have.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::some_text"
    )]
    pub media_type: Option<String>,
    /// As in [`Descriptor`].
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::some_text"
    )]
    pub artifact_type: Option<String>,
    /// The image's configuration, a [`Config`].
    pub config: Descriptor,
    /// The image's layers, lowest first.
    #[serde(default, deserialize_with = "lenient::nullable")]
    pub layers: Vec<Descriptor>,
}

/// The images of all architectures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2 in everything written since 2016.
    #[serde(default, deserialize_with = "lenient::version")]
    pub schema_version: u32,
    /// The form that it claims to have.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient::some_text"
    )]
    pub media_type: Option<String>,
    /// One per architecture, as far as they are understood.
    #[serde(default, deserialize_with = "lenient::descriptors")]
    pub manifests: Vec<Descriptor>,
    /// Further knowledge, ordered by name.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "lenient::texts"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// The part of an image's configuration that is read.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// As in [`Platform`].
    pub architecture: String,
    /// As in [`Platform`].
    pub os: String,
    /// As in [`Platform`].
    #[serde(default)]
    pub variant: Option<String>,
    /// The time of the build, as RFC 3339.
    #[serde(default, deserialize_with = "lenient::some_text")]
    pub created: Option<String>,
    /// The layers, unpacked.
    #[serde(default, deserialize_with = "lenient::nullable")]
    pub rootfs: RootFs,
}

impl Config {
    /// The configuration's platform, without an empty variant.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone().filter(|variant| !variant.is_empty()),
        }
    }
}

/// An image's layers, unpacked.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    /// SHA-256 of each layer, unpacked, lowest first.
    #[serde(default, deserialize_with = "lenient::nullable")]
    pub diff_ids: Vec<Digest>,
}

/// An image whose blobs are all stored, and whose manifest is not.
#[derive(Debug, Clone)]
pub struct Image {
    /// To be stored last, byte for byte.
    pub manifest: Bytes,
    /// The manifest's media type.
    pub media_type: String,
    /// Of the manifest.
    pub digest: Digest,
    /// As its configuration says.
    pub platform: Platform,
}

impl Image {
    /// How an index names it.
    #[must_use]
    pub fn descriptor(&self, annotations: BTreeMap<String, String>) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.manifest.len() as u64,
            platform: Some(self.platform.clone()),
            annotations,
            artifact_type: None,
        }
    }
}

/// The name of an architecture in images, from Fedora's.
#[must_use]
pub fn architecture(fedora: &str) -> &str {
    match fedora {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armhfp" => "arm",
        "i386" | "i686" => "386",
        same => same,
    }
}

/// Fedora's name of an architecture, from that in images.
#[must_use]
pub fn fedora_architecture(name: &str) -> &str {
    match name {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "arm" => "armhfp",
        "386" => "i386",
        same => same,
    }
}

/// A blob's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Blob {
    /// Of its bytes.
    pub digest: Digest,
    /// How many bytes.
    pub size: u64,
}

/// A place for blobs: a repository of a registry, a folder.
///
/// A store that fails is left out of what follows; the others go on.
#[async_trait]
pub trait Store: Send + Sync {
    /// Whether the blob is there already.
    async fn has(&self, blob: &Blob) -> Result<bool, Failure>;

    /// Stores a blob. One whose body ends with an error must not be kept.
    async fn put(&self, blob: &Blob, body: Body) -> Result<(), Failure>;

    /// Stores a blob whose name is known only after its body's end. It may be there already.
    async fn put_unknown(&self, body: Pieces, name: oneshot::Receiver<Blob>) -> Result<(), Failure>;
}

/// A blob's bytes.
#[derive(Debug)]
pub enum Body {
    /// All of them; they may be sent again.
    Held(Bytes),
    /// Bytes as they come.
    Passing(Pieces),
}

/// A blob's bytes as they come. The end is reached only after they were verified; otherwise there is an error instead.
#[derive(Debug)]
pub struct Pieces {
    receiver: mpsc::Receiver<Option<Bytes>>,
    ended: bool,
}

impl Pieces {
    /// `None` is the end. A channel that closes without it was abandoned.
    fn new(receiver: mpsc::Receiver<Option<Bytes>>) -> Self {
        Self { receiver, ended: false }
    }
}

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.receiver.poll_recv(context));
        if let Some(Some(bytes)) = piece {
            return Poll::Ready(Some(Ok(bytes)));
        }
        self.ended = true;
        Poll::Ready(match piece {
            Some(_) => None,
            None => Some(Err(io::Error::other("the archive it comes from broke off"))),
        })
    }
}
