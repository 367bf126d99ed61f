//! Unusual forms of success: none stops a publication that the API lets through, and none counts before it is read back.

use std::time::Duration;

use cloud_image_uploader::providers::contract::{Publish, Retire};
use cloud_image_uploader_test_support::gcp::{Emulator, Fault};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::policies::{age, make};
use crate::world::*;

/// A change of a JSON answer.
fn with(mut body: Value, fields: Value) -> Option<Value> {
    let fields = fields.as_object().cloned().unwrap_or_default();
    body.as_object_mut()?.extend(fields);
    Some(body)
}

fn without(mut body: Value, field: &str) -> Option<Value> {
    body.as_object_mut()?.remove(field);
    Some(body)
}

/// The image is complete, in its family, deprecated, and made of the right bytes; the notification has its address.
async fn assert_published(world: &World, what: &str) {
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    let outcome = publish(&world.provider(), &deliverable).await;
    let outcome = outcome.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    let address = &outcome.places[0].id;
    assert!(
        address.ends_with(&format!("/projects/test-project/global/images/{IMAGE}")),
        "{what}: {address}"
    );
    let image = &world.cloud.images()[IMAGE];
    assert_eq!(
        (&image["family"], &image["deprecated"]["state"]),
        (&json!(FAMILY), &json!("DEPRECATED")),
        "{what}"
    );
    assert_eq!(
        world.cloud.content(IMAGE),
        Some(deliverable.images[0].sha256.clone()),
        "{what}"
    );
    assert!(world.cloud.faults_met(), "{what}");
    assert_eq!(
        world.cloud.heads(FAMILY),
        Vec::new(),
        "{what}: it was the head for a moment"
    );
    world.assert_only(&[IMAGE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_images_are_read() {
    let table: Vec<(&str, Fault)> = vec![
        (
            "an unknown status at first",
            Fault::body(|image| with(image, json!({"status": "STAGING"}))),
        ),
        ("no status at first", Fault::body(|image| without(image, "status"))),
        (
            "an unknown state of deprecation",
            Fault::body(|image| with(image, json!({"deprecated": {"state": "PAUSED", "pausedSince": 1}}))),
        ),
        (
            "an empty deprecation",
            Fault::body(|image| with(image, json!({"deprecated": {}}))),
        ),
        (
            "null lists and members",
            Fault::body(|image| {
                with(
                    image,
                    json!({"guestOsFeatures": null, "licenses": null, "storageLocations": null, "family": null,
                "deprecated": null, "description": null, "shieldedInstanceInitialState": null}),
                )
            }),
        ),
        (
            "unknown values and members",
            Fault::body(|image| {
                with(
                    image,
                    json!({"architecture": "RISCV64", "guestOsFeatures": [{"type": "QUANTUM", "since": {}}],
                "sourceType": "COPY", "params": {"a": [1]}, "satisfiesPzs": true}),
                )
            }),
        ),
        (
            "a time with an offset and fractions",
            Fault::body(|image| {
                with(
                    image,
                    json!({"creationTimestamp": "2025-10-23T06:30:00.123456789-07:00"}),
                )
            }),
        ),
        ("no address", Fault::body(|image| without(image, "selfLink"))),
        ("status 203", Fault::status(203)),
    ];
    for (what, fault) in table {
        for looks in 1..=3 {
            let world = World::new().await;
            world.cloud.fault("images.get", Fault::Nothing, looks);
            world.cloud.fault("images.get", fault.clone(), 1);
            assert_published(&world, &format!("{what}, look {looks}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_operations_are_followed_or_their_effect_is_looked_for() {
    let table: Vec<(&str, Fault)> = vec![
        ("accepted without a body", Fault::empty(202)),
        ("an empty success", Fault::empty(200)),
        ("no content", Fault::empty(204)),
        ("created", Fault::status(201)),
        ("a null operation", Fault::body(|_| Some(json!({})))),
        ("no name", Fault::body(|operation| without(operation, "name"))),
        (
            "an unknown status",
            Fault::body(|operation| with(operation, json!({"status": "QUEUED"}))),
        ),
        (
            "an unknown status without a name",
            Fault::body(|operation| with(operation, json!({"status": "QUEUED", "name": null}))),
        ),
        (
            "no errors",
            Fault::body(|operation| with(operation, json!({"error": {"errors": []}}))),
        ),
        (
            "null errors",
            Fault::body(|operation| with(operation, json!({"error": {"errors": null}}))),
        ),
        (
            "the status of a success",
            Fault::body(|operation| with(operation, json!({"httpErrorStatusCode": 200, "httpErrorMessage": "OK"}))),
        ),
        (
            "warnings and unknown members",
            Fault::body(|operation| {
                with(
                    operation,
                    json!({"warnings": [{"code": "NEW_ONE", "data": null}], "phase": {"a": null},
                "operationType": null, "progress": null, "endTime": "2025-10-23T06:30:00-07:00"}),
                )
            }),
        ),
    ];
    for (what, fault) in table {
        for delay in [0, 300] {
            let world = World::new().await;
            world.cloud.set_delay(Duration::from_millis(delay));
            for call in ["images.insert", "images.deprecate", "images.patch"] {
                world.cloud.fault(call, fault.clone(), 1);
            }
            if delay > 0
                && !["no name", "without", "null operation", "empty", "no content"]
                    .iter()
                    .any(|part| what.contains(part))
            {
                world.cloud.fault("globalOperations.get", fault.clone(), 1);
            }
            assert_published(&world, &format!("{what}, {delay} ms")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_answers_of_the_bucket_are_read() {
    let all = |bytes: usize| format!("bytes=0-{}", bytes - 1);
    let whole = all(tarball(1, 1000).len());
    let numbers: fn(Value) -> Option<Value> = |object| {
        let number = |field: &str| object[field].as_str().and_then(|text| text.parse::<u64>().ok());
        let (size, generation) = (number("size"), number("generation"));
        with(object, json!({"size": size, "generation": generation, "cors": null}))
    };
    let table: Vec<(&str, &str, Fault)> = vec![
        ("an upload is created", "objects.upload", Fault::status(201)),
        ("an upload ends without a body", "objects.upload", Fault::empty(200)),
        (
            "an upload is created without a body",
            "objects.upload",
            Fault::empty(201),
        ),
        (
            "an upload's end says little",
            "objects.upload",
            Fault::body(|_| Some(json!({"kind": "storage#object"}))),
        ),
        (
            "an upload's end has nulls",
            "objects.upload",
            Fault::body(|object| {
                with(
                    object,
                    json!({"metadata": null, "crc32c": null, "size": null, "generation": null}),
                )
            }),
        ),
        ("an upload's end has numbers", "objects.upload", Fault::body(numbers)),
        (
            "everything is taken and more asked for",
            "objects.upload",
            Fault::incomplete(&whole),
        ),
        (
            "the range has no unit",
            "objects.upload",
            Fault::incomplete(&whole["bytes=".len()..]),
        ),
        (
            "the unit is set off by a blank",
            "objects.upload",
            Fault::incomplete(&whole.replace('=', " ")),
        ),
        ("an upload begins with 201", "objects.insert", Fault::status(201)),
        ("an upload begins without a body", "objects.insert", Fault::empty(200)),
        (
            "an object is deleted with a body",
            "objects.delete",
            Fault::body(|_| Some(json!({}))),
        ),
        ("an object is deleted with 202", "objects.delete", Fault::empty(202)),
    ];
    for (what, call, fault) in table {
        let world = World::new().await;
        world.cloud.fault(call, fault, 1);
        assert_published(&world, what).await;
    }

    // The object is there from an earlier attempt, and described in an unusual way.
    for (what, fault) in [
        ("numbers", Fault::body(numbers)),
        (
            "unknown members",
            Fault::body(|object| with(object, json!({"hardDelete": {"at": null}, "owner": null}))),
        ),
    ] {
        let world = World::new().await;
        let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
        let sha256 = &deliverable.images[0].sha256;
        let metadata = [("image-sha256", sha256.as_str())];
        let object = format!("{IMAGE}-{sha256}.tar.gz");
        world
            .cloud
            .put_object(&object, tarball(1, 1000), &metadata)
            .await
            .unwrap();
        world.cloud.fault("objects.get", fault, 2);
        assert_published(&world, what).await;
        assert_eq!(world.cloud.count("objects.upload"), 0, "{what}");
    }

    // An object without our metadata is not ours to trust: the bytes are sent again.
    let world = World::new().await;
    let sha256 = world.deliverable(COMPOSE, row(tarball(1, 1000))).await.images[0]
        .sha256
        .clone();
    let object = format!("{IMAGE}-{sha256}.tar.gz");
    world.cloud.put_object(&object, b"other".to_vec(), &[]).await.unwrap();
    let null: fn(Value) -> Option<Value> = |object| with(object, json!({"metadata": null}));
    world.cloud.fault("objects.get", Fault::body(null), 1);
    assert_published(&world, "null metadata").await;
    assert_eq!(world.cloud.count("objects.upload"), 1);
}

/// A proxy may answer 200 to any piece, whatever it did with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_success_before_the_end_of_an_upload_is_asked_about() {
    for body in [Fault::empty(200), Fault::body(|_| Some(json!({}))), Fault::status(201)] {
        let world = World::with(Emulator::GcpStorageEmulator).await;
        let body = match body {
            Fault::Altered(answer) => Fault::Altered(cloud_image_uploader_test_support::gcp::Answer {
                status: answer.status.or(Some(200)),
                ..answer
            }),
            other => other,
        };
        world.cloud.fault("objects.upload", body.clone(), 1);
        let deliverable = world.deliverable(COMPOSE, row(tarball(1, 20 << 20))).await;
        let outcome = publish(&world.provider(), &deliverable).await;
        outcome.unwrap_or_else(|failure| panic!("{body:?}: {failure}"));
        assert!(world.cloud.faults_met());
        assert_eq!(world.cloud.count("objects.insert"), 1, "it is still one upload");
        assert_eq!(world.cloud.content(IMAGE), Some(deliverable.images[0].sha256.clone()));
    }
}

/// Successes that did nothing: the effect is missing, so nothing is announced, and the image is never the head.
#[tokio::test(flavor = "multi_thread")]
async fn a_pretended_success_is_not_believed() {
    let done = json!({"kind": "compute#operation", "name": "operation-1", "status": "DONE", "progress": 100});
    for call in ["images.insert", "images.deprecate", "images.patch"] {
        let world = World::new().await;
        let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
        world.cloud.fault(call, Fault::Pretends(done.clone()), 5);
        let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
        assert!(failure.class().is_transient(), "{call}: {failure}");
        assert_eq!(world.cloud.head(FAMILY), None, "{call}");
        world.cloud.mend();
        publish(&world.provider(), &deliverable).await.unwrap();
        assert_eq!(
            world.cloud.heads(FAMILY),
            Vec::new(),
            "{call}: it was the head for a moment"
        );
        world.assert_only(&[IMAGE]).await;
    }

    let world = World::new().await;
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    world.cloud.fault("objects.upload", Fault::Pretends(json!({})), 1);
    let failure = publish(&world.provider(), &deliverable).await.unwrap_err();
    assert!(failure.class().is_transient(), "{failure}");
    assert_eq!(world.cloud.count("images.insert"), 0);
    publish(&world.provider(), &deliverable).await.unwrap();
    world.assert_only(&[IMAGE]).await;
}

/// A family keeps its head if the promotion of the next one had no effect.
#[tokio::test(flavor = "multi_thread")]
async fn a_pretended_promotion_leaves_the_head() {
    let world = World::new().await;
    let first = make(&world, 1).await;
    age(&world, 2);
    world.provider().clean_up(false).await.unwrap();
    make(&world, 2).await;
    age(&world, 20);
    let done = json!({"name": "operation-1", "status": "DONE"});
    world.cloud.fault("images.deprecate", Fault::Pretends(done), 1);
    world.provider().clean_up(false).await.unwrap();
    assert_eq!(world.cloud.head(FAMILY), Some(first.clone()));
    assert_eq!(
        world.cloud.heads(FAMILY),
        [Some(first)],
        "the family lost its head for a moment"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_lists_are_read() {
    let odd: fn(Value) -> Option<Value> = |mut list| {
        let odd = json!([
            {"name": "odd-1", "status": "READY", "family": "odd"},
            {"name": "odd-2", "id": "1", "creationTimestamp": "yesterday"},
            {"id": null, "creationTimestamp": null, "labels": null, "name": null},
        ]);
        list["items"].as_array_mut()?.extend(odd.as_array()?.clone());
        Some(list)
    };
    let table: Vec<(&str, Fault)> = vec![
        (
            "an empty page that is not the last",
            Fault::body(|_| Some(json!({"nextPageToken": "!"}))),
        ),
        (
            "a null page that is not the last",
            Fault::body(|_| Some(json!({"items": null, "nextPageToken": "!"}))),
        ),
        (
            "an empty page with the warning that belongs to it",
            Fault::body(|_| {
                Some(json!({"nextPageToken": "!", "warning": {"code": "NO_RESULTS_ON_PAGE", "message": "none"}}))
            }),
        ),
        (
            "an empty token",
            Fault::body(|list| with(list, json!({"nextPageToken": "", "warning": null}))),
        ),
        (
            "unknown members",
            Fault::body(|list| with(list, json!({"unreachables": null, "etag": {"a": 1}}))),
        ),
        ("images of others without number or time", Fault::body(odd)),
        (
            "times with fractions and offsets",
            Fault::body(|mut list| {
                for image in list["items"].as_array_mut()? {
                    let at: Timestamp = image["creationTimestamp"].as_str()?.parse().ok()?;
                    let at = at - SignedDuration::from_millis(5);
                    image["creationTimestamp"] = json!(at.strftime("%Y-%m-%dT%H:%M:%S.%f+00:00").to_string());
                }
                Some(list)
            }),
        ),
        ("status 203", Fault::status(203)),
    ];
    for (what, fault) in table {
        let world = World::new().await;
        let first = make(&world, 1).await;
        age(&world, 2);
        world.cloud.fault("images.list", fault.clone(), 1);
        let retired = world.provider().clean_up(false).await;
        retired.unwrap_or_else(|failure| panic!("{what}: {failure}"));
        assert_eq!(world.cloud.head(FAMILY), Some(first), "{what}");
        world.cloud.fault("images.list", fault, 1);
        let findings = world.provider().check().await;
        let wrong: Vec<_> = findings.iter().filter(|finding| finding.result.is_err()).collect();
        assert!(wrong.is_empty(), "{what}: {wrong:?}");
    }
    // A warning that we do not know may be a hole.
    let world = World::new().await;
    let hole: fn(Value) -> Option<Value> = |list| with(list, json!({"warning": {"code": "NEW_ONE"}}));
    world.cloud.fault("images.list", Fault::body(hole), 1);
    world.provider().clean_up(false).await.unwrap_err();
}

/// An odd image in one of our families: nothing in that family is deleted or promoted.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_image_keeps_its_family_as_it_is() {
    let world = World::new().await;
    let name = make(&world, 1).await;
    age(&world, 40);
    let odd: fn(Value) -> Option<Value> = |mut list| {
        let image = json!({"name": "odd", "status": "READY", "family": FAMILY});
        list["items"].as_array_mut()?.push(image);
        Some(list)
    };
    world.cloud.fault("images.list", Fault::body(odd), 1);
    let writes = world.cloud.writes().len();
    let retired = world.provider().clean_up(false).await.unwrap();
    assert_eq!(world.cloud.writes().len(), writes, "{retired:?}");
    assert!(world.cloud.images().contains_key(&name));
}
