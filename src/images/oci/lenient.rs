//! Documents as other programs write them: of each value only as much as we understand.
//!
//! `null` is an absent key. A value of another form than expected is absent, too, wherever nothing that we publish depends
//! on it.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Descriptor, Platform};

/// `null` as the default; any other form is an error.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The version of a document's format, 0 where there is none.
pub(super) fn version<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    Ok(or_absent(from)?.unwrap_or_default())
}

/// A text, empty where there is none.
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(or_absent(from)?.unwrap_or_default())
}

/// A text that is not empty.
pub(super) fn some_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(or_absent(from)?.filter(|text: &String| !text.is_empty()))
}

/// The annotations whose values are texts.
pub(super) fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values: BTreeMap<String, Value> = or_absent(from)?.unwrap_or_default();
    let texts = values.into_iter().filter_map(|(name, value)| match value {
        Value::String(text) => Some((name, text)),
        _ => None,
    });
    Ok(texts.collect())
}

/// A platform that names both its processor and its operating system.
pub(super) fn platform<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Platform>, D::Error> {
    let found: Option<Platform> = or_absent(from)?;
    Ok(found.filter(|platform| !platform.architecture.is_empty() && !platform.os.is_empty()))
}

/// The entries of an index that name something by its SHA-256 and size.
pub(super) fn descriptors<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Descriptor>, D::Error> {
    let values: Vec<Value> = or_absent(from)?.unwrap_or_default();
    let understood = values
        .into_iter()
        .filter_map(|value| serde_json::from_value(value).ok());
    Ok(understood.collect())
}

fn or_absent<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::images::oci::{Config, Index, Manifest};

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn an_index_keeps_what_is_understood_of_it() {
        for (odd, entries) in [
            (json!({}), 0),
            (
                json!({"schemaVersion": null, "manifests": null, "annotations": null, "mediaType": null}),
                0,
            ),
            (
                json!({"schemaVersion": "2", "manifests": {}, "annotations": [], "mediaType": 7}),
                0,
            ),
            (
                json!({"manifests": [null, 7, {}, {"digest": "sha512:00", "size": 1}]}),
                0,
            ),
            (
                json!({"manifests": [{"digest": DIGEST, "size": -1}, {"digest": DIGEST, "size": 1}]}),
                1,
            ),
            (
                json!({"manifests": [{"digest": DIGEST, "size": 1, "mediaType": null, "platform": null}]}),
                1,
            ),
        ] {
            let index: Index = serde_json::from_value(odd.clone()).unwrap();
            assert_eq!(index.manifests.len(), entries, "{odd}");
        }
    }

    #[test]
    fn a_platform_without_its_system_is_none() {
        for platform in [
            json!(null),
            json!("linux/amd64"),
            json!({"architecture": "amd64"}),
            json!({"architecture": "amd64", "os": null}),
            json!({"architecture": "amd64", "os": ""}),
        ] {
            let entry = json!({
                "digest": DIGEST, "size": 1, "platform": platform, "annotations": {"a": null, "b": "c", "d": 1},
            });
            let entry: Descriptor = serde_json::from_value(entry).unwrap();
            assert_eq!(entry.platform, None, "{platform}");
            assert_eq!(entry.annotations, BTreeMap::from([("b".to_owned(), "c".to_owned())]));
        }
    }

    #[test]
    fn what_is_published_is_read_strictly() {
        let config = json!({"digest": DIGEST, "size": 1});
        let manifest: Manifest = serde_json::from_value(json!({"config": config, "layers": null})).unwrap();
        assert_eq!(manifest.layers, []);
        for odd in [
            json!({"config": null, "layers": []}),
            json!({"config": config, "layers": [null]}),
            json!({"config": config, "layers": [{"digest": "sha512:00", "size": 1}]}),
        ] {
            assert!(serde_json::from_value::<Manifest>(odd.clone()).is_err(), "{odd}");
        }
        let null = json!({"architecture": "amd64", "os": "linux", "created": null, "variant": null, "rootfs": null});
        assert_eq!(serde_json::from_value::<Config>(null).unwrap().rootfs.diff_ids, []);
        assert!(serde_json::from_value::<Config>(json!({"architecture": "amd64", "os": null})).is_err());
    }
}
