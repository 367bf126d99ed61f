//! The vendor's own SDK for Python, as an independent reader of the stand-in and of published images.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Azure, Azurite, GROUP, SUBSCRIPTION};
use crate::process::{command, run, test_env};

const SCRIPT: &str = include_str!("sdk.py");

/// The SDK, with its way to a stand-in and to an Azurite.
pub struct Sdk<'a> {
    python: PathBuf,
    azure: &'a Azure,
    azurite: &'a Azurite,
}

impl<'a> Sdk<'a> {
    /// Finds the SDK; without it the test fails.
    pub fn new(azure: &'a Azure, azurite: &'a Azurite) -> Result<Self> {
        let python = test_env().join("venv/bin/python3");
        ensure!(
            python.exists(),
            "no Python in {}: run tests/setup",
            test_env().display()
        );
        Ok(Self { python, azure, azurite })
    }

    /// Calls `galleries.get`, `gallery_images.begin_create_or_update`, … with what comes after the resource group, and waits
    /// for the end. A refusal is `{"refused": <status>, "code": <code>}`.
    pub async fn compute(&self, name: &str, arguments: &[Value], options: Value) -> Result<Value> {
        let arguments: Vec<Value> = [json!(GROUP)].iter().chain(arguments).cloned().collect();
        self.call(&json!({"name": name, "arguments": arguments, "options": options}))
            .await
    }

    /// A version with the state of replication.
    pub async fn version(&self, gallery: &str, definition: &str, version: &str) -> Result<Value> {
        let arguments = [json!(gallery), json!(definition), json!(version)];
        let options = json!({"expand": "ReplicationStatus"});
        self.compute("gallery_image_versions.get", &arguments, options).await
    }

    /// A blob: its size, SHA-256, how many bytes of it were written, and its type.
    pub async fn blob(&self, name: &str) -> Result<Value> {
        self.call(&json!({"name": "blob", "arguments": [name]})).await
    }

    async fn call(&self, call: &Value) -> Result<Value> {
        let folder = tempfile::tempdir()?;
        let input = folder.path().join("call.json");
        fs::write(&input, call.to_string())?;
        let mut shell = command("sh", folder.path());
        shell
            .args(["-c", r#"exec "$0" "$@" < call.json"#])
            .arg(&self.python)
            .args(["-c", SCRIPT])
            .arg(self.azure.url())
            .arg(SUBSCRIPTION)
            .arg(self.azure.token())
            .arg(format!("{}/{}", self.azurite.url(), self.azurite.container()))
            .arg(self.azurite.ca())
            .arg(self.azurite.token())
            .current_dir(folder.path());
        let output = run(shell).await?;
        serde_json::from_slice(&output).with_context(|| String::from_utf8_lossy(&output).into_owned())
    }
}
