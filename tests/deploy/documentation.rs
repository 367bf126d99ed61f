//! The pages: every link leads somewhere, and they say of permissions and settings what is true.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{file, text};

/// Those that have an example.
const PROVIDERS: [&str; 5] = ["aws", "azure", "container", "gcp", "local"];

/// Names in the pages that belong to files and answers of others: AWS's profiles, a registry's tokens.
const NOT_OURS: [&str; 4] = ["role_arn", "source_profile", "access_token", "expires_in"];

/// All pages that operators and contributors read.
fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(file("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> = docs
        .filter(|path| path.extension().is_some_and(|kind| kind == "md"))
        .collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/rabbitmq.md"].map(file));
    pages.sort();
    pages
}

/// The lines of a page outside of its blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    })
}

/// Where a page's links lead.
fn links(text: &str) -> Vec<String> {
    let lines = prose(text).flat_map(|line| line.split("](").skip(1));
    lines
        .filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()))
        .collect()
}

/// The anchors of a page: its headings in lower case, with dashes for spaces, and without punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()));
    let anchor = |heading: &str| -> String {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut dead = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            let is_there = target.exists()
                && (anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !is_there {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert_eq!(dead, Vec::<String>::new());
}

/// Every page can be reached from the README, by one or more links.
#[test]
fn every_page_is_linked() {
    let mut found = BTreeSet::new();
    let mut next = vec![file("README.md")];
    while let Some(page) = next.pop() {
        let page = page.canonicalize().unwrap();
        let text = fs::read_to_string(&page).unwrap();
        let folder = page.parent().unwrap().to_owned();
        if found.insert(page) {
            let paths = links(&text)
                .into_iter()
                .map(|link| folder.join(link.split('#').next().unwrap()));
            next.extend(paths.filter(|path| path.extension().is_some_and(|kind| kind == "md") && path.exists()));
        }
    }
    let docs = pages().into_iter().filter(|page| page.starts_with(file("docs")));
    let lost: Vec<_> = docs
        .filter(|page| !found.contains(&page.canonicalize().unwrap()))
        .collect();
    assert_eq!(lost, Vec::<PathBuf>::new());
}

/// The pages show the files that are tested against what the program calls.
#[test]
fn permissions_are_shown_as_they_are() {
    for (page, shown) in [
        ("docs/aws.md", "deploy/aws/policy.json"),
        ("docs/azure.md", "deploy/azure/role.json"),
        ("docs/gcp.md", "deploy/gcp/role.yaml"),
        ("docs/gcp.md", "deploy/gcp/bucket-role.yaml"),
    ] {
        let kind = Path::new(shown).extension().unwrap().to_str().unwrap();
        let block = format!("```{kind}\n{}```", text(shown));
        assert!(text(page).contains(&block), "{page} does not show {shown}");
    }
}

/// Names in a page that look like settings are in an example, which tests hold against the program, or in a manifest.
#[test]
fn settings_that_are_named_exist() {
    let examples = PROVIDERS.map(|name| text(&format!("config/{name}.toml")));
    let manifests =
        ["aws", "azure", "container", "gcp"].map(|name| text(&format!("deploy/openshift/base/{name}/deployment.yaml")));
    let known = [examples.concat(), manifests.concat(), text("deploy/rabbitmq.md")].concat();
    let words: BTreeSet<&str> = known.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let mut unknown = Vec::new();
    for name in [
        "aws",
        "azure",
        "gcp",
        "containers",
        "deploying",
        "manual",
        "switching",
        "troubleshooting",
    ] {
        let page = text(&format!("docs/{name}.md"));
        for quoted in prose(&page).flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let key = quoted.split(" = ").next().unwrap();
            let is_key = key.trim_matches('_').contains('_') && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if is_key && !words.contains(key) && !NOT_OURS.contains(&key) {
                unknown.push(format!("{name}: {key}"));
            }
        }
    }
    assert_eq!(unknown, Vec::<String>::new());
}

/// Each alert leads to its paragraph, and each paragraph is an alert's.
#[test]
fn alerts_are_explained() {
    let rules = text("deploy/prometheus/alerts.yaml");
    let links = rules.split("docs/troubleshooting.md#").skip(1);
    let linked: BTreeSet<_> = links
        .filter_map(|link| link.lines().next())
        .map(str::to_owned)
        .collect();
    let anchors = anchors(&text("docs/troubleshooting.md"));
    let explained: BTreeSet<_> = anchors
        .into_iter()
        .filter(|anchor| anchor.starts_with("alert-"))
        .collect();
    assert_eq!(explained, linked);
}
