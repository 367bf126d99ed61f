//! The footer of a
//! [fixed VHD](https://learn.microsoft.com/windows/win32/vstor/about-vhd): the last 512 bytes, after the disk as it is.
//!
//! Azure [takes](https://learn.microsoft.com/azure/virtual-machines/linux/create-upload-generic#resizing-vhds) a disk only if
//! its length without the footer is a whole number of MiB.

/// Length of a footer, and of a page.
pub const FOOTER: usize = 512;
/// The length of the disk is a multiple of this.
const ALIGNMENT: u64 = 1 << 20;
const COOKIE: &[u8; 8] = b"conectix";
/// The only type that Azure takes.
const FIXED: u32 = 2;
/// Fixed disks have no header that this would lead to.
const NOWHERE: [u8; 8] = [0xff; 8];

/// Places in the footer.
const DATA_OFFSET: usize = 16;
const CURRENT_SIZE: usize = 48;
const DISK_TYPE: usize = 60;
const CHECKSUM: usize = 64;

/// Length of the blob for an image of this length: the same if it may be a VHD, else with the padding and the footer that
/// a raw disk lacks.
pub fn blob_size(image: u64) -> u64 {
    if may_be_vhd(image) {
        image
    } else {
        image.next_multiple_of(ALIGNMENT) + FOOTER as u64
    }
}

fn may_be_vhd(image: u64) -> bool {
    image > FOOTER as u64 && (image - FOOTER as u64).is_multiple_of(ALIGNMENT)
}

/// The footer to be added to an image of this length with this end; none if it has a good one.
///
/// `seed` makes the disk's id, so that a repeat makes the same footer.
///
/// # Errors
///
/// The footer it has is wrong, or its length is.
pub fn complete(image: u64, end: &[u8; FOOTER], seed: &str) -> Result<Option<[u8; FOOTER]>, String> {
    if !end.starts_with(COOKIE) {
        if may_be_vhd(image) {
            // One that happens to have this length would lose its last 512 bytes.
            return Err(format!(
                "it has the length of one, {image} bytes, and no footer: its last 512 bytes do not begin with \"conectix\""
            ));
        }
        return Ok(Some(footer(blob_size(image) - FOOTER as u64, seed)));
    }
    if !may_be_vhd(image) {
        let over = image.saturating_sub(FOOTER as u64) % ALIGNMENT;
        return Err(format!(
            "it has {image} bytes, and without the footer its length must be a multiple of 1 MiB: it is {over} bytes too long"
        ));
    }
    let stated = u32_at(end, CHECKSUM);
    let expected = checksum(end);
    if stated != expected {
        return Err(format!(
            "the footer's checksum is {stated:08x}, and should be {expected:08x}"
        ));
    }
    let kind = u32_at(end, DISK_TYPE);
    if kind != FIXED {
        return Err(format!(
            "the footer says that it is of type {kind}, and not a fixed disk (2)"
        ));
    }
    let disk = image - FOOTER as u64;
    let size = u64_at(end, CURRENT_SIZE);
    if size != disk {
        return Err(format!(
            "the footer says that the disk has {size} bytes, and it has {disk}"
        ));
    }
    if end[DATA_OFFSET..DATA_OFFSET + 8] != NOWHERE {
        return Err("the footer has a data offset, which fixed disks have not".to_owned());
    }
    Ok(None)
}

/// The footer of a disk of this length, all numbers in big-endian order.
fn footer(disk: u64, seed: &str) -> [u8; FOOTER] {
    let mut footer = [0; FOOTER];
    let mut put = |at: usize, bytes: &[u8]| footer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, COOKIE);
    // Bit 1 is reserved and always set.
    put(8, &2_u32.to_be_bytes());
    put(12, &0x0001_0000_u32.to_be_bytes());
    put(DATA_OFFSET, &NOWHERE);
    // The time of creation stays 0: a repeat makes the same bytes.
    // Readers that go by the geometry, which is shorter than most disks, go by the length where Hyper-V is the creator.
    put(28, b"win ");
    put(32, &0x0001_0000_u32.to_be_bytes());
    put(40, &disk.to_be_bytes());
    put(CURRENT_SIZE, &disk.to_be_bytes());
    put(56, &geometry(disk));
    put(DISK_TYPE, &FIXED.to_be_bytes());
    put(
        68,
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, seed.as_bytes()).as_bytes(),
    );
    let sum = checksum(&footer);
    footer[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
    footer
}

/// The ones' complement of the sum of all bytes but those of the checksum itself.
fn checksum(footer: &[u8; FOOTER]) -> u32 {
    let bytes = footer.iter().enumerate();
    let counted = bytes.filter(|(at, _)| !(CHECKSUM..CHECKSUM + 4).contains(at));
    !counted.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}

