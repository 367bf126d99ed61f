//! What the import says to an object's bytes.

use std::io::Read;

use flate2::read::MultiGzDecoder;

const BLOCK: usize = 512;
const GIB: u64 = 1 << 30;

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
