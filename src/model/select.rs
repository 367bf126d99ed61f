//! Which deliverables this process publishes, of which images, under which names. Pure functions, no I/O.
//!
//! The names are a contract with the programs that look images up by them; each rule says where its form comes from.

use std::collections::BTreeMap;
use std::fmt;

use wildmatch::WildMatch;

use crate::base::failure::{Class, Classified};
use crate::config;
use crate::model::compose::release::{Release, Stage};
use crate::model::compose::{BadRow, Compose, ComposeId, Family, Image, Row};

/// Before the provider's name in every topic, and the name of the schema of what follows.
const TOPIC: &str = "fedora_image_uploader.published.v1";
/// The architectures that the clouds run.
const CLOUD_ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];
/// Container archives that belong to another publisher.
const NOT_CONTAINERS: [&str; 2] = ["WSL_Base", "Cloud_Base"];

/// One notification's worth: one image for a cloud, the images of all architectures for a container repository.
#[derive(Debug, Clone)]
pub struct Deliverable {
    /// What it becomes.
    pub target: Target,
    /// Where it goes, by configured names, in configured order.
    pub locations: Vec<String>,
    /// Its images, ordered by architecture; never empty.
    pub images: Vec<Image>,
    /// What is in them.
    pub subvariant: String,
    /// The compose it comes from.
    pub compose: ComposeId,
    /// The release it belongs to.
    pub release: Release,
}

/// What a deliverable becomes, with the names only that provider has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An image in EC2.
    Ami {
        /// Unique in each region.
        name: String,
    },
    /// A version in an Azure compute gallery.
    GalleryVersion {
        /// The image definition.
        definition: String,
        /// Three integers.
        version: String,
    },
    /// An image of Compute Engine.
    GceImage {
        /// Unique in the project.
        name: String,
        /// What users ask for.
        family: String,
        /// Where its bytes are kept.
        storage_locations: Vec<String>,
    },
    /// An index in container registries.
    Repository {
        /// Below each registry's url.
        repository: String,
        /// What users ask for.
        tags: Vec<String>,
    },
    /// A disk below the local directory.
    Disk {
        /// The file, relative to the directory.
        path: String,
    },
    /// An OCI layout below the local directory.
    Layout {
        /// The folder, relative to the directory.
        path: String,
        /// The last word of its topic.
        name: String,
    },
}

impl Deliverable {
    /// What people call it: the image's name, or the repository.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.target {
            Target::Ami { name } | Target::GceImage { name, .. } => name.clone(),
            Target::GalleryVersion { definition, version } => format!("{definition}/{version}"),
            Target::Repository { repository, .. } => repository.clone(),
            Target::Disk { path } | Target::Layout { path, .. } => path.clone(),
        }
    }

    /// The name of the schema of its notification, which begins the topic.
    #[must_use]
    pub fn schema(&self) -> String {
        let provider = match self.target {
            Target::Ami { .. } => "aws",
            Target::GalleryVersion { .. } => "azure",
            Target::GceImage { .. } => "gcp",
            Target::Repository { .. } => "container",
            Target::Disk { .. } | Target::Layout { .. } => "local",
        };
        format!("{TOPIC}.{provider}")
    }

    /// The topic of its notification, without the configured prefix.
    #[must_use]
    pub fn topic(&self) -> String {
        format!("{}.{}.{}", self.schema(), self.release.stage, self.what())
    }

    /// What it is in every compose: the repository, or `Cloud_Base.x86_64`.
    #[must_use]
    pub fn what(&self) -> String {
        match &self.target {
            Target::Repository { repository: name, .. } | Target::Layout { name, .. } => name.clone(),
            Target::Ami { .. } | Target::GalleryVersion { .. } | Target::GceImage { .. } | Target::Disk { .. } => {
                format!("{}.{}", self.subvariant, self.architectures().join("."))
            }
        }
    }

    /// The pattern of [`Only`] that selects just this.
    #[must_use]
    pub fn selector(&self) -> &str {
        match &self.target {
            Target::Repository { repository: name, .. } | Target::Layout { name, .. } => name,
            Target::Ami { .. } | Target::GalleryVersion { .. } | Target::GceImage { .. } | Target::Disk { .. } => {
                &self.images[0].path
            }
        }
    }

    /// Fedora's names of its architectures, in order.
    #[must_use]
    pub fn architectures(&self) -> Vec<&str> {
        self.images.iter().map(|image| image.arch.as_str()).collect()
    }
}

/// What an operator asked for by `--only`: a pattern with `*` and `?` over image paths, file names, and repositories.
#[derive(Debug, Clone)]
pub struct Only(WildMatch);

impl Only {
    /// Reads a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(WildMatch::new(pattern))
    }

    /// A repository is published whole or not at all, so one image of it selects the others.
    fn selects(&self, kind: Kind, key: &str, rows: &[&Row]) -> bool {
        let named = matches!(kind, Kind::Repository | Kind::Layout) && self.0.matches(key);
        let matches = |row: &&Row| self.0.matches(&row.path) || self.0.matches(row.file_name());
        named || rows.iter().any(matches)
    }
}

