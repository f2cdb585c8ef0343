//! Writing files whole: temporary name, sync, rename, sync of the folder.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use super::super::call::Call;
use super::super::{ObjectMeta, StoreError, StoreErrorKind, WriteMode};
use super::direct::{self, DirectFile};
use super::folder::{Folder, object_meta, unix_ms};
use super::{TEMP_PREFIX, UPLOADS, uploads};

/// How often a writer makes its folder again after a concurrent `delete` tidied it away as empty.
const FOLDER_TRIES: u32 = 64;

pub(super) fn put(folder: &Folder, call: &Call, bytes: &[u8], mode: WriteMode) -> Result<ObjectMeta, StoreError> {
    let target = folder.path(call)?;
    if mode == WriteMode::CreateOnly && target.is_file() {
        // Spares the losers the writing; the rename below is what decides.
        return Err(taken(call));
    }
    let temp = temp_beside(folder, call, &target)?;
    let temp = written(temp, bytes).map_err(|e| folder.write_failed(call, &e))?;
    publish(folder, call, temp, &target, mode)
}

/// A temporary file with these bytes.
fn written(mut temp: NamedTempFile, bytes: &[u8]) -> io::Result<NamedTempFile> {
    if bytes.len() < direct::SMALLEST {
        return temp.write_all(bytes).map(|()| temp);
    }
    let (file, path) = temp.into_parts();
    let mut writer = DirectFile::new(file, &path);
    writer.write_all_at(bytes, 0)?;
    Ok(NamedTempFile::from_parts(writer.into_file(), path))
}

/// A temporary file in the target's folder, which is created where it is missing. Dropping it removes it.
pub(super) fn temp_beside(folder: &Folder, call: &Call, target: &Path) -> Result<NamedTempFile, StoreError> {
    let dir = target.parent().ok_or_else(|| call.invalid("the key has no folder"))?;
    again_while_tidied(|| folder.create_parents(dir).and_then(|()| temp_in(dir)))
        .map_err(|e| folder.write_failed(call, &e))
}

/// A file under a second, temporary name in the target's folder. Dropping it removes that name only.
pub(super) fn link_beside(
    folder: &Folder,
    call: &Call,
    (path, file): (&Path, File),
    target: &Path,
) -> Result<NamedTempFile, StoreError> {
    let dir = target.parent().ok_or_else(|| call.invalid("the key has no folder"))?;
    let link = || {
        folder.create_parents(dir)?;
        tempfile::Builder::new().prefix(TEMP_PREFIX).make_in(dir, |temp| fs::hard_link(path, temp))
    };
    let linked = again_while_tidied(link).map_err(|e| folder.write_failed(call, &e))?;
    let ((), temp) = linked.into_parts();
    Ok(NamedTempFile::from_parts(file, temp))
}

/// Makes something in a folder that concurrent removers may tidy away as empty.
pub(super) fn again_while_tidied<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..FOLDER_TRIES {
        match make() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    make()
}

/// A temporary file in an existing folder.
pub(super) fn temp_in(dir: &Path) -> io::Result<NamedTempFile> {
    // Readers are other users, perhaps; the process's umask decides, as for any file.
    tempfile::Builder::new().prefix(TEMP_PREFIX).permissions(Permissions::from_mode(0o666)).tempfile_in(dir)
}

/// Syncs a temporary file and gives it its final name.
pub(super) fn publish(
    folder: &Folder,
    call: &Call,
    temp: NamedTempFile,
    target: &Path,
    mode: WriteMode,
) -> Result<ObjectMeta, StoreError> {
    let failed = |e: &io::Error| folder.write_failed(call, e);
    temp.as_file().sync_all().map_err(|e| failed(&e))?;
    let metadata = temp.as_file().metadata().map_err(|e| failed(&e))?;
    // Opened before the rename: once it has its name, the object may be removed again, and its folder with it.
    let dir = File::open(target.parent().unwrap_or(&folder.root)).map_err(|e| failed(&e))?;
    let path: TempPath = temp.into_temp_path();
    match mode {
        WriteMode::Overwrite => path.persist(target).map_err(|e| failed(&e.error))?,
        // Renames without replacing, or links where the file system cannot do that: one winner either way.
        WriteMode::CreateOnly => path.persist_noclobber(target).map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists if !target.is_dir() => taken(call),
            _ => failed(&e.error),
        })?,
    }
    dir.sync_all().map_err(|e| failed(&e))?;
    Ok(object_meta(&call.key, &metadata))
}

pub(super) fn taken(call: &Call) -> StoreError {
    call.error(StoreErrorKind::AlreadyExists, "an object of that name is there already")
}

/// Removes an object, and the folders that it leaves empty: a folder store lists what a bucket would.
pub(super) fn delete(folder: &Folder, call: &Call) -> Result<(), StoreError> {
    let path = folder.path(call)?;
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => {}
        Err(e) => return absent_is_fine(folder, call, &e),
    }
    if let Err(e) = fs::remove_file(&path) {
        return absent_is_fine(folder, call, &e);
    }
    let mut dir = path.parent();
    while let Some(empty) = dir.filter(|dir| *dir != folder.root) {
        // Fails as soon as a folder is not empty; nothing else is wanted.
        if fs::remove_dir(empty).is_err() {
            break;
        }
        dir = empty.parent();
    }
    Ok(())
}

fn absent_is_fine(folder: &Folder, call: &Call, error: &io::Error) -> Result<(), StoreError> {
    match folder.failed(call, error) {
        gone if gone.kind == StoreErrorKind::NotFound => Ok(()),
        other => Err(other),
    }
}

/// Removes temporary files last changed before `before_ms`, everywhere below the root.
pub(super) fn remove_stale(folder: &Folder, call: &Call, before_ms: u64) -> Result<u64, StoreError> {
    let mut removed = 0;
    let mut dirs = vec![folder.root.clone()];
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir != folder.root => continue,
            Err(e) => return Err(folder.failed(call, &e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| folder.failed(call, &e))?;
            let Ok(metadata) = entry.metadata() else { continue }; // vanished meanwhile
            let name = entry.file_name();
            if metadata.is_dir() && name == UPLOADS {
                removed += uploads::remove_half_made(folder, call, before_ms)?;
            } else if metadata.is_dir() {
                dirs.push(entry.path());
            } else if metadata.is_file()
                && name.as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes())
                && unix_ms(&metadata) < before_ms
            {
                match fs::remove_file(entry.path()) {
                    Ok(()) => removed += 1,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(folder.failed(call, &e)),
                }
            }
        }
    }
    Ok(removed)
}
