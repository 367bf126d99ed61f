//! Plans of real composes: names, topics, bodies, and sources, for every provider, offline.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use cloud_image_uploader::base::http;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::commands::plan::Plan;
use cloud_image_uploader::config::{Config, Provider};
use cloud_image_uploader::messaging::message::{Request, RequestSource};
use cloud_image_uploader::messaging::notify::Notice;
use cloud_image_uploader::model::compose::release::Releases;
use cloud_image_uploader::model::compose::{Compose, ComposeId, Family, Image, NotOurs, Row};
use cloud_image_uploader::model::select::{Target, select};
use cloud_image_uploader::model::target::azure::GalleryVersion;
use cloud_image_uploader::publish::prepare::prepare;
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn releases() -> Releases {
    let data = Resource::Folder(fixtures().join("release-data"));
    Releases::new(http::client().unwrap(), data.clone(), data.join("release.json"))
}

/// The existing service's own configuration; `local` has none.
fn provider(name: &str) -> Provider {
    if name == "local" {
        let text = "[consumer_config.local]\ndirectory = \"published\"\n";
        return Config::parse(text, Path::new("local.toml")).unwrap().provider;
    }
    let file = fixtures().join(format!("config/production-{name}.toml"));
    Config::load(&file).unwrap().provider
}

const PROVIDERS: [&str; 5] = ["aws", "azure", "gcp", "container", "local"];

async fn plan(provider_name: &str, compose: &str, label: Option<&str>) -> Value {
    let request = Request {
        compose: ComposeId::parse(compose).unwrap(),
        location: Resource::Folder(fixtures().join("composes").join(compose)),
        label: label.map(str::to_owned),
        announced: jiff::Timestamp::now(),
        origin: RequestSource::Message(String::new()),
    };
    let http = http::client().unwrap();
    let prepared = prepare(&http, &releases(), &provider(provider_name), &request, None).await;
    Plan::Compose(Box::new(prepared.unwrap())).json()
}

#[tokio::test]
async fn real_composes_are_planned_for_every_provider() {
    let composes = [
        ("Fedora-43-20251023.0", Some("RC-1.6")),
        ("Fedora-40-20240414.0", Some("RC-1.14")),
        ("Fedora-28-20180425.0", None),
        ("Fedora-Cloud-27-20180317.0", Some("RC-20180317.0")),
        ("Fedora-Rawhide-20240829.n.1", None),
    ];
    for (compose, label) in composes {
        for provider in PROVIDERS {
            let planned = plan(provider, compose, label).await;
            insta::assert_json_snapshot!(format!("{compose}-{provider}"), planned);
        }
    }
}

#[tokio::test]
async fn production_containers_of_a_release_are_just_these() {
    let planned = plan("container", "Fedora-43-20251023.0", Some("RC-1.6")).await;
    let published: BTreeMap<&str, Vec<&str>> = planned["publish"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let body = &entry["body"];
            assert_eq!(body["tags"], json!(["43", "latest"]));
            assert_eq!(
                body["registries"],
                json!(["registry.fedoraproject.org", "quay.io/fedora"])
            );
            let architectures = body["architectures"].as_array().unwrap();
            let repository = body["repository"].as_str().unwrap();
            (
                repository,
                architectures.iter().map(|arch| arch.as_str().unwrap()).collect(),
            )
        })
        .collect();
    let (two, four) = (vec!["aarch64", "x86_64"], vec!["aarch64", "ppc64le", "s390x", "x86_64"]);
    let expected = BTreeMap::from([
        ("fedora", four.clone()),
        ("fedora-budgie-atomic", vec!["x86_64"]),
        ("fedora-kinoite", two.clone()),
        ("fedora-minimal", four.clone()),
        ("fedora-silverblue", two.clone()),
        ("fedora-sway-atomic", two.clone()),
        ("fedora-toolbox", four),
    ]);
    assert_eq!(published, expected);
}

