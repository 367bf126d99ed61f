//! The first way to a snapshot: AWS
//! [imports](https://docs.aws.amazon.com/vm-import/latest/userguide/vmimport-import-snapshot.html) a raw disk from an
//! object of the bucket, with a role that may read it.
//!
//! Object, task, and snapshot are each found again by whoever comes later: by the key, by the task's tags (the snapshot
//! gets its own only afterwards), and by the snapshot's tags. The object goes once the task has ended, never before: a task
//! reads it to the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{ImportSnapshotTask, ResourceType, SnapshotDiskContainer, UserBucket};
use tokio::sync::Semaphore;

use super::client::{Region, call};
use super::error::Error;
use super::s3::Object;
use super::snapshot::{self, Snapshot};
use super::wanted::{Made, Wanted, read, specification, write};
use crate::base::failure::{Class, Classified, Failure, reason};
use crate::images::source::Source;
use crate::providers::poll::{Look, Status, until};

/// Imports of a disk this size were seen to take a quarter of an hour, and more than an hour and a half.
const LONGEST: Duration = Duration::from_secs(4 * 60 * 60);
/// A new task may not be seen for so long.
const UNSEEN: Duration = Duration::from_secs(2 * 60);
/// Tasks that failed on AWS's side before the image counts as failed. The object is kept as long.
const TASKS: usize = 3;

/// What there is of an import.
#[derive(Debug)]
enum Found {
    /// A snapshot.
    Snapshot(String),
    /// A task that goes on.
    Running(String),
    /// Nothing of use, and so many tasks that have ended.
    Nothing(usize),
}

/// Makes the snapshot in the base region, or completes what another process began.
pub(super) async fn import(
    base: &Region,
    wanted: &Wanted,
    object: &Object,
    role: &str,
    source: &Source,
    memory: &Arc<Semaphore>,
    status: &Status,
) -> Result<Snapshot, Failure> {
    if let Found::Nothing(_) = find(base, wanted).await?
        && !object.exists().await?
    {
        status.set("uploading the disk");
        object.upload(source, memory).await?;
        tracing::info!("uploaded {object}");
    }
    let imported = run(base, wanted, object, role, status).await;
    match imported {
        Ok(id) => {
            object.clear().await;
            tag(base, wanted, &id).await?;
            let snapshot = snapshot::completed(base, &id, status).await?;
            tracing::info!(region = base.name, snapshot = id, "imported {object} as {id}");
            Ok(snapshot)
        }
        Err(error) => {
            // A task that could not be looked at may still be reading.
            if matches!(error, Error::Import { .. }) {
                object.clear().await;
            }
            Err(error.into())
        }
    }
}

/// Follows a task to its end, and returns the id of the snapshot.
async fn run(base: &Region, wanted: &Wanted, object: &Object, role: &str, status: &Status) -> Result<String, Error> {
    let mut tries = 0;
    loop {
        // Also after an upload: another process may have been faster.
        let task = match find(base, wanted).await? {
            Found::Snapshot(id) => return Ok(id),
            Found::Running(task) => task,
            Found::Nothing(ended) => match start(base, wanted, object, role, ended).await {
                Ok(task) => task,
                Err(error) => {
                    // What an operator mends is tried again with the same object.
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
async fn find(base: &Region, wanted: &Wanted) -> Result<Found, Error> {
    let what = format!("look for imports of {} in {}", wanted.name, base.name);
    let mut ended = 0;
    let mut page: Option<String> = None;
    loop {
        let list = || {
            let list = base.ec2.describe_import_snapshot_tasks();
            list.set_next_token(page.clone()).send()
        };
        let answer = call("DescribeImportSnapshotTasks", &what, list).await?;
        let tasks = answer.import_snapshot_tasks().iter();
        for task in tasks.filter(|task| wanted.is_ours(&read(task.tags()))) {
            let (id, state) = (task.import_task_id().unwrap_or_default(), State::of(task));
            match state {
                State::Running(_) => return Ok(Found::Running(id.to_owned())),
                // Its snapshot may have been deleted since.
                State::Completed(made) => match snapshot::again(base, &made).await? {
                    Some(_) => return Ok(Found::Snapshot(made)),
                    None => ended += 1,
                },
                State::Failed { .. } => ended += 1,
            }
        }
        page = answer.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        if page.is_none() {
            return Ok(Found::Nothing(ended));
        }
    }
}

/// A token goes with the number of tasks that have ended: one of those would come back otherwise.
async fn start(base: &Region, wanted: &Wanted, object: &Object, role: &str, ended: usize) -> Result<String, Error> {
    let what = format!("import {object} in {}", base.name);
    let token = wanted.token(&[&base.name, &object.bucket, &object.key, role], ended);
    let answer = call("ImportSnapshot", &what, || {
        let bucket = UserBucket::builder()
            .s3_bucket(&object.bucket)
            .s3_key(&object.key)
            .build();
        let disk = SnapshotDiskContainer::builder()
            .description(&wanted.description)
            .format("RAW")
            .user_bucket(bucket)
            .build();
        base.ec2
            .import_snapshot()
            .client_token(&token)
            .description(&wanted.description)
            .disk_container(disk)
            .role_name(role)
            .tag_specifications(specification(ResourceType::ImportSnapshotTask, wanted.tags()))
            .send()
    })
    .await?;
    let task = answer.import_task_id().map(str::to_owned);
    task.ok_or_else(|| Error::lacking(&what, "the task's id"))
}

async fn follow(base: &Region, task: &str, object: &Object, status: &Status) -> Result<String, Error> {
    let what = format!("import {object}");
    let started = Instant::now();
    until(&what, LONGEST, status, || async {
        let what = format!("read {task} in {}", base.name);
        let answer = call("DescribeImportSnapshotTasks", &what, || async {
            let read = base.ec2.describe_import_snapshot_tasks().import_task_ids(task);
            match read.send().await {
                // New ones are not seen at once.
                Err(error) if Error::is(&error, "InvalidConversionTaskId") && started.elapsed() < UNSEEN => Ok(None),
                answer => answer.map(Some),
            }
        })
        .await?;
        let found = answer
            .as_ref()
            .and_then(|answer| answer.import_snapshot_tasks().first());
        let Some(found) = found else {
            return Ok(Look::Wait(format!("{task} is not seen yet")));
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

/// Where a task is.
enum State {
    /// How far it is.
    Running(String),
    /// The snapshot it made.
    Completed(String),
    /// There is no "failed": AWS deletes what it has made so far.
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
            ("deleting" | "deleted" | "cancelling" | "cancelled" | "error", _) => Self::Failed {
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

async fn tag(base: &Region, wanted: &Wanted, id: &str) -> Result<(), Error> {
    let what = format!("tag {id} in {}", base.name);
    let tags = wanted.tags_of_snapshot(Made::Import);
    let tagged = call("CreateTags", &what, || {
        base.ec2.create_tags().resources(id).set_tags(Some(write(&tags))).send()
    });
    tagged.await.map(drop)
}
