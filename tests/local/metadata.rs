//! Metadata as other people's programs write it: strict about the rows that are published, tolerant about all others.

use std::collections::BTreeSet;
use std::fs;

use cloud_image_uploader_test_support::archive::{ComposeBuilder, sha256};
use serde_json::{Value, json};

use crate::{COMPOSE, Desk, assert_complete, assert_no_leftovers, compose, disk_path, disk_row};

/// Fields of a row. The last one is unknown to productmd.
const FIELDS: [&str; 13] = [
    "arch",
    "checksums",
    "format",
    "path",
    "size",
    "subvariant",
    "type",
    "mtime",
    "volume_id",
    "bootable",
    "disc_count",
    "additional_variants",
    "unknown",
];

/// Values for any field, as JSON text: `serde_json` could not write some of them. The first one leaves the field out.
fn values() -> Vec<String> {
    let mut values: Vec<String> = [
        "",
        "null",
        "0",
        "-1",
        "1.5",
        "1e999",
        "18446744073709551616",
        "true",
        "[]",
        "{}",
        "[null]",
        r#""""#,
        r#"" ""#,
        r#""a b""#,
        r#""Astronomía""#,
        r#""Astronom\u00eda""#,
        r#""\udcc3\udcad""#,
        r#""../../etc/passwd""#,
        r#""/etc/passwd""#,
        r#""\u001b[2J\nline""#,
        r#""%2e%2e""#,
        r#"{"md5": "d41d8cd98f00b204e9800998ecf8427e"}"#,
        r#"{"sha256": null}"#,
        r#"{"sha256": "abc", "sha512": 5}"#,
        r#"{"\ud800": 1}"#,
    ]
    .map(str::to_owned)
    .to_vec();
    values.push(format!("{}{}", "[".repeat(300), "]".repeat(300)));
    values.push(format!("\"{}\"", "x".repeat(70_000)));
    values
}

/// Rows of images that the local provider does not publish.
fn irrelevant() -> [Value; 5] {
    let row = |kind: &str, format: &str, subvariant: &str, arch: &str, name: &str| {
        json!({
            "arch": arch, "bootable": true, "checksums": {"sha256": sha256(name.as_bytes())}, "disc_count": 1,
            "disc_number": 1, "format": format, "implant_md5": null, "mtime": 1, "path": format!("Other/{arch}/{name}"),
            "size": 5, "subvariant": subvariant, "type": kind, "volume_id": "x",
        })
    };
    [
        row("dvd", "iso", "Server", "x86_64", "dvd.iso"),
        row("qcow2", "qcow2", "Cloud_Base", "aarch64", "cloud.qcow2"),
        row("live", "iso", "Astronomy_KDE", "x86_64", "Astronomía.iso"),
        row("raw-xz", "raw.xz", "Server", "aarch64", "server.raw.xz"),
        row("raw-xz", "raw.xz", "Cloud_Base", "armhfp", "arm.raw.xz"),
    ]
}

/// So many rows, each odd in another way, as JSON text.
fn odd_rows(count: usize) -> Vec<String> {
    let values = values();
    let rows = (0..count).map(|number| {
        let field = FIELDS[number % FIELDS.len()];
        let value = &values[(number / FIELDS.len()) % values.len()];
        let mut row = irrelevant()[number % 5].clone();
        let fields = row.as_object_mut().unwrap();
        if value.is_empty() {
            fields.remove(field);
            fields.insert("number".to_owned(), json!(number));
            return row.to_string();
        }
        fields.insert(field.to_owned(), json!("@value@"));
        row.to_string().replace("\"@value@\"", value)
    });
    let mut rows: Vec<String> = rows.collect();
    for (row, other) in rows.iter_mut().rev().zip(["null", "7", "\"row\"", "[]", "{}", "[{}]"]) {
        other.clone_into(row);
    }
    rows
}

