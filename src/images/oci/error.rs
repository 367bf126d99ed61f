//! The faults of an archive.

use std::io;
use std::sync::Arc;

use super::Digest;
use crate::base::failure::{Class, Classified};

/// An archive that cannot be published.
#[derive(Debug, thiserror::Error)]
#[error("read {image} as a container image")]
pub struct Error {
    /// The archive, as its compose names it.
    pub image: String,
    /// Its fault.
    pub source: Fault,
}

/// A fault of an archive. Each text reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It is no tar archive, or only a part of one.
    #[error("unpack it")]
    Tar(#[source] io::Error),
    /// Data behind the end of the archive.
    #[error("find its end: it has more than {0} bytes behind it")]
    Trailing(u64),
    /// More entries than an image has.
    #[error("unpack it: it has more than {0} entries")]
    TooMany(usize),
    /// An entry that leads out of the archive.
    #[error("accept the entry {path:?}: it points outside the archive")]
    Outside {
        /// The entry, and what it points to.
        path: String,
    },
    /// Neither file, folder, nor link, or a name that is not text.
    #[error("accept the entry {path:?}: {what}")]
    Entry {
        /// The entry.
        path: String,
        /// The reason, as a sentence.
        what: &'static str,
    },
    /// A document that no registry would take.
    #[error("accept {what}: it is longer than {limit} bytes")]
    Huge {
        /// The document, or all of them.
        what: String,
        /// Bytes that are accepted.
        limit: u64,
    },
    /// Neither of the two known forms.
    #[error("find index.json or manifest.json in it: it is neither an OCI nor a docker archive")]
    Neither,
    /// A document that is not what it should be.
    #[error("understand {what}")]
    Json {
        /// The document.
        what: String,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// No image fits, or several do.
    #[error("choose the {architecture} image: there are {found}")]
    Choice {
        /// The architecture that was announced.
        architecture: String,
        /// How many images fit.
        found: usize,
    },
    /// Other bytes than their name says.
    #[error("verify blob {expected}: its digest is {found}")]
    Digest {
        /// By its name.
        expected: Digest,
        /// Of its bytes.
        found: Digest,
    },
    /// More or less than the manifest says.
    #[error("verify {what}: it has {found} bytes, and {expected} according to what names it")]
    Size {
        /// The blob.
        what: String,
        /// According to its descriptor.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// A blob or file that is referenced is absent.
    #[error("read {what}: it is referenced, and not in the archive")]
    Missing {
        /// A digest or path.
        what: String,
    },
    /// An image for another platform.
    #[error("accept it as {expected}: its configuration says {found}")]
    Platform {
        /// According to the compose.
        expected: String,
        /// According to its configuration.
        found: String,
    },
    /// A layer of a docker archive is not what the configuration says.
    #[error("verify layer {path}: it is {found} unpacked, and {expected} according to the configuration")]
    Layer {
        /// Its entry.
        path: String,
        /// According to the configuration.
        expected: Digest,
        /// As found.
        found: Digest,
    },
    /// A compressed layer that is damaged, or goes on behind its end.
    #[error("unpack layer {layer} with {packing}")]
    Unpack {
        /// Its digest or entry.
        layer: String,
        /// The format that its first bytes announce.
        packing: &'static str,
        /// Where unpacking ended.
        source: Arc<io::Error>,
    },
    /// A layer that would be published as something else than it is.
    #[error("accept layer {layer}: the manifest announces it as {media_type}, and it is {found}")]
    Label {
        /// Its digest.
        layer: String,
        /// According to the manifest.
        media_type: String,
        /// The format of its bytes.
        found: &'static str,
    },
    /// The configuration counts other layers than the manifest.
    #[error("match its layers: the manifest names {named}, the configuration {described}")]
    Layers {
        /// In the manifest.
        named: usize,
        /// In the configuration.
        described: usize,
    },
    /// The stream itself failed.
    #[error("read it")]
    Read(#[source] io::Error),
    /// The process is ending.
    #[error("compress a layer of it: interrupted")]
    Interrupted,
}

impl Classified for Error {
    fn class(&self) -> Class {
        match &self.source {
            Fault::Read(_) | Fault::Interrupted => Class::TRANSIENT,
            Fault::Tar(_)
            | Fault::Trailing(_)
            | Fault::TooMany(_)
            | Fault::Outside { .. }
            | Fault::Entry { .. }
            | Fault::Huge { .. }
            | Fault::Neither
            | Fault::Json { .. }
            | Fault::Choice { .. }
            | Fault::Digest { .. }
            | Fault::Size { .. }
            | Fault::Missing { .. }
            | Fault::Platform { .. }
            | Fault::Layer { .. }
            | Fault::Unpack { .. }
            | Fault::Label { .. }
            | Fault::Layers { .. } => Class::Deliverable,
        }
    }
}
