//! A provider, composes on disk, and what the tests ask of them.

use std::path::Path;
use std::time::Duration;

use cloud_image_uploader::base::failure::Failure;
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::{self, Config, Environment};
use cloud_image_uploader::images::source::Sources;
use cloud_image_uploader::model::compose::release::{Release, Stage};
use cloud_image_uploader::model::compose::{Compose, ComposeId};
use cloud_image_uploader::model::outcome::Outcome;
use cloud_image_uploader::model::select::{Deliverable, select};
use cloud_image_uploader::providers::container::ContainerProvider;
use cloud_image_uploader::providers::contract::{Publish, Task};
use cloud_image_uploader_test_support::archive::{ComposeBuilder, DockerArchive, OciArchive, Row, layer, xz};
use cloud_image_uploader_test_support::files::Files;
use cloud_image_uploader_test_support::program::Program;
use cloud_image_uploader_test_support::registry::Registry;

/// The same with the path that the url has.
pub const FULL: &str = "team/fedora";
/// For a program that works; a test that fails takes no longer.
pub const LIMIT: Duration = Duration::from_secs(120);
/// The first compose of most tests.
pub const FIRST: &str = "Fedora-43-20251023.0";

/// How one registry is configured.
pub struct Entry {
    pub url: String,
    toml: String,
    variables: Vec<(String, String)>,
}

impl Entry {
    /// As the registry wants it.
    pub fn of(registry: &Registry) -> Self {
        Self::under(registry, &format!("R{}_", registry.host.rsplit(':').next().unwrap()))
    }

    /// The same with this `credential_prefix`.
    pub fn under(registry: &Registry, prefix: &str) -> Self {
        let mut entry = Self::at(&registry.host);
        let access = &registry.access;
        if access.tls {
            entry.toml = entry.toml.replace("insecure = true\n", "");
        }
        if let Some((user, password)) = &access.credentials {
            entry = entry.with_account(prefix, user, password);
        }
        if let Some(folder) = &access.cert_dir {
            entry
                .variables
                .push((format!("{prefix}CERT_DIR"), folder.display().to_string()));
        }
        entry
    }

    /// Open to everyone over plain http.
    pub fn at(host: &str) -> Self {
        let url = format!("{host}/team");
        Self {
            toml: format!("[[consumer_config.container.registries]]\nurl = \"{url}\"\ninsecure = true\n"),
            url,
            variables: Vec::new(),
        }
    }

    pub fn with_account(mut self, prefix: &str, user: &str, password: &str) -> Self {
        self.toml += &format!("credential_prefix = \"{prefix}\"\n");
        for (name, value) in [("USER", user), ("PASSWORD", password)] {
            self.variables.push((format!("{prefix}{name}"), value.to_owned()));
        }
        self
    }

    pub fn without(mut self, variable: &str) -> Self {
        self.variables.retain(|(name, _)| name != variable);
        self
    }

    pub fn with_password(mut self, password: &str) -> Self {
        for (name, value) in &mut self.variables {
            if name.ends_with("PASSWORD") {
                password.clone_into(value);
            }
        }
        self
    }
}

/// The section and provider for these registries.
pub fn provider(entries: &[&Entry]) -> (config::Provider, ContainerProvider) {
    let mut text = "[consumer_config.container.repos]\nContainer_Base = \"fedora\"\n".to_owned();
    let mut variables = Vec::new();
    for entry in entries {
        text += &entry.toml;
        variables.extend(entry.variables.clone());
    }
    let config = Config::parse(&text, Path::new("test.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    let config::Provider::Container(section) = &config.provider else {
        panic!("another provider")
    };
    let environment: Environment = variables.into_iter().collect();
    let provider = ContainerProvider::new(section, &environment).unwrap();
    (config.provider, provider)
}

/// The program with this registry.
pub fn program(entry: &Entry) -> Program {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/release-data");
    let config = format!(
        "[consumer_config]\nrelease_metadata_url = \"{data}/release.json\"\nbodhi_url = \"{data}\"\n\
         [consumer_config.container]\npublish_amqp_messages = false\n\
         [consumer_config.container.repos]\nContainer_Base = \"fedora\"\n{}",
        entry.toml
    );
    let program = Program::new(env!("CARGO_BIN_EXE_cloud-image-uploader")).unwrap();
    let program = program.config(&config).unwrap();
    let variables = entry.variables.iter();
    variables.fold(program, |program, (name, value)| program.env(name, value))
}

/// Release data, which is not fetched here.
fn release() -> Release {
    Release {
        name: "43".to_owned(),
        number: 43,
        stage: Stage::Production,
        newest_stable: true,
        end_of_life: Some("2026-12-09".parse().unwrap()),
    }
}

/// Writes a compose and selects its one deliverable.
pub async fn deliverable(section: &config::Provider, folder: &Path, id: &str, rows: Vec<Row>) -> Deliverable {
    write(folder, id, rows);
    selected(section, id, &Resource::Folder(folder.join(id))).await
}

/// The same, with images that are read from this server of the folder.
pub async fn served(section: &config::Provider, files: &Files, folder: &Path, id: &str, rows: Vec<Row>) -> Deliverable {
    write(folder, id, rows);
    let location = Resource::remote(&files.url(&format!("/{id}"))).unwrap();
    selected(section, id, &location).await
}

fn write(folder: &Path, id: &str, rows: Vec<Row>) {
    let compose = ComposeBuilder::new(id, None).without_composeinfo();
    let compose = rows.into_iter().fold(compose, ComposeBuilder::image);
    compose.write(&folder.join(id)).unwrap();
}

async fn selected(section: &config::Provider, id: &str, location: &Resource) -> Deliverable {
    let http = http::client().unwrap();
    let id = ComposeId::parse(id).unwrap();
    let compose = Compose::fetch(&http, location, &id, None).await.unwrap();
    let mut selection = select(&section.publisher(), &compose, &release(), None);
    assert_eq!(selection.deliverables.len(), 1);
    selection.deliverables.remove(0)
}

/// Everything may be changed.
pub fn task() -> Task {
    Task {
        sources: Sources::new(http::client().unwrap(), Board::log(), 4, 256 << 20, 2),
        locations: None,
        allow_older: false,
        patience: Duration::from_secs(1800),
    }
}

/// Stage and release.
pub async fn publish(provider: &ContainerProvider, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure> {
    let staged = provider.stage(deliverable, task).await?;
    provider.release(deliverable, staged, task).await
}

/// An image with a layer that is streamed and one that waits in memory, different for each seed.
pub fn oci(arch: &str, seed: &str) -> OciArchive {
    let large = layer(&format!("large-{seed}-{arch}"), 5 << 20);
    OciArchive::new(arch)
        .layer(large)
        .layer(layer(&format!("small-{seed}-{arch}"), 10_000))
}

/// The same from docker.
pub fn docker(arch: &str, seed: &str) -> DockerArchive {
    let large = layer(&format!("large-{seed}-{arch}"), 5 << 20);
    DockerArchive::new(arch)
        .layer(large)
        .layer(layer(&format!("small-{seed}-{arch}"), 10_000))
}

/// The rows of both architectures as OCI archives, compressed like Fedora's.
pub fn both(seed: &str) -> Vec<Row> {
    vec![x86(seed), arm(seed)]
}

pub fn x86(seed: &str) -> Row {
    Row::container("Container_Base", "x86_64", xz(&oci("amd64", seed).build()))
}

pub fn arm(seed: &str) -> Row {
    Row::container("Container_Base", "aarch64", xz(&oci("arm64", seed).build()))
}
