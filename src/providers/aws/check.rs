//! `check`: cheap reads that show whether images can be published. Each has a line of its own.

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
    // Concurrently: an unreachable cloud costs one minute, not one for each line.
    let mut findings = join_all(looks).await;
    // GetCallerIdentity needs no permission. If it fails, every other line would repeat the same cause.
    if findings[0].result.is_err() {
        findings.truncate(1);
    }
    findings
}

/// The text of a line: a good or a bad finding, or a call that failed.
type Line = Result<Result<String, String>, Error>;

fn finding(subject: &str, line: Line) -> Finding {
    Finding {
        subject: subject.to_owned(),
        result: line.unwrap_or_else(|error| Err(format!("failed to {}", Failure::from(error)))),
    }
}

async fn identity(section: &Aws, clients: &Clients) -> Line {
    let sts = clients.sts(&section.base_region);
    let answer = call("GetCallerIdentity", "read the identity of the credentials", || {
        sts.get_caller_identity().send()
    })
    .await?;
    Ok(Ok(format!(
        "they belong to {}",
        answer.arn().unwrap_or("an identity without a name")
    )))
}

/// Imports read only from a bucket in their own region. When S3 refuses a bucket in another region, it names that region.
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
        true => Ok(format!("it exists, in {base}")),
        false => Err(format!(
            "it is in {found}, but imports to {base} need a bucket in {base}; name another bucket in s3_bucket_name"
        )),
    })
}

/// Looks for the import role. Only an import shows whether AWS may assume the role and read the bucket with it.
async fn role(section: &Aws, clients: &Clients, name: &str) -> Line {
    let iam = clients.iam(&section.base_region);
    let what = format!("look at role {name}");
    match call("GetRole", &what, || iam.get_role().role_name(name).send()).await {
        Ok(_) => Ok(Ok("it exists".to_owned())),
        Err(error) if error.is_denied() => Ok(Ok("these credentials have no permission to read it".to_owned())),
        Err(error) if error.code() == Some("NoSuchEntity") => Ok(Err(
            "it does not exist; create it as docs/aws.md says, or correct import_role_name".to_owned(),
        )),
        Err(error) => Err(error),
    }
}

async fn region(section: &Aws, clients: &Clients, region: &Region) -> Line {
    let name = &region.name;
    let base = clients.region(&section.base_region)?;
    let what = format!("read whether {name} is enabled");
    let describe = || base.ec2.describe_regions().all_regions(true).region_names(name).send();
    let answer = call("DescribeRegions", &what, describe).await?;
    let status = answer.regions().first().and_then(|region| region.opt_in_status());
    if status == Some("not-opted-in") {
        return Ok(Err(format!(
            "it is not enabled for the account; run `aws account enable-region --region-name {name}`, or remove it \
             from ami_regions"
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
        // Each architecture of the next compose needs one more.
        Some(allowed) if used >= allowed => Err(format!(
            "all {allowed} public images that the quota allows exist; deregister some, or ask for a higher quota ({})",
            PUBLIC_IMAGES.1
        )),
        Some(allowed) => Ok(format!("it is enabled, and has {used} of {allowed} public images")),
        None => Ok(format!(
            "it is enabled, and has {used} public images; the quota cannot be read"
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
        // Publishing does not need this permission.
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

/// Reads the quota; `None` where the region lacks the service or the credentials lack the permission.
async fn allowed(clients: &Clients, region: &str) -> Option<usize> {
    let (service, quota) = PUBLIC_IMAGES;
    let get = clients.quotas(region).get_service_quota().service_code(service);
    let answer = get.quota_code(quota).send().await.ok()?;
    // The API writes the whole number as a fraction.
    Some(answer.quota()?.value()?.max(0.0) as usize)
}
