//! The mark as labels.
//!
//! [Labels](https://cloud.google.com/compute/docs/labeling-resources#requirements) have 63 characters, lower case, and no
//! dots. So a digest is in base32, and a compose id has `_` for `.`; the full values are in the image's description.

use std::collections::HashMap;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::model::mark::Mark;

/// Who looks after an image. Google's other users have such a label, too.
pub(super) const OWNER: &str = "owner";
/// When an image became the head of its family.
pub(super) const PROMOTED: &str = "promoted";
/// `never` means hands off.
const DELETE: &str = "delete";
const SHA256: &str = "image-sha256";
/// A label's longest value.
const LONGEST: usize = 63;
/// A time as a label can hold it.
const TIME: &str = "%Y-%m-%dt%H-%M-%S";

/// A mark as labels.
pub(super) fn encode(mark: &Mark) -> HashMap<String, String> {
    mark.encode("")
        .into_iter()
        .map(|(name, value)| {
            let value = if name == SHA256 { base32(&value) } else { tame(&value) };
            (name, value)
        })
        .collect()
}

/// The mark among labels; `None` where there is none of ours. Its compose id is as the label has it.
pub(super) fn decode(labels: &HashMap<String, String>) -> Option<Mark> {
    let mut values: std::collections::BTreeMap<_, _> = labels.clone().into_iter().collect();
    if let Some(digest) = values.remove(SHA256).and_then(|text| hex(&text)) {
        values.insert(SHA256.to_owned(), digest);
    }
    Mark::decode("", &values)
}

/// Whether an operator wants the image kept.
pub(super) fn is_kept(labels: &HashMap<String, String>) -> bool {
    labels.get(DELETE).is_some_and(|delete| delete == "never")
}

/// A time as a label. Parts of a second are lost.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime(TIME).to_string()
}

/// The time in a label.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    let at = DateTime::strptime(TIME, text).ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// What labels cannot hold becomes `_`.
fn tame(value: &str) -> String {
    value
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .take(LONGEST)
        .collect()
}

/// Hex digits in base32.
fn base32(hex: &str) -> String {
    let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap_or_default();
    BASE32_NOPAD.encode(&bytes).to_lowercase()
}

/// A SHA-256 in hex again; `None` for what is none.
fn hex(base32: &str) -> Option<String> {
    let bytes = BASE32_NOPAD.decode(base32.to_uppercase().as_bytes()).ok()?;
    (bytes.len() == 32).then(|| HEXLOWER.encode(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark {
            compose_id: "Fedora-Rawhide-20240829.n.1".to_owned(),
            image_sha256: Some("00ff".repeat(16)),
            stage: "rawhide".to_owned(),
            end_of_life: Some("2026-12-09".parse().unwrap()),
            owner: "cloud-image-uploader".to_owned(),
        }
    }

    #[test]
    fn a_mark_fits_into_labels_and_comes_back() {
        let labels = encode(&mark());
        for (name, value) in &labels {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
            assert!(value.len() <= 63 && value.chars().all(fits), "{name}: {value}");
        }
        assert_eq!(labels["compose-id"], "fedora-rawhide-20240829_n_1");
        let back = decode(&labels).unwrap();
        assert_eq!(back.image_sha256, mark().image_sha256);
        assert_eq!(back.end_of_life, mark().end_of_life);
        assert_eq!((back.stage, back.owner), (mark().stage, mark().owner));
    }

    #[test]
    fn what_is_no_digest_is_none() {
        let good = base32(&"a5".repeat(32));
        assert_eq!(hex(&good), Some("a5".repeat(32)));
        let bad = [
            "",
            "short",
            &good[1..],
            &format!("{good}a"),
            &format!("{}b", &good[..51]),
            &format!("{}1", &good[..51]),
        ];
        for text in bad {
            assert_eq!(hex(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_comes_back() {
        let at: Timestamp = "2025-11-04T10:15:30Z".parse().unwrap();
        assert_eq!(time(at), "2025-11-04t10-15-30");
        assert_eq!(parse_time(&time(at)), Some(at));
        for text in ["", "2025-11-04", "2025-11-04t25-00-00"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
