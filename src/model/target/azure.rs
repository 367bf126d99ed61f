//! Azure: each cloud image in `vhd-compressed` becomes a version in a compute gallery.

use serde_json::{Map, Value, json};

use super::{
    Describe, Group, Location, Rules, Target, by_architecture, distinct_respin, image_body, names, put, shared_id,
};
use crate::model::compose::release::Release;
use crate::model::compose::{Compose, Image, Row};
use crate::model::deliverable::Deliverable;

/// A version in an Azure compute gallery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GalleryVersion {
    /// The image definition.
    pub definition: String,
    /// Three integers.
    pub version: String,
}

/// The rules for Azure.
#[derive(Debug)]
pub struct GalleryRules;

pub(super) fn is_disk(row: &Row) -> bool {
    row.kind == "vhd-compressed"
}

impl Rules for GalleryRules {
    fn group(&self, compose: &Compose, row: &Row) -> Option<Group> {
        by_architecture(compose, row, is_disk)
    }

    fn target(&self, group: &Group, _: &[Image], compose: &Compose, release: &Release) -> Target {
        Target::Azure(GalleryVersion {
            definition: definition(&group.key, release),
            version: version(compose, release),
        })
    }
}

/// `Fedora-Cloud-43-x64`. Many users' templates name it.
fn definition(arch: &str, release: &Release) -> String {
    let arch = if arch == "aarch64" { "Arm64" } else { "x64" };
    format!("Fedora-Cloud-{}-{arch}", release.name)
}

/// `43.20250901.2`. [Versions](https://learn.microsoft.com/azure/virtual-machines/shared-image-galleries#image-versions)
/// are three integers.
fn version(compose: &Compose, release: &Release) -> String {
    let respin = distinct_respin(compose);
    format!("{}.{}.{respin}", release.number, compose.id.date_digits())
}

impl Describe for GalleryVersion {
    fn provider(&self) -> &'static str {
        "azure"
    }

    fn name(&self) -> String {
        format!("{}/{}", self.definition, self.version)
    }

    fn body(&self, deliverable: &Deliverable, locations: &[Location<'_>]) -> Map<String, Value> {
        let mut body = image_body(deliverable);
        put(&mut body, "image_definition_name", json!(self.definition));
        put(&mut body, "image_version_name", json!(self.version));
        put(&mut body, "image_resource_id", shared_id(locations));
        put(&mut body, "regions", json!(names(locations)));
        body
    }
}
