//! EC2: each cloud image in `raw-xz` becomes an AMI in every region.

use serde_json::{Map, Value, json};

use super::{Describe, Group, Location, Rules, Target, by_architecture, image_body, put, version};
use crate::model::compose::release::Release;
use crate::model::compose::{Compose, Image, Row};
use crate::model::deliverable::Deliverable;

/// An image in EC2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ami {
    /// Unique in each region.
    pub name: String,
}

/// The rules for EC2.
#[derive(Debug)]
pub struct AmiRules;

pub(super) fn is_disk(row: &Row) -> bool {
    row.kind == "raw-xz"
}

impl Rules for AmiRules {
    fn group(&self, compose: &Compose, row: &Row) -> Option<Group> {
        by_architecture(compose, row, is_disk)
    }

    fn target(&self, group: &Group, images: &[Image], compose: &Compose, release: &Release) -> Target {
        Target::Aws(Ami {
            name: name(&images[0].subvariant, &group.key, compose, release),
        })
    }
}

/// `Fedora-Cloud-Base-AmazonEC2.x86_64-42-Prerelease-1.4`. Fedora's web site finds final images by exactly this name.
fn name(subvariant: &str, arch: &str, compose: &Compose, release: &Release) -> String {
    let subvariant = subvariant.replace('_', "-");
    let prerelease = if release.stage.is_prerelease() {
        "-Prerelease"
    } else {
        ""
    };
    format!(
        "Fedora-{subvariant}-AmazonEC2.{arch}-{}{prerelease}-{}",
        release.name,
        version(compose)
    )
}

impl Describe for Ami {
    fn provider(&self) -> &'static str {
        "aws"
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn body(&self, deliverable: &Deliverable, locations: &[Location<'_>]) -> Map<String, Value> {
        let mut body = image_body(deliverable);
        put(&mut body, "image_name", json!(self.name));
        let regions = locations.iter().map(|(region, ami)| ((*region).to_owned(), json!(ami)));
        put(&mut body, "regions", Value::Object(regions.collect()));
        body
    }
}
