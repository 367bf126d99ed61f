//! The results of all faults, for the tables in `docs/reliability.md`.

use std::fs;
use std::path::Path;

use cloud_image_uploader_test_support::program::Exit;
use cloud_image_uploader_test_support::survival::leave;
use serde_json::json;

use crate::faults::Kind;
use crate::world::{AGAIN, Found, World};

/// How a case ended.
pub struct Outcome {
    what: String,
    /// Missing, or not as it should be.
    pub lost: Vec<String>,
    pub duplicated: Vec<String>,
    pub leaked: Vec<String>,
    /// The output of a program that did not end well, or left something else than it should.
    said: Option<String>,
}

impl Outcome {
    pub fn of(what: String, exit: &Exit, found: &Found, expected: &Found) -> Self {
        let lost = expected.iter().filter(|(name, value)| found.get(*name) != Some(value));
        let lost = lost.map(|(name, value)| match found.get(name) {
            Some(other) => format!("{name} is {other} and not {value}"),
            None => name.clone(),
        });
        let lost: Vec<_> = lost.collect();
        let more = found.keys().filter(|name| !expected.contains_key(*name)).cloned();
        let (duplicated, leaked): (Vec<_>, Vec<_>) = more.partition(|name| name.ends_with(AGAIN));
        let sound = exit.code == Some(0) && lost.is_empty() && duplicated.is_empty() && leaked.is_empty();
        Self {
            what,
            lost,
            duplicated,
            leaked,
            said: (!sound).then(|| format!("{:?}\n{}{}", exit.code, exit.stdout, exit.stderr)),
        }
    }

    /// Describes the harm, if there was any.
    pub fn harm(&self) -> Option<String> {
        let said = self.said.as_ref()?;
        let Self {
            what,
            lost,
            duplicated,
            leaked,
            ..
        } = self;
        Some(format!(
            "{what}: lost {lost:#?}, duplicated {duplicated:#?}, leaked {leaked:#?}: {said}"
        ))
    }
}

/// Leaves what came of one kind of fault.
pub fn record(provider: &str, kind: Kind, outcomes: &[Outcome]) {
    let sum = |of: fn(&Outcome) -> &Vec<String>| outcomes.iter().map(|outcome| of(outcome).len()).sum::<usize>();
    let numbers = json!({
        "provider": provider,
        "kind": kind.title(),
        "row": kind as usize,
        "faults": outcomes.len(),
        "lost": sum(|outcome| &outcome.lost),
        "duplicated": sum(|outcome| &outcome.duplicated),
        "leaked": sum(|outcome| &outcome.leaked),
    });
    leave(
        env!("CARGO_TARGET_TMPDIR"),
        &format!("faults-{provider}-{kind:?}"),
        &numbers,
    )
    .unwrap();
}

/// A provider's name, and how often each kind of fault is tried on it.
#[cfg(all(
    feature = "aws",
    feature = "azure",
    feature = "gcp",
    feature = "container",
    feature = "local"
))]
fn column<W: World>() -> (&'static str, [usize; 8]) {
    (W::NAME, Kind::ALL.map(|kind| kind.cases(W::CALLS).len()))
}

/// The page counts exactly the faults that are tried here.
#[cfg(all(
    feature = "aws",
    feature = "azure",
    feature = "gcp",
    feature = "container",
    feature = "local"
))]
#[test]
fn the_page_on_reliability_has_these_numbers() {
    let columns = [
        column::<crate::aws::ByBlocks>(),
        column::<crate::aws::ByImport>(),
        column::<crate::azure::Gallery>(),
        column::<crate::clean_up::CleanUp<crate::azure::Gallery>>(),
        column::<crate::gcp::Project>(),
        column::<crate::clean_up::CleanUp<crate::gcp::Project>>(),
        column::<crate::container::Registries>(),
        column::<crate::local::Folder>(),
    ];
    let row = |title: &str, cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<_> = cells.collect();
        format!("| {title} | {} |\n", cells.join(" | "))
    };
    let title = "fault, at each call of a provider by its name";
    let mut table = row(title, &mut columns.iter().map(|(name, _)| (*name).to_owned()));
    table += &row("---", &mut columns.iter().map(|_| "---:".to_owned()));
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        let numbers = columns.iter().map(|(_, numbers)| numbers[index].to_string());
        table += &row(kind.title(), &mut numbers.into_iter());
    }
    for harm in ["lost", "duplicated", "leaked"] {
        table += &row(&format!("**{harm}**"), &mut columns.iter().map(|_| "0".to_owned()));
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reliability.md");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains(&table), "docs/reliability.md should have\n{table}");
}
