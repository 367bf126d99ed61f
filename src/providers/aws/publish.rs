//! Makes an image and its snapshots public, and reads each change back.

use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::{
    CreateVolumePermission, CreateVolumePermissionModifications, LaunchPermission, LaunchPermissionModifications,
    PermissionGroup, SnapshotAttributeName,
};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::ami::{self, Ami};
use super::client::{Region, call, change};
use super::confirm::confirmed;
use super::error::Error;
use super::snapshot;
use super::spec::hands_off;
use crate::config::aws::Aws;
use crate::model::outcome::Origin;
use crate::providers::poll::Status;

/// The value by which [GetImageBlockPublicAccessState](https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetImageBlockPublicAccessState.html)
/// reports that nothing can be shared.
pub(super) const BLOCKED: &str = "block-new-sharing";

/// Makes an image public, and its snapshots, and sets its deprecation date. Reports whether anything had to be changed.
pub(super) async fn publish(
    region: &Region,
    id: &str,
    section: &Aws,
    end_of_life: Option<Date>,
) -> Result<Origin, Error> {
    let status = Status::default();
    let ami = with_snapshots(region, id, &status).await?;
    if let Some(reason) = ami.hands_off {
        return match ami.public || !section.public {
            true => Ok(Origin::Found),
            false => Err(Error::Kept {
                ami: ami.id,
                region: region.name.clone(),
                reason,
            }),
        };
    }
    let mut origin = Origin::Found;
    if let Some(end) = deprecation(end_of_life)
        && ami.deprecation != Some(end)
    {
        deprecate(region, id, end, &status).await?;
        origin = Origin::Created;
    }
    if !section.public {
        return Ok(origin);
    }
    if !ami.public && is_blocked(region).await? {
        return Err(Error::Blocked {
            ami: id.to_owned(),
            region: region.name.clone(),
        });
    }
    for snapshot in &ami.snapshots {
        if !is_shared(region, snapshot).await? && share(region, snapshot, &status).await? {
            origin = Origin::Created;
        }
    }
    // Last: from here on, every account may start the image.
    if !ami.public {
        launch(region, id, &status).await?;
        origin = Origin::Created;
    }
    if origin == Origin::Created {
        tracing::info!(region = region.name, ami = id, "{id} is public in {}", region.name);
    }
    Ok(origin)
}

/// Reports whether users can find the image as it is.
pub(super) async fn is_live(region: &Region, id: &str, section: &Aws) -> Result<bool, Error> {
    let ami = read(region, id).await?;
    Ok(ami.available && (ami.public || !section.public))
}

/// Reads an image together with its snapshots, which EC2 may leave out for a moment.
async fn with_snapshots(region: &Region, id: &str, status: &Status) -> Result<Ami, Error> {
    let ami = read(region, id).await?;
    if !ami.snapshots.is_empty() {
        return Ok(ami);
    }
    let what = format!("read the snapshots of {id} in {}", region.name);
    let look = || async {
        let found = ami::read(region, id).await?;
        Ok(found.filter(|found| !found.snapshots.is_empty()))
    };
    match confirmed(&what, status, look).await {
        // An image without a snapshot is as public as it can be.
        Err(Error::Unconfirmed { .. }) => Ok(ami),
        found => found,
    }
}

async fn read(region: &Region, id: &str) -> Result<Ami, Error> {
    ami::read(region, id).await?.ok_or_else(|| Error::Vanished {
        ami: id.to_owned(),
        region: region.name.clone(),
    })
}

/// The first moment after support; `None` if it is past, which EC2 refuses.
fn deprecation(end_of_life: Option<Date>) -> Option<Timestamp> {
    let end = end_of_life?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    (end > Timestamp::now()).then_some(end)
}

/// Sets the date from which other accounts find the image by its id only. EC2 gives a public image without a date one two
/// years ahead.
async fn deprecate(region: &Region, id: &str, end: Timestamp, status: &Status) -> Result<(), Error> {
    let what = format!("set the deprecation date of {id} in {}", region.name);
    let at = DateTime::from_secs(end.as_second());
    let deprecate = || {
        region
            .ec2
            .enable_image_deprecation()
            .image_id(id)
            .deprecate_at(at)
            .send()
    };
    change("EnableImageDeprecation", &what, deprecate).await?;
    confirmed(&what, status, || async {
        let found = ami::read(region, id).await?;
        Ok(found.filter(|found| found.deprecation == Some(end)).map(drop))
    })
    .await
}

/// Reports whether the account blocks public images in the region. The refusal of a change says less.
pub(super) async fn is_blocked(region: &Region) -> Result<bool, Error> {
    let what = format!("read whether {} blocks public images", region.name);
    let read = || region.ec2.get_image_block_public_access_state().send();
    let answer = call("GetImageBlockPublicAccessState", &what, read).await?;
    Ok(answer.image_block_public_access_state() == Some(BLOCKED))
}

async fn launch(region: &Region, id: &str, status: &Status) -> Result<(), Error> {
    let what = format!("make {id} public in {}", region.name);
    let everybody = LaunchPermission::builder().group(PermissionGroup::All).build();
    let permission = LaunchPermissionModifications::builder().add(everybody).build();
    let modify = || {
        let modify = region.ec2.modify_image_attribute().image_id(id);
        modify.launch_permission(permission.clone()).send()
    };
    change("ModifyImageAttribute", &what, modify).await?;
    // An image that users cannot start is never announced.
    confirmed(&what, status, || async {
        let found = ami::read(region, id).await?;
        Ok(found.filter(|found| found.public && found.available).map(drop))
    })
    .await
}

async fn is_shared(region: &Region, snapshot: &str) -> Result<bool, Error> {
    let what = format!("read who may use {snapshot} in {}", region.name);
    let read = || {
        let read = region.ec2.describe_snapshot_attribute().snapshot_id(snapshot);
        read.attribute(SnapshotAttributeName::CreateVolumePermission).send()
    };
    let answer = call("DescribeSnapshotAttribute", &what, read).await?;
    let everybody = |permission: &CreateVolumePermission| permission.group() == Some(&PermissionGroup::All);
    Ok(answer.create_volume_permissions().iter().any(everybody))
}

/// Makes a snapshot public, unless an operator keeps it as it is. Reports whether it did.
async fn share(region: &Region, snapshot: &str, status: &Status) -> Result<bool, Error> {
    let found = snapshot::read(region, snapshot).await?;
    if let Some(reason) = found.and_then(|found| hands_off(&found.tags)) {
        tracing::info!(
            region = region.name,
            "{snapshot} in {} is left private: {reason}",
            region.name
        );
        return Ok(false);
    }
    let what = format!("make {snapshot} public in {}", region.name);
    let everybody = CreateVolumePermission::builder().group(PermissionGroup::All).build();
    let permission = CreateVolumePermissionModifications::builder().add(everybody).build();
    let modify = || {
        let modify = region.ec2.modify_snapshot_attribute().snapshot_id(snapshot);
        modify
            .attribute(SnapshotAttributeName::CreateVolumePermission)
            .create_volume_permission(permission.clone())
            .send()
    };
    change("ModifySnapshotAttribute", &what, modify).await?;
    confirmed(&what, status, || async {
        Ok(is_shared(region, snapshot).await?.then_some(true))
    })
    .await
}
