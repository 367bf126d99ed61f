//! Registers an image from a snapshot. Names are unique in each region, so only one of two processes can register the
//! image; the other process adopts it.

use std::time::Duration;

use aws_sdk_ec2::types::{
    ArchitectureValues, BlockDeviceMapping, BootModeValues, EbsBlockDevice, ImdsSupportValues, ResourceType, VolumeType,
};

use super::ami::{self, Ami};
use super::client::{Region, call};
use super::error::Error;
use super::snapshot::{Snapshot, UNKNOWN, deleted};
use super::spec::{AmiSpec, specification};
use crate::config::aws::{Aws, ImdsSupport};
use crate::providers::poll::{Look, Status, until};

/// The longest time for which EC2 may not show an image whose name it refuses as taken.
const VISIBILITY_DELAY: Duration = Duration::from_secs(2 * 60);

/// Registers the image, or finds it registered by another process; then waits until it is available.
pub(super) async fn register(
    region: &Region,
    spec: &AmiSpec,
    snapshot: &Snapshot,
    section: &Aws,
    status: &Status,
) -> Result<Ami, Error> {
    let what = format!("register {} in {}", spec.name, region.name);
    status.set("registering the image");
    let registered = call("RegisterImage", &what, || async {
        match request(region, spec, snapshot, section).send().await {
            Err(error) if Error::is(&error, UNKNOWN) => Ok(None),
            answer => answer.map(Some),
        }
    });
    let id = match registered.await {
        Ok(Some(answer)) => answer
            .image_id()
            .map(str::to_owned)
            .ok_or_else(|| Error::lacking(&what, "image id"))?,
        // Another process has registered its own image, and deleted this snapshot as an orphan.
        Ok(None) => match ami::find(region, spec).await? {
            Some(found) => found.id,
            None => return Err(deleted(region, &snapshot.id)),
        },
        // Registered by another process, or by a call of this one whose answer was lost.
        Err(error) if error.code() == Some("InvalidAMIName.Duplicate") => {
            let found = until(&what, VISIBILITY_DELAY, status, || async {
                Ok::<_, Error>(match ami::find(region, spec).await? {
                    Some(found) => Look::Done(found),
                    None => Look::Wait("the name is taken, but the image is not visible yet".to_owned()),
                })
            });
            found.await?.id
        }
        Err(error) => return Err(error),
    };
    let ami = ami::available(region, &id, status).await?;
    tracing::info!(
        region = region.name,
        ami = id,
        "registered {} in {}",
        spec.name,
        region.name
    );
    Ok(ami)
}

fn request(
    region: &Region,
    spec: &AmiSpec,
    snapshot: &Snapshot,
    section: &Aws,
) -> aws_sdk_ec2::operation::register_image::builders::RegisterImageFluentBuilder {
    let arch = spec.image.arch.as_str();
    let volume = EbsBlockDevice::builder()
        .snapshot_id(&snapshot.id)
        .volume_size(snapshot.size)
        .volume_type(VolumeType::from(section.ami_volume_type.as_str()))
        .delete_on_termination(true)
        .build();
    let root = BlockDeviceMapping::builder()
        .device_name(&section.ami_volume_dev_name)
        .ebs(volume)
        .build();
    let imds = match section.imds_support {
        ImdsSupport::V2 => Some(ImdsSupportValues::V20),
        ImdsSupport::Optional => None,
    };
    region
        .ec2
        .register_image()
        .name(&spec.name)
        .description(&spec.description)
        .architecture(match arch {
            "aarch64" => ArchitectureValues::Arm64,
            _ => ArchitectureValues::X8664,
        })
        .virtualization_type("hvm")
        .boot_mode(BootModeValues::from(section.boot_mode(arch).as_str()))
        .ena_support(true)
        .sriov_net_support("simple")
        .set_imds_support(imds)
        .root_device_name(&section.ami_volume_dev_name)
        .block_device_mappings(root)
        .tag_specifications(specification(ResourceType::Image, spec.tags()))
}
