//! Marks encoded as labels.
//!
//! [Labels](https://cloud.google.com/compute/docs/labeling-resources#requirements) have 63 characters, lower case, and no
//! dots. So a digest is in base32, and a compose id has `_` for `.`; the image's description has both in full.

use std::collections::HashMap;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::model::mark::Mark;
use crate::providers::ownership::{self, HandsOff};

/// The label that names an image's owner. Other users of Google Cloud have such a label, too.
pub(super) const OWNER: &str = "owner";
/// The label with the time at which an image became the head of its family.
pub(super) const PROMOTED: &str = "promoted";
const SHA256: &str = "image-sha256";
/// The most characters a label's value can have.
const LONGEST: usize = 63;
/// The form of a time in a label, in UTC.
const TIME: &str = "%Y-%m-%dt%H-%M-%S";

/// Encodes a mark as labels.
pub(super) fn encode(mark: &Mark) -> HashMap<String, String> {
    mark.encode("")
        .into_iter()
        .map(|(name, value)| {
            let value = if name == SHA256 {
                base32(&value)
            } else {
                restrict(&value)
            };
            (name, value)
        })
        .collect()
}

/// Decodes the mark among labels; `None` for an image without one. The compose id stays as the label has it.
pub(super) fn decode(labels: &HashMap<String, String>) -> Option<Mark> {
    let mut values: std::collections::BTreeMap<_, _> = labels.clone().into_iter().collect();
    if let Some(digest) = values.remove(SHA256).and_then(|text| hex(&text)) {
        values.insert(SHA256.to_owned(), digest);
    }
    Mark::decode("", &values)
}

/// The reason to leave an image alone, from its labels; `None` if it may be changed. The one hands-off rule of this
/// provider, for publishing and for clean-up.
pub(super) fn hands_off(labels: &HashMap<String, String>) -> Option<HandsOff> {
    ownership::hands_off(labels, labels.get(OWNER).map(String::as_str))
}

/// A reason to leave an image alone, for people. Google's word for a tag is label.
pub(super) fn reason(hands_off: &HandsOff) -> String {
    match hands_off {
        HandsOff::Kept => "its label says delete=never".to_owned(),
        HandsOff::Owner(_) => hands_off.to_string(),
    }
}

/// Formats a time as a label's value, cut to whole seconds.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime(TIME).to_string()
}

/// Parses the time in a label's value.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    let at = DateTime::strptime(TIME, text).ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// Replaces each character that labels cannot hold by `_`.
fn restrict(value: &str) -> String {
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

/// Converts hex digits to base32.
fn base32(hex: &str) -> String {
    let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap_or_default();
    BASE32_NOPAD.encode(&bytes).to_lowercase()
}

/// Converts a SHA-256 from base32 to hex; `None` for any other text.
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
    fn other_texts_are_no_digest() {
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
    fn a_time_fits_into_a_label_and_comes_back() {
        let at: Timestamp = "2025-11-04T10:15:30Z".parse().unwrap();
        assert_eq!(time(at), "2025-11-04t10-15-30");
        assert_eq!(parse_time(&time(at)), Some(at));
        for text in ["", "2025-11-04", "2025-11-04t25-00-00"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }
}
