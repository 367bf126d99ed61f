//! The tarball that Compute Engine imports as an image, checked while it passes, without a second read.
//!
//! [Its rules](https://cloud.google.com/compute/docs/import/import-existing-image#create_image_file): a gzip file, in it
//! a tar archive in GNU format with one member, `disk.raw`, whose size is a whole number of GiB. The import comes long after
//! the upload, and its errors explain little. `disk.raw` is also held to what all disks must be.

use std::io::{self, BufReader, Read};
use std::thread;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::disk::{self, SECTOR};
use super::gzip::Members;
use super::source::{AHEAD, Error, Piece, Receiver, Sender, is_zero};

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
        let checked = check(&mut passing);
        // Size and checksum are known at the very end only, and a wrong one is the cause of all else.
        passing.drain();
        let outcome = match (passing.state, checked) {
            (State::Abandoned, _) => return,
            (State::Failed(error), _) => Err(error),
            (State::Passing | State::Ended, Ok(())) => Ok(Piece::End),
            (State::Passing | State::Ended, Err(source)) => Err(malformed(&image, source)),
        };
        // A reader that is gone needs no outcome.
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

/// The error of an image whose tarball is wrong.
pub(super) fn malformed(path: &str, source: io::Error) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        format: FORMAT,
        source,
    }
}

/// Reads the stored file to its end.
fn check(stored: impl Read) -> io::Result<()> {
    let mut tar = Members::new(BufReader::with_capacity(AHEAD, stored));
    let mut archive = Archive::default();
    let mut piece = vec![0; AHEAD];
    loop {
        match tar.read(&mut piece)? {
            0 => return archive.finish(),
            read => archive.push(&piece[..read])?,
        }
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// A tar archive that is checked as its bytes pass.
#[derive(Debug)]
pub(super) struct Archive {
    place: Place,
    /// A block of the header, as far as it has come.
    block: [u8; BLOCK],
    filled: usize,
    member: Member,
}

/// The part of an archive that its next bytes belong to.
#[derive(Debug)]
enum Place {
    Header,
    /// More of the map of a sparse file.
    Map,
    /// The data of the member; so many bytes of it and of its padding were there.
    Data(u64),
    /// The mark of the end, and padding: so many zeros were there.
    End(usize),
}

/// The one member there may be.
#[derive(Debug)]
struct Member {
    /// Bytes in the archive, without padding.
    stored: u64,
    /// Bytes of the file.
    size: u64,
    /// Where in the file the map has led so far, and how much data is in what it lists.
    end: u64,
    data: u64,
    /// Places in the first sector that the first bytes of the data belong to.
    places: Vec<usize>,
    first: [u8; SECTOR],
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            place: Place::Header,
            block: [0; BLOCK],
            filled: 0,
            member: Member {
                stored: 0,
                size: 0,
                end: 0,
                data: 0,
                places: Vec::new(),
                first: [0; SECTOR],
            },
        }
    }
}

impl Archive {
    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// They are not those of an archive that Compute Engine takes.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = self.advance(bytes)?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Decides once all bytes were there.
    ///
    /// # Errors
    ///
    /// Some are missing.
    pub fn finish(self) -> io::Result<()> {
        match self.place {
            Place::Header | Place::Map => Err(invalid("it ends before the header of disk.raw does")),
            Place::Data(there) => {
                let stored = self.member.stored;
                Err(invalid(format!("disk.raw ends after {there} of {stored} bytes")))
            }
            Place::End(zeros) if zeros < 2 * BLOCK => Err(invalid("it ends without the mark of its end")),
            Place::End(_) => Ok(()),
        }
    }

