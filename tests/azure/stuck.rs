//! What Azure begins and does not end: nobody waits for it for ever. The provider is asked here without the program, on a
//! clock that is wound forward.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloud_image_uploader::base::failure::Class;
use cloud_image_uploader::base::http;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::{self, Config, Environment};
use cloud_image_uploader::images::source::Sources;
use cloud_image_uploader::model::compose::release::{Release, Stage};
use cloud_image_uploader::model::compose::{Compose, ComposeId};
use cloud_image_uploader::model::outcome::{Failed, Place};
use cloud_image_uploader::model::select::{Deliverable, select};
use cloud_image_uploader::providers::azure::AzureProvider;
use cloud_image_uploader::providers::contract::{Publish, Task};
use cloud_image_uploader_test_support::archive::ComposeBuilder;
use cloud_image_uploader_test_support::azure::{ACCOUNT, API_VERSION, Azure, Form, GROUP, SUBSCRIPTION};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::hostile::{fitting, taken};
use crate::world::*;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A gallery, and a provider for it.
struct Gallery {
    azure: Azure,
    provider: Arc<AzureProvider>,
    deliverable: Deliverable,
    _folder: TempDir,
}

impl Gallery {
    async fn with(regions: &[&str]) -> Self {
        let azure = Azure::start(None).await.unwrap();
        let url = azure.url();
        let mut config = format!(
            "[consumer_config.azure]\npublish_amqp_messages = false\nlocation = \"eastus\"\n\
             resource_group_name = \"{GROUP}\"\nstorage_account_name = \"{ACCOUNT}\"\n\
             storage_container_name = \"vhds\"\ngallery_name = \"{GALLERY}\"\ngallery_description = \"\"\n\
             resource_manager_endpoint = \"{url}\"\nauthority_host = \"{url}\"\nblob_endpoint = \"{url}\"\n"
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

    /// Another process begins a version.
    async fn begin(&self, regions: &[&str]) {
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

    /// Stages and releases; `Err` has what was said of the whole, `Ok` the regions that have it, and what was said of the
    /// others.
    async fn publish(&self) -> (Result<(Vec<String>, Vec<String>), String>, Duration) {
        let (provider, deliverable) = (self.provider.clone(), self.deliverable.clone());
        let task = Task {
            sources: Sources::new(http::client().unwrap(), Board::log(), 4, 256 << 20, 2),
            locations: None,
            allow_older: false,
            patience: Duration::from_secs(1800),
        };
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

/// Does some work while hours pass in seconds, and tells how long it took by that clock.
async fn wound<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> (T, Duration) {
    tokio::time::pause();
    let began = Instant::now();
    let work = tokio::spawn(work);
    while !work.is_finished() {
        assert!(began.elapsed() < 10 * HOUR, "it has no end");
        // A clock that stands goes ahead by itself as soon as everybody waits, unless a thread is at work: answers take
        // real time.
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
    // Another process has begun it, or this one adds a region.
    for found in [true, false] {
        let gallery = Gallery::with(&["eastus", "westeurope"]).await;
        gallery.azure.stall_region("westeurope");
        if found {
            gallery.begin(&["eastus", "westeurope"]).await;
        } else {
            taken(&gallery.azure, json!(null));
        }
        let (published, took) = gallery.publish().await;
        let (places, failed) = published.unwrap();
        assert_eq!(places, ["eastus"]);
        let [failed] = &failed[..] else { panic!("{failed:?}") };
        let expected = format!("replicate {X64}/{VERSION} to westeurope: Azure is at work on it since 4h");
        assert!(failed.starts_with(&expected), "{failed}");
        assert_patient(took);
        // Azure takes no change meanwhile.
        assert_eq!(gallery.azure.changes().len(), 1, "{:?}", gallery.azure.changes());
    }
}

/// It is taken out, and added again.
#[tokio::test]
async fn a_region_of_which_azure_never_says_anything_is_forgotten() {
    let gallery = Gallery::with(&["eastus", "westeurope"]).await;
    gallery.azure.hush_region("westeurope", 1);
    gallery.begin(&["eastus", "westeurope"]).await;
    let (published, took) = gallery.publish().await;
    let (places, failed) = published.unwrap();
    assert_eq!(failed, [""; 0]);
    assert_eq!(places, ["eastus", "westeurope"]);
    assert!(took > HOUR / 10 && took < HOUR, "it may say something late: {took:?}");
    assert_eq!(gallery.azure.changes().len(), 3, "{:?}", gallery.azure.changes());
}

#[tokio::test]
async fn a_version_that_is_stuck_everywhere_is_told() {
    let gallery = Gallery::with(&["eastus"]).await;
    gallery.azure.stall_region("eastus");
    gallery.begin(&["eastus"]).await;
    let (published, took) = gallery.publish().await;
    assert_eq!(published, Err(format!("follow {X64}/{VERSION}: not done after 4h")));
    assert_patient(took);
}

/// Other images wait for it.
#[tokio::test]
async fn a_definition_that_is_stuck_is_told_soon() {
    for form in [Form::AsyncOperation, Form::None] {
        let gallery = Gallery::with(&["eastus"]).await;
        gallery.azure.add_gallery(GALLERY, "eastus");
        gallery.azure.set_form(form);
        gallery.azure.set_times(|times| times.other = 24 * HOUR);
        let (published, took) = gallery.publish().await;
        assert_eq!(
            published,
            Err(format!("make image definition {X64}: not done after 10m"))
        );
        assert!(took < HOUR, "{took:?}");
    }
}
