//! What an AMI is to be, and the tags that tell it and its snapshots from others.
//!
//! Every image, snapshot, and import task of ours has the tags of the configuration's table `tags`, `Name` unless that
//! table has one, and these, each after `cloud-image-uploader:`
//!
//! | tag | value |
//! | --- | --- |
//! | `compose-id` | the compose, literally |
//! | `image-sha256` | of the image file in the compose, in hex |
//! | `release`, `stage`, `subvariant`, `architecture` | as in the notification |
//! | `end-of-life` | a date, where there is one |
//! | `owner` | `cloud-image-uploader`; with another one, hands off |
//! | `made-by` | on snapshots: `import`, `blocks`, or `copy` |

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};
use uuid::Uuid;

use super::error::Error;
use crate::config::aws::Aws;
use crate::model::compose::Image;
use crate::model::mark::{Mark, OWNER};
use crate::model::select::{Deliverable, Target};
use crate::model::target::aws::Ami;

/// Before the name of each tag of ours.
const PREFIX: &str = "cloud-image-uploader:";

/// The tag that says how a snapshot came to be.
pub(super) const MADE_BY: &str = "cloud-image-uploader:made-by";

/// Whoever puts this tag with the value `never` on something wants it kept.
const KEEP: (&str, &str) = ("delete", "never");

/// What is the same in every region.
pub(super) struct Wanted {
    /// Unique in each region.
    pub(super) name: String,
    /// Its one image.
    pub(super) image: Image,
    /// For people.
    pub(super) description: String,
    tags: BTreeMap<String, String>,
}

/// How a snapshot came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// By AWS, from an object.
    Import,
    /// Block by block.
    Blocks,
    /// From another region's.
    Copy,
}

impl Made {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Blocks => "blocks",
            Self::Copy => "copy",
        }
    }
}

impl Wanted {
    pub(super) fn of(deliverable: &Deliverable, section: &Aws) -> Result<Self, Error> {
        let (Target::Aws(Ami { name }), [image]) = (&deliverable.target, &deliverable.images[..]) else {
            return Err(Error::NotAnAmi(deliverable.name()));
        };
        let mut tags = BTreeMap::from([("Name".to_owned(), name.clone())]);
        tags.extend(section.tags.clone());
        tags.extend(Mark::of(deliverable, Some(image)).encode(PREFIX));
        for (tag, value) in [
            ("release", &deliverable.release.name),
            ("subvariant", &deliverable.subvariant),
            ("architecture", &image.arch),
        ] {
            tags.insert(format!("{PREFIX}{tag}"), value.clone());
        }
        Ok(Self {
            name: name.clone(),
            description: format!(
                "Fedora {} {} for {}, from {}",
                deliverable.release.name,
                deliverable.subvariant.replace('_', " "),
                image.arch,
                deliverable.compose
            ),
            image: image.clone(),
            tags,
        })
    }

    /// The tags of an image or an import task.
    pub(super) fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }

    /// The tags of a snapshot.
    pub(super) fn tags_of_snapshot(&self, made: Made) -> BTreeMap<String, String> {
        let mut tags = self.tags.clone();
        tags.insert(MADE_BY.to_owned(), made.as_str().to_owned());
        tags
    }

    /// Finds what has our mark and was made of the same image of the same compose.
    pub(super) fn filters(&self) -> Vec<Filter> {
        let filters = self
            .identity()
            .map(|(tag, value)| Filter::builder().name(format!("tag:{tag}")).values(value).build());
        filters.collect()
    }

    /// Whether something has our mark and was made of the same image of the same compose.
    pub(super) fn is_ours(&self, tags: &BTreeMap<String, String>) -> bool {
        self.identity()
            .all(|(tag, value)| tags.get(&tag).is_some_and(|found| found == value))
    }

    fn identity(&self) -> impl Iterator<Item = (String, &str)> {
        ["compose-id", "image-sha256", "owner"].into_iter().map(|tag| {
            let tag = format!("{PREFIX}{tag}");
            let value = self.tags.get(&tag).map_or("", String::as_str);
            (tag, value)
        })
    }

    /// Refuses a name that is taken: by somebody else, or by other content. What has no mark was made by the service
    /// before this one, which named images the same way.
    pub(super) fn judge(&self, ami: &str, region: &str, tags: &BTreeMap<String, String>) -> Result<(), Error> {
        let found = |tag: &str| tags.get(&format!("{PREFIX}{tag}")).cloned();
        match (found("owner"), found("image-sha256")) {
            (Some(owner), _) if owner != OWNER => Err(Error::Foreign {
                name: self.name.clone(),
                region: region.to_owned(),
                ami: ami.to_owned(),
                owner,
            }),
            (_, Some(found)) if found != self.image.sha256 => Err(Error::Taken {
                name: self.name.clone(),
                region: region.to_owned(),
                ami: ami.to_owned(),
                found,
                expected: self.image.sha256.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The same for everybody who wants the same thing done for the same time, so that it is done once.
    /// [Tokens](https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Run_Instance_Idempotency.html) have 64 characters
    /// at most and belong to all that is asked for.
    pub(super) fn token(&self, asked: &[&str], attempt: usize) -> String {
        let tags = self.tags.iter().map(|(tag, value)| format!("{tag}={value}"));
        let asked = asked.iter().map(|asked| (*asked).to_owned());
        let text: Vec<String> = tags.chain(asked).chain([attempt.to_string()]).collect();
        Uuid::new_v5(&Uuid::NAMESPACE_OID, text.join("\n").as_bytes()).to_string()
    }
}

/// Whether somebody wants it kept.
pub(super) fn is_kept(tags: &BTreeMap<String, String>) -> bool {
    let (tag, value) = KEEP;
    tags.get(tag).is_some_and(|found| found == value)
}

/// As EC2 sends them.
pub(super) fn read(tags: &[Tag]) -> BTreeMap<String, String> {
    let pair = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(pair).collect()
}

/// As EC2 takes them.
pub(super) fn write(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    let tag = |(name, value): (&String, &String)| Tag::builder().key(name).value(value).build();
    tags.iter().map(tag).collect()
}

/// As EC2 takes them with what makes the thing that has them: there is no moment without.
pub(super) fn specification(kind: ResourceType, tags: &BTreeMap<String, String>) -> TagSpecification {
    TagSpecification::builder()
        .resource_type(kind)
        .set_tags(Some(write(tags)))
        .build()
}
