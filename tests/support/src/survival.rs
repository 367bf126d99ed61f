//! Numbers that tests leave for `tests/survival`, which makes tables of them.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::Value;

/// Leaves numbers under a name that begins with `faults-`, `input-`, or `load-`. `target` is the test's own
/// `CARGO_TARGET_TMPDIR`.
pub fn leave(target: &str, name: &str, numbers: &Value) -> Result<()> {
    let folder = Path::new(target).join("survival");
    fs::create_dir_all(&folder)?;
    let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    fs::write(folder.join(name + ".json"), numbers.to_string())?;
    Ok(())
}
