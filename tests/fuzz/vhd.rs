use cloud_image_uploader::images::vhd::{FOOTER, blob_size, complete};
use cloud_image_uploader_test_support::azure::{check_end, seal, vhd};

use crate::attempts;

const MIB: u64 = 1 << 20;
/// The longest disk, in MiB.
const LONGEST: usize = 64 << 10;

/// Every blob that is uploaded is one that Azure takes: either as it is, or with the footer that is added.
#[tokio::test]
async fn footers() {
    let (accepted, _) = attempts("VHD footers", async |random| {
        let disk = random.below(LONGEST) as u64 * MIB;
        let mut image = disk + FOOTER as u64;
        if random.below(4) == 0 {
            image += random.below(3 * FOOTER) as u64;
        }
        let mut end = match random.below(3) {
            // A raw disk, whose end may be anything.
            0 => vec![0; FOOTER],
            1 => match complete(disk.max(MIB), &[0; FOOTER], "seed") {
                Ok(Some(footer)) => footer.to_vec(),
                other => panic!("{disk}: {other:?}"),
            },
            _ => {
                let mut footer = vhd(&[]);
                footer[48..56].copy_from_slice(&disk.to_be_bytes());
                footer
            }
        };
        if random.below(4) > 0 {
            random.spoil(&mut end, 8);
            end.resize(FOOTER, 0);
        }
        if random.below(4) > 0 {
            seal(&mut end);
        }
        let end = end.try_into().unwrap();
        match complete(image, &end, "seed") {
            Ok(None) => {
                assert_eq!(blob_size(image), image);
                check_end(image, &end).unwrap_or_else(|why| panic!("{image}: {why}: {end:?}"));
                true
            }
            Ok(Some(footer)) => {
                let size = blob_size(image);
                assert!(
                    size >= image + FOOTER as u64,
                    "{image}: the footer would overwrite the disk"
                );
                check_end(size, &footer).unwrap_or_else(|why| panic!("{image}: {why}: {footer:?}"));
                assert_eq!(complete(size, &footer, "seed"), Ok(None));
                true
            }
            Err(reason) => {
                assert!(!reason.chars().any(char::is_control), "{reason:?}");
                false
            }
        }
    })
    .await;
    assert!(accepted > 0, "not even a sound footer was accepted");
}
