//! The content of a tag, and the index that takes its place. Pure functions, no I/O.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::Date;

use crate::base::failure::{Class, Classified};
use crate::images::oci::{Descriptor, Digest, INDEX, Index, Platform, architecture, fedora_architecture};
use crate::model::compose::{ComposeId, Image};
use crate::model::mark::{ANNOTATIONS, Mark, OWNER};
use crate::model::select::Deliverable;
use crate::providers::ownership;

/// [Predefined](https://github.com/opencontainers/image-spec/blob/main/annotations.md): when it was made.
const CREATED: &str = "org.opencontainers.image.created";

/// An index as a registry has it, whatever it is: only what is understood of it counts. An image of one architecture, a
/// chart, and docker's first format are indexes without entries.
pub(super) fn parse(bytes: &[u8]) -> Index {
    serde_json::from_slice(bytes).unwrap_or_default()
}

/// The content of a tag, as far as the deliverable is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judgment {
    /// Every image of the deliverable.
    Complete,
    /// Something that may be replaced: an older compose, the previous service's work, a part of ours.
    Replaceable,
    /// A newer compose, or unmarked images of one.
    Newer(String),
}

/// Reports whether an index names its compose.
pub(super) fn is_marked(index: &Index) -> bool {
    Mark::decode(ANNOTATIONS, &index.annotations).is_some()
}

/// Compares a tag's index with a deliverable. `created` is the build day of its newest image, where it has no mark.
pub(super) fn judge(
    tag: &str,
    index: &Index,
    created: Option<Date>,
    deliverable: &Deliverable,
    allow_older: bool,
) -> Result<Judgment, Error> {
    // These two hold for every index, also for one without the rest of a mark.
    if let Some(owner) = index.annotations.get(&format!("{ANNOTATIONS}owner"))
        && owner != OWNER
    {
        return Err(Error::Owner {
            tag: tag.to_owned(),
            owner: owner.clone(),
        });
    }
    let replaceable = || match is_kept(&index.annotations) {
        true => Err(Error::Kept { tag: tag.to_owned() }),
        false => Ok(Judgment::Replaceable),
    };
    // The previous service left no mark. Its tags are taken over.
    let Some(mark) = Mark::decode(ANNOTATIONS, &index.annotations) else {
        return match created {
            Some(created) if is_after(created, deliverable) && !allow_older => {
                Ok(Judgment::Newer(format!("unmarked images of {created}")))
            }
            Some(_) | None => replaceable(),
        };
    };
    if mark.compose_id == deliverable.compose.as_str() {
        for image in &deliverable.images {
            let ours = |entry: &&Descriptor| is_for(entry, image) && compose_of(entry) == Some(mark.compose_id.clone());
            let Some(entry) = index.manifests.iter().find(ours) else {
                return replaceable();
            };
            let found = Mark::decode(ANNOTATIONS, &entry.annotations).and_then(|mark| mark.image_sha256);
            if found.as_ref() != Some(&image.sha256) {
                return Err(Error::OtherContent {
                    tag: tag.to_owned(),
                    arch: image.arch.clone(),
                    compose: mark.compose_id,
                    expected: image.sha256.clone(),
                    found: found.unwrap_or_else(|| "unknown".to_owned()),
                });
            }
        }
        return Ok(Judgment::Complete);
    }
    match ComposeId::parse(&mark.compose_id) {
        Ok(held) if held.age(&deliverable.compose) == Ordering::Greater && !allow_older => {
            Ok(Judgment::Newer(mark.compose_id))
        }
        // An unreadable id was edited by an operator who wants the index replaced.
        Ok(_) | Err(_) => replaceable(),
    }
}

/// Whether an operator keeps an index: the annotation `delete` with our prefix.
fn is_kept(annotations: &BTreeMap<String, String>) -> bool {
    let ours = annotations.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix(ANNOTATIONS)?;
        Some((name.to_owned(), value.clone()))
    });
    ownership::is_kept(&ours.collect::<BTreeMap<_, _>>())
}

/// Whether an image of this day is of a later compose. A compose has the date on which it was begun, and its images are
/// built in the hours after that, which may be on the next day: so only a day more says something.
fn is_after(created: Date, deliverable: &Deliverable) -> bool {
    (created - deliverable.compose.date).get_days() > 1
}

fn is_for(entry: &Descriptor, image: &Image) -> bool {
    let wanted = architecture(&image.arch);
    entry
        .platform
        .as_ref()
        .is_some_and(|platform| platform.is_linux() && platform.architecture == wanted)
}

fn compose_of(entry: &Descriptor) -> Option<String> {
    Mark::decode(ANNOTATIONS, &entry.annotations).map(|mark| mark.compose_id)
}

