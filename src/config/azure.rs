//! `[consumer_config.azure]`: disks as versions in a compute gallery.

use std::path::{Path, PathBuf};

use url::Url;

use super::Section;
use super::environment::Environment;
use super::problem::Problem;
use super::reader::{Table, Value};
use crate::base::secret::Secret;
use crate::model::target::{self, Rules};

/// Where gallery versions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Azure {
    /// `publish_amqp_messages`: send notifications. Default: true.
    pub publish_amqp_messages: bool,
    /// `location`: the region of the gallery, such as `eastus`.
    pub location: String,
    /// `resource_group_name`: holds gallery and storage account.
    pub resource_group_name: String,
    /// `storage_account_name`: where disks are uploaded before import.
    pub storage_account_name: String,
    /// `storage_container_name`: the container in that account.
    pub storage_container_name: String,
    /// `gallery_name`: the gallery, made when missing.
    pub gallery_name: String,
    /// `gallery_description`: given to a gallery that is made.
    pub gallery_description: String,
    /// `target_regions`: where versions are replicated to.
    pub target_regions: Vec<TargetRegion>,
    /// `clean_up_unmarked`: let the clean-up policy also retire versions without the program's
    /// mark that name no other owner. Default: false.
    pub clean_up_unmarked: bool,
    /// `resource_manager_endpoint`. Default: `https://management.azure.com`.
    pub resource_manager_endpoint: Url,
    /// `authority_host`, without a tenant. Default: `https://login.microsoftonline.com`.
    pub authority_host: Url,
    /// `blob_endpoint`, with the account's path where the service has one. Default: the storage
    /// account's own host.
    pub blob_endpoint: Url,
}

/// A region that holds replicas of every version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRegion {
    /// `name`: as Azure's API or its portal writes it.
    pub name: String,
    /// `regional_replica_count`: 1 to 100.
    pub regional_replica_count: u32,
    /// `storage_account_type`: such as `Standard_ZRS`.
    pub storage_account_type: String,
}

/// The account, as the environment describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// `AZURE_SUBSCRIPTION_ID`
    pub subscription_id: String,
    /// `AZURE_CLIENT_ID`
    pub client_id: String,
    /// `AZURE_TENANT` or `AZURE_TENANT_ID`
    pub tenant_id: String,
    /// How to prove it.
    pub proof: Proof,
}

/// The credential that a token request sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// `AZURE_SECRET` or `AZURE_CLIENT_SECRET`. Preferred when both are given, as in Azure's SDKs.
    Secret(Secret),
    /// `AZURE_FEDERATED_TOKEN_FILE`: workload identity; the file changes while the program runs.
    TokenFile(PathBuf),
}

impl Section for Azure {
    fn name(&self) -> &'static str {
        "azure"
    }

    fn publish_amqp_messages(&self) -> bool {
        self.publish_amqp_messages
    }

    fn locations(&self) -> Vec<String> {
        self.target_regions.iter().map(|region| region.name.clone()).collect()
    }

    fn rules(&self) -> Box<dyn Rules> {
        Box::new(target::azure::GalleryRules)
    }

    fn check(&self, env: &Environment, file: &Path) -> Vec<Problem> {
        self.credentials(env, file).err().unwrap_or_default()
    }
}

impl Azure {
    pub(super) fn read(table: &Table<'_>) -> Option<Self> {
        let publish_amqp_messages = table.optional("publish_amqp_messages", true, Value::boolean);
        let location = table.required("location", Value::filled);
        let resource_group_name = table.required("resource_group_name", Value::filled);
        let storage_account_name = table.required("storage_account_name", |value| {
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            let fits = |text: &str| (3..=24).contains(&text.len()) && text.chars().all(letters);
            value.matching(fits, "3 to 24 lower-case letters and digits")
        });
        let storage_container_name = table.required("storage_container_name", |value| {
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let fits = |text: &str| (3..=63).contains(&text.len()) && text.chars().all(letters);
            value.matching(fits, "3 to 63 lower-case letters, digits, and hyphens")
        });
        let gallery_name = table.required("gallery_name", |value| {
            let letters = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
            let fits = |text: &str| (1..=80).contains(&text.len()) && text.chars().all(letters);
            value.matching(fits, "1 to 80 letters, digits, dots, and underscores")
        });
        let gallery_description = table.required("gallery_description", Value::string);
        let target_regions = table.required("target_regions", target_regions);
        let clean_up_unmarked = table.optional("clean_up_unmarked", false, Value::boolean);
        let endpoint = |key, default: &str| match table.get(key) {
            Some(value) => value.endpoint(),
            None => Url::parse(default).ok(),
        };
        let resource_manager_endpoint = endpoint("resource_manager_endpoint", "https://management.azure.com");
        let authority_host = endpoint("authority_host", "https://login.microsoftonline.com");
        let account = storage_account_name.as_deref().unwrap_or("account");
        let blob_endpoint = endpoint("blob_endpoint", &format!("https://{account}.blob.core.windows.net"));
        Some(Self {
            publish_amqp_messages: publish_amqp_messages?,
            location: location?,
            resource_group_name: resource_group_name?,
            storage_account_name: storage_account_name?,
            storage_container_name: storage_container_name?,
            gallery_name: gallery_name?,
            gallery_description: gallery_description?,
            target_regions: target_regions?,
            clean_up_unmarked: clean_up_unmarked?,
            resource_manager_endpoint: resource_manager_endpoint?,
            authority_host: authority_host?,
            blob_endpoint: blob_endpoint?,
        })
    }

