use std::io::{Read, Write};
use std::time::Duration;

use cloud_image_uploader::base::failure::{Chain, Class, Classified};
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::images::source::{Content, Form, Sources};
use cloud_image_uploader::model::compose::Image;
use cloud_image_uploader_test_support::archive::sha256;
use cloud_image_uploader_test_support::gcp::check_tarball;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::archive::mend;
use crate::attempts;

const SOUND: &[u8] =
    include_bytes!("../fixtures/sample/compose/Cloud/x86_64/images/Fedora-Cloud-Base-GCE-43-1.7.x86_64.tar.gz");

/// Every tarball that passes is one that Compute Engine takes, byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn tarballs() {
    let mut sound = Vec::new();
    GzDecoder::new(SOUND).read_to_end(&mut sound).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.tar.gz");
    let sources = Sources::new(http::client().unwrap(), Board::log(), 1, 64 << 20, 1);
    let (accepted, _) = attempts("tarballs for Compute Engine", async |random| {
        let mut archive = sound.clone();
        if random.below(20) > 0 {
            // Most of it is the disk; what is judged is the header, the map, and the end.
            let mut header = archive[..512].to_vec();
            random.spoil(&mut header, 12);
            header.resize(512, 0);
            archive.splice(..512, header);
            if random.below(4) == 0 {
                random.spoil(&mut archive, 512);
            }
        }
        if random.below(4) > 0 {
            mend(&mut archive);
        }
        let mut file = GzEncoder::new(Vec::new(), Compression::fast());
        file.write_all(&archive).unwrap();
        let mut file = file.finish().unwrap();
        if random.below(10) == 0 {
            random.spoil(&mut file, 1);
        }
        std::fs::write(&path, &file).unwrap();
        let image = Image {
            path: "disk.tar.gz".to_owned(),
            location: Resource::Folder(path.clone()),
            arch: "x86_64".to_owned(),
            subvariant: "Cloud_Base".to_owned(),
            kind: "tar-gz".to_owned(),
            format: "tar.gz".to_owned(),
            size: file.len() as u64,
            sha256: sha256(&file),
        };
        let read = async {
            let mut chunks = sources.source(&image).open(Form::Tarball).await?;
            let mut passed = Vec::new();
            while let Some(chunk) = chunks.next().await? {
                match chunk.content {
                    Content::Data(bytes) => passed.extend_from_slice(&bytes),
                    Content::Hole(_) => panic!("a hole in what is stored"),
                }
            }
            Ok(passed)
        };
        let read: Result<_, cloud_image_uploader::images::source::Error> =
            tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
        match read {
            Ok(passed) => {
                assert!(passed == file, "other bytes passed");
                check_tarball(&file).unwrap_or_else(|why| panic!("{why}: {:?}", &archive[..512]));
                true
            }
            Err(error) => {
                assert_eq!(error.class(), Class::Deliverable, "{error}");
                let text = Chain(&error).to_string();
                assert!(!text.chars().any(char::is_control), "{text:?}");
                false
            }
        }
    })
    .await;
    assert!(accepted > 0, "not even a sound tarball was accepted");
}