/// The entry that already is this very image, from whatever compose.
pub(super) fn reusable<'a>(index: &'a Index, image: &Image) -> Option<&'a Descriptor> {
    index.manifests.iter().find(|entry| {
        let mark = Mark::decode(ANNOTATIONS, &entry.annotations);
        is_for(entry, image) && mark.is_some_and(|mark| mark.image_sha256.as_ref() == Some(&image.sha256))
    })
}

/// The former entries of architectures that the deliverable lacks.
pub(super) fn missing<'a>(index: &'a Index, deliverable: &'a Deliverable) -> impl Iterator<Item = &'a Descriptor> {
    let entries = index
        .manifests
        .iter()
        .filter(|entry| entry.is_image() && entry.platform.as_ref().is_some_and(Platform::is_linux));
    entries.filter(|entry| !is_own(entry, deliverable))
}

/// Reports whether an entry is for an architecture that the deliverable has.
fn is_own(entry: &Descriptor, deliverable: &Deliverable) -> bool {
    deliverable.images.iter().any(|image| is_for(entry, image))
}

/// The day of the compose an entry came from, if it is marked.
pub(super) fn date_of(entry: &Descriptor) -> Option<Date> {
    compose_of(entry)
        .and_then(|id| ComposeId::parse(&id).ok())
        .map(|id| id.date)
}

/// The day in a configuration's `created`.
pub(super) fn date_of_created(created: &str) -> Option<Date> {
    let created: Timestamp = created.parse().ok()?;
    Some(created.to_zoned(jiff::tz::TimeZone::UTC).date())
}

/// Annotations of an image's entry.
pub(super) fn annotations(deliverable: &Deliverable, image: &Image) -> BTreeMap<String, String> {
    Mark::of(deliverable, Some(image)).encode(ANNOTATIONS)
}

/// The index: the same entries give the same bytes.
pub(super) fn build(deliverable: &Deliverable, mut entries: Vec<Descriptor>) -> Result<(Digest, Bytes), Error> {
    entries.sort_by_key(|entry| {
        let platform = entry.platform.clone();
        let arch = platform
            .as_ref()
            .map(|platform| fedora_architecture(&platform.architecture).to_owned());
        (
            arch,
            platform.and_then(|platform| platform.variant),
            entry.digest.clone(),
        )
    });
    let mut annotations = Mark::of(deliverable, None).encode(ANNOTATIONS);
    let midnight = format!("{}T00:00:00Z", deliverable.compose.date);
    annotations.insert(CREATED.to_owned(), midnight);
    let index = Index {
        schema_version: 2,
        media_type: Some(INDEX.to_owned()),
        manifests: entries,
        annotations,
    };
    let bytes = serde_json::to_vec(&index).map_err(Error::Json)?;
    Ok((Digest::of(&bytes), bytes.into()))
}

