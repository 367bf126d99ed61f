//! Tarballs as builders make them, and what the import says to an object's bytes.

use std::io::Read;

use flate2::read::MultiGzDecoder;

use crate::archive::gzip;

const BLOCK: usize = 512;
const GIB: u64 = 1 << 30;

/// A sparse disk of one GiB that begins with these bytes, as a tarball that is hardly longer than they are.
pub fn of(bytes: &[u8]) -> Vec<u8> {
    gzip(&archive(&header("disk.raw", b'S', GIB as usize, bytes.len()), bytes))
}

/// A member with its data, and the end of the archive.
pub fn archive(header: &[u8; BLOCK], bytes: &[u8]) -> Vec<u8> {
    let mut archive = [header, bytes].concat();
    archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    archive
}

/// A header in GNU format: of a sparse file (`S`) whose data is at its beginning, or of a whole one.
pub fn header(name: &str, kind: u8, size: usize, stored: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    let mut octal = |at: usize, width: usize, number: usize| {
        let text = format!("{number:0width$o}\0", width = width - 1);
        header[at..at + width].copy_from_slice(text.as_bytes());
    };
    octal(124, 12, stored);
    if kind == b'S' {
        octal(386, 12, 0);
        octal(398, 12, stored);
        octal(483, 12, size);
    }
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    seal(header)
}

/// Puts the checksum in.
pub fn seal(mut header: [u8; BLOCK]) -> [u8; BLOCK] {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Reads a tarball to its end: one `disk.raw` in GNU format, whose size is a whole number of GiB. Returns that number.
pub fn check(bytes: &[u8]) -> Result<u64, String> {
    let mut tar = Vec::new();
    let read = MultiGzDecoder::new(bytes).read_to_end(&mut tar);
    read.map_err(|error| format!("it is no gzip file: {error}"))?;
    let header = tar.get(..BLOCK).ok_or("it is too short")?;
    let text = |range: std::ops::Range<usize>| {
        let field = String::from_utf8_lossy(&header[range]).into_owned();
        field.trim_matches(['\0', ' ']).to_owned()
    };
    if &header[257..263] != b"ustar " {
        return Err("Supported formats are: GNU and OLDGNU".to_owned());
    }
    let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    if name != b"disk.raw" {
        return Err(format!("it begins with {:?}", String::from_utf8_lossy(name)));
    }
    let size = match header[156] {
        b'S' => octal(&header[483..495], &text(483..495)),
        b'0' | 0 => octal(&header[124..136], &text(124..136)),
        other => return Err(format!("a member of type {other}")),
    };
    match size {
        Some(size) if size > 0 && size % GIB == 0 => Ok(size / GIB),
        size => Err(format!("a disk of {size:?} bytes")),
    }
}

fn octal(field: &[u8], text: &str) -> Option<u64> {
    if field[0] & 0x80 == 0 {
        return u64::from_str_radix(text, 8).ok();
    }
    Some(field[4..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}