/// The metadata of [`compose`] with these rows and maps beside its own.
fn with_rows(header: &Value, rows: &[String]) -> String {
    let mut metadata = compose().images_json();
    metadata["header"] = header.clone();
    let variants = &mut metadata["payload"]["images"];
    variants["Server"] = json!({"armhfp": ["@rows@"], "aarch64": null, "s390x": "none", "src": []});
    variants["Labs"] = Value::Null;
    variants["Spins"] = json!([]);
    variants["Astronomía"] = json!({"x86_64": {}});
    variants["Cloud"]["ppc64le"] = Value::Null;
    metadata.to_string().replace("\"@rows@\"", &rows.join(","))
}

#[tokio::test]
async fn irrelevant_rows_may_hold_anything() {
    let desk = Desk::new();
    let rows = odd_rows(300);
    assert_eq!(
        rows.iter().collect::<BTreeSet<_>>().len(),
        300,
        "each is odd in another way"
    );
    compose().write(&desk.compose()).unwrap();
    let place = desk.compose().display().to_string();
    let plan = ["plan", "--compose", &place, "--format", "json"];
    let expected = desk.run(&plan).await.stdout;

    let images = desk.compose().join("metadata/images.json");
    for header in [
        json!({"type": "productmd.images", "version": "1.2"}),
        json!({"version": "1.0"}),
        json!({"version": "1.99", "type": null, "new": {}}),
        json!({"version": 1.1}),
    ] {
        fs::write(&images, with_rows(&header, &rows)).unwrap();
        let exit = desk.run(&plan).await;
        assert_eq!(exit.code, Some(0), "{header}: {}", exit.stderr);
        assert_eq!(exit.stdout, expected, "{header}");
    }
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_complete(&desk);
}

/// Format 1.0 has neither subvariant nor format in its rows.
#[tokio::test]
async fn a_compose_in_format_1_0_has_nothing_to_publish() {
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let mut metadata = compose().images_json();
    metadata["header"] = json!({"version": "1.0"});
    for arches in metadata["payload"]["images"].as_object_mut().unwrap().values_mut() {
        for row in arches
            .as_object_mut()
            .unwrap()
            .values_mut()
            .flat_map(|rows| rows.as_array_mut().unwrap())
        {
            row.as_object_mut()
                .unwrap()
                .retain(|key, _| key != "subvariant" && key != "format");
        }
    }
    fs::write(desk.compose().join("metadata/images.json"), metadata.to_string()).unwrap();
    let exit = desk.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(!desk.published().exists());
}

/// Changes of the row of the `x86_64` disk, and what is said.
fn bad_rows() -> Vec<(&'static str, Value, &'static str)> {
    let (size, digest) = ("its size is no number of bytes", "it has no SHA-256");
    let (path, arch) = (
        "its path does not stay below the compose",
        "its arch has other characters",
    );
    vec![
        ("size", json!(null), size),
        ("size", json!("700000"), size),
        ("size", json!(-1), size),
        ("size", json!(1.5), size),
        ("checksums", json!(null), digest),
        ("checksums", json!({}), digest),
        ("checksums", json!({"md5": "d41d8cd98f00b204e9800998ecf8427e"}), digest),
        ("checksums", json!({"sha256": null}), digest),
        ("checksums", json!({"sha256": "abc"}), digest),
        ("path", json!(null), path),
        ("path", json!("Cloud/x86_64/Astronomía.raw.xz"), path),
        ("path", json!("../Disk.x86_64.raw.xz"), path),
        ("arch", json!(null), arch),
        ("arch", json!("../x86_64"), arch),
    ]
}

