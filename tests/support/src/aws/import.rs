//! Snapshots made from objects of S3.
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ImportSnapshot.html>

use jiff::Timestamp;

use super::{
    ImportTask,
    ec2::Context,
    listing::{Filters, Page, all_found},
    refusal::{Refusal, Result},
    request::Parameters,
    state::{Hidden, Pending, Token, new_id},
    tags,
    xml::Xml,
};

pub(super) fn start(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let token = parameters.short("ClientToken", 64)?;
    let request = format!("{parameters:?}");
    let description = parameters.short("Description", 255)?;
    let role = parameters.text("RoleName").unwrap_or_else(|| "vmimport".into());
    let Some(mut container) = parameters.structure("DiskContainer") else {
        return Err(Refusal::new(
            "MissingParameter",
            "the request must contain the parameter DiskContainer",
        ));
    };
    container.text("Description");
    let format = container.required("Format")?;
    let Some(mut user_bucket) = container.structure("UserBucket") else {
        return Err(Refusal::new(
            "MissingParameter",
            "the request must contain the parameter UserBucket",
        ));
    };
    let bucket = user_bucket.required("S3Bucket")?;
    let key = user_bucket.required("S3Key")?;
    user_bucket.finish()?;
    container.finish()?;
    let tags = tags::specified(&mut parameters, "import-snapshot-task")?;
    parameters.finish()?;

    if let Some(token) = &token
        && let Some(known) = context.region().tokens.get(token)
    {
        if known.request != request {
            let message = "the client token was used before, with other parameters";
            return Err(Refusal::new("IdempotentParameterMismatch", message));
        }
        let id = known.id.clone();
        return Ok(answer(find(context, &id)?));
    }
    let refused = |message: String| Err(Refusal::new("InvalidParameter", message));
    if !format.eq_ignore_ascii_case("raw") {
        return refused(format!("the disk format {format} is not known here"));
    }
    if context.settings.import_role.as_ref() != Some(&role) {
        return refused(format!(
            "the service role {role} does not exist or does not have sufficient permissions"
        ));
    }
    if context.world.buckets.get(&bucket).map(String::as_str) != Some(context.name) {
        return refused(format!("the object {key} is not local to the region: bucket {bucket}"));
    }
    let Ok(object) = context.world.object(&bucket, &key).metadata() else {
        return refused(format!("the object {key} does not exist in the bucket {bucket}"));
    };
    let task = ImportTask {
        id: new_id("import-snap"),
        status: "pending".into(),
        message: Some("pending".into()),
        description,
        tags,
        bucket,
        key,
        size: object.len(),
        snapshot: None,
        hidden: Hidden(context.settings.hidden),
        pending: Pending::new(context.doom.take()),
    };
    let region = context.region();
    if let Some(token) = token {
        let made = Token {
            request,
            id: task.id.clone(),
            made: Timestamp::now(),
        };
        region.tokens.insert(token, made);
    }
    let answer = answer(&task);
    region.tasks.insert(task.id.clone(), task);
    Ok(answer)
}

fn answer(task: &ImportTask) -> Xml {
    let mut answer = Xml::default();
    write(&mut answer, task);
    answer
}

fn write(item: &mut Xml, task: &ImportTask) {
    item.text("importTaskId", &task.id)
        .optional("description", task.description.as_ref())
        .element("snapshotTaskDetail", |detail| {
            detail
                .text("diskImageSize", format!("{:.1}", task.size as f64))
                .text("format", "RAW")
                .text("status", &task.status)
                .optional("statusMessage", task.message.as_ref())
                .optional("snapshotId", task.snapshot.as_ref())
                .element("userBucket", |bucket| {
                    bucket.text("s3Bucket", &task.bucket).text("s3Key", &task.key);
                });
            // Once a task has ended, its progress is no longer told.
            if task.status == "active" {
                detail.text("progress", "50");
            }
        });
    if !task.tags.is_empty() {
        item.tags(&task.tags);
    }
}

/// An import task by its id, for an action that works on it.
pub(super) fn find<'a>(context: &'a mut Context<'_>, id: &str) -> Result<&'a mut ImportTask> {
    let task = context.region().tasks.get_mut(id).ok_or_else(|| missing(id))?;
    if task.hidden.looks_absent() {
        return Err(missing(id));
    }
    Ok(task)
}

fn missing(id: &str) -> Refusal {
    let message = format!("no import task with the id {id} was found");
    Refusal::new("InvalidConversionTaskId", message)
}

pub(super) fn describe(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let ids = parameters.list("ImportTaskId")?;
    let filters = Filters::named("Filters", &mut parameters, &["task-state"])?;
    let page = Page::read(&mut parameters, !ids.is_empty(), context.settings.page)?;
    parameters.finish()?;
    let found: Vec<_> = context
        .region()
        .tasks
        .values_mut()
        .filter(|task| ids.is_empty() || ids.contains(&task.id))
        .filter(|task| filters.pass(&task.tags, |_| vec![task.status.clone()]))
        .filter_map(|task| (!task.hidden.looks_absent()).then_some(&*task))
        .collect();
    if filters.is_empty() {
        all_found(&ids, found.iter().map(|task| task.id.as_str()), missing)?;
    }
    let (found, token) = page.cut(found, |task| &task.id);
    let mut answer = Xml::default();
    answer.list("importSnapshotTaskSet", found, write);
    answer.optional("nextToken", token);
    Ok(answer)
}

pub(super) fn cancel(context: &mut Context<'_>, mut parameters: Parameters) -> Result<Xml> {
    let id = parameters.required("ImportTaskId")?;
    let reason = parameters.text("CancelReason");
    parameters.finish()?;
    let task = find(context, &id)?;
    let before = task.status.clone();
    if !matches!(before.as_str(), "pending" | "active") {
        let message = format!("the import task {id} is {before} and can no longer be cancelled");
        return Err(Refusal::new("IncorrectState", message));
    }
    task.fail("cancelling", reason.unwrap_or_else(|| "cancelled by the user".into()));
    let mut answer = Xml::default();
    answer
        .text("importTaskId", &id)
        .text("previousState", before)
        .text("state", "cancelling");
    Ok(answer)
}
