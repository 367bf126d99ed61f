//! Answers that differ from those of today: none stops a publication, and none counts as success before it is read back.

use cloud_image_uploader_test_support::aws::{Effect, Fault};
use futures_util::future::join_all;

use crate::world::*;

/// The text with another one inside every element of this name.
fn inside(text: &str, name: &str, new: &str) -> String {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let mut parts = text.split(&start);
    let mut written = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (_, rest) = part.split_once(&end).unwrap();
        written.push_str(&format!("{start}{new}{end}{rest}"));
    }
    written
}

/// The text without the elements of this name.
fn without(text: &str, name: &str) -> String {
    inside(text, name, "").replace(&format!("<{name}></{name}>"), "")
}

/// One more member in every structure of a list, and beside the list.
fn more(text: &str) -> String {
    text.replace("</item>", "<novelty><item><word>new</word></item></novelty></item>")
        .replace("</requestId>", "</requestId><novelty>new</novelty>")
}

fn json(text: &str, name: &str, new: serde_json::Value) -> String {
    let mut body: serde_json::Value = serde_json::from_str(text).unwrap();
    body[name] = new;
    body.to_string()
}

/// Calls with this action, after so many usual ones, so many times (0: always).
type Answer = (Method, &'static str, u32, u32, fn(&str) -> String);

/// Every look for something comes before it exists, so the unusual answers are those that follow it.
const ANSWERS: &[Answer] = &[
    // Values that the client's model does not have.
    (Method::Direct, "DescribeImages", 1, 2, |text| {
        inside(text, "imageState", "preparing")
    }),
    (Method::Direct, "DescribeImages", 1, 2, |text| {
        inside(text, "imageState", "transient")
    }),
    (Method::Direct, "DescribeImages", 1, 0, |text| {
        inside(text, "architecture", "x86_64_v9")
    }),
    (Method::Direct, "DescribeSnapshots", 1, 3, |text| {
        inside(text, "status", "verifying")
    }),
    (Method::Import, "DescribeSnapshots", 1, 3, |text| {
        inside(text, "status", "verifying")
    }),
    (Method::Import, "DescribeImportSnapshotTasks", 1, 3, |text| {
        inside(text, "status", "validating")
    }),
    (Method::Direct, "StartSnapshot", 0, 0, |text| {
        json(text, "Status", "preparing".into())
    }),
    (Method::Direct, "CompleteSnapshot", 0, 0, |text| {
        json(text, "Status", "sealing".into())
    }),
    (Method::Direct, "GetImageBlockPublicAccessState", 0, 0, |text| {
        inside(text, "imageBlockPublicAccessState", "unblocked-by-policy")
    }),
    (Method::Direct, "DescribeSnapshotAttribute", 0, 0, |text| {
        text.replace("<group>all", "<userId>1</userId><group>all")
    }),
    // Lists and members that are missing.
    (Method::Direct, "DescribeImages", 1, 2, |text| {
        without(text, "blockDeviceMapping")
    }),
    (Method::Direct, "DescribeImages", 1, 2, |text| {
        without(text, "imageState")
    }),
    (Method::Direct, "DescribeImages", 1, 2, |text| {
        without(text, "imagesSet")
    }),
    (Method::Direct, "DescribeImages", 1, 0, |text| {
        without(text, "rootDeviceName")
    }),
    (Method::Direct, "DescribeSnapshots", 1, 2, |text| {
        without(text, "status")
    }),
    (Method::Direct, "DescribeSnapshots", 1, 0, |text| {
        without(&without(text, "startTime"), "progress")
    }),
    (Method::Direct, "DescribeSnapshotAttribute", 1, 1, |text| {
        without(text, "createVolumePermission")
    }),
    (Method::Import, "DescribeImportSnapshotTasks", 1, 2, |text| {
        without(text, "snapshotTaskDetail")
    }),
    (Method::Import, "DescribeImportSnapshotTasks", 1, 2, |text| {
        without(text, "snapshotId")
    }),
    (Method::Direct, "GetImageBlockPublicAccessState", 0, 0, |text| {
        without(text, "imageBlockPublicAccessState")
    }),
    (Method::Direct, "StartSnapshot", 0, 0, |text| {
        json(text, "Tags", serde_json::Value::Null)
    }),
    (Method::Direct, "StartSnapshot", 0, 1, |text| {
        json(text, "SnapshotId", serde_json::Value::Null)
    }),
    (Method::Direct, "RegisterImage", 0, 1, |text| without(text, "imageId")),
    (Method::Direct, "CopySnapshot", 0, 1, |text| without(text, "snapshotId")),
    (Method::Import, "ImportSnapshot", 0, 1, |text| {
        without(text, "importTaskId")
    }),
    // Members that are new.
    (Method::Direct, "DescribeImages", 0, 0, more),
    (Method::Direct, "DescribeSnapshots", 0, 0, more),
    (Method::Direct, "RegisterImage", 0, 0, more),
    (Method::Direct, "ModifyImageAttribute", 0, 0, more),
    (Method::Import, "DescribeImportSnapshotTasks", 0, 0, more),
    (Method::Direct, "StartSnapshot", 0, 0, |text| {
        json(text, "Novelty", serde_json::json!([{"word": "new"}]))
    }),
    // Times, with and without fractions.
    (Method::Direct, "DescribeImages", 0, 0, |text| {
        let date = format!("{}T00:00:00Z", end_of_life());
        inside(
            &inside(text, "deprecationTime", &date),
            "creationDate",
            "2026-03-05T01:02:03Z",
        )
    }),
    (Method::Direct, "DescribeSnapshots", 0, 0, |text| {
        inside(text, "startTime", "2026-03-05T01:02:03Z")
    }),
    (Method::Direct, "DescribeSnapshots", 0, 0, |text| {
        inside(text, "startTime", "2026-03-05T01:02:03.123456Z")
    }),
    (Method::Direct, "StartSnapshot", 0, 0, |text| {
        json(text, "StartTime", 1772672523.25.into())
    }),
    // Pages with nothing on them, and more to come.
    (Method::Direct, "DescribeSnapshots", 0, 1, |_| {
        empty("DescribeSnapshots", "snapshotSet", "after:snap-0")
    }),
    (Method::Direct, "DescribeImages", 0, 1, |_| {
        empty("DescribeImages", "imagesSet", "after:ami-0")
    }),
    (Method::Import, "DescribeImportSnapshotTasks", 0, 1, |_| {
        empty(
            "DescribeImportSnapshotTasks",
            "importSnapshotTaskSet",
            "after:import-snap-0",
        )
    }),
];

fn empty(action: &str, list: &str, token: &str) -> String {
    format!(
        "<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><{list}/><nextToken>{token}</nextToken>\
         </{action}Response>"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusual_answer_does_not_stop_a_publication() {
    let mut wrong = Vec::new();
    for (row, (method, action, after, times, rewrite)) in ANSWERS.iter().enumerate() {
        let world = World::small(&TWO, *method).await;
        // In one region only: each has its own looks.
        let region = if *action == "CopySnapshot" {
            "eu-west-1"
        } else {
            "us-east-1"
        };
        let fault = Fault::on(action, Effect::Rewrite(*rewrite))
            .region(region)
            .after(*after);
        world.cloud.fault(if *times == 0 { fault } else { fault.times(*times) });
        let exit = world.publish().await;
        let deleted = world.cloud.calls().iter().any(|call| call.action == "DeleteSnapshot");
        let shared = TWO.iter().all(|region| {
            let snapshots = world.cloud.snapshots(region);
            snapshots.len() == 1 && snapshots[0].permissions.public
        });
        if exit.code != Some(0) || deleted || !shared {
            wrong.push(format!(
                "row {row}, {action}: deleted {deleted}, shared {shared}\n{}",
                exit.stderr
            ));
            continue;
        }
        world.assert_complete();
        // Again, with the same answers to whatever is asked: nothing is left to do.
        world.cloud.forget_calls();
        let again = world.publish().await;
        let changes: Vec<_> = world.cloud.changes().into_iter().map(|call| call.action).collect();
        if again.code != Some(0) || !changes.is_empty() {
            wrong.push(format!("row {row}, {action}, again: {changes:?}\n{}", again.stderr));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The image is there: a page without it is not the whole answer.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_on_a_later_page_is_found() {
    let world = World::small(&TWO, Method::Direct).await;
    world.published().await;
    let page = Effect::Rewrite(|_| empty("DescribeImages", "imagesSet", "after:ami-0"));
    world
        .cloud
        .fault(Fault::on("DescribeImages", page).region("us-east-1").times(1));
    world.remove_images();
    world.cloud.forget_calls();
    world.published().await;
    assert!(world.cloud.changes().is_empty(), "{:?}", world.cloud.changes());
}

/// A server that never comes to the end of its list does not hold up anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_an_end_is_an_error() {
    let mut world = World::small(&["us-east-1"], Method::Direct).await;
    world.service = "give_up_after = \"2s\"\n".to_owned();
    let page = Effect::Rewrite(|_| empty("DescribeImages", "imagesSet", "after:ami-0"));
    world.cloud.fault(Fault::on("DescribeImages", page));
    let exit = world.publish().await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(exit.stderr.contains("no new page"), "{}", exit.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_2xx_is_success_once_it_is_read_back() {
    for (method, status, actions) in [
        (
            Method::Import,
            202,
            &[
                "UploadPart",
                "CreateMultipartUpload",
                "ImportSnapshot",
                "CreateTags",
                "DeleteObject",
                "HeadObject",
            ][..],
        ),
        (
            Method::Import,
            201,
            &[
                "CompleteMultipartUpload",
                "ListParts",
                "ListMultipartUploads",
                "DeleteObject",
            ],
        ),
        (
            Method::Direct,
            202,
            &["StartSnapshot", "PutSnapshotBlock", "CopySnapshot", "RegisterImage"],
        ),
        (
            Method::Direct,
            200,
            &["StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot"],
        ),
        (
            Method::Direct,
            204,
            &[
                "EnableImageDeprecation",
                "ModifyImageAttribute",
                "ModifySnapshotAttribute",
            ],
        ),
        (
            Method::Direct,
            203,
            &["DescribeImages", "DescribeSnapshots", "DescribeSnapshotAttribute"],
        ),
    ] {
        let world = World::small(&TWO, method).await;
        for action in actions {
            world.cloud.fault(Fault::on(action, Effect::Status(status)));
        }
        world.published().await;
        world.assert_complete();
    }
}

/// Answered as done, and not done.
#[tokio::test(flavor = "multi_thread")]
async fn success_is_read_back() {
    const DONE: &str = "<Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><return>true</return></Response>";
    const UPLOADED: &str = "<CompleteMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                            <ETag>\"0\"</ETag></CompleteMultipartUploadResult>";
    // The next attempt sees that it has to be done again.
    let repeated = [
        (Method::Import, "CompleteMultipartUpload", UPLOADED),
        (Method::Import, "CreateTags", DONE),
        (Method::Direct, "EnableImageDeprecation", DONE),
        (Method::Direct, "ModifySnapshotAttribute", DONE),
        (Method::Direct, "ModifyImageAttribute", DONE),
    ];
    let worlds = repeated.into_iter().map(|(method, action, text)| async move {
        let mut world = World::small(&["us-east-1"], method).await;
        world.service = "give_up_after = \"150s\"\n".to_owned();
        world.cloud.fault(Fault::on(action, Effect::Pretend(text)).times(1));
        let exit = world.publish().await;
        assert_eq!(exit.code, Some(0), "{action}: {}", exit.stderr);
        world.assert_complete();
        let image = world.image("us-east-1", "x86_64");
        let date = image.deprecated.map(|date| date.to_string()).unwrap_or_default();
        assert!(date.starts_with(&end_of_life()), "{action}: {date}");
        let snapshot = world.snapshot("us-east-1", &image.devices[0].snapshot);
        let compose = snapshot.tags.get(&format!("{PREFIX}compose-id"));
        assert_eq!(compose.map(String::as_str), Some(COMPOSE), "{action}");
    });
    join_all(worlds).await;
}
