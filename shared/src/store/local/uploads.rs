//! Multipart uploads: a folder `.uploads/<id>/` with the key in `key` and each part in `part-NNNNN`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::super::call::Call;
use super::super::{ObjectMeta, PartTag, StoreError, StoreErrorKind, UploadMeta, WriteMode};
use super::UPLOADS;
use super::folder::{Folder, etag, unix_ms};
use super::write::{again_while_tidied, publish, taken, temp_beside, temp_in};

/// The file that names the key of an upload.
const KEY_FILE: &str = "key";
/// An existing upload.
#[derive(Debug)]
pub(super) struct Upload<'a> {
    folder: &'a Folder,
    dir: PathBuf,
}

pub(super) fn create(folder: &Folder, call: &Call) -> Result<String, StoreError> {
    folder.path(call)?;
    let uploads = folder.root.join(UPLOADS);
    let make = || {
        folder.create_parents(&uploads)?;
        tempfile::Builder::new().prefix("").rand_bytes(24).tempdir_in(&uploads)
    };
    let dir = again_while_tidied(make).map_err(|e| folder.write_failed(call, &e))?;
    let key_file = dir.path().join(KEY_FILE);
    let temp = temp_in(dir.path()).map_err(|e| folder.write_failed(call, &e))?;
    fs::write(temp.path(), &call.key).map_err(|e| folder.write_failed(call, &e))?;
    publish(folder, call, temp, &key_file, WriteMode::CreateOnly)?;
    folder.sync_dir(call, &uploads)?;
    let id = dir.path().file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let id = id.ok_or_else(|| call.error(StoreErrorKind::Unavailable, "the upload got no usable name"))?;
    let _kept = dir.keep();
    Ok(id)
}

pub(super) fn complete(
    folder: &Folder,
    call: &Call,
    id: &str,
    parts: &[PartTag],
    mode: WriteMode,
) -> Result<ObjectMeta, StoreError> {
    let target = folder.path(call)?;
    let upload = match Upload::open(folder, call, id) {
        // The answer of an earlier completion was lost: say the same as a store that still knows the upload.
        Err(gone) if gone.kind == StoreErrorKind::UploadGone && mode == WriteMode::CreateOnly && target.is_file() => {
            return Err(taken(call));
        }
        opened => opened?,
    };
    if mode == WriteMode::CreateOnly && target.is_file() {
        return Err(taken(call));
    }
    let mut temp = temp_beside(folder, call, &target)?;
    for part in parts {
        let mut file = File::open(upload.part_path(part.number)).map_err(|e| upload.failed(call, &e))?;
        let metadata = file.metadata().map_err(|e| upload.failed(call, &e))?;
        if etag(&metadata) != part.etag || metadata.len() != part.size {
            return Err(call.invalid(format!("part {} is not the one that was uploaded last", part.number)));
        }
        io::copy(&mut file, temp.as_file_mut()).map_err(|e| folder.write_failed(call, &e))?;
    }
    let meta = publish(folder, call, temp, &target, mode)?;
    // The object is there whatever happens now; what stays behind is an upload that the listing shows.
    upload.remove(call)?;
    Ok(meta)
}

