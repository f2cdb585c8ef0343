//! Access keys of the S3 face. Signature version 4 is made with the secret itself, so unlike the keys of the HTTP
//! interface these cannot be kept as hashes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use des_shared::config::{Values, settings};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Error, S3ErrorCode, S3Result};

/// The shortest secret, in characters.
const MIN_SECRET: usize = 8;
/// The longest file of keys, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Access key ids with their secrets. Secrets are never printed.
#[derive(Clone)]
pub struct S3Keys(Arc<BTreeMap<String, SecretKey>>);

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Keys({} keys)", self.0.len())
    }
}

impl S3Keys {
    /// Reads `DES_S3_FACE_KEYS` and `DES_S3_FACE_KEYS_FILE`; `None` when neither is set, or one is wrong, which is noted.
    pub(super) fn read(values: &mut Values) -> Option<Self> {
        let mut all = BTreeMap::new();
        let mut given = false;
        if values.text(&settings::S3_FACE_KEYS).is_some() {
            given = true;
            all.extend(values.read(&settings::S3_FACE_KEYS, |text| pairs(text.split(',')))?);
        }
        if values.text(&settings::S3_FACE_KEYS_FILE).is_some() {
            given = true;
            all.extend(values.read(&settings::S3_FACE_KEYS_FILE, |path| {
                let text = read_file(path).map_err(|e| format!("{path}: {e}"))?;
                let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
                pairs(lines).map_err(|e| format!("{path}: {e}"))
            })?);
        }
        given.then(|| Self(Arc::new(all)))
    }
}

fn read_file(path: &str) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("{length} bytes; at most {MAX_FILE_BYTES} are read"));
    }
    std::fs::read_to_string(path).map_err(|e| e.to_string())
}

/// `access:secret` each; empty ones are passed over. An error says which one is wrong, and nothing of it.
fn pairs<'a>(texts: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, SecretKey>, String> {
    let mut keys = BTreeMap::new();
    for (at, text) in texts.map(str::trim).enumerate().filter(|(_, text)| !text.is_empty()) {
        let number = at + 1;
        let wrong = || {
            format!(
                "pair {number} is not access:secret with an id of letters, digits, - and _, and a secret of {MIN_SECRET} characters or more"
            )
        };
        let (access, secret) = text.split_once(':').ok_or_else(wrong)?;
        let named = !access.is_empty() && access.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !named || secret.chars().count() < MIN_SECRET {
            return Err(wrong());
        }
        if keys.insert(access.to_owned(), SecretKey::from(secret)).is_some() {
            return Err(format!("pair {number} has an access key id that was there before"));
        }
    }
    if keys.is_empty() {
        return Err("there is no pair access:secret".to_owned());
    }
    Ok(keys)
}

#[async_trait::async_trait]
impl S3Auth for S3Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let unknown = "the access key id is not one of this service's";
        self.0.get(access_key).cloned().ok_or_else(|| S3Error::with_message(S3ErrorCode::InvalidAccessKeyId, unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_from_a_setting_and_from_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys");
        std::fs::write(&file, "# readers\n\none:a secret with : and ,\n  two:second-secret  \n").expect("written");
        let read = |setting: &str| {
            let path = file.to_str().expect("UTF-8");
            let mut values = Values::from_pairs(
                &[settings::S3_FACE_KEYS, settings::S3_FACE_KEYS_FILE],
                &[("DES_S3_FACE_KEYS", setting), ("DES_S3_FACE_KEYS_FILE", path)],
            );
            let keys = S3Keys::read(&mut values);
            values.finish(Some(keys)).map_err(|e| e.to_string())
        };
        let keys = read("three:third-secret,").expect("right").expect("there");
        let secrets: Vec<_> = keys.0.iter().map(|(access, secret)| (access.as_str(), secret.expose())).collect();
        assert_eq!(secrets, [("one", "a secret with : and ,"), ("three", "third-secret"), ("two", "second-secret")]);
        for wrong in [
            "nocolon-hunter2",
            ":hunter2hunter2",
            "a:hunter2",
            "a b:hunter2hunter2",
            ",",
            "x:hunter2hunter2,x:hunter2hunter2",
        ] {
            let text = read(wrong).expect_err(wrong);
            assert!(text.contains("DES_S3_FACE_KEYS") && !text.contains("hunter2"), "{text}");
        }
        std::fs::write(&file, "one:hunter2hunter2\ntwo=hunter2hunter2\n").expect("written");
        let text = read("three:third-secret").expect_err("a wrong line");
        assert!(text.contains("pair 2") && !text.contains("hunter2"), "{text}");
    }
}
