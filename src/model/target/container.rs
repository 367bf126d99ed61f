//! Containers: the archives of one subvariant become an index of all architectures in every registry.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Describe, Group, Location, Rules, Target, names, put, repository_body};
use crate::model::compose::release::{Release, Stage};
use crate::model::compose::{Compose, Family, Image, Row};
use crate::model::deliverable::Deliverable;

/// An index in container registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Below each registry's url.
    pub repository: String,
    /// The names that users pull.
    pub tags: Vec<String>,
}

/// The rules for registries.
#[derive(Debug)]
pub struct RepositoryRules {
    /// Subvariant to repository; other subvariants are not published.
    pub repos: BTreeMap<String, String>,
}

/// The names changed with Fedora 42: `docker` became `container`, `ociarchive` became `bootable-container`.
pub(super) fn is_archive(row: &Row) -> bool {
    match row.kind.as_str() {
        "docker" | "container" => row.format == "tar.xz",
        "ociarchive" | "bootable-container" => true,
        _ => false,
    }
}

impl Rules for RepositoryRules {
    fn group(&self, compose: &Compose, row: &Row) -> Option<Group> {
        let repository = self.repos.get(&row.subvariant).filter(|_| is_archive(row))?;
        takes(repository, compose.id.family).then(|| Group::repository(repository))
    }

    fn target(&self, group: &Group, _: &[Image], _: &Compose, release: &Release) -> Target {
        Target::Container(Repository {
            repository: group.key.clone(),
            tags: tags(release),
        })
    }
}

/// ELN's subvariants have the same names as Fedora's, but its images must never land in Fedora's repositories.
fn takes(repository: &str, family: Family) -> bool {
    let for_eln = repository == "eln" || repository.starts_with("eln-");
    for_eln == (family == Family::Eln)
}

fn tags(release: &Release) -> Vec<String> {
    let moving = match release.stage {
        Stage::Rawhide => Some("rawhide"),
        Stage::Eln => Some("latest"),
        Stage::Branched | Stage::Beta | Stage::Rc | Stage::Production | Stage::Nightly | Stage::Updates => {
            release.newest_stable.then_some("latest")
        }
    };
    let number = release.number.to_string();
    std::iter::once(number).chain(moving.map(str::to_owned)).collect()
}

impl Describe for Repository {
    fn provider(&self) -> &'static str {
        "container"
    }

    fn name(&self) -> String {
        self.repository.clone()
    }

    fn repository(&self) -> Option<&str> {
        Some(&self.repository)
    }

    fn details(&self) -> String {
        format!("tags {}", self.tags.join(", "))
    }

    fn containers(&self, locations: &[Location<'_>]) -> Vec<String> {
        let Self { repository, tags } = self;
        let names = locations
            .iter()
            .flat_map(|(registry, _)| tags.iter().map(move |tag| format!("{registry}/{repository}:{tag}")));
        names.collect()
    }

    fn body(&self, deliverable: &Deliverable, locations: &[Location<'_>]) -> Map<String, Value> {
        let mut body = repository_body(deliverable);
        put(&mut body, "repository", json!(self.repository));
        put(&mut body, "registries", json!(names(locations)));
        put(&mut body, "tags", json!(self.tags));
        body
    }
}
