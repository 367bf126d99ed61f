//! Signed checksums: whether a key of the operator's keyring vouches for an image.
//!
//! Beside its images a release has files such as `Fedora-Cloud-44-1.7-x86_64-CHECKSUM`,
//! [clear-signed](https://www.rfc-editor.org/rfc/rfc9580#name-cleartext-signature-framewo), with lines
//! `SHA256 (name) = digest`. They are signed when the release is staged, so that nightly composes have none. The digest is
//! compared with that of the metadata, before anything is staged; the bytes are compared with the metadata as always.

#[cfg(feature = "signatures")]
mod keyring;
#[cfg(not(feature = "signatures"))]
#[path = "signature/no_keyring.rs"]
mod keyring;

use std::path::PathBuf;

use reqwest::Client;

use self::keyring::Keyring;

use crate::base::failure::{Class, Classified};
use crate::base::resource::ReadError;
use crate::config::{Service, VerifySignatures};
use crate::model::compose::{Compose, Image};

/// Fedora's have two kilobytes.
const LIMIT: u64 = 1 << 20;
/// Files that start otherwise are checksums without a signature.
const SIGNED: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";

/// The configured verification.
#[derive(Debug)]
pub struct Signatures {
    mode: VerifySignatures,
    keyring: Keyring,
}

impl Signatures {
    /// Reads the keyring. Every key in it is trusted; expired and revoked keys are for the operator to take out.
    ///
    /// # Errors
    ///
    /// A keyring that cannot be read, or holds something else than public keys.
    pub fn new(service: &Service) -> Result<Self, Error> {
        let keyring = match &service.keyring {
            Some(path) if service.verify_signatures != VerifySignatures::Off => Keyring::read(path)?,
            Some(_) | None => Keyring::default(),
        };
        Ok(Self {
            mode: service.verify_signatures,
            keyring,
        })
    }

    /// Verifies what is said of these images.
    ///
    /// # Errors
    ///
    /// Checksums that are missing although required, cannot be read, are not signed by a known key, or differ from the
    /// metadata.
    pub async fn verify(&self, http: &Client, compose: &Compose, images: &[Image]) -> Result<(), Error> {
        if self.mode == VerifySignatures::Off {
            return Ok(());
        }
        for image in images {
            match self.vouched(http, compose, image).await? {
                Some(file) => tracing::info!(file, "{} is vouched for by {file}", image.path),
                None if self.mode == VerifySignatures::Require => {
                    return Err(Error::Unsigned {
                        path: image.path.clone(),
                        names: names(compose, image).join(" or "),
                    });
                }
                None => tracing::info!("{} has no signed checksums", image.path),
            }
        }
        Ok(())
    }

    /// The file that vouches for an image, if there is a signed one.
    async fn vouched(&self, http: &Client, compose: &Compose, image: &Image) -> Result<Option<String>, Error> {
        for name in names(compose, image) {
            let file = image.location.beside(&name);
            let bytes = match file.read(http, "checksums", LIMIT).await {
                Err(ReadError::Missing(_)) => continue,
                read => read.map_err(Error::Read)?,
            };
            if !bytes.starts_with(SIGNED) {
                continue;
            }
            let signed = self.keyring.signed_text(&bytes);
            let text = signed.ok_or_else(|| Error::Untrusted(name.clone()))?;
            return match listed(&text, image.file_name()) {
                Some(digest) if digest.eq_ignore_ascii_case(&image.sha256) => Ok(Some(name)),
                Some(digest) => Err(Error::Differs {
                    path: image.path.clone(),
                    file: name,
                    listed: digest.to_owned(),
                    found: image.sha256.clone(),
                }),
                None => Err(Error::Unlisted {
                    path: image.path.clone(),
                    file: name,
                }),
            };
        }
        Ok(None)
    }
}

/// Possible names of the CHECKSUM file: that of a candidate has its label, that of a nightly its date.
fn names(compose: &Compose, image: &Image) -> Vec<String> {
    let variant = image.path.split('/').next().unwrap_or_default();
    let release = match compose.id.number {
        Some(number) => number.to_string(),
        None => format!("{:?}", compose.id.family),
    };
    let stamp = compose.id.as_str().rsplit('-').next().unwrap_or_default();
    let arch = &image.arch;
    let label = compose.label.iter().map(|label| &label.numbers);
    let mut names: Vec<_> = label
        .map(|numbers| format!("Fedora-{variant}-{release}-{numbers}-{arch}-CHECKSUM"))
        .collect();
    names.push(format!("Fedora-{variant}-{release}-{arch}-{stamp}-CHECKSUM"));
    names
}

