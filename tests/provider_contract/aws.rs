//! An account with two regions, so that something is copied; by either way to make a snapshot.

use std::path::PathBuf;
use std::sync::OnceLock;

use cloud_image_uploader_test_support::archive::{Row, noise, sha256, xz_blocks};
use cloud_image_uploader_test_support::aws::Cloud;
use cloud_image_uploader_test_support::front::{self, Front};
use cloud_image_uploader_test_support::program::Program;

use crate::world::{After, Call, Found, World, changes, put, reads, write};

const COMPOSE: &str = "Fedora-Cloud-43-20260305.0";
const BUCKET: &str = "fedora-s3-bucket-fedimg";
const REGIONS: [&str; 2] = ["us-east-1", "eu-west-1"];

/// From an object in a bucket.
pub type ByImport = Account<true>;
/// Block by block.
pub type ByBlocks = Account<false>;

pub struct Account<const IMPORT: bool> {
    cloud: Cloud,
    front: Front,
    s3: String,
}

const IMPORT: &[Call] = &[
    reads("look for the image"),
    reads("look for snapshots"),
    reads("look for imports"),
    reads("HeadObject"),
    reads("ListMultipartUploads"),
    changes("CreateMultipartUpload"),
    changes("AbortMultipartUpload")
        .after(After::Lost("CreateMultipartUpload"))
        .tidies(),
    reads("ListParts"),
    changes("UploadPart"),
    changes("CompleteMultipartUpload"),
    changes("ImportSnapshot"),
    reads("follow the import"),
    changes("DeleteObject").tidies(),
    changes("CreateTags"),
    reads("read a snapshot"),
    changes("CopySnapshot"),
    changes("RegisterImage"),
    reads("read the image"),
    changes("EnableImageDeprecation"),
    reads("GetImageBlockPublicAccessState"),
    reads("DescribeSnapshotAttribute"),
    changes("ModifySnapshotAttribute"),
    changes("ModifyImageAttribute"),
];

const BLOCKS: &[Call] = &[
    reads("look for the image"),
    reads("look for snapshots"),
    changes("StartSnapshot"),
    changes("PutSnapshotBlock"),
    changes("CompleteSnapshot"),
    reads("read a snapshot"),
    changes("CopySnapshot"),
    changes("RegisterImage"),
    reads("read the image"),
    changes("EnableImageDeprecation"),
    reads("GetImageBlockPublicAccessState"),
    reads("DescribeSnapshotAttribute"),
    changes("ModifySnapshotAttribute"),
    changes("ModifyImageAttribute"),
];

