//! Access keys of the S3 face. Signature version 4 is made with the secret itself, so unlike the keys of the HTTP
//! interface these cannot be kept as hashes. Their file is read again as that of the HTTP interface is: a file that
//! cannot be used changes nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use des_shared::config::{Values, settings};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::keys::read_again;
use crate::metrics::RetrieverMetrics;

/// The shortest secret, in characters.
const MIN_SECRET: usize = 8;
/// The longest file of keys, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Access key ids with their secrets.
type Pairs = BTreeMap<String, SecretKey>;

/// The access keys that are good at the moment. Secrets are never printed.
#[derive(Clone)]
pub struct S3Keys(Arc<Ring>);

struct Ring {
    /// Those of the environment.
    fixed: Pairs,
    known: ArcSwap<Pairs>,
    file: Mutex<Option<Watched>>,
}

/// The file.
struct Watched {
    path: String,
    /// Its last good state.
    good: String,
    /// What was last wrong with it, so that it is told once.
    wrong: Option<String>,
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Keys({} keys)", self.0.known.load().len())
    }
}

impl S3Keys {
    /// Reads `DES_S3_FACE_KEYS` and `DES_S3_FACE_KEYS_FILE`; `None` when neither is set, or one is wrong, which is noted.
    pub(super) fn read(values: &mut Values) -> Option<Self> {
        let (mut fixed, mut file) = (Pairs::new(), None);
        let mut known = Pairs::new();
        let mut given = false;
        if values.text(&settings::S3_FACE_KEYS).is_some() {
            given = true;
            fixed = values.read(&settings::S3_FACE_KEYS, |text| pairs(text.split(',')))?;
        }
        if values.text(&settings::S3_FACE_KEYS_FILE).is_some() {
            given = true;
            let (watched, pairs) = values.read(&settings::S3_FACE_KEYS_FILE, |path| {
                let read = read_file(path).and_then(|text| of_file(&text).map(|pairs| (text, pairs)));
                let (good, pairs) = read.map_err(|e| format!("{path}: {e}"))?;
                Ok((Watched { path: path.to_owned(), good, wrong: None }, pairs))
            })?;
            file = Some(watched);
            known = pairs;
        }
        let known = ArcSwap::from_pointee(both(&fixed, known));
        given.then(|| Self(Arc::new(Ring { fixed, known, file: Mutex::new(file) })))
    }

    /// Reads the file again and again, as long as it is polled.
    ///
    /// # Errors
    /// When SIGHUP cannot be listened to.
    pub(super) fn watch(
        keys: Option<Self>,
        metrics: RetrieverMetrics,
    ) -> io::Result<impl Future<Output = Infallible> + Send + use<>> {
        let ring = keys.map(|Self(ring)| ring).filter(|ring| ring.watched().is_some());
        read_again(ring.map(|ring| move || metrics.s3_keys_file_is(ring.reload())))
    }
}

/// Where both have an access key id, what the file says counts.
fn both(fixed: &Pairs, file: Pairs) -> Pairs {
    let mut all = fixed.clone();
    all.extend(file);
    all
}

impl Ring {
    fn watched(&self) -> MutexGuard<'_, Option<Watched>> {
        // A panic leaves at worst an older state of the file, which the next look replaces.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the file again, and says whether it can be used. Blocks while it is read.
    fn reload(&self) -> bool {
        let mut watched = self.watched();
        let Some(Watched { path, good, wrong }) = watched.as_mut() else { return true };
        let changed = read_file(path).and_then(|text| {
            let pairs = (text != *good).then(|| of_file(&text)).transpose()?;
            Ok(pairs.map(|pairs| (text, pairs)))
        });
        match changed {
            Ok(changed) => {
                if let Some((text, pairs)) = changed {
                    tracing::info!(file = path, keys = pairs.len(), "the file of the S3 interface's keys was read");
                    self.known.store(Arc::new(both(&self.fixed, pairs)));
                    *good = text;
                }
                *wrong = None;
                true
            }
            Err(why) => {
                if wrong.as_ref() != Some(&why) {
                    tracing::error!(
                        file = path,
                        "the file of the S3 interface's keys cannot be used, the old ones stay good: {why}"
                    );
                    *wrong = Some(why);
                }
                false
            }
        }
    }
}

/// A pair a line; lines that start with `#` are for people.
fn of_file(text: &str) -> Result<Pairs, String> {
    pairs(text.lines().filter(|line| !line.trim_start().starts_with('#')))
}

fn read_file(path: &str) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("{length} bytes; at most {MAX_FILE_BYTES} are read"));
    }
    std::fs::read_to_string(path).map_err(|e| e.to_string())
}

/// `access:secret` each; empty ones are passed over. An error says which one is wrong, and nothing of it.
fn pairs<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Pairs, String> {
    let mut keys = Pairs::new();
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
        self.0
            .known
            .load()
            .get(access_key)
            .cloned()
            .ok_or_else(|| S3Error::with_message(S3ErrorCode::InvalidAccessKeyId, unknown))
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
        let secrets = |keys: &S3Keys| -> Vec<(String, String)> {
            let known = keys.0.known.load();
            known.iter().map(|(access, secret)| (access.clone(), secret.expose().to_owned())).collect()
        };
        let pair = |access: &str, secret: &str| (access.to_owned(), secret.to_owned());
        let third = pair("three", "third-secret");
        let first = [pair("one", "a secret with : and ,"), third.clone(), pair("two", "second-secret")];
        assert_eq!(secrets(&keys), first);
        // A file that breaks, or goes, changes nothing; one that is right again does.
        for broken in ["", "one:short", "# nobody\n"] {
            std::fs::write(&file, broken).expect("written");
            assert!(!keys.0.reload(), "{broken:?}");
            assert_eq!(secrets(&keys), first);
        }
        std::fs::remove_file(&file).expect("removed");
        assert!(!keys.0.reload());
        assert_eq!(secrets(&keys), first);
        std::fs::write(&file, "two:another-secret\n").expect("written");
        assert!(keys.0.reload());
        assert_eq!(secrets(&keys), [third, pair("two", "another-secret")]);
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
