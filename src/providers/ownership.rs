//! Ownership of images: the one comparison of marks, and the one hands-off rule.
//!
//! Every provider applies these rules before it adopts, changes, or deletes anything, in this order:
//!
//! 1. `delete=never`, in any letter case: the thing is never changed or deleted, even if this program created it.
//! 2. A mark that names another owner: the thing is neither changed nor deleted.
//! 3. A mark of this program with the digest of other content: the provider reports both digests and never overwrites.
//! 4. No mark: the previous service created the thing under the same name, and the provider adopts it.

use crate::model::mark::OWNER;

/// The name of the tag, label, or annotation by which an operator keeps a thing.
const DELETE: &str = "delete";
/// The value of that tag, label, or annotation.
const NEVER: &str = "never";

/// The reason why a thing must not be changed or deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandsOff {
    /// An operator keeps the thing.
    #[error("it is tagged delete=never")]
    Kept,
    /// The mark names another owner.
    #[error("it belongs to {0}")]
    Owner(String),
}

/// The comparison of an existing image with the one that is to be published under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The image was created from the same file, or has no mark: adopt it.
    Same,
    /// The mark names another owner.
    Foreign(String),
    /// The image was created from a file with this digest.
    OtherContent(String),
}

/// Reports whether tags, labels, or annotations keep a thing: `delete=never`, names and values in any letter case.
#[must_use]
pub fn is_kept<'a>(values: impl IntoIterator<Item = (&'a String, &'a String)>) -> bool {
    values
        .into_iter()
        .any(|(name, value)| name.eq_ignore_ascii_case(DELETE) && value.trim().eq_ignore_ascii_case(NEVER))
}

/// The reason to leave a thing unchanged, from its tags and the owner that its mark names; `None` if it may be changed.
#[must_use]
pub fn hands_off<'a>(
    values: impl IntoIterator<Item = (&'a String, &'a String)>,
    owner: Option<&str>,
) -> Option<HandsOff> {
    if is_kept(values) {
        return Some(HandsOff::Kept);
    }
    owner
        .filter(|owner| *owner != OWNER)
        .map(|owner| HandsOff::Owner(owner.to_owned()))
}

/// Compares the owner and the SHA-256 that a mark names with the SHA-256 of the image to be published.
#[must_use]
pub fn compare(owner: Option<&str>, found: Option<&str>, expected: &str) -> Comparison {
    match (owner, found) {
        (Some(owner), _) if owner != OWNER => Comparison::Foreign(owner.to_owned()),
        (_, Some(found)) if !found.eq_ignore_ascii_case(expected) => Comparison::OtherContent(found.to_owned()),
        _ => Comparison::Same,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn an_operator_keeps_things_in_any_letter_case() {
        for kept in [
            ("delete", "never"),
            ("Delete", "Never"),
            ("DELETE", "NEVER"),
            ("delete", " never "),
        ] {
            assert!(is_kept(&values(&[("a", "b"), kept])), "{kept:?}");
        }
        for not in [
            ("delete", "always"),
            ("delete", ""),
            ("undelete", "never"),
            ("never", "delete"),
        ] {
            assert!(!is_kept(&values(&[not])), "{not:?}");
        }
    }

    #[test]
    fn a_kept_or_foreign_thing_is_left_alone() {
        for (tags, owner, expected) in [
            (values(&[]), None, None),
            (values(&[]), Some(OWNER), None),
            (values(&[("delete", "Never")]), Some(OWNER), Some(HandsOff::Kept)),
            (values(&[("delete", "never")]), Some("CoreOS"), Some(HandsOff::Kept)),
            (values(&[]), Some("CoreOS"), Some(HandsOff::Owner("CoreOS".to_owned()))),
            (values(&[]), Some(""), Some(HandsOff::Owner(String::new()))),
        ] {
            assert_eq!(hands_off(&tags, owner), expected, "{tags:?} {owner:?}");
        }
    }

    #[test]
    fn the_content_decides_unless_the_owner_does() {
        for (owner, found, expected) in [
            (None, None, Comparison::Same),
            (Some(OWNER), Some("aa"), Comparison::Same),
            (Some(OWNER), Some("AA"), Comparison::Same),
            (Some(OWNER), Some("bb"), Comparison::OtherContent("bb".to_owned())),
            (None, Some("bb"), Comparison::OtherContent("bb".to_owned())),
            (Some("CoreOS"), Some("aa"), Comparison::Foreign("CoreOS".to_owned())),
        ] {
            assert_eq!(compare(owner, found, "aa"), expected, "{owner:?} {found:?}");
        }
    }
}
