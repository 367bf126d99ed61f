//! Names for formats that an image must not have, told by their first bytes.
//!
//! The names appear in errors only: each of these formats is refused, and an operator learns which one it was. The list
//! follows the magic numbers of `file(1)`, made strict enough that no boot sector matches by accident.

/// Length of the longest magic number that stands at the start of a file.
pub(super) const LONGEST: usize = 32;

/// Where the header of a [VDI](https://forums.virtualbox.org/viewtopic.php?t=8046) has its signature, after a text.
const VDI: (usize, [u8; 4]) = (64, [0x7f, 0x10, 0xda, 0xbe]);
/// Where the header of a tar archive says so.
const TAR: (usize, &[u8]) = (257, b"ustar");

/// Compressions that the decoders here do not know.
const COMPRESSIONS: [(&[u8], &str); 19] = [
    (b"LZIP", "lzip"),
    (b"LRZI", "lrzip"),
    (b"RZIP", "rzip"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x03\x21\x4c\x18", "an old form of lz4"),
    (b"\x02\x21\x4c\x18", "an old form of lz4"),
    (b"\x89LZO\0\r\n\x1a\n", "lzop"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"PK\x07\x08", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"MSCF\0\0\0\0", "a cabinet"),
    (b"xar!", "xar"),
    (b"\xff\x06\0\0sNaPpY", "snappy"),
    (b"\0ZCK1", "zchunk"),
    (b"7kSt", "zpaq"),
    (b"bvx2", "lzfse"),
    (b"BZ0", "the first form of bzip"),
];

/// Formats of disk images other than the two that are published.
const DISKS: [(&[u8], &str); 11] = [
    (b"QFI\xfb", "a qcow2 image"),
    (b"QED\0", "a QED image"),
    (b"KDMV", "a VMDK image"),
    (b"COWD", "a VMDK image"),
    (b"# Disk DescriptorFile", "the description of a VMDK image"),
    (b"vhdxfile", "a VHDX image"),
    // A fixed VHD has this at its end only.
    (b"conectix", "a dynamic VHD"),
    (b"WithoutFreeSpace", "a Parallels image"),
    (b"WithouFreSpacExt", "a Parallels image"),
    (b"Bochs Virtual HD Image", "a Bochs image"),
    (b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
];

/// The name of a compression that is not supported, if a file that starts like this has one.
pub(super) fn unsupported(first: &[u8]) -> Option<&'static str> {
    let found = COMPRESSIONS.iter().find(|(magic, _)| first.starts_with(magic));
    if let Some((_, name)) = found {
        return Some(name);
    }
    match first {
        [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] if is_bzip2(rest) => Some("bzip2"),
        // Bits per code, and a flag; two more bits are reserved.
        [0x1f, 0x9d, flags, ..] if flags & 0x60 == 0 && (9..=16).contains(&(flags & 0x1f)) => Some("compress (.Z)"),
        [0x1f, 0xa0, ..] => Some("the LZH form of compress"),
        [0x1f, 0x1e, ..] => Some("pack"),
        // Releases before 0.8 wrote frames that no later one reads.
        [0x1e | 0x22..=0x27, 0xb5, 0x2f, 0xfd, ..] => Some("a form of zstd older than 0.8"),
        first if is_lzma(first) => Some("lzma"),
        _ => None,
    }
}

/// The name of whatever format starts like this, if it is known and is no raw disk.
pub(super) fn foreign(first: &[u8]) -> Option<&'static str> {
    let at = |(at, magic): (usize, &[u8])| first.get(at..at + magic.len()) == Some(magic);
    if let Some((_, name)) = DISKS.iter().find(|(magic, _)| first.starts_with(magic)) {
        return Some(name);
    }
    if at((VDI.0, &VDI.1)) {
        return Some("a VDI image");
    }
    if at(TAR) {
        return Some("a tar archive");
    }
    match first {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("compressed once more with xz"),
        [0x1f, 0x8b, 8, 0..=0x1f, ..] => Some("compressed once more with gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("compressed once more with zstd"),
        _ => unsupported(first),
    }
}

/// After the level: the magic number of a block, or of the end of a file without any.
fn is_bzip2(rest: &[u8]) -> bool {
    const BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
    const END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];
    rest.starts_with(&BLOCK) || rest.starts_with(&END)
}

