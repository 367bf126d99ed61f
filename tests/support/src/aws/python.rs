//! Amazon's SDK for Python, which knows EC2 from Amazon's own model: it reads back what clients made, and checks what they
//! sent.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Cloud, lock};
use crate::process::{command, run, test_env};

const DESCRIBE: &str = include_str!("describe.py");
const VALIDATE: &str = include_str!("validate.py");

impl Cloud {
    /// A Python script to be run with the SDK for this cloud. Arguments may be added.
    pub fn python(&self, name: &str, script: &str) -> Result<Command> {
        let python = test_env().join("venv/bin/python3");
        ensure!(python.exists(), "no {}: run tests/setup", python.display());
        let file = self.write(name, script)?;
        let mut command = command(python, self.folder.path());
        command.envs(self.environment()).arg(file);
        Ok(command)
    }

    /// The SDK's description of all enabled regions: by region, `images` (with `LaunchPermissions`) and `snapshots`
    /// (with `CreateVolumePermissions`), their members as the API calls them.
    pub async fn describe(&self) -> Result<Value> {
        let mut python = self.python("describe.py", DESCRIBE)?;
        {
            let world = lock(&self.shared.world);
            let enabled = world.regions.iter().filter(|(_, region)| !region.disabled);
            python.args(enabled.map(|(name, _)| name));
        }
        serde_json::from_slice(&run(python).await?).context("parse the answer of describe.py")
    }

    /// Checks every call so far, but those to S3, against the models of the SDK. Fails with what is wrong; returns how many
    /// were right.
    pub async fn validate_calls(&self) -> Result<usize> {
        let calls: Vec<_> = self.calls().into_iter().filter(|call| call.service != "s3").collect();
        let lines: String = calls
            .iter()
            .map(|call| json!({"service": call.service, "action": call.action, "raw": call.raw}))
            .map(|call| format!("{call}\n"))
            .collect();
        let mut python = self.python("validate.py", VALIDATE)?;
        python.arg(self.write("calls.jsonl", &lines)?);
        let problems: Vec<String> = serde_json::from_slice(&run(python).await?)?;
        ensure!(
            problems.is_empty(),
            "calls that are not in the model:\n{}",
            problems.join("\n")
        );
        Ok(calls.len())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.folder.path().join(name);
        fs::write(&file, text)?;
        Ok(file)
    }
}