/// The names in messages that the existing service really sent, by compose.
#[tokio::test]
async fn real_ami_names_and_topics_are_reproduced() {
    let file = "messages/published/aws-Fedora-42-20250312.0-x86_64.datagrepper-raw.json";
    let real: Value = serde_json::from_slice(&std::fs::read(fixtures().join(file)).unwrap()).unwrap();
    let real = &real["raw_messages"][0];
    let compose = compose("Fedora-42-20250312.0", Some("Beta-1.4"), "raw-xz", "raw.xz");
    let release = releases().of(&compose).await.unwrap();
    let selection = select(&provider("aws").publisher(), &compose, &release, None);
    let deliverable = selection
        .deliverables
        .iter()
        .find(|found| found.images[0].arch == "x86_64")
        .unwrap();
    let notice = Notice::planned(deliverable);
    let prefix = "org.fedoraproject.prod.";
    assert_eq!(format!("{prefix}{}", notice.topic), real["topic"].as_str().unwrap());
    for field in ["architecture", "compose_id", "image_name", "release", "subvariant"] {
        assert_eq!(notice.body[field], real["msg"][field], "{field}");
    }
    let mut fields: Vec<_> = notice.body.as_object().unwrap().keys().collect();
    let mut expected: Vec<_> = real["msg"].as_object().unwrap().keys().collect();
    fields.sort();
    expected.sort();
    assert_eq!(fields, expected);
    assert_eq!(
        notice.schema.as_deref(),
        real["headers"]["fedora_messaging_schema"].as_str()
    );

    let file = "messages/published/aws-Fedora-41-2024-09.page1.datagrepper-raw.json";
    let real: Value = serde_json::from_slice(&std::fs::read(fixtures().join(file)).unwrap()).unwrap();
    let messages = real["raw_messages"].as_array().unwrap();
    assert!(!messages.is_empty());
    for message in messages {
        let body = &message["msg"];
        let id = body["compose_id"].as_str().unwrap();
        // The candidate's label, which these old messages do not repeat.
        let label = (id == "Fedora-41-20240911.0").then_some("Beta-1.2");
        let compose = self::compose(id, label, "raw-xz", "raw.xz");
        let release = releases().of(&compose).await.unwrap();
        let names: Vec<_> = select(&provider("aws").publisher(), &compose, &release, None)
            .deliverables
            .iter()
            .map(|found| found.name())
            .collect();
        let name = body["image_name"].as_str().unwrap();
        assert!(names.iter().any(|found| found == name), "{name} is not among {names:?}");
    }
}

/// A compose with a cloud image for both architectures.
fn compose(id: &str, label: Option<&str>, kind: &str, format: &str) -> Compose {
    let image = |arch: &str| Image {
        path: format!("Cloud/{arch}/images/{id}.{arch}.{format}"),
        location: Resource::Folder(PathBuf::new()),
        arch: arch.to_owned(),
        subvariant: "Cloud_Base".to_owned(),
        kind: kind.to_owned(),
        format: format.to_owned(),
        size: 1,
        sha256: "0".repeat(64),
    };
    Compose {
        id: ComposeId::parse(id).unwrap(),
        label: label.map(|label| cloud_image_uploader::model::compose::Label::parse(label).unwrap()),
        rows: vec![image("aarch64").into(), image("x86_64").into()],
    }
}

fn real_compose_ids() -> Vec<String> {
    let text = std::fs::read(fixtures().join("composes/compose-urls-20260106.json")).unwrap();
    let urls: Vec<String> = serde_json::from_slice(&text).unwrap();
    assert_eq!(urls.len(), 4749);
    let id = |url: &String| url.trim_end_matches('/').rsplit('/').nth(1).unwrap().to_owned();
    urls.iter().map(id).collect()
}

