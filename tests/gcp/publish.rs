//! Images read back by Google's own client, and repetitions that change nothing.

use cloud_image_uploader::messaging::notify::Notice;
use cloud_image_uploader::model::compose::release::{Release, Stage};
use cloud_image_uploader::model::outcome::Origin;
use cloud_image_uploader::providers::contract::{Publish, Task};
use cloud_image_uploader_test_support::fedora_messaging::FedoraMessaging;
use cloud_image_uploader_test_support::gcp::{Emulator, PROJECT};
use serde_json::{Value, json};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn both_architectures_of_a_compose_are_published() {
    let world = World::new().await;
    let release = Release {
        stage: Stage::Rc,
        ..release()
    };
    let folder = fixtures().join("sample/compose");
    let deliverables = world
        .select(&folder, "Fedora-43-20251024.0", Some("RC-1.7"), release)
        .await;
    assert_eq!(deliverables.len(), 2);
    let families = ["fedora-cloud-43-x86-64", "fedora-cloud-43-aarch64"];
    let provider = world.provider();
    for deliverable in &deliverables {
        let staged = provider.stage(deliverable, &task()).await.unwrap();
        let image = &world.cloud.images()[&deliverable.name()];
        assert_eq!(
            (&image["family"], &image["deprecated"]["state"]),
            (&Value::Null, &json!("DEPRECATED"))
        );
        let publication = provider.release(deliverable, staged, &task()).await.unwrap();
        assert!(publication.failed.is_empty(), "{:?}", publication.failed);
        let sha256 = &deliverable.images[0].sha256;
        assert_eq!(
            world.cloud.content(&deliverable.name()).as_ref(),
            Some(sha256),
            "the bytes are equal"
        );

        // As planned, and valid.
        let [place] = &publication.places[..] else {
            panic!("{publication:?}")
        };
        let url = format!(
            "https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/images/{}",
            deliverable.name()
        );
        assert_eq!(
            (place.location.as_str(), place.origin, &place.id),
            ("us", Origin::Created, &url)
        );
        let notice = Notice::of(deliverable, &publication.places);
        let mut planned = Notice::planned(deliverable).body;
        assert_eq!(planned["image_url"], Value::Null);
        planned["image_url"] = json!(url);
        assert_eq!(notice.body, planned);
        let outgoing = notice.outgoing();
        let message = json!({
            "id": notice.id.to_string(), "topic": notice.topic, "headers": outgoing.headers, "body": notice.body,
            "queue": null, "priority": 0,
        });
        let validated = FedoraMessaging::new().unwrap().validate(&[message]).await.unwrap();
        assert_eq!(validated[0].class, "GcpPublishedV1");
    }

    let described = world.cloud.describe(&families).await.unwrap();
    for family in families {
        assert_eq!(
            described["families"][family],
            Value::Null,
            "users get it only after its promotion"
        );
    }
    let x86 = &described["images"]["fedora-cloud-43-1-7-x86-64"];
    let arm = &described["images"]["fedora-cloud-43-1-7-aarch64"];
    let features = |image: &Value| {
        let features = image["guest_os_features"].as_array().unwrap().iter();
        features
            .map(|feature| feature["type_"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let common = ["UEFI_COMPATIBLE", "GVNIC"];
    let confidential = [
        "SEV_CAPABLE",
        "SEV_SNP_CAPABLE",
        "SEV_LIVE_MIGRATABLE_V2",
        "TDX_CAPABLE",
    ];
    assert_eq!(features(x86), [&common[..], &confidential].concat());
    assert_eq!(features(arm), common);
    assert_eq!(
        (&x86["architecture"], &arm["architecture"]),
        (&json!("X86_64"), &json!("ARM64"))
    );
    for (image, family) in [(x86, families[0]), (arm, families[1])] {
        assert_eq!(image["status"], "READY", "{image}");
        assert_eq!(image["family"], family);
        assert_eq!(image["storage_locations"], json!(["us"]));
        assert_eq!(image["deprecated"]["state"], "DEPRECATED");
        let labels = &image["labels"];
        assert_eq!(labels["compose-id"], "fedora-43-20251024_0");
        assert_eq!(
            (&labels["stage"], &labels["end-of-life"]),
            (&json!("rc"), &json!("2126-12-09"))
        );
        assert_eq!(labels["owner"], "cloud-image-uploader");
        assert_eq!(labels["image-sha256"].as_str().map(str::len), Some(52));
        let sha256 = deliverables.iter().map(|one| &one.images[0].sha256);
        let description = image["description"].as_str().unwrap();
        assert!(description.contains("Fedora-43-20251024.0"), "{description}");
        assert_eq!(
            sha256.filter(|sha256| description.contains(*sha256)).count(),
            1,
            "{description}"
        );
    }
    world
        .assert_only(&["fedora-cloud-43-1-7-aarch64", "fedora-cloud-43-1-7-x86-64"])
        .await;
    world.cloud.validate_calls().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_changes_nothing_and_reads_no_image() {
    let world = World::new().await;
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    let first = publish(&world.provider(), &deliverable).await.unwrap();
    let writes = world.cloud.writes().len();
    assert!(writes > 0);

    // An image that was read would be missed.
    std::fs::remove_dir_all(world.folder.path().join(COMPOSE)).unwrap();
    let second = publish(&world.provider(), &deliverable).await.unwrap();
    assert_eq!(second.places[0].id, first.places[0].id);
    assert_eq!(second.places[0].origin, Origin::Found);
    assert_eq!(world.cloud.writes().len(), writes, "{:?}", world.cloud.writes());
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_of_a_large_image_arrive_in_both_buckets() {
    for emulator in [Emulator::FakeGcsServer, Emulator::GcpStorageEmulator] {
        let world = World::with(emulator).await;
        world.cloud.set_delay(std::time::Duration::from_millis(300));
        let deliverable = world.deliverable(COMPOSE, row(tarball(1, 20 << 20))).await;
        publish(&world.provider(), &deliverable).await.unwrap();
        assert_eq!(world.cloud.count("objects.upload"), 3, "{emulator:?}");
        let sha256 = &deliverable.images[0].sha256;
        assert_eq!(world.cloud.content(IMAGE).as_ref(), Some(sha256), "{emulator:?}");
        world.assert_only(&[IMAGE]).await;
        world.cloud.validate_calls().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_identity_is_enough() {
    let mut world = World::new().await;
    world.credentials = world.cloud.workload_identity().unwrap();
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    publish(&world.provider(), &deliverable).await.unwrap();
    assert!(world.cloud.count("sts") > 0);
    world.assert_only(&[IMAGE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_location_that_is_not_asked_for_is_only_looked_at() {
    let world = World::new().await;
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    let provider = world.provider();
    let elsewhere = Task {
        locations: Some(["eu".to_owned()].into()),
        ..task()
    };
    let staged = provider.stage(&deliverable, &elsewhere).await.unwrap();
    assert!(staged.places.is_empty() && staged.failed.is_empty(), "{staged:?}");
    assert!(world.cloud.writes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_credentials_permissions_and_families() {
    let mut world = World::new().await;
    let findings = async |world: &World| -> Vec<String> {
        let show = |result: Result<String, String>| result.unwrap_or_else(|wrong| format!("WRONG {wrong}"));
        let findings = world.provider().check().await.into_iter();
        findings
            .map(|finding| format!("{}: {}", finding.subject, show(finding.result)))
            .collect()
    };
    let deliverable = world.deliverable(COMPOSE, row(tarball(1, 1000))).await;
    publish(&world.provider(), &deliverable).await.unwrap();
    world.cloud.put_image("other", json!({"family": "other"}));
    let writes = world.cloud.writes().len();
    let good = findings(&world).await;
    let family = format!("family {FAMILY}: it has no head yet, and 1 are deprecated");
    assert_eq!(
        good,
        [
            "credentials: a token was given",
            "bucket test-bucket: everything needed is permitted",
            "project test-project: everything needed is permitted",
            &family,
            "family other: its head is other, and 0 are deprecated",
        ]
    );
    assert_eq!(world.cloud.writes().len(), writes);
    world.cloud.validate_calls().await.unwrap();

    world.cloud.take_permission("storage.objects.delete");
    world.cloud.take_permission("compute.images.deprecate");
    let bad = findings(&world).await;
    assert_eq!(
        bad[1],
        "bucket test-bucket: WRONG the account lacks storage.objects.delete; add that to its role (docs/gcp.md)"
    );
    assert_eq!(
        bad[2],
        "project test-project: WRONG the account lacks compute.images.deprecate; add that to its role (docs/gcp.md)"
    );

    world.credentials = world.cloud.stranger().unwrap();
    let stranger = findings(&world).await;
    assert!(
        stranger[1].contains("401") && stranger[1].contains("GOOGLE_APPLICATION_CREDENTIALS"),
        "{stranger:?}"
    );
    for (text, expected) in [
        ("no json", "it is not JSON"),
        (
            r#"{"type": "service_account", "private_key": "quite secret"}"#,
            "something is missing in it",
        ),
        (
            r#"{"type": "authorized_user"}"#,
            "a service_account or an external_account is needed",
        ),
    ] {
        world.credentials = world.folder.path().join("key.json");
        std::fs::write(&world.credentials, text).unwrap();
        let findings = findings(&world).await;
        assert!(
            findings[0].contains(expected) && !findings[0].contains("secret"),
            "{findings:?}"
        );
    }
}
