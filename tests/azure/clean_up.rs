//! The retention policy, as a command and after a new image.

use std::collections::BTreeSet;

use cloud_image_uploader_test_support::azure::{Azure, Fault};
use serde_json::{Value, json};

use crate::world::*;

const RAWHIDE: &str = "Fedora-Cloud-Rawhide-x64";
const OLD: &str = "2020-01-01T00:00:00Z";
const YOUNG: &str = "2099-01-01T00:00:00Z";

fn ours() -> Value {
    json!({"owner": "cloud-image-uploader", "compose-id": "Fedora-43-20251023.0", "image-sha256": "00"})
}

fn definition(azure: &Azure, name: &str) {
    let properties = json!({
        "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2", "architecture": "x64",
        "identifier": {"publisher": "Fedora", "offer": "Cloud", "sku": name},
    });
    azure.add_definition(GALLERY, name, properties);
}

fn add(azure: &Azure, definition: &str, name: &str, tags: Value, excluded: bool, end: &str) {
    let profile = json!({
        "targetRegions": [{"name": "eastus"}], "excludeFromLatest": excluded, "endOfLifeDate": end,
    });
    azure.add_version(GALLERY, definition, name, tags, profile);
}

/// Adds four dozen versions of all kinds. Returns the names of those to be deleted.
fn fill(azure: &Azure) -> BTreeSet<String> {
    azure.add_gallery(GALLERY, "eastus");
    for name in [X64, RAWHIDE, "Fedora-Cloud-41-x64", "fedora-coreos-next"] {
        definition(azure, name);
    }
    let mut gone = BTreeSet::new();
    for day in 1..=12 {
        // Excluded versions of a supported release: seven are kept.
        let name = format!("43.202509{day:02}.0");
        add(azure, X64, &name, ours(), true, YOUNG);
        if day <= 5 {
            gone.insert(format!("{X64}/{name}"));
        }
        // Promoted versions are kept.
        add(azure, X64, &format!("43.202509{day:02}.100"), ours(), false, YOUNG);
        // Rawhide's: seven are kept, excluded or not.
        let name = format!("45.202509{day:02}.0");
        add(azure, RAWHIDE, &name, ours(), day % 3 == 0, YOUNG);
        if day <= 5 {
            gone.insert(format!("{RAWHIDE}/{name}"));
        }
    }
    // Past its end of life, promoted or not.
    for (name, excluded) in [("41.20250901.0", true), ("41.20250902.0", false)] {
        add(azure, "Fedora-Cloud-41-x64", name, ours(), excluded, OLD);
        gone.insert(format!("Fedora-Cloud-41-x64/{name}"));
    }
    // Versions that the policy must not delete.
    let mut never = ours();
    never["delete"] = json!("never");
    add(
        azure,
        "Fedora-Cloud-41-x64",
        "41.20250801.0",
        json!({"owner": "CoreOS", "delete": "never"}),
        true,
        OLD,
    );
    add(azure, "Fedora-Cloud-41-x64", "41.20250802.0", never, true, OLD);
    let foreign = json!({"owner": "CoreOS"});
    add(azure, "Fedora-Cloud-41-x64", "41.20250806.0", foreign, true, OLD);
    let mut shouted = ours();
    shouted["DELETE"] = json!("Never");
    add(azure, "Fedora-Cloud-41-x64", "41.20250805.0", shouted, true, OLD);
    add(azure, "Fedora-Cloud-41-x64", "41.20250803.0", Value::Null, true, OLD);
    add(azure, "fedora-coreos-next", "41.20250804.0", Value::Null, true, OLD);
    gone
}

