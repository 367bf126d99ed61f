//! Makes an image public, and reads again what is live.

use std::time::Duration;

use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::{
    CreateVolumePermission, CreateVolumePermissionModifications, LaunchPermission, LaunchPermissionModifications,
    PermissionGroup, SnapshotAttributeName,
};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::ami::{self, Ami};
use super::client::{Region, call};
use super::error::Error;
use crate::config::aws::Aws;
use crate::model::outcome::Origin;
use crate::providers::call::CallError;
use crate::providers::poll::{Look, Status, until};

/// EC2 shows what was changed after a moment.
const UNSEEN: Duration = Duration::from_secs(60);
/// What [GetImageBlockPublicAccessState](https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetImageBlockPublicAccessState.html)
/// says where nothing can be shared.
pub(super) const BLOCKED: &str = "block-new-sharing";

/// Brings an image to where users find it. Says whether anything had to be done.
pub(super) async fn publish(
    region: &Region,
    id: &str,
    section: &Aws,
    end_of_life: Option<Date>,
) -> Result<Origin, Error> {
    let ami = read(region, id).await?;
    let mut origin = Origin::Found;
    if let Some(end) = deprecation(end_of_life)
        && ami.deprecation != Some(end)
    {
        deprecate(region, id, end).await?;
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
        if !is_shared(region, snapshot).await? {
            share(region, snapshot).await?;
            origin = Origin::Created;
        }
    }
    // Last: from here on, anybody may start it.
    if !ami.public {
        launch(region, id).await?;
        origin = Origin::Created;
    }
    if origin == Origin::Created {
        confirm(region, &ami).await?;
        tracing::info!(region = region.name, ami = id, "{id} is public in {}", region.name);
    }
    Ok(origin)
}

/// Whether users can find it as it is.
pub(super) async fn is_live(region: &Region, id: &str, section: &Aws) -> Result<bool, Error> {
    let ami = read(region, id).await?;
    Ok(ami.available && (ami.public || !section.public))
}

async fn read(region: &Region, id: &str) -> Result<Ami, Error> {
    ami::again(region, id).await?.ok_or_else(|| Error::Lapsed {
        ami: id.to_owned(),
        region: region.name.clone(),
    })
}

/// The first moment after support. EC2 refuses what is past.
fn deprecation(end_of_life: Option<Date>) -> Option<Timestamp> {
    let end = end_of_life?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    (end > Timestamp::now()).then_some(end)
}

/// From then on others find it only by its id. A public image without a date of its own gets one two years ahead.
async fn deprecate(region: &Region, id: &str, end: Timestamp) -> Result<(), Error> {
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
    call("EnableImageDeprecation", &what, deprecate).await.map(drop)
}

/// Looked at before anything is asked for: the refusal itself says less.
pub(super) async fn is_blocked(region: &Region) -> Result<bool, Error> {
    let what = format!("read whether {} blocks public images", region.name);
    let read = || region.ec2.get_image_block_public_access_state().send();
    let answer = call("GetImageBlockPublicAccessState", &what, read).await?;
    Ok(answer.image_block_public_access_state() == Some(BLOCKED))
}

async fn launch(region: &Region, id: &str) -> Result<(), Error> {
    let what = format!("make {id} public in {}", region.name);
    let everybody = LaunchPermission::builder().group(PermissionGroup::All).build();
    let change = LaunchPermissionModifications::builder().add(everybody).build();
    let modify = || {
        let modify = region.ec2.modify_image_attribute().image_id(id);
        modify.launch_permission(change.clone()).send()
    };
    call("ModifyImageAttribute", &what, modify).await.map(drop)
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

async fn share(region: &Region, snapshot: &str) -> Result<(), Error> {
    let what = format!("make {snapshot} public in {}", region.name);
    let everybody = CreateVolumePermission::builder().group(PermissionGroup::All).build();
    let change = CreateVolumePermissionModifications::builder().add(everybody).build();
    let modify = || {
        let modify = region.ec2.modify_snapshot_attribute().snapshot_id(snapshot);
        modify
            .attribute(SnapshotAttributeName::CreateVolumePermission)
            .create_volume_permission(change.clone())
            .send()
    };
    call("ModifySnapshotAttribute", &what, modify).await.map(drop)
}

/// Reads again until everything is as it should be: nothing is announced that users cannot start.
async fn confirm(region: &Region, ami: &Ami) -> Result<(), Error> {
    let what = format!("read {} in {} again", ami.id, region.name);
    let status = Status::default();
    let seen = until(&what, UNSEEN, &status, || async {
        let public = ami::again(region, &ami.id)
            .await?
            .is_some_and(|ami| ami.public && ami.available);
        let mut private = (!public).then(|| ami.id.clone());
        for snapshot in &ami.snapshots {
            if private.is_none() && !is_shared(region, snapshot).await? {
                private = Some(snapshot.clone());
            }
        }
        Ok(match private {
            None => Look::Done(()),
            Some(private) => Look::Wait(private),
        })
    });
    seen.await.map_err(|error| match error {
        Error::Call(CallError::Unfinished { state, .. }) => Error::Private {
            what: state,
            region: region.name.clone(),
        },
        error => error,
    })
}
