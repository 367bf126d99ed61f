//! EBS direct: snapshots written and read block by block.
//! <https://docs.aws.amazon.com/ebs/latest/APIReference/Welcome.html>

use std::{collections::BTreeMap, sync::Arc};

use aws_lc_rs::digest::{Context as Hash, SHA256, digest};
use axum::{
    body::Body,
    http::{HeaderMap, Method, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    ACCOUNT, BLOCK, Permissions, Snapshot, State, Tags,
    ec2::Context,
    refusal::{Refusal, Result},
    state::{Blocks, GIB, Hidden, Pending, Token, new_id},
    tags,
};

/// A call by its path: the action, the snapshot, and the block.
pub(super) struct Target {
    pub(super) action: &'static str,
    snapshot: String,
    block: Option<u32>,
}

impl Target {
    /// The target of a request; none where no action has this method and path.
    pub(super) fn of(method: &Method, path: &str) -> Option<Self> {
        let parts: Vec<_> = path.trim_matches('/').split('/').collect();
        let (action, snapshot, block) = match (method.as_str(), parts.as_slice()) {
            ("POST", ["snapshots"]) => ("StartSnapshot", "", None),
            ("POST", ["snapshots", "completion", id]) => ("CompleteSnapshot", *id, None),
            ("PUT", ["snapshots", id, "blocks", index]) => ("PutSnapshotBlock", *id, Some(*index)),
            ("GET", ["snapshots", id, "blocks", index]) => ("GetSnapshotBlock", *id, Some(*index)),
            ("GET", ["snapshots", id, "blocks"]) => ("ListSnapshotBlocks", *id, None),
            _ => return None,
        };
        Some(Self {
            action,
            snapshot: snapshot.to_owned(),
            block: match block {
                Some(index) => Some(index.parse().ok()?),
                None => None,
            },
        })
    }

    /// Snapshot and block, as the members they are in the model.
    pub(super) fn members(&self) -> BTreeMap<String, String> {
        let mut members = BTreeMap::new();
        if !self.snapshot.is_empty() {
            members.insert("SnapshotId".to_owned(), self.snapshot.clone());
        }
        members.extend(self.block.map(|block| ("BlockIndex".to_owned(), block.to_string())));
        members
    }
}

/// Carries out one call.
pub(super) fn act(context: &mut Context<'_>, target: &Target, parts: &Parts, body: Bytes) -> Result<Response> {
    match target.action {
        "StartSnapshot" => start(context, &body),
        "PutSnapshotBlock" => put(context, target, &parts.headers, body),
        "CompleteSnapshot" => complete(context, target, &parts.headers),
        "GetSnapshotBlock" => get(context, target, parts.uri.query().unwrap_or_default()),
        _ => list(context, target, parts.uri.query().unwrap_or_default()),
    }
}

const START: [&str; 5] = ["VolumeSize", "Tags", "Description", "ClientToken", "Timeout"];

fn start(context: &mut Context<'_>, body: &[u8]) -> Result<Response> {
    let request: Value = serde_json::from_slice(body).map_err(|_| invalid("the request is not JSON"))?;
    let members = request.as_object().ok_or_else(|| invalid("the request is no object"))?;
    if let Some(unknown) = members.keys().find(|key| !START.contains(&key.as_str())) {
        return Err(invalid(format!("the member {unknown} is not known here")));
    }
    let size = match request["VolumeSize"].as_u64() {
        Some(size @ 1..=65_536) => size,
        _ => return Err(invalid("VolumeSize must be from 1 to 65536").reason("INVALID_VOLUME_SIZE")),
    };
    if !request["Timeout"].is_null() && !matches!(request["Timeout"].as_u64(), Some(10..=4320)) {
        return Err(invalid("Timeout must be from 10 to 4320 minutes"));
    }
    let description = request["Description"].as_str().map(str::to_owned);
    if description
        .as_ref()
        .is_some_and(|text| text.is_empty() || text.chars().count() > 255)
    {
        return Err(invalid("Description must have 1 to 255 characters"));
    }
    let mut tags = Tags::new();
    for tag in request["Tags"].as_array().into_iter().flatten() {
        let key = tag["Key"].as_str().unwrap_or_default();
        let value = tag["Value"].as_str().unwrap_or_default();
        tags::check(key, value).map_err(|refusal| invalid(refusal.message).reason("INVALID_TAG"))?;
        tags.insert(key.to_owned(), value.to_owned());
    }
    let asked = request.to_string();
    let token = request["ClientToken"].as_str();
    // The same request gets the same answer, whatever has become of the snapshot since.
    if let Some(known) = token.and_then(|token| context.region().tokens.get(token)) {
        if known.request != asked {
            let message = "the client token was used before, with other parameters";
            return Err(Refusal::new("ConflictException", message).status(StatusCode::CONFLICT));
        }
        let (id, made) = (known.id.clone(), known.made);
        let state = context
            .region()
            .snapshots
            .get(&id)
            .map(|snapshot| snapshot.state.of_snapshot());
        return Ok(started(&id, state.unwrap_or("error"), made, &request));
    }
    let made = Timestamp::now();
    let id = begin(context, size, description, tags);
    if let Some(token) = token {
        let first = Token {
            request: asked,
            id: id.clone(),
            made,
        };
        context.region().tokens.insert(token.to_owned(), first);
    }
    Ok(started(&id, "pending", made, &request))
}

fn begin(context: &mut Context<'_>, size: u64, description: Option<String>, tags: Tags) -> String {
    let snapshot = Snapshot {
        id: new_id("snap"),
        description,
        size,
        tags,
        permissions: Permissions::default(),
        started: Timestamp::now(),
        state: State::Pending,
        source: None,
        blocks: Arc::new(Blocks::default()),
        open: true,
        refused_writes: context.settings.refused_writes,
        hidden: Hidden(context.settings.hidden),
        pending: Pending::new(None),
    };
    let id = snapshot.id.clone();
    context.region().snapshots.insert(id.clone(), snapshot);
    id
}

fn started(id: &str, status: &str, made: Timestamp, request: &Value) -> Response {
    let body = json!({
        "SnapshotId": id,
        "OwnerId": ACCOUNT,
        "Status": status,
        "StartTime": made.as_second(),
        "VolumeSize": request["VolumeSize"],
        "BlockSize": BLOCK,
        "Description": request["Description"],
        "Tags": request["Tags"],
    });
    answer(StatusCode::CREATED, &body)
}

fn put(context: &mut Context<'_>, target: &Target, headers: &HeaderMap, body: Bytes) -> Result<Response> {
    let index = target.block.unwrap_or_default();
    let snapshot = writable(context, &target.snapshot)?;
    if header(headers, "x-amz-data-length") != Some(BLOCK.to_string().as_str()) || body.len() != BLOCK {
        return Err(invalid(format!("a block has {BLOCK} bytes, not {}", body.len())).reason("INVALID_BLOCK"));
    }
    if u64::from(index) >= snapshot.size * GIB / BLOCK as u64 {
        let message = format!("the block {index} is outside of a volume of {} GiB", snapshot.size);
        return Err(invalid(message).reason("INVALID_BLOCK"));
    }
    if header(headers, "x-amz-checksum-algorithm") != Some("SHA256") {
        return Err(invalid("the checksum's algorithm must be SHA256"));
    }
    let checksum = checksum(&body);
    if header(headers, "x-amz-checksum") != Some(checksum.as_str()) {
        let message = format!("the checksum of the block {index} is not that of its data");
        return Err(invalid(message).reason("INVALID_BLOCK"));
    }
    let id = snapshot.id.clone();
    // The same block written to many regions is kept once.
    let body = context.world.written.entry(checksum.clone()).or_insert(body).clone();
    if let Some(snapshot) = context.region().snapshots.get_mut(&id) {
        Arc::make_mut(&mut snapshot.blocks).insert(index, body);
    }
    let mut response = answer(StatusCode::CREATED, &json!({}));
    set(&mut response, "x-amz-checksum", &checksum);
    set(&mut response, "x-amz-checksum-algorithm", "SHA256");
    Ok(response)
}

fn complete(context: &mut Context<'_>, target: &Target, headers: &HeaderMap) -> Result<Response> {
    let doom = context.doom.take();
    let snapshot = writable(context, &target.snapshot)?;
    let count = header(headers, "x-amz-changedblockscount").and_then(|text| text.parse().ok());
    if count != Some(snapshot.blocks.len()) {
        let message = format!("{} blocks were written, not {count:?}", snapshot.blocks.len());
        return Err(invalid(message));
    }
    if let Some(given) = header(headers, "x-amz-checksum") {
        if header(headers, "x-amz-checksum-algorithm") != Some("SHA256")
            || header(headers, "x-amz-checksum-aggregation-method") != Some("LINEAR")
        {
            return Err(invalid("the checksum must be SHA256, aggregated as LINEAR"));
        }
        let mut all = Hash::new(&SHA256);
        for block in snapshot.blocks.values() {
            all.update(digest(&SHA256, block).as_ref());
        }
        if BASE64_STANDARD.encode(all.finish()) != given {
            return Err(invalid("the checksum is not that of the blocks written"));
        }
    }
    snapshot.open = false;
    snapshot.pending = Pending::new(doom);
    Ok(answer(StatusCode::ACCEPTED, &json!({"Status": "pending"})))
}

/// Pages of tokens that allow to read one block each.
fn list(context: &mut Context<'_>, target: &Target, query: &str) -> Result<Response> {
    let mut first = 0;
    let mut most = 10_000;
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let number = value.parse();
        match (&*name, number) {
            ("startingBlockIndex" | "pageToken", Ok(index)) => first = index,
            ("maxResults", Ok(count @ 100..=10_000)) => most = count as usize,
            _ => return Err(invalid(format!("the parameter {name} is not valid"))),
        }
    }
    let limit = context.settings.page.map_or(most, |page| page.min(most));
    let snapshot = readable(context, &target.snapshot)?;
    let mut rest = snapshot.blocks.range(first..).map(|(index, _)| *index);
    let blocks: Vec<_> = rest
        .by_ref()
        .take(limit)
        .map(|index| json!({"BlockIndex": index, "BlockToken": block_token(&snapshot.id, index)}))
        .collect();
    let body = json!({
        "Blocks": blocks,
        "BlockSize": BLOCK,
        "VolumeSize": snapshot.size,
        "ExpiryTime": (Timestamp::now() + SignedDuration::from_hours(24 * 7)).as_second(),
        "NextToken": rest.next().map(|index| index.to_string()),
    });
    Ok(answer(StatusCode::OK, &body))
}

