//! Build script: finds the version for `--version`.
//!
//! The first of these that exists:
//! 1. the variable `CLOUD_IMAGE_UPLOADER_VERSION`, for those who build without git and know better than 3;
//! 2. git's description, in a checkout: `1.2.0` on the tag `v1.2.0`, `1.2.0-3-g0123abc` three commits later, and before any tag
//!    the version of `Cargo.toml` with the commit;
//! 3. the version in `Cargo.toml`.

use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "CLOUD_IMAGE_UPLOADER_VERSION";

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let package = env!("CARGO_PKG_VERSION");
    let version = std::env::var(VARIABLE)
        .ok()
        .filter(|version| !version.is_empty())
        .or_else(|| of_git(package))
        .unwrap_or_else(|| package.to_owned());
    println!("cargo::rustc-env={VARIABLE}={version}");
}

fn of_git(package: &str) -> Option<String> {
    // An unpacked package may lie in a checkout of something else, such as the recipe of a distribution.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().ok()? {
        return None;
    }
    // Tags and the branch in use, but not every commit: with that, each commit would build everything again. So a build
    // in a used folder may name an earlier commit.
    for path in ["HEAD", "packed-refs", "refs/tags"] {
        let path = git(&["rev-parse", "--git-path", path])?;
        // cargo takes a path that is not there for one that has changed.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let described = git(&["describe", "--tags", "--match", "v[0-9]*", "--always"])?;
    Some(match described.strip_prefix('v') {
        Some(version) => version.to_owned(),
        None => format!("{package}+{described}"),
    })
}

/// The one line that git answers, if it does.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}
