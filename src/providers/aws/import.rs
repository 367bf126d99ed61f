//! The first method to create a snapshot: AWS
//! [imports](https://docs.aws.amazon.com/vm-import/latest/userguide/vmimport-import-snapshot.html) a raw disk from an
//! object of the bucket, with a role that may read it.
//!
//! A later process finds each of them again: the object by its key, the task by its tags, and the snapshot by its own tags,
//! which it gets only after the import. The object is deleted once the task has ended, never before: a task reads it to the
//! end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{ImportSnapshotTask, ResourceType, SnapshotDiskContainer, UserBucket};
use tokio::sync::Semaphore;

use super::client::{Region, call, change, pages};
use super::confirm::confirmed;
use super::error::Error;
use super::s3::Object;
use super::snapshot::{self, Snapshot};
use super::spec::{AmiSpec, CreatedBy, specification, tags_of, write};
use crate::base::failure::{Class, Classified, Failure, reason};
use crate::images::source::Source;
use crate::providers::poll::{Look, Status, until};

/// The longest wait for an import. Imports of Fedora's disks took from a quarter of an hour to more than an hour and a half.
const LONGEST: Duration = Duration::from_secs(4 * 60 * 60);
/// The longest time for which EC2 may not show a new task.
const VISIBILITY_DELAY: Duration = Duration::from_secs(2 * 60);
/// The number of tasks that may fail on the side of AWS before the image fails. The object is kept until then.
const TASKS: usize = 3;

/// The most advanced result of earlier imports of the image.
#[derive(Debug)]
enum Found {
    /// The id of a snapshot that exists.
    Snapshot(String),
    /// The id of a task in progress.
    Running(String),
    /// Nothing usable, and the number of tasks that have ended.
    Nothing(usize),
}

/// Creates the snapshot in the base region, or completes an import that another process started.
pub(super) async fn import(
    base: &Region,
    spec: &AmiSpec,
    object: &Object,
    role: &str,
    source: &Source,
    memory: &Arc<Semaphore>,
    status: &Status,
) -> Result<Snapshot, Failure> {
    if let Found::Nothing(_) = find(base, spec).await?
        && !object.exists().await?
    {
        status.set("uploading the disk");
        object.upload(source, memory).await?;
        tracing::info!("uploaded {object}");
    }
    let imported = run(base, spec, object, role, status).await;
    match imported {
        Ok(id) => {
            object.clear().await;
            let snapshot = tag(base, spec, &id, status).await?;
            tracing::info!(region = base.name, snapshot = id, "imported {object} as {id}");
            Ok(snapshot)
        }
        Err(error) => {
            // A task whose state could not be read may still be reading the object.
            if matches!(error, Error::Import { .. }) {
                object.clear().await;
            }
            Err(error.into())
        }
    }
}

/// Follows a task to its end, and returns the id of the snapshot.
async fn run(base: &Region, spec: &AmiSpec, object: &Object, role: &str, status: &Status) -> Result<String, Error> {
    let mut tries = 0;
    loop {
        // After an upload too: another process may have been faster.
        let task = match find(base, spec).await? {
            Found::Snapshot(id) => return Ok(id),
            Found::Running(task) => task,
            Found::Nothing(ended) => match start(base, spec, object, role, ended).await {
                Ok(task) => task,
                Err(error) => {
                    // The next attempt needs the object again, unless the failure is permanent.
                    if error.class() == Class::Deliverable {
                        object.clear().await;
                    }
                    return Err(error);
                }
            },
        };
        tries += 1;
        match follow(base, &task, object, status).await {
            Err(error @ Error::Import { .. }) if error.class().is_transient() && tries < TASKS => {
                tracing::warn!("failed to {error}; trying again");
            }
            ended => return ended,
        }
    }
}

/// The tasks of this image. EC2 documents no filter by tag here, so all tasks are read; it forgets them after a while.
async fn find(base: &Region, spec: &AmiSpec) -> Result<Found, Error> {
    let what = format!("look for imports of {} in {}", spec.name, base.name);
    let tasks = pages(&what, async |token: Option<String>| {
        let list = || {
            let list = base.ec2.describe_import_snapshot_tasks();
            list.set_next_token(token.clone()).send()
        };
        let answer = call("DescribeImportSnapshotTasks", &what, list).await?;
        let tasks = answer.import_snapshot_tasks().iter();
        let tasks = tasks.filter(|task| spec.is_ours(&tags_of(task.tags())));
        Ok((
            tasks.cloned().collect::<Vec<_>>(),
            answer.next_token().map(str::to_owned),
        ))
    })
    .await?;
    let mut ended = 0;
    for task in &tasks {
        let (id, state) = (task.import_task_id().unwrap_or_default(), State::of(task));
        match state {
            State::Running(_) => return Ok(Found::Running(id.to_owned())),
            // Its snapshot may have been deleted since.
            State::Completed(made) => match snapshot::read(base, &made).await? {
                Some(_) => return Ok(Found::Snapshot(made)),
                None => ended += 1,
            },
            State::Failed { .. } => ended += 1,
        }
    }
    Ok(Found::Nothing(ended))
}

