//! One image: found or created, deprecated, and put into its family.
//!
//! An image that is inserted with a family becomes its head at once, and cannot be inserted as deprecated. So it is created
//! without a family, then deprecated, and joins its family last: it never becomes the head by itself.

use google_cloud_compute_v1::model;
use google_cloud_compute_v1::model::guest_os_feature::Type;
use google_cloud_compute_v1::model::image::{Architecture, RawDisk, Status};
use jiff::Timestamp;

use super::client::{Cloud, OPERATION_LIMIT, deprecated};
use super::error::Error;
use super::inventory::may_be_head;
use super::{labels, upload};
use crate::base::failure::{Class, Failure};
use crate::model::compose::Image;
use crate::model::mark::Mark;
use crate::model::outcome::Origin;
use crate::model::select::{Deliverable, Target};
use crate::providers::contract::Task;
use crate::providers::ownership::{Comparison, HandsOff, compare};
use crate::providers::poll::Pace;

/// Features of the kernels of both architectures.
const FEATURES: [Type; 2] = [Type::UefiCompatible, Type::Gvnic];
/// [Confidential computing](https://cloud.google.com/confidential-computing/confidential-vm/docs/create-custom-confidential-vm-images)
/// is for x86_64 alone; an ARM64 image that claims it is refused.
const X86_FEATURES: [Type; 4] = [
    Type::SevCapable,
    Type::SevSnpCapable,
    Type::SevLiveMigratableV2,
    Type::TdxCapable,
];

/// The specification of an image that is to exist.
pub(super) struct ImageSpec<'a> {
    pub(super) name: &'a str,
    family: &'a str,
    storage_locations: &'a [String],
    image: &'a Image,
    deliverable: &'a Deliverable,
    mark: Mark,
}

/// The image that has the specified name now.
enum Existing {
    /// No image has it.
    Nothing,
    /// A complete image of the same content; one without our mark is the previous service's.
    Ready(Box<model::Image>),
    /// The remains of a failed import of ours, with their number where it is known.
    Failed(Option<u64>),
}

impl<'a> ImageSpec<'a> {
    pub(super) fn of(deliverable: &'a Deliverable) -> Result<Self, Error> {
        let Target::Gcp(image) = &deliverable.target else {
            return Err(Error::NotAnImage(deliverable.name()));
        };
        Ok(Self {
            name: &image.name,
            family: &image.family,
            storage_locations: &image.storage_locations,
            image: &deliverable.images[0],
            mark: Mark::of(deliverable, Some(&deliverable.images[0])),
            deliverable,
        })
    }

    fn object(&self) -> String {
        upload::object_name(self.name, self.image)
    }

    /// The body of the insert call. The description has in full what labels cannot hold.
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

    /// Finds the image, once it is neither being created nor being deleted.
    async fn look(&self, cloud: &Cloud) -> Result<Existing, Error> {
        let mut pace = Pace::within(OPERATION_LIMIT);
        loop {
            let Some(image) = cloud.image(self.name).await? else {
                return Ok(Existing::Nothing);
            };
            if let Some(HandsOff::Owner(owner)) = labels::hands_off(&image.labels) {
                let name = self.name.to_owned();
                return Err(Error::Foreign { name, owner });
            }
            match &image.status {
                Some(Status::Ready) => {
                    self.require_same_content(&image)?;
                    return Ok(Existing::Ready(Box::new(image)));
                }
                Some(Status::Failed) => {
                    self.require_replaceable(&image)?;
                    return Ok(Existing::Failed(image.id));
                }
                // Being created or deleted, perhaps by another process, or a status of which we know nothing.
                status => {
                    let status = status.as_ref().and_then(Status::name).unwrap_or("unknown");
                    pace.pause(&format!("wait for image {}, whose status is {status}", self.name), None)
                        .await?;
                }
            }
        }
    }

    /// Fails if the remains of an import must not be deleted. Those without a mark are not ours: the previous service's
    /// attempts had none by which they could be distinguished from an operator's.
    fn require_replaceable(&self, image: &model::Image) -> Result<(), Error> {
        let why = match labels::hands_off(&image.labels) {
            Some(hands_off) => labels::reason(&hands_off),
            None if !is_ours(image) => "it has no mark of this program".to_owned(),
            None => return Ok(()),
        };
        let name = self.name.to_owned();
        Err(Error::FailedImport { name, why })
    }

    /// Fails if the image's mark names another file. Without a mark the name decides: the previous service left none.
    fn require_same_content(&self, image: &model::Image) -> Result<(), Error> {
        let Some(mark) = labels::decode(&image.labels) else {
            return Ok(());
        };
        let found = mark.image_sha256.as_deref().unwrap_or("unknown");
        match compare(Some(&mark.owner), Some(found), &self.image.sha256) {
            Comparison::Same => Ok(()),
            Comparison::Foreign(owner) => Err(Error::Foreign {
                name: self.name.to_owned(),
                owner,
            }),
            Comparison::OtherContent(found) => Err(Error::OtherContent {
                name: self.name.to_owned(),
                found,
                expected: self.image.sha256.clone(),
            }),
        }
    }

