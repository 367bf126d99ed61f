//! What is there under an AMI's name.

use std::time::Duration;

use aws_sdk_ec2::types::{Filter, Image, ImageState};
use jiff::Timestamp;

use super::client::{Region, call};
use super::error::Error;
use super::wanted::{Wanted, read};
use crate::base::failure::reason;
use crate::providers::poll::{Look, Status, until};

/// A new image is available within seconds. It is not seen at all for a moment.
const READY: Duration = Duration::from_secs(10 * 60);

/// An image, as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct Ami {
    pub(super) id: String,
    pub(super) available: bool,
    /// Of all volumes, the root one first. While the image is pending, EC2 may leave them out.
    pub(super) snapshots: Vec<String>,
    pub(super) public: bool,
    pub(super) deprecation: Option<Timestamp>,
}

/// Finds the image by its name, whatever state it is in: a disabled one keeps its name too.
pub(super) async fn look(region: &Region, wanted: &Wanted) -> Result<Option<Ami>, Error> {
    let what = format!("look for {} in {}", wanted.name, region.name);
    let answer = call("DescribeImages", &what, || {
        let name = Filter::builder().name("name").values(&wanted.name).build();
        region
            .ec2
            .describe_images()
            .owners("self")
            .filters(name)
            .include_disabled(true)
            .send()
    })
    .await?;
    match answer.images() {
        [] => Ok(None),
        [image] => {
            let ami = parse(image, region)?;
            wanted.judge(&ami.id, &region.name, &read(image.tags()))?;
            Ok(Some(ami))
        }
        images => Err(Error::Twins {
            name: wanted.name.clone(),
            region: region.name.clone(),
            amis: images.iter().filter_map(Image::image_id).map(str::to_owned).collect(),
        }),
    }
}

/// Reads one image again; `None` if it is not seen.
pub(super) async fn again(region: &Region, id: &str) -> Result<Option<Ami>, Error> {
    let what = format!("read {id} in {}", region.name);
    let read = call("DescribeImages", &what, || async {
        match region.ec2.describe_images().image_ids(id).send().await {
            Err(error) if Error::is(&error, "InvalidAMIID.NotFound") => Ok(None),
            answer => answer.map(Some),
        }
    });
    let answer = read.await?;
    let image = answer.as_ref().and_then(|answer| answer.images().first());
    image.map(|image| parse(image, region)).transpose()
}

/// Waits until instances can be started from it.
pub(super) async fn available(region: &Region, id: &str, status: &Status) -> Result<Ami, Error> {
    let what = format!("register {id} in {}", region.name);
    until(&what, READY, status, || async {
        Ok(match again(region, id).await? {
            Some(ami) if ami.available => Look::Done(ami),
            Some(_) => Look::Wait(format!("{id} is pending")),
            None => Look::Wait(format!("{id} is not seen yet")),
        })
    })
    .await
}

fn parse(image: &Image, region: &Region) -> Result<Ami, Error> {
    let id = image.image_id().unwrap_or_default().to_owned();
    let state = image.state().unwrap_or(&ImageState::Pending);
    let available = match state {
        ImageState::Available => true,
        ImageState::Pending => false,
        other => {
            return Err(Error::Unusable {
                ami: id,
                region: region.name.clone(),
                state: other.as_str().to_owned(),
                reason: reason(
                    image
                        .state_reason()
                        .and_then(|state| state.message())
                        .unwrap_or_default(),
                ),
            });
        }
    };
    let root = image.root_device_name();
    let mut mappings: Vec<_> = image.block_device_mappings().iter().collect();
    mappings.sort_by_key(|mapping| mapping.device_name() != root);
    let snapshots = mappings.iter().filter_map(|mapping| mapping.ebs()?.snapshot_id());
    Ok(Ami {
        snapshots: snapshots.map(str::to_owned).collect(),
        public: image.public().unwrap_or(false),
        deprecation: image.deprecation_time().and_then(|time| time.parse().ok()),
        available,
        id,
    })
}
