//! The recipe of the container image. `image.rs` builds it.

use std::fs;

use crate::{file, folder, outcome, python_tool, text};

#[test]
fn the_containerfile_has_no_findings() {
    let folder = folder();
    let lint = |path| outcome(python_tool("hadolint", folder.path()).arg(path));
    let (good, written) = lint(file("Containerfile"));
    assert!(good && written.is_empty(), "{written}");

    let worse = folder.path().join("Containerfile");
    fs::write(&worse, text("Containerfile") + "RUN cd /tmp\n").unwrap();
    let (good, written) = lint(worse);
    assert!(!good && written.contains("DL3003"), "{written}");
}
