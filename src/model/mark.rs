//! The mark that every published image carries: whose it is and what it was made of.

use std::collections::BTreeMap;

use jiff::civil::Date;

use super::compose::Image;
use super::select::Deliverable;

/// Whose images these are. Another owner in a mark means hands off.
pub const OWNER: &str = "cloud-image-uploader";

/// Before each name of a mark among the annotations of a container image.
pub const ANNOTATIONS: &str = "org.fedoraproject.cloud-image-uploader.";

/// The identity of a published image, encoded as tags, labels, or annotations, as each provider allows.
///
/// The encoded form is plain text that an operator can read and edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The compose it came from.
    pub compose_id: String,
    /// SHA-256 of the image file as stored in the compose, in hex; none on what holds several images.
    pub image_sha256: Option<String>,
    /// The compose's stage, as in topics.
    pub stage: String,
    /// When the release goes out of support.
    pub end_of_life: Option<Date>,
    /// Who looks after it.
    pub owner: String,
}

impl Mark {
    /// The mark of one of a deliverable's images, or of all of them together.
    #[must_use]
    pub fn of(deliverable: &Deliverable, image: Option<&Image>) -> Self {
        Self {
            compose_id: deliverable.compose.to_string(),
            image_sha256: image.map(|image| image.sha256.clone()),
            stage: deliverable.release.stage.to_string(),
            end_of_life: deliverable.release.end_of_life,
            owner: OWNER.to_owned(),
        }
    }

    /// The mark as names and values, each name with `prefix`.
    #[must_use]
    pub fn encode(&self, prefix: &str) -> BTreeMap<String, String> {
        let end_of_life = self.end_of_life.map(|date| date.to_string());
        [
            ("compose-id", Some(self.compose_id.clone())),
            ("image-sha256", self.image_sha256.clone()),
            ("stage", Some(self.stage.clone())),
            ("end-of-life", end_of_life),
            ("owner", Some(self.owner.clone())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((format!("{prefix}{name}"), value?)))
        .collect()
    }

    /// The mark among names and values; `None` where there is none of ours.
    #[must_use]
    pub fn decode(prefix: &str, values: &BTreeMap<String, String>) -> Option<Self> {
        let value = |name: &str| values.get(&format!("{prefix}{name}")).cloned();
        Some(Self {
            compose_id: value("compose-id")?,
            image_sha256: value("image-sha256"),
            stage: value("stage").unwrap_or_default(),
            end_of_life: value("end-of-life").and_then(|date| date.parse().ok()),
            owner: value("owner")?,
        })
    }
}
