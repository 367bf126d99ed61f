//! Targets: what images become. A file for each provider says which rows it takes, which names it gives, and what its
//! notices say. The names are a contract with the programs that look images up by them; each rule says where its form
//! comes from. Pure functions, no I/O.
//!
//! The rest of the program asks [`Rules`] and [`Describe`], and does not tell providers apart. A provider's own code
//! takes its data out of its variant of [`Target`].

pub mod aws;
pub mod azure;
pub mod container;
pub mod gcp;
pub mod local;

use std::fmt;

use serde_json::{Map, Value, json};

use super::compose::release::Release;
use super::compose::{Compose, Family, Image, Row};
use super::deliverable::Deliverable;

/// The architectures that the clouds run.
const CLOUD_ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
/// The disks that some cloud takes.
const DISKS: [fn(&Row) -> bool; 3] = [aws::is_disk, azure::is_disk, gcp::is_disk];

/// The data of a deliverable that only its provider understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An image in EC2.
    Aws(aws::Ami),
    /// A version in an Azure compute gallery.
    Azure(azure::GalleryVersion),
    /// An image of Compute Engine.
    Gcp(gcp::GceImage),
    /// An index in container registries.
    Container(container::Repository),
    /// A file or folder of this machine.
    Local(local::LocalImage),
}

impl Target {
    /// The answers that every provider has. This is the only place that lists the targets of all providers.
    #[must_use]
    pub fn describe(&self) -> &dyn Describe {
        match self {
            Self::Aws(ami) => ami,
            Self::Azure(version) => version,
            Self::Gcp(image) => image,
            Self::Container(repository) => repository,
            Self::Local(local) => local,
        }
    }
}

/// A location's configured name and, where the deliverable is there already, the id that it has there.
pub type Location<'a> = (&'a str, Option<&'a str>);

/// The questions that every target answers, so that the program need not know its provider.
pub trait Describe {
    /// The provider's word in topics.
    fn provider(&self) -> &'static str;

    /// The name that people use.
    fn name(&self) -> String;

    /// The repository, where the deliverable holds the images of all architectures.
    fn repository(&self) -> Option<&str> {
        None
    }

    /// More for the table of `plan`; may be empty.
    fn details(&self) -> String {
        String::new()
    }

    /// Whether the existing service's package has a schema for its notices.
    fn has_schema(&self) -> bool {
        true
    }

    /// The full names of the containers at these locations, for consumers that filter by header.
    fn containers(&self, _locations: &[Location<'_>]) -> Vec<String> {
        Vec::new()
    }

    /// The body of the notice that `deliverable` is at these locations.
    fn body(&self, deliverable: &Deliverable, locations: &[Location<'_>]) -> Map<String, Value>;
}

/// Which rows a provider publishes, and under which names.
pub trait Rules: fmt::Debug + Send + Sync {
    /// The group of rows that this row belongs to; `None` where the provider does not publish it.
    fn group(&self, compose: &Compose, row: &Row) -> Option<Group>;

    /// The target of a group. `images` has one image for each architecture, and at least one.
    fn target(&self, group: &Group, images: &[Image], compose: &Compose, release: &Release) -> Target;
}

/// The rows of one deliverable have equal groups and subvariants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Architecture for a cloud, repository for containers, path of the file for local disks.
    pub key: String,
    /// True where the key is a repository, which is published whole or not at all.
    pub is_repository: bool,
}

impl Group {
    fn image(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            is_repository: false,
        }
    }

    fn repository(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            is_repository: true,
        }
    }
}

/// A configured provider, as selection sees it.
#[derive(Debug)]
pub struct Publisher {
    /// Every location, by its configured name, in configured order.
    pub locations: Vec<String>,
    /// The rules of its provider.
    pub rules: Box<dyn Rules>,
}

/// True for a cloud image, for a processor that the clouds have, of a compose that makes such images.
fn is_cloud_image(compose: &Compose, row: &Row) -> bool {
    compose.id.family.makes_cloud_images()
        && row.subvariant == "Cloud_Base"
        && CLOUD_ARCHITECTURES.contains(&row.arch.as_str())
}

/// The group of a cloud's row: each architecture is a deliverable.
fn by_architecture(compose: &Compose, row: &Row, is_disk: fn(&Row) -> bool) -> Option<Group> {
    (is_cloud_image(compose, row) && is_disk(row)).then(|| Group::image(&row.arch))
}

/// The respin, counted from 100 for candidates: a candidate and a nightly of one day have the same numbers.
fn distinct_respin(compose: &Compose) -> u64 {
    match compose.id.family {
        Family::Candidate => u64::from(compose.id.respin) + 100,
        _ => u64::from(compose.id.respin),
    }
}

/// `1.6` for a candidate with a label, else `20251023.0`.
fn version(compose: &Compose) -> String {
    match &compose.label {
        Some(label) => label.numbers.clone(),
        None => format!("{}.{}", compose.id.date_digits(), compose.id.respin),
    }
}

/// The fields that begin the notice of one image.
fn image_body(deliverable: &Deliverable) -> Map<String, Value> {
    let mut body = compose_body(deliverable);
    put(&mut body, "architecture", json!(deliverable.architectures()[0]));
    put(&mut body, "subvariant", json!(deliverable.subvariant));
    body
}

/// The fields that begin the notice of a repository.
fn repository_body(deliverable: &Deliverable) -> Map<String, Value> {
    let mut body = compose_body(deliverable);
    put(&mut body, "architectures", json!(deliverable.architectures()));
    body
}

fn compose_body(deliverable: &Deliverable) -> Map<String, Value> {
    let mut body = Map::new();
    put(&mut body, "compose_id", json!(deliverable.compose.as_str()));
    put(&mut body, "release", json!(deliverable.release.number));
    body
}

fn put(body: &mut Map<String, Value>, key: &str, value: Value) {
    body.insert(key.to_owned(), value);
}

/// The locations' names.
fn names<'a>(locations: &[Location<'a>]) -> Vec<&'a str> {
    locations.iter().map(|(name, _)| *name).collect()
}

/// The one id of a deliverable that all locations share.
fn shared_id(locations: &[Location<'_>]) -> Value {
    json!(locations.iter().find_map(|(_, id)| *id))
}
