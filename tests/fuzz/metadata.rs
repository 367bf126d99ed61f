use std::path::Path;

use cloud_image_uploader::base::http;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::Config;
use cloud_image_uploader::messaging::notify::Notice;
use cloud_image_uploader::model::compose::release::{Release, Stage};
use cloud_image_uploader::model::compose::{Compose, ComposeId};
use cloud_image_uploader::model::select::select;
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row};

use crate::{attempts, is_harmless};

const COMPOSE: &str = "Fedora-43-20251024.0";

/// Whatever the metadata says: what is read stays below the compose, and every name made of it is plain.
#[tokio::test]
async fn metadata() {
    let folder = tempfile::tempdir().unwrap();
    let builder = ["aarch64", "x86_64"]
        .into_iter()
        .fold(ComposeBuilder::new(COMPOSE, None), |builder, arch| {
            let disk = Row::new("raw-xz", "raw.xz", "Cloud_Base", arch, "disk.raw.xz", "disk");
            let container = Row::container("Container_Base", arch, "container");
            builder.image(disk).image(container)
        });
    builder.write(folder.path()).unwrap();
    let (images, info) = (builder.images_json(), builder.composeinfo_json());
    let http = http::client().unwrap();
    let id = ComposeId::parse(COMPOSE).unwrap();
    let text = "[consumer_config.local]\ndirectory = \"published\"\n";
    let config = Config::parse(text, Path::new("test.toml")).unwrap();
    let release = Release {
        name: "43".to_owned(),
        number: 43,
        stage: Stage::Production,
        newest_stable: true,
        end_of_life: None,
    };
    let (accepted, _) = attempts("metadata", async |random| {
        for (name, document) in [("images", &images), ("composeinfo", &info)] {
            let mut spoilt = document.clone();
            for _ in 0..random.below(3) {
                random.spoil_value(&mut spoilt);
            }
            let mut bytes = spoilt.to_string().into_bytes();
            if random.below(4) == 0 {
                random.spoil(&mut bytes, 1);
            }
            std::fs::write(folder.path().join(format!("metadata/{name}.json")), bytes).unwrap();
        }
        let location = Resource::Folder(folder.path().to_owned());
        let compose = match Compose::fetch(&http, &location, &id, None).await {
            Ok(compose) => compose,
            Err(error) => {
                let text = cloud_image_uploader::base::failure::Chain(&error).to_string();
                assert!(!text.chars().any(char::is_control), "{text:?}");
                return false;
            }
        };
        for image in &compose.images {
            let Resource::Folder(path) = &image.location else {
                panic!("{image:?}")
            };
            let below = path.strip_prefix(folder.path()).unwrap();
            let normal = |part| matches!(part, std::path::Component::Normal(_));
            assert!(below.components().all(normal), "{}", path.display());
            assert!(is_harmless(&image.path), "{image:?}");
        }
        for deliverable in select(&config.provider, &compose, &release, None).deliverables {
            let topic = Notice::planned(&deliverable).topic;
            for text in [deliverable.name(), topic] {
                assert!(
                    is_harmless(&text) && text.len() < 255 && !text.contains(".."),
                    "{text:?}"
                );
            }
        }
        true
    })
    .await;
    assert!(accepted > 0, "not even sound metadata was accepted");
}