/// The names in lines with this prefix.
fn named(stdout: &str, start: &str) -> BTreeSet<String> {
    let lines = stdout.lines().filter_map(|line| line.strip_prefix(start));
    lines.map(|rest| rest.split(": ").next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_deletes_what_its_dry_run_lists() {
    let world = World::new(&["eastus"]).await;
    let gone = fill(&world.azure);
    let before = world.azure.versions();
    let exit = world.run(&["clean-up", "--dry-run"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(named(&exit.stdout, "would go: "), gone, "{}", exit.stdout);
    for line in [
        "stays: Fedora-Cloud-41-x64/41.20250801.0: it is tagged delete=never",
        "stays: Fedora-Cloud-41-x64/41.20250806.0: it belongs to CoreOS",
        "stays: Fedora-Cloud-41-x64/41.20250802.0: it is tagged delete=never",
        "stays: Fedora-Cloud-41-x64/41.20250803.0: it has no mark of this program (see clean_up_unmarked)",
        "would go: Fedora-Cloud-41-x64/41.20250901.0: past its end of life, 2020-01-01",
        "would go: Fedora-Cloud-43-x64/43.20250905.0: 7 newer ones excluded from latest",
        "stays: Fedora-Cloud-43-x64/43.20250906.0: among the newest 7 excluded from latest",
        "stays: Fedora-Cloud-43-x64/43.20250901.100: it is promoted: users get it as the latest",
        "stays: Fedora-Cloud-Rawhide-x64/45.20250906.0: among the newest 7 of Rawhide",
    ] {
        assert!(exit.stdout.contains(&format!("{line}\n")), "{line}: {}", exit.stdout);
    }
    assert!(!exit.stdout.contains("coreos-next"), "{}", exit.stdout);
    assert_eq!(world.azure.versions(), before);
    assert!(world.azure.changes().is_empty());

    let exit = world.run(&["clean-up"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(named(&exit.stdout, "gone: "), gone, "{}", exit.stdout);
    assert_eq!(&before - &world.azure.versions(), gone);
    assert!(
        exit.stderr
            .contains("retired Fedora-Cloud-41-x64/41.20250901.0: past its end of life")
    );
    let exit = world.run(&["clean-up"]).await;
    assert!(named(&exit.stdout, "gone: ").is_empty(), "{}", exit.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_without_a_mark_are_deleted_if_configured() {
    let world = World::new(&["eastus"]).await.with("clean_up_unmarked = true\n");
    let mut gone = fill(&world.azure);
    gone.insert("Fedora-Cloud-41-x64/41.20250803.0".to_owned());
    let before = world.azure.versions();
    let exit = world.run(&["clean-up"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert_eq!(&before - &world.azure.versions(), gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_read_in_full_deletes_nothing() {
    let world = World::new(&["eastus"]).await;
    fill(&world.azure);
    let before = world.azure.versions();
    for call in ["GET gallery", "LIST definitions", "LIST versions"] {
        world.azure.fault(call, Fault::Refuse, usize::MAX);
        let exit = world.run(&["clean-up"]).await;
        assert_eq!(exit.code, Some(1), "{call}: {}", exit.stdout);
        assert!(exit.stderr.contains("AuthorizationFailed"), "{call}: {}", exit.stderr);
        world.azure.mend();
    }
    // All pages but the last one of the last list can be read.
    let refusal = Fault::Status(400, "BadRequest");
    world.azure.fault_after(13, "LIST versions", refusal);
    let exit = world.run(&["clean-up"]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stdout);
    assert!(
        exit.stderr.contains("list the versions of Fedora-Cloud-Rawhide-x64"),
        "{}",
        exit.stderr
    );
    assert_eq!(world.azure.versions(), before);
    assert!(world.azure.changes().is_empty());
}

/// A page may have no elements, and lead to more: `value` is null, or absent.
#[tokio::test(flavor = "multi_thread")]
async fn pages_without_elements_do_not_end_a_list() {
    let empty: [fn(&mut u16, &mut Value); 2] = [
        |_, page| {
            page["value"] = Value::Null;
            back(page);
        },
        |_, page| {
            page.as_object_mut().unwrap().remove("value");
            back(page);
        },
    ];
    for page in empty {
        let world = World::new(&["eastus"]).await;
        let gone = fill(&world.azure);
        for call in ["LIST definitions", "LIST versions"] {
            world.azure.fault(call, Fault::Answer(page), 1);
        }
        let exit = world.run(&["clean-up", "--dry-run"]).await;
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        assert_eq!(named(&exit.stdout, "would go: "), gone, "{}", exit.stdout);
    }
}

/// Lets the first page lead to its own elements again.
fn back(page: &mut Value) {
    let next = page["nextLink"].as_str().unwrap().replace("skiptoken=3", "skiptoken=0");
    page["nextLink"] = json!(next);
}

/// An operator promotes a version, or protects it, between the list and its deletion.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_changes_after_the_list_was_read_is_kept() {
    let world = World::new(&["eastus"]).await;
    world.azure.add_gallery(GALLERY, "eastus");
    definition(&world.azure, X64);
    add(&world.azure, X64, "43.20250901.0", ours(), true, OLD);
    world.azure.fault(
        "GET version",
        Fault::Answer(|_, version| version["tags"]["delete"] = json!("never")),
        1,
    );
    let exit = world.run(&["clean-up"]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.stdout);
    assert_eq!(world.azure.versions().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_deletes_a_bounded_number() {
    let world = World::new(&["eastus"]).await;
    world.azure.add_gallery(GALLERY, "eastus");
    definition(&world.azure, X64);
    for number in 0..30 {
        add(&world.azure, X64, &format!("43.20250901.{number}"), ours(), true, OLD);
    }
    let exit = world.run(&["clean-up"]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let later = named(&exit.stdout, "goes with the next run: ");
    assert_eq!(later, world.azure.versions(), "the oldest are deleted first");
    assert_eq!(later.len(), 5);
    assert!(later.contains("Fedora-Cloud-43-x64/43.20250901.29"));
    world.run(&["clean-up"]).await;
    assert!(world.azure.versions().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_runs_after_a_new_image() {
    let world = World::new(&["eastus"]).await;
    let gone = fill(&world.azure);
    let before = world.azure.versions();
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    // A conflict is retried.
    world.azure.fault("DELETE version", Fault::Status(409, "Conflict"), 1);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    world.assert_published(X64, &disk).await;
    let mut expected = &before - &gone;
    // The new version counts.
    expected.remove(&format!("{X64}/43.20250906.0"));
    expected.insert(format!("{X64}/{VERSION}"));
    assert_eq!(world.azure.versions(), expected);
}

/// Another process may still be announcing a version that it created a moment ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_is_kept_even_past_its_end_of_life() {
    let world = World::new(&["eastus"]).await.long_ago();
    let rows = ["aarch64", "x86_64"].map(|arch| row(arch, &disk(arch)));
    world.compose(rows.to_vec());
    for arch in ["aarch64", "x86_64"] {
        let exit = world.reconsume(&["--only", &format!("*.{arch}.*")]).await;
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    }
    assert_eq!(
        world.version(X64)["publishingProfile"]["endOfLifeDate"],
        "2020-12-09T00:00:00Z"
    );
    let exit = world.run(&["clean-up"]).await;
    for definition in [ARM64, X64] {
        let line = format!("stays: {definition}/{VERSION}: it is less than a day old\n");
        assert!(exit.stdout.contains(&line), "{}", exit.stdout);
        world
            .assert_published(definition, &disk(if definition == X64 { "x86_64" } else { "aarch64" }))
            .await;
    }
}

/// The image is published all the same.
#[tokio::test(flavor = "multi_thread")]
async fn clean_up_that_fails_is_a_warning() {
    let world = World::new(&["eastus"]).await;
    fill(&world.azure);
    let before = world.azure.versions();
    world.azure.fault("LIST versions", Fault::Refuse, usize::MAX);
    let disk = disk("x86_64");
    world.compose(vec![row("x86_64", &disk)]);
    let exit = world.reconsume(&[]).await;
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    assert!(
        exit.stderr.contains("the retention policy changed nothing"),
        "{}",
        exit.stderr
    );
    let made = BTreeSet::from([format!("{X64}/{VERSION}")]);
    assert_eq!(world.azure.versions(), &before | &made);
}
