//! The specification of an AMI, and the tags that identify it and its snapshots.
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
use crate::model::mark::Mark;
use crate::model::select::{Deliverable, Target};
use crate::model::target::aws::Ami;
use crate::providers::ownership::{self, Comparison, HandsOff};

/// The prefix of each tag of this program.
const PREFIX: &str = "cloud-image-uploader:";

/// The tag that names the method by which a snapshot was created.
pub(super) const CREATED_BY: &str = "cloud-image-uploader:made-by";

/// The properties of an AMI that are the same in every region.
pub(super) struct AmiSpec {
    /// The AMI's name, unique in each region.
    pub(super) name: String,
    /// The image file in the compose.
    pub(super) image: Image,
    /// The description that people read.
    pub(super) description: String,
    tags: BTreeMap<String, String>,
}

/// The method by which a snapshot was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CreatedBy {
    /// Imported by AWS from an object.
    Import,
    /// Written block by block with EBS direct.
    Blocks,
    /// Copied from another region.
    Copy,
}

impl CreatedBy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Blocks => "blocks",
            Self::Copy => "copy",
        }
    }
}

impl AmiSpec {
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
    pub(super) fn tags_of_snapshot(&self, made: CreatedBy) -> BTreeMap<String, String> {
        let mut tags = self.tags.clone();
        tags.insert(CREATED_BY.to_owned(), made.as_str().to_owned());
        tags
    }

    /// Filters for resources that carry our mark and come from the same image of the same compose.
    pub(super) fn filters(&self) -> Vec<Filter> {
        let filters = self
            .identity()
            .map(|(tag, value)| Filter::builder().name(format!("tag:{tag}")).values(value).build());
        filters.collect()
    }

    /// Reports whether these tags are our mark, of the same image of the same compose.
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

    /// Refuses an image of the same name that has another owner or other content. The previous service created images
    /// without a mark under the same names.
    pub(super) fn judge(&self, ami: &str, region: &str, tags: &BTreeMap<String, String>) -> Result<(), Error> {
        let value = |tag: &str| tags.get(&format!("{PREFIX}{tag}")).map(String::as_str);
        match ownership::compare(value("owner"), value("image-sha256"), &self.image.sha256) {
            Comparison::Same => Ok(()),
            Comparison::Foreign(owner) => Err(Error::Foreign {
                name: self.name.clone(),
                region: region.to_owned(),
                ami: ami.to_owned(),
                owner,
            }),
            Comparison::OtherContent(found) => Err(Error::OtherContent {
                name: self.name.clone(),
                region: region.to_owned(),
                ami: ami.to_owned(),
                found,
                expected: self.image.sha256.clone(),
            }),
        }
    }

    /// The idempotency token of a call: equal for every process that makes the same call for the same attempt.
    /// [Tokens](https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Run_Instance_Idempotency.html) have 64 characters
    /// at most and cover all parameters.
    pub(super) fn token(&self, asked: &[&str], attempt: usize) -> String {
        let tags = self.tags.iter().map(|(tag, value)| format!("{tag}={value}"));
        let asked = asked.iter().map(|asked| (*asked).to_owned());
        let text: Vec<String> = tags.chain(asked).chain([attempt.to_string()]).collect();
        Uuid::new_v5(&Uuid::NAMESPACE_OID, text.join("\n").as_bytes()).to_string()
    }
}

/// The reason to leave something with these tags alone, if there is one.
pub(super) fn hands_off(tags: &BTreeMap<String, String>) -> Option<HandsOff> {
    let owner = tags.get(&format!("{PREFIX}owner")).map(String::as_str);
    ownership::hands_off(tags, owner)
}

/// The tags in an answer of EC2, by name.
pub(super) fn tags_of(tags: &[Tag]) -> BTreeMap<String, String> {
    let pair = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(pair).collect()
}

/// The tags as EC2 accepts them.
pub(super) fn write(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    let tag = |(name, value): (&String, &String)| Tag::builder().key(name).value(value).build();
    tags.iter().map(tag).collect()
}

/// Tags for a create call, so a resource is never untagged, not even briefly.
pub(super) fn specification(kind: ResourceType, tags: &BTreeMap<String, String>) -> TagSpecification {
    TagSpecification::builder()
        .resource_type(kind)
        .set_tags(Some(write(tags)))
        .build()
}
