//! Stands in for the keyring in a build without the feature `signatures`: a configuration that needs one is refused.

use std::path::Path;

use super::Error;

/// This build reads no keys, so it has no reason either.
pub type Unreadable = std::convert::Infallible;

/// A keyring without keys.
#[derive(Debug, Default)]
pub(super) struct Keyring(());

impl Keyring {
    pub(super) fn read(_: &Path) -> Result<Self, Error> {
        Err(Error::LeftOut)
    }

    pub(super) fn signed_text(&self, _: &[u8]) -> Option<String> {
        None
    }
}