#[tokio::test]
async fn a_bad_row_fails_its_deliverable_and_the_others_are_published() {
    for (field, value, said) in bad_rows() {
        let desk = Desk::new();
        compose().write(&desk.compose()).unwrap();
        let mut metadata = compose().images_json();
        let row = &mut metadata["payload"]["images"]["Cloud"]["x86_64"][0];
        let path = row["path"].as_str().unwrap().to_owned();
        row[field] = value.clone();
        fs::write(desk.compose().join("metadata/images.json"), metadata.to_string()).unwrap();
        let exit = desk.reconsume(&[]).await;
        let what = format!("{field} {value}: {}", exit.stderr);
        assert_eq!(exit.code, Some(1), "{what}");
        let shown = match (field, value.as_str()) {
            ("path", None) => "Cloud.x86_64[0]",
            ("path", Some(path)) => path,
            _ => &path,
        };
        assert!(exit.stderr.contains(said) && exit.stderr.contains(shown), "{what}");
        let files = desk.files();
        assert!(files.contains_key(&disk_path("aarch64")), "{what}");
        assert!(
            files.contains_key(&format!("{COMPOSE}/oci/Silverblue/index.json")),
            "{what}"
        );
        assert!(!files.contains_key(&disk_path("x86_64")), "{what}");
        assert_no_leftovers(&desk);
    }
}

/// A disk of another subvariant is not ours, however it is spelled.
#[tokio::test]
async fn a_row_of_another_subvariant_is_not_selected() {
    for subvariant in [
        json!(null),
        json!(""),
        json!("Cloud Base"),
        json!("../Cloud_Base"),
        json!("Astronomía"),
    ] {
        let desk = Desk::new();
        let builder = ComposeBuilder::new(COMPOSE, Some("RC-1.7")).image(disk_row("x86_64"));
        builder.write(&desk.compose()).unwrap();
        let mut metadata = builder.images_json();
        metadata["payload"]["images"]["Cloud"]["x86_64"][0]["subvariant"] = subvariant.clone();
        fs::write(desk.compose().join("metadata/images.json"), metadata.to_string()).unwrap();
        let exit = desk.reconsume(&[]).await;
        assert_eq!(exit.code, Some(0), "{subvariant}: {}", exit.stderr);
        assert!(!desk.published().exists(), "{subvariant}");
    }
}

/// The stage that follows from composeinfo.json, or what is said of it.
#[tokio::test]
async fn composeinfo_may_be_odd_where_it_is_not_needed() {
    let header = json!({"type": "productmd.composeinfo", "version": "1.2"});
    let about = |compose: Value| Some(json!({"header": header, "payload": {"compose": compose}}));
    let table = [
        (None, Ok("production")),
        (about(json!({"id": COMPOSE})), Ok("production")),
        (about(json!({"id": COMPOSE, "label": null})), Ok("production")),
        (about(json!({"id": COMPOSE, "label": ""})), Ok("production")),
        (
            about(json!({"id": COMPOSE, "label": "RC-1.7", "date": 1, "new": [null]})),
            Ok("rc"),
        ),
        (about(json!({"id": null, "label": "Beta-1.1"})), Ok("beta")),
        (about(json!({"label": "RC-1.7"})), Ok("rc")),
        (
            Some(
                json!({"header": {"version": "1.0", "type": null}, "new": 1, "payload": {"variants": null, "release": [],
                "compose": {"id": COMPOSE, "label": "RC-1.7"}}}),
            ),
            Ok("rc"),
        ),
        (about(json!({"id": COMPOSE, "label": 1.7})), Err("labelled \"1.7\"")),
        (
            about(json!({"id": COMPOSE, "label": "Alpha-1.7"})),
            Err("labelled \"Alpha-1.7\""),
        ),
        (
            about(json!({"id": "Fedora-43-20251025.0"})),
            Err("Fedora-43-20251025.0"),
        ),
        (about(json!(null)), Err("composeinfo.json")),
    ];
    let desk = Desk::new();
    compose().write(&desk.compose()).unwrap();
    let place = desk.compose().display().to_string();
    let file = desk.compose().join("metadata/composeinfo.json");
    for (content, expected) in table {
        match &content {
            Some(content) => fs::write(&file, content.to_string()).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let exit = desk.run(&["plan", "--compose", &place, "--format", "json"]).await;
        match expected {
            Ok(stage) => {
                let plan: Value = serde_json::from_str(&exit.stdout).unwrap();
                assert_eq!(plan["stage"], stage, "{content:?}");
            }
            Err(said) => {
                assert_eq!(exit.code, Some(1), "{content:?}");
                assert!(exit.stderr.contains(said), "{content:?}: {}", exit.stderr);
            }
        }
    }
}