    /// Ensures that the image exists, deprecated unless it is in its family already. Returns its address and whether
    /// something was done; `None` if the image does not exist and must not be created.
    pub(super) async fn stage(
        &self,
        cloud: &Cloud,
        task: &Task,
        may_change: bool,
    ) -> Result<Option<(String, Origin)>, Failure> {
        let mut origin = Origin::Found;
        let mut looked = self.look(cloud).await.map_err(Failure::from);
        if may_change {
            looked = self.discard_if_useless(cloud, looked).await;
        }
        let image = match looked? {
            Existing::Ready(image) => image,
            Existing::Nothing | Existing::Failed(_) if !may_change => return Ok(None),
            lacking => {
                if let Existing::Failed(id) = lacking {
                    tracing::warn!(image = self.name, "replacing image {}, whose import failed", self.name);
                    cloud.delete(self.name, id).await?;
                }
                origin = Origin::Created;
                // After a failed read of the source, the object is left alone: another process may be importing it.
                upload::ensure(cloud, &self.object(), &task.source(self.image)).await?;
                let imported = self.import(cloud).await;
                self.discard_if_useless(cloud, imported).await?
            }
        };
        if may_change {
            self.discard(cloud).await;
            if is_unreleased(&image) && may_be_head(&image) {
                origin = Origin::Created;
                cloud.deprecate(self.name, deprecated(Timestamp::now(), None)).await?;
            }
        }
        Ok(Some((address(cloud, &image), origin)))
    }

    /// Imports the object as an image.
    async fn import(&self, cloud: &Cloud) -> Result<Box<model::Image>, Failure> {
        tracing::info!(image = self.name, "importing {}", self.name);
        match cloud.insert(&self.request(&cloud.bucket)).await {
            Ok(()) => {}
            // Another process created it first. The look below compares its content.
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                let failure = Failure::from(error);
                if failure.class() == Class::Deliverable {
                    self.clear(cloud).await;
                }
                return Err(failure);
            }
        }
        // An image that is not visible yet is found in the next round.
        Ok(self.present(cloud).await?)
    }

    /// Deletes the object after a failure for good, since no image will be made of it.
    async fn discard_if_useless<T>(&self, cloud: &Cloud, result: Result<T, Failure>) -> Result<T, Failure> {
        if result
            .as_ref()
            .is_err_and(|failure| failure.class() == Class::Deliverable)
        {
            self.discard(cloud).await;
        }
        result
    }

    /// Deletes the object that the image is imported from.
    async fn discard(&self, cloud: &Cloud) {
        upload::discard(cloud, &self.object()).await;
    }

    /// Deletes the remains of a failed import. A failure is a warning: the import's own error is reported.
    async fn clear(&self, cloud: &Cloud) {
        let cleared = async {
            match self.look(cloud).await? {
                Existing::Failed(id) => cloud.delete(self.name, id).await,
                Existing::Nothing | Existing::Ready(_) => Ok(()),
            }
        };
        if let Err(error) = cleared.await {
            tracing::warn!(image = self.name, "failed to {}", Failure::from(error));
        }
    }

    /// Puts the image into its family and reads it back. Returns its address and whether something was done.
    pub(super) async fn release(&self, cloud: &Cloud) -> Result<(String, Origin), Failure> {
        let image = self.present(cloud).await?;
        if !is_unreleased(&image) {
            return Ok((address(cloud, &image), Origin::Found));
        }
        if may_be_head(&image) {
            cloud.deprecate(self.name, deprecated(Timestamp::now(), None)).await?;
        }
        cloud.set_family(self.name, self.family).await?;
        let image = self.present(cloud).await?;
        Ok((address(cloud, &image), Origin::Created))
    }

    async fn present(&self, cloud: &Cloud) -> Result<Box<model::Image>, Error> {
        match self.look(cloud).await? {
            Existing::Ready(image) => Ok(image),
            Existing::Nothing | Existing::Failed(_) => Err(Error::Vanished(self.name.to_owned())),
        }
    }
}

/// The image is ours, is in no family yet, and may be changed.
fn is_unreleased(image: &model::Image) -> bool {
    let has_family = image.family.as_ref().is_some_and(|family| !family.is_empty());
    is_ours(image) && !has_family && labels::hands_off(&image.labels).is_none()
}

/// The image carries our mark. One without it is the previous service's and is left as it is.
fn is_ours(image: &model::Image) -> bool {
    labels::decode(&image.labels).is_some()
}

/// The address that notifications carry.
fn address(cloud: &Cloud, image: &model::Image) -> String {
    let name = image.name.as_deref().unwrap_or_default();
    let made = || {
        format!(
            "https://www.googleapis.com/compute/v1/projects/{}/global/images/{name}",
            cloud.project
        )
    };
    image
        .self_link
        .clone()
        .filter(|link| !link.is_empty())
        .unwrap_or_else(made)
}
