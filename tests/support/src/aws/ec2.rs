//! EC2: the actions by name, and what each of them works with.

use super::{
    images, import, lifecycle, permissions,
    refusal::{Refusal, Result},
    regions,
    request::Parameters,
    settings::Settings,
    snapshots,
    state::{Region, World},
    tags,
    xml::Xml,
};

/// The context of an action: the world, and where in it the call was made.
pub(super) struct Context<'a> {
    pub(super) name: &'a str,
    pub(super) world: &'a mut World,
    pub(super) settings: &'a Settings,
    /// The bad end of what this call makes.
    pub(super) doom: Option<String>,
}

impl Context<'_> {
    /// The region of the call.
    pub(super) fn region(&mut self) -> &mut Region {
        // The name was checked before the action began.
        self.world.regions.entry(self.name.to_owned()).or_default()
    }
}

/// Carries out one call.
pub(super) fn act(context: &mut Context<'_>, action: &str, parameters: Parameters) -> Result<Xml> {
    match action {
        "CancelImportTask" => import::cancel(context, parameters),
        "CopySnapshot" => snapshots::copy(context, parameters),
        "CreateTags" => tags::create(context, parameters),
        "DeleteSnapshot" => snapshots::delete(context, parameters),
        "DeleteTags" => tags::delete(context, parameters),
        "DeregisterImage" => lifecycle::deregister(context, parameters),
        "DescribeImageAttribute" => permissions::describe_image(context, parameters),
        "DescribeImages" => images::describe(context, parameters),
        "DescribeImportSnapshotTasks" => import::describe(context, parameters),
        "DescribeRegions" => regions::describe(context, parameters),
        "DescribeSnapshotAttribute" => permissions::describe_snapshot(context, parameters),
        "DescribeSnapshots" => snapshots::describe(context, parameters),
        "DisableImageDeprecation" => lifecycle::undeprecate(context, parameters),
        "EnableImageDeprecation" => lifecycle::deprecate(context, parameters),
        "GetImageBlockPublicAccessState" => regions::image_block(context, parameters),
        "GetSnapshotBlockPublicAccessState" => regions::snapshot_block(context, parameters),
        "ImportSnapshot" => import::start(context, parameters),
        "ModifyImageAttribute" => permissions::modify_image(context, parameters),
        "ModifySnapshotAttribute" => permissions::modify_snapshot(context, parameters),
        "RegisterImage" => images::register(context, parameters),
        "ResetSnapshotAttribute" => permissions::reset_snapshot(context, parameters),
        _ => {
            let message = format!("the action {action} is not valid for this web service");
            Err(Refusal::new("InvalidAction", message))
        }
    }
}

/// The answer of actions that have no data to return.
pub(super) fn done() -> Xml {
    let mut answer = Xml::default();
    answer.text("return", true);
    answer
}
