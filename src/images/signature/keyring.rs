//! The operator's OpenPGP keys, and the texts they signed.

use std::fs;
use std::path::Path;

use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;

use super::Error;

/// Signatures over weaker hashes can be forged, and do not count.
const HASHES: [HashAlgorithm; 3] = [HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512];
/// Starts each key in text form. One file often has several, one after the other.
const KEY: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";

/// The reason why bytes are no keys.
pub type Unreadable = pgp::errors::Error;

/// The keys whose signatures count.
#[derive(Debug, Default)]
pub(super) struct Keyring(Vec<SignedPublicKey>);

impl Keyring {
    /// Reads the keys of a file, in binary or text form.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let file = || path.to_owned();
        let bytes = fs::read(path).map_err(|source| Error::Keyring { path: file(), source })?;
        let failed = |source| Error::Keys { path: file(), source };
        let mut keys = Vec::new();
        match std::str::from_utf8(&bytes) {
            Ok(text) => {
                for (start, _) in text.match_indices(KEY) {
                    let (found, _) = SignedPublicKey::from_string_many(&text[start..]).map_err(failed)?;
                    keys.extend(found.collect::<Result<Vec<_>, _>>().map_err(failed)?);
                }
            }
            Err(_) => {
                let found = SignedPublicKey::from_bytes_many(&bytes[..]).map_err(failed)?;
                keys.extend(found.collect::<Result<Vec<_>, _>>().map_err(failed)?);
            }
        }
        for key in &keys {
            key.verify_bindings().map_err(failed)?;
        }
        if keys.is_empty() {
            return Err(Error::Empty(file()));
        }
        Ok(Self(keys))
    }

    /// The text that a known key signed, without the unsigned text that may surround it. `None` if no known key did.
    pub(super) fn signed_text(&self, file: &[u8]) -> Option<String> {
        let (message, _) = CleartextSignedMessage::from_armor(file).ok()?;
        let is_strong = |hash: Option<HashAlgorithm>| hash.is_some_and(|hash| HASHES.contains(&hash));
        let by_known = self.0.iter().any(|key| {
            let subkeys = key.public_subkeys.iter().map(|subkey| message.verify(subkey));
            std::iter::once(message.verify(key))
                .chain(subkeys)
                .flatten()
                .any(|signature| is_strong(signature.hash_alg()))
        });
        by_known.then(|| message.signed_text())
    }
}
