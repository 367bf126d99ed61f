//! Files that decode to something other than the disk that their row promises: no target gets to see their end.

use std::io::Read;

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::images::source::{CHUNK, Error, Form};
use cloud_image_uploader::model::compose::Image;
use cloud_image_uploader_test_support::archive::{gzip, noise, sha256, xz, xz_blocks, zstd};
use cloud_image_uploader_test_support::azure::vhd;
use cloud_image_uploader_test_support::gcp::tarball;
use liblzma::read::XzEncoder;
use liblzma::stream::{LzmaOptions, Stream};

use crate::{Shelf, assert_same, described, joined};

const DISKS: [Form; 3] = [Form::Raw, Form::Vhd, Form::RawOrVhd];
const MIB: usize = 1 << 20;

fn begun(start: &[u8]) -> Vec<u8> {
    let mut disk = noise(1, MIB);
    disk[..start.len()].copy_from_slice(start);
    disk
}

/// Bytes that no target must take for a disk, and what an operator reads about them.
fn no_disks() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let unbootable = "its first sector does not end with the boot signature 55 AA";
    let random = {
        let mut bytes = noise(1, MIB);
        bytes[510] = 0;
        bytes
    };
    let mut vdi = noise(1, MIB);
    vdi[64..68].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
    let mut tar = noise(1, MIB);
    tar[257..262].copy_from_slice(b"ustar");
    vec![
        ("nothing", Vec::new(), "it is empty"),
        ("random bytes", random.clone(), unbootable),
        ("a whole chunk of random bytes", random[..CHUNK].to_vec(), unbootable),
        ("zeros", vec![0; 3 * MIB], unbootable),
        (
            "a short text",
            b"not found".to_vec(),
            "it has 9 bytes, which are not whole sectors",
        ),
        (
            "an odd length",
            noise(1, MIB + 100),
            "it has 1048676 bytes, which are not whole sectors",
        ),
        (
            "one byte too few",
            noise(1, 2 * MIB - 1),
            "it has 2097151 bytes, which are not whole sectors",
        ),
        ("qcow2", begun(b"QFI\xfb\0\0\0\x03"), "it is a qcow2 image"),
        ("VMDK", begun(b"KDMV\x01\0\0\0"), "it is a VMDK image"),
        ("VHDX", begun(b"vhdxfile"), "it is a VHDX image"),
        ("dynamic VHD", begun(b"conectix"), "it is a dynamic VHD"),
        ("VDI", vdi, "it is a VDI image"),
        ("tar", tar, "it is a tar archive"),
        ("xz", begun(&xz(b"disk")), "it is compressed once more with xz"),
        ("gzip", begun(&gzip(b"disk")), "it is compressed once more with gzip"),
        ("zstd", begun(&zstd(b"disk")), "it is compressed once more with zstd"),
        ("bzip2", begun(b"BZh91AY&SY"), "it is bzip2"),
    ]
}

/// As every target reads it. The first thing it gets may be data, but the end never is.
async fn outcome(shelf: &Shelf, image: &Image, form: Form, ordered: bool) -> Result<Vec<u8>, Error> {
    let source = shelf.sources.source(image);
    let mut chunks = if ordered {
        source.open(form).await?
    } else {
        source.open_unordered(form).await?
    };
    let mut all = crate::all(&mut chunks).await?;
    all.sort_by_key(|chunk| chunk.offset);
    Ok(joined(&all))
}