/// EC2 is asked by forms, EBS direct and S3 by paths.
fn name(call: &front::Call<'_>) -> Option<&'static str> {
    let has = |key: &str| call.query.split('&').any(|pair| pair.split('=').next() == Some(key));
    if call.path.starts_with(&format!("/{BUCKET}")) {
        return Some(match (call.method.as_str(), has("uploadId")) {
            ("HEAD", _) => "HeadObject",
            ("GET", false) if has("uploads") => "ListMultipartUploads",
            ("GET", true) => "ListParts",
            ("POST", false) if has("uploads") => "CreateMultipartUpload",
            ("PUT", true) => "UploadPart",
            ("POST", true) => "CompleteMultipartUpload",
            ("DELETE", true) => "AbortMultipartUpload",
            ("DELETE", false) => "DeleteObject",
            _ => return None,
        });
    }
    match (call.method.as_str(), call.path) {
        ("POST", "/snapshots") => return Some("StartSnapshot"),
        ("POST", path) if path.starts_with("/snapshots/completion/") => return Some("CompleteSnapshot"),
        ("PUT", path) if path.contains("/blocks/") => return Some("PutSnapshotBlock"),
        _ => {}
    }
    let form = std::str::from_utf8(call.body).ok()?;
    let value = |key: &str| {
        form.split('&')
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    };
    Some(match value("Action")? {
        "DescribeImages" if value("ImageId.1").is_some() => "read the image",
        "DescribeImages" => "look for the image",
        "DescribeSnapshots" if value("SnapshotId.1").is_some() => "read a snapshot",
        "DescribeSnapshots" => "look for snapshots",
        "DescribeImportSnapshotTasks" if value("ImportTaskId.1").is_some() => "follow the import",
        "DescribeImportSnapshotTasks" => "look for imports",
        "ImportSnapshot" => "ImportSnapshot",
        "CreateTags" => "CreateTags",
        "CopySnapshot" => "CopySnapshot",
        "DeleteSnapshot" => "DeleteSnapshot",
        "RegisterImage" => "RegisterImage",
        "GetImageBlockPublicAccessState" => "GetImageBlockPublicAccessState",
        "DescribeSnapshotAttribute" => "DescribeSnapshotAttribute",
        "EnableImageDeprecation" => "EnableImageDeprecation",
        "ModifySnapshotAttribute" => "ModifySnapshotAttribute",
        "ModifyImageAttribute" => "ModifyImageAttribute",
        _ => return None,
    })
}

/// The disk of the `number`th compose: two parts of an upload, most of them zeros, and an end in the middle of a block.
pub fn row(number: u64) -> Row {
    let mut disk = noise(2 * number + 1, 600_000);
    disk.resize(9 << 20, 0);
    disk.extend(noise(2 * number + 2, 1024));
    let file = "Fedora-Cloud-Base-AmazonEC2.x86_64.raw.xz";
    let disk = xz_blocks(&disk, 1 << 20);
    Row::new("raw-xz", "raw.xz", "Cloud_Base", "x86_64", file, disk)
}

impl<const BY_IMPORT: bool> World for Account<BY_IMPORT> {
    const NAME: &'static str = if BY_IMPORT { "aws, import" } else { "aws, blocks" };
    const CALLS: &'static [Call] = if BY_IMPORT { IMPORT } else { BLOCKS };

    async fn start() -> Self {
        let cloud = Cloud::start(&REGIONS).await.unwrap();
        cloud.create_bucket(REGIONS[0], BUCKET).await.unwrap();
        let mut front = Front::start(&cloud.endpoint(), name).await.unwrap();
        let s3 = front
            .also(&cloud.s3_endpoint(), reqwest::Client::builder())
            .await
            .unwrap();
        Self { cloud, front, s3 }
    }

    fn front(&self) -> &Front {
        &self.front
    }

    fn sections(&self, announces: bool) -> String {
        let method = match BY_IMPORT {
            true => format!("snapshot_method = \"s3-import\"\ns3_bucket_name = \"{BUCKET}\""),
            false => "snapshot_method = \"ebs-direct\"".to_owned(),
        };
        format!(
            "[consumer_config.aws]\npublish_amqp_messages = {announces}\nbase_region = \"{}\"\nami_regions = {REGIONS:?}\n\
             ami_volume_dev_name = \"/dev/sda1\"\nami_volume_type = \"gp3\"\n{method}\n",
            REGIONS[0]
        )
    }

    fn lead(&self, program: Program) -> Program {
        let environment = self.cloud.environment().into_iter();
        environment.fold(program, |program, (name, value)| match name.as_str() {
            "AWS_ENDPOINT_URL_S3" => program.env(&name, &self.s3),
            endpoint if endpoint.starts_with("AWS_ENDPOINT_URL") => program.env(endpoint, self.front.url()),
            other => program.env(other, value),
        })
    }

    async fn compose(&self) -> (&'static str, String) {
        static FOLDER: OnceLock<PathBuf> = OnceLock::new();
        let folder = FOLDER.get_or_init(|| write("aws", COMPOSE, row(0)));
        (COMPOSE, folder.display().to_string())
    }

    /// Images and snapshots, less their ids, and whatever belongs to none.
    async fn found(&self) -> Found {
        let mut found = Found::new();
        for region in REGIONS {
            for image in self.cloud.images(region) {
                let devices: Vec<_> = image
                    .devices
                    .iter()
                    .map(|device| (&device.name, device.size, &device.kind))
                    .collect();
                let (tags, permissions, deprecated) = (&image.tags, &image.permissions, image.deprecated);
                let value = format!("{:?} {devices:?} {tags:?} {permissions:?} {deprecated:?}", image.state);
                put(&mut found, format!("{region}: image {}", image.name), value);
            }
            for snapshot in self.cloud.snapshots(region) {
                let blocks: Vec<_> = snapshot
                    .blocks
                    .iter()
                    .map(|(index, block)| (index, sha256(block)))
                    .collect();
                let (state, permissions) = (&snapshot.state, &snapshot.permissions);
                let value = format!("{state:?} {} GiB {permissions:?} {blocks:?}", snapshot.size);
                put(&mut found, format!("{region}: snapshot {:?}", snapshot.tags), value);
            }
        }
        for leftover in self.cloud.leftovers() {
            put(&mut found, leftover, String::new());
        }
        found
    }
}
