//! The existing Python client and its message package: the other side of the wire.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    process::{command, run, test_env},
    rabbit::{ANNOUNCER, Rabbit},
};

const VALIDATE: &str = include_str!("validate.py");

/// The Python environment that `tests/setup` made.
pub struct FedoraMessaging {
    bin: PathBuf,
    folder: TempDir,
}

/// The message package's description of a valid message.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Validated {
    /// The message's Python class, such as `AwsPublishedV1`.
    pub class: String,
    /// One line for people.
    pub summary: String,
    /// Users, containers, and other things the message is about.
    pub usernames: Vec<String>,
    /// The containers it names.
    pub containers: Vec<String>,
    /// The severity, 20 for information.
    pub severity: i64,
}

impl FedoraMessaging {
    /// Finds the environment; without it the test fails.
    pub fn new() -> Result<Self> {
        let bin = test_env().join("venv/bin");
        ensure!(
            bin.join("fedora-messaging").exists(),
            "no fedora-messaging in {}: run tests/setup",
            bin.display()
        );
        Ok(Self {
            bin,
            folder: tempfile::tempdir()?,
        })
    }

    /// Publishes messages as the announcer, over TLS with its certificate, as in production.
    pub async fn publish(&self, rabbit: &Rabbit, messages: &[Value]) -> Result<()> {
        let conf = self.folder.path().join("config.toml");
        fs::write(&conf, config(rabbit, ANNOUNCER, self.folder.path())?)?;
        let file = self.write(messages)?;
        let mut publish = command(self.bin.join("fedora-messaging"), self.folder.path());
        publish.arg("--conf").arg(conf).arg("publish").arg(file);
        run(publish).await?;
        Ok(())
    }

    /// Loads messages with the schemas of the message package and validates them. A message that names no known schema is
    /// refused too: a plain `base.message` would accept anything.
    pub async fn validate(&self, messages: &[Value]) -> Result<Vec<Validated>> {
        let script = self.folder.path().join("validate.py");
        fs::write(&script, VALIDATE)?;
        let file = self.write(messages)?;
        let mut python = command(self.bin.join("python3"), self.folder.path());
        python.arg(script).arg(file);
        let answer = run(python).await?;
        serde_json::from_slice(&answer).context("parse the answer of validate.py")
    }

    fn write(&self, messages: &[Value]) -> Result<PathBuf> {
        let file = self.folder.path().join("messages.jsonl");
        let lines: String = messages.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&file, lines)?;
        Ok(file)
    }
}

/// The configuration of a client that logs in with a certificate and declares nothing.
pub fn config(rabbit: &Rabbit, user: &str, folder: &Path) -> Result<String> {
    Ok(format!(
        "amqp_url = \"{url}\"\npassive_declares = true\npublish_exchange = \"amq.topic\"\ntopic_prefix = \"\"\n\n{tls}",
        url = rabbit.tls_url(user),
        tls = rabbit.tls_table(user, folder)?,
    ))
}