#[tokio::test]
async fn bytes_that_are_no_disk_are_refused_in_every_compression() {
    let shelf = Shelf::start().await;
    for (what, bytes, said) in no_disks() {
        let stored = [
            ("xz", xz(&bytes)),
            ("xz of blocks", xz_blocks(&bytes, 300_000)),
            ("gzip", gzip(&bytes)),
            ("zstd", zstd(&bytes)),
        ];
        for (compression, file) in stored {
            let image = shelf.put("a", &file);
            for (form, ordered) in DISKS.into_iter().flat_map(|form| [(form, true), (form, false)]) {
                let error = outcome(&shelf, &image, form, ordered).await.unwrap_err();
                let (text, class) = described(&error);
                let what = format!("{what} in {compression}, {form:?}, ordered: {ordered}: {text}");
                assert!(text.starts_with("verify the disk in a: "), "{what}");
                assert!(text.contains(said), "{what}");
                assert_eq!(class, Class::Deliverable, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_plain_file_is_held_to_the_same() {
    let shelf = Shelf::start().await;
    for (what, bytes, said) in no_disks() {
        let image = shelf.put("a", &bytes);
        let (text, class) = described(&outcome(&shelf, &image, Form::Raw, false).await.unwrap_err());
        // A compression is noticed in front of the decoder.
        assert!(
            text.contains(said) || text.starts_with("decompress a"),
            "{what}: {text}"
        );
        assert_eq!(class, Class::Deliverable, "{what}");
    }
}

#[tokio::test]
async fn a_disk_comes_out_as_the_kind_that_it_is() {
    let shelf = Shelf::start().await;
    let raw = [noise(1, 700_000), vec![0; 4 * MIB], noise(2, 348_576)].concat();
    let vhd = vhd(&raw);
    for (what, disk, forms) in [
        ("raw", &raw, [Form::Raw, Form::RawOrVhd]),
        ("VHD", &vhd, [Form::Vhd, Form::RawOrVhd]),
    ] {
        for file in [
            xz_blocks(disk, MIB as u64),
            xz(disk),
            gzip(disk),
            zstd(disk),
            disk.clone(),
        ] {
            let image = shelf.put("a", &file);
            for (form, ordered) in forms.into_iter().flat_map(|form| [(form, true), (form, false)]) {
                let found = outcome(&shelf, &image, form, ordered).await.unwrap();
                assert_same(&found, disk, what);
            }
        }
    }
    for (disk, form, said) in [
        (&raw, Form::Vhd, "its footer is not that of a fixed VHD: it has none"),
        (&vhd, Form::Raw, "it is a fixed VHD"),
    ] {
        let image = shelf.put("a", &xz(disk));
        let (text, _) = described(&outcome(&shelf, &image, form, false).await.unwrap_err());
        assert_eq!(text, format!("verify the disk in a: {said}"));
    }
}

/// An upload costs: none is started where the first sector says enough.
#[tokio::test]
async fn no_byte_of_a_disk_that_starts_wrong_is_given_out() {
    let shelf = Shelf::start().await;
    let image = shelf.put("a", &xz_blocks(&begun(b"QFI\xfb").repeat(8), MIB as u64));
    let mut chunks = shelf.sources.source(&image).open(Form::Raw).await.unwrap();
    let (text, _) = described(&chunks.next().await.unwrap_err());
    assert_eq!(text, "verify the disk in a: it is a qcow2 image");
}

/// A file that was damaged on its way also looks like none.
#[tokio::test]
async fn a_wrong_checksum_is_the_first_thing_said() {
    let shelf = Shelf::start().await;
    for bytes in [vec![7; MIB], b"BZh91AY&SY and more".to_vec(), noise(1, 100)] {
        let mut image = shelf.put("a", &bytes);
        image.sha256 = sha256(b"something else");
        for form in [Form::Decompressed, Form::Raw, Form::Vhd, Form::Tar, Form::Tarball] {
            let (text, _) = described(&outcome(&shelf, &image, form, false).await.unwrap_err());
            assert!(text.starts_with("verify a: its SHA-256 is "), "{form:?}: {text}");
        }
    }
}

fn lzma(bytes: &[u8]) -> Vec<u8> {
    let encoder = Stream::new_lzma_encoder(&LzmaOptions::new_preset(6).unwrap()).unwrap();
    let mut packed = Vec::new();
    XzEncoder::new_stream(bytes, encoder).read_to_end(&mut packed).unwrap();
    packed
}

#[tokio::test]
async fn a_compression_that_is_not_supported_is_named() {
    let shelf = Shelf::start().await;
    let with = |magic: &[u8]| [magic, &noise(1, 5_000)].concat();
    let table = [
        ("bzip2", with(b"BZh91AY&SY")),
        ("bzip2", b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0".to_vec()),
        ("lzma", lzma(&noise(1, 10_000))),
        ("lz4", with(b"\x04\x22\x4d\x18\x64\x40\xa7")),
        ("an old form of lz4", with(b"\x02\x21\x4c\x18")),
        ("lzip", with(b"LZIP\x01\x0c")),
        ("lzop", with(b"\x89LZO\0\r\n\x1a\n")),
        ("compress (.Z)", with(b"\x1f\x9d\x90")),
        ("zip", with(b"PK\x03\x04")),
        ("7z", with(b"7z\xbc\xaf\x27\x1c")),
        ("rar", with(b"Rar!\x1a\x07\x01\0")),
        ("a form of zstd older than 0.8", with(b"\x27\xb5\x2f\xfd")),
    ];
    for (name, bytes) in table {
        let image = shelf.put("a", &bytes);
        let said = format!("decompress a: it is {name}, which is not supported; xz, gzip, and zstd are");
        for form in [Form::Decompressed, Form::Raw, Form::Vhd, Form::RawOrVhd, Form::Tar] {
            let error = outcome(&shelf, &image, form, true).await.unwrap_err();
            assert_eq!(described(&error), (said.clone(), Class::Deliverable), "{form:?}");
        }
        let error = shelf.sources.source(&image).decompressed_size().await.unwrap_err();
        assert_eq!(described(&error), (said, Class::Deliverable));
        let error = outcome(&shelf, &image, Form::Tarball, true).await.unwrap_err();
        let said = format!("decompress a as a tarball for Compute Engine: it is {name}");
        assert_eq!(described(&error), (said, Class::Deliverable));
        assert!(outcome(&shelf, &image, Form::Stored, true).await.is_ok());
    }
}

#[tokio::test]
async fn the_disk_in_a_tarball_is_held_to_the_same() {
    let shelf = Shelf::start().await;
    let random = {
        let mut bytes = noise(1, MIB);
        bytes[511] = 0;
        bytes
    };
    let unpacked = |tarball: &[u8]| {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(tarball).read_to_end(&mut bytes).unwrap();
        bytes
    };
    let good = tarball::of(&noise(1, MIB));
    let forms = |tarball: &[u8]| {
        let tar = unpacked(tarball);
        vec![
            (Form::Tarball, tarball.to_vec()),
            (Form::Tarball, [tarball, &[0; 1000]].concat()),
            (Form::Tar, tarball.to_vec()),
            (Form::Tar, xz_blocks(&tar, 300_000)),
            (Form::Tar, zstd(&tar)),
            (Form::Tar, tar),
        ]
    };
    for (form, file) in forms(&good) {
        let image = shelf.put("a", &file);
        let expected = if form == Form::Tar { unpacked(&good) } else { file };
        assert_same(&outcome(&shelf, &image, form, false).await.unwrap(), &expected, "good");
    }
    for (bytes, said) in [
        (
            random,
            "disk.raw is no disk: its first sector does not end with the boot signature 55 AA",
        ),
        (
            noise(1, 100),
            "disk.raw is no disk: its first sector does not end with the boot signature 55 AA",
        ),
        (
            Vec::new(),
            "disk.raw is no disk: its first sector does not end with the boot signature 55 AA",
        ),
        (begun(b"QFI\xfb"), "disk.raw is no disk: it is a qcow2 image"),
        (begun(b"conectix"), "disk.raw is no disk: it is a dynamic VHD"),
        (
            begun(&xz(b"disk")),
            "disk.raw is no disk: it is compressed once more with xz",
        ),
    ] {
        for (form, file) in forms(&tarball::of(&bytes)) {
            let image = shelf.put("a", &file);
            let (text, class) = described(&outcome(&shelf, &image, form, false).await.unwrap_err());
            assert_eq!(
                text,
                format!("decompress a as a tarball for Compute Engine: {said}"),
                "{form:?}"
            );
            assert_eq!(class, Class::Deliverable);
        }
    }
    // Anything but a tarball, where there should be one.
    for file in [xz(&noise(1, MIB)), gzip(&noise(1, MIB)), gzip(b""), Vec::new()] {
        let image = shelf.put("a", &file);
        let (text, _) = described(&outcome(&shelf, &image, Form::Tar, false).await.unwrap_err());
        assert!(
            text.starts_with("decompress a as a tarball for Compute Engine: "),
            "{text}"
        );
    }
}