/// The digest of a file.
fn listed<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let digest = |line: &'a str| line.strip_prefix("SHA256 (")?.strip_prefix(name)?.strip_prefix(") = ");
    text.lines().find_map(digest).map(str::trim_end)
}

/// Checksums that vouch for nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keyring is not there.
    #[error("read the keyring {}", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The keyring is not one.
    #[error("read the keyring {}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        source: keyring::Unreadable,
    },
    /// This build cannot verify signatures.
    #[error("verify signatures: this build lacks the feature `signatures`, so it needs verify_signatures = \"off\"")]
    LeftOut,
    /// The keyring has no keys.
    #[error("read the keyring {}: there is no public key in it", .0.display())]
    Empty(PathBuf),
    /// A file is there and cannot be had.
    #[error("read the signed checksums")]
    Read(#[source] ReadError),
    /// The signature is by an unknown key, or of another text.
    #[error("trust {0}: it is not signed by a key of the keyring")]
    Untrusted(String),
    /// The image needs signed checksums, and the compose has none for it.
    #[error("verify {path}: there are no signed checksums ({names}), and verify_signatures is \"require\"")]
    Unsigned {
        /// The image.
        path: String,
        /// The names that were tried.
        names: String,
    },
    /// The image is not in it.
    #[error("verify {path}: the signed {file} does not list it")]
    Unlisted {
        /// The image.
        path: String,
        /// The signed file.
        file: String,
    },
    /// The metadata says something else than what was signed.
    #[error(
        "verify {path}: its SHA-256 is {listed} according to the signed {file}, and {found} according to the metadata"
    )]
    Differs {
        /// The image.
        path: String,
        /// The signed file.
        file: String,
        /// According to it.
        listed: String,
        /// According to the metadata.
        found: String,
    },
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Keyring { .. } | Self::Keys { .. } | Self::LeftOut | Self::Empty(_) => Class::Everything,
            Self::Read(error) => error.class(),
            Self::Untrusted(_) | Self::Unsigned { .. } | Self::Unlisted { .. } | Self::Differs { .. } => {
                Class::Deliverable
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::resource::Resource;
    use crate::model::compose::{ComposeId, Label};

    fn names_of(id: &str, label: Option<&str>) -> Vec<String> {
        let compose = Compose {
            id: ComposeId::parse(id).unwrap(),
            label: label.map(|label| Label::parse(label).unwrap()),
            rows: Vec::new(),
        };
        let image = Image {
            path: "Cloud/x86_64/images/a.raw.xz".to_owned(),
            location: Resource::Folder("a".into()),
            arch: "x86_64".to_owned(),
            subvariant: "Cloud_Base".to_owned(),
            kind: "raw-xz".to_owned(),
            format: "raw.xz".to_owned(),
            size: 1,
            sha256: String::new(),
        };
        names(&compose, &image)
    }

    #[test]
    fn files_are_named_by_label_or_date() {
        let date = "Fedora-Cloud-44-x86_64-20260420.0-CHECKSUM";
        assert_eq!(
            names_of("Fedora-44-20260420.0", Some("RC-1.7")),
            ["Fedora-Cloud-44-1.7-x86_64-CHECKSUM", date]
        );
        assert_eq!(names_of("Fedora-44-20260420.0", None), [date]);
        assert_eq!(
            names_of("Fedora-Rawhide-20240829.n.1", None),
            ["Fedora-Cloud-Rawhide-x86_64-20240829.n.1-CHECKSUM"]
        );
    }

    #[test]
    fn a_name_is_listed_as_a_whole() {
        let text = "# a.raw: 3 bytes\r\nSHA256 (xa.raw) = 1\r\nSHA256 (a.raw) = 2\r\nSHA256 (a.raw.xz) = 3\r\n";
        assert_eq!(listed(text, "a.raw"), Some("2"));
        assert_eq!(listed(text, "a.raw.xz"), Some("3"));
        assert_eq!(listed(text, "raw"), None);
    }
}
