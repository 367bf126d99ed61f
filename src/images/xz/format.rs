//! The parts around the compressed data of an [.xz file](https://tukaani.org/xz/xz-file-format.txt): headers, the index,
//! footers.

use std::io;

use flate2::Crc;

/// Length of a stream header and of a stream footer.
pub(in crate::images) const STREAM_HEADER: usize = 12;
/// Length of the longest block header.
pub(in crate::images) const LONGEST_HEADER: usize = 1024;
const HEADER_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const FOOTER_MAGIC: [u8; 2] = *b"YZ";
/// The only filter that compresses, and so the last one of every chain.
const LZMA2: u64 = 0x21;
/// A number has at most this many bytes, seven bits in each.
const VLI_BYTES: u32 = 9;

/// An .xz file that breaks the rules.
pub(super) fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Checksum of all headers.
pub(super) fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Begins a stream; says how its blocks are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StreamHeader {
    /// As in the file.
    pub bytes: [u8; STREAM_HEADER],
    /// Length of the check behind every block.
    pub check: usize,
}

impl StreamHeader {
    /// # Errors
    ///
    /// Another format or version, a damaged header, or a check of unknown kind.
    pub fn parse(bytes: [u8; STREAM_HEADER]) -> io::Result<Self> {
        if bytes[..6] != HEADER_MAGIC {
            return Err(bad("what follows a stream is neither a stream nor padding"));
        }
        if crc32(&bytes[6..8]) != bytes[8..] {
            return Err(bad("a stream header is damaged"));
        }
        let check = match bytes[6..8] {
            [0, 0] => 0,
            [0, 1] => 4,
            [0, 4] => 8,
            [0, 10] => 32,
            _ => return Err(bad("its blocks are checked in an unknown way")),
        };
        Ok(Self { bytes, check })
    }

    /// Tells streams with different checks apart.
    pub fn flags(&self) -> [u8; 2] {
        [self.bytes[6], self.bytes[7]]
    }

    /// Verifies the footer of this stream, whose index had `index` bytes.
    ///
    /// # Errors
    ///
    /// It is damaged, or belongs to another stream.
    pub fn verify_footer(&self, footer: [u8; STREAM_HEADER], index: u64) -> io::Result<()> {
        if index_length(footer)? != index || footer[8..10] != self.flags() {
            return Err(bad("a stream footer does not match its stream"));
        }
        Ok(())
    }

    /// Index and footer as if a block with these sizes were the whole stream: with them a decoder can tell that the
    /// block has ended and was what we took it for.
    pub fn ending(&self, record: Record) -> Vec<u8> {
        let mut index = vec![0, 1];
        push_vli(&mut index, record.unpadded);
        push_vli(&mut index, record.uncompressed);
        index.resize(index.len().next_multiple_of(4), 0);
        index.extend(crc32(&index));
        // A few dozen bytes.
        let backward = u32::try_from(index.len() / 4 - 1).unwrap_or(u32::MAX);
        let mut footer = backward.to_le_bytes().to_vec();
        footer.extend(self.flags());
        index.extend(crc32(&footer));
        index.extend(footer);
        index.extend(FOOTER_MAGIC);
        index
    }
}

/// Length of the index before this stream footer.
///
/// # Errors
///
/// It is damaged, or no footer.
pub(in crate::images) fn index_length(footer: [u8; STREAM_HEADER]) -> io::Result<u64> {
    if footer[10..] != FOOTER_MAGIC || crc32(&footer[4..10]) != footer[..4] {
        return Err(bad("a stream footer is damaged"));
    }
    let backward = u32::from_le_bytes([footer[4], footer[5], footer[6], footer[7]]);
    Ok((u64::from(backward) + 1) * 4)
}

