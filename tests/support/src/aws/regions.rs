//! The state of a whole region: whether it is enabled, and whether it lets anything be public.

use super::{
    ec2::Context,
    listing::{Filters, all_found},
    refusal::{Refusal, Result},
    request::Parameters,
    xml::Xml,
};

pub(super) fn describe(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let names = parameters.list("RegionName")?;
    let all = parameters.flag("AllRegions")?.unwrap_or_default();
    let filters = Filters::read(&mut parameters, &["endpoint", "opt-in-status", "region-name"])?;
    parameters.finish()?;
    let known = context.world.regions.keys().map(String::as_str);
    all_found(&names, known, |name| {
        Refusal::new("InvalidParameterValue", format!("invalid region provided: {name}"))
    })?;
    let mut listed = Vec::new();
    for (name, region) in &context.world.regions {
        let status = if region.disabled {
            "not-opted-in"
        } else {
            "opt-in-not-required"
        };
        let endpoint = format!("ec2.{name}.amazonaws.com");
        let named = names.is_empty() || names.contains(name);
        let shown = all || !names.is_empty() || !region.disabled;
        let passes = filters.pass(&super::Tags::new(), |attribute| {
            vec![match attribute {
                "endpoint" => endpoint.clone(),
                "opt-in-status" => status.to_owned(),
                _ => name.clone(),
            }]
        });
        if named && shown && passes {
            listed.push((name, endpoint, status));
        }
    }
    let mut answer = Xml::default();
    answer.list("regionInfo", listed, |item, (name, endpoint, status)| {
        item.text("regionName", name)
            .text("regionEndpoint", endpoint)
            .text("optInStatus", status);
    });
    Ok(answer)
}

pub(super) fn image_block(context: &mut Context<'_>, parameters: Parameters) -> Result<Xml> {
    parameters.finish()?;
    let state = if context.region().images_blocked {
        "block-new-sharing"
    } else {
        "unblocked"
    };
    let mut answer = Xml::default();
    answer
        .text("imageBlockPublicAccessState", state)
        .text("managedBy", "account");
    Ok(answer)
}

pub(super) fn snapshot_block(context: &mut Context<'_>, parameters: Parameters) -> Result<Xml> {
    parameters.finish()?;
    let state = if context.region().snapshots_blocked {
        "block-all-sharing"
    } else {
        "unblocked"
    };
    let mut answer = Xml::default();
    answer.text("state", state).text("managedBy", "account");
    Ok(answer)
}
