//! A directory of this machine: takes the disks of every cloud, and containers.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::container::is_archive;
use super::{DISKS, Describe, Group, Location, Rules, Target, image_body, is_cloud_image, put, repository_body};
use crate::model::compose::release::Release;
use crate::model::compose::{Compose, Image, Row};
use crate::model::deliverable::Deliverable;

/// Subvariants of container archives that another publisher takes.
const NOT_CONTAINERS: [&str; 2] = ["WSL_Base", "Cloud_Base"];

/// A file or folder of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalImage {
    /// A disk.
    Disk {
        /// The file, relative to the directory.
        path: String,
    },
    /// An OCI layout.
    Layout {
        /// The folder, relative to the directory.
        path: String,
        /// The last word of its topic.
        name: String,
    },
}

/// The rules for the directory.
#[derive(Debug)]
pub struct LocalRules {
    /// Subvariant to repository; other subvariants are their own repositories.
    pub repos: BTreeMap<String, String>,
}

impl Rules for LocalRules {
    fn group(&self, compose: &Compose, row: &Row) -> Option<Group> {
        if is_archive(row) {
            let repository = self.repos.get(&row.subvariant).unwrap_or(&row.subvariant);
            let is_wanted = !row.subvariant.is_empty() && !NOT_CONTAINERS.contains(&row.subvariant.as_str());
            return is_wanted.then(|| Group::repository(repository));
        }
        let is_wanted = is_cloud_image(compose, row) && DISKS.iter().any(|is_disk| is_disk(row));
        is_wanted.then(|| Group::image(format!("{}/{}", row.arch, without_compression(row.file_name()))))
    }

    fn target(&self, group: &Group, _: &[Image], compose: &Compose, _: &Release) -> Target {
        let Group { key, is_repository } = group;
        Target::Local(match is_repository {
            true => LocalImage::Layout {
                path: format!("{}/oci/{key}", compose.id),
                name: key.clone(),
            },
            false => LocalImage::Disk {
                path: format!("{}/{key}", compose.id),
            },
        })
    }
}

/// The name of a compressed file without its last ending.
fn without_compression(name: &str) -> &str {
    [".xz", ".gz", ".zst"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name)
}

impl Describe for LocalImage {
    fn provider(&self) -> &'static str {
        "local"
    }

    fn name(&self) -> String {
        match self {
            Self::Disk { path } | Self::Layout { path, .. } => path.clone(),
        }
    }

    fn repository(&self) -> Option<&str> {
        match self {
            Self::Disk { .. } => None,
            Self::Layout { name, .. } => Some(name),
        }
    }

    fn has_schema(&self) -> bool {
        false
    }

    fn body(&self, deliverable: &Deliverable, _: &[Location<'_>]) -> Map<String, Value> {
        let (mut body, path) = match self {
            Self::Disk { path } => (image_body(deliverable), path),
            Self::Layout { path, .. } => (repository_body(deliverable), path),
        };
        put(&mut body, "path", json!(path));
        body
    }
}
