//! The findings of `check`: credentials, bucket, project, permissions, families.

use std::collections::BTreeMap;

use super::client::Cloud;
use super::error::Error;
use super::inventory::{Inventory, OwnedImage, State};
use super::promotion::heads;
use crate::base::failure::Failure;
use crate::providers::contract::Finding;

/// Permissions needed on the bucket. Without the one to list, a missing object looks forbidden.
const BUCKET: [&str; 4] = [
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
];
/// Permissions needed on images. The one to create them belongs to the project and cannot be tested here.
const IMAGE: [&str; 5] = [
    "compute.images.get",
    "compute.images.update",
    "compute.images.deprecate",
    "compute.images.setLabels",
    "compute.images.delete",
];

/// Looks at everything and changes nothing.
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
    let images = match cloud.list().await {
        Ok(list) => Inventory::of(&list).images,
        Err(error) => {
            findings.push(finding(subject, Err(error)));
            return findings;
        }
    };
    findings.push(match images.iter().max_by_key(|image| image.created) {
        Some(image) => {
            let found = cloud.permissions(&image.name, &IMAGE).await;
            permitted(subject, found.map(|found| missing(&IMAGE, &found)))
        }
        None => finding(
            subject,
            Ok("it has no image yet on which permissions could be tested".to_owned()),
        ),
    });
    findings.extend(families(&images));
    findings
}

/// One line for each family that has images.
fn families(images: &[OwnedImage]) -> Vec<Finding> {
    let heads = heads(images);
    let mut families: BTreeMap<&str, Vec<&OwnedImage>> = BTreeMap::new();
    for image in images {
        if let Some(family) = &image.family {
            families.entry(family).or_default().push(image);
        }
    }
    let finding = |(family, images): (&str, Vec<&OwnedImage>)| {
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
