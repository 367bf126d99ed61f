//! Tags, given when something is made or later.

use super::{
    Tags,
    ec2::{Context, done},
    images, import,
    refusal::{Refusal, Result},
    request::Parameters,
    snapshots,
    xml::Xml,
};

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>
const MOST: usize = 50;

/// `TagSpecification` of an action that makes one thing of this kind.
pub(super) fn specified(parameters: &mut Parameters, kind: &str) -> Result<Tags> {
    let mut tags = Tags::new();
    let mut seen = false;
    for mut specification in parameters.structures("TagSpecification")? {
        let given = specification.required("ResourceType")?;
        if given != kind || seen {
            let message = format!("'{given}' is not a valid taggable resource type for this operation");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
        seen = true;
        tags = read(&mut specification)?;
        specification.finish()?;
    }
    Ok(tags)
}

/// The tags of a list `Tag`.
fn read(parameters: &mut Parameters) -> Result<Tags> {
    let mut tags = Tags::new();
    for mut tag in parameters.structures("Tag")? {
        let key = tag.required("Key")?;
        let value = tag.text("Value").unwrap_or_default();
        tag.finish()?;
        check(&key, &value)?;
        if tags.insert(key.clone(), value).is_some() {
            let message = format!("the tag key '{key}' is given more than once");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
    }
    if tags.len() > MOST {
        return Err(too_many());
    }
    Ok(tags)
}

/// The limits that a single tag has.
pub(super) fn check(key: &str, value: &str) -> Result<()> {
    let fault = if key.is_empty() || key.chars().count() > 127 {
        "the tag key must have 1 to 127 characters"
    } else if value.chars().count() > 255 {
        "the tag value must have at most 255 characters"
    } else if key.to_ascii_lowercase().starts_with("aws:") {
        "tag keys that start with 'aws:' are reserved"
    } else {
        return Ok(());
    };
    Err(Refusal::new("InvalidParameterValue", format!("{fault}: {key}")))
}

fn too_many() -> Refusal {
    Refusal::new("TagLimitExceeded", format!("a resource can have at most {MOST} tags"))
}

pub(super) fn create(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let resources = parameters.list("ResourceId")?;
    let tags = read(&mut parameters)?;
    parameters.finish()?;
    if resources.is_empty() || tags.is_empty() {
        return Err(Refusal::new("MissingParameter", "resources and tags must be given"));
    }
    for id in &resources {
        let known = of(context, id)?;
        if known
            .keys()
            .chain(tags.keys().filter(|key| !known.contains_key(*key)))
            .count()
            > MOST
        {
            return Err(too_many());
        }
    }
    for id in &resources {
        of(context, id)?.extend(tags.clone());
    }
    Ok(done())
}

pub(super) fn delete(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let resources = parameters.list("ResourceId")?;
    let mut wanted = Vec::new();
    for mut tag in parameters.structures("Tag")? {
        wanted.push((tag.required("Key")?, tag.text("Value")));
        tag.finish()?;
    }
    parameters.finish()?;
    for id in &resources {
        // Without a list, all tags go; with a value, only a tag that has it.
        of(context, id)?.retain(|key, value| {
            !wanted.is_empty()
                && !wanted
                    .iter()
                    .any(|(name, only)| name == key && only.as_ref().is_none_or(|only| only == value))
        });
    }
    Ok(done())
}

/// The tags of something by its id.
fn of<'a>(context: &'a mut Context<'_>, id: &str) -> Result<&'a mut Tags> {
    match id.rsplit_once('-').map(|(kind, _)| kind) {
        Some("ami") => Ok(&mut images::find(context, id)?.tags),
        Some("snap") => Ok(&mut snapshots::find(context, id)?.tags),
        Some("import-snap") => Ok(&mut import::find(context, id)?.tags),
        _ => Err(Refusal::new("InvalidID", format!("the ID '{id}' is not valid"))),
    }
}
