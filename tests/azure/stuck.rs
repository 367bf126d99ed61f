//! Operations that Azure never ends, tokens that it withholds, and gates: the provider without the program, partly on a
//! clock that is wound forward.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{Method, StatusCode};
use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::{self, Config, Environment};
use cloud_image_uploader::images::source::Sources;
use cloud_image_uploader::model::compose::release::{Release, Stage};
use cloud_image_uploader::model::compose::{Compose, ComposeId};
use cloud_image_uploader::model::outcome::{Failed, Origin, Outcome, Place};
use cloud_image_uploader::model::select::{Deliverable, select};
use cloud_image_uploader::providers::azure::AzureProvider;
use cloud_image_uploader::providers::contract::{Publish, Task};
use cloud_image_uploader_test_support::archive::{ComposeBuilder, sha256};
use cloud_image_uploader_test_support::azure::{ACCOUNT, API_VERSION, Azure, Fault, Form, GROUP, SUBSCRIPTION};
use cloud_image_uploader_test_support::http_server::HttpServer;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::hostile::{fitting, taken};
use crate::world::*;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A gallery, a provider for it, and a deliverable.
struct Gallery {
    azure: Azure,
    provider: Arc<AzureProvider>,
    deliverable: Deliverable,
    _folder: TempDir,
}

impl Gallery {
    async fn with(regions: &[&str]) -> Self {
        Self::storing(regions, None).await
    }

    /// One whose blobs are elsewhere than at the stand-in, which has none.
    async fn storing(regions: &[&str], blobs: Option<String>) -> Self {
        let azure = Azure::start(None).await.unwrap();
        let url = azure.url();
        let blobs = blobs.unwrap_or_else(|| url.clone());
        let mut config = format!(
            "[consumer_config.azure]\npublish_amqp_messages = false\nlocation = \"eastus\"\n\
             resource_group_name = \"{GROUP}\"\nstorage_account_name = \"{ACCOUNT}\"\n\
             storage_container_name = \"vhds\"\ngallery_name = \"{GALLERY}\"\ngallery_description = \"\"\n\
             resource_manager_endpoint = \"{url}\"\nauthority_host = \"{url}\"\nblob_endpoint = \"{blobs}\"\n"
        );
        for name in regions {
            config += &format!(
                "[[consumer_config.azure.target_regions]]\nname = \"{name}\"\nregional_replica_count = 1\n\
                 storage_account_type = \"Standard_LRS\"\n"
            );
        }
        let config = Config::parse(&config, Path::new("test.toml"));
        let section = config.unwrap_or_else(|problems| panic!("{problems}")).provider;
        let config::Provider::Azure(azure_section) = &section else {
            panic!("another provider")
        };
        let environment: Environment = azure.environment().into_iter().collect();
        let provider = Arc::new(AzureProvider::new(azure_section, &environment).unwrap());

        let folder = tempfile::tempdir().unwrap();
        let compose = ComposeBuilder::new(COMPOSE, Some("RC-1.7")).image(row("x86_64", &disk("x86_64")));
        compose.write(folder.path()).unwrap();
        let id = ComposeId::parse(COMPOSE).unwrap();
        let location = Resource::Folder(folder.path().to_owned());
        let client = http::client().unwrap();
        let compose = Compose::fetch(&client, &location, &id, Some("RC-1.7")).await.unwrap();
        let release = Release {
            name: "43".to_owned(),
            number: 43,
            stage: Stage::Rc,
            newest_stable: true,
            end_of_life: None,
        };
        let deliverable = select(&section.publisher(), &compose, &release, None)
            .deliverables
            .remove(0);
        Self {
            azure,
            provider,
            deliverable,
            _folder: folder,
        }
    }

    /// Another process starts to create a version.
    async fn start(&self, regions: &[&str]) {
        self.azure.add_gallery(GALLERY, "eastus");
        self.azure.add_definition(GALLERY, X64, fitting());
        let url = format!(
            "{}/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Compute/galleries/{GALLERY}/images/\
             {X64}/versions/{VERSION}?api-version={API_VERSION}",
            self.azure.url()
        );
        let targets: Vec<_> = regions.iter().map(|name| json!({"name": name})).collect();
        let source = json!({"uri": "https://gone.blob.core.windows.net/vhds/gone.vhd"});
        let body = json!({"location": "eastus", "properties": {
            "publishingProfile": {"targetRegions": targets, "excludeFromLatest": true},
            "storageProfile": {"osDiskImage": {"source": source}},
        }});
        let put = reqwest::Client::new().put(url).bearer_auth(self.azure.token());
        let answer = put.json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 201);
    }

    /// Stages and releases; `Err` has the failure of the whole, `Ok` the regions that have it, and the failures of the
    /// others.
    async fn publish(&self) -> (Result<(Vec<String>, Vec<String>), String>, Duration) {
        let (provider, deliverable, task) = (self.provider.clone(), self.deliverable.clone(), task());
        wound(async move {
            let staged = match provider.stage(&deliverable, &task).await {
                Ok(staged) => staged,
                Err(failure) => {
                    assert_eq!(failure.class(), Class::TRANSIENT, "{failure}");
                    return Err(failure.to_string());
                }
            };
            let publication = provider.release(&deliverable, staged, &task).await.unwrap();
            let place = |place: Place| place.location;
            let said = |Failed { failure, .. }| {
                assert_eq!(failure.class(), Class::Deliverable, "{failure}");
                failure.to_string()
            };
            Ok((
                publication.places.into_iter().map(place).collect(),
                publication.failed.into_iter().map(said).collect(),
            ))
        })
        .await
    }
}

