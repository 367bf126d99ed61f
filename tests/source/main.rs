//! Images over real HTTP: what comes out of a [`Source`], and what is said when it cannot.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod connection;
mod content;
mod disks;
mod forms;
mod redirects;
mod size;

use std::path::Path;
use std::time::Duration;

use cloud_image_uploader::base::failure::{Chain, Class, Classified};
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::images::source::{Chunk, Chunks, Content, Error, Form, Sources};
use cloud_image_uploader::model::compose::Image;
use cloud_image_uploader_test_support::archive::sha256;
use cloud_image_uploader_test_support::files::Files;
use tempfile::TempDir;

/// Nothing here takes that long, even beside a compiler.
const LIMIT: Duration = Duration::from_secs(60);

/// The daemon's client, but one that finds a connection dead sooner.
fn sources(at_once: usize) -> Sources {
    let client = http::builder()
        .read_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    Sources::new(client, Board::log(), at_once, 512 << 20, 2)
}

/// A file server with images.
struct Shelf {
    folder: TempDir,
    files: Files,
    sources: Sources,
}

impl Shelf {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            files: Files::start(folder.path()).await.unwrap(),
            folder,
            sources: sources(4),
        }
    }

    /// Puts a file on the shelf and describes it as its metadata would.
    fn put(&self, name: &str, bytes: &[u8]) -> Image {
        std::fs::write(self.folder.path().join(name), bytes).unwrap();
        let url = self.files.url(&format!("/{name}"));
        image(Resource::remote(&url).unwrap(), name, bytes)
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn read(&self, image: &Image, form: Form) -> Result<Vec<Chunk>, Error> {
        read(&self.sources, image, form).await
    }

    /// The ranges asked for; "" for a request without one.
    fn ranges(&self, name: &str) -> Vec<String> {
        let requests = self.files.requests_for(&format!("/{name}"));
        requests.into_iter().map(|r| r.range.unwrap_or_default()).collect()
    }
}

fn image(location: Resource, name: &str, bytes: &[u8]) -> Image {
    Image {
        path: name.to_owned(),
        location,
        arch: "x86_64".to_owned(),
        subvariant: "Cloud_Base".to_owned(),
        kind: "raw-xz".to_owned(),
        format: "raw.xz".to_owned(),
        size: bytes.len() as u64,
        sha256: sha256(bytes),
    }
}

async fn read(sources: &Sources, image: &Image, form: Form) -> Result<Vec<Chunk>, Error> {
    let whole = async {
        let mut chunks = sources.source(image).open(form).await?;
        all(&mut chunks).await
    };
    tokio::time::timeout(LIMIT, whole).await.unwrap()
}

async fn all(chunks: &mut Chunks) -> Result<Vec<Chunk>, Error> {
    let mut found = Vec::new();
    while let Some(chunk) = chunks.next().await? {
        found.push(chunk);
    }
    // The end stays the end.
    assert_eq!(chunks.next().await.unwrap(), None);
    Ok(found)
}

/// The chunks' bytes, after a look at their places.
fn joined(chunks: &[Chunk]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in chunks {
        assert_eq!(chunk.offset, bytes.len() as u64, "pieces in order, without gaps");
        match &chunk.content {
            Content::Data(data) => bytes.extend_from_slice(data),
            Content::Hole(len) => bytes.resize(bytes.len() + len, 0),
        }
    }
    bytes
}

/// Without the megabytes that `assert_eq!` would print.
#[track_caller]
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let different = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(different, None, "{what}: first difference");
}

/// How an error reads, and what can be done about it.
fn described(error: &Error) -> (String, Class) {
    (Chain(error).to_string(), error.class())
}
