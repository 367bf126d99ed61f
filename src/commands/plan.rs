//! `plan`: the images that would be published, as a table for people or as JSON for programs.

use anyhow::anyhow;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::arguments::{PlanFormat, Subject};
use super::exit::Stop;
use super::setup::{compose_client, print, releases, request, warn_of_pattern};
use crate::base::failure::Failure;
use crate::base::retry;
use crate::config::Config;
use crate::messaging::message::{Intent, Reason};
use crate::messaging::notify::Notice;
use crate::model::select::{Deliverable, Only};
use crate::publish::prepare::{Prepared, prepare};
use crate::publish::report::{Problem, Report};

/// Prints the images that would be published, and changes nothing.
///
/// # Errors
///
/// A bad option, or a compose that cannot be read.
pub async fn run(config: &Config, subject: &Subject, format: PlanFormat) -> Result<u8, Stop> {
    let http = compose_client(config)?;
    let plan = match request(&http, config, subject).await? {
        Intent::Nothing(reason) => Plan::Nothing(reason),
        Intent::Publish(request) => {
            let only = subject.only.as_deref().map(Only::new);
            let hosts = &config.service.allowed_compose_hosts;
            request.location.within(hosts).map_err(Failure::from)?;
            let releases = releases(config)?;
            let prepare = prepare(&http, &releases, &config.provider, &request, only.as_ref());
            let prepared = retry::within(config.service.give_up_after, prepare).await;
            Plan::Compose(Box::new(prepared?))
        }
    };
    if let Plan::Compose(prepared) = &plan
        && let [refused, ..] = &prepared.selection.refused[..]
    {
        return Err(anyhow!("failed to {refused}").into());
    }
    if let Plan::Compose(prepared) = &plan
        && prepared.selection.deliverables.is_empty()
    {
        warn_of_pattern(subject.only.as_deref());
    }
    match format {
        PlanFormat::Json => print(&format!("{:#}\n", plan.json())),
        PlanFormat::Table => print(&format!("{}\n", plan.table())),
    }
    Ok(0)
}

/// The deliverables that would be published, or the reason for none.
#[derive(Debug)]
pub enum Plan {
    /// The selected deliverables, maybe none.
    Compose(Box<Prepared>),
    /// No deliverables, for a reason known before the compose's metadata were read.
    Nothing(Reason),
}

impl Plan {
    /// One object: `compose_id`, `release`, `stage`, and `publish` with an entry per notification, sorted by topic;
    /// `reason` where that is empty.
    #[must_use]
    pub fn json(&self) -> Value {
        match self {
            Self::Nothing(reason) => json!({
                "compose_id": reason.compose(),
                "release": null,
                "stage": null,
                "publish": [],
                "reason": reason.to_string(),
            }),
            Self::Compose(prepared) => {
                let publish: Vec<_> = prepared.selection.deliverables.iter().map(entry).collect();
                let mut document = json!({
                    "compose_id": prepared.compose.id.as_str(),
                    "release": prepared.release.number,
                    "stage": prepared.release.stage.to_string(),
                    "publish": publish,
                });
                if publish.is_empty() {
                    document["reason"] = json!("the compose has no image for this provider");
                }
                document
            }
        }
    }

    /// A table with a line per image.
    #[must_use]
    pub fn table(&self) -> String {
        match self {
            Self::Nothing(reason) => format!("Nothing to publish: {reason}"),
            Self::Compose(prepared) if prepared.selection.deliverables.is_empty() => {
                format!(
                    "Nothing to publish: {} has no image for this provider",
                    prepared.compose.id
                )
            }
            Self::Compose(prepared) => {
                let release = &prepared.release;
                let mut table = plain_table(["Deliverable", "Details", "Architecture", "Size", "Image"]);
                for deliverable in &prepared.selection.deliverables {
                    let mut name = deliverable.name();
                    let mut details = deliverable.target.describe().details();
                    for image in &deliverable.images {
                        table.add_row([
                            std::mem::take(&mut name),
                            std::mem::take(&mut details),
                            image.arch.clone(),
                            size(image.size),
                            image.path.clone(),
                        ]);
                    }
                }
                format!(
                    "{}: release {} ({}), stage {}, end of life {}\nto {}\n{table}",
                    prepared.compose.id,
                    release.name,
                    release.number,
                    release.stage,
                    release
                        .end_of_life
                        .map_or_else(|| "unknown".to_owned(), |date| date.to_string()),
                    prepared.selection.deliverables[0].locations.join(", "),
                )
            }
        }
    }
}

fn entry(deliverable: &Deliverable) -> Value {
    let notice = Notice::planned(deliverable);
    let sources = deliverable.images.iter().map(|image| {
        json!({
            "path": image.path,
            "architecture": image.arch,
            "sha256": image.sha256,
            "size": image.size,
        })
    });
    json!({
        "topic": notice.topic,
        "body": notice.body,
        "sources": sources.collect::<Vec<_>>(),
    })
}

fn size(bytes: u64) -> String {
    let (bytes, unit) = if bytes < 1_000_000 {
        (bytes, "kB")
    } else {
        (bytes / 1000, "MB")
    };
    let tenths = bytes / 100;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// The closing table of `reconsume`.
#[must_use]
pub fn summary(report: &Report) -> String {
    let mut table = plain_table(["Deliverable", "Outcome", "Location", "Id"]);
    for published in &report.published {
        let mut rows: Vec<[String; 2]> = published
            .places
            .iter()
            .map(|place| [place.location.clone(), place.id.clone()])
            .collect();
        rows.extend(
            published
                .superseded
                .iter()
                .map(|newer| [newer.location.clone(), format!("has {}", newer.by)]),
        );
        if rows.is_empty() {
            rows.push([String::new(), String::new()]);
        }
        let (mut name, mut outcome) = (published.deliverable.clone(), published.outcome().to_owned());
        for [location, id] in rows {
            table.add_row([std::mem::take(&mut name), std::mem::take(&mut outcome), location, id]);
        }
    }
    for broken in report.problems.iter().filter(|broken| is_elsewhere(broken, report)) {
        let name = broken.deliverable.clone().unwrap_or_else(|| report.compose.clone());
        table.add_row([
            name,
            "failed".to_owned(),
            broken.location.clone().unwrap_or_default(),
            String::new(),
        ]);
    }
    table.to_string()
}

/// Whether a failure has no row of its own yet.
fn is_elsewhere(broken: &Problem, report: &Report) -> bool {
    let has_row = |name: &String| {
        report
            .published
            .iter()
            .any(|published| published.deliverable == *name && published.places.is_empty())
    };
    broken.location.is_some() || !broken.deliverable.as_ref().is_some_and(has_row)
}

fn plain_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}
