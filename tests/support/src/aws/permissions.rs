//! Who may use an image or a snapshot beside its owner.

use super::{
    Permissions, State,
    ec2::{Context, done},
    images, lifecycle,
    refusal::{Refusal, Result},
    request::Parameters,
    snapshots,
    xml::Xml,
};

/// One change of permissions.
#[derive(Default)]
struct Change {
    public: Option<bool>,
    added: Vec<String>,
    removed: Vec<String>,
}

impl Change {
    /// Reads both ways to say it: the structure, or attribute, operation, and lists.
    fn read(parameters: &mut Parameters, attribute: &str, structure: &str) -> Result<Self> {
        let mut change = Self::default();
        parameters.one_of("Attribute", &[attribute])?;
        if let Some(mut given) = parameters.structure(structure) {
            for entry in given.structures("Add")? {
                change.entry(true, entry)?;
            }
            for entry in given.structures("Remove")? {
                change.entry(false, entry)?;
            }
            given.finish()?;
        }
        let adds = parameters.one_of("OperationType", &["add", "remove"])?;
        let groups = parameters.list("UserGroup")?;
        let users = parameters.list("UserId")?;
        let Some(operation) = adds else {
            if groups.is_empty() && users.is_empty() {
                return Ok(change);
            }
            return Err(Refusal::new(
                "MissingParameter",
                "the request must contain the parameter OperationType",
            ));
        };
        for group in groups {
            change.group(operation == "add", &group)?;
        }
        change.users(operation == "add").extend(users);
        Ok(change)
    }

    fn entry(&mut self, adds: bool, mut entry: Parameters) -> Result<()> {
        if let Some(group) = entry.text("Group") {
            self.group(adds, &group)?;
        }
        if let Some(user) = entry.text("UserId") {
            self.users(adds).push(user);
        }
        entry.finish()
    }

    fn group(&mut self, adds: bool, group: &str) -> Result<()> {
        if group != "all" {
            let message = format!("the group '{group}' is not valid: there is only 'all'");
            return Err(Refusal::new("InvalidAMIAttributeItemValue", message));
        }
        self.public = Some(adds);
        Ok(())
    }

    fn users(&mut self, adds: bool) -> &mut Vec<String> {
        if adds { &mut self.added } else { &mut self.removed }
    }

    fn apply(self, permissions: &mut Permissions) {
        permissions.public = self.public.unwrap_or(permissions.public);
        permissions.users.extend(self.added);
        permissions.users.retain(|user| !self.removed.contains(user));
    }
}

pub(super) fn modify_image(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let id = parameters.required("ImageId")?;
    let change = Change::read(&mut parameters, "launchPermission", "LaunchPermission")?;
    parameters.finish()?;

    let limit = context.settings.public_images;
    let blocked = context.region().images_blocked;
    let public = context
        .region()
        .images
        .values()
        .filter(|image| image.permissions.public)
        .count();
    let image = images::find(context, &id)?;
    if image.state != State::Ready {
        let message = format!("the image ID '{id}' is not available");
        return Err(Refusal::new("InvalidAMIID.Unavailable", message));
    }
    if change.public == Some(true) && !image.permissions.public {
        if blocked {
            return Err(blocked_sharing("image", "DisableImageBlockPublicAccess"));
        }
        if public >= limit {
            let message = format!(
                "You have reached your quota of {limit} for the number of public images allowed in this Region. \
                 Deregister some, make some private, or ask for a higher quota."
            );
            return Err(Refusal::new("ResourceLimitExceeded", message));
        }
    }
    change.apply(&mut image.permissions);
    if image.permissions.public {
        lifecycle::made_public(image);
    }
    Ok(done())
}

fn blocked_sharing(what: &str, remedy: &str) -> Refusal {
    let message = format!(
        "this {what} cannot be shared publicly because block public access is enabled for this account in this Region; \
         {remedy} turns it off"
    );
    Refusal::new("OperationNotPermitted", message)
}

pub(super) fn describe_image(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let attributes = ["launchPermission", "description", "bootMode", "imdsSupport"];
    let attribute = parameters.one_of("Attribute", &attributes)?;
    let id = parameters.required("ImageId")?;
    parameters.finish()?;
    let image = images::find(context, &id)?;
    let mut answer = Xml::default();
    answer.text("imageId", &id);
    let value = match attribute.as_deref() {
        Some("launchPermission") => {
            answer.list("launchPermission", entries(&image.permissions), write_entry);
            return Ok(answer);
        }
        Some("description") => &image.description,
        Some("bootMode") => &image.boot_mode,
        Some("imdsSupport") => &image.imds,
        _ => {
            return Err(Refusal::new(
                "MissingParameter",
                "the request must contain the parameter Attribute",
            ));
        }
    };
    let name = attribute.unwrap_or_default();
    answer.element(&name, |element| {
        element.optional("value", value.as_ref());
    });
    Ok(answer)
}

pub(super) fn modify_snapshot(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let id = parameters.required("SnapshotId")?;
    let change = Change::read(&mut parameters, "createVolumePermission", "CreateVolumePermission")?;
    parameters.finish()?;
    let blocked = context.region().snapshots_blocked;
    let snapshot = snapshots::find(context, &id)?;
    if snapshot.state != State::Ready {
        let message = format!("the snapshot '{id}' is {}", snapshot.state.of_snapshot());
        return Err(Refusal::new("IncorrectState", message));
    }
    if blocked && change.public == Some(true) {
        return Err(blocked_sharing("snapshot", "DisableSnapshotBlockPublicAccess"));
    }
    change.apply(&mut snapshot.permissions);
    Ok(done())
}

pub(super) fn describe_snapshot(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    required_attribute(&mut parameters)?;
    let id = parameters.required("SnapshotId")?;
    parameters.finish()?;
    let snapshot = snapshots::find(context, &id)?;
    let mut answer = Xml::default();
    answer
        .text("snapshotId", &id)
        .list("createVolumePermission", entries(&snapshot.permissions), write_entry);
    Ok(answer)
}

pub(super) fn reset_snapshot(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    required_attribute(&mut parameters)?;
    let id = parameters.required("SnapshotId")?;
    parameters.finish()?;
    snapshots::find(context, &id)?.permissions = Permissions::default();
    Ok(done())
}

fn required_attribute(parameters: &mut Parameters) -> Result<()> {
    match parameters.required("Attribute")?.as_str() {
        "createVolumePermission" => Ok(()),
        other => {
            let message = format!("the attribute '{other}' is not known of snapshots here");
            Err(Refusal::new("InvalidParameterValue", message))
        }
    }
}

/// The entries of a permission: an element's name, and its text.
fn entries(permissions: &Permissions) -> Vec<(&'static str, String)> {
    let everybody = permissions.public.then(|| ("group", "all".to_owned()));
    let users = permissions.users.iter().map(|user| ("userId", user.clone()));
    everybody.into_iter().chain(users).collect()
}

fn write_entry(item: &mut Xml, (name, text): (&'static str, String)) {
    item.text(name, text);
}
