//! Makes .xz files, reads them through a source, and asks liblzma what they are.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::images::source::{CHUNK, Chunks, Content, Error, Form, Source, Sources};
use cloud_image_uploader::model::compose::Image;
use liblzma::stream::{Action, CONCATENATED, Check, Filters, LzmaOptions, MtStreamBuilder, Status, Stream};
use tempfile::TempDir;

/// The settings' default.
pub const MEMORY: u64 = 512 << 20;

/// A file of the metadata that holds these bytes, whatever they are.
pub struct Stored {
    folder: TempDir,
    bytes: Vec<u8>,
}

impl Stored {
    pub fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk.raw.xz"), bytes).unwrap();
        Self {
            folder,
            bytes: bytes.to_vec(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk.raw.xz")
    }

    pub fn image(&self) -> Image {
        let sha256 = digest(&SHA256, &self.bytes);
        Image {
            path: "disk.raw.xz".to_owned(),
            location: Resource::Folder(self.path()),
            arch: "x86_64".to_owned(),
            subvariant: "Cloud_Base".to_owned(),
            kind: "raw-xz".to_owned(),
            format: "raw.xz".to_owned(),
            size: self.bytes.len() as u64,
            sha256: sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// For images of which four are open at most.
pub fn sources(memory: u64, threads: usize) -> Sources {
    Sources::new(http::client().unwrap(), Board::log(), 4, memory, threads)
}

/// Opens, in order or not.
pub async fn open(source: &Source, ordered: bool) -> Chunks {
    if ordered {
        source.open(Form::Decompressed).await.unwrap()
    } else {
        source.open_unordered(Form::Decompressed).await.unwrap()
    }
}

/// The chunks that a source yields, put together; holes counted. Every promise about chunks is checked.
pub async fn collect(mut chunks: Chunks, ordered: bool) -> Result<(Vec<u8>, usize), Error> {
    let mut pieces = Vec::new();
    let mut holes = 0;
    let next = async {
        while let Some(chunk) = chunks.next().await? {
            pieces.push(chunk);
        }
        Ok::<_, Error>(())
    };
    tokio::time::timeout(Duration::from_secs(120), next)
        .await
        .expect("a source must not hang")?;
    if !ordered {
        pieces.sort_by_key(|chunk| chunk.offset);
    }
    let mut bytes = Vec::new();
    let count = pieces.len();
    for (index, chunk) in pieces.into_iter().enumerate() {
        assert_eq!(chunk.offset, bytes.len() as u64);
        assert!(
            chunk.content.len() == CHUNK || index + 1 == count,
            "only the last may be short"
        );
        match chunk.content {
            Content::Data(data) => bytes.extend_from_slice(&data),
            Content::Hole(len) => {
                holes += len;
                bytes.resize(bytes.len() + len, 0);
            }
        }
    }
    Ok((bytes, holes))
}

/// The bytes that a source decodes these to, with the given memory.
pub async fn decode(bytes: &[u8], ordered: bool, memory: u64) -> Result<Vec<u8>, Error> {
    let stored = Stored::new(bytes);
    let source = sources(memory, 2).source(&stored.image());
    let (decoded, _) = collect(open(&source, ordered).await, ordered).await?;
    Ok(decoded)
}

/// How long a source takes these bytes to be when decoded.
pub async fn decompressed_size(bytes: &[u8]) -> Result<u64, Error> {
    let stored = Stored::new(bytes);
    sources(MEMORY, 2).source(&stored.image()).decompressed_size().await
}

/// The bytes that liblzma decodes them to.
pub fn reference(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let stream = Stream::new_stream_decoder(128 << 20, CONCATENATED)?;
    let mut decoded = Vec::new();
    liblzma::read::XzDecoder::new_stream(bytes, stream).read_to_end(&mut decoded)?;
    Ok(decoded)
}

/// Blocks of this size whose headers tell their sizes, as `xz -T` makes them.
pub fn parallel(content: &[u8], block: u64, preset: u32, check: Check) -> Vec<u8> {
    let stream = MtStreamBuilder::new()
        .threads(1)
        .block_size(block)
        .preset(preset)
        .check(check)
        .encoder()
        .unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Blocks of this size whose headers do not tell their sizes; with filters before the compression if asked for.
pub fn serial(content: &[u8], block: usize, preset: u32, check: Check, filtered: bool) -> Vec<u8> {
    let mut filters = Filters::new();
    if filtered {
        filters.delta_properties(&[3]).unwrap().x86();
    }
    filters.lzma2(&LzmaOptions::new_preset(preset).unwrap());
    let mut encoder = Stream::new_stream_encoder(&filters, check).unwrap();
    let mut bytes = Vec::new();
    for piece in content.chunks(block) {
        run(&mut encoder, piece, &mut bytes, Action::FullFlush);
    }
    run(&mut encoder, &[], &mut bytes, Action::Finish);
    bytes
}

fn run(encoder: &mut Stream, mut input: &[u8], output: &mut Vec<u8>, action: Action) {
    loop {
        output.reserve(64 << 10);
        let before = encoder.total_in();
        let status = encoder.process_vec(input, output, action).unwrap();
        input = &input[usize::try_from(encoder.total_in() - before).unwrap()..];
        if status == Status::StreamEnd {
            return;
        }
    }
}

/// Bytes that no compressor can shorten.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut step).take(len / 8 + 1).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// Something between noise and zeros: compresses to about a third.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len).iter().map(|byte| byte & 0x11).collect()
}