fn task() -> Task {
    Task {
        sources: Sources::new(http::client().unwrap(), Board::log(), 4, 256 << 20, 2),
        locations: None,
        allow_older: false,
        patience: Duration::from_secs(1800),
    }
}

/// Does some work while hours pass in seconds, and returns its duration by that clock.
async fn wound<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> (T, Duration) {
    tokio::time::pause();
    let began = Instant::now();
    let work = tokio::spawn(work);
    while !work.is_finished() {
        assert!(began.elapsed() < 10 * HOUR, "it has no end");
        // A paused clock advances by itself as soon as every task waits, unless a thread is at work: answers take real
        // time.
        let moment = || std::thread::sleep(Duration::from_millis(5));
        tokio::task::spawn_blocking(moment).await.unwrap();
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    let took = began.elapsed();
    tokio::time::resume();
    (work.await.unwrap(), took)
}

fn assert_patient(took: Duration) {
    assert!(took > 3 * HOUR, "replication may take as long: {took:?}");
    assert!(took < 5 * HOUR, "{took:?}");
}

#[tokio::test]
async fn regions_that_have_a_version_do_not_wait_for_one_that_is_stuck() {
    // Another process started it, or this one adds a region.
    for found in [true, false] {
        let gallery = Gallery::with(&["eastus", "westeurope"]).await;
        gallery.azure.stall_region("westeurope");
        if found {
            gallery.start(&["eastus", "westeurope"]).await;
        } else {
            taken(&gallery.azure, json!(null));
        }
        let (published, took) = gallery.publish().await;
        let (places, failed) = published.unwrap();
        assert_eq!(places, ["eastus"]);
        let [failed] = &failed[..] else { panic!("{failed:?}") };
        let expected = format!("replicate {X64}/{VERSION} to westeurope: Azure has been updating this version for 4h");
        assert!(failed.starts_with(&expected), "{failed}");
        assert_patient(took);
        // Azure rejects changes meanwhile.
        assert_eq!(gallery.azure.changes().len(), 1, "{:?}", gallery.azure.changes());
    }
}

/// It is removed, and added again.
#[tokio::test]
async fn a_region_that_azure_never_reports_on_is_added_again() {
    let gallery = Gallery::with(&["eastus", "westeurope"]).await;
    gallery.azure.hush_region("westeurope", 1);
    gallery.start(&["eastus", "westeurope"]).await;
    let (published, took) = gallery.publish().await;
    let (places, failed) = published.unwrap();
    assert_eq!(failed, [""; 0]);
    assert_eq!(places, ["eastus", "westeurope"]);
    assert!(took > HOUR / 10 && took < HOUR, "a status may come late: {took:?}");
    assert_eq!(gallery.azure.changes().len(), 3, "{:?}", gallery.azure.changes());
}

#[tokio::test]
async fn a_version_that_is_stuck_everywhere_is_reported() {
    let gallery = Gallery::with(&["eastus"]).await;
    gallery.azure.stall_region("eastus");
    gallery.start(&["eastus"]).await;
    let (published, took) = gallery.publish().await;
    assert_eq!(published, Err(format!("wait for {X64}/{VERSION}: not done after 4h")));
    assert_patient(took);
}

/// Other images wait for it.
#[tokio::test]
async fn a_stuck_definition_is_reported_soon() {
    for form in [Form::AsyncOperation, Form::None] {
        let gallery = Gallery::with(&["eastus"]).await;
        gallery.azure.add_gallery(GALLERY, "eastus");
        gallery.azure.set_form(form);
        gallery.azure.set_times(|times| times.other = 24 * HOUR);
        let (published, took) = gallery.publish().await;
        assert_eq!(
            published,
            Err(format!("create image definition {X64}: not done after 10m"))
        );
        assert!(took < HOUR, "{took:?}");
    }
}

/// Asserts that no token was asked for within this time after the endpoint asked for a pause.
fn assert_pauses(azure: &Azure, pause: Duration) {
    let calls = azure.calls();
    let tokens: Vec<_> = calls.iter().filter(|call| call.name == "POST token").collect();
    assert!(tokens.iter().any(|call| call.status == 429), "{calls:?}");
    for pair in tokens.windows(2) {
        if pair[0].status == 429 {
            assert!(pair[1].at - pair[0].at >= pause, "{:?}", pair[1].at - pair[0].at);
        }
    }
}

/// The request for a token of one scope is answered with a pause that is longer than any retry within a call.
#[tokio::test]
async fn the_pause_that_a_token_endpoint_asks_for_holds_for_every_scope() {
    let gallery = Gallery::with(&["eastus"]).await;
    let pause = Duration::from_secs(90);
    // Resource Manager's token is good, that of storage is not issued, and then Resource Manager's is wanted again.
    gallery.azure.fault_after(1, "POST token", Fault::Throttle(90));
    let provider = gallery.provider.clone();
    let (findings, _) = wound(async move { provider.check().await }).await;
    assert!(findings.iter().any(|finding| finding.result.is_err()), "{findings:?}");
    gallery.azure.expire_tokens();
    let provider = gallery.provider.clone();
    let (findings, _) = wound(async move { provider.check().await }).await;
    assert!(findings.iter().any(|finding| finding.result.is_err()), "{findings:?}");
    assert_pauses(&gallery.azure, pause);
}

/// A storage account whose blobs are all complete uploads of the image. Counts the deletions.
async fn uploaded(deletions: Arc<AtomicUsize>) -> HttpServer {
    let digest = sha256(&row("x86_64", &disk("x86_64")).bytes);
    let answer = move |method: Method| {
        let (digest, deletions) = (digest.clone(), deletions.clone());
        async move {
            let status = if method == Method::DELETE {
                deletions.fetch_add(1, Ordering::SeqCst);
                StatusCode::ACCEPTED
            } else {
                StatusCode::OK
            };
            let headers = [
                ("x-ms-meta-image_sha256", digest),
                ("x-ms-meta-complete", "true".to_owned()),
                ("x-ms-lease-status", "unlocked".to_owned()),
                ("etag", "\"1\"".to_owned()),
            ];
            (status, headers)
        }
    };
    HttpServer::start(Router::new().fallback(answer)).await.unwrap()
}

/// With gates, users get the version in no region but the gallery's own before the release.
#[tokio::test]
async fn a_gated_version_is_staged_in_the_gallery_s_own_region_only() {
    for gated in [false, true] {
        let deletions = Arc::new(AtomicUsize::new(0));
        let blobs = uploaded(deletions.clone()).await;
        let gallery = Gallery::storing(&["westeurope", "eastus", "japaneast"], Some(blobs.url())).await;
        let Gallery {
            azure,
            provider,
            deliverable,
            ..
        } = gallery;
        let provider = Arc::into_inner(provider).unwrap().gated(gated);
        let names =
            |outcome: &Outcome| -> Vec<String> { outcome.places.iter().map(|place| place.location.clone()).collect() };
        let all = ["westeurope", "eastus", "japaneast"];
        for turn in 0..2 {
            let staged = provider.stage(&deliverable, &task()).await.unwrap();
            assert!(staged.failed.is_empty(), "{:?}", staged.failed);
            if gated && turn == 0 {
                assert_eq!(names(&staged), ["eastus"]);
                assert_eq!(deletions.load(Ordering::SeqCst), 0, "the release still needs the blob");
            } else {
                assert_eq!(names(&staged), all);
            }
            let version = azure.version(GALLERY, X64, VERSION).unwrap();
            let profile = &version["properties"]["publishingProfile"];
            assert_eq!(profile["excludeFromLatest"], true);
            assert_eq!(profile["targetRegions"].as_array().unwrap().len(), staged.places.len());

            let released = provider.release(&deliverable, staged, &task()).await.unwrap();
            assert_eq!(names(&released), all);
            assert!(released.failed.is_empty() && released.stale.is_empty(), "{released:?}");
            let created = released.places.iter().all(|place| place.origin == Origin::Created);
            assert_eq!(created, turn == 0, "{released:?}");
            let version = azure.version(GALLERY, X64, VERSION).unwrap();
            assert_eq!(version["properties"]["provisioningState"], "Succeeded");
            assert_eq!(version["properties"]["publishingProfile"]["excludeFromLatest"], true);
            assert!(deletions.load(Ordering::SeqCst) > 0);
        }
    }
}

/// A version that is deleted, or replaced by another, between stage and release is not released.
#[tokio::test]
async fn a_version_that_changes_before_its_release_is_stale() {
    let blobs = uploaded(Arc::default()).await;
    let gallery = Gallery::storing(&["eastus"], Some(blobs.url())).await;
    let staged = gallery.provider.stage(&gallery.deliverable, &task()).await.unwrap();
    gallery.azure.retag(GALLERY, X64, VERSION, |tags| {
        tags["image-sha256"] = json!("ab".repeat(32))
    });
    let released = gallery.provider.release(&gallery.deliverable, staged, &task()).await;
    let released = released.unwrap();
    assert_eq!(released.places, []);
    assert_eq!(released.stale, ["eastus"]);
}