    /// The account, from either set of variable names: the previous service's and the SDK's.
    ///
    /// # Errors
    ///
    /// Names every variable that is missing, or set to different values under its two names.
    pub fn credentials(&self, env: &Environment, file: &Path) -> Result<Credentials, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut one_of = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| env.get(name));
            let value = values.next();
            if let Some(value) = value
                && values.any(|other| other != value)
            {
                problems.push(format!("{} are set to different values", names.join(" and ")));
            }
            value
        };
        let subscription_id = one_of(&["AZURE_SUBSCRIPTION_ID"]);
        let client_id = one_of(&["AZURE_CLIENT_ID"]);
        let tenant_id = one_of(&["AZURE_TENANT", "AZURE_TENANT_ID"]);
        let secret = one_of(&["AZURE_SECRET", "AZURE_CLIENT_SECRET"]);
        let proof = match (secret, env.get("AZURE_FEDERATED_TOKEN_FILE")) {
            (Some(secret), _) => Some(Proof::Secret(Secret::new(secret))),
            (None, Some(path)) => Some(Proof::TokenFile(path.into())),
            (None, None) => None,
        };
        for (missing, names) in [
            (subscription_id.is_none(), "AZURE_SUBSCRIPTION_ID"),
            (client_id.is_none(), "AZURE_CLIENT_ID"),
            (tenant_id.is_none(), "AZURE_TENANT (or AZURE_TENANT_ID)"),
            (
                proof.is_none(),
                "AZURE_SECRET (or AZURE_CLIENT_SECRET, or AZURE_FEDERATED_TOKEN_FILE)",
            ),
        ] {
            if missing {
                problems.push(format!("environment variable {names} is not set"));
            }
        }
        if let Some(Proof::TokenFile(path)) = &proof
            && let Err(error) = std::fs::metadata(path)
        {
            let path = path.display();
            problems.push(format!("AZURE_FEDERATED_TOKEN_FILE: cannot read {path}: {error}"));
        }
        match (subscription_id, client_id, tenant_id, proof) {
            (Some(subscription_id), Some(client_id), Some(tenant_id), Some(proof)) if problems.is_empty() => {
                Ok(Credentials {
                    subscription_id: subscription_id.to_owned(),
                    client_id: client_id.to_owned(),
                    tenant_id: tenant_id.to_owned(),
                    proof,
                })
            }
            _ => {
                let problem = |text| Problem::outside(file, "consumer_config.azure", text);
                Err(problems.into_iter().map(problem).collect())
            }
        }
    }
}

fn target_regions(value: &Value<'_>) -> Option<Vec<TargetRegion>> {
    let regions = value.some(|item| item.table(target_region))?;
    for (index, region) in regions.iter().enumerate() {
        let same = |other: &&TargetRegion| canonical(&other.name) == canonical(&region.name);
        if let Some(other) = regions[..index].iter().find(same) {
            return value.refuse(format!(
                "names one region twice: \"{}\" and \"{}\"",
                other.name, region.name
            ));
        }
    }
    Some(regions)
}

fn target_region(table: &Table<'_>) -> Option<TargetRegion> {
    let name = table.required("name", Value::filled);
    // https://learn.microsoft.com/azure/virtual-machines/azure-compute-gallery#limits
    let count = table.required("regional_replica_count", |value| value.integer(1..=100));
    let kind = table.required("storage_account_type", |value| {
        let kinds = ["Standard_LRS", "Standard_ZRS", "Premium_LRS"];
        value.one_of(&kinds.map(|kind| (kind, kind)))
    });
    Some(TargetRegion {
        name: name?,
        regional_replica_count: count?,
        storage_account_type: kind?.to_owned(),
    })
}

/// `East US` and `eastus` are one region.
pub(crate) fn canonical(name: &str) -> String {
    name.replace(' ', "").to_lowercase()
}
