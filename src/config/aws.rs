//! `[consumer_config.aws]`: disks as AMIs in every region.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Section;
use super::environment::Environment;
use super::problem::Problem;
use super::reader::{Table, Value};
use crate::model::target::{self, Rules};

/// Where AMIs go and how they look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aws {
    /// `publish_amqp_messages`: send notifications. Default: true.
    pub publish_amqp_messages: bool,
    /// `base_region`: the region of the bucket, where the snapshot is made first.
    pub base_region: String,
    /// `ami_regions`: where users want images, in the order of the file. May name the base region
    /// or leave it out; see [`Aws::regions`].
    pub ami_regions: Vec<String>,
    /// `ami_volume_dev_name`: root device, such as `/dev/sda1`.
    pub ami_volume_dev_name: String,
    /// `ami_volume_type`: type of the root volume.
    pub ami_volume_type: String,
    /// `snapshot_method` and the keys that go with it.
    pub snapshot_method: SnapshotMethod,
    /// `public`: let everybody use the images. Default: true.
    pub public: bool,
    /// `tags`: put on every image and snapshot beside those of the program. Default: none.
    pub tags: BTreeMap<String, String>,
    /// `boot_mode`: one word for all architectures, or a table by architecture.
    pub boot_mode: BootModes,
    /// `imds_support`. Default: `"v2.0"`.
    pub imds_support: ImdsSupport,
    /// `copy_concurrency`: snapshot copies in flight for each destination region. Default: 5, the
    /// limit of old accounts; new ones have 20.
    pub copy_concurrency: usize,
}

/// How the bytes of a disk become a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotMethod {
    /// `"s3-import"`: an object in a bucket, imported by AWS.
    S3Import {
        /// `s3_bucket_name`: in the base region.
        bucket: String,
        /// `import_role_name`: the role that AWS reads the bucket with. Default: `vmimport`.
        role: String,
    },
    /// `"ebs-direct"`: blocks written into the snapshot; needs no bucket.
    EbsDirect {
        /// `ebs_requests`: blocks in flight. Default: 64.
        requests: usize,
        /// `ebs_all_regions`: write to every region while decoding once, instead of copying the
        /// snapshot afterwards. Default: false.
        all_regions: bool,
    },
}

/// How an image boots, by architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootModes {
    /// Default: UEFI preferred.
    pub x86_64: BootMode,
    /// Always UEFI: EC2 knows nothing else on this architecture.
    pub aarch64: BootMode,
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ami-boot.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootMode {
    /// `"legacy-bios"`
    LegacyBios,
    /// `"uefi"`
    Uefi,
    /// `"uefi-preferred"`
    UefiPreferred,
}

impl BootMode {
    /// The word of the EC2 API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LegacyBios => "legacy-bios",
            Self::Uefi => "uefi",
            Self::UefiPreferred => "uefi-preferred",
        }
    }
}

/// Which versions of the instance metadata service instances of the image offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImdsSupport {
    /// `"v2.0"`: only version 2, as Fedora decided in
    /// <https://fedoraproject.org/wiki/Changes/CloudEC2IMDSv2Only>.
    V2,
    /// `"optional"`: the image says nothing, the account's default decides.
    Optional,
}

const BOOT_MODES: [(&str, BootMode); 3] = [
    ("legacy-bios", BootMode::LegacyBios),
    ("uefi", BootMode::Uefi),
    ("uefi-preferred", BootMode::UefiPreferred),
];

impl Section for Aws {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn publish_amqp_messages(&self) -> bool {
        self.publish_amqp_messages
    }

    fn locations(&self) -> Vec<String> {
        self.regions()
    }

    fn rules(&self) -> Box<dyn Rules> {
        Box::new(target::aws::AmiRules)
    }

    fn check(&self, env: &Environment, file: &Path) -> Vec<Problem> {
        self.check_environment(env, file)
    }
}

