//! One endpoint for EC2, EBS direct, IAM, STS and Service Quotas, distinguished by the scope of the credential.

use std::{
    collections::BTreeMap,
    future::{pending, ready},
    sync::Arc,
};

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::{
    Shared, account, auth,
    calls::Call,
    ebs,
    ec2::{self, Context},
    faults::Effect,
    lock,
    refusal::{Protocol, Refusal, Result},
    request::Parameters,
    sts,
};

/// A block and something more.
const LARGEST: usize = 1024 * 1024;

/// Where a container asks for its credentials.
pub(super) const CONTAINER: &str = "/v1/container-credentials";

type Form = BTreeMap<String, String>;

/// The call that a request makes, as far as its protocol shows it.
enum Asked {
    Form(Form),
    Ebs(ebs::Target),
    Json(Value),
}

pub(super) async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST).await else {
        return Protocol::Ec2.refuse(&Refusal::new("MalformedQueryString", "the body is cut or too large"));
    };
    if parts.uri.path() == CONTAINER {
        let settings = lock(&shared.settings).clone();
        return sts::container(&settings, &parts.headers);
    }
    // Before the service is known, the refusal is in the form of EC2.
    let verified = match is_unsigned(&parts, &body) {
        true => Ok(auth::Scope::unsigned("sts")),
        false => auth::verify(&parts, &body),
    };
    let scope = match verified {
        Ok(scope) => scope,
        Err(refusal) => {
            let protocol = auth::scope(&parts.headers).ok();
            let protocol = protocol.and_then(|scope| Protocol::of(&scope.service));
            return protocol.unwrap_or(Protocol::Ec2).refuse(&refusal);
        }
    };
    let protocol = match Protocol::of(&scope.service) {
        Some(protocol) if protocol != Protocol::S3 => protocol,
        _ => {
            let message = format!("the credential is for the service {}", scope.service);
            return Protocol::Ec2.refuse(&Refusal::new("AuthFailure", message).status(StatusCode::UNAUTHORIZED));
        }
    };
    let (call, asked) = match read(protocol, &parts, &body) {
        Ok((action, parameters, raw, asked)) => {
            let call = Call {
                service: scope.service.clone(),
                action,
                region: scope.region.clone(),
                parameters,
                status: 0,
                raw,
            };
            (call, asked)
        }
        Err(refusal) => return protocol.refuse(&refusal),
    };
    let action = call.action.clone();
    let place = Place {
        service: &scope.service,
        region: &scope.region,
        caller: &scope.caller,
        action: &action,
    };
    with_faults(&shared, protocol, call, |doom| {
        let done = act(&shared, &place, doom, asked, &parts, body);
        ready(done.unwrap_or_else(|refusal| protocol.refuse(&refusal)))
    })
    .await
}

struct Place<'a> {
    service: &'a str,
    region: &'a str,
    caller: &'a str,
    action: &'a str,
}

/// Whether a request needs no signature.
fn is_unsigned(parts: &Parts, body: &Bytes) -> bool {
    let action = url::form_urlencoded::parse(body).find(|(name, _)| name == "Action");
    !parts.headers.contains_key(header::AUTHORIZATION) && action.is_some_and(|(_, action)| action == sts::UNSIGNED)
}

fn act(
    shared: &Shared,
    place: &Place<'_>,
    doom: Option<String>,
    asked: Asked,
    parts: &Parts,
    body: Bytes,
) -> Result<Response> {
    let settings = lock(&shared.settings).clone();
    let mut world = lock(&shared.world);
    world.advance(&settings);
    let open = world.regions.get(place.region).is_some_and(|region| !region.disabled);
    if !open && matches!(place.service, "ec2" | "ebs" | "servicequotas") {
        let message = format!("the region {} is not enabled for this account", place.region);
        return Err(Refusal::new("AuthFailure", message).status(StatusCode::UNAUTHORIZED));
    }
    let mut context = Context {
        name: place.region,
        world: &mut world,
        settings: &settings,
        doom,
    };
    match asked {
        Asked::Form(form) => {
            let parameters = Parameters::new(&form)?;
            let text = match place.service {
                "ec2" => ec2::act(&mut context, place.action, parameters)?.into_ec2(place.action),
                "sts" => sts::query(&settings, place.caller, place.action, parameters)?,
                _ => account::query(&settings, place.action, parameters)?,
            };
            Ok(typed("text/xml;charset=UTF-8", text))
        }
        Asked::Ebs(target) => ebs::act(&mut context, &target, parts, body),
        Asked::Json(request) => {
            let answer = account::quota(&settings, place.region, place.action, &request)?;
            Ok(typed("application/x-amz-json-1.1", answer.to_string()))
        }
    }
}