/// The total that an index states for all blocks together: what they take in the file, padding included, and decoded.
///
/// # Errors
///
/// It is damaged, or its numbers are too large.
pub(in crate::images) fn blocks(index: &[u8]) -> io::Result<(u64, u64)> {
    let damaged = || bad("the index is damaged");
    let (fields, crc) = index.split_last_chunk::<4>().ok_or_else(damaged)?;
    let (first, mut rest) = fields.split_first().ok_or_else(damaged)?;
    if crc32(fields) != *crc || *first != 0 {
        return Err(damaged());
    }
    let (mut stored, mut decoded) = (0_u64, 0_u64);
    for _ in 0..take_vli(&mut rest)? {
        let unpadded = take_vli(&mut rest)?.checked_next_multiple_of(4);
        stored = unpadded
            .and_then(|length| stored.checked_add(length))
            .ok_or_else(damaged)?;
        decoded = decoded.checked_add(take_vli(&mut rest)?).ok_or_else(damaged)?;
    }
    Ok((stored, decoded))
}

/// The most bytes that the decoder of the first block has to remember, in a file that begins like this; `None` if
/// the file has no block.
pub(in crate::images) fn first_dictionary(file: &[u8]) -> Option<u64> {
    let block = file.get(STREAM_HEADER..)?;
    let header = block.get(..BlockHeader::length(*block.first()?))?;
    Some(BlockHeader::parse(header.to_vec()).ok()?.remembered())
}

/// The sizes that an index states for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// Length in the file without the padding of the compressed data.
    pub unpadded: u64,
    /// Length when decoded.
    pub uncompressed: u64,
}

/// Begins a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockHeader {
    /// As in the file.
    pub bytes: Vec<u8>,
    /// Length of the compressed data, if it tells.
    pub compressed: Option<u64>,
    /// Length when decoded, if it tells.
    pub uncompressed: Option<u64>,
    /// Size of the dictionary, in bytes.
    pub dictionary: u64,
}

impl BlockHeader {
    /// The most bytes that a decoder has to remember. A smaller block does not fill its dictionary.
    pub fn remembered(&self) -> u64 {
        self.dictionary.min(self.uncompressed.unwrap_or(u64::MAX))
    }

    /// Length of a block header that begins with this byte; zero begins an index instead.
    pub fn length(first: u8) -> usize {
        (usize::from(first) + 1) * 4
    }

    /// # Errors
    ///
    /// A damaged header, or a filter chain that does not end in the one compression there is.
    pub fn parse(bytes: Vec<u8>) -> io::Result<Self> {
        let Some((fields, crc)) = bytes.split_last_chunk::<4>().map(|(fields, crc)| (fields, *crc)) else {
            return Err(bad("a block header is too short"));
        };
        if crc32(fields) != crc {
            return Err(bad("a block header is damaged"));
        }
        let [_, flags, rest @ ..] = fields else {
            return Err(bad("a block header is too short"));
        };
        if flags & 0x3c != 0 {
            return Err(bad("a block header has unknown flags"));
        }
        let mut rest = rest;
        let mut size = |flag| (flags & flag != 0).then(|| take_vli(&mut rest)).transpose();
        let (compressed, uncompressed) = (size(0x40)?, size(0x80)?);
        let mut dictionary = None;
        for _ in 0..=flags & 3 {
            if dictionary.is_some() {
                return Err(bad("a block has a filter after its compression"));
            }
            let id = take_vli(&mut rest)?;
            let length = take_vli(&mut rest)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((properties, after)) = rest.split_at_checked(length) else {
                return Err(bad("a block header is too short for its filters"));
            };
            rest = after;
            if id == LZMA2 {
                dictionary = Some(dictionary_size(properties)?);
            }
        }
        if rest.iter().any(|byte| *byte != 0) {
            return Err(bad("a block header has something in its padding"));
        }
        let dictionary = dictionary.ok_or_else(|| bad("a block is not compressed with LZMA2"))?;
        Ok(Self {
            compressed,
            uncompressed,
            dictionary,
            bytes,
        })
    }
}

