//! The message package accepts what it should and refuses the rest.

use anyhow::Result;
use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use serde_json::{Value, json};

fn published() -> Value {
    json!({
        "id": "b2c672cb-d867-4f5e-99a8-d36567bd2658",
        "topic": "org.fedoraproject.prod.fedora_image_uploader.published.v1.aws.beta.Cloud_Base.x86_64",
        "headers": {
            "fedora_messaging_schema": "fedora_image_uploader.published.v1.aws",
            "fedora_messaging_schema_package": "fedora_image_uploader_messages",
            "fedora_messaging_severity": 20,
            "sent-at": "2025-03-12T12:40:03+00:00",
        },
        "body": {
            "architecture": "x86_64",
            "compose_id": "Fedora-42-20250312.0",
            "image_name": "Fedora-Cloud-Base-AmazonEC2.x86_64-42-Prerelease-1.4",
            "regions": {"us-east-1": "ami-0d7420abccfd45e95"},
            "release": 42,
            "subvariant": "Cloud_Base",
        },
        "queue": null,
        "priority": 0,
    })
}

#[tokio::test]
async fn valid_message_is_described() -> Result<()> {
    let described = FedoraMessaging::new()?.validate(&[published()]).await?;
    assert_eq!(described.len(), 1);
    assert_eq!(described[0].class, "AwsPublishedV1");
    assert_eq!(described[0].severity, 20);
    assert!(described[0].summary.contains("Fedora-42-20250312.0"), "{described:?}");
    Ok(())
}

#[tokio::test]
async fn bad_messages_are_refused() -> Result<()> {
    let client = FedoraMessaging::new()?;
    let mut wrong_type = published();
    wrong_type["body"]["release"] = json!("42");
    let mut missing = published();
    missing["body"] = json!({"architecture": "x86_64"});
    let mut unknown = published();
    unknown["headers"]["fedora_messaging_schema"] = json!("fedora_image_uploader.published.v9.aws");
    let mut plain = published();
    plain["headers"]["fedora_messaging_schema"] = json!("base.message");
    for (bad, reason) in [
        (wrong_type, "is not of type 'integer'"),
        (missing, "is a required property"),
        (unknown, "unknown schema"),
        (plain, "unknown schema"),
    ] {
        let Err(error) = client.validate(&[published(), bad]).await else {
            panic!("accepted: {reason}");
        };
        assert!(format!("{error:#}").contains(reason), "{error:#}");
    }
    Ok(())
}
