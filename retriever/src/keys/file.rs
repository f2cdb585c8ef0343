//! The file of keys: one line a key, lines that start with `#` are for people.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::key::Key;

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// The most keys: every request is compared with each of them.
const MAX_KEYS: usize = 1000;

/// Why a file of keys cannot be used. No word of the file is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeysFileError {
    /// The system does not give it out.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is too large, or not text.
    #[error("{path}: {why}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        why: String,
    },
    /// One line is wrong.
    #[error("{path}, line {line}: {why}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what would be right.
        why: String,
    },
}

/// A file of keys and what was in it when it was read.
#[derive(Clone)]
pub struct KeysFile {
    path: PathBuf,
    bytes: Arc<[u8]>,
    keys: Arc<[Key]>,
}

impl fmt::Debug for KeysFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeysFile({}, {} keys)", self.path.display(), self.keys.len())
    }
}

impl KeysFile {
    /// Reads it.
    ///
    /// # Errors
    /// [`KeysFileError`] when any of it cannot be used.
    pub fn open(path: PathBuf) -> Result<Self, KeysFileError> {
        let bytes = read(&path)?;
        let keys = parse(&path, &bytes)?;
        Ok(Self { path, bytes: bytes.into(), keys: keys.into() })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The file as it is now; `None` when nothing in it has changed. Its times are not asked: they are too coarse to see
    /// two changes in a row, and a mounted secret changes by a link.
    pub(super) fn again(&self) -> Result<Option<Self>, KeysFileError> {
        let bytes = read(&self.path)?;
        if bytes == *self.bytes {
            return Ok(None);
        }
        let keys = parse(&self.path, &bytes)?;
        Ok(Some(Self { path: self.path.clone(), bytes: bytes.into(), keys: keys.into() }))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KeysFileError> {
    let fail = |source| KeysFileError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(KeysFileError::Form { path: path.to_owned(), why: format!("it is larger than {MAX_BYTES} bytes") });
    }
    Ok(bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Key>, KeysFileError> {
    let form = |why: String| KeysFileError::Form { path: path.to_owned(), why };
    let text = std::str::from_utf8(bytes).map_err(|_| form("it is not UTF-8 text".to_owned()))?;
    let mut keys: Vec<Key> = Vec::new();
    let (mut names, mut digests) = (HashSet::new(), HashSet::new());
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: String| KeysFileError::Line { path: path.to_owned(), line: at + 1, why };
        let key: Key = line.parse().map_err(wrong)?;
        if !names.insert(key.name.clone()) {
            return Err(wrong(format!("the name {} stands on an earlier line; give each key its own", key.name)));
        }
        if !digests.insert(key.digest) {
            return Err(wrong("the same key stands on an earlier line under another name".to_owned()));
        }
        keys.push(key);
        if keys.len() > MAX_KEYS {
            return Err(form(format!("it has more than {MAX_KEYS} keys")));
        }
    }
    Ok(keys)
}
