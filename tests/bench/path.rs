//! From an image to a target, as a provider goes it: read, verify, decode, send. The targets are stand-ins that count.
//!
//! The only file here that uses the source's interface.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::images::source::{Chunk, Chunks, Content, Form, Sources};
use cloud_image_uploader::model::compose::Image;
use crc_fast::{CrcAlgorithm, Digest};
use futures_util::stream;
use reqwest::{Body, Client};
use tokio::task::JoinSet;

/// The program's default for `max_concurrent_images`.
const IMAGES: usize = 4;
/// The program's default for `buffer_memory`.
const MEMORY: u64 = 512 << 20;
/// The source of the zeros that dense targets get for a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A kind of target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// None: the image is decoded and dropped.
    Nothing,
    /// An S3 multipart upload in order, zeros and all.
    Dense,
    /// The blocks of [EBS direct](https://docs.aws.amazon.com/ebs/latest/APIReference/API_PutSnapshotBlock.html) that hold
    /// anything, each with its SHA-256.
    Ebs,
    /// The pages of an [Azure page blob](https://learn.microsoft.com/rest/api/storageservices/put-page) that hold anything,
    /// with the CRC-64 of each write.
    Pages,
}

impl Shape {
    /// Bytes in one request.
    const fn part(self) -> u64 {
        match self {
            Self::Nothing | Self::Ebs => 512 << 10,
            Self::Dense => 8 << 20,
            Self::Pages => 4 << 20,
        }
    }

    /// Requests in flight.
    const fn in_flight(self) -> usize {
        match self {
            Self::Nothing | Self::Ebs => 16,
            Self::Dense | Self::Pages => 4,
        }
    }
}

/// An image of which size and SHA-256 are known.
pub fn image(location: &str, size: u64, sha256: &str) -> Result<Image> {
    Ok(Image {
        path: location.to_owned(),
        location: match location.strip_prefix("http:") {
            Some(_) => Resource::Http(location.parse()?),
            None => Resource::Folder(Path::new(location).to_owned()),
        },
        arch: "x86_64".to_owned(),
        subvariant: "Cloud_Base".to_owned(),
        kind: "raw-xz".to_owned(),
        format: "raw.xz".to_owned(),
        size,
        sha256: sha256.to_owned(),
    })
}

/// Images are opened as the program opens them with its default settings.
pub fn sources() -> Result<Sources> {
    let threads = std::thread::available_parallelism()?.get();
    Ok(Sources::new(http::client()?, Board::log(), IMAGES, MEMORY, threads))
}

/// Takes the image to a target of this shape at `sink`; returns the bytes it decodes to.
pub async fn run(sources: &Sources, image: &Image, shape: Shape, sink: &str) -> Result<u64> {
    let client = http::client()?;
    let chunks = open(sources, image, shape).await?;
    match shape {
        Shape::Nothing => count(chunks).await,
        Shape::Dense | Shape::Ebs | Shape::Pages => send(chunks, Target::new(client, shape, sink)).await,
    }
}

async fn open(sources: &Sources, image: &Image, shape: Shape) -> Result<Chunks> {
    let source = sources.source(image);
    Ok(match shape {
        Shape::Dense => source.open(Form::Raw).await?,
        Shape::Nothing | Shape::Ebs | Shape::Pages => source.open_unordered(Form::Raw).await?,
    })
}

async fn count(mut chunks: Chunks) -> Result<u64> {
    let mut size = 0;
    while let Some(chunk) = chunks.next().await? {
        size += chunk.content.len() as u64;
    }
    Ok(size)
}

async fn send(mut chunks: Chunks, target: Target) -> Result<u64> {
    let mut parts = Parts::new(target.shape.part());
    let mut size = 0;
    let mut flying = JoinSet::new();
    while let Some(chunk) = chunks.next().await? {
        size += chunk.content.len() as u64;
        for part in parts.add(chunk) {
            target.start(&mut flying, part).await?;
        }
    }
    for part in parts.rest() {
        target.start(&mut flying, part).await?;
    }
    while let Some(done) = flying.join_next().await {
        done??;
    }
    Ok(size)
}

/// The body of one request: its place in the image, counted in parts, and its pieces.
struct Part {
    number: u64,
    pieces: Vec<Chunk>,
}

/// Gathers chunks, in whatever order they come, into parts.
struct Parts {
    size: u64,
    open: HashMap<u64, (u64, Vec<Chunk>)>,
}

impl Parts {
    fn new(size: u64) -> Self {
        let open = HashMap::new();
        Self { size, open }
    }

