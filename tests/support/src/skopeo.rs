//! skopeo, to put images into registries and to read them back independently of the daemon.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    process::{command, run, tool},
    registry::{Access, Registry},
};

/// skopeo with the access that one registry wants.
pub struct Skopeo {
    host: String,
    /// Can be changed, to show that a wrong password is refused.
    pub access: Access,
    home: TempDir,
}

impl Skopeo {
    /// For one registry.
    pub fn new(registry: &Registry) -> Result<Self> {
        Ok(Self {
            host: registry.host.clone(),
            access: registry.access.clone(),
            home: tempfile::tempdir()?,
        })
    }

    /// The manifest or index behind `repository:tag` or `repository@digest`, byte for byte.
    pub async fn inspect_raw(&self, image: &str) -> Result<Vec<u8>> {
        let mut inspect = self.command("inspect")?;
        self.allow(&mut inspect, "");
        inspect.arg("--raw").arg(self.reference(image));
        run(inspect).await
    }

    /// The same as JSON.
    pub async fn inspect(&self, image: &str) -> Result<Value> {
        serde_json::from_slice(&self.inspect_raw(image).await?).context("parse a manifest")
    }

    /// The digest of `repository:tag`, computed by skopeo over what the registry serves.
    pub async fn digest(&self, image: &str) -> Result<String> {
        let raw = self.inspect_raw(image).await?;
        let file = self.home.path().join("manifest");
        std::fs::write(&file, raw)?;
        let mut digest = self.command("manifest-digest")?;
        digest.arg(file);
        Ok(String::from_utf8(run(digest).await?)?.trim().to_owned())
    }

    /// The tags of a repository, sorted. An absent repository is an error.
    pub async fn tags(&self, repository: &str) -> Result<Vec<String>> {
        let mut list = self.command("list-tags")?;
        self.allow(&mut list, "");
        list.arg(self.reference(repository));
        let answer: Value = serde_json::from_slice(&run(list).await?)?;
        let mut tags: Vec<String> = serde_json::from_value(answer["Tags"].clone())?;
        tags.sort();
        Ok(tags)
    }

    /// Copies an image, all its architectures included, into an OCI layout folder. skopeo verifies every digest on the way.
    pub async fn copy_to_layout(&self, image: &str, folder: &Path) -> Result<()> {
        let mut copy = self.command("copy")?;
        self.allow(&mut copy, "src-");
        copy.arg("--all")
            .arg(self.reference(image))
            .arg(format!("oci:{}", folder.display()));
        run(copy).await?;
        Ok(())
    }

    /// Copies any source that skopeo knows, such as `oci-archive:FILE`, to `repository:tag`.
    pub async fn copy_from(&self, source: &str, image: &str) -> Result<()> {
        let mut copy = self.command("copy")?;
        self.allow(&mut copy, "dest-");
        copy.arg("--all").arg(source).arg(self.reference(image));
        run(copy).await?;
        Ok(())
    }

    fn command(&self, verb: &str) -> Result<Command> {
        let mut skopeo = command(tool("skopeo")?, self.home.path());
        skopeo
            .env("XDG_RUNTIME_DIR", self.home.path())
            .arg("--insecure-policy")
            .args(["--tmpdir".as_ref(), self.home.path().as_os_str()])
            .arg(verb);
        Ok(skopeo)
    }

    /// Adds certificates and credentials. `copy` has them twice, with a prefix for each side.
    fn allow(&self, command: &mut Command, side: &str) {
        if !self.access.tls {
            command.arg(format!("--{side}tls-verify=false"));
        }
        if let Some(folder) = &self.access.cert_dir {
            command.arg(format!("--{side}cert-dir")).arg(folder);
        }
        if let Some((user, password)) = &self.access.credentials {
            command.arg(format!("--{side}creds")).arg(format!("{user}:{password}"));
        }
    }

    fn reference(&self, image: &str) -> String {
        format!("docker://{}/{image}", self.host)
    }
}

/// The output of `skopeo inspect --raw` for an OCI layout folder.
pub async fn inspect_layout(folder: &Path) -> Result<Value> {
    let home = tempfile::tempdir()?;
    let mut inspect = command(tool("skopeo")?, home.path());
    inspect
        .args(["--insecure-policy", "inspect", "--raw"])
        .arg(format!("oci:{}", folder.display()));
    serde_json::from_slice(&run(inspect).await?).context("parse a layout's manifest")
}