/// Starts a task. The number of tasks that have ended is part of the token, which would return one of those otherwise.
async fn start(base: &Region, spec: &AmiSpec, object: &Object, role: &str, ended: usize) -> Result<String, Error> {
    let what = format!("import {object} in {}", base.name);
    let token = spec.token(&[&base.name, &object.bucket, &object.key, role], ended);
    let answer = call("ImportSnapshot", &what, || {
        let bucket = UserBucket::builder()
            .s3_bucket(&object.bucket)
            .s3_key(&object.key)
            .build();
        let disk = SnapshotDiskContainer::builder()
            .description(&spec.description)
            .format("RAW")
            .user_bucket(bucket)
            .build();
        base.ec2
            .import_snapshot()
            .client_token(&token)
            .description(&spec.description)
            .disk_container(disk)
            .role_name(role)
            .tag_specifications(specification(ResourceType::ImportSnapshotTask, spec.tags()))
            .send()
    })
    .await?;
    let task = answer.import_task_id().map(str::to_owned);
    task.ok_or_else(|| Error::lacking(&what, "task id"))
}

async fn follow(base: &Region, task: &str, object: &Object, status: &Status) -> Result<String, Error> {
    let what = format!("import {object}");
    let started = Instant::now();
    until(&what, LONGEST, status, || async {
        let what = format!("read {task} in {}", base.name);
        let answer = call("DescribeImportSnapshotTasks", &what, || async {
            let read = base.ec2.describe_import_snapshot_tasks().import_task_ids(task);
            match read.send().await {
                // EC2 does not show a new task at once.
                Err(error) if Error::is(&error, "InvalidConversionTaskId") && started.elapsed() < VISIBILITY_DELAY => {
                    Ok(None)
                }
                answer => answer.map(Some),
            }
        })
        .await?;
        let found = answer
            .as_ref()
            .and_then(|answer| answer.import_snapshot_tasks().first());
        let Some(found) = found else {
            return Ok(Look::Wait(format!("{task} is not visible yet")));
        };
        match State::of(found) {
            State::Running(state) => Ok(Look::Wait(format!("{task} is {state}"))),
            State::Completed(snapshot) => Ok(Look::Done(snapshot)),
            State::Failed { status, reason } => Err(Error::Import {
                object: object.to_string(),
                task: task.to_owned(),
                status,
                reason,
            }),
        }
    })
    .await
}

/// The state of an import task.
enum State {
    /// In progress, with its status and progress.
    Running(String),
    /// Completed, with the id of the snapshot.
    Completed(String),
    /// Failed. EC2 has no such status for it: AWS deletes what it has created so far.
    Failed { status: String, reason: String },
}

impl State {
    fn of(task: &ImportSnapshotTask) -> Self {
        let detail = task.snapshot_task_detail();
        let text =
            |get: fn(&aws_sdk_ec2::types::SnapshotTaskDetail) -> Option<&str>| detail.and_then(get).map(str::to_owned);
        let status = text(|detail| detail.status()).unwrap_or_else(|| "pending".to_owned());
        match (status.as_str(), text(|detail| detail.snapshot_id())) {
            ("completed", Some(snapshot)) => Self::Completed(snapshot),
            ("deleting" | "deleted" | "cancelling" | "cancelled" | "error" | "failed", _) => Self::Failed {
                reason: reason(&text(|detail| detail.status_message()).unwrap_or_default()),
                status,
            },
            // The progress may be absent.
            _ => Self::Running(match text(|detail| detail.progress()) {
                Some(progress) => format!("{status}, {progress}%"),
                None => status,
            }),
        }
    }
}

/// Tags the imported snapshot, which has no tags before, and reads it back.
async fn tag(base: &Region, spec: &AmiSpec, id: &str, status: &Status) -> Result<Snapshot, Error> {
    let what = format!("tag {id} in {}", base.name);
    let tags = spec.tags_of_snapshot(CreatedBy::Import);
    let tagged = change("CreateTags", &what, || {
        base.ec2.create_tags().resources(id).set_tags(Some(write(&tags))).send()
    });
    tagged.await?;
    let snapshot = snapshot::completed(base, id, status).await?;
    if spec.is_ours(&snapshot.tags) {
        return Ok(snapshot);
    }
    confirmed(&what, status, || async {
        let found = snapshot::read(base, id).await?;
        Ok(found.filter(|found| spec.is_ours(&found.tags)))
    })
    .await
}