/// A [.lzma](https://github.com/tukaani-project/xz/blob/master/doc/lzma-file-format.txt) file has no magic number. As
/// xz does, take only the properties that all encoders write, a dictionary of 2^n or 2^n + 2^(n-1) bytes, and a length
/// that is unknown or below 1 TiB.
fn is_lzma(first: &[u8]) -> bool {
    let Some(([0x5d, header @ ..], _)) = first.split_first_chunk::<13>() else {
        return false;
    };
    let Some((dictionary, length)) = header.split_first_chunk::<4>() else {
        return false;
    };
    let dictionary = u32::from_le_bytes(*dictionary);
    let plausible = dictionary.is_power_of_two()
        || dictionary == u32::MAX
        || (dictionary % 3 == 0 && (dictionary / 3).is_power_of_two());
    plausible && (length == [0xff; 8] || length.ends_with(&[0, 0, 0]) && length != [0; 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First bytes as the tools write them.
    const FILES: [(&[u8], &str); 20] = [
        (b"BZh91AY&SY\x10\x20", "bzip2"),
        (b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0", "bzip2"),
        (b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0\x18", "lzma"),
        (b"\x5d\0\0\x18\0\xff\xff\xff\xff\xff\xff\xff\xff\0\x18", "lzma"),
        (b"\x5d\0\0\0\x04\0\0\x10\0\0\0\0\0\0\x18", "lzma"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7", "lz4"),
        (b"LZIP\x01\x0c", "lzip"),
        (b"\x1f\x9d\x90\x61", "compress (.Z)"),
        (b"\x89LZO\0\r\n\x1a\n\x10\x40", "lzop"),
        (b"PK\x03\x04\x14\0", "zip"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "7z"),
        (b"\x23\xb5\x2f\xfd", "a form of zstd older than 0.8"),
        (b"QFI\xfb\0\0\0\x03", "a qcow2 image"),
        (b"KDMV\x01\0\0\0", "a VMDK image"),
        (b"# Disk DescriptorFile\nversion=1", "the description of a VMDK image"),
        (b"vhdxfileq\0", "a VHDX image"),
        (b"conectix\0\0\0\x02", "a dynamic VHD"),
        (b"\xfd7zXZ\0\0\x04", "compressed once more with xz"),
        (b"\x1f\x8b\x08\0\0", "compressed once more with gzip"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed once more with zstd"),
    ];

    #[test]
    fn every_format_has_its_name() {
        for (first, name) in FILES {
            assert_eq!(foreign(first), Some(name), "{first:02x?}");
        }
        let mut vdi = b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec();
        vdi.resize(64, 0);
        vdi.extend(VDI.1);
        assert_eq!(foreign(&vdi), Some("a VDI image"));
        let mut tar = vec![0; 512];
        tar[257..263].copy_from_slice(b"ustar\0");
        assert_eq!(foreign(&tar), Some("a tar archive"));
    }

    /// As GRUB, syslinux, isohybrid, Windows, and partitioning tools begin them.
    #[test]
    fn boot_sectors_have_no_name() {
        for first in [
            &b"\xeb\x63\x90\x10\x8e\xd0\xbc\0\xb0\xb8\0\0\x8e\xd8\x8e\xc0"[..],
            b"\xeb\x48\x90\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x33\xc0\xfa\x8e\xd8\x8e\xd0\xbc\0\x7c\x89\xe6\x06\x57\x8e\xc0",
            b"\x33\xc0\x8e\xd0\xbc\0\x7c\x8e\xc0\x8e\xd8\xbe\0\x7c\xbf\0",
            b"\x45\x52\x08\0\0\0\x90\x90\0\0\0\0\0\0\0\0",
            b"\xfa\xb8\0\x10\x8e\xd0\xbc\0\xb0\xb8\0\0\x8e\xd8\x8e\xc0",
            b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0",
            &[0; 16],
            b"\x5d\0\0\0\0\0\0\0\0\0\0\0\0",
            b"BZh9 is a text",
            b"",
        ] {
            assert_eq!(foreign(first), None, "{first:02x?}");
        }
    }
}