impl Aws {
    /// Every region an image goes to: the base region first, then the others as configured. This
    /// is the order of the notification.
    pub fn regions(&self) -> Vec<String> {
        let others = self.ami_regions.iter();
        let others = others.filter(|region| **region != self.base_region);
        [&self.base_region].into_iter().chain(others).cloned().collect()
    }

    /// The boot mode of an architecture, by Fedora's name of it.
    pub fn boot_mode(&self, architecture: &str) -> BootMode {
        match architecture {
            "aarch64" => self.boot_mode.aarch64,
            _ => self.boot_mode.x86_64,
        }
    }

    pub(super) fn read(table: &Table<'_>) -> Option<Self> {
        let publish_amqp_messages = table.optional("publish_amqp_messages", true, Value::boolean);
        let base_region = table.required("base_region", region);
        let ami_regions = table.required("ami_regions", regions);
        let ami_volume_dev_name = table.required("ami_volume_dev_name", device);
        let ami_volume_type = table.required("ami_volume_type", volume_type);
        let snapshot_method = snapshot_method(table);
        let public = table.optional("public", true, Value::boolean);
        let extra_tags = table.optional("tags", BTreeMap::new(), tags);
        let modes = table.optional("boot_mode", BootModes::default(), BootModes::read);
        let imds_support = table.optional("imds_support", ImdsSupport::V2, |value| {
            value.one_of(&[("v2.0", ImdsSupport::V2), ("optional", ImdsSupport::Optional)])
        });
        let copy_concurrency = table.optional("copy_concurrency", 5, |value| value.integer(1..=i64::MAX));
        Some(Self {
            publish_amqp_messages: publish_amqp_messages?,
            base_region: base_region?,
            ami_regions: ami_regions?,
            ami_volume_dev_name: ami_volume_dev_name?,
            ami_volume_type: ami_volume_type?,
            snapshot_method: snapshot_method?,
            public: public?,
            tags: extra_tags?,
            boot_mode: modes?,
            imds_support: imds_support?,
            copy_concurrency: copy_concurrency?,
        })
    }

    /// Looks for credentials where the SDK looks, except on the instance itself: the program asks
    /// no instance metadata.
    pub(super) fn check_environment(&self, env: &Environment, file: &Path) -> Vec<Problem> {
        let problem = |text: &str| vec![Problem::outside(file, "consumer_config.aws", text)];
        let has = |name| env.get(name).is_some();
        match (has("AWS_ACCESS_KEY_ID"), has("AWS_SECRET_ACCESS_KEY")) {
            (true, true) => return Vec::new(),
            (true, false) => {
                return problem("AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not");
            }
            (false, true) => {
                return problem("AWS_SECRET_ACCESS_KEY is set but AWS_ACCESS_KEY_ID is not");
            }
            (false, false) => {}
        }
        let web_identity = has("AWS_WEB_IDENTITY_TOKEN_FILE") && has("AWS_ROLE_ARN");
        let container = has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || has("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        if web_identity || container || shared_files_exist(env) {
            return Vec::new();
        }
        problem(
            "no AWS credentials in the environment: set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with a credentials file, or \
             AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or \
             AWS_CONTAINER_CREDENTIALS_FULL_URI",
        )
    }
}

impl Default for BootModes {
    fn default() -> Self {
        Self {
            x86_64: BootMode::UefiPreferred,
            aarch64: BootMode::Uefi,
        }
    }
}

impl BootModes {
    fn read(value: &Value<'_>) -> Option<Self> {
        let default = Self::default();
        let modes = if value.raw().is_table() {
            value.table(|table| {
                let x86_64 = table.optional("x86_64", default.x86_64, |v| v.one_of(&BOOT_MODES));
                let aarch64 = table.optional("aarch64", default.aarch64, |v| v.one_of(&BOOT_MODES));
                Some(Self {
                    x86_64: x86_64?,
                    aarch64: aarch64?,
                })
            })?
        } else {
            let mode = value.one_of(&BOOT_MODES)?;
            Self {
                x86_64: mode,
                aarch64: mode,
            }
        };
        if modes.aarch64 != BootMode::Uefi {
            return value.refuse(
                "aarch64 boots with \"uefi\" only; \
                 for the other architecture write { x86_64 = \"...\" }",
            );
        }
        Some(modes)
    }
}