#[test]
fn every_real_compose_is_classified() {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for id in real_compose_ids() {
        let class = match ComposeId::parse(&id) {
            Ok(compose) => format!("{:?}", compose.family),
            Err(why) => format!("{why:?}"),
        };
        assert_ne!(class, format!("{:?}", NotOurs::Unknown), "{id}");
        *counts.entry(class).or_default() += 1;
    }
    let expected = [
        ("Rawhide", 210),
        ("Eln", 620),
        ("Branched", 80),
        ("Candidate", 10),
        ("Cloud", 401),
        ("Container", 405),
        ("Iot", 618),
        ("Updates", 435),
        ("UpdatesTesting", 499),
        ("Epel", 1471),
    ];
    assert_eq!(
        counts,
        expected
            .iter()
            .map(|(class, count)| ((*class).to_owned(), *count))
            .collect()
    );
}

/// Candidates get labels as they have in a release cycle: counted within their milestone.
#[tokio::test]
async fn no_two_real_composes_share_a_name_in_a_cloud() {
    let releases = releases();
    let mut ids = real_compose_ids();
    ids.sort();
    let mut candidates: HashMap<&str, usize> = HashMap::new();
    let mut seen: HashMap<String, String> = HashMap::new();
    for id in ids {
        let Ok(parsed) = ComposeId::parse(&id) else { continue };
        let label = (parsed.family == Family::Candidate).then(|| {
            let milestone = if parsed.date.month() < 10 { "Beta" } else { "RC" };
            let number = candidates.entry(milestone).or_default();
            *number += 1;
            format!("{milestone}-1.{number}")
        });
        for (name, kind, format) in [
            ("aws", "raw-xz", "raw.xz"),
            ("azure", "vhd-compressed", "vhd.xz"),
            ("gcp", "tar-gz", "tar.gz"),
        ] {
            let compose = compose(&id, label.as_deref(), kind, format);
            let release = releases.of(&compose).await.unwrap();
            for deliverable in select(&provider(name).publisher(), &compose, &release, None).deliverables {
                let key = format!("{name} {}", deliverable.name());
                if let Some(other) = seen.insert(key.clone(), id.clone()) {
                    panic!("{other} and {id} would both be {key}");
                }
                assert_is_legal(&deliverable.target);
            }
        }
    }
    // Cloud images of both architectures come from every compose but IoT, container, and updates ones.
    assert_eq!(seen.len(), 3 * 2 * (210 + 620 + 80 + 10 + 401));
}

/// The clouds' own rules for names.
fn assert_is_legal(target: &Target) {
    match target {
        Target::Aws(ami) => assert!((3..=128).contains(&ami.name.len()), "{}", ami.name),
        Target::Azure(GalleryVersion { version, .. }) => {
            let numbers: Vec<u32> = version
                .split('.')
                .map(|part| part.parse().expect("an integer"))
                .collect();
            assert_eq!(numbers.len(), 3, "{version}");
            assert!(numbers.iter().all(|number| *number <= i32::MAX as u32), "{version}");
        }
        Target::Gcp(image) => {
            for name in [&image.name, &image.family] {
                let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                assert!(name.len() <= 63 && name.chars().all(legal), "{name}");
            }
        }
        Target::Container(_) | Target::Local(_) => panic!("{target:?}"),
    }
}

