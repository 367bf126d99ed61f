//! Disks as Fedora's image builder makes them for Azure.

/// A fixed VHD: the disk, which should be whole MiB, and its footer as `qemu-img` writes it.
pub fn vhd(disk: &[u8]) -> Vec<u8> {
    let mut footer = [0_u8; 512];
    let size = (disk.len() as u64).to_be_bytes();
    for (at, bytes) in [
        (0, &b"conectix"[..]),
        (8, &[0, 0, 0, 2]),
        (12, &[0, 1, 0, 0]),
        (16, &[0xff; 8]),
        (24, &[0x2c, 0x97, 0x4b, 0x2e]),
        (28, b"qem2"),
        (32, &[0, 5, 0, 3]),
        (36, b"Wi2k"),
        (40, &size),
        (48, &size),
        (56, &[0, 20, 4, 17]),
        (60, &[0, 0, 0, 2]),
        (68, b"0123456789abcdef"),
    ] {
        footer[at..at + bytes.len()].copy_from_slice(bytes);
    }
    seal(&mut footer);
    [disk, &footer].concat()
}

/// Corrects a footer's checksum.
pub fn seal(footer: &mut [u8]) {
    footer[64..68].fill(0);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
}
