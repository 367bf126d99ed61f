//! What Compute Engine takes as an image, checked while it passes, at no second read.
//!
//! [Its rules](https://cloud.google.com/compute/docs/import/import-existing-image#create_image_file): a gzip file, in it
//! a tar archive in GNU format with one member, `disk.raw`, whose size is a whole number of GiB. It is imported long after
//! the upload, and what is wrong with it is told badly then.

use std::io::{self, Read};
use std::thread;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::source::{Error, Piece, Receiver, Sender};

/// Pieces that wait for the upload.
const QUEUE: usize = 4;
/// Everything in a tar archive comes in blocks of this size.
const BLOCK: usize = 512;
const GIB: u64 = 1 << 30;
/// How the name of the format reads in errors.
const FORMAT: &str = "a tarball for Compute Engine";

/// Passes the stored bytes on, and lets the end through only if the tarball is right.
///
/// # Errors
///
/// When the operating system has no thread left.
pub(super) fn start(path: &str, stored: Receiver<Bytes>) -> Result<Receiver<Bytes>, Error> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let image = path.to_owned();
    let run = move || {
        let mut passing = Passing {
            stored,
            sender: sender.clone(),
            piece: Bytes::new(),
            state: State::Passing,
        };
        let checked = check(flate2::read::MultiGzDecoder::new(&mut passing));
        // Size and checksum are known at the very end only, and a wrong one is the cause of all else.
        passing.drain();
        let outcome = match (passing.state, checked) {
            (State::Abandoned, _) => return,
            (State::Failed(error), _) => Err(error),
            (State::Passing | State::Ended, Ok(())) => Ok(Piece::End),
            (State::Passing | State::Ended, Err(source)) => Err(Error::Malformed {
                path: image,
                format: FORMAT,
                source,
            }),
        };
        // Nobody listens any more: then nobody needs to know.
        let _ = sender.blocking_send(outcome);
    };
    let spawned = thread::Builder::new().name("check".to_owned()).spawn(run);
    spawned.map_err(|source| Error::Thread {
        path: path.to_owned(),
        source,
    })?;
    Ok(receiver)
}

/// The stored bytes for the decoder; each piece goes on to the upload before it is looked at.
struct Passing {
    stored: Receiver<Bytes>,
    sender: Sender<Bytes>,
    piece: Bytes,
    state: State,
}

enum State {
    Passing,
    Ended,
    Failed(Error),
    /// The reader is gone.
    Abandoned,
}

impl Passing {
    /// Makes `piece` non-empty unless the end was reached, one way or another.
    fn fill(&mut self) {
        while self.piece.is_empty() && matches!(self.state, State::Passing) {
            match self.stored.blocking_recv() {
                Some(Ok(Piece::Next(bytes))) => {
                    self.piece = bytes.clone();
                    if self.sender.blocking_send(Ok(Piece::Next(bytes))).is_err() {
                        self.state = State::Abandoned;
                    }
                }
                Some(Ok(Piece::End)) => self.state = State::Ended,
                Some(Err(error)) => self.state = State::Failed(error),
                None => self.state = State::Abandoned,
            }
        }
    }

    fn drain(&mut self) {
        while matches!(self.state, State::Passing) {
            self.piece.clear();
            self.fill();
        }
    }
}

impl Read for Passing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill();
        let taken = self.piece.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.piece[..taken]);
        self.piece.advance(taken);
        Ok(taken)
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// Reads the archive to its end.
fn check(mut archive: impl Read) -> io::Result<()> {
    let header = read_block(&mut archive)?;
    let stored = check_header(&header, &mut archive)?;
    let padded = stored.next_multiple_of(BLOCK as u64);
    let skipped = io::copy(&mut archive.by_ref().take(padded), &mut io::sink())?;
    if skipped < padded {
        return Err(invalid(format!("disk.raw ends after {skipped} of {stored} bytes")));
    }
    // Two blocks of zeros, and padding.
    let mut rest = vec![0; 64 << 10];
    let mut zeros = 0;
    loop {
        match archive.read(&mut rest)? {
            0 if zeros < 2 * BLOCK => return Err(invalid("it ends without the mark of its end")),
            0 => return Ok(()),
            read if rest[..read].iter().all(|byte| *byte == 0) => zeros += read,
            _ => return Err(invalid("there is more in it than disk.raw")),
        }
    }
}

