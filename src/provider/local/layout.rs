//! OCI layouts, filled by the archive reader.
use std::path::Path;

use super::Error;
use crate::error::Failure;
use crate::provider::{Origin, Task};
use crate::select::Deliverable;

pub(super) async fn stage(_path: &Path, _deliverable: &Deliverable, _task: &Task) -> Result<Origin, Failure> {
    Ok(Origin::Created)
}

pub(super) fn release(_path: &Path, _deliverable: &Deliverable) -> Result<(), Error> {
    Ok(())
}
