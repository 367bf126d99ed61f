//! The gallery and its image definitions: created when missing, never changed.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::client::{CREATION, ResourceManager};
use super::error::Error;
use crate::config::azure::Azure;
use crate::model::mark::OWNER;
use crate::providers::poll::Pace;

/// Publisher and offer of definitions. Together with the definition's name they must be unique in a gallery.
const PUBLISHER: &str = "Fedora";
const OFFER: &str = "Fedora-Cloud";
/// The features of virtual machines that these images support
/// ([features](https://learn.microsoft.com/azure/virtual-machines/trusted-launch-portal#trusted-launch-supported-images)).
/// Disk controllers other than SCSI need generation 2.
const FEATURES: [(&str, &str); 2] = [
    ("SecurityType", "TrustedLaunchSupported"),
    ("DiskControllerTypes", "SCSI,NVMe"),
];
/// The security types that accept an import from a plain VHD.
const SECURITY_TYPES: [&str; 4] = [
    "Standard",
    "TrustedLaunchSupported",
    "ConfidentialVmSupported",
    "TrustedLaunchAndConfidentialVmSupported",
];

/// The configured gallery; the first image creates it if it is missing.
#[derive(Debug)]
pub(super) struct Gallery {
    arm: Arc<ResourceManager>,
    path: String,
    location: String,
    description: String,
    /// Held while a task creates the gallery or a definition.
    creating: Mutex<()>,
}

impl Gallery {
    /// `group` is the path of the resource group.
    pub(super) fn new(arm: Arc<ResourceManager>, group: &str, section: &Azure) -> Self {
        Self {
            arm,
            path: format!("{group}/providers/Microsoft.Compute/galleries/{}", section.gallery_name),
            location: section.location.clone(),
            description: section.gallery_description.clone(),
            creating: Mutex::default(),
        }
    }

    pub(super) fn arm(&self) -> &ResourceManager {
        &self.arm
    }

    pub(super) fn definition_path(&self, definition: &str) -> String {
        format!("{}/images/{definition}", self.path)
    }

    pub(super) fn version_path(&self, definition: &str, version: &str) -> String {
        format!("{}/versions/{version}", self.definition_path(definition))
    }

    /// The gallery's document, if it exists.
    pub(super) async fn look(&self) -> Result<Option<Value>, Error> {
        self.arm.get("read the gallery", &self.path, &[]).await
    }

    /// All definitions of the gallery.
    pub(super) async fn definitions(&self) -> Result<Vec<Value>, Error> {
        let path = format!("{}/images", self.path);
        self.arm.list("list the image definitions of the gallery", &path).await
    }

    /// The gallery's public name, where it is
    /// [shared with the community](https://learn.microsoft.com/azure/virtual-machines/share-gallery-community).
    pub(super) async fn community_name(&self) -> Result<Option<String>, Error> {
        let gallery = self.look().await?.unwrap_or_default();
        let sharing = &gallery["properties"]["sharingProfile"];
        let community = &sharing["communityGalleryInfo"];
        let shared = sharing["permissions"].as_str().unwrap_or("Community") == "Community"
            && community["communityGalleryEnabled"].as_bool().unwrap_or(true);
        let name = community["publicNames"][0].as_str();
        Ok(name.filter(|_| shared).map(str::to_owned))
    }

