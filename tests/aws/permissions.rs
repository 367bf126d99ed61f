//! The policy that operators are given: all that the program does, and nothing else.

use std::collections::BTreeSet;

use cloud_image_uploader_test_support::aws::Call;
use cloud_image_uploader_test_support::permissions::{Need, differences};
use serde_json::Value;

use crate::world::*;

const EC2: &str = "https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html";
const EBS: &str =
    "https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonelasticblockstore.html";
const IAM: &str =
    "https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsidentityandaccessmanagementiam.html";
const QUOTAS: &str = "https://docs.aws.amazon.com/service-authorization/latest/reference/list_servicequotas.html";
const STS: &str = "https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html";
const S3: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html";
/// Parts and their lists have a page of their own.
const PARTS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html#mpuAndPermissions";
/// Without a permission to list, what is missing looks forbidden.
const HEAD: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html";
/// A call that creates a tagged resource needs this permission too.
const TAGS: &str = "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html";

const TABLE: &[Need] = &[
    Need("ebs:CompleteSnapshot", &["ebs:CompleteSnapshot"], EBS),
    Need("ebs:PutSnapshotBlock", &["ebs:PutSnapshotBlock"], EBS),
    Need("ebs:StartSnapshot", &["ebs:StartSnapshot"], EBS),
    Need("ec2:CopySnapshot", &["ec2:CopySnapshot", "ec2:CreateTags"], TAGS),
    Need("ec2:CreateTags", &["ec2:CreateTags"], EC2),
    Need("ec2:DeleteSnapshot", &["ec2:DeleteSnapshot"], EC2),
    Need("ec2:DescribeImages", &["ec2:DescribeImages"], EC2),
    Need(
        "ec2:DescribeImportSnapshotTasks",
        &["ec2:DescribeImportSnapshotTasks"],
        EC2,
    ),
    Need("ec2:DescribeRegions", &["ec2:DescribeRegions"], EC2),
    Need("ec2:DescribeSnapshotAttribute", &["ec2:DescribeSnapshotAttribute"], EC2),
    Need("ec2:DescribeSnapshots", &["ec2:DescribeSnapshots"], EC2),
    Need("ec2:EnableImageDeprecation", &["ec2:EnableImageDeprecation"], EC2),
    Need(
        "ec2:GetImageBlockPublicAccessState",
        &["ec2:GetImageBlockPublicAccessState"],
        EC2,
    ),
    Need(
        "ec2:GetSnapshotBlockPublicAccessState",
        &["ec2:GetSnapshotBlockPublicAccessState"],
        EC2,
    ),
    Need("ec2:ImportSnapshot", &["ec2:ImportSnapshot", "ec2:CreateTags"], TAGS),
    Need("ec2:ModifyImageAttribute", &["ec2:ModifyImageAttribute"], EC2),
    Need("ec2:ModifySnapshotAttribute", &["ec2:ModifySnapshotAttribute"], EC2),
    Need("ec2:RegisterImage", &["ec2:RegisterImage", "ec2:CreateTags"], TAGS),
    Need("iam:GetRole", &["iam:GetRole"], IAM),
    Need("s3:AbortMultipartUpload", &["s3:AbortMultipartUpload"], PARTS),
    Need("s3:CompleteMultipartUpload", &["s3:PutObject"], PARTS),
    Need("s3:CreateMultipartUpload", &["s3:PutObject"], PARTS),
    Need("s3:DeleteObject", &["s3:DeleteObject"], S3),
    Need("s3:HeadBucket", &["s3:ListBucket"], S3),
    Need("s3:HeadObject", &["s3:GetObject", "s3:ListBucket"], HEAD),
    Need("s3:ListMultipartUploads", &["s3:ListBucketMultipartUploads"], PARTS),
    Need("s3:ListParts", &["s3:ListMultipartUploadParts"], PARTS),
    Need("s3:UploadPart", &["s3:PutObject"], PARTS),
    Need(
        "servicequotas:GetServiceQuota",
        &["servicequotas:GetServiceQuota"],
        QUOTAS,
    ),
    Need("sts:GetCallerIdentity", &[], STS),
];

/// Everything the program ever does: `check`, a publication and its repetition by each method, and one of a corrupted image,
/// of which nothing may stay.
async fn calls() -> Vec<Call> {
    let mut calls = Vec::new();
    for method in Method::ALL {
        let world = World::small(&TWO, method).await;
        let exit = world.program(&["check"]).run(LONG).await.unwrap();
        assert!(!exit.stdout.contains("failed: region"), "{}", exit.stdout);
        world.published().await;
        world.published().await;
        calls.extend(world.cloud.calls());
        let corrupted = row("x86_64", &disk("x86_64")).wrong_checksum();
        let world = World::with(&TWO, method, vec![corrupted]).await;
        world.publish().await;
        calls.extend(world.cloud.calls());
    }
    calls
}

fn policy() -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/aws/policy.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// A list of one may be written without brackets.
fn list(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
        value => value.as_str().into_iter().collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_permits_what_is_called_and_nothing_else() {
    let (calls, policy) = (calls().await, policy());
    let names: BTreeSet<_> = calls
        .iter()
        .map(|call| format!("{}:{}", call.service, call.action))
        .collect();
    let statements = policy["Statement"].as_array().unwrap();
    let granted = statements.iter().flat_map(|statement| list(&statement["Action"]));
    let differences = differences(TABLE, names.iter().map(String::as_str), granted);
    assert_eq!(differences, Vec::<String>::new());

    // Objects are permitted below one prefix only.
    let objects = format!("arn:aws:s3:::{BUCKET}/cloud-image-uploader/*");
    let resources: Vec<_> = statements
        .iter()
        .flat_map(|statement| list(&statement["Resource"]))
        .collect();
    assert!(resources.contains(&objects.as_str()), "{resources:?}");
    let keys: Vec<_> = calls.iter().filter_map(|call| call.parameters.get("Key")).collect();
    assert!(!keys.is_empty());
    assert!(
        keys.iter().all(|key| key.starts_with("cloud-image-uploader/")),
        "{keys:?}"
    );
}

/// As AWS asks for it, for the bucket of the policy.
#[test]
fn the_role_of_imports_is_that_of_the_program() {
    let file = |name: &str| -> Value {
        let file = format!("{}/deploy/aws/{name}", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    };
    let trust = &file("vmimport-trust.json")["Statement"][0];
    assert_eq!(trust["Principal"]["Service"], "vmie.amazonaws.com");
    assert_eq!(trust["Condition"]["StringEquals"]["sts:ExternalId"], "vmimport");
    let reads = &file("vmimport-policy.json")["Statement"][0];
    assert!(
        list(&reads["Resource"]).contains(&format!("arn:aws:s3:::{BUCKET}").as_str()),
        "{reads}"
    );
}
