//! Snapshots: copied between regions, found again, deleted.

use jiff::Timestamp;

use super::{
    ACCOUNT, Permissions, Snapshot, State,
    ec2::{Context, done},
    images::moment,
    listing::{Filters, Page, all_found},
    refusal::{Refusal, Result},
    request::Parameters,
    state::{Hidden, Pending, Region, new_id},
    tags,
    xml::Xml,
};

/// Called in the region of the copy.
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CopySnapshot.html>
pub(super) fn copy(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let source_region = parameters.required("SourceRegion")?;
    let source_id = parameters.required("SourceSnapshotId")?;
    let description = parameters.short("Description", 255)?;
    let tags = tags::specified(&mut parameters, "snapshot")?;
    // Some clients add the destination, and a signed request to the source that nothing here needs.
    if parameters
        .text("DestinationRegion")
        .is_some_and(|region| region != context.name)
    {
        return Err(parameters.invalid("DestinationRegion", "is not the region of the request"));
    }
    parameters.text("PresignedUrl");
    parameters.finish()?;

    let Some(region) = context.world.regions.get(&source_region) else {
        let message = format!("invalid source region: {source_region}");
        return Err(Refusal::new("InvalidParameterValue", message));
    };
    let source = region.snapshots.get(&source_id).ok_or_else(|| missing(&source_id))?;
    if source.state != State::Ready {
        let message = format!("the snapshot '{source_id}' is {}", source.state.of_snapshot());
        return Err(Refusal::new("IncorrectState", message));
    }
    if context.world.copies_in(context.name) >= context.settings.copies {
        // Clients look for the first words.
        let message = format!(
            "Too many snapshot copies in progress. The limit is {} for this destination region.",
            context.settings.copies
        );
        return Err(Refusal::new("ResourceLimitExceeded", message));
    }
    let copy = Snapshot {
        id: new_id("snap"),
        description,
        size: source.size,
        tags,
        permissions: Permissions::default(),
        started: Timestamp::now(),
        state: State::Pending,
        source: Some((source_region, source_id)),
        blocks: source.blocks.clone(),
        open: false,
        refused_writes: 0,
        hidden: Hidden(context.settings.hidden),
        pending: Pending::new(context.doom.take()),
    };
    let mut answer = Xml::default();
    answer.text("snapshotId", &copy.id).tags(&copy.tags);
    context.region().snapshots.insert(copy.id.clone(), copy);
    Ok(answer)
}

/// A snapshot by its id, for an action that works on it.
pub(super) fn find<'a>(context: &'a mut Context<'_>, id: &str) -> Result<&'a mut Snapshot> {
    let snapshots = &mut context.region().snapshots;
    let snapshot = snapshots.get_mut(id).ok_or_else(|| missing(id))?;
    if snapshot.hidden.looks_absent() {
        return Err(missing(id));
    }
    Ok(snapshot)
}

fn missing(id: &str) -> Refusal {
    match id.strip_prefix("snap-") {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => Refusal::new(
            "InvalidSnapshot.NotFound",
            format!("the snapshot '{id}' does not exist"),
        ),
        _ => {
            let message = format!("the value ({id}) for the parameter snapshotId is invalid");
            Refusal::new("InvalidParameterValue", message)
        }
    }
}

/// The image that uses a snapshot.
pub(super) fn in_use<'a>(region: &'a Region, id: &str) -> Option<&'a str> {
    let mut images = region.images.values();
    images
        .find(|image| image.devices.iter().any(|device| device.snapshot == id))
        .map(|image| image.id.as_str())
}

pub(super) fn delete(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let id = parameters.required("SnapshotId")?;
    parameters.finish()?;
    find(context, &id)?;
    if let Some(image) = in_use(context.region(), &id) {
        let message = format!("the snapshot {id} is currently in use by {image}");
        return Err(Refusal::new("InvalidSnapshot.InUse", message));
    }
    remove(context, id);
    Ok(done())
}

/// Removes a snapshot. A copy that was still being made of it cannot be finished.
pub(super) fn remove(context: &mut Context<'_>, id: String) {
    context.region().snapshots.remove(&id);
    let source = Some((context.name.to_owned(), id));
    for region in context.world.regions.values_mut() {
        for copy in region.snapshots.values_mut() {
            if copy.state == State::Pending && copy.source == source {
                copy.state = State::Failed("the source snapshot was deleted".into());
            }
        }
    }
}

const FILTERS: [&str; 8] = [
    "description",
    "encrypted",
    "owner-id",
    "progress",
    "snapshot-id",
    "start-time",
    "status",
    "volume-size",
];

pub(super) fn describe(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let ids = parameters.list("SnapshotId")?;
    let owners = parameters.list("Owner")?;
    let filters = Filters::read(&mut parameters, &FILTERS)?;
    let page = Page::read(&mut parameters, !ids.is_empty(), context.settings.page)?;
    parameters.finish()?;

    let ours = owners.is_empty() || owners.iter().any(|owner| owner == "self" || owner == ACCOUNT);
    let found: Vec<_> = context
        .region()
        .snapshots
        .values_mut()
        .filter(|snapshot| ours && (ids.is_empty() || ids.contains(&snapshot.id)))
        .filter(|snapshot| filters.pass(&snapshot.tags, |name| attribute(snapshot, name)))
        .filter_map(|snapshot| (!snapshot.hidden.looks_absent()).then_some(&*snapshot))
        .collect();
    if filters.is_empty() {
        all_found(&ids, found.iter().map(|snapshot| snapshot.id.as_str()), missing)?;
    }
    let (found, token) = page.cut(found, |snapshot| &snapshot.id);
    let mut answer = Xml::default();
    answer.list("snapshotSet", found, write);
    answer.optional("nextToken", token);
    Ok(answer)
}

fn attribute(snapshot: &Snapshot, name: &str) -> Vec<String> {
    vec![match name {
        "description" => snapshot.description.clone().unwrap_or_default(),
        "encrypted" => "false".to_owned(),
        "owner-id" => ACCOUNT.to_owned(),
        "progress" => progress(snapshot).to_owned(),
        "snapshot-id" => snapshot.id.clone(),
        "start-time" => moment(snapshot.started),
        "status" => snapshot.state.of_snapshot().to_owned(),
        _ => snapshot.size.to_string(),
    }]
}

fn progress(snapshot: &Snapshot) -> &'static str {
    match snapshot.state {
        State::Ready => "100%",
        State::Pending if !snapshot.open => "50%",
        _ => "0%",
    }
}

fn write(item: &mut Xml, snapshot: &Snapshot) {
    item.text("snapshotId", &snapshot.id)
        .text("volumeId", "vol-ffffffff")
        .text("status", snapshot.state.of_snapshot())
        .text("startTime", moment(snapshot.started))
        .text("progress", progress(snapshot))
        .text("ownerId", ACCOUNT)
        .text("volumeSize", snapshot.size)
        .optional("description", snapshot.description.as_ref())
        .text("encrypted", false)
        .text("storageTier", "standard");
    if let State::Failed(message) = &snapshot.state {
        item.text("statusMessage", message);
    }
    if !snapshot.tags.is_empty() {
        item.tags(&snapshot.tags);
    }
}
