//! `[consumer_config.gcp]`: tarballs as Compute Engine images.

use std::fs;
use std::path::Path;
use std::time::Duration;

use url::Url;

use super::Section;
use super::environment::Environment;
use super::problem::Problem;
use super::reader::{Table, Value};
use crate::model::target::{self, Rules};

/// Names the file that says who the program is to Google.
pub const CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where images go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gcp {
    /// `publish_amqp_messages`: send notifications. Default: true.
    pub publish_amqp_messages: bool,
    /// `project`: the project that owns the images.
    pub project: String,
    /// `bucket_name`: where tarballs are uploaded before import.
    pub bucket_name: String,
    /// `storage_locations`: where the images are kept.
    pub storage_locations: Vec<String>,
    /// `promotion_interval`: how long the head of a family stays before the next one is promoted.
    /// Default: 14 days.
    pub promotion_interval: Duration,
    /// `promotion_minimum_age`: how long an image must have been there to be promoted. Default:
    /// 1 day.
    pub promotion_minimum_age: Duration,
    /// `delete_deprecated_after`: how long a deprecated image is kept. Default: 14 days.
    pub delete_deprecated_after: Duration,
    /// `clean_up_unmarked`: let the clean-up policy also retire the images of the previous service:
    /// images without the program's mark that name no other owner. Default: false.
    pub clean_up_unmarked: bool,
    /// `compute_endpoint`. Default: `https://compute.googleapis.com`.
    pub compute_endpoint: Url,
    /// `storage_endpoint`. Default: `https://storage.googleapis.com`.
    pub storage_endpoint: Url,
}

impl Section for Gcp {
    fn name(&self) -> &'static str {
        "gcp"
    }

    fn publish_amqp_messages(&self) -> bool {
        self.publish_amqp_messages
    }

    fn locations(&self) -> Vec<String> {
        self.storage_locations.clone()
    }

    fn rules(&self) -> Box<dyn Rules> {
        Box::new(target::gcp::GceRules {
            storage_locations: self.storage_locations.clone(),
        })
    }

    fn check(&self, env: &Environment, file: &Path) -> Vec<Problem> {
        self.check_environment(env, file)
    }
}

impl Gcp {
    pub(super) fn read(table: &Table<'_>) -> Option<Self> {
        let publish_amqp_messages = table.optional("publish_amqp_messages", true, Value::boolean);
        let project = table.required("project", |value| {
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
            let fits = |text: &str| text.len() >= 6 && text.chars().all(letters);
            value.matching(fits, "a project id such as \"fedora-cloud\"")
        });
        let bucket_name = table.required("bucket_name", |value| {
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
            let fits = |text: &str| (3..=222).contains(&text.len()) && text.chars().all(letters);
            value.matching(fits, "lower-case letters, digits, hyphens, underscores, dots")
        });
        let storage_locations = table.required("storage_locations", |value| value.some(Value::filled));
        let duration = |key, days| table.optional(key, days * DAY, Value::nonzero_duration);
        let promotion_interval = duration("promotion_interval", 14);
        let promotion_minimum_age = table.optional("promotion_minimum_age", DAY, Value::duration);
        let delete_deprecated_after = duration("delete_deprecated_after", 14);
        // A new image is deprecated until it is promoted.
        if let (Some(age), Some(kept)) = (promotion_minimum_age, delete_deprecated_after)
            && age >= kept
        {
            table.note(
                "delete_deprecated_after must be longer than promotion_minimum_age, or no image is ever promoted",
            );
        }
        let clean_up_unmarked = table.optional("clean_up_unmarked", false, Value::boolean);
        let endpoint = |key, default: &str| match table.get(key) {
            Some(value) => value.endpoint(),
            None => Url::parse(default).ok(),
        };
        let compute_endpoint = endpoint("compute_endpoint", "https://compute.googleapis.com");
        let storage_endpoint = endpoint("storage_endpoint", "https://storage.googleapis.com");
        Some(Self {
            publish_amqp_messages: publish_amqp_messages?,
            project: project?,
            bucket_name: bucket_name?,
            storage_locations: storage_locations?,
            promotion_interval: promotion_interval?,
            promotion_minimum_age: promotion_minimum_age?,
            delete_deprecated_after: delete_deprecated_after?,
            clean_up_unmarked: clean_up_unmarked?,
            compute_endpoint: compute_endpoint?,
            storage_endpoint: storage_endpoint?,
        })
    }

    /// Looks at the credentials file: there, and a JSON object that says what kind it is, which
    /// both service accounts and workload identities have.
    pub(super) fn check_environment(&self, env: &Environment, file: &Path) -> Vec<Problem> {
        let problem = |text| vec![Problem::outside(file, "consumer_config.gcp", text)];
        let Some(path) = env.get(CREDENTIALS) else {
            return problem(format!("environment variable {CREDENTIALS} is not set"));
        };
        let json = match fs::read(path) {
            Ok(json) => json,
            Err(error) => return problem(format!("{CREDENTIALS}: cannot read {path}: {error}")),
        };
        // The parser's own error is left out: it may quote the key.
        let credentials: Option<serde_json::Value> = serde_json::from_slice(&json).ok();
        match credentials.as_ref().and_then(|json| json.get("type")) {
            Some(_) => Vec::new(),
            None => problem(format!(
                "{CREDENTIALS}: {path} is not a JSON credentials file with a \"type\""
            )),
        }
    }
}
