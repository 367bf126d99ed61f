//! Google Cloud: each cloud image in a tarball becomes an image of Compute Engine.

use serde_json::{Map, Value, json};

use super::{Describe, Group, Location, Rules, Target, by_architecture, distinct_respin, image_body, put, shared_id};
use crate::model::compose::release::{Release, Stage};
use crate::model::compose::{Compose, Image, Row};
use crate::model::deliverable::Deliverable;

/// An image of Compute Engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GceImage {
    /// Unique in the project.
    pub name: String,
    /// The name under which users get the newest image.
    pub family: String,
    /// Where its bytes are kept.
    pub storage_locations: Vec<String>,
}

/// The rules for Google Cloud.
#[derive(Debug)]
pub struct GceRules {
    /// The setting of the same name.
    pub storage_locations: Vec<String>,
}

/// Until Fedora 41 these were listed as `docker`.
pub(super) fn is_disk(row: &Row) -> bool {
    row.kind == "tar-gz" || (row.kind == "docker" && row.format == "tar.gz")
}

impl Rules for GceRules {
    fn group(&self, compose: &Compose, row: &Row) -> Option<Group> {
        by_architecture(compose, row, is_disk)
    }

    fn target(&self, group: &Group, _: &[Image], compose: &Compose, release: &Release) -> Target {
        Target::Gcp(GceImage {
            name: name(&group.key, compose, release),
            family: family(&group.key, release),
            storage_locations: self.storage_locations.clone(),
        })
    }
}

/// `fedora-cloud-43-beta-1-3-aarch64`. Names have lower-case letters, digits, and dashes only.
fn name(arch: &str, compose: &Compose, release: &Release) -> String {
    // Beta-1.1 is not RC-1.1.
    let beta = if release.stage == Stage::Beta { "beta-" } else { "" };
    let version = match &compose.label {
        Some(label) => label.numbers.clone(),
        None => format!("{}.{}", compose.id.date_digits(), distinct_respin(compose)),
    };
    format!("fedora-cloud-{}-{beta}{version}-{arch}", release.name)
        .replace(['.', '_'], "-")
        .to_lowercase()
}

/// `fedora-cloud-43-x86-64`.
fn family(arch: &str, release: &Release) -> String {
    format!("fedora-cloud-{}-{arch}", release.name)
        .replace('_', "-")
        .to_lowercase()
}

impl Describe for GceImage {
    fn provider(&self) -> &'static str {
        "gcp"
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn details(&self) -> String {
        format!("family {}", self.family)
    }

    fn body(&self, deliverable: &Deliverable, locations: &[Location<'_>]) -> Map<String, Value> {
        let mut body = image_body(deliverable);
        put(&mut body, "image_name", json!(self.name));
        put(&mut body, "family", json!(self.family));
        put(&mut body, "image_url", shared_id(locations));
        put(&mut body, "storage_locations", json!(self.storage_locations));
        body
    }
}
