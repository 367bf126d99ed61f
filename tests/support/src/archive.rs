//! Images, archives, and composes made on the spot, good ones and hostile ones.
//!
//! [`OciArchive`] and [`DockerArchive`] build what skopeo and docker write. Each gives its entries as a list as well, so
//! that a test can reorder, double, or replace them before [`tar()`] packs the list, without any check. [`ComposeBuilder`]
//! puts images into a folder with the metadata that describes them. [`big`] writes a container archive of any size.

mod big;
mod compose;
mod docker;
mod oci;

use std::io::{Cursor, Read, Write};

use aws_lc_rs::digest;
use flate2::{Compression, GzBuilder};
use liblzma::stream::{Check, MtStreamBuilder};
use tar::{Builder, EntryType, Header};

pub use big::{Big, big};
pub use compose::{ComposeBuilder, Row, message};
pub use docker::DockerArchive;
pub use oci::{Layout, OciArchive, Packing, Part};

/// The time of everything made here: 24 October 2025, seconds since 1970.
pub const MTIME: u64 = 1_761_264_000;
/// The same instant as container metadata writes it.
pub const CREATED: &str = "2025-10-24T00:00:00Z";

/// The longest name that fits into the header of a tar entry.
const LONGEST_NAME: usize = 100;

/// One entry of a tar archive. Nothing is checked: names may climb out, links may point anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as the archive will carry it.
    pub name: String,
    /// The kind of entry, with its bytes or its target.
    pub content: Content,
    /// Put the name into a PAX record. Names that are too long for the header go there anyway.
    pub pax: bool,
}

/// The content of an entry, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A folder.
    Folder,
    /// A file.
    File(Vec<u8>),
    /// A symbolic link and its target.
    Symlink(String),
    /// A hard link and its target.
    Hardlink(String),
}

impl Entry {
    /// A file.
    pub fn file(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(name, Content::File(bytes.into()))
    }

    /// A folder.
    pub fn folder(name: impl Into<String>) -> Self {
        Self::new(name, Content::Folder)
    }

    /// A symbolic link.
    pub fn symlink(name: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(name, Content::Symlink(target.into()))
    }

    /// A hard link.
    pub fn hardlink(name: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(name, Content::Hardlink(target.into()))
    }

    fn new(name: impl Into<String>, content: Content) -> Self {
        Self {
            name: name.into(),
            content,
            pax: false,
        }
    }

    fn header(&self) -> (Header, &[u8]) {
        let (kind, mode, bytes, target) = match &self.content {
            Content::Folder => (EntryType::Directory, 0o755, &[][..], ""),
            Content::File(bytes) => (EntryType::Regular, 0o644, &bytes[..], ""),
            Content::Symlink(target) => (EntryType::Symlink, 0o777, &[][..], &target[..]),
            Content::Hardlink(target) => (EntryType::Link, 0o644, &[][..], &target[..]),
        };
        let header = header(&self.name, target, kind, mode, bytes.len() as u64);
        (header, bytes)
    }
}

/// A tar header with the name as it is; the tar crate's own setters refuse what a hostile archive needs.
fn header(name: &str, target: &str, kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(MTIME);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    let fields = header.as_old_mut();
    copy_into(&mut fields.name, name);
    copy_into(&mut fields.linkname, target);
    header.set_cksum();
    header
}

fn copy_into(field: &mut [u8], text: &str) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}

/// Packs entries in the order given.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for entry in entries {
        let (header, bytes) = entry.header();
        let mut records = Vec::new();
        if entry.pax || entry.name.len() > LONGEST_NAME {
            records.push(("path", entry.name.as_bytes()));
        }
        if let Content::Symlink(target) | Content::Hardlink(target) = &entry.content
            && target.len() > LONGEST_NAME
        {
            records.push(("linkpath", target.as_bytes()));
        }
        if !records.is_empty() {
            archive
                .append_pax_extensions(records)
                .expect("memory takes PAX records");
        }
        archive.append(&header, bytes).expect("memory takes an entry");
    }
    archive.into_inner().expect("memory takes the end of an archive")
}

/// One xz stream of one block, as a builder with one processor makes it.
pub fn xz(bytes: &[u8]) -> Vec<u8> {
    xz_blocks(bytes, bytes.len().max(1) as u64)
}

/// One xz stream of independent blocks of `block_size` bytes, sizes in their headers: what `xz --threads=0` makes.
pub fn xz_blocks(bytes: &[u8], block_size: u64) -> Vec<u8> {
    let stream = MtStreamBuilder::new()
        .threads(1)
        .block_size(block_size)
        .preset(0)
        .check(Check::Crc64)
        .encoder()
        .expect("liblzma makes an encoder");
    read_all(liblzma::read::XzEncoder::new_stream(bytes, stream))
}

