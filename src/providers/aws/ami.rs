//! AMIs: found by name, read again by id, and waited for.

use std::time::Duration;

use aws_sdk_ec2::types::{Filter, Image, ImageState};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::client::{Region, call, pages};
use super::error::Error;
use super::spec::{AmiSpec, hands_off, tags_of};
use crate::base::failure::reason;
use crate::providers::ownership::HandsOff;
use crate::providers::poll::{Look, Status, until};

/// The longest wait for a new image, which is usually available within seconds and is not visible at first.
const READY: Duration = Duration::from_secs(10 * 60);

/// The states that an image does not leave by itself.
const ENDED: [ImageState; 5] = [
    ImageState::Deregistered,
    ImageState::Disabled,
    ImageState::Error,
    ImageState::Failed,
    ImageState::Invalid,
];

/// The attributes of an image that publishing needs.
#[derive(Debug, Clone)]
pub(super) struct Ami {
    pub(super) id: String,
    pub(super) available: bool,
    /// The snapshots of all volumes, that of the root volume first. EC2 may leave them out while the image is pending.
    pub(super) snapshots: Vec<String>,
    pub(super) public: bool,
    pub(super) deprecation: Option<Timestamp>,
    /// Why it must not be changed.
    pub(super) hands_off: Option<HandsOff>,
}

/// Finds the image by its name in any state: a disabled image keeps its name too.
pub(super) async fn find(region: &Region, spec: &AmiSpec) -> Result<Option<Ami>, Error> {
    let what = format!("look for {} in {}", spec.name, region.name);
    let images = pages(&what, async |token: Option<String>| {
        let answer = call("DescribeImages", &what, || {
            let name = Filter::builder().name("name").values(&spec.name).build();
            let list = region.ec2.describe_images().owners("self").filters(name);
            list.include_disabled(true).set_next_token(token.clone()).send()
        })
        .await?;
        Ok((answer.images().to_vec(), answer.next_token().map(str::to_owned)))
    })
    .await?;
    match &images[..] {
        [] => Ok(None),
        [image] => {
            let ami = parse(image, region)?;
            spec.judge(&ami.id, &region.name, &tags_of(image.tags()))?;
            Ok(Some(ami))
        }
        images => Err(Error::DuplicateNames {
            name: spec.name.clone(),
            region: region.name.clone(),
            amis: images.iter().filter_map(Image::image_id).map(str::to_owned).collect(),
        }),
    }
}

/// Reads one image by its id; `None` if EC2 does not show it.
pub(super) async fn read(region: &Region, id: &str) -> Result<Option<Ami>, Error> {
    let what = format!("read {id} in {}", region.name);
    let answer = call("DescribeImages", &what, || async {
        match region.ec2.describe_images().image_ids(id).send().await {
            Err(error) if Error::is(&error, "InvalidAMIID.NotFound") => Ok(None),
            answer => answer.map(Some),
        }
    });
    let answer = answer.await?;
    let image = answer.as_ref().and_then(|answer| answer.images().first());
    image.map(|image| parse(image, region)).transpose()
}

/// Waits until instances can be started from the image.
pub(super) async fn available(region: &Region, id: &str, status: &Status) -> Result<Ami, Error> {
    let what = format!("register {id} in {}", region.name);
    until(&what, READY, status, || async {
        Ok(match read(region, id).await? {
            Some(ami) if ami.available => Look::Done(ami),
            Some(_) => Look::Wait(format!("{id} is pending")),
            None => Look::Wait(format!("{id} is not visible yet")),
        })
    })
    .await
}

fn parse(image: &Image, region: &Region) -> Result<Ami, Error> {
    let id = image.image_id().unwrap_or_default().to_owned();
    let state = image.state().unwrap_or(&ImageState::Pending);
    let available = match state {
        ImageState::Available => true,
        // An unknown state counts as pending.
        other if !ENDED.contains(other) => false,
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
        deprecation: image.deprecation_time().and_then(time),
        hands_off: hands_off(&tags_of(image.tags())),
        available,
        id,
    })
}

/// A time with or without a fraction, and in UTC if it names no zone.
fn time(text: &str) -> Option<Timestamp> {
    let with_zone = text.parse().ok();
    with_zone.or_else(|| {
        let local: DateTime = text.parse().ok()?;
        Some(local.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_in_each_form() {
        let expected = Timestamp::from_second(1_796_774_400).ok();
        for text in [
            "2026-12-09T00:00:00Z",
            "2026-12-09T00:00:00.000Z",
            "2026-12-09T00:00:00.000000+00:00",
            "2026-12-09T00:00:00",
            "2026-12-09T00:00:00.000",
        ] {
            assert_eq!(time(text), expected, "{text}");
        }
        assert_eq!(time(""), None);
        assert_eq!(time("soon"), None);
    }
}