fn dictionary_size(properties: &[u8]) -> io::Result<u64> {
    match *properties {
        [40] => Ok(u64::from(u32::MAX)),
        [bits] if bits < 40 => Ok((2 | u64::from(bits & 1)) << (bits / 2 + 11)),
        _ => Err(bad("a block header has wrong LZMA2 properties")),
    }
}

/// Reads a number of variable length, byte by byte.
#[derive(Debug, Default)]
pub(super) struct Vli {
    value: u64,
    bytes: u32,
}

impl Vli {
    /// The number, once this was its last byte.
    ///
    /// # Errors
    ///
    /// It is too long, or longer than need be.
    pub fn push(&mut self, byte: u8) -> io::Result<Option<u64>> {
        if self.bytes == VLI_BYTES || (byte == 0 && self.bytes > 0) {
            return Err(bad("a number is encoded wrongly"));
        }
        self.value |= u64::from(byte & 0x7f) << (7 * self.bytes);
        self.bytes += 1;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

fn take_vli(rest: &mut &[u8]) -> io::Result<u64> {
    let mut number = Vli::default();
    while let Some((byte, after)) = rest.split_first() {
        *rest = after;
        if let Some(value) = number.push(*byte)? {
            return Ok(value);
        }
    }
    Err(bad("a number is cut off"))
}

fn push_vli(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(fields: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(fields);
        bytes.resize((bytes.len() + 4).next_multiple_of(4) - 4, 0);
        bytes[0] = u8::try_from(bytes.len() / 4).unwrap();
        bytes.extend(crc32(&bytes));
        bytes
    }

    #[test]
    fn numbers_come_back() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX >> 1] {
            let mut bytes = Vec::new();
            push_vli(&mut bytes, value);
            assert_eq!(take_vli(&mut &bytes[..]).unwrap(), value);
        }
    }

    #[test]
    fn headers_tell_sizes_and_dictionary() {
        let parsed = BlockHeader::parse(header(&[0xc0, 0x80, 1, 5, 0x21, 1, 22])).unwrap();
        assert_eq!((parsed.compressed, parsed.uncompressed), (Some(128), Some(5)));
        assert_eq!(parsed.dictionary, 8 << 20);
        let parsed = BlockHeader::parse(header(&[1, 3, 1, 0, 0x21, 1, 40])).unwrap();
        assert_eq!((parsed.compressed, parsed.dictionary), (None, u64::from(u32::MAX)));
    }

    #[test]
    fn wrong_headers_are_refused() {
        let table: [(&[u8], &str); 9] = [
            (&[4, 0x21, 1, 22], "unknown flags"),
            (&[0, 0x21, 1, 41], "LZMA2 properties"),
            (&[0, 0x21, 0], "LZMA2 properties"),
            (&[0, 3, 1, 0], "not compressed"),
            (&[1, 0x21, 1, 22, 3, 1, 0], "after its compression"),
            (&[0, 0x21, 100, 22], "too short for its filters"),
            (&[0, 0x21, 1, 22, 0, 1], "in its padding"),
            (&[0x40, 0x80, 0, 0x21, 1, 22], "encoded wrongly"),
            (
                &[0x40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
                "encoded wrongly",
            ),
        ];
        for (fields, expected) in table {
            let error = BlockHeader::parse(header(fields)).unwrap_err().to_string();
            assert!(error.contains(expected), "{fields:?}: {error}");
        }
        let mut damaged = header(&[0, 0x21, 1, 22]);
        damaged[2] ^= 1;
        assert!(BlockHeader::parse(damaged).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn unknown_checks_are_refused() {
        let mut bytes = [0xfd, b'7', b'z', b'X', b'Z', 0, 0, 2, 0, 0, 0, 0];
        let crc = crc32(&bytes[6..8]);
        bytes[8..].copy_from_slice(&crc);
        let error = StreamHeader::parse(bytes).unwrap_err().to_string();
        assert!(error.contains("unknown way"), "{error}");
    }
}
