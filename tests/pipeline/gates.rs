//! Gates stand between stage and release: nothing becomes visible before all of them let it pass.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cloud_image_uploader::base::failure::{Class, Classified, Disposition, Failure};
use cloud_image_uploader::base::http::{self, Hosts};
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::config::{Config, Environment};
use cloud_image_uploader::gates::gate::Gate;
use cloud_image_uploader::images::signature::Signatures;
use cloud_image_uploader::images::source::Sources;
use cloud_image_uploader::messaging::message::{Request, RequestSource};
use cloud_image_uploader::messaging::notify::Notifier;
use cloud_image_uploader::model::compose::ComposeId;
use cloud_image_uploader::model::compose::release::Releases;
use cloud_image_uploader::model::outcome::Outcome;
use cloud_image_uploader::model::select::Deliverable;
use cloud_image_uploader::providers::connect::connect;
use cloud_image_uploader::publish::pipeline::{Options, Pipeline};
use cloud_image_uploader::publish::report::Report;
use cloud_image_uploader_test_support::archive::{ComposeBuilder, Row, noise, xz};
use tempfile::TempDir;

use crate::world::{COMPOSE, fixtures};

#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("boot it: it stays dark")]
struct Dark(Class);

impl Classified for Dark {
    fn class(&self) -> Class {
        self.0
    }
}

/// A gate that fails in these ways, one after the other, and then lets everything pass.
#[derive(Default)]
struct Scripted {
    failures: Mutex<Vec<Class>>,
    asked: Mutex<Vec<usize>>,
    disk: PathBuf,
}

#[async_trait]
impl Gate for Scripted {
    async fn pass(&self, _: &Deliverable, staged: &Outcome) -> Result<(), Failure> {
        assert!(!self.disk.exists(), "it is visible before the gate");
        self.asked.lock().unwrap().push(staged.places.len());
        match self.failures.lock().unwrap().pop() {
            Some(class) => Err(Dark(class).into()),
            None => Ok(()),
        }
    }
}

/// A folder with a compose of one disk, published to `published` in it.
struct Stand {
    folder: TempDir,
    gates: [Arc<Scripted>; 2],
}

impl Stand {
    fn new(failures: [Vec<Class>; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let row = Row::new(
            "raw-xz",
            "raw.xz",
            "Cloud_Base",
            "x86_64",
            "disk.raw.xz",
            xz(&noise(1, 1 << 20)),
        );
        let compose = ComposeBuilder::new(COMPOSE, None).image(row);
        compose.write(&folder.path().join("compose")).unwrap();
        let disk = folder.path().join(format!("published/{COMPOSE}/x86_64/disk.raw"));
        let gates = failures.map(|failures| {
            Arc::new(Scripted {
                failures: Mutex::new(failures),
                disk: disk.clone(),
                ..Scripted::default()
            })
        });
        Self { folder, gates }
    }

    fn disk(&self) -> &Path {
        &self.gates[0].disk
    }

    /// How often each gate was asked about one staged place.
    fn asked(&self) -> [usize; 2] {
        self.gates.each_ref().map(|gate| {
            let asked = gate.asked.lock().unwrap();
            assert!(asked.iter().all(|places| *places == 1));
            asked.len()
        })
    }

    async fn run(&self) -> Report {
        let data = fixtures().join("release-data");
        let text = format!(
            "[consumer_config.local]\ndirectory = \"{}/published\"\n",
            self.folder.path().display()
        );
        let config = Config::parse(&text, Path::new("test.toml")).unwrap_or_else(|problems| panic!("{problems}"));
        let http = http::client().unwrap();
        let data = Resource::Folder(data);
        let pipeline = Pipeline {
            hosts: Hosts::default(),
            signatures: Signatures::new(&config.service).unwrap(),
            releases: Releases::new(http.clone(), data.clone(), data.join("release.json")),
            provider: connect(&config.provider, &Environment::default()).unwrap().publish,
            gates: self.gates.iter().map(|gate| gate.clone() as Arc<dyn Gate>).collect(),
            announced: Arc::default(),
            sources: Sources::new(http.clone(), Board::log(), 1, 64 << 20, 1),
            notifier: Notifier::new(None),
            location_patience: Duration::from_secs(1),
            give_up_after: Duration::from_secs(20),
            conf: "test.toml".into(),
            section: config.provider,
            http,
        };
        let request = Request {
            compose: ComposeId::parse(COMPOSE).unwrap(),
            location: Resource::Folder(self.folder.path().join("compose")),
            label: None,
            announced: jiff::Timestamp::now(),
            origin: RequestSource::Message(String::new()),
        };
        pipeline.run(&request, &Options::default()).await
    }
}

#[tokio::test]
async fn a_deliverable_that_passes_every_gate_is_released() {
    let stand = Stand::new([Vec::new(), Vec::new()]);
    let report = stand.run().await;
    assert_eq!(report.disposition(), Disposition::Ack, "{:?}", report.problems);
    assert_eq!(stand.asked(), [1, 1]);
    assert!(stand.disk().exists());
}

#[tokio::test]
async fn a_deliverable_that_fails_a_gate_stays_invisible() {
    let stand = Stand::new([Vec::new(), vec![Class::Deliverable]]);
    let report = stand.run().await;
    assert_eq!(report.disposition(), Disposition::Drop);
    assert!(
        report.failures()[0].contains("boot it: it stays dark; repair: "),
        "{:?}",
        report.failures()
    );
    assert_eq!(stand.asked(), [1, 1]);
    assert!(!stand.disk().exists());
}

#[tokio::test]
async fn a_gate_that_fails_for_a_transient_reason_is_asked_again() {
    let stand = Stand::new([vec![Class::TRANSIENT], Vec::new()]);
    let report = stand.run().await;
    assert_eq!(report.disposition(), Disposition::Ack, "{:?}", report.problems);
    assert_eq!(stand.asked(), [2, 1]);
    assert!(stand.disk().exists());
}