/// What is to be published, and what cannot be.
#[derive(Debug, Default)]
pub struct Selection {
    /// Ordered by topic.
    pub deliverables: Vec<Deliverable>,
    /// Deliverables whose rows are bad or contradict each other.
    pub refused: Vec<Error>,
}

/// Which deliverables of a compose this process publishes.
#[must_use]
pub fn select(provider: &config::Provider, compose: &Compose, release: &Release, only: Option<&Only>) -> Selection {
    let mut groups: BTreeMap<(String, Kind, String), Vec<&Row>> = BTreeMap::new();
    for row in &compose.rows {
        if let Some((kind, key)) = wanted(provider, compose, row) {
            groups.entry((key, kind, row.subvariant.clone())).or_default().push(row);
        }
    }
    let mut selection = Selection::default();
    for ((key, kind, subvariant), rows) in groups {
        if only.is_some_and(|only| !only.selects(kind, &key, &rows)) {
            continue;
        }
        let mut images = match checked(&rows) {
            Ok(images) => images,
            Err(rows) => {
                let name = format!("{subvariant} ({key})").escape_debug().to_string();
                selection.refused.push(Error::Rows { name, rows: Rows(rows) });
                continue;
            }
        };
        images.sort_by(|a, b| a.arch.cmp(&b.arch));
        if let Some(twins) = images.windows(2).find(|pair| pair[0].arch == pair[1].arch) {
            selection.refused.push(Error::Twins {
                name: format!("{subvariant} ({key})"),
                arch: twins[0].arch.clone(),
                paths: [twins[0].path.clone(), twins[1].path.clone()],
            });
            continue;
        }
        let deliverable = Deliverable {
            target: target(provider, kind, &key, &images, compose, release),
            locations: provider.locations(),
            images,
            subvariant,
            compose: compose.id.clone(),
            release: release.clone(),
        };
        selection.deliverables.push(deliverable);
    }
    selection
        .deliverables
        .sort_by_key(|deliverable| (deliverable.topic(), deliverable.name()));
    selection
}

/// The images of a deliverable, each once: one file may be listed under several variants.
fn checked(rows: &[&Row]) -> Result<Vec<Image>, Vec<BadRow>> {
    let (mut images, mut bad) = (Vec::new(), Vec::new());
    for row in rows {
        match &row.image {
            Ok(image) if !images.contains(image) => images.push(image.clone()),
            Err(row) if !bad.contains(row) => bad.push(row.clone()),
            Ok(_) | Err(_) => {}
        }
    }
    if bad.is_empty() { Ok(images) } else { Err(bad) }
}

/// What kind of target an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ami,
    GalleryVersion,
    GceImage,
    Repository,
    Disk,
    Layout,
}

/// Whether this process publishes an image: the kind of target, and what it is grouped by (architecture for a cloud,
/// repository for containers, path of the file for disks).
fn wanted(provider: &config::Provider, compose: &Compose, row: &Row) -> Option<(Kind, String)> {
    let by_arch = |kind| Some((kind, row.arch.clone()));
    match provider {
        config::Provider::Aws(_) if is_cloud(compose, row, is_ami) => by_arch(Kind::Ami),
        config::Provider::Azure(_) if is_cloud(compose, row, is_vhd) => by_arch(Kind::GalleryVersion),
        config::Provider::Gcp(_) if is_cloud(compose, row, is_gce) => by_arch(Kind::GceImage),
        config::Provider::Aws(_) | config::Provider::Azure(_) | config::Provider::Gcp(_) => None,
        config::Provider::Container(section) if is_container(row) => {
            let repository = section.repos.get(&row.subvariant)?;
            takes(repository, compose.id.family).then(|| (Kind::Repository, repository.clone()))
        }
        config::Provider::Local(section) if is_container(row) => {
            let repository = section.repos.get(&row.subvariant).unwrap_or(&row.subvariant);
            let wanted = !row.subvariant.is_empty() && !NOT_CONTAINERS.contains(&row.subvariant.as_str());
            wanted.then(|| (Kind::Layout, repository.clone()))
        }
        config::Provider::Local(_) if [is_ami, is_vhd, is_gce].iter().any(|is| is_cloud(compose, row, *is)) => Some((
            Kind::Disk,
            format!("{}/{}", row.arch, without_compression(row.file_name())),
        )),
        config::Provider::Container(_) | config::Provider::Local(_) => None,
    }
}

fn is_cloud(compose: &Compose, row: &Row, is: fn(&Row) -> bool) -> bool {
    compose.id.family.makes_cloud_images()
        && row.subvariant == "Cloud_Base"
        && CLOUD_ARCHITECTURES.contains(&row.arch.as_str())
        && is(row)
}

fn is_ami(row: &Row) -> bool {
    row.kind == "raw-xz"
}

