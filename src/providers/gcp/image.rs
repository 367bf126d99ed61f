//! One image: looked for, made, deprecated, and put into its family.
//!
//! An image that is inserted with a family becomes its head at once, and cannot be inserted as deprecated. So it comes
//! without a family, is deprecated then, and joins its family last: never the head by itself.

use google_cloud_compute_v1::model;
use google_cloud_compute_v1::model::guest_os_feature::Type;
use google_cloud_compute_v1::model::image::{Architecture, RawDisk, Status};
use jiff::Timestamp;

use super::client::{Cloud, OPERATION_LIMIT, deprecated};
use super::error::Error;
use super::inventory::{State, deprecation};
use super::{labels, upload};
use crate::base::failure::{Class, Failure};
use crate::model::compose::Image;
use crate::model::mark::{Mark, OWNER};
use crate::model::outcome::Origin;
use crate::model::select::{Deliverable, Target};
use crate::providers::contract::Task;
use crate::providers::poll::Pace;

/// What both architectures' kernels can do.
const FEATURES: [Type; 2] = [Type::UefiCompatible, Type::Gvnic];
/// [Confidential computing](https://cloud.google.com/confidential-computing/confidential-vm/docs/create-custom-confidential-vm-images)
/// is for x86_64 alone; an ARM64 image that claims it is refused.
const X86_FEATURES: [Type; 4] = [
    Type::SevCapable,
    Type::SevSnpCapable,
    Type::SevLiveMigratableV2,
    Type::TdxCapable,
];

/// An image that is to be.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    family: &'a str,
    storage_locations: &'a [String],
    image: &'a Image,
    deliverable: &'a Deliverable,
    mark: Mark,
}

/// What goes by the wanted name.
enum Found {
    Nothing,
    /// Complete and usable, of the same content; without our mark the former service made it.
    Ready(Box<model::Image>),
    /// What an attempt of ours left that failed.
    Problem(u64),
}

impl<'a> Wanted<'a> {
    pub(super) fn of(deliverable: &'a Deliverable) -> Result<Self, Error> {
        match &deliverable.target {
            Target::GceImage {
                name,
                family,
                storage_locations,
            } => Ok(Self {
                name,
                family,
                storage_locations,
                image: &deliverable.images[0],
                mark: Mark::of(deliverable, Some(&deliverable.images[0])),
                deliverable,
            }),
            Target::Ami { .. }
            | Target::GalleryVersion { .. }
            | Target::Repository { .. }
            | Target::Disk { .. }
            | Target::Layout { .. } => Err(Error::NotAnImage(deliverable.name())),
        }
    }

    fn object(&self) -> String {
        upload::object_name(self.name, self.image)
    }

    /// What is asked for. The description has in full what labels cannot hold.
    fn request(&self, bucket: &str) -> model::Image {
        let release = &self.deliverable.release.name;
        let Image { arch, sha256, .. } = self.image;
        let compose = &self.deliverable.compose;
        let disk = RawDisk::new().set_source(upload::object_source(bucket, &self.object()));
        let x86 = arch == "x86_64";
        let features = FEATURES.iter().chain(X86_FEATURES.iter().filter(|_| x86));
        model::Image::new()
            .set_name(self.name)
            .set_description(format!(
                "Fedora Cloud Base {release} for {arch}, from compose {compose}; SHA-256 of the tarball: {sha256}"
            ))
            .set_architecture(if x86 { Architecture::X8664 } else { Architecture::Arm64 })
            .set_guest_os_features(features.map(|feature| model::GuestOsFeature::new().set_type(feature.clone())))
            .set_labels(labels::encode(&self.mark))
            .set_storage_locations(self.storage_locations)
            .set_raw_disk(disk)
    }

    /// What is there, once it is no longer being made.
    async fn look(&self, cloud: &Cloud) -> Result<Found, Error> {
        let what = format!("wait for image {}", self.name);
        let mut pauses = Pace::within(OPERATION_LIMIT);
        loop {
            let Some(image) = cloud.image(self.name).await? else {
                return Ok(Found::Nothing);
            };
            let mark = self.own(&image)?;
            match &image.status {
                Some(Status::Ready) => {
                    self.same(mark)?;
                    return Ok(Found::Ready(Box::new(image)));
                }
                Some(Status::Failed) => {
                    self.replaceable(&image)?;
                    return Ok(Found::Problem(image.id.unwrap_or_default()));
                }
                // Being made or unmade, perhaps by another process.
                _ => pauses.pause(&what, None).await?,
            }
        }
    }

    /// The mark of an image that is not somebody else's.
    fn own(&self, image: &model::Image) -> Result<Option<Mark>, Error> {
        match image.labels.get(labels::OWNER) {
            Some(owner) if owner != OWNER => Err(Error::Foreign {
                name: self.name.to_owned(),
                owner: owner.clone(),
            }),
            _ => Ok(labels::decode(&image.labels)),
        }
    }

