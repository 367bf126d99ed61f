//! A container archive of many gigabytes, written without being held in memory.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use flate2::{Compression, GzBuilder};
use tar::EntryType;

use super::oci::{blob, config_of, index_of, manifest_of};
use super::{Entry, Noise, digest_of, header, hex, tar};

/// No layer is larger than this many bytes.
const LARGEST_LAYER: u64 = 1 << 30;
/// Bytes made at a time.
const PIECE: usize = 1 << 18;

/// The archive that [`big`] wrote.
#[derive(Clone, Debug)]
pub struct Big {
    /// `sha256:…` of the manifest.
    pub manifest: String,
    /// `sha256:…` of each layer, as stored.
    pub layers: Vec<String>,
    /// Size of the archive in bytes.
    pub size: u64,
}

/// Writes an OCI archive for amd64 of about `bytes_total` bytes, the same every time, whose layers hold noise.
///
/// Layers are of 1 GiB at most. They are valid gzip, but stored: noise does not compress, and compressing it takes
/// minutes.
pub fn big(path: &Path, bytes_total: u64) -> io::Result<Big> {
    let mut out = BufWriter::with_capacity(PIECE, File::create(path)?);
    for folder in ["blobs/", "blobs/sha256/"] {
        let header = header(folder, "", EntryType::Directory, 0o755, 0);
        out.write_all(header.as_bytes())?;
    }
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    let mut left = bytes_total;
    while left > 0 {
        let size = left.min(LARGEST_LAYER);
        let layer = write_layer(&mut out, layers.len() as u64, size)?;
        layers.push((layer.digest, layer.size));
        diff_ids.push(layer.diff_id);
        left -= size;
    }
    let config = config_of("amd64", diff_ids);
    let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = manifest_of(&config, layer_type, &layers);
    out.write_all(&tar(&[
        blob(&config),
        blob(&manifest),
        Entry::file("index.json", index_of(&manifest)),
        Entry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
    ]))?;
    out.flush()?;
    Ok(Big {
        manifest: digest_of(&manifest),
        layers: layers.into_iter().map(|(digest, _)| digest).collect(),
        size: out.stream_position()?,
    })
}

struct Layer {
    digest: String,
    diff_id: String,
    size: u64,
}

/// Writes one layer as an entry. Its name and size are known afterwards only, so the header is written last.
fn write_layer(out: &mut BufWriter<File>, number: u64, size: u64) -> io::Result<Layer> {
    let start = out.stream_position()?;
    out.write_all(&[0; 512])?;
    let stored = Counted::new(out);
    let packed = GzBuilder::new().write(stored, Compression::none());
    let mut plain = Counted::new(packed);

    let inner = header("usr/noise", "", EntryType::Regular, 0o644, size);
    plain.write_all(inner.as_bytes())?;
    let mut noise = Noise::new(number);
    let mut piece = vec![0; PIECE];
    let mut left = size;
    while left > 0 {
        let length = left.min(PIECE as u64) as usize;
        noise.fill(&mut piece[..length]);
        plain.write_all(&piece[..length])?;
        left -= length as u64;
    }
    plain.write_all(&[0; 512][..padding(size)])?;
    plain.write_all(&[0; 1024])?;

    let (packed, diff_id, _) = plain.finish();
    let (out, digest, size) = packed.finish()?.finish();
    out.write_all(&[0; 512][..padding(size)])?;
    let end = out.stream_position()?;
    out.seek(SeekFrom::Start(start))?;
    let name = format!("blobs/sha256/{digest}");
    out.write_all(header(&name, "", EntryType::Regular, 0o644, size).as_bytes())?;
    out.seek(SeekFrom::Start(end))?;
    Ok(Layer {
        digest: format!("sha256:{digest}"),
        diff_id: format!("sha256:{diff_id}"),
        size,
    })
}

/// Bytes missing to whole tar blocks.
fn padding(size: u64) -> usize {
    (size.next_multiple_of(512) - size) as usize
}

/// Counts and hashes what passes.
struct Counted<W> {
    inner: W,
    hash: Context,
    size: u64,
}

impl<W: Write> Counted<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Context::new(&SHA256),
            size: 0,
        }
    }

    /// The writer, the SHA-256 in hexadecimal, and the size in bytes.
    fn finish(self) -> (W, String, u64) {
        (self.inner, hex(self.hash.finish().as_ref()), self.size)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::archive::{read_all, tests::parsed};

    #[test]
    fn a_big_archive_is_right_in_every_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.ociarchive");
        // Not a multiple of anything, so that both paddings are used.
        let made = big(&path, 3_000_001).unwrap();
        let archive = std::fs::read(&path).unwrap();
        assert_eq!(archive.len() as u64, made.size);
        assert!(made.size > 3_000_001);

        let entries = parsed(&archive);
        let get = |name: &str| &entries.iter().find(|entry| entry.0 == name).unwrap().3;
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = get(&digest.replace("sha256:", "blobs/sha256/"));
            assert_eq!(
                (digest_of(bytes).as_str(), descriptor["size"].as_u64().unwrap()),
                (digest, bytes.len() as u64)
            );
            bytes
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = parse(get("index.json"));
        assert_eq!(index["manifests"][0]["digest"], made.manifest);
        let manifest = parse(follow(&index["manifests"][0]));
        let config = parse(follow(&manifest["config"]));
        let layer = follow(&manifest["layers"][0]);
        assert_eq!(made.layers, [digest_of(layer)]);
        let plain = read_all(flate2::read::GzDecoder::new(&layer[..]));
        assert_eq!(config["rootfs"]["diff_ids"][0], digest_of(&plain));
        assert_eq!(parsed(&plain)[0].3.len(), 3_000_001);
    }
}
