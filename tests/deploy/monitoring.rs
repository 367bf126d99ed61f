//! Dashboard, alerts, and documentation of the metrics, held against the program's own list of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use cloud_image_uploader::base::metrics::{ALL, Kind, Label, Metric};
use cloud_image_uploader_test_support::process::command;
use serde_json::Value;

use crate::{documents, file, folder, outcome, text};

const DASHBOARD: &str = "deploy/grafana/cloud-image-uploader.json";
const ALERTS: &str = "deploy/prometheus/alerts.yaml";

/// Labels that every metric has by the time it is in Prometheus.
const EVERYWHERE: [&str; 2] = ["namespace", "provider"];

fn dashboard() -> Value {
    serde_json::from_str(&text(DASHBOARD)).unwrap()
}

/// Each query of the dashboard, with values in place of Grafana's own variables.
fn queries() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries: Vec<_> = targets
        .map(|target| {
            let query = target["expr"].as_str().unwrap();
            query.replace("$__rate_interval", "5m").replace("$__range", "1d")
        })
        .collect();
    assert!(queries.len() > 20);
    queries
}

/// The alerting rules, by name.
fn rules() -> Vec<Value> {
    let documents = documents(&file(ALERTS));
    let groups = documents[0]["groups"].as_array().unwrap();
    let rules: Vec<Value> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .cloned()
        .collect();
    assert!(rules.len() > 5);
    rules
}

/// The metrics in an expression, with the names that a histogram has in Prometheus.
fn metrics(expression: &str) -> Vec<&'static Metric> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("uploader_"));
    let found: Vec<_> = ours
        .map(|word| {
            let is = |metric: &&Metric| match metric.kind {
                Kind::Histogram => ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|part| word.strip_suffix(part) == Some(metric.name)),
                Kind::Counter | Kind::Gauge => word == metric.name,
            };
            let found = ALL.iter().find(is);
            found.unwrap_or_else(|| panic!("unknown metric {word} in {expression}"))
        })
        .collect();
    assert!(!found.is_empty(), "{expression}");
    found
}

/// The texts between an opening and the next closing.
fn between<'a>(text: &'a str, open: &str, close: char) -> impl Iterator<Item = &'a str> {
    text.split(open)
        .skip(1)
        .map(move |rest| rest.split(close).next().unwrap())
}

/// Asserts that an expression groups and selects by labels and values that its metrics have.
fn check_labels(expression: &str) {
    let metrics = metrics(expression);
    let labels = || metrics.iter().flat_map(|metric| metric.labels);
    let known: BTreeSet<&str> = labels()
        .map(|label| label.name)
        .chain(EVERYWHERE)
        .chain(["le"])
        .collect();
    let groups = between(expression, "by (", ')').chain(between(expression, "on (", ')'));
    for name in groups.flat_map(|group| group.split(", ")) {
        assert!(known.contains(name), "{name} in {expression}");
    }
    for selector in between(expression, "{", '}').flat_map(|group| group.split(", ")) {
        let (name, value) = selector.split_once('=').unwrap();
        let value = value.trim_start_matches('~').trim_matches('"');
        assert!(known.contains(name), "{name} in {expression}");
        if EVERYWHERE.contains(&name) {
            assert_eq!(value, format!("${name}"), "the dashboard's variable");
        } else {
            let possible = labels().filter(|label| label.name == name);
            assert!(
                possible.flat_map(|label| label.values).any(|known| *known == value),
                "{value} in {expression}"
            );
        }
    }
}

#[test]
fn the_dashboard_shows_every_metric_there_is_and_no_other() {
    let mut shown = BTreeSet::new();
    for query in queries() {
        check_labels(&query);
        shown.extend(metrics(&query).iter().map(|metric| metric.name));
    }
    assert_eq!(shown, ALL.iter().map(|metric| metric.name).collect());

    let dashboard = dashboard();
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            let query = variable["definition"].as_str().unwrap();
            let name = variable["name"].as_str().unwrap();
            assert!(EVERYWHERE.contains(&name), "{query}");
            assert_eq!(metrics(query).len(), 1);
            assert!(query.ends_with(&format!(", {name})")), "{query}");
        }
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    // No two at one place of the grid, which is 24 wide.
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} is on another one", panel["title"]);
            }
        }
    }
}

#[test]
fn every_alert_says_what_and_where_to_read_on() {
    let page = text("docs/troubleshooting.md");
    let mut headings: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### Alert "))
        .collect();
    let mut names = BTreeSet::new();
    let rules = rules();
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name.to_owned()), "{name} twice");
        check_labels(rule["expr"].as_str().unwrap());
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
        let annotations = &rule["annotations"];
        for key in ["summary", "description"] {
            assert!(!annotations[key].as_str().unwrap().is_empty(), "{name}: {key}");
        }
        let place = format!("docs/troubleshooting.md#alert-{}", name.to_lowercase());
        let runbook = annotations["runbook_url"].as_str().unwrap();
        assert!(runbook.ends_with(&place), "{name}: {runbook}");
        assert!(headings.remove(name), "docs/troubleshooting.md lacks {name}");
    }
    assert!(headings.is_empty(), "there are no alerts {headings:?}");
}

/// Rules fire when they should, and at no other time; and Prometheus understands the dashboard.
#[test]
#[ignore = "needs promtool, which tests/setup --long installs"]
fn prometheus_understands_rules_and_queries() {
    let folder = folder();
    let promtool = |arguments: &[&str]| outcome(command("promtool", folder.path()).args(arguments));
    let alerts = file(ALERTS);
    let (good, written) = promtool(&["check", "rules", alerts.to_str().unwrap()]);
    assert!(good, "{written}");
    let scenarios = file("tests/fixtures/alerts/firing.yaml");
    let (good, written) = promtool(&["test", "rules", scenarios.to_str().unwrap()]);
    assert!(good, "{written}");
    let scenarios = fs::read_to_string(scenarios).unwrap();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(
            scenarios.contains(&format!("alertname=\"{name}\"")),
            "{name} is never seen firing"
        );
    }

    let mut recorded = String::from("groups:\n  - name: queries\n    rules:\n");
    for (number, query) in queries().iter().enumerate() {
        let query = Value::from(query.as_str());
        writeln!(recorded, "      - {{record: query{number}, expr: {query}}}").unwrap();
    }
    let path = folder.path().join("queries.yaml");
    fs::write(&path, &recorded).unwrap();
    let (good, written) = promtool(&["check", "rules", path.to_str().unwrap()]);
    assert!(good, "{written}");
    fs::write(&path, recorded.replacen("sum by", "sum bye", 1)).unwrap();
    let (good, written) = promtool(&["check", "rules", path.to_str().unwrap()]);
    assert!(!good, "{written}");
}

fn row(metric: &Metric) -> String {
    let kind = format!("{:?}", metric.kind).to_lowercase();
    let label = |label: &Label| match label.values {
        [] => format!("`{}`", label.name),
        values => format!("`{}`: {}", label.name, values.join(", ")),
    };
    let labels: Vec<_> = metric.labels.iter().map(label).collect();
    format!(
        "| `{}` | {kind} | {} | {} |\n",
        metric.name,
        labels.join("; "),
        metric.help
    )
}

#[test]
fn the_documentation_has_every_metric() {
    let expected: String = ALL.iter().map(row).collect();
    let page = text("docs/metrics.md");
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `uploader_")).collect();
    let written: String = rows.iter().map(|row| format!("{row}\n")).collect();
    assert!(written == expected, "docs/metrics.md must have:\n{expected}");
}
