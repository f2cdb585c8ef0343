//! From keys to paths, safely, and from file errors to store errors.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::super::call::{Call, Operation};
use super::super::{ObjectMeta, StoreError, StoreErrorKind};
use super::{TEMP_PREFIX, UPLOADS};

/// The longest file name of the usual file systems, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// The root of a store.
#[derive(Debug)]
pub(super) struct Folder {
    /// Absolute, links resolved.
    pub(super) root: PathBuf,
    pub(super) url: Arc<str>,
}

/// Keys that can be paths below the root.
pub(super) fn check_key(call: &Call) -> Result<(), StoreError> {
    call.check_key(0)?;
    if call.key.split('/').any(str::is_empty) {
        return Err(call.invalid("a component of the key is empty; a folder cannot keep such a key"));
    }
    if let Some(long) = call.key.split('/').find(|part| part.len() > MAX_NAME_BYTES) {
        return Err(call.invalid(format!(
            "a component of the key has {} bytes; a folder keeps at most {MAX_NAME_BYTES} between slashes",
            long.len()
        )));
    }
    if call.key.split('/').any(is_hidden) {
        return Err(call.invalid(format!("keys may not have a component {UPLOADS} or one that starts {TEMP_PREFIX}")));
    }
    Ok(())
}

/// Names of the store's own files.
pub(super) fn is_hidden(name: &str) -> bool {
    name == UPLOADS || name.starts_with(TEMP_PREFIX)
}

/// What a file error means where something must already be there.
pub(super) fn kind_of(error: &io::Error) -> StoreErrorKind {
    use io::ErrorKind as E;
    match error.kind() {
        E::NotFound | E::NotADirectory | E::IsADirectory => StoreErrorKind::NotFound,
        E::PermissionDenied | E::ReadOnlyFilesystem => StoreErrorKind::Denied,
        E::StorageFull | E::QuotaExceeded | E::FileTooLarge => StoreErrorKind::Full,
        E::InvalidFilename | E::InvalidInput => StoreErrorKind::Invalid,
        _ => StoreErrorKind::Unavailable,
    }
}

pub(super) fn unix_ms(metadata: &Metadata) -> u64 {
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    modified.map_or(0, |since| since.as_millis() as u64)
}

/// Changes when the bytes do: a new file has another inode or another time.
pub(super) fn etag(metadata: &Metadata) -> String {
    let nanos = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    format!("\"{:x}-{nanos:x}-{:x}\"", metadata.size(), metadata.ino())
}

pub(super) fn object_meta(key: &str, metadata: &Metadata) -> ObjectMeta {
    ObjectMeta {
        size: metadata.size(),
        etag: etag(metadata),
        last_modified_ms: unix_ms(metadata),
        ..ObjectMeta::unasked(key)
    }
}

impl Folder {
    pub(super) fn create(root: &Path) -> Result<(), StoreError> {
        fs::create_dir_all(root).map_err(|e| {
            let kind =
                if e.kind() == io::ErrorKind::AlreadyExists { StoreErrorKind::NoSuchBucket } else { kind_of(&e) };
            open_call(root).error(kind, format!("the folder cannot be created: {e}"))
        })
    }

    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let call = open_call(root);
        let real = fs::canonicalize(root).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                call.error(StoreErrorKind::NoSuchBucket, "the folder does not exist; create it or name another")
            }
            _ => call.error(kind_of(&e), e.to_string()),
        })?;
        let folder = Self { url: format!("file://{}", real.display()).into(), root: real };
        folder.check(&call)?;
        Ok(folder)
    }

    /// Whether the root is there and may be read.
    pub(super) fn check(&self, call: &Call) -> Result<(), StoreError> {
        fs::read_dir(&self.root).map(drop).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                call.error(StoreErrorKind::NoSuchBucket, "the folder does not exist or is not a folder")
            }
            _ => call.error(kind_of(&e), format!("the folder cannot be read: {e}")),
        })
    }

    /// A file error of a read, with the case told apart where the root itself is gone.
    pub(super) fn failed(&self, call: &Call, error: &io::Error) -> StoreError {
        match kind_of(error) {
            StoreErrorKind::NotFound => match self.check(call) {
                Ok(()) => call.error(StoreErrorKind::NotFound, "there is no such object"),
                Err(gone) => gone,
            },
            kind => call.error(kind, error.to_string()),
        }
    }

    /// A file error of a write: a name that is in the way is the key's fault.
    pub(super) fn write_failed(&self, call: &Call, error: &io::Error) -> StoreError {
        use io::ErrorKind as E;
        match error.kind() {
            E::NotADirectory | E::IsADirectory | E::AlreadyExists | E::DirectoryNotEmpty => call.invalid(format!(
                "a folder store cannot keep an object whose name is another's folder, or the reverse: {error}"
            )),
            E::NotFound => match self.check(call) {
                Ok(()) => call.error(StoreErrorKind::Unavailable, format!("its folder vanished: {error}")),
                Err(gone) => gone,
            },
            _ => call.error(kind_of(error), error.to_string()),
        }
    }

    /// The path of a checked key. No component below the root may be a symbolic link; whoever can plant one between
    /// this check and the use can write in the root anyway.
    pub(super) fn path(&self, call: &Call) -> Result<PathBuf, StoreError> {
        self.walk(call, &call.key)
    }

    /// The path of a folder inside the root, given as a key without trailing slash ("" is the root).
    pub(super) fn walk(&self, call: &Call, key: &str) -> Result<PathBuf, StoreError> {
        let mut path = self.root.clone();
        let mut missing = false;
        for part in key.split('/').filter(|part| !part.is_empty()) {
            path.push(part);
            if missing {
                continue;
            }
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_symlink() => {
                    return Err(call.error(
                        StoreErrorKind::Denied,
                        format!("{} is a symbolic link; folder stores do not follow links", path.display()),
                    ));
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => missing = true,
                Err(e) => return Err(self.failed(call, &e)),
            }
        }
        Ok(path)
    }

    /// Metadata of an object: a regular file under a checked key.
    pub(super) fn metadata(&self, call: &Call) -> Result<ObjectMeta, StoreError> {
        let path = self.path(call)?;
        let metadata = fs::symlink_metadata(&path).map_err(|e| self.failed(call, &e))?;
        if !metadata.is_file() {
            return Err(call.error(StoreErrorKind::NotFound, "there is no object, only a folder or a special file"));
        }
        Ok(object_meta(&call.key, &metadata))
    }

    /// Makes a directory's entries durable.
    pub(super) fn sync_dir(&self, call: &Call, dir: &Path) -> Result<(), StoreError> {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| self.write_failed(call, &e))
    }

    /// Creates the folders of a path below the root, durably. The root itself is never created: a store whose folder
    /// was unmounted must not fill the disk below. [`NotFound`](io::ErrorKind::NotFound) also means that a folder was
    /// tidied away as empty meanwhile.
    pub(super) fn create_parents(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = dir;
        while at != self.root && !at.is_dir() {
            missing.push(at);
            at = at.parent().ok_or(io::ErrorKind::InvalidInput)?;
        }
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                // Somebody else made it meanwhile; if it is a file, writing below it will say so.
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => File::open(dir.parent().unwrap_or(&self.root))?.sync_all()?,
            }
        }
        Ok(())
    }
}

fn open_call(root: &Path) -> Call {
    Call { url: format!("file://{}", root.display()).into(), operation: Operation::Open, key: String::new() }
}
