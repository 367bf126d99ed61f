//! Google Cloud: tarballs as Compute Engine images in families.
//!
//! *Stage* uploads the tarball as it is to the bucket, under a name that carries its digest; imports it as an
//! [image](https://cloud.google.com/compute/docs/reference/rest/v1/images) without a family; deletes the object, which
//! nothing needs any more; and deprecates the image. *Release* puts it into its family, where it waits for its promotion.
//! The cloud holds all state: labels say from which compose and file an image was made, and when it was promoted. The
//! project's own policy decides who may see the images.
//!
//! *Clean-up* runs after publications, every hour, and as a command: it makes the newest image of sufficient age the head
//! of its family, and deletes images that are past their end of life or have been deprecated for long. Images and objects
//! are billed by size for as long as they exist.

mod check;
mod clean_up;
mod client;
mod credentials;
mod error;
mod image;
mod inventory;
mod labels;
mod promotion;
mod storage;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use self::client::Cloud;
use self::credentials::SharedCredentials;
use self::error::Error;
use self::image::ImageSpec;
use self::promotion::Rules;
use super::contract::{Finding, Publish, Retire, Retired, Task};
use crate::base::failure::Failure;
use crate::config::Environment;
use crate::config::gcp::{CREDENTIALS, Gcp};
use crate::model::outcome::{Origin, Outcome, Place};
use crate::model::select::Deliverable;

/// The pause between two runs of clean-up. Its rules count in days.
const CLEAN_UP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Publishes to a project of Google Cloud.
pub struct GcpProvider {
    section: Gcp,
    credentials: Arc<SharedCredentials>,
    /// Locked by the one run of clean-up.
    clean_up: Mutex<()>,
}

impl GcpProvider {
    /// A provider that connects on its first call.
    ///
    /// # Errors
    ///
    /// `GOOGLE_APPLICATION_CREDENTIALS` is not set.
    pub fn new(section: &Gcp, environment: &Environment) -> Result<Self, Failure> {
        let credentials = environment.get(CREDENTIALS).ok_or_else(|| Error::Credentials {
            path: PathBuf::new(),
            why: format!("environment variable {CREDENTIALS} is not set"),
        })?;
        Ok(Self {
            section: section.clone(),
            credentials: Arc::new(SharedCredentials::new(PathBuf::from(credentials))),
            clean_up: Mutex::default(),
        })
    }

    /// A session for one piece of work.
    async fn cloud(&self) -> Result<Cloud, Error> {
        Cloud::new(&self.section, &self.credentials).await
    }
}

#[async_trait]
impl Publish for GcpProvider {
    async fn check(&self) -> Vec<Finding> {
        match self.cloud().await {
            Ok(cloud) => check::check(&cloud).await,
            Err(error) => vec![Finding {
                subject: "credentials".to_owned(),
                result: Err(format!("failed to {}", Failure::from(error))),
            }],
        }
    }

    async fn stage(&self, deliverable: &Deliverable, task: &Task) -> Result<Outcome, Failure> {
        let spec = ImageSpec::of(deliverable)?;
        // An image is in all its storage locations at once.
        let may_change = deliverable.locations.iter().any(|location| task.concerns(location));
        let staged = spec.stage(&self.cloud().await?, task, may_change).await?;
        let places = staged.map_or_else(Vec::new, |(address, origin)| places(deliverable, &address, origin));
        Ok(Outcome {
            places,
            ..Outcome::default()
        })
    }

    async fn release(&self, deliverable: &Deliverable, staged: Outcome, task: &Task) -> Result<Outcome, Failure> {
        let mut publication = staged;
        let Some(place) = publication.places.iter().find(|place| task.concerns(&place.location)) else {
            return Ok(publication);
        };
        let (address, done) = ImageSpec::of(deliverable)?.release(&self.cloud().await?).await?;
        let origin = match (place.origin, done) {
            (Origin::Found, Origin::Found) => Origin::Found,
            _ => Origin::Created,
        };
        publication.places = places(deliverable, &address, origin);
        Ok(publication)
    }
}

#[async_trait]
impl Retire for GcpProvider {
    async fn clean_up(&self, dry_run: bool) -> Result<Retired, Failure> {
        let _only = self.clean_up.lock().await;
        clean_up::run(&self.cloud().await?, &Rules::of(&self.section), dry_run).await
    }

    fn interval(&self) -> Option<Duration> {
        Some(CLEAN_UP_INTERVAL)
    }
}

fn places(deliverable: &Deliverable, address: &str, origin: Origin) -> Vec<Place> {
    let place = |location: &String| Place {
        location: location.clone(),
        id: address.to_owned(),
        origin,
    };
    deliverable.locations.iter().map(place).collect()
}