#[test]
fn the_command_prints_a_plan_without_any_server() {
    let sample = fixtures().join("sample");
    let run = |file: &Path, extra: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_cloud-image-uploader"))
            .env_clear()
            .arg("--conf")
            .arg(sample.join("local.toml"))
            .args(["plan", "--format", "json", "--file"])
            .arg(file)
            .args(extra)
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let whole = run(&sample.join("message.json"), &[]);
    assert_eq!(whole["compose_id"], "Fedora-43-20251024.0");
    assert_eq!(whole["publish"].as_array().unwrap().len(), 9);
    let part = run(&sample.join("message.json"), &["--only", "Silverblue"]);
    assert_eq!(part["publish"].as_array().unwrap().len(), 1);
    assert_eq!(part["publish"][0]["sources"].as_array().unwrap().len(), 2);
    let part = run(&sample.join("message.json"), &["--only", "*Toolbox*x86_64*"]);
    assert_eq!(
        part["publish"][0]["sources"].as_array().unwrap().len(),
        2,
        "a repository is whole or not at all"
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("message.json");
    let body = json!({"status": "DOOMED", "compose_id": "Fedora-43-20251024.0", "location": "x"});
    std::fs::write(&file, json!({"id": "i", "topic": "t", "body": body}).to_string()).unwrap();
    let nothing = run(&file, &[]);
    assert_eq!(nothing["compose_id"], "Fedora-43-20251024.0");
    assert_eq!((&nothing["release"], &nothing["stage"]), (&Value::Null, &Value::Null));
    assert_eq!(nothing["publish"], json!([]));
    assert_eq!(nothing["reason"], "the compose's status is \"DOOMED\"");
}

/// ELN's subvariants have Fedora's names, but neither gets into the other's repositories.
#[tokio::test]
async fn eln_and_fedora_keep_to_their_repositories() {
    let row = |subvariant: &str| {
        let mut compose = compose("Fedora-eln-20251107.n.2", None, "container", "tar.xz");
        let mut image = compose.rows.remove(0).image.unwrap();
        image.subvariant = subvariant.to_owned();
        image.path = subvariant.to_owned();
        Row::from(image)
    };
    let rows = ["BaseOS", "base", "Container_Base", "Cloud_Base", "WSL_Base"].map(row);
    let published = async |id: &str| {
        let compose = Compose {
            id: ComposeId::parse(id).unwrap(),
            label: None,
            rows: rows.to_vec(),
        };
        let release = releases().of(&compose).await.unwrap();
        let selection = select(&provider("container").publisher(), &compose, &release, None);
        let notices = selection.deliverables.iter().map(Notice::planned);
        notices
            .map(|notice| (notice.topic, notice.body["tags"].clone()))
            .collect::<Vec<_>>()
    };
    let topic = |rest: &str| format!("fedora_image_uploader.published.v1.container.{rest}");
    assert_eq!(
        published("Fedora-eln-20251107.n.2").await,
        [(topic("eln.eln"), json!(["11", "latest"]))]
    );
    assert_eq!(
        published("Fedora-Rawhide-20251107.n.0").await,
        [
            (topic("rawhide.fedora"), json!(["44", "rawhide"])),
            (topic("rawhide.fedora-bootc"), json!(["44", "rawhide"])),
        ]
    );
    assert_eq!(
        published("Fedora-Container-42-20251107.0").await,
        [
            (topic("nightly.fedora"), json!(["42"])),
            (topic("nightly.fedora-bootc"), json!(["42"])),
        ]
    );
    assert_eq!(
        published("Fedora-43-updates-20251107.0").await[0].1,
        json!(["43", "latest"])
    );
}

/// Two files for one architecture of a repository: either may be meant, so the repository is refused and the others are planned.
#[tokio::test]
async fn images_that_contradict_each_other_are_refused_alone() {
    let mut compose = compose("Fedora-Container-43-20251107.0", None, "container", "tar.xz");
    for row in &mut compose.rows {
        let mut image = row.image.clone().unwrap();
        image.subvariant = "Container_Base".to_owned();
        *row = image.into();
    }
    let mut twin = compose.rows[0].image.clone().unwrap();
    twin.path = "elsewhere".to_owned();
    compose.rows.push(twin.clone().into());
    twin.subvariant = "Container_Toolbox".to_owned();
    compose.rows.push(twin.into());
    let release = releases().of(&compose).await.unwrap();
    let selection = select(&provider("container").publisher(), &compose, &release, None);
    let names: Vec<_> = selection.deliverables.iter().map(|found| found.name()).collect();
    assert_eq!(names, ["fedora-toolbox"]);
    assert_eq!(selection.refused.len(), 1);
    let refused = selection.refused[0].to_string();
    assert!(refused.contains("fedora") && refused.contains("elsewhere"), "{refused}");
}