/// Keys of the other method are accepted, so that a file can change method by one word.
fn snapshot_method(table: &Table<'_>) -> Option<SnapshotMethod> {
    let ebs_direct = table.optional("snapshot_method", false, |value| {
        value.one_of(&[("s3-import", false), ("ebs-direct", true)])
    });
    let role = table.optional("import_role_name", "vmimport".into(), Value::filled);
    let requests = table.optional("ebs_requests", 64, |value| value.integer(1..=i64::MAX));
    let all_regions = table.optional("ebs_all_regions", false, Value::boolean);
    let bucket = match ebs_direct {
        Some(false) => table.required("s3_bucket_name", bucket),
        _ => table.optional("s3_bucket_name", String::new(), bucket),
    };
    let (bucket, role, requests, all_regions) = (bucket?, role?, requests?, all_regions?);
    Some(if ebs_direct? {
        SnapshotMethod::EbsDirect { requests, all_regions }
    } else {
        SnapshotMethod::S3Import { bucket, role }
    })
}

fn region(value: &Value<'_>) -> Option<String> {
    let fits = |text: &str| {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        text.chars().all(letters) && text.contains('-') && text.ends_with(|c: char| c.is_ascii_digit())
    };
    value.matching(fits, "a region such as \"us-east-1\"")
}

fn regions(value: &Value<'_>) -> Option<Vec<String>> {
    let regions = value.some(region)?;
    for (index, region) in regions.iter().enumerate() {
        if regions[..index].contains(region) {
            return value.refuse(format!("names \"{region}\" twice"));
        }
    }
    Some(regions)
}

fn device(value: &Value<'_>) -> Option<String> {
    let fits = |text: &str| text.len() > "/dev/".len() && text.starts_with("/dev/");
    value.matching(fits, "a device such as \"/dev/sda1\"")
}

/// Types a root volume can have without a stated number of operations per second.
fn volume_type(value: &Value<'_>) -> Option<String> {
    let types = ["gp3", "gp2", "standard"].map(|name| (name, name));
    value.one_of(&types).map(str::to_owned)
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>
fn bucket(value: &Value<'_>) -> Option<String> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
    let fits = |text: &str| (3..=63).contains(&text.len()) && text.chars().all(letters);
    value.matching(
        fits,
        "a bucket name (3 to 63 lower-case letters, digits, dots, hyphens)",
    )
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>
fn tags(value: &Value<'_>) -> Option<BTreeMap<String, String>> {
    let tags = value.free_table()?.all().into_iter().map(|(name, value)| {
        if name.is_empty() || name.chars().count() > 128 || name.starts_with("aws:") {
            return value.refuse("a tag's name has 1 to 128 characters and no prefix \"aws:\"");
        }
        let text = value.string()?;
        if text.chars().count() > 256 {
            return value.refuse("a tag's value has at most 256 characters");
        }
        Some((name.to_owned(), text))
    });
    let tags: Vec<_> = tags.collect();
    tags.into_iter().collect()
}

/// The SDK's shared files, at their usual places or where variables say.
fn shared_files_exist(env: &Environment) -> bool {
    let home = |name: &str| env.get("HOME").map(|home| Path::new(home).join(".aws").join(name));
    let file = |variable, name| env.get(variable).map(Into::into).or_else(|| home(name));
    [
        file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        file("AWS_CONFIG_FILE", "config"),
    ]
    .into_iter()
    .flatten()
    .any(|path| fs::metadata(path).is_ok_and(|metadata| metadata.is_file()))
}