/// The action, its parameters for people and for the model, and what is needed to carry it out.
fn read(protocol: Protocol, parts: &Parts, body: &Bytes) -> Result<(String, Form, Value, Asked)> {
    match protocol {
        Protocol::Rest => {
            let target = ebs::Target::of(&parts.method, parts.uri.path()).ok_or_else(|| {
                let message = format!("no action has {} {}", parts.method, parts.uri.path());
                Refusal::new("UnknownOperationException", message).status(StatusCode::NOT_FOUND)
            })?;
            let headers: Form = amz_headers(parts);
            // The content of a block is not for the record.
            let json = serde_json::from_slice(body).unwrap_or(Value::Null);
            let mut parameters = target.members();
            parameters.extend(headers.clone());
            for (name, value) in json.as_object().into_iter().flatten() {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                parameters.insert(name.clone(), text);
            }
            let raw = json!({
                "members": target.members(), "headers": headers, "query": parts.uri.query(), "body": json,
            });
            Ok((target.action.to_owned(), parameters, raw, Asked::Ebs(target)))
        }
        Protocol::Json => {
            let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
            let action = target.and_then(|target| target.strip_prefix("ServiceQuotasV20190624."));
            let action = action.ok_or_else(|| Refusal::new("UnknownOperationException", "no target"))?;
            let json: Value = serde_json::from_slice(body)
                .map_err(|_| Refusal::new("SerializationException", "the request is not JSON"))?;
            Ok((action.to_owned(), Form::new(), json!({"body": json}), Asked::Json(json)))
        }
        _ => {
            let form: Form = url::form_urlencoded::parse(body).into_owned().collect();
            let action = form
                .get("Action")
                .cloned()
                .ok_or_else(|| Refusal::new("MissingAction", "the request must contain the parameter Action"))?;
            let raw = json!({"form": form});
            Ok((action, form.clone(), raw, Asked::Form(form)))
        }
    }
}

fn amz_headers(parts: &Parts) -> Form {
    let ours = parts.headers.iter().filter(|(name, _)| {
        let common = [
            "x-amz-date",
            "x-amz-content-sha256",
            "x-amz-user-agent",
            "x-amz-security-token",
        ];
        name.as_str().starts_with("x-amz-") && !common.contains(&name.as_str())
    });
    ours.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// Carries out `work`, unless a fault has it otherwise, and keeps the record. `work` gets the bad end of what it makes.
pub(super) async fn with_faults<F: Future<Output = Response>>(
    shared: &Shared,
    protocol: Protocol,
    mut call: Call,
    work: impl FnOnce(Option<String>) -> F,
) -> Response {
    let effect = lock(&shared.faults).take(&call.action, &call.region);
    let refusal = match &effect {
        Some(Effect::Throttle) => Some(protocol.throttled()),
        Some(Effect::ServerError) => Some(protocol.broken()),
        Some(Effect::Refuse { status, code, message }) => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_REQUEST);
            Some(Refusal::new(code, message).status(status))
        }
        Some(Effect::Hang) => {
            shared.calls.add(call);
            return pending().await;
        }
        _ => None,
    };
    let doom = match &effect {
        Some(Effect::Fail { message }) => Some(message.clone()),
        _ => None,
    };
    let response = match (refusal, &effect) {
        (Some(refusal), _) => protocol.refuse(&refusal),
        (None, Some(Effect::Pretend(text))) => (*text).into_response(),
        (None, Some(Effect::Rewrite(rewrite))) => rewritten(work(doom).await, rewrite).await,
        (None, Some(Effect::Status(status))) => restated(work(doom).await, *status),
        (None, _) => work(doom).await,
    };
    let silent = matches!(effect, Some(Effect::Stall | Effect::LostAnswer));
    call.status = if silent { 0 } else { response.status().as_u16() };
    shared.calls.add(call);
    match effect {
        Some(Effect::Stall) => pending().await,
        Some(Effect::LostAnswer) => cut(),
        Some(Effect::Slow(delay)) => {
            tokio::time::sleep(delay).await;
            response
        }
        _ => response,
    }
}

/// An answer with another text. A refusal stays as it is.
async fn rewritten(response: Response, rewrite: &fn(&str) -> String) -> Response {
    if !response.status().is_success() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = to_bytes(body, LARGEST).await.unwrap_or_default();
    parts.headers.remove(header::CONTENT_LENGTH);
    let text = rewrite(&String::from_utf8_lossy(&body));
    (parts, Body::from(text)).into_response()
}

/// An answer with another status. A refusal stays as it is.
fn restated(mut response: Response, status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    if !response.status().is_success() {
        return response;
    }
    if status == StatusCode::NO_CONTENT {
        return (status, response.headers().clone()).into_response();
    }
    *response.status_mut() = status;
    response
}

/// An answer that breaks the connection before anything of it was sent.
fn cut() -> Response {
    let broken = stream::once(async { Err::<Bytes, _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset)) });
    Body::from_stream(broken).into_response()
}

fn typed(kind: &'static str, text: String) -> Response {
    let mut response = text.into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