/// A tag that may not be moved.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Its mark names another owner.
    #[error(
        "move tag {tag}: its index is marked as owned by {owner:?}; remove that mark or the tag to let it be moved"
    )]
    Owner {
        /// The tag.
        tag: String,
        /// By its mark.
        owner: String,
    },
    /// An operator keeps it.
    #[error("move tag {tag}: its index is marked delete=never")]
    Kept {
        /// The tag.
        tag: String,
    },
    /// The same name with other content.
    #[error("move tag {tag}: it holds the {arch} image of {compose} with SHA-256 {found}, and this one has {expected}")]
    OtherContent {
        /// The tag.
        tag: String,
        /// The architecture that differs.
        arch: String,
        /// The compose of both.
        compose: String,
        /// Of the image to be published.
        expected: String,
        /// Of the published one.
        found: String,
    },
    /// Unreachable: an index is always JSON.
    #[error("write the index")]
    Json(#[source] serde_json::Error),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Owner { .. } | Self::Kept { .. } | Self::OtherContent { .. } | Self::Json(_) => Class::Deliverable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::resource::Resource;
    use crate::model::compose::release::{Release, Stage};
    use crate::model::select::Target;
    use crate::model::target::container::Repository;

    fn image(arch: &str, sha256: &str) -> Image {
        Image {
            path: format!("Container/{arch}/images/x.tar.xz"),
            location: Resource::Folder("x.tar.xz".into()),
            arch: arch.to_owned(),
            subvariant: "Container_Base".to_owned(),
            kind: "container".to_owned(),
            format: "tar.xz".to_owned(),
            size: 1,
            sha256: sha256.to_owned(),
        }
    }

    fn deliverable(id: &str, images: Vec<Image>) -> Deliverable {
        Deliverable {
            target: Target::Container(Repository {
                repository: "fedora".to_owned(),
                tags: vec!["43".to_owned()],
            }),
            locations: Vec::new(),
            images,
            subvariant: "Container_Base".to_owned(),
            compose: ComposeId::parse(id).unwrap(),
            release: Release {
                name: "43".to_owned(),
                number: 43,
                stage: Stage::Nightly,
                newest_stable: false,
                end_of_life: None,
            },
        }
    }

    fn entry(deliverable: &Deliverable, image: &Image) -> Descriptor {
        Descriptor {
            media_type: crate::images::oci::MANIFEST.to_owned(),
            digest: Digest::of(image.sha256.as_bytes()),
            size: 7,
            platform: Some(Platform {
                architecture: architecture(&image.arch).to_owned(),
                os: "linux".to_owned(),
                variant: None,
            }),
            annotations: annotations(deliverable, image),
            artifact_type: None,
        }
    }

    fn index_of(deliverable: &Deliverable) -> Index {
        let entries = deliverable
            .images
            .iter()
            .map(|image| entry(deliverable, image))
            .collect();
        serde_json::from_slice(&build(deliverable, entries).unwrap().1).unwrap()
    }

    #[test]
    fn the_same_entries_give_the_same_index_in_any_order() {
        let images = ["aarch64", "armhfp", "ppc64le", "s390x", "x86_64"].map(|arch| image(arch, arch));
        let deliverable = deliverable("Fedora-Container-43-20251024.0", images.to_vec());
        let mut entries: Vec<_> = images.iter().map(|image| entry(&deliverable, image)).collect();
        let (digest, bytes) = build(&deliverable, entries.clone()).unwrap();
        entries.reverse();
        assert_eq!(build(&deliverable, entries).unwrap(), (digest, bytes.clone()));
        let index: Index = serde_json::from_slice(&bytes).unwrap();
        let architectures: Vec<_> = index
            .manifests
            .iter()
            .map(|entry| entry.platform.clone().unwrap().architecture)
            .collect();
        assert_eq!(
            architectures,
            ["arm64", "arm", "ppc64le", "s390x", "amd64"],
            "by Fedora's names"
        );
    }

    #[test]
    fn a_tag_is_judged_by_its_mark() {
        let ours = deliverable(
            "Fedora-Container-43-20251024.0",
            vec![image("x86_64", "a"), image("aarch64", "b")],
        );
        let complete = index_of(&ours);
        assert_eq!(judge("43", &complete, None, &ours, false).unwrap(), Judgment::Complete);

        let half = index_of(&deliverable(
            "Fedora-Container-43-20251024.0",
            vec![image("x86_64", "a")],
        ));
        assert_eq!(judge("43", &half, None, &ours, false).unwrap(), Judgment::Replaceable);
        assert!(reusable(&half, &ours.images[0]).is_some() && reusable(&half, &ours.images[1]).is_none());

        let other = index_of(&deliverable(
            "Fedora-Container-43-20251024.0",
            vec![image("x86_64", "c"), image("aarch64", "b")],
        ));
        let text = judge("43", &other, None, &ours, false).unwrap_err().to_string();
        assert!(text.contains("SHA-256 c") && text.contains("has a"), "{text}");

        // Across families, by date and then respin.
        for (id, expected) in [
            (
                "Fedora-43-20251024.1",
                Judgment::Newer("Fedora-43-20251024.1".to_owned()),
            ),
            ("Fedora-43-20251024.0", Judgment::Replaceable),
            ("Fedora-Container-43-20251023.9", Judgment::Replaceable),
        ] {
            let held = index_of(&deliverable(id, ours.images.clone()));
            assert_eq!(judge("43", &held, None, &ours, false).unwrap(), expected, "{id}");
            assert_eq!(
                judge("43", &held, None, &ours, true).unwrap(),
                Judgment::Replaceable,
                "{id}"
            );
        }
    }

    #[test]
    fn an_operators_word_is_obeyed() {
        let ours = deliverable("Fedora-Container-43-20251024.0", vec![image("x86_64", "a")]);
        let mut former = index_of(&deliverable(
            "Fedora-Container-43-20251001.0",
            vec![image("x86_64", "b")],
        ));
        former
            .annotations
            .insert(format!("{ANNOTATIONS}delete"), "Never".to_owned());
        assert!(matches!(
            judge("43", &former, None, &ours, true),
            Err(Error::Kept { .. })
        ));
        former
            .annotations
            .insert(format!("{ANNOTATIONS}owner"), "somebody".to_owned());
        assert!(matches!(
            judge("43", &former, None, &ours, true),
            Err(Error::Owner { .. })
        ));
        former.annotations.clear();
        assert_eq!(judge("43", &former, None, &ours, false).unwrap(), Judgment::Replaceable);
    }

    #[test]
    fn a_kept_or_foreign_tag_is_left_alone_whatever_else_it_says() {
        let ours = deliverable("Fedora-43-20251024.0", vec![image("x86_64", "a")]);
        let compose = ours.compose.to_string();
        for annotations in [
            vec![("owner", "CoreOS")],
            vec![("owner", "")],
            vec![("delete", "never")],
            vec![
                ("compose-id", "Fedora-43-20251001.0"),
                ("stage", "rc"),
                ("delete", "Never"),
            ],
            vec![("owner", OWNER), ("compose-id", &compose), ("delete", "never")],
        ] {
            let named = |(name, value): &(&str, &str)| (format!("{ANNOTATIONS}{name}"), (*value).to_owned());
            let held = Index {
                annotations: annotations.iter().map(named).collect(),
                ..Index::default()
            };
            for allow_older in [false, true] {
                let judged = judge("43", &held, None, &ours, allow_older);
                assert!(
                    matches!(judged, Err(Error::Owner { .. } | Error::Kept { .. })),
                    "{annotations:?}: {judged:?}"
                );
            }
        }
    }

    #[test]
    fn what_has_no_mark_is_judged_by_its_age() {
        let ours = deliverable("Fedora-Container-43-20251031.1", vec![image("x86_64", "a")]);
        let held = |created: Option<&str>, allow_older| {
            let created = created.map(|date| date.parse().unwrap());
            judge("43", &Index::default(), created, &ours, allow_older).unwrap()
        };
        for replaceable in [None, Some("1970-01-01"), Some("2025-10-31"), Some("2025-11-01")] {
            assert_eq!(held(replaceable, false), Judgment::Replaceable, "{replaceable:?}");
        }
        for newer in ["2025-11-02", "2026-10-31"] {
            let expected = Judgment::Newer(format!("unmarked images of {newer}"));
            assert_eq!(held(Some(newer), false), expected);
            assert_eq!(held(Some(newer), true), Judgment::Replaceable, "{newer}");
        }
    }

    #[test]
    fn whatever_a_tag_holds_may_be_replaced() {
        let ours = deliverable("Fedora-Container-43-20251024.0", vec![image("x86_64", "a")]);
        let sha512 = format!("sha512:{}", "0".repeat(128));
        let digest = Digest::of(b"x");
        let digest = digest.as_str();
        let former = deliverable("Fedora-Container-43-20251001.0", vec![image("s390x", "c")]);
        let kept = serde_json::json!(index_of(&former).manifests[0]);
        let odd = [
            String::new(),
            "<html>".to_owned(),
            "null".to_owned(),
            "[]".to_owned(),
            "{}".to_owned(),
            r#"{"schemaVersion":1,"name":"fedora","history":[{"v1Compatibility":"{}"}],"fsLayers":[]}"#.to_owned(),
            r#"{"schemaVersion":2,"manifests":null,"annotations":null}"#.to_owned(),
            r#"{"schemaVersion":"2","manifests":{},"annotations":{"a":null}}"#.to_owned(),
            format!(r#"{{"manifests":[{{"digest":"{sha512}","size":7,"platform":{{"architecture":"s390x"}}}}]}}"#),
            format!(r#"{{"manifests":[{{"digest":"{digest}","size":7,"platform":{{"architecture":"s390x"}}}}]}}"#),
            format!(
                r#"{{"manifests":[{{"digest":"{digest}","size":7,
                "platform":{{"architecture":"s390x","os":"windows"}}}}]}}"#
            ),
            format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.cncf.helm.config.v1+json",
                "digest":"{digest}","size":7}},"layers":[]}}"#
            ),
        ];
        for odd in odd {
            let index = parse(odd.as_bytes());
            assert_eq!(
                judge("43", &index, None, &ours, false).unwrap(),
                Judgment::Replaceable,
                "{odd}"
            );
            assert_eq!(missing(&index, &ours).count(), 0, "{odd}");
        }
        // Beside what is understood.
        let odd = format!(r#"{{"manifests":[null,{{"digest":"{sha512}","size":7}},{kept}]}}"#);
        assert_eq!(missing(&parse(odd.as_bytes()), &ours).count(), 1);
    }

    #[test]
    fn only_images_are_kept() {
        let ours = deliverable("Fedora-Container-43-20251024.0", vec![image("x86_64", "a")]);
        let mut former = index_of(&deliverable(
            "Fedora-Container-43-20251001.0",
            vec![image("x86_64", "b"), image("s390x", "c"), image("aarch64", "d")],
        ));
        let platform = former.manifests[0].platform.as_mut().unwrap();
        assert_eq!(platform.architecture, "arm64");
        platform.architecture = "unknown".to_owned();
        let kept: Vec<_> = missing(&former, &ours)
            .map(|entry| entry.platform.clone().unwrap().architecture)
            .collect();
        assert_eq!(kept, ["s390x"]);
        assert_eq!(date_of(&former.manifests[1]), Some("2025-10-01".parse().unwrap()));
        assert_eq!(
            date_of_created("2025-10-01T23:30:00-02:00"),
            Some("2025-10-02".parse().unwrap())
        );
        assert_eq!(date_of_created("yesterday"), None);
    }
}
