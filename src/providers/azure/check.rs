//! The reads of `check`: token, container, gallery, definitions, and role. None changes anything.

use super::blob::Container;
use super::client::ResourceManager;
use super::error::Error;
use super::gallery::{Gallery, differences};
use super::identity::{Identity, RESOURCE_MANAGER};
use crate::base::failure::Failure;
use crate::config::azure::Azure;
use crate::providers::contract::Finding;

/// The version of the API that lists a role's permissions.
const PERMISSIONS_VERSION: &str = "2022-04-01";
/// The actions that publishing and retiring need. Creating a version from a VHD
/// [takes the last two](https://learn.microsoft.com/azure/virtual-machines/azure-compute-gallery#what-rbac-permissions-are-required-to-create-an-acg-image).
const ACTIONS: [&str; 8] = [
    "Microsoft.Compute/galleries/read",
    "Microsoft.Compute/galleries/images/read",
    "Microsoft.Compute/galleries/images/write",
    "Microsoft.Compute/galleries/images/versions/read",
    "Microsoft.Compute/galleries/images/versions/write",
    "Microsoft.Compute/galleries/images/versions/delete",
    "Microsoft.Storage/storageAccounts/listKeys/action",
    "Microsoft.Storage/storageAccounts/write",
];
/// The action that creating the gallery needs.
const CREATING: &str = "Microsoft.Compute/galleries/write";

pub(super) async fn findings(
    section: &Azure,
    identity: &Identity,
    container: &Container,
    gallery: &Gallery,
    group: &str,
) -> Vec<Finding> {
    let client = &identity.credentials().client_id;
    let token = identity.token(RESOURCE_MANAGER).await;
    let token = token.map(|_| format!("accepted; {}", identity.lifetime()));
    let mut findings = vec![finding(format!("client {client}"), token)];
    // Without a token every other check would fail for the same reason.
    if findings[0].result.is_err() {
        return findings;
    }
    let account = &section.storage_account_name;
    findings.push(finding(
        format!("container {} of {account}", section.storage_container_name),
        container.check().await.map(|()| "authenticated".to_owned()),
    ));
    let name = &section.gallery_name;
    let found = gallery.look().await;
    let (exists, absent) = (matches!(found, Ok(Some(_))), matches!(found, Ok(None)));
    findings.push(finding(
        format!("gallery {name}"),
        found.map(|found| match found {
            Some(_) => "exists".to_owned(),
            None => "will be created".to_owned(),
        }),
    ));
    if exists {
        findings.push(definitions(gallery).await);
    }
    let needed: Vec<&str> = ACTIONS.into_iter().chain(absent.then_some(CREATING)).collect();
    findings.push(role(gallery.arm(), group, &section.resource_group_name, &needed).await);
    findings
}

async fn definitions(gallery: &Gallery) -> Finding {
    let subject = "image definitions".to_owned();
    let found = match gallery.definitions().await {
        Ok(found) => found,
        Err(error) => return finding(subject, Err(error)),
    };
    let ours = found.iter().filter_map(|definition| {
        let name = definition["name"].as_str()?;
        let arch = match name.strip_prefix("Fedora-Cloud-")?.rsplit('-').next()? {
            "Arm64" => "aarch64",
            _ => "x86_64",
        };
        Some((name, differences(definition, arch)))
    });
    let (mut count, mut wrong) = (0, Vec::new());
    for (name, differences) in ours {
        count += 1;
        if !differences.is_empty() {
            wrong.push(format!("{name}: {}", differences.join(", ")));
        }
    }
    Finding {
        subject,
        result: if wrong.is_empty() {
            Ok(format!("{count} of this program, all fit"))
        } else {
            Err(format!(
                "these do not fit and must be deleted first: {}",
                wrong.join("; ")
            ))
        },
    }
}

/// The role's actions on the resource group, where the role permits reading them.
async fn role(arm: &ResourceManager, group: &str, name: &str, needed: &[&str]) -> Finding {
    let subject = format!("role on resource group {name}");
    let path = format!("{group}/providers/Microsoft.Authorization/permissions");
    let what = format!("list the permissions on resource group {name}");
    let answer = match arm.get(&what, &path, &[("api-version", PERMISSIONS_VERSION)]).await {
        Ok(Some(answer)) => answer,
        Ok(None) => return finding(subject, Ok("cannot be read".to_owned())),
        Err(error) if error.status() == Some(403) => {
            return finding(subject, Ok("does not permit reading its own actions".to_owned()));
        }
        Err(error) => return finding(subject, Err(error)),
    };
    let permissions: Vec<(Vec<String>, Vec<String>)> = answer["value"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|permission| (strings(&permission["actions"]), strings(&permission["notActions"])))
        .collect();
    let permitted = |action: &str| {
        permissions.iter().any(|(actions, not)| {
            actions.iter().any(|pattern| covers(pattern, action)) && !not.iter().any(|pattern| covers(pattern, action))
        })
    };
    let missing: Vec<&str> = needed.iter().copied().filter(|action| !permitted(action)).collect();
    Finding {
        subject,
        result: if missing.is_empty() {
            Ok("permits everything that is needed".to_owned())
        } else {
            Err(format!(
                "does not permit {}; add that to the role (docs/azure.md)",
                missing.join(", ")
            ))
        },
    }
}

fn strings(list: &serde_json::Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// Actions are compared without case; `*` stands for anything.
fn covers(pattern: &str, action: &str) -> bool {
    wildmatch::WildMatch::new(&pattern.to_lowercase()).matches(&action.to_lowercase())
}

fn finding(subject: String, result: Result<String, Error>) -> Finding {
    Finding {
        subject,
        result: result.map_err(|error| format!("failed to {}", Failure::from(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_in_actions_match_anything() {
        for (pattern, covered) in [
            ("*", true),
            ("microsoft.compute/galleries/*", true),
            ("Microsoft.Compute/*/read", true),
            ("Microsoft.Compute/galleries/read", false),
            ("Microsoft.Storage/*", false),
        ] {
            let action = "Microsoft.Compute/galleries/images/read";
            assert_eq!(covers(pattern, action), covered, "{pattern}");
        }
    }
}
