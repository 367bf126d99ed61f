//! The files that operators deploy and packagers build, checked with the tools that will read it.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod containerfile;
mod documentation;
mod image;
mod manifests;
mod monitoring;
mod package;
mod rpm;
mod unit;
mod version;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cloud_image_uploader_test_support::process::{command, test_env};
use cloud_image_uploader_test_support::program::Program;
use serde_json::Value;
use tempfile::TempDir;

/// How long a short command may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The program that these tests are built with.
const PROGRAM: &str = env!("CARGO_BIN_EXE_cloud-image-uploader");

/// A path in this repository.
fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap()
}

/// A tool that `tests/setup` installed into the Python environment.
fn python_tool(name: &str, home: &Path) -> Command {
    command(test_env().join("venv/bin").join(name), home)
}

/// Whether a command ended well, and all it wrote.
fn outcome(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let written = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(written).unwrap())
}

/// The documents of a YAML file.
fn documents(yaml: &Path) -> Vec<Value> {
    let home = folder();
    let mut python = python_tool("python3", home.path());
    python
        .args([
            "-c",
            "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))",
        ])
        .arg(yaml);
    let (good, written) = outcome(&mut python);
    assert!(good, "{written}");
    serde_json::from_str(&written).unwrap()
}

fn program() -> Program {
    Program::new(PROGRAM).unwrap()
}

/// Made-up certificates and keys that look like PEM.
fn pem(kind: &str) -> String {
    format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n")
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}
