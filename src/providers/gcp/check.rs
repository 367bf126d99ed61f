//! What `check` finds: credentials, bucket, project, permissions, families.

use std::collections::BTreeMap;

use super::client::Cloud;
use super::error::Error;
use super::inventory::{Held, State};
use super::promotion::heads;
use crate::base::failure::Failure;
use crate::providers::contract::Finding;

/// What is done with the bucket. Without a permission to list, an object that is missing looks forbidden.
const BUCKET: [&str; 4] = [
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
];
/// What is done with images. That of making them belongs to the project and cannot be asked for here.
const IMAGE: [&str; 5] = [
    "compute.images.get",
    "compute.images.update",
    "compute.images.deprecate",
    "compute.images.setLabels",
    "compute.images.delete",
];

/// Looks at everything, changing nothing.
pub(super) async fn check(cloud: &Cloud) -> Vec<Finding> {
    let credentials = match cloud.token().await {
        Ok(_) => Ok("a token was given".to_owned()),
        Err(error) => return vec![finding("credentials".to_owned(), Err(error))],
    };
    let mut findings = vec![finding("credentials".to_owned(), credentials)];
    let bucket = cloud
        .bucket_permissions(&BUCKET)
        .await
        .map(|found| missing(&BUCKET, &found));
    findings.push(permitted(format!("bucket {}", cloud.bucket), bucket));
    let subject = format!("project {}", cloud.project);
    let held = cloud.list().await.and_then(|images| {
        let held: Result<Vec<_>, _> = images.into_iter().map(Held::of).collect();
        held
    });
    let held = match held {
        Ok(held) => held,
        Err(error) => {
            findings.push(finding(subject, Err(error)));
            return findings;
        }
    };
    findings.push(match held.iter().max_by_key(|image| image.created) {
        Some(image) => {
            let found = cloud.permissions(&image.name, &IMAGE).await;
            permitted(subject, found.map(|found| missing(&IMAGE, &found)))
        }
        None => finding(subject, Ok("it has no image yet to ask permissions of".to_owned())),
    });
    findings.extend(families(&held));
    findings
}

/// One line for each family that has images.
fn families(held: &[Held]) -> Vec<Finding> {
    let heads = heads(held);
    let mut families: BTreeMap<&str, Vec<&Held>> = BTreeMap::new();
    for image in held {
        if let Some(family) = &image.family {
            families.entry(family).or_default().push(image);
        }
    }
    let finding = |(family, images): (&str, Vec<&Held>)| {
        let head = images.iter().find(|image| heads.contains(&image.id));
        let waiting = images
            .iter()
            .filter(|image| matches!(image.state, State::Deprecated(_)))
            .count();
        let text = match head {
            Some(head) => format!("its head is {}, and {waiting} are deprecated", head.name),
            None => format!("it has no head yet, and {waiting} are deprecated"),
        };
        finding(format!("family {family}"), Ok(text))
    };
    families.into_iter().map(finding).collect()
}

fn missing<'a>(asked: &[&'a str], found: &[String]) -> Vec<&'a str> {
    let lacks = |permission: &&str| !found.iter().any(|found| found == permission);
    asked.iter().copied().filter(lacks).collect()
}

fn permitted(subject: String, missing: Result<Vec<&str>, Error>) -> Finding {
    match missing {
        Ok(missing) if missing.is_empty() => finding(subject, Ok("everything needed is permitted".to_owned())),
        Ok(missing) => Finding {
            subject,
            result: Err(format!(
                "the account lacks {}; add that to its role (docs/gcp.md)",
                missing.join(", ")
            )),
        },
        Err(error) => finding(subject, Err(error)),
    }
}

fn finding(subject: String, result: Result<String, Error>) -> Finding {
    Finding {
        subject,
        result: result.map_err(|error| format!("failed to {}", Failure::from(error))),
    }
}
