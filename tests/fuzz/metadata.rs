use std::path::Path;

use cloud_image_uploader::base::http;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::Config;
use cloud_image_uploader::messaging::notify::Notice;
use cloud_image_uploader::model::compose::release::{Release, Stage};
use cloud_image_uploader::model::compose::{Compose, ComposeId};
use cloud_image_uploader::model::select::select;
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{attempts, is_harmless};

const COMPOSE: &str = "Fedora-43-20251024.0";

const LOCAL: &str = "[consumer_config.local]\ndirectory = \"published\"\n";
const CONTAINER: &str = "[consumer_config.container]\nrepos = { Container_Base = \"fedora\" }\n\
                         registries = [{ url = \"registry.example\" }]\n";

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("test.toml")).unwrap()
}

fn release() -> Release {
    Release {
        name: "43".to_owned(),
        number: 43,
        stage: Stage::Production,
        newest_stable: true,
        end_of_life: None,
    }
}

fn sound() -> ComposeBuilder {
    ["aarch64", "x86_64"]
        .into_iter()
        .fold(ComposeBuilder::new(COMPOSE, None), |builder, arch| {
            let disk = Row::new("raw-xz", "raw.xz", "Cloud_Base", arch, "disk.raw.xz", "disk");
            let container = Row::container("Container_Base", arch, "container");
            builder.image(disk).image(container)
        })
}

/// Any JSON, though never a text that is a `type`.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        proptest::sample::select(vec!["Cloud_Base", "Container_Base", "x86_64", "raw.xz", "tar.xz", ""])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let key = prop_oneof![Just("sha256".to_owned()), any::<String>()];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(key, inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A row whose type nothing publishes, with any JSON in any of its fields, or any JSON in its place.
fn irrelevant_row() -> impl Strategy<Value = Value> {
    let field = prop_oneof![
        Just("arch"),
        Just("checksums"),
        Just("format"),
        Just("path"),
        Just("size"),
        Just("subvariant"),
        Just("type"),
        Just("unknown"),
    ];
    let row = vec((field, any_json()), 0..8).prop_map(|fields| {
        let mut row = json!({
            "arch": "x86_64", "checksums": {"sha256": "0".repeat(64)}, "format": "qcow2", "path": "a/b.qcow2", "size": 1,
            "subvariant": "Cloud_Base", "type": "qcow2",
        });
        for (field, value) in fields {
            row[field] = value;
        }
        row
    });
    prop_oneof![4 => row, 1 => any_json()]
}

proptest! {
    /// Arbitrary JSON in rows that concern no one changes nothing of what is selected.
    #[test]
    fn irrelevant_rows_never_change_the_selection(
        rows in vec(irrelevant_row(), 0..12),
        map in any_json(),
        variant in any_json(),
    ) {
        let mut images = sound().images_json();
        let id = ComposeId::parse(COMPOSE).unwrap();
        let location = Resource::Folder("compose".into());
        let selected = |images: &Value| {
            let compose = Compose::parse(images.to_string().as_bytes(), &location, &id).unwrap();
            [LOCAL, CONTAINER].map(|text| {
                let selection = select(&config(text).provider.publisher(), &compose, &release(), None);
                (format!("{:?}", selection.deliverables), selection.refused.len())
            })
        };
        let expected = selected(&images);
        let variants = &mut images["payload"]["images"];
        for row in &rows {
            let list = variants["Cloud"]["x86_64"].as_array_mut().unwrap();
            list.insert(0, row.clone());
        }
        variants["Server"] = json!({"x86_64": rows, "aarch64": map});
        variants["Labs"] = variant;
        prop_assert_eq!(selected(&images), expected);
    }
}

/// Files that metadata names stay below the compose, and every name made from metadata is plain.
#[tokio::test]
async fn metadata() {
    let folder = tempfile::tempdir().unwrap();
    let builder = sound();
    builder.write(folder.path()).unwrap();
    let (images, info) = (builder.images_json(), builder.composeinfo_json());
    let http = http::client().unwrap();
    let id = ComposeId::parse(COMPOSE).unwrap();
    let (config, release) = (config(LOCAL), release());
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
        for image in compose.rows.iter().filter_map(|row| row.image.as_ref().ok()) {
            let Resource::Folder(path) = &image.location else {
                panic!("{image:?}")
            };
            let below = path.strip_prefix(folder.path()).unwrap();
            let normal = |part| matches!(part, std::path::Component::Normal(_));
            assert!(below.components().all(normal), "{}", path.display());
            assert!(is_harmless(&image.path), "{image:?}");
        }
        let selection = select(&config.provider.publisher(), &compose, &release, None);
        for refused in &selection.refused {
            let text = refused.to_string();
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
        for deliverable in selection.deliverables {
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