pub(super) fn abort(folder: &Folder, call: &Call, id: &str) -> Result<(), StoreError> {
    match Upload::open(folder, call, id) {
        Ok(upload) => upload.remove(call),
        Err(gone) if gone.kind == StoreErrorKind::UploadGone => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn list(folder: &Folder, call: &Call, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
    // The folder has no order of its own: only the first in order are kept, so that memory follows `limit`.
    let mut pending = BTreeMap::new();
    let entries = match fs::read_dir(folder.root.join(UPLOADS)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            folder.check(call)?;
            return Ok(Vec::new());
        }
        Err(e) => return Err(folder.failed(call, &e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| folder.failed(call, &e))?;
        let key_file = entry.path().join(KEY_FILE);
        // An upload that is just being made or dropped has no key file.
        let (Ok(key), Ok(metadata)) = (fs::read_to_string(&key_file), fs::metadata(&key_file)) else { continue };
        let Ok(upload_id) = entry.file_name().into_string() else { continue };
        if key.starts_with(&call.key) {
            pending.insert((key, upload_id), unix_ms(&metadata));
        }
        if pending.len() > limit {
            pending.pop_last();
        }
    }
    let listed = |((key, upload_id), started_ms)| UploadMeta { key, upload_id, started_ms };
    Ok(pending.into_iter().map(listed).collect())
}

/// Removes uploads without a key that were last changed before `before_ms`: whoever was making or dropping them is gone.
pub(super) fn remove_half_made(folder: &Folder, call: &Call, before_ms: u64) -> Result<u64, StoreError> {
    let uploads = folder.root.join(UPLOADS);
    let mut removed = 0;
    for entry in fs::read_dir(&uploads).map_err(|e| folder.failed(call, &e))? {
        let entry = entry.map_err(|e| folder.failed(call, &e))?;
        let Ok(metadata) = entry.metadata() else { continue }; // vanished meanwhile
        if !metadata.is_dir() || unix_ms(&metadata) >= before_ms || entry.path().join(KEY_FILE).exists() {
            continue;
        }
        let upload = Upload { folder, dir: entry.path() };
        upload.remove(call)?;
        removed += 1;
    }
    // As after the last upload; fails, as it should, while others are open.
    let _ = fs::remove_dir(uploads);
    Ok(removed)
}

impl<'a> Upload<'a> {
    /// Finds an upload of the call's key.
    pub(super) fn open(folder: &'a Folder, call: &Call, id: &str) -> Result<Self, StoreError> {
        // Ids come from outside: nothing but what `create` makes may become a path.
        let plausible = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let dir = folder.root.join(UPLOADS).join(id);
        let upload = Self { folder, dir };
        if !plausible {
            return Err(upload.gone(call));
        }
        let key = fs::read_to_string(upload.dir.join(KEY_FILE)).map_err(|e| upload.failed(call, &e))?;
        if key == call.key { Ok(upload) } else { Err(upload.gone(call)) }
    }

    pub(super) fn put_part(&self, call: &Call, number: u32, bytes: &[u8]) -> Result<PartTag, StoreError> {
        let target = self.part_path(number);
        // The folder is not created again here: an upload that was dropped meanwhile must stay so.
        let temp = temp_in(&self.dir).map_err(|e| self.failed(call, &e))?;
        fs::write(temp.path(), bytes).map_err(|e| self.folder.write_failed(call, &e))?;
        let meta = publish(self.folder, call, temp, &target, WriteMode::Overwrite)?;
        Ok(PartTag { number, etag: meta.etag, size: meta.size })
    }

    pub(super) fn parts(&self, call: &Call) -> Result<Vec<PartTag>, StoreError> {
        let mut parts = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| self.failed(call, &e))? {
            let entry = entry.map_err(|e| self.failed(call, &e))?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("part-")).and_then(|n| n.parse().ok());
            let Some(number) = number else { continue };
            let metadata = entry.metadata().map_err(|e| self.failed(call, &e))?;
            parts.push(PartTag { number, etag: etag(&metadata), size: metadata.len() });
        }
        parts.sort_by_key(|part| part.number);
        Ok(parts)
    }

    fn part_path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("part-{number:05}"))
    }

    fn gone(&self, call: &Call) -> StoreError {
        let id = self.dir.file_name().unwrap_or_default().to_string_lossy();
        call.error(StoreErrorKind::UploadGone, format!("there is no upload {id} of this key; begin a new one"))
    }

    fn failed(&self, call: &Call, error: &io::Error) -> StoreError {
        match self.folder.failed(call, error) {
            missing if missing.kind == StoreErrorKind::NotFound => self.gone(call),
            other => other,
        }
    }

    fn remove(&self, call: &Call) -> Result<(), StoreError> {
        match fs::remove_dir_all(&self.dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(self.failed(call, &e)),
        }
        // Leaves no trace in a folder that people look at; fails, as it should, while other uploads are open.
        let _ = fs::remove_dir(self.folder.root.join(UPLOADS));
        Ok(())
    }
}
