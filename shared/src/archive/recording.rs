//! A store that remembers what was asked of it: for tests and measurements that count requests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::store::call::Operation;
use crate::store::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, SharedStore,
    StoreError, UploadMeta, WriteMode, WriteOptions,
};

/// One call of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedCall {
    /// What was done.
    pub operation: Operation,
    /// The key, or the prefix of a listing.
    pub key: String,
    /// The range of a read.
    pub range: Option<ByteRange>,
}

/// Passes everything on and writes it down. Never forgets by itself: for bounded runs only.
#[derive(Debug)]
pub struct RecordingStore {
    inner: SharedStore,
    calls: Mutex<Vec<RecordedCall>>,
    streams: Arc<Streams>,
}

/// What became of the streams that were opened.
#[derive(Debug, Default)]
pub struct Streams {
    bytes: AtomicU64,
    open: AtomicU64,
}

impl Streams {
    /// Bytes that were taken out of all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many are neither at their end nor dropped.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

/// An open stream, counted.
struct Opened(Arc<Streams>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RecordingStore {
    /// Wraps a store.
    pub fn new(inner: SharedStore) -> Self {
        Self { inner, calls: Mutex::default(), streams: Arc::default() }
    }

    /// What became of the streams.
    pub fn streams(&self) -> Arc<Streams> {
        self.streams.clone()
    }

    /// The calls since the last time, in the order in which they began.
    pub fn take(&self) -> Vec<RecordedCall> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<RecordedCall>> {
        // A list of calls has no state that a panic could leave broken.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, operation: Operation, key: &str, range: Option<&ByteRange>) {
        self.lock().push(RecordedCall { operation, key: key.to_owned(), range: range.cloned() });
    }
}

#[async_trait]
impl ObjectStore for RecordingStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        self.note(Operation::Head, key, None);
        self.inner.head(key).await
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        self.note(Operation::Get, key, Some(&range));
        self.inner.get(key, range).await
    }

    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        self.note(Operation::GetStream, key, Some(&range));
        let fetched = self.inner.get_stream(key, range).await?;
        self.streams.open.fetch_add(1, Ordering::Relaxed);
        let opened = Opened(self.streams.clone());
        let counted = fetched.stream.inspect_ok(move |chunk| {
            opened.0.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        });
        Ok(FetchedStream { meta: fetched.meta, stream: counted.boxed() })
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        self.note(Operation::Put, key, None);
        self.inner.put(key, bytes, options).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.note(Operation::Delete, key, None);
        self.inner.delete(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        self.note(Operation::List, prefix, None);
        self.inner.list(prefix, after, limit).await
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        self.note(Operation::CreateUpload, key, None);
        self.inner.create_upload(key, metadata).await
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        self.note(Operation::PutPart, key, None);
        self.inner.put_part(key, upload_id, number, bytes).await
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        self.note(Operation::ListParts, key, None);
        self.inner.list_parts(key, upload_id).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        self.note(Operation::CompleteUpload, key, None);
        self.inner.complete_upload(key, upload_id, parts, mode).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        self.note(Operation::AbortUpload, key, None);
        self.inner.abort_upload(key, upload_id).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        self.note(Operation::ListUploads, prefix, None);
        self.inner.list_uploads(prefix, limit).await
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        self.note(Operation::Probe, prefix, None);
        self.inner.probe(prefix).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.note(Operation::Check, "", None);
        self.inner.check().await
    }
}