    /// Creates the gallery and the definition if they are missing.
    pub(super) async fn prepare(&self, definition: &str, arch: &str) -> Result<(), Error> {
        let _creating = self.creating.lock().await;
        let path = self.definition_path(definition);
        let what = format!("read image definition {definition}");
        let found = match self.arm.get(&what, &path, &[]).await? {
            Some(found) => found,
            None => {
                if self.look().await?.is_none() {
                    let body = json!({
                        "location": self.location,
                        "tags": {"owner": OWNER},
                        "properties": {"description": self.description},
                    });
                    self.create("create the gallery", &self.path, &body).await?;
                }
                let what = format!("create image definition {definition}");
                self.create(&what, &path, &self.definition(definition, arch)).await?
            }
        };
        let differences = differences(&found, arch);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Definition {
            definition: definition.to_owned(),
            differences: differences.join(", "),
        })
    }

    /// Puts a document and waits until it can be used.
    async fn create(&self, what: &str, path: &str, body: &Value) -> Result<Value, Error> {
        let operation = self.arm.ensure(what, path, body, |found| Ok(found.is_some())).await?;
        let mut pace = Pace::within(CREATION);
        if let Some(operation) = operation {
            self.arm.finish(operation, pace).await?;
        }
        loop {
            // A new resource may not be visible at once.
            if let Some(found) = self.arm.get(what, path, &[]).await? {
                let state = found["properties"]["provisioningState"].as_str();
                match state.map(str::to_lowercase).as_deref() {
                    // A document without a state describes something that exists.
                    Some("succeeded" | "") | None => {
                        tracing::info!("done: {what}");
                        return Ok(found);
                    }
                    Some("failed" | "canceled") => return Err(Error::odd(what, "a resource that failed")),
                    Some(_) => {}
                }
            }
            pace.pause(what, None).await?;
        }
    }

    fn definition(&self, definition: &str, arch: &str) -> Value {
        let features = FEATURES.map(|(name, value)| json!({"name": name, "value": value}));
        json!({
            "location": self.location,
            "tags": {"owner": OWNER},
            "properties": {
                "description": format!("{} for {arch}", definition.replace('-', " ")),
                "osType": "Linux",
                "osState": "Generalized",
                "hyperVGeneration": "V2",
                "architecture": architecture(arch),
                "identifier": {"publisher": PUBLISHER, "offer": OFFER, "sku": definition},
                "features": features,
            },
        })
    }
}

/// Azure's name of an architecture.
fn architecture(arch: &str) -> &'static str {
    if arch == "aarch64" { "Arm64" } else { "x64" }
}

/// The attributes that make a definition unfit for these images. Attributes that any image fits, such as the publisher, may
/// have any value: the definitions of Fedora's gallery were created by another service.
pub(super) fn differences(definition: &Value, arch: &str) -> Vec<String> {
    let properties = &definition["properties"];
    let mut differences = Vec::new();
    for (name, unset, wanted) in [
        ("osType", "", "Linux"),
        ("osState", "", "Generalized"),
        ("hyperVGeneration", "V1", "V2"),
        ("architecture", "x64", architecture(arch)),
    ] {
        let found = properties[name].as_str().unwrap_or(unset);
        if !found.eq_ignore_ascii_case(wanted) {
            differences.push(format!("{name} is {found:?} and should be {wanted:?}"));
        }
    }
    let features = properties["features"].as_array().into_iter().flatten();
    let security = features
        .filter(|feature| feature["name"].as_str() == Some("SecurityType"))
        .find_map(|feature| feature["value"].as_str());
    if let Some(security) = security
        && !SECURITY_TYPES.iter().any(|fits| fits.eq_ignore_ascii_case(security))
    {
        differences.push(format!(
            "the feature SecurityType is {security:?}, which no plain VHD fits"
        ));
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_do_not_fit_are_listed() {
        let fits = json!({"properties": {
            "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2", "architecture": "Arm64",
            "identifier": {"publisher": "somebody", "offer": "else", "sku": "x"},
        }});
        assert!(differences(&fits, "aarch64").is_empty());
        assert_eq!(
            differences(&fits, "x86_64"),
            [r#"architecture is "Arm64" and should be "x64""#]
        );
        let mut sealed = fits.clone();
        sealed["properties"]["features"] = json!([{"name": "SecurityType", "value": "ConfidentialVM"}]);
        assert_eq!(differences(&sealed, "aarch64").len(), 1);
        sealed["properties"]["features"] = json!([{"name": "SecurityType", "value": "TrustedLaunchSupported"}]);
        assert!(differences(&sealed, "aarch64").is_empty());
        // Absent attributes have Azure's defaults.
        let bare = json!({"properties": {"osType": "Windows"}});
        let names: Vec<_> = differences(&bare, "x86_64")
            .iter()
            .map(|difference| difference.split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["osType", "osState", "hyperVGeneration"]);
    }
}