/// Cylinders, heads, and sectors per track, as the specification's appendix computes them. Disks of more than 127 GiB all
/// have the largest geometry.
fn geometry(disk: u64) -> [u8; 4] {
    let sectors = (disk / 512).min(65_535 * 16 * 255);
    let (per_track, heads, tracks) = if sectors >= 65_535 * 16 * 63 {
        (255, 16, sectors / 255)
    } else {
        let tracks = sectors / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            let tracks = sectors / 31;
            if tracks >= 16 * 1024 {
                (63, 16, sectors / 63)
            } else {
                (31, 16, tracks)
            }
        } else {
            (17, heads, tracks)
        }
    };
    let cylinders = u16::try_from(tracks / heads).unwrap_or(u16::MAX).to_be_bytes();
    let small = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
    [cylinders[0], cylinders[1], small(heads), small(per_track)]
}

fn u32_at(footer: &[u8; FOOTER], at: usize) -> u32 {
    footer[at..at + 4]
        .iter()
        .fold(0, |number, byte| (number << 8) | u32::from(*byte))
}

fn u64_at(footer: &[u8; FOOTER], at: usize) -> u64 {
    footer[at..at + 8]
        .iter()
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn sealed(mut footer: [u8; FOOTER]) -> [u8; FOOTER] {
        let sum = checksum(&footer);
        footer[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
        footer
    }

    fn with(at: usize, bytes: &[u8]) -> [u8; FOOTER] {
        let mut footer = footer(5 * MIB, "seed");
        footer[at..at + bytes.len()].copy_from_slice(bytes);
        footer
    }

    #[test]
    fn a_raw_disk_gets_what_it_lacks() {
        for (image, disk) in [
            (5 * MIB, 5 * MIB),
            (5 * MIB + 1, 6 * MIB),
            (700, MIB),
            (512, MIB),
            (1, MIB),
        ] {
            assert_eq!(blob_size(image), disk + 512, "{image}");
            let footer = complete(image, &[0; FOOTER], "seed").unwrap().unwrap();
            assert_eq!(complete(disk + 512, &footer, "seed"), Ok(None), "{image}");
        }
        assert_eq!(complete(MIB, &[1; FOOTER], "a"), complete(MIB, &[2; FOOTER], "a"));
        assert_ne!(complete(MIB, &[1; FOOTER], "a"), complete(MIB, &[1; FOOTER], "b"));
    }

    #[test]
    fn a_bad_footer_is_refused() {
        let good = footer(5 * MIB, "seed");
        let size = 5 * MIB + 512;
        assert_eq!(blob_size(size), size);
        assert_eq!(complete(size, &good, ""), Ok(None));
        for (image, end, part) in [
            (size, [0; FOOTER], "no footer"),
            (size, with(0, b"conectiX"), "no footer"),
            (size, with(200, b"x"), "the footer's checksum is"),
            (size, sealed(with(DISK_TYPE, &3_u32.to_be_bytes())), "of type 3"),
            (
                size,
                sealed(with(CURRENT_SIZE, &7_u64.to_be_bytes())),
                "the disk has 7 bytes, and it has 5242880",
            ),
            (size, sealed(with(DATA_OFFSET, &[0; 8])), "data offset"),
            (size + MIB, good, "the disk has 5242880 bytes, and it has 6291456"),
            (size + 512, good, "it is 512 bytes too long"),
            (512, good, "must be a multiple of 1 MiB"),
        ] {
            let reason = complete(image, &end, "").unwrap_err();
            assert!(reason.contains(part), "{part}: {reason}");
        }
    }

    /// Where qemu-img is installed: 5 GiB has no geometry of its own, and the last sectors hold the backup of a GPT.
    #[test]
    fn qemu_sees_every_sector_of_a_disk() {
        let disk = 5 * 1024 * MIB;
        let [high, low, heads, sectors] = geometry(disk);
        let by_geometry = u64::from(u16::from_be_bytes([high, low])) * u64::from(heads) * u64::from(sectors) * 512;
        assert!(by_geometry < disk);
        let footer = footer(disk, "seed");
        assert_eq!(&footer[28..32], b"win ");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.vhd");
        let file = std::fs::File::create(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &footer, disk).unwrap();
        let mut qemu = std::process::Command::new("qemu-img");
        let output = match qemu.args(["info", "--output=json", "-f", "vpc"]).arg(&path).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("qemu-img is not installed: only the bytes were looked at");
                return;
            }
            output => output.unwrap(),
        };
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            info["virtual-size"],
            disk,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Worked out by hand, step by step.
    #[test]
    fn geometry_is_that_of_the_specification() {
        for (disk, cylinders, heads, sectors) in [
            (20 * MIB, 602_u16, 4, 17),
            (1024 * MIB, 2080, 16, 63),
            (5 * 1024 * MIB, 10402, 16, 63),
            (200 * 1024 * MIB, 65535, 16, 255),
        ] {
            let [high, low, h, s] = geometry(disk);
            assert_eq!(
                (u16::from_be_bytes([high, low]), h, s),
                (cylinders, heads, sectors),
                "{disk}"
            );
        }
    }
}