/// One gzip member, the same bytes every time.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes gzip");
    encoder.finish().expect("memory takes the end of gzip")
}

/// One zstd frame.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(Cursor::new(bytes), 1).expect("memory takes zstd")
}

/// The SHA-256 of some bytes in hexadecimal, as images.json has it.
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// The same as a digest of the OCI specification: `sha256:…`.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

/// Bytes that do not compress, the same for the same seed. From 512 bytes on they carry the boot signature of a disk, so
/// that whole sectors of them can be published as one.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    Noise::new(seed).fill(&mut bytes);
    if let Some(signature) = bytes.get_mut(510..512) {
        signature.copy_from_slice(&[0x55, 0xaa]);
    }
    bytes
}

/// A file system of one file, as a tar archive: what a layer decompresses to.
pub fn layer(name: &str, size: usize) -> Vec<u8> {
    let seed = name
        .bytes()
        .fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    tar(&[
        Entry::folder("usr/"),
        Entry::file(format!("usr/{name}"), noise(seed, size)),
    ])
}

/// A xorshift generator: fast enough, without optimisation, for gigabytes.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        // The state must never be zero; the odd constant also tells small seeds apart.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

fn read_all(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("memory can be read");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, kind, link target, and content of every entry, as the tar crate reads them.
    pub(super) fn parsed(archive: &[u8]) -> Vec<(String, EntryType, Option<String>, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                let target = entry
                    .link_name_bytes()
                    .map(|target| String::from_utf8(target.into_owned()).unwrap());
                let kind = entry.header().entry_type();
                (name, kind, target, read_all(&mut entry))
            })
            .collect()
    }

    #[test]
    fn tar_carries_hostile_names_and_links_as_they_are() {
        let entries = [
            Entry::file("../climbs", "a"),
            Entry::file("/absolute", "bc"),
            Entry::symlink("link", "../../etc/passwd"),
            Entry::hardlink("hard", "/etc/shadow"),
            Entry::folder("folder/"),
        ];
        let found = parsed(&tar(&entries));
        assert_eq!(found.len(), entries.len());
        for (entry, (name, kind, target, content)) in entries.iter().zip(&found) {
            assert_eq!(name, &entry.name);
            match &entry.content {
                Content::Folder => assert_eq!(*kind, EntryType::Directory),
                Content::File(bytes) => assert_eq!((*kind, content), (EntryType::Regular, bytes)),
                Content::Symlink(to) => {
                    assert_eq!((*kind, target.as_ref()), (EntryType::Symlink, Some(to)))
                }
                Content::Hardlink(to) => {
                    assert_eq!((*kind, target.as_ref()), (EntryType::Link, Some(to)))
                }
            }
        }
    }

    #[test]
    fn long_names_and_chosen_ones_go_into_pax_records() {
        let long = "x/".repeat(100) + "end";
        let mut short = Entry::file("short", "2");
        short.pax = true;
        let archive = tar(&[Entry::file(long.clone(), "1"), short, Entry::file("plain", "3")]);
        let names: Vec<_> = parsed(&archive).into_iter().map(|entry| entry.0).collect();
        assert_eq!(names, [&long, "short", "plain"]);
        let raw = tar::Archive::new(&archive[..]).entries().unwrap().raw(true).count();
        assert_eq!(raw, 5, "two of three entries have a PAX header of their own");
    }

    #[test]
    fn compressors_give_back_what_they_took() {
        let bytes = [noise(1, 100_000), vec![0; 100_000]].concat();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&gzip(&bytes)[..])
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(plain, bytes);
        assert_eq!(zstd::decode_all(&zstd(&bytes)[..]).unwrap(), bytes);
        for packed in [xz(&bytes), xz_blocks(&bytes, 65_536)] {
            assert_eq!(read_all(liblzma::read::XzDecoder::new(&packed[..])), bytes);
        }
        assert_eq!(xz_block_count(&xz(&bytes)), 1);
        assert_eq!(xz_block_count(&xz_blocks(&bytes, 65_536)), 4);
    }

    /// Counts the records of the index (xz file format, section 4); enough for fewer than 128.
    fn xz_block_count(stream: &[u8]) -> u8 {
        let footer = &stream[stream.len() - 12..];
        let backward = u32::from_le_bytes(footer[4..8].try_into().unwrap()) as usize;
        stream[stream.len() - 12 - (backward + 1) * 4 + 1]
    }

    #[test]
    fn noise_repeats_for_a_seed_only_and_does_not_compress() {
        assert_eq!(noise(7, 1001), noise(7, 1001));
        assert_ne!(noise(7, 1001), noise(8, 1001));
        assert!(gzip(&noise(7, 50_000)).len() > 49_000);
        assert_eq!(noise(7, 600)[510..512], [0x55, 0xaa]);
    }
}
