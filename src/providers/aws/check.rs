//! Whether images can be published: cheap reads that change nothing, each with a line of its own.

use aws_sdk_ec2::types::{Filter, SnapshotBlockPublicAccessState};
use futures_util::FutureExt;
use futures_util::future::join_all;

use super::client::{Clients, Region, call, pages};
use super::error::Error;
use super::publish::is_blocked;
use crate::base::failure::Failure;
use crate::config::aws::{Aws, SnapshotMethod};
use crate::providers::contract::Finding;

/// Public AMIs in a region: 5 unless raised
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ami-quotas.html>).
const PUBLIC_IMAGES: (&str, &str) = ("ec2", "L-0E3CBAB9");

pub(super) async fn check(section: &Aws, clients: &Clients) -> Vec<Finding> {
    let mut looks = vec![async { finding("credentials", identity(section, clients).await) }.boxed()];
    if let SnapshotMethod::S3Import {
        bucket: name,
        role: import,
    } = &section.snapshot_method
    {
        let look = async move { finding(&format!("bucket {name}"), bucket(section, clients, name).await) };
        looks.push(look.boxed());
        let look = async move { finding(&format!("role {import}"), role(section, clients, import).await) };
        looks.push(look.boxed());
    }
    let regions = section.regions();
    let regions = regions.iter().filter_map(|name| clients.region(name).ok());
    looks.extend(regions.map(|found| {
        let look = async move { finding(&format!("region {}", found.name), region(section, clients, found).await) };
        look.boxed()
    }));
    // At once: a cloud out of reach costs a minute, and not one for each line.
    let mut findings = join_all(looks).await;
    // This call needs no permission: who fails here is not let in anywhere, and need not be told so for each region.
    if findings[0].result.is_err() {
        findings.truncate(1);
    }
    findings
}

/// A line that may say what is wrong without anything having failed.
type Line = Result<Result<String, String>, Error>;

fn finding(subject: &str, line: Line) -> Finding {
    Finding {
        subject: subject.to_owned(),
        result: line.unwrap_or_else(|error| Err(format!("failed to {}", Failure::from(error)))),
    }
}

async fn identity(section: &Aws, clients: &Clients) -> Line {
    let sts = clients.sts(&section.base_region);
    let answer = call("GetCallerIdentity", "find out who we are", || {
        sts.get_caller_identity().send()
    })
    .await?;
    Ok(Ok(format!("they are those of {}", answer.arn().unwrap_or("somebody"))))
}

/// Imports read from a bucket of their own region only. S3 says where another one is with its refusal.
async fn bucket(section: &Aws, clients: &Clients, name: &str) -> Line {
    let base = &section.base_region;
    let what = format!("look at bucket {name}");
    let head = || async {
        match clients.s3.head_bucket().bucket(name).send().await {
            Ok(answer) => Ok(answer.bucket_region().unwrap_or(base).to_owned()),
            Err(error) => match error
                .raw_response()
                .and_then(|raw| raw.headers().get("x-amz-bucket-region"))
            {
                Some(region) if region != base => Ok(region.to_owned()),
                _ => Err(error),
            },
        }
    };
    let found = call("HeadBucket", &what, head).await?;
    Ok(match found == *base {
        true => Ok(format!("it is there, in {base}")),
        false => Err(format!(
            "it is in {found}, and imports to {base} need one there; name another one in s3_bucket_name"
        )),
    })
}

/// That AWS may assume it and read the bucket is seen only when it does.
async fn role(section: &Aws, clients: &Clients, name: &str) -> Line {
    let iam = clients.iam(&section.base_region);
    let what = format!("look at role {name}");
    match call("GetRole", &what, || iam.get_role().role_name(name).send()).await {
        Ok(_) => Ok(Ok("it is there".to_owned())),
        Err(error) if error.is_denied() => Ok(Ok("these credentials may not look at it".to_owned())),
        Err(error) if error.code() == Some("NoSuchEntity") => Ok(Err(
            "there is none; make it as docs/aws.md says, or correct import_role_name".to_owned(),
        )),
        Err(error) => Err(error),
    }
}

async fn region(section: &Aws, clients: &Clients, region: &Region) -> Line {
    let name = &region.name;
    let base = clients.region(&section.base_region)?;
    let what = format!("find out whether {name} is enabled");
    let describe = || base.ec2.describe_regions().all_regions(true).region_names(name).send();
    let answer = call("DescribeRegions", &what, describe).await?;
    let status = answer.regions().first().and_then(|region| region.opt_in_status());
    if status == Some("not-opted-in") {
        return Ok(Err(format!(
            "it is not enabled for the account; run `aws account enable-region --region-name {name}`, or take it out \
             of ami_regions"
        )));
    }
    if !section.public {
        return Ok(Ok("it is enabled".to_owned()));
    }
    if is_blocked(region).await? {
        return Ok(Err(format!(
            "the account blocks public sharing of images there; run `aws ec2 disable-image-block-public-access \
             --region {name}`"
        )));
    }
    if blocks_snapshots(region).await? {
        return Ok(Err(format!(
            "the account blocks public sharing of snapshots there; run `aws ec2 \
             disable-snapshot-block-public-access --region {name}`"
        )));
    }
    let used = public_images(region).await?;
    Ok(match allowed(clients, name).await {
        // Each architecture of the next compose needs one.
        Some(allowed) if used >= allowed => Err(format!(
            "all of the {allowed} public images it may have are there; deregister some, or ask for more (quota {})",
            PUBLIC_IMAGES.1
        )),
        Some(allowed) => Ok(format!("it is enabled, and has {used} of {allowed} public images")),
        None => Ok(format!(
            "it is enabled, and has {used} public images; how many it may have is not told"
        )),
    })
}

/// Snapshots have [a switch of their own](https://docs.aws.amazon.com/ebs/latest/userguide/block-public-access-snapshots.html).
async fn blocks_snapshots(region: &Region) -> Result<bool, Error> {
    let what = format!("read whether {} blocks public snapshots", region.name);
    let read = || region.ec2.get_snapshot_block_public_access_state().send();
    match call("GetSnapshotBlockPublicAccessState", &what, read).await {
        Ok(answer) => {
            use SnapshotBlockPublicAccessState::{BlockAllSharing, BlockNewSharing};
            Ok(matches!(answer.state(), Some(BlockAllSharing | BlockNewSharing)))
        }
        // Publishing does not need it.
        Err(error) if error.is_denied() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn public_images(region: &Region) -> Result<usize, Error> {
    let what = format!("count public images in {}", region.name);
    let counts = pages(&what, async |token: Option<String>| {
        let list = || {
            let public = Filter::builder().name("is-public").values("true").build();
            let list = region.ec2.describe_images().owners("self").filters(public);
            list.set_next_token(token.clone()).send()
        };
        let answer = call("DescribeImages", &what, list).await?;
        Ok((vec![answer.images().len()], answer.next_token().map(str::to_owned)))
    });
    Ok(counts.await?.into_iter().sum())
}

/// `None` where it is not told: some regions have no such service, some credentials may not ask.
async fn allowed(clients: &Clients, region: &str) -> Option<usize> {
    let (service, quota) = PUBLIC_IMAGES;
    let get = clients.quotas(region).get_service_quota().service_code(service);
    let answer = get.quota_code(quota).send().await.ok()?;
    // A quota is a whole number written as a fraction.
    Some(answer.quota()?.value()?.max(0.0) as usize)
}