fn get(context: &mut Context<'_>, target: &Target, query: &str) -> Result<Response> {
    let index = target.block.unwrap_or_default();
    let snapshot = readable(context, &target.snapshot)?;
    let mut parameters = url::form_urlencoded::parse(query.as_bytes());
    let token = parameters
        .find(|(name, _)| name == "blockToken")
        .map(|(_, token)| token);
    let block = snapshot
        .blocks
        .get(&index)
        .filter(|_| token.as_deref() == Some(block_token(&snapshot.id, index).as_str()))
        .ok_or_else(|| invalid("the block token is not valid").reason("INVALID_BLOCK_TOKEN"))?;
    let mut response = Body::from(block.clone()).into_response();
    set(&mut response, "x-amz-data-length", &BLOCK.to_string());
    set(&mut response, "x-amz-checksum", &checksum(block));
    set(&mut response, "x-amz-checksum-algorithm", "SHA256");
    Ok(response)
}

/// A snapshot that takes blocks. A new one may pretend for a while that it does not exist.
fn writable<'a>(context: &'a mut Context<'_>, id: &str) -> Result<&'a mut Snapshot> {
    let snapshot = context.region().snapshots.get_mut(id).ok_or_else(|| missing(id))?;
    if snapshot.refused_writes > 0 {
        snapshot.refused_writes -= 1;
        return Err(missing(id));
    }
    if !snapshot.open {
        let message = format!("the snapshot {id} is no longer being written");
        return Err(invalid(message).reason("INVALID_SNAPSHOT_ID"));
    }
    Ok(snapshot)
}

