//! A deliverable: the images of one notification, and what they become.

use super::compose::release::Release;
use super::compose::{ComposeId, Image};
use super::target::Target;

/// Before the provider's name in every topic, and in the names of the schemas.
const TOPIC: &str = "fedora_image_uploader.published.v1";

/// One notification's worth: one image for a cloud, the images of all architectures for a container repository.
#[derive(Debug, Clone)]
pub struct Deliverable {
    /// The thing to be published, with the names that its provider gives it.
    pub target: Target,
    /// Where it goes, by configured names, in configured order.
    pub locations: Vec<String>,
    /// Its images, ordered by architecture; never empty.
    pub images: Vec<Image>,
    /// The content of the images: `Cloud_Base`.
    pub subvariant: String,
    /// The compose it comes from.
    pub compose: ComposeId,
    /// The release it belongs to.
    pub release: Release,
}

impl Deliverable {
    /// The image's name, or the repository.
    #[must_use]
    pub fn name(&self) -> String {
        self.target.describe().name()
    }

    /// The name of the schema of its notification, which begins the topic.
    #[must_use]
    pub fn schema(&self) -> String {
        format!("{TOPIC}.{}", self.target.describe().provider())
    }

    /// The topic of its notification, without the configured prefix.
    #[must_use]
    pub fn topic(&self) -> String {
        format!("{}.{}.{}", self.schema(), self.release.stage, self.what())
    }

    /// The name without version, the same in every compose: the repository, or `Cloud_Base.x86_64`.
    #[must_use]
    pub fn what(&self) -> String {
        match self.target.describe().repository() {
            Some(repository) => repository.to_owned(),
            None => format!("{}.{}", self.subvariant, self.architectures().join(".")),
        }
    }

    /// The pattern for `--only` that selects just this.
    #[must_use]
    pub fn selector(&self) -> &str {
        let repository = self.target.describe().repository();
        repository.unwrap_or(&self.images[0].path)
    }

    /// Fedora's names of its architectures, in order.
    #[must_use]
    pub fn architectures(&self) -> Vec<&str> {
        self.images.iter().map(|image| image.arch.as_str()).collect()
    }
}
