//! Who may do what: keys with scopes, and signed URLs.
//!
//! [`key`] is one key and the line of a file that describes it, [`file`] reads the file, [`ring`] keeps the keys that
//! are good at the moment and reads the file again when it changes, [`limit`] counts a key's requests, [`sign`] signs
//! URLs and checks them, and [`gate`] stands in front of every route.
//!
//! Only digests of keys are kept. A key's name is what logs and tombstones show.

mod file;
mod gate;
mod key;
mod limit;
mod metrics;
mod ring;
mod sign;
mod text;

use std::time::Duration;

use des_shared::config::{Values, settings};

pub use file::{KeysFile, KeysFileError};
pub(crate) use gate::{Caller, Gate};
pub use key::{Key, NewKey, Scope, Scopes};
pub use limit::Limit;
#[cfg(feature = "s3-gateway")]
pub(crate) use ring::read_again;
pub use sign::{SignError, UrlKeys};
#[cfg(feature = "graphql")]
pub(crate) use text::rfc3339;

/// Keys beyond those of the environment.
#[derive(Clone, Debug)]
pub struct KeySettings {
    /// The file of keys with names and scopes.
    pub file: Option<KeysFile>,
    /// What signs URLs; nothing when there is none.
    pub signing: UrlKeys,
    /// The longest time from now on for which a signed URL may be good.
    pub longest_signed: Duration,
}

impl KeySettings {
    /// True when requests need a key or a signature because of these settings.
    pub(crate) fn closed(&self) -> bool {
        self.file.is_some() || !self.signing.is_empty()
    }
}

impl Default for KeySettings {
    fn default() -> Self {
        Self { file: None, signing: UrlKeys::default(), longest_signed: Duration::from_hours(7 * 24) }
    }
}

impl KeySettings {
    /// Reads the settings and the file.
    pub fn read(values: &mut Values) -> Option<Self> {
        let file = match values.text(&settings::KEYS_FILE) {
            None => Some(None),
            Some(_) => values
                .read(&settings::KEYS_FILE, |path| KeysFile::open(path.into()).map_err(|e| e.to_string()))
                .map(Some),
        };
        // The words about a wrong value are made here, and have no secret in them.
        let signing = match values.text(&settings::URL_SIGNING_KEYS).map(|text| UrlKeys::parse(&text)) {
            None => Some(UrlKeys::default()),
            Some(Ok(keys)) => Some(keys),
            Some(Err(why)) => {
                values.problem(format!("DES_URL_SIGNING_KEYS (--url-signing-keys): {why}"));
                None
            }
        };
        let longest = values.number(&settings::URL_MAX_LIFETIME, 1..=10 * 366 * 86_400);
        Some(Self { file: file?, signing: signing?, longest_signed: Duration::from_secs(longest?) })
    }
}