fn read_block(archive: &mut impl Read) -> io::Result<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    archive.read_exact(&mut block)?;
    Ok(block)
}

/// Checks the one header there may be, with the extensions of a sparse file, and returns the bytes that follow.
fn check_header(header: &[u8; BLOCK], archive: &mut impl Read) -> io::Result<u64> {
    if header.iter().all(|byte| *byte == 0) {
        return Err(invalid("it is empty"));
    }
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let blank: u64 = header[148..156].iter().map(|byte| u64::from(*byte)).sum();
    if number(&header[148..156]) != Some(sum - blank + 8 * u64::from(b' ')) {
        return Err(invalid("its first header has a wrong checksum"));
    }
    if &header[257..265] != b"ustar  \0" {
        return Err(invalid("it is not in GNU format"));
    }
    let sparse = match header[156] {
        b'0' | 0 => false,
        b'S' => true,
        b'x' | b'g' => return Err(invalid("it has a PAX header")),
        other => return Err(invalid(format!("its first member is of type {:?}", char::from(other)))),
    };
    let name = &header[..100];
    let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
    if name != b"disk.raw" {
        let name = String::from_utf8_lossy(name).escape_debug().to_string();
        return Err(invalid(format!("its member is named {name:?}, not \"disk.raw\"")));
    }
    let stored = number(&header[124..136]).ok_or_else(|| invalid("disk.raw has no size"))?;
    let size = if sparse {
        check_sparse(header, stored, archive)?
    } else {
        stored
    };
    if size == 0 || size % GIB != 0 {
        return Err(invalid(format!(
            "disk.raw has {size} bytes, which is not a whole number of GiB"
        )));
    }
    Ok(stored)
}

/// Checks the map of a [sparse file](https://www.gnu.org/software/tar/manual/html_node/Old-GNU-Format.html): in order,
/// inside the file, and of as much data as follows. Returns the size of the file.
fn check_sparse(header: &[u8; BLOCK], stored: u64, archive: &mut impl Read) -> io::Result<u64> {
    let size = number(&header[483..495]).ok_or_else(|| invalid("disk.raw has no size"))?;
    let (mut end, mut data) = (0, 0u64);
    let mut entries = |map: &[u8]| {
        for entry in map.chunks_exact(24).filter(|entry| entry[0] != 0) {
            let region = number(&entry[..12]).zip(number(&entry[12..]));
            let next = region.and_then(|(offset, length)| offset.checked_add(length));
            match (region, next) {
                (Some((offset, length)), Some(next)) if offset >= end && next <= size => {
                    end = next;
                    data += length;
                }
                _ => return Err(invalid("the map of disk.raw is wrong")),
            }
        }
        Ok(())
    };
    entries(&header[386..482])?;
    let mut more = header[482] != 0;
    while more {
        let block = read_block(archive)?;
        entries(&block[..504])?;
        more = block[504] != 0;
    }
    if data != stored {
        return Err(invalid("the map of disk.raw does not fit its data"));
    }
    Ok(size)
}

