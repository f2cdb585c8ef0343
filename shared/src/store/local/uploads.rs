//! Multipart uploads: a folder `.uploads/<id>/` with the key in `key`, and the parts as [`super::staging`] has them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::super::call::Call;
use super::super::{ObjectMeta, PartTag, StoreError, StoreErrorKind, UploadMeta, WriteMode};
use super::UPLOADS;
use super::folder::{Folder, unix_ms};
use super::staging::{Appender, Appenders, Spot};
use super::write::{again_while_tidied, link_beside, publish, taken, temp_beside, temp_in};

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

/// Parts that this store wrote one behind the other become the object as they are; others are copied.
pub(super) fn complete(
    folder: &Folder,
    call: &Call,
    (id, appenders): (&str, &Appenders),
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
    let spots = upload.find(call, parts)?;
    let adopted = match appenders.end(&upload.dir) {
        Some(own) if own.holds(&spots) => upload.adopt(call, (own, &spots), &target)?,
        _ => None,
    };
    let temp = match adopted {
        Some(temp) => temp,
        None => upload.copy(call, &spots, &target)?,
    };
    let meta = publish(folder, call, temp, &target, mode)?;
    // The object is there whatever happens now; what stays behind is an upload that the listing shows.
    upload.remove(call)?;
    Ok(meta)
}

pub(super) fn abort(folder: &Folder, call: &Call, (id, appenders): (&str, &Appenders)) -> Result<(), StoreError> {
    match Upload::open(folder, call, id) {
        Ok(upload) => {
            drop(appenders.end(&upload.dir));
            upload.remove(call)
        }
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

    pub(super) fn put_part(
        &self,
        call: &Call,
        appenders: &Appenders,
        (number, bytes): (u32, &[u8]),
    ) -> Result<PartTag, StoreError> {
        // The folder is not created again here: an upload that was dropped meanwhile must stay so.
        let appender = appenders.of(&self.dir).map_err(|e| self.failed(call, &e))?;
        let (spot, again) = appender.append(number, bytes).map_err(|e| self.folder.write_failed(call, &e))?;
        // Its name is all there is to it: should the machine die before the folder is synced, the part is written again.
        File::create_new(self.dir.join(spot.name())).map_err(|e| self.failed(call, &e))?;
        if again {
            self.forget_others(call, &spot)?;
        }
        self.folder.sync_dir(call, &self.dir)?;
        Ok(spot.tag())
    }

    /// Removes the records of parts that this one replaces.
    fn forget_others(&self, call: &Call, spot: &Spot) -> Result<(), StoreError> {
        for other in self.spots(call)?.iter().filter(|other| other.number == spot.number && *other != spot) {
            match fs::remove_file(self.dir.join(other.name())) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.failed(call, &e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// All recorded parts by number. Where two processes write the same part without knowing of each other there are two
    /// of it; each tag means the bytes it was given for.
    pub(super) fn parts(&self, call: &Call) -> Result<Vec<PartTag>, StoreError> {
        Ok(self.spots(call)?.iter().map(Spot::tag).collect())
    }

    fn spots(&self, call: &Call) -> Result<Vec<Spot>, StoreError> {
        let mut spots = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|e| self.failed(call, &e))? {
            let name = entry.map_err(|e| self.failed(call, &e))?.file_name();
            spots.extend(name.to_str().and_then(Spot::parse));
        }
        spots.sort_by_key(|spot| spot.number);
        Ok(spots)
    }

    /// Where the parts of these tags lie.
    fn find(&self, call: &Call, parts: &[PartTag]) -> Result<Vec<Spot>, StoreError> {
        let known: BTreeMap<_, _> =
            self.spots(call)?.into_iter().map(|spot| ((spot.number, spot.tag().etag), spot)).collect();
        let find = |part: &PartTag| match known.get(&(part.number, part.etag.clone())) {
            Some(spot) if spot.len == part.size => Ok(spot.clone()),
            _ => Err(call.invalid(format!("part {} is not one that was uploaded", part.number))),
        };
        parts.iter().map(find).collect()
    }

    /// The data file beside the target, with nothing in it but these parts; none where the file system has no hard links.
    /// It stays in the upload as well, until the object is there.
    fn adopt(
        &self,
        call: &Call,
        (own, spots): (Appender, &[Spot]),
        target: &Path,
    ) -> Result<Option<NamedTempFile>, StoreError> {
        let failed = |e: io::Error| self.folder.write_failed(call, &e);
        let Ok(temp) = link_beside(self.folder, call, (&self.dir.join(&own.data), own.file), target) else {
            return Ok(None);
        };
        let len = spots.iter().map(|spot| spot.len).sum();
        // Behind the parts there may be one that failed, or that nobody named.
        if temp.as_file().metadata().map_err(failed)?.len() != len {
            temp.as_file().set_len(len).map_err(failed)?;
        }
        Ok(Some(temp))
    }

    /// A copy of these parts beside the target.
    fn copy(&self, call: &Call, spots: &[Spot], target: &Path) -> Result<NamedTempFile, StoreError> {
        let mut temp = temp_beside(self.folder, call, target)?;
        for spot in spots {
            let mut file = File::open(self.dir.join(&spot.data)).map_err(|e| self.failed(call, &e))?;
            file.seek(SeekFrom::Start(spot.offset)).map_err(|e| self.failed(call, &e))?;
            let copied = io::copy(&mut file.take(spot.len), temp.as_file_mut());
            if copied.map_err(|e| self.folder.write_failed(call, &e))? != spot.len {
                return Err(call.invalid(format!("part {} is no longer whole", spot.number)));
            }
        }
        Ok(temp)
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
