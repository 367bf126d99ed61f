//! The look of a disk, taken before anything is registered.
//!
//! A file that decodes proves little: a row of a compose may name a file of another compression, another disk format, or
//! nothing at all. Each disk that Fedora publishes has whole sectors of 512
//! bytes and, with an MBR as well as with the protective MBR of a
//! [GPT](https://uefi.org/specs/UEFI/2.10/05_GUID_Partition_Table_Format.html), the boot signature at the end of the
//! first one.

use super::magic;
use super::source::{Chunk, Content};
use super::vhd;

/// Length of a sector, also of disks with larger physical ones.
pub(super) const SECTOR: usize = 512;
/// Where the first sector has its signature.
const SIGNATURE: (usize, [u8; 2]) = (510, [0x55, 0xaa]);

/// Which disk a file has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The sectors and nothing else.
    Raw,
    /// The sectors, and the footer of a fixed VHD.
    Vhd,
    /// One of the two: the target adds the footer.
    Either,
}

/// Looks at the chunks of a disk as they pass, in any order.
#[derive(Debug)]
pub(super) struct Inspection {
    kind: Kind,
    length: u64,
    /// Known once the first chunk has passed.
    first: Option<Result<(), Fault>>,
    /// The last sector of what has been seen.
    last: [u8; SECTOR],
}

impl Inspection {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            length: 0,
            first: None,
            last: [0; SECTOR],
        }
    }

    /// Every chunk but the one at the end of the disk is at least a sector long.
    pub fn add(&mut self, chunk: &Chunk) {
        let bytes = match &chunk.content {
            Content::Data(bytes) => &bytes[..],
            Content::Hole(_) => &[],
        };
        if chunk.offset == 0 {
            let mut first = [0; SECTOR];
            let length = bytes.len().min(SECTOR);
            first[..length].copy_from_slice(&bytes[..length]);
            self.first = Some(check_first(&first));
        }
        let end = chunk.offset + chunk.content.len() as u64;
        if end > self.length {
            self.length = end;
            self.last = bytes.last_chunk().copied().unwrap_or([0; SECTOR]);
        }
    }

    /// Whether the first sector is known to be wrong: no other chunk changes that.
    pub fn is_refused(&self) -> bool {
        matches!(self.first, Some(Err(_)))
    }

    /// Decides once every chunk has passed.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with the disk.
    pub fn finish(&self) -> Result<(), Fault> {
        let Some(first) = &self.first else {
            return Err(Fault::Empty);
        };
        if let Err(fault @ Fault::Foreign(_)) = first {
            return Err(fault.clone());
        }
        if !self.length.is_multiple_of(SECTOR as u64) {
            return Err(Fault::Length(self.length));
        }
        first.clone()?;
        let footer = || vhd::complete(self.length, &self.last, "");
        match self.kind {
            Kind::Raw if footer() == Ok(None) => Err(Fault::Foreign("a fixed VHD")),
            Kind::Vhd => match footer() {
                Ok(None) => Ok(()),
                Ok(Some(_)) => Err(Fault::Footer("it has none".to_owned())),
                Err(reason) => Err(Fault::Footer(reason)),
            },
            Kind::Raw | Kind::Either => Ok(()),
        }
    }
}

/// Checks the first sector of a disk.
///
/// # Errors
///
/// Another format, or no boot signature.
pub(super) fn check_first(first: &[u8; SECTOR]) -> Result<(), Fault> {
    if let Some(name) = magic::foreign(first) {
        return Err(Fault::Foreign(name));
    }
    let (at, signature) = SIGNATURE;
    if first[at..] != signature {
        return Err(Fault::Unbootable);
    }
    Ok(())
}

/// Why a file is not the disk that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not one byte comes out of it.
    #[error("it is empty")]
    Empty,
    /// A known format, by its name.
    #[error("it is {0}")]
    Foreign(&'static str),
    /// The last sector lacks something.
    #[error("it has {0} bytes, which are not whole sectors of 512")]
    Length(u64),
    /// Neither an MBR nor a protective one.
    #[error("its first sector does not end with the boot signature 55 AA")]
    Unbootable,
    /// The footer of a VHD is missing or wrong.
    #[error("its footer is not that of a fixed VHD: {0}")]
    Footer(String),
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const MIB: usize = 1 << 20;

    fn disk(length: usize) -> Vec<u8> {
        let mut disk = vec![7; length];
        disk[510..SECTOR].copy_from_slice(&SIGNATURE.1);
        disk
    }

    fn with_footer(mut disk: Vec<u8>) -> Vec<u8> {
        let footer = vhd::complete(disk.len() as u64, &[0; SECTOR], "seed").unwrap().unwrap();
        disk.extend(footer);
        disk
    }

    fn inspected(kind: Kind, disk: &[u8]) -> Result<(), Fault> {
        let chunk = |(number, bytes): (usize, &[u8])| Chunk {
            offset: (number * 1024) as u64,
            content: Content::Data(Bytes::copy_from_slice(bytes)),
        };
        let mut chunks: Vec<_> = disk.chunks(1024).enumerate().map(chunk).collect();
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            let mut inspection = Inspection::new(kind);
            chunks.iter().for_each(|chunk| inspection.add(chunk));
            outcomes.push(inspection.finish());
            chunks.reverse();
        }
        assert_eq!(outcomes[0], outcomes[1], "the order of the chunks does not matter");
        outcomes.remove(0)
    }

    #[test]
    fn each_kind_of_disk_is_accepted_as_what_it_is() {
        let (raw, vhd) = (disk(MIB), with_footer(disk(MIB)));
        let length = || Fault::Footer("it has none".to_owned());
        for (kind, of_raw, of_vhd) in [
            (Kind::Raw, Ok(()), Err(Fault::Foreign("a fixed VHD"))),
            (Kind::Vhd, Err(length()), Ok(())),
            (Kind::Either, Ok(()), Ok(())),
        ] {
            assert_eq!(inspected(kind, &raw), of_raw, "{kind:?}");
            assert_eq!(inspected(kind, &vhd), of_vhd, "{kind:?}");
        }
        assert_eq!(inspected(Kind::Raw, &disk(SECTOR)), Ok(()));
    }

    #[test]
    fn what_is_no_disk_is_refused_as_every_kind() {
        let mut qcow2 = disk(4096);
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        let mut random = disk(MIB);
        random[511] = 0;
        let only_a_footer = with_footer(disk(MIB))[MIB..].to_vec();
        for (disk, fault) in [
            (Vec::new(), Fault::Empty),
            (vec![7], Fault::Length(1)),
            (disk(MIB + 1), Fault::Length((MIB + 1) as u64)),
            (random, Fault::Unbootable),
            (vec![0; MIB], Fault::Unbootable),
            (qcow2, Fault::Foreign("a qcow2 image")),
            (only_a_footer, Fault::Foreign("a dynamic VHD")),
        ] {
            for kind in [Kind::Raw, Kind::Vhd, Kind::Either] {
                assert_eq!(inspected(kind, &disk), Err(fault.clone()), "{kind:?}");
            }
        }
    }

    #[test]
    fn a_hole_in_the_place_of_the_first_sector_is_refused_at_once() {
        let mut inspection = Inspection::new(Kind::Raw);
        let content = Content::Hole(1024);
        inspection.add(&Chunk { offset: 0, content });
        assert!(inspection.is_refused());
    }
}