    /// Whether an image whose import failed may be deleted. One without a mark is not ours, and the former service's
    /// attempts left none that anybody could tell from an operator's.
    fn replaceable(&self, image: &model::Image) -> Result<(), Error> {
        let why = if labels::is_kept(&image.labels) {
            "its label says delete=never"
        } else if !is_ours(image) {
            "it has no mark of this program"
        } else {
            return Ok(());
        };
        Err(Error::Ruined {
            name: self.name.to_owned(),
            why,
        })
    }

    /// Whether the content is the same. Without a mark the name has to do: the former service left none.
    fn same(&self, mark: Option<Mark>) -> Result<(), Error> {
        match mark.map(|mark| mark.image_sha256) {
            Some(found) if found.as_ref() != Some(&self.image.sha256) => Err(Error::Taken {
                name: self.name.to_owned(),
                found: found.unwrap_or_else(|| "nobody knows what".to_owned()),
                expected: self.image.sha256.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Makes sure that the image is there, deprecated unless it is in its family already. Its address, and whether
    /// something was done; `None` when it is not there and may not be made.
    pub(super) async fn stage(
        &self,
        cloud: &Cloud,
        task: &Task,
        may_change: bool,
    ) -> Result<Option<(String, Origin)>, Failure> {
        let mut origin = Origin::Found;
        let mut looked = self.look(cloud).await.map_err(Failure::from);
        if may_change {
            looked = self.tidied(cloud, looked).await;
        }
        let image = match looked? {
            Found::Ready(image) => image,
            Found::Nothing | Found::Problem(_) if !may_change => return Ok(None),
            lacking => {
                if let Found::Problem(id) = lacking {
                    tracing::warn!(image = self.name, "replacing image {}, whose import failed", self.name);
                    cloud.delete(self.name, id).await?;
                }
                origin = Origin::Created;
                // A tarball that cannot be read says nothing about the object: another process may be importing it.
                upload::ensure(cloud, &self.object(), &task.source(self.image)).await?;
                let imported = self.import(cloud).await;
                self.tidied(cloud, imported).await?
            }
        };
        if may_change {
            self.discard(cloud).await;
            if is_ours(&image) && image.family.is_none() && is_active(&image) {
                origin = Origin::Created;
                cloud.deprecate(self.name, deprecated(Timestamp::now(), None)).await?;
            }
        }
        Ok(Some((address(&image), origin)))
    }

    /// Makes the image of the object.
    async fn import(&self, cloud: &Cloud) -> Result<Box<model::Image>, Failure> {
        tracing::info!(image = self.name, "importing {}", self.name);
        match cloud.insert(&self.request(&cloud.bucket)).await {
            Ok(()) => {}
            // Another process was faster. What it made is looked at next.
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                let failure = Failure::from(error);
                if failure.class() == Class::Deliverable {
                    self.clear(cloud).await;
                }
                return Err(failure);
            }
        }
        // What cannot be seen now is looked for in the next round.
        Ok(self.present(cloud).await?)
    }

    /// Deletes the object if there will be no image made of it.
    async fn tidied<T>(&self, cloud: &Cloud, made: Result<T, Failure>) -> Result<T, Failure> {
        if made
            .as_ref()
            .is_err_and(|failure| failure.class() == Class::Deliverable)
        {
            self.discard(cloud).await;
        }
        made
    }

    /// Deletes the object, which nothing needs any more.
    async fn discard(&self, cloud: &Cloud) {
        upload::discard(cloud, &self.object()).await;
    }

    /// Removes what a failed import has left. A failure is a warning: the cause counts.
    async fn clear(&self, cloud: &Cloud) {
        let cleared = async {
            match self.look(cloud).await? {
                Found::Problem(id) => cloud.delete(self.name, id).await,
                Found::Nothing | Found::Ready(_) => Ok(()),
            }
        };
        if let Err(error) = cleared.await {
            tracing::warn!(image = self.name, "failed to {}", Failure::from(error));
        }
    }

    /// Puts the image into its family, and reads it again. Its address, and whether something was done.
    pub(super) async fn release(&self, cloud: &Cloud) -> Result<(String, Origin), Failure> {
        let image = self.present(cloud).await?;
        if !is_ours(&image) || image.family.is_some() {
            return Ok((address(&image), Origin::Found));
        }
        if is_active(&image) {
            cloud.deprecate(self.name, deprecated(Timestamp::now(), None)).await?;
        }
        cloud.set_family(self.name, self.family).await?;
        let image = self.present(cloud).await?;
        if image.family.as_deref() != Some(self.family) {
            return Err(Error::odd(&format!("put image {} into its family", self.name), "no family").into());
        }
        Ok((address(&image), Origin::Created))
    }

    async fn present(&self, cloud: &Cloud) -> Result<Box<model::Image>, Error> {
        match self.look(cloud).await? {
            Found::Ready(image) => Ok(image),
            Found::Nothing | Found::Problem(_) => Err(Error::Vanished(self.name.to_owned())),
        }
    }
}

/// Nothing keeps it from being the head of a family.
fn is_active(image: &model::Image) -> bool {
    deprecation(image.deprecated.as_ref()) == State::Active
}

/// What the former service made is left as it is.
fn is_ours(image: &model::Image) -> bool {
    labels::decode(&image.labels).is_some()
}

fn address(image: &model::Image) -> String {
    image.self_link.clone().unwrap_or_default()
}
