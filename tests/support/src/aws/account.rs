//! The account around it all: the import role and the quotas.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    ACCOUNT,
    refusal::{Refusal, Result},
    request::Parameters,
    settings::Settings,
    xml::Xml,
};

/// Quota of public images. <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-resource-limits.html>
const PUBLIC_IMAGES: &str = "L-0E3CBAB9";

/// IAM.
pub(super) fn query(settings: &Settings, action: &str, mut parameters: Parameters) -> Result<String> {
    match action {
        "GetRole" => {
            let name = parameters.required("RoleName")?;
            parameters.finish()?;
            if settings.import_role.as_ref() != Some(&name) {
                let message = format!("the role with name {name} cannot be found");
                return Err(Refusal::new("NoSuchEntity", message).status(StatusCode::NOT_FOUND));
            }
            Ok(role(&name).into_query(action, "https://iam.amazonaws.com/doc/2010-05-08/"))
        }
        _ => {
            let message = format!("could not find the operation {action}");
            Err(Refusal::new("InvalidAction", message))
        }
    }
}

fn role(name: &str) -> Xml {
    let trust = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": {"Service": "vmie.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:Externalid": "vmimport"}},
        }],
    });
    // The API gives the document URL-encoded.
    let trust: String = url::form_urlencoded::byte_serialize(trust.to_string().as_bytes()).collect();
    let mut answer = Xml::default();
    answer.element("Role", |role| {
        role.text("Path", "/")
            .text("RoleName", name)
            .text("RoleId", "AROACKCEVSQ6C2EXAMPLE")
            .text("Arn", format!("arn:aws:iam::{ACCOUNT}:role/{name}"))
            .text("CreateDate", "2024-01-01T00:00:00Z")
            .text("AssumeRolePolicyDocument", trust);
    });
    answer
}

/// Service Quotas.
pub(super) fn quota(settings: &Settings, region: &str, action: &str, request: &Value) -> Result<Value> {
    if action != "GetServiceQuota" {
        return Err(Refusal::new(
            "UnknownOperationException",
            format!("unknown operation {action}"),
        ));
    }
    if request["ServiceCode"] != "ec2" || request["QuotaCode"] != PUBLIC_IMAGES {
        return Err(Refusal::new(
            "NoSuchResourceException",
            "the request failed because the quota does not exist",
        ));
    }
    Ok(json!({"Quota": {
        "ServiceCode": "ec2",
        "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "QuotaArn": format!("arn:aws:servicequotas:{region}:{ACCOUNT}:ec2/{PUBLIC_IMAGES}"),
        "QuotaCode": PUBLIC_IMAGES,
        "QuotaName": "Public AMIs",
        "Value": settings.public_images as f64,
        "Unit": "None",
        "Adjustable": true,
        "GlobalQuota": false,
    }}))
}
