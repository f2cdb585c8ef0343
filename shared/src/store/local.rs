//! A folder as a store: a key is a path below the root.
//!
//! Invariants:
//! - A file under its final name is whole and on disk: it is written under a temporary name, synced, then renamed, and
//!   its folder is synced. `CreateOnly` renames without replacing, so that exactly one racing writer wins.
//! - Temporary files start with [`TEMP_PREFIX`] and stand beside their target; unfinished uploads are folders in
//!   [`UPLOADS`]. Neither can be named by a key, and no listing shows them.
//! - Symbolic links below the root are not followed; a key that meets one is refused.
//! - User metadata is not kept: a folder has no place for it that copying tools would preserve.
//!
//! Keys must fit the file system: at most 255 bytes between slashes, and a key cannot be both an object and the folder
//! of another.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use self::folder::Folder;
use self::handles::Handles;
use self::staging::Appenders;
use super::call::{Call, Operation};
use super::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, StoreError,
    UploadMeta, WriteMode, WriteOptions,
};

mod direct;
mod folder;
mod handles;
mod list;
mod read;
mod staging;
mod uploads;
mod write;

/// What the names of unfinished files start with.
pub const TEMP_PREFIX: &str = ".des-tmp-";

/// The folder of unfinished multipart uploads, below the root.
pub const UPLOADS: &str = ".uploads";

/// A folder as a store.
#[derive(Clone, Debug)]
pub struct LocalStore {
    folder: Arc<Folder>,
    handles: Arc<Handles>,
    appenders: Arc<Appenders>,
}

impl LocalStore {
    /// A store in an existing folder. The folder itself may be reached through symbolic links.
    ///
    /// # Errors
    /// [`NoSuchBucket`](super::StoreErrorKind::NoSuchBucket) when it does not exist or is not a folder,
    /// [`Denied`](super::StoreErrorKind::Denied) when it cannot be reached.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        let folder = Arc::new(Folder::open(root.as_ref())?);
        Ok(Self { folder, handles: Arc::new(Handles::new()), appenders: Arc::default() })
    }

    /// A store in a folder that is created where it is missing.
    ///
    /// # Errors
    /// As [`Self::open`], and when the folder cannot be created.
    pub fn create(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        Folder::create(root.as_ref())?;
        Self::open(root)
    }

    /// Removes temporary files last changed before `before_ms` (Unix milliseconds), and uploads that were only just being
    /// begun or dropped then and that no listing shows: what crashed writers left behind. Returns how many there were. A writer that is still at work touches its file far more often than hourly.
    ///
    /// # Errors
    /// When a folder cannot be read or a file cannot be removed.
    pub async fn remove_stale(&self, before_ms: u64) -> Result<u64, StoreError> {
        let call = self.call(Operation::Delete, "");
        let (folder, inner) = (self.folder.clone(), call.clone());
        call.blocking(move || write::remove_stale(&folder, &inner, before_ms)).await
    }

    fn call(&self, operation: Operation, key: &str) -> Call {
        Call::new(&self.folder.url, operation, key)
    }

    /// Checks the key, then runs `work` on a blocking thread.
    async fn on_key<T, F>(&self, operation: Operation, key: &str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Folder>, &Call) -> Result<T, StoreError> + Send + 'static,
    {
        let call = self.call(operation, key);
        folder::check_key(&call)?;
        let (folder, inner) = (self.folder.clone(), call.clone());
        call.blocking(move || work(&folder, &inner)).await
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    fn url(&self) -> String {
        self.folder.url.to_string()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        self.on_key(Operation::Head, key, |folder, call| folder.metadata(call)).await
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        if let Some(fetched) = self.handles.read_now(key, &range) {
            return Ok(fetched);
        }
        let call = self.call(Operation::Get, key);
        folder::check_key(&call)?;
        if call.check_range(&range)?.is_none() {
            return Ok(Fetched { meta: ObjectMeta::unasked(key), offset: 0, bytes: Bytes::new() });
        }
        let handles = self.handles.clone();
        self.on_key(Operation::Get, key, move |folder, call| read::get(folder, &handles, call, &range)).await
    }

    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        let call = self.call(Operation::GetStream, key);
        folder::check_key(&call)?;
        if call.check_range(&range)?.is_none() {
            return Ok(FetchedStream::empty(key));
        }
        let open = move |folder: &Arc<Folder>, call: &Call| read::Reader::open(folder, call, &range);
        let reader = self.on_key(Operation::GetStream, key, open).await?;
        Ok(reader.into_stream(call))
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        self.call(Operation::Put, key).check_metadata(&options.metadata)?;
        let mode = options.mode;
        self.on_key(Operation::Put, key, move |folder, call| write::put(folder, call, &bytes, mode)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.on_key(Operation::Delete, key, |folder, call| write::delete(folder, call)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        let call = self.call(Operation::List, prefix);
        call.check_prefix(0)?;
        call.check_limit(limit)?;
        let (folder, inner, after) = (self.folder.clone(), call.clone(), after.map(str::to_owned));
        call.blocking(move || list::page(&folder, &inner, after.as_deref(), limit)).await
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        self.call(Operation::CreateUpload, key).check_metadata(metadata)?;
        self.on_key(Operation::CreateUpload, key, |folder, call| uploads::create(folder, call)).await
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        self.call(Operation::PutPart, key).check_part_number(number)?;
        let (id, appenders) = (upload_id.to_owned(), self.appenders.clone());
        self.on_key(Operation::PutPart, key, move |folder, call| {
            uploads::Upload::open(folder, call, &id)?.put_part(call, &appenders, (number, &bytes))
        })
        .await
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        let id = upload_id.to_owned();
        self.on_key(Operation::ListParts, key, move |folder, call| {
            uploads::Upload::open(folder, call, &id)?.parts(call)
        })
        .await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        let parts = self.call(Operation::CompleteUpload, key).check_parts(parts)?;
        let (id, appenders) = (upload_id.to_owned(), self.appenders.clone());
        self.on_key(Operation::CompleteUpload, key, move |folder, call| {
            uploads::complete(folder, call, (&id, &appenders), &parts, mode)
        })
        .await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        let (id, appenders) = (upload_id.to_owned(), self.appenders.clone());
        let abort = move |folder: &Arc<Folder>, call: &Call| uploads::abort(folder, call, (&id, &appenders));
        self.on_key(Operation::AbortUpload, key, abort).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        let call = self.call(Operation::ListUploads, prefix);
        call.check_prefix(0)?;
        call.check_uploads_limit(limit)?;
        let (folder, inner) = (self.folder.clone(), call.clone());
        call.blocking(move || uploads::list(&folder, &inner, limit)).await
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        super::probe::probe(self, prefix).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.handles.tidy();
        let call = self.call(Operation::Check, "");
        let (folder, inner) = (self.folder.clone(), call.clone());
        call.blocking(move || folder.check(&inner)).await
    }
}

#[cfg(test)]
mod tests;