    /// Returns the parts that became complete.
    fn add(&mut self, chunk: Chunk) -> Vec<Part> {
        let mut complete = Vec::new();
        let Chunk { offset, content } = chunk;
        let mut done = 0;
        while done < content.len() as u64 {
            let offset = offset + done;
            let number = offset / self.size;
            let length = ((number + 1) * self.size - offset).min(content.len() as u64 - done);
            let piece = match &content {
                Content::Data(bytes) => Content::Data(bytes.slice(done as usize..(done + length) as usize)),
                Content::Hole(_) => Content::Hole(length as usize),
            };
            let (filled, pieces) = self.open.entry(number).or_default();
            *filled += length;
            pieces.push(Chunk { offset, content: piece });
            if *filled == self.size
                && let Some((_, pieces)) = self.open.remove(&number)
            {
                complete.push(Part { number, pieces });
            }
            done += length;
        }
        complete
    }

    /// The last part, where the image is no whole number of them.
    fn rest(self) -> impl Iterator<Item = Part> {
        self.open
            .into_iter()
            .map(|(number, (_, pieces))| Part { number, pieces })
    }
}

impl Part {
    fn is_hole(&self) -> bool {
        self.pieces
            .iter()
            .all(|piece| matches!(piece.content, Content::Hole(_)))
    }

    fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.content.len() as u64).sum()
    }

    /// The bytes in order, without copying any.
    fn bytes(mut self) -> Vec<Bytes> {
        self.pieces.sort_by_key(|piece| piece.offset);
        let mut all = Vec::with_capacity(self.pieces.len());
        for piece in self.pieces {
            match piece.content {
                Content::Data(bytes) => all.push(bytes),
                Content::Hole(mut length) => {
                    while length > 0 {
                        let step = length.min(ZEROS.len());
                        all.push(Bytes::from_static(&ZEROS[..step]));
                        length -= step;
                    }
                }
            }
        }
        all
    }
}

/// Where parts go.
struct Target {
    client: Client,
    shape: Shape,
    sink: String,
}

impl Target {
    fn new(client: Client, shape: Shape, sink: &str) -> Self {
        let sink = sink.to_owned();
        Self { client, shape, sink }
    }

    /// Sends a part beside the others, as soon as there is room. A sparse target is not sent holes.
    async fn start(&self, flying: &mut JoinSet<Result<()>>, part: Part) -> Result<()> {
        if self.shape != Shape::Dense && part.is_hole() {
            return Ok(());
        }
        while flying.len() >= self.shape.in_flight() {
            flying.join_next().await.context("no request in flight")???;
        }
        let (client, url, shape) = (self.client.clone(), self.url(&part), self.shape);
        flying.spawn(put(client, url, shape, part));
        Ok(())
    }

    fn url(&self, part: &Part) -> String {
        let (sink, number) = (&self.sink, part.number);
        match self.shape {
            Shape::Nothing | Shape::Dense => format!("{sink}/bucket/disk.raw?partNumber={}&uploadId=1", number + 1),
            Shape::Ebs => format!("{sink}/snapshots/snap-1/blocks/{number}"),
            Shape::Pages => format!("{sink}/container/disk.vhd?comp=page"),
        }
    }
}

/// One request, with the checksum that the real target wants or that its SDK sends.
async fn put(client: Client, url: String, shape: Shape, part: Part) -> Result<()> {
    let start = part.number * shape.part();
    let length = part.len();
    let bytes = part.bytes();
    let request = client.put(url).header("content-length", length);
    let request = match shape {
        Shape::Nothing | Shape::Dense => {
            let mut crc = flate2::Crc::new();
            bytes.iter().for_each(|piece| crc.update(piece));
            request.header("x-amz-checksum-crc32", BASE64.encode(crc.sum().to_be_bytes()))
        }
        Shape::Ebs => {
            let sum = match &bytes[..] {
                [whole] => digest(&SHA256, whole),
                pieces => digest(&SHA256, &pieces.concat()),
            };
            request.header("x-amz-checksum", BASE64.encode(sum))
        }
        Shape::Pages => {
            let mut crc = Digest::new(CrcAlgorithm::Crc64Nvme);
            bytes.iter().for_each(|piece| crc.update(piece));
            request
                .header("x-ms-page-write", "update")
                .header("x-ms-range", format!("bytes={start}-{}", start + length - 1))
                .header("x-ms-content-crc64", BASE64.encode(crc.finalize().to_le_bytes()))
        }
    };
    let pieces = stream::iter(bytes.into_iter().map(Ok::<_, std::io::Error>));
    let response = request.body(Body::wrap_stream(pieces)).send().await?;
    ensure!(
        response.status().is_success(),
        "the sink answered {}",
        response.status()
    );
    Ok(())
}
