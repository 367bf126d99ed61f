//! The end of an image: deprecated, then deregistered.

use jiff::{SignedDuration, Timestamp};

use super::{
    Image, State,
    ec2::{Context, done},
    images::find,
    refusal::{Refusal, Result},
    request::Parameters,
    snapshots::{in_use, remove},
    xml::Xml,
};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// A public image cannot be used for longer than two years from its creation without being deprecated.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ami-deprecate.html>
fn latest(image: &Image) -> Timestamp {
    if image.permissions.public {
        image.created + DAY * (2 * 366)
    } else {
        Timestamp::now() + DAY * (10 * 366)
    }
}

/// An image that has become public gets the latest date, where it has none or a later one.
pub(super) fn made_public(image: &mut Image) {
    let latest = latest(image);
    image.deprecated = Some(image.deprecated.map_or(latest, |date| date.min(latest)));
}

pub(super) fn deprecate(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let id = parameters.required("ImageId")?;
    let date: Timestamp = parameters
        .required("DeprecateAt")?
        .parse()
        .map_err(|_| parameters.invalid("DeprecateAt", "is not a valid date"))?;
    parameters.finish()?;
    let image = find(context, &id)?;
    if date < Timestamp::now() || date > latest(image) {
        let message = format!(
            "the deprecation date {date} is in the past, or later than {}",
            latest(image)
        );
        return Err(Refusal::new("InvalidParameterValue", message));
    }
    image.deprecated = Some(date);
    Ok(done())
}

pub(super) fn undeprecate(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let id = parameters.required("ImageId")?;
    parameters.finish()?;
    let image = find(context, &id)?;
    image.deprecated = None;
    if image.permissions.public {
        made_public(image);
    }
    Ok(done())
}

pub(super) fn deregister(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let id = parameters.required("ImageId")?;
    let with_snapshots = parameters.flag("DeleteAssociatedSnapshots")?.unwrap_or_default();
    parameters.finish()?;
    find(context, &id)?;
    let region = context.region();
    let image = region.images.remove(&id);
    region.gone.insert(id);
    let mut answer = done();
    if with_snapshots {
        let devices = image.into_iter().flat_map(|image| image.devices);
        answer.list("deleteSnapshotResultSet", devices, |item, device| {
            item.text("snapshotId", &device.snapshot);
            if in_use(context.region(), &device.snapshot).is_some() {
                item.text("returnCode", "skipped");
            } else {
                item.text("returnCode", "success");
                remove(context, device.snapshot);
            }
        });
    }
    Ok(answer)
}

impl State {
    /// As the API calls it for an image.
    pub fn of_image(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "available",
            Self::Failed(_) => "failed",
        }
    }

    /// As the API calls it for a snapshot.
    pub fn of_snapshot(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "completed",
            Self::Failed(_) => "error",
        }
    }
}