/// A number of a header: octal digits, or for large ones binary after a set first bit.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        // A field of eight bytes, such as a checksum's, has no room for more than the mark.
        let (high, low) = field.split_last_chunk::<8>()?;
        let empty = matches!(high, [0x80, rest @ ..] if rest.iter().all(|byte| *byte == 0));
        return empty.then(|| u64::from_be_bytes(*low));
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    u64::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sparse archive as `tar --format=gnu -S` makes it: `regions` of data in a file of `size` bytes.
    fn sparse(name: &str, size: u64, regions: &[(u64, u64)]) -> Vec<u8> {
        let stored: u64 = regions.iter().map(|(_, length)| length).sum();
        let mut header = header(name, b'S', stored);
        for (entry, (offset, length)) in header[386..482].chunks_exact_mut(24).zip(regions) {
            octal(&mut entry[..12], *offset);
            octal(&mut entry[12..], *length);
        }
        octal(&mut header[483..495], size);
        archive(seal(header), stored)
    }

    fn header(name: &str, kind: u8, size: u64) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        octal(&mut header[124..136], size);
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar  \0");
        header
    }

    fn octal(field: &mut [u8], number: u64) {
        let text = format!("{number:0width$o}\0", width = field.len() - 1);
        field.copy_from_slice(text.as_bytes());
    }

    fn seal(mut header: [u8; BLOCK]) -> [u8; BLOCK] {
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    fn archive(header: [u8; BLOCK], data: u64) -> Vec<u8> {
        let mut archive = header.to_vec();
        let data = usize::try_from(data).unwrap();
        archive.extend(vec![7; data]);
        archive.extend(vec![0; data.next_multiple_of(BLOCK) - data + 2 * BLOCK]);
        archive
    }

    #[test]
    fn what_the_builders_make_is_accepted() {
        check(&sparse("disk.raw", 5 * GIB, &[(0, 1000), (GIB, 512)])[..]).unwrap();
        // Sizes beyond eleven octal digits are binary.
        let mut large = header("disk.raw", b'S', 0);
        large[483..495].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
        check(&archive(seal(large), 0)[..]).unwrap();
        let sample = include_bytes!(
            "../../tests/fixtures/sample/compose/Cloud/x86_64/images/Fedora-Cloud-Base-GCE-43-1.7.x86_64.tar.gz"
        );
        check(flate2::read::MultiGzDecoder::new(&sample[..])).unwrap();
    }

    #[test]
    fn whole_files_are_counted_without_a_map() {
        // Its gibibyte of data is missing, which is found out only after the header was accepted.
        let error = check(&archive(seal(header("disk.raw", b'0', GIB)), 1024)[..]).unwrap_err();
        assert!(error.to_string().contains("disk.raw ends after"), "{error}");
    }

    #[test]
    fn what_would_be_refused_later_is_refused_now() {
        let good = || sparse("disk.raw", GIB, &[(0, 1000)]);
        let with = |change: &dyn Fn(&mut [u8; BLOCK])| {
            let mut header: [u8; BLOCK] = good()[..BLOCK].try_into().unwrap();
            change(&mut header);
            archive(seal(header), 1000)
        };
        let two = [&good()[..good().len() - 2 * BLOCK], &good()[..]].concat();
        let table: Vec<(&str, Vec<u8>)> = vec![
            ("named \"./disk.raw\"", sparse("./disk.raw", GIB, &[(0, 1)])),
            ("named \"sda.raw\"", sparse("sda.raw", GIB, &[(0, 1)])),
            ("not a whole number of GiB", sparse("disk.raw", GIB + 512, &[(0, 1)])),
            ("not a whole number of GiB", sparse("disk.raw", 0, &[])),
            ("PAX header", archive(seal(header("disk.raw", b'x', 100)), 100)),
            (
                "not in GNU format",
                with(&|header| header[257..265].copy_from_slice(b"ustar\x0000")),
            ),
            ("of type 'L'", with(&|header| header[156] = b'L')),
            ("more in it than disk.raw", two),
            ("it is empty", vec![0; 1024]),
            ("wrong checksum", {
                let mut bytes = good();
                bytes[0] = b'D';
                bytes
            }),
            ("wrong checksum", {
                let mut bytes = good();
                bytes[148] = 0x80;
                bytes
            }),
            (
                "map of disk.raw is wrong",
                sparse("disk.raw", GIB, &[(512, 10), (0, 10)]),
            ),
            ("map of disk.raw is wrong", sparse("disk.raw", GIB, &[(GIB, 10)])),
            (
                "does not fit its data",
                with(&|header| octal(&mut header[398..410], 999)),
            ),
            ("without the mark of its end", good()[..2 * BLOCK + BLOCK].to_vec()),
            ("disk.raw ends after", good()[..BLOCK + 100].to_vec()),
            ("failed to fill whole buffer", good()[..100].to_vec()),
        ];
        for (expected, bytes) in table {
            let error = check(&bytes[..]).unwrap_err();
            assert!(error.to_string().contains(expected), "{expected}: {error}");
        }
    }
}
