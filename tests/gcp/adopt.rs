//! Existing images: adopted, completed, refused, or replaced.

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::model::outcome::Origin;
use cloud_image_uploader_test_support::gcp::Fault;
use serde_json::{Value, json};

use crate::world::*;

/// Publishes an image, changes it, and publishes again.
async fn after(change: impl FnOnce(&mut Value)) -> (World, Result<Origin, String>) {
    let world = World::new().await;
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    publish(&world.provider(), &deliverable).await.unwrap();
    let mut change = Some(change);
    world.cloud.change_images(|image| (change.take().unwrap())(image));
    let outcome = publish(&world.provider(), &deliverable).await;
    let outcome = outcome
        .map(|publication| publication.places[0].origin)
        .map_err(|failure| {
            assert_eq!(failure.class(), Class::Deliverable, "{failure}");
            failure.to_string()
        });
    (world, outcome)
}

fn remove(image: &mut Value, fields: &[&str]) {
    for field in fields {
        image.as_object_mut().unwrap().remove(*field);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_another_process_started_is_completed() {
    let is = |state: &str| json!({"state": state});
    for deprecated in [is("DEPRECATED"), is("ACTIVE"), Value::Null] {
        let (world, outcome) = after(|image| {
            remove(image, &["family"]);
            image["deprecated"] = deprecated.clone();
        })
        .await;
        assert_eq!(outcome, Ok(Origin::Created), "{deprecated}");
        let image = &world.cloud.images()[IMAGE];
        assert_eq!(
            (&image["family"], &image["deprecated"]["state"]),
            (&json!(FAMILY), &json!("DEPRECATED"))
        );
        assert_eq!(world.cloud.count("images.insert"), 1);
        world.assert_only(&[IMAGE]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_failed_is_replaced() {
    let (world, outcome) = after(|image| image["status"] = json!("FAILED")).await;
    assert_eq!(outcome, Ok(Origin::Created));
    assert_eq!(
        (world.cloud.count("images.delete"), world.cloud.count("images.insert")),
        (1, 2)
    );
    world.assert_only(&[IMAGE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_image_that_is_not_ours_is_left_alone() {
    for (labels, expected) in [
        (json!({"team": "somebody"}), "it has no mark of this program"),
        (Value::Null, "it has no mark of this program"),
        (
            json!({"owner": "cloud-image-uploader", "compose-id": "fedora-cloud-43-20251023_0", "delete": "never"}),
            "its label says delete=never",
        ),
        (
            json!({"owner": "cloud-image-uploader", "compose-id": "fedora-cloud-43-20251023_0", "delete": "NEVER"}),
            "its label says delete=never",
        ),
    ] {
        let (world, outcome) = after(|image| {
            image["status"] = json!("FAILED");
            remove(image, &["labels"]);
            if labels.is_object() {
                image["labels"] = labels.clone();
            }
        })
        .await;
        let text = outcome.unwrap_err();
        assert!(text.contains(expected) && text.contains("delete it first"), "{text}");
        assert_eq!(world.cloud.count("images.delete"), 0);
        assert_eq!(world.cloud.images()[IMAGE]["status"], "FAILED");
        assert_eq!(world.cloud.objects().await.unwrap(), Vec::<String>::new());
    }
}

/// An image that an operator or the policy promoted remains the head.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_image_is_not_deprecated_again() {
    let (world, outcome) = after(|image| remove(image, &["deprecated"])).await;
    assert_eq!(outcome, Ok(Origin::Found));
    assert_eq!(world.cloud.head(FAMILY).as_deref(), Some(IMAGE));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_the_previous_service_is_adopted_by_name_and_not_changed() {
    let (world, outcome) = after(|image| remove(image, &["labels", "deprecated", "family"])).await;
    assert_eq!(outcome, Ok(Origin::Found));
    let image = &world.cloud.images()[IMAGE];
    assert_eq!((&image["family"], &image["deprecated"]), (&Value::Null, &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_taken_by_other_content_or_another_owner_is_an_error() {
    let world = World::new().await;
    let first = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    publish(&world.provider(), &first).await.unwrap();
    let second = world.deliverable(COMPOSE, row(tarball(2, 1000))).await;
    let writes = world.cloud.writes().len();
    let failure = publish(&world.provider(), &second).await.unwrap_err();
    assert_eq!(failure.class(), Class::Deliverable);
    let text = failure.to_string();
    assert!(
        text.contains(&first.images[0].sha256) && text.contains(&second.images[0].sha256),
        "{text}"
    );
    assert_eq!(world.cloud.writes().len(), writes);

    let (world, outcome) = after(|image| image["labels"]["owner"] = json!("coreos")).await;
    assert!(outcome.unwrap_err().contains("belongs to coreos"));
    assert_eq!(world.cloud.count("images.insert"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nightly_and_an_unlabelled_candidate_of_one_day_have_different_names() {
    let world = World::new().await;
    let composes = [
        ("Fedora-43-20251023.n.0", IMAGE),
        ("Fedora-43-20251023.0", "fedora-cloud-43-20251023-100-x86-64"),
    ];
    for (seed, (compose, name)) in (1..).zip(composes) {
        let deliverable = world.deliverable(compose, row(tarball(seed, 1000))).await;
        assert_eq!(deliverable.name(), name);
        publish(&world.provider(), &deliverable).await.unwrap();
        assert_eq!(world.cloud.content(name), Some(deliverable.images[0].sha256.clone()));
    }
    world.assert_only(&composes.map(|(_, name)| name)).await;
}

/// An operator may write `delete=never` in any letter case; nothing of such an image is changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_image_is_adopted_and_not_changed() {
    for value in ["never", "Never"] {
        let (world, outcome) = after(|image| {
            remove(image, &["family", "deprecated"]);
            image["labels"]["delete"] = json!(value);
        })
        .await;
        assert_eq!(outcome, Ok(Origin::Found), "{value}");
        let image = &world.cloud.images()[IMAGE];
        assert_eq!((&image["family"], &image["deprecated"]), (&Value::Null, &Value::Null));
    }
}

/// Another process creates an image of other content, after this one looked first or before it tries again.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_for_a_name_that_is_taken_is_deleted() {
    for looked_before in [true, false] {
        let world = World::new().await;
        let first = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
        publish(&world.provider(), &first).await.unwrap();
        let bytes = tarball(2, 1000);
        let second = world.deliverable(COMPOSE, row(bytes.clone())).await;
        let inserts = if looked_before {
            world.cloud.fault("images.get", Fault::refuse(404, "notFound"), 1);
            2
        } else {
            let sha256 = &second.images[0].sha256;
            let object = format!("{IMAGE}-{sha256}.tar.gz");
            let metadata = [("image-sha256", sha256.as_str())];
            world.cloud.put_object(&object, bytes, &metadata).await.unwrap();
            1
        };
        let failure = publish(&world.provider(), &second).await.unwrap_err();
        assert_eq!(failure.class(), Class::Deliverable, "{failure}");
        assert!(failure.to_string().contains("with another content"), "{failure}");
        assert_eq!(world.cloud.count("images.insert"), inserts);
        assert_eq!(world.cloud.content(IMAGE).as_ref(), Some(&first.images[0].sha256));
        world.assert_only(&[IMAGE]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_right_is_reused_and_another_replaced() {
    let bytes = tarball(1, 1000);
    for (metadata_is_right, uploads) in [(true, 0), (false, 1)] {
        let world = World::new().await;
        let deliverable = world.deliverable(COMPOSE, row(bytes.clone())).await;
        let sha256 = deliverable.images[0].sha256.clone();
        let metadata = [(
            "image-sha256",
            if metadata_is_right { sha256.as_str() } else { "other" },
        )];
        let object = format!("{IMAGE}-{sha256}.tar.gz");
        world.cloud.put_object(&object, bytes.clone(), &metadata).await.unwrap();
        publish(&world.provider(), &deliverable).await.unwrap();
        assert_eq!(world.cloud.count("objects.upload"), uploads);
        assert_eq!(world.cloud.content(IMAGE), Some(sha256));
        world.assert_only(&[IMAGE]).await;
    }
}