    /// Takes some of these bytes and says how many.
    fn advance(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.place {
            Place::Header | Place::Map => {
                let taken = bytes.len().min(BLOCK - self.filled);
                self.block[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
                self.filled += taken;
                if self.filled == BLOCK {
                    self.filled = 0;
                    self.place = match self.place {
                        Place::Header => self.member.header(&self.block)?,
                        _ => self.member.more(&self.block)?,
                    };
                }
                Ok(taken)
            }
            Place::Data(there) => {
                let padded = self.member.stored.next_multiple_of(BLOCK as u64);
                let left = usize::try_from(padded - *there).unwrap_or(usize::MAX);
                let taken = left.min(bytes.len());
                self.member.data(*there, &bytes[..taken])?;
                *there += taken as u64;
                if *there == padded {
                    self.place = Place::End(0);
                }
                Ok(taken)
            }
            Place::End(zeros) => {
                if !is_zero(bytes) {
                    return Err(invalid("there is more in it than disk.raw"));
                }
                *zeros = zeros.saturating_add(bytes.len());
                Ok(bytes.len())
            }
        }
    }
}

impl Member {
    /// Checks the one header there may be.
    fn header(&mut self, header: &[u8; BLOCK]) -> io::Result<Place> {
        if is_zero(header) {
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
        let size = |field: &[u8]| number(field).ok_or_else(|| invalid("disk.raw has no size"));
        self.stored = size(&header[124..136])?;
        if !sparse {
            self.size = self.stored;
            self.region(0, self.stored)?;
            return self.complete();
        }
        self.size = size(&header[483..495])?;
        self.regions(&header[386..482], header[482] != 0)
    }

    /// Another block of the map.
    fn more(&mut self, block: &[u8; BLOCK]) -> io::Result<Place> {
        self.regions(&block[..504], block[504] != 0)
    }

    /// Checks a part of the map of a
    /// [sparse file](https://www.gnu.org/software/tar/manual/html_node/Old-GNU-Format.html): in order, and inside the
    /// file.
    fn regions(&mut self, map: &[u8], goes_on: bool) -> io::Result<Place> {
        for entry in map.chunks_exact(24).filter(|entry| entry[0] != 0) {
            let region = number(&entry[..12]).zip(number(&entry[12..]));
            let (offset, length) = region.ok_or_else(wrong_map)?;
            self.region(offset, length)?;
        }
        if goes_on { Ok(Place::Map) } else { self.complete() }
    }

    /// Notes a region of data.
    fn region(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let end = end.filter(|_| offset >= self.end).ok_or_else(wrong_map)?;
        let place = |place: u64| usize::try_from(place).unwrap_or(SECTOR).min(SECTOR);
        self.places.extend(place(offset)..place(end));
        self.end = end;
        self.data += length;
        Ok(())
    }

    /// After the whole header.
    fn complete(&mut self) -> io::Result<Place> {
        if self.size == 0 || !self.size.is_multiple_of(GIB) {
            let size = self.size;
            return Err(invalid(format!(
                "disk.raw has {size} bytes, which is not a whole number of GiB"
            )));
        }
        if self.data != self.stored {
            return Err(invalid("the map of disk.raw does not fit its data"));
        }
        if self.places.is_empty() {
            self.check_first()?;
        }
        Ok(if self.stored == 0 {
            Place::End(0)
        } else {
            Place::Data(0)
        })
    }

    /// Notes the bytes of the first sector; `at` counts the data before them.
    fn data(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let known = usize::try_from(at).unwrap_or(SECTOR).min(self.places.len());
        let places = &self.places[known..];
        for (place, byte) in places.iter().zip(bytes) {
            self.first[*place] = *byte;
        }
        if !places.is_empty() && bytes.len() >= places.len() {
            self.check_first()?;
        }
        Ok(())
    }

    fn check_first(&self) -> io::Result<()> {
        disk::check_first(&self.first).map_err(|fault| invalid(format!("disk.raw is no disk: {fault}")))
    }
}

fn wrong_map() -> io::Error {
    invalid("the map of disk.raw is wrong")
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

    fn check(archive: &[u8]) -> io::Result<()> {
        // A byte at a time, every border is met.
        let mut slow = Archive::default();
        let outcome = archive
            .chunks(1)
            .try_for_each(|byte| slow.push(byte))
            .and_then(|()| slow.finish());
        let mut fast = Archive::default();
        let expected = fast.push(archive).and_then(|()| fast.finish());
        let text = |outcome: &io::Result<()>| outcome.as_ref().err().map(ToString::to_string);
        assert_eq!(text(&outcome), text(&expected));
        expected
    }

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
        let mut disk = vec![7; data];
        if let Some(signature) = disk.get_mut(510..512) {
            signature.copy_from_slice(&[0x55, 0xaa]);
        }
        archive.extend(disk);
        archive.extend(vec![0; data.next_multiple_of(BLOCK) - data + 2 * BLOCK]);
        archive
    }

    #[test]
    fn what_the_builders_make_is_accepted() {
        check(&sparse("disk.raw", 5 * GIB, &[(0, 1000), (GIB, 512)])).unwrap();
        // The first sector in pieces, the last of which goes on behind it.
        check(&sparse("disk.raw", GIB, &[(0, 100), (100, 410), (510, 700)])).unwrap();
        // Sizes beyond eleven octal digits are binary.
        let mut large = header("disk.raw", b'S', 0);
        large[483..495].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
        octal(&mut large[124..136], 512);
        octal(&mut large[398..410], 512);
        octal(&mut large[386..398], 0);
        check(&archive(seal(large), 512)).unwrap();
        let sample = include_bytes!(
            "../../tests/fixtures/sample/compose/Cloud/x86_64/images/Fedora-Cloud-Base-GCE-43-1.7.x86_64.tar.gz"
        );
        super::check(&sample[..]).unwrap();
    }

    #[test]
    fn whole_files_are_counted_without_a_map() {
        // Its gibibyte of data is missing, which is found out only after the header was accepted.
        let error = check(&archive(seal(header("disk.raw", b'0', GIB)), 1024)).unwrap_err();
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
            ("before the header of disk.raw does", good()[..100].to_vec()),
            ("before the header of disk.raw does", Vec::new()),
            ("not end with the boot signature", sparse("disk.raw", GIB, &[(0, 511)])),
            ("not end with the boot signature", sparse("disk.raw", GIB, &[(1, 1000)])),
            ("not end with the boot signature", sparse("disk.raw", GIB, &[])),
            ("disk.raw is no disk: it is a qcow2 image", {
                let mut bytes = good();
                bytes[BLOCK..BLOCK + 4].copy_from_slice(b"QFI\xfb");
                bytes
            }),
        ];
        for (expected, bytes) in table {
            let error = check(&bytes).unwrap_err();
            assert!(error.to_string().contains(expected), "{expected}: {error}");
        }
    }
}
