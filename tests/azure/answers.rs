//! Answers of Azure in forms that its specification allows, and some that it does not: none stops a publication, and none
//! counts as success until the program has read the result.

use std::time::Duration;

use cloud_image_uploader_test_support::azure::Fault;
use serde_json::{Value, json};

use crate::world::*;

type Change = fn(&mut u16, &mut Value);

/// How many answers of a call are changed.
const ALL: usize = usize::MAX;

/// Adds members that no version of the API has.
fn add_members(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(add_members);
            members.insert("addedLater".to_owned(), json!({"by": ["Azure"], "since": null}));
        }
        Value::Array(elements) => elements.iter_mut().for_each(add_members),
        _ => {}
    }
}

fn extra_members(_: &mut u16, body: &mut Value) {
    let tags = body["tags"].take();
    add_members(body);
    if !tags.is_null() {
        body["tags"] = tags;
    }
}

fn each_replica(body: &mut Value, change: impl Fn(&mut Value)) {
    let summary = body["properties"]["replicationStatus"]["summary"].as_array_mut();
    summary.into_iter().flatten().for_each(change);
}

fn lower_case_states(_: &mut u16, body: &mut Value) {
    let lower = |state: &mut Value| *state = json!(state.as_str().unwrap_or_default().to_lowercase());
    lower(&mut body["properties"]["provisioningState"]);
    each_replica(body, |replica| lower(&mut replica["state"]));
}

const CASES: &[(&str, &str, usize, Change)] = &[
    ("202 without a document", "PUT version", ALL, |status, body| {
        (*status, *body) = (202, Value::Null);
    }),
    ("200 for 201", "PUT version", ALL, |status, _| *status = 200),
    ("a text instead of a document", "PUT version", ALL, |_, body| {
        *body = json!("created")
    }),
    ("202 without a document", "PUT definition", ALL, |status, body| {
        (*status, *body) = (202, Value::Null);
    }),
    ("202 without a document", "PUT gallery", ALL, |status, body| {
        (*status, *body) = (202, Value::Null);
    }),
    ("extra members", "GET version", ALL, extra_members),
    ("extra members", "GET definition", ALL, extra_members),
    ("extra members", "GET gallery", ALL, extra_members),
    ("extra members", "GET operation", ALL, extra_members),
    ("extra members", "POST token", ALL, extra_members),
    ("an unknown provisioning state", "GET version", 4, |_, body| {
        body["properties"]["provisioningState"] = json!("Validating");
    }),
    ("an unknown provisioning state", "GET definition", 1, |_, body| {
        body["properties"]["provisioningState"] = json!("Accepted");
    }),
    ("an unknown provisioning state", "GET gallery", 1, |_, body| {
        body["properties"]["provisioningState"] = json!("Accepted");
    }),
    ("no provisioning state", "GET definition", ALL, |_, body| {
        body["properties"]["provisioningState"] = Value::Null;
    }),
    ("no provisioning state", "GET gallery", ALL, |_, body| {
        body["properties"]["provisioningState"] = Value::Null;
    }),
    ("states in lower case", "GET version", ALL, lower_case_states),
    ("states in lower case", "GET definition", ALL, lower_case_states),
    ("an unknown state of replication", "GET version", 4, |_, body| {
        each_replica(body, |replica| replica["state"] = json!("Queued"));
    }),
    ("no state of replication", "GET version", 4, |_, body| {
        each_replica(body, |replica| replica["state"] = Value::Null);
    }),
    ("no replicas", "GET version", 4, |_, body| {
        body["properties"]["replicationStatus"]["summary"] = Value::Null;
    }),
    ("no replication status", "GET version", 4, |_, body| {
        body["properties"]["replicationStatus"] = Value::Null;
    }),
    ("an answer without a document", "GET version", 1, |status, body| {
        (*status, *body) = (204, Value::Null);
    }),
    ("an unknown status of an operation", "GET operation", 2, |_, body| {
        body["status"] = json!("Replicating");
    }),
    ("no status of an operation", "GET operation", 2, |_, body| {
        body["status"] = Value::Null
    }),
    ("an operation without a document", "GET operation", 2, |status, body| {
        (*status, *body) = (204, Value::Null);
    }),
    ("an operation that succeeds early", "GET operation", ALL, |_, body| {
        body["status"] = json!("Succeeded");
    }),
    ("features null", "GET definition", ALL, |_, body| {
        body["properties"]["features"] = Value::Null;
    }),
    ("sharing null", "GET gallery", ALL, |_, body| {
        body["properties"]["sharingProfile"] = Value::Null;
    }),
    ("public names null", "GET gallery", ALL, |_, body| {
        body["properties"]["sharingProfile"] =
            json!({"permissions": "Somehow", "communityGalleryInfo": {"publicNames": null}});
    }),
    ("a lifetime in a text", "POST token", ALL, |_, body| {
        body["expires_in"] = json!("3599")
    }),
    ("a lifetime with a fraction", "POST token", ALL, |_, body| {
        body["expires_in"] = json!(3599.5)
    }),
    ("no lifetime", "POST token", ALL, |_, body| {
        body["expires_in"] = Value::Null
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn odd_answers_do_not_stop_a_publication() {
    // Azurite serves all cases.
    let _azurite = cloud_image_uploader_test_support::azure::Azurite::start()
        .await
        .unwrap();
    each(CASES, async |(what, call, times, change)| {
        let world = World::new(&["eastus", "westus2"]).await;
        world.azure.set_times(|times| times.import = Duration::from_millis(600));
        // Every document is also put back.
        world.azure.fail_region("westus2", 1);
        world.azure.fault(call, Fault::Answer(*change), *times);
        let disk = disk("x86_64");
        world.compose(vec![row("x86_64", &disk)]);
        let exit = world.reconsume(&[]).await;
        assert_eq!(exit.code, Some(0), "{call}: {what}: {}", exit.stderr);
        world.assert_published(X64, &disk).await;
        assert_eq!(world.regions(), ["eastus", "westus2"], "{call}: {what}");
        let (changes, versions) = (world.azure.changes().len(), world.azure.versions());
        assert_eq!(versions.len(), 1, "{call}: {what}");
        let exit = world.reconsume(&[]).await;
        assert_eq!(exit.code, Some(0), "{call}: {what}: {}", exit.stderr);
        assert_eq!(
            world.azure.changes().len(),
            changes,
            "{call}: {what}: {:?}",
            world.azure.changes()
        );
    })
    .await;
}

/// An answer says that everything succeeded, and the version is not there, or is still being created.
#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_cannot_be_read_back_is_not_announced() {
    let world = World::new(&["eastus"]).await.giving_up_after("3s");
    world
        .azure
        .fault("GET version", Fault::Status(404, "ResourceNotFound"), usize::MAX);
    world.compose(vec![row("x86_64", &disk("x86_64"))]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stderr);
    assert!(!exit.stdout.contains("| published"), "{}", exit.stdout);
}
