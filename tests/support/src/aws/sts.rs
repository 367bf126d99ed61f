//! STS and a container's credentials: who calls, and keys for a session of a role.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde_json::json;

use super::{
    ACCOUNT, CONTAINER_TOKEN, ROLE_ARN, SESSION_KEY, SESSION_SECRET, SESSION_TOKEN, WEB_IDENTITY_TOKEN,
    refusal::{Refusal, Result},
    request::Parameters,
    settings::Settings,
    xml::Xml,
};

/// The id of the user behind the lasting access key.
const USER: &str = "AIDACKCEVSQ6C2EXAMPLE";
/// The id of the role that sessions have.
const ROLE: &str = "AROACKCEVSQ6C2EXAMPLE";

/// The one action that is not signed: its token says who calls.
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
pub(super) const UNSIGNED: &str = "AssumeRoleWithWebIdentity";

/// Carries out one call. `caller` is the ARN that the request was signed for.
pub(super) fn query(settings: &Settings, caller: &str, action: &str, mut parameters: Parameters) -> Result<String> {
    let mut answer = Xml::default();
    match action {
        "GetCallerIdentity" => {
            parameters.finish()?;
            answer.text("Arn", caller).text("UserId", USER).text("Account", ACCOUNT);
        }
        "AssumeRole" | UNSIGNED => {
            let role = parameters.required("RoleArn")?;
            let session = parameters.required("RoleSessionName")?;
            parameters.number("DurationSeconds")?;
            if action == UNSIGNED && parameters.required("WebIdentityToken")? != WEB_IDENTITY_TOKEN {
                let message = "No OpenIDConnect provider found in your account for the issuer of the token";
                return Err(Refusal::new("InvalidIdentityToken", message));
            }
            parameters.finish()?;
            if role != ROLE_ARN {
                let message = format!("User: {caller} is not authorized to perform: sts:{action} on resource: {role}");
                return Err(Refusal::new("AccessDenied", message).status(StatusCode::FORBIDDEN));
            }
            answer
                .element("Credentials", |keys| {
                    keys.text("AccessKeyId", SESSION_KEY)
                        .text("SecretAccessKey", SESSION_SECRET)
                        .text("SessionToken", SESSION_TOKEN)
                        .text("Expiration", expiration(settings.session));
                })
                .element("AssumedRoleUser", |user| {
                    user.text("Arn", format!("arn:aws:sts::{ACCOUNT}:assumed-role/uploader/{session}"))
                        .text("AssumedRoleId", format!("{ROLE}:{session}"));
                });
        }
        _ => {
            let message = format!("could not find the operation {action}");
            return Err(Refusal::new("InvalidAction", message));
        }
    }
    Ok(answer.into_query(action, "https://sts.amazonaws.com/doc/2011-06-15/"))
}

/// The credentials that an agent beside a container gives out.
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
pub(super) fn container(settings: &Settings, headers: &HeaderMap) -> Response {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if token != Some(CONTAINER_TOKEN) {
        let body = json!({"code": "AccessDenied", "message": "the authorization token is wrong"});
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    }
    Json(json!({
        "AccessKeyId": SESSION_KEY,
        "SecretAccessKey": SESSION_SECRET,
        "Token": SESSION_TOKEN,
        "Expiration": expiration(settings.session),
        "RoleArn": ROLE_ARN,
    }))
    .into_response()
}

fn expiration(session: Duration) -> String {
    let end = Timestamp::now() + session;
    end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