fn readable<'a>(context: &'a mut Context<'_>, id: &str) -> Result<&'a Snapshot> {
    let snapshot = context.region().snapshots.get(id).ok_or_else(|| missing(id))?;
    if snapshot.state != State::Ready {
        let message = format!("the snapshot {id} is {}", snapshot.state.of_snapshot());
        return Err(invalid(message).reason("INVALID_SNAPSHOT_ID"));
    }
    Ok(snapshot)
}

fn missing(id: &str) -> Refusal {
    Refusal::new(
        "ResourceNotFoundException",
        format!("the snapshot '{id}' does not exist"),
    )
    .status(StatusCode::NOT_FOUND)
    .reason("SNAPSHOT_NOT_FOUND")
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new("ValidationException", message).reason("INVALID_PARAMETER_VALUE")
}

fn checksum(block: &[u8]) -> String {
    BASE64_STANDARD.encode(digest(&SHA256, block))
}

/// Just something that only a listing tells.
fn block_token(snapshot: &str, index: u32) -> String {
    BASE64_STANDARD.encode(format!("{snapshot}/{index}"))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn set(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = value.parse() {
        response.headers_mut().insert(name, value);
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let mut response = (status, body.to_string()).into_response();
    set(&mut response, "content-type", "application/json");
    response
}