fn is_vhd(row: &Row) -> bool {
    row.kind == "vhd-compressed"
}

/// Until Fedora 41 these were listed as `docker`.
fn is_gce(row: &Row) -> bool {
    row.kind == "tar-gz" || (row.kind == "docker" && row.format == "tar.gz")
}

/// The names changed with Fedora 42: `docker` became `container`, `ociarchive` became `bootable-container`.
fn is_container(row: &Row) -> bool {
    match row.kind.as_str() {
        "docker" | "container" => row.format == "tar.xz",
        "ociarchive" | "bootable-container" => true,
        _ => false,
    }
}

/// ELN's subvariants have the same names as Fedora's, but its images must never land in Fedora's repositories.
fn takes(repository: &str, family: Family) -> bool {
    let for_eln = repository == "eln" || repository.starts_with("eln-");
    for_eln == (family == Family::Eln)
}

fn target(
    provider: &config::Provider,
    kind: Kind,
    key: &str,
    images: &[Image],
    compose: &Compose,
    release: &Release,
) -> Target {
    match kind {
        Kind::Ami => Target::Ami {
            name: ami_name(&images[0].subvariant, key, compose, release),
        },
        Kind::GalleryVersion => Target::GalleryVersion {
            definition: gallery_definition(key, release),
            version: gallery_version(compose, release),
        },
        Kind::GceImage => Target::GceImage {
            name: gce_image(key, compose, release),
            family: gce_family(key, release),
            storage_locations: match provider {
                config::Provider::Gcp(section) => section.storage_locations.clone(),
                _ => Vec::new(),
            },
        },
        Kind::Repository => Target::Repository {
            repository: key.to_owned(),
            tags: tags(release),
        },
        Kind::Disk => Target::Disk {
            path: format!("{}/{key}", compose.id),
        },
        Kind::Layout => Target::Layout {
            path: format!("{}/oci/{key}", compose.id),
            name: key.to_owned(),
        },
    }
}

/// `1.6` for a candidate with a label, else `20251023.0`.
fn version(compose: &Compose) -> String {
    match &compose.label {
        Some(label) => label.numbers.clone(),
        None => format!("{}.{}", compose.id.date_digits(), compose.id.respin),
    }
}

/// `Fedora-Cloud-Base-AmazonEC2.x86_64-42-Prerelease-1.4`. Fedora's web site finds final images by exactly this name.
fn ami_name(subvariant: &str, arch: &str, compose: &Compose, release: &Release) -> String {
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

/// `Fedora-Cloud-43-x64`. Many users' templates name it.
fn gallery_definition(arch: &str, release: &Release) -> String {
    let arch = if arch == "aarch64" { "Arm64" } else { "x64" };
    format!("Fedora-Cloud-{}-{arch}", release.name)
}

/// `43.20250901.2`. [Versions](https://learn.microsoft.com/azure/virtual-machines/shared-image-galleries#image-versions)
/// are three integers.
fn gallery_version(compose: &Compose, release: &Release) -> String {
    format!(
        "{}.{}.{}",
        release.number,
        compose.id.date_digits(),
        distinct_respin(compose)
    )
}

/// The respin, counted from 100 for candidates: a candidate and a nightly of one day have the same numbers.
fn distinct_respin(compose: &Compose) -> u64 {
    match compose.id.family {
        Family::Candidate => u64::from(compose.id.respin) + 100,
        _ => u64::from(compose.id.respin),
    }
}

/// `fedora-cloud-43-beta-1-3-aarch64`. Names have lower-case letters, digits, and dashes only.
fn gce_image(arch: &str, compose: &Compose, release: &Release) -> String {
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
fn gce_family(arch: &str, release: &Release) -> String {
    format!("fedora-cloud-{}-{arch}", release.name)
        .replace('_', "-")
        .to_lowercase()
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

/// What is inside a compressed file is named like it, less the last ending.
fn without_compression(name: &str) -> &str {
    [".xz", ".gz", ".zst"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name)
}

/// The bad rows of a deliverable; never empty.
#[derive(Debug)]
pub struct Rows(Vec<BadRow>);

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, row) in self.0.iter().enumerate() {
            let separator = if position > 0 { "; " } else { "" };
            write!(f, "{separator}{row}")?;
        }
        Ok(())
    }
}

/// A deliverable that cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The metadata does not describe its images properly.
    #[error("publish {name}: {rows}")]
    Rows {
        /// The subvariant, with architecture, repository, or file.
        name: String,
        /// The rows and their faults.
        rows: Rows,
    },
    /// Nobody can tell which one is meant.
    #[error("choose the {arch} image of {name}: the compose has {} and {}", paths[0], paths[1])]
    Twins {
        /// The repository or subvariant.
        name: String,
        /// The architecture that is there twice.
        arch: String,
        /// The two images.
        paths: [String; 2],
    },
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Rows { .. } | Self::Twins { .. } => Class::Deliverable,
        }
    }
}
