//! The one layer that tries store operations again. The stores below it make one attempt each.
//!
//! What a second attempt can meet: its own success. A conditional write whose answer was lost shows up as
//! [`AlreadyExists`](StoreErrorKind::AlreadyExists), which the caller settles by comparing; every other operation means
//! the same when it is done twice. A `create_upload` whose answer was lost leaves an upload behind that only
//! `list_uploads` finds.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, SharedStore,
    StoreError, StoreErrorKind, UploadMeta, WriteMode, WriteOptions,
};
use crate::clock::Dice;
use crate::retry::{RetryPolicy, retry};

/// A store whose transient failures are tried again.
#[derive(Debug)]
pub struct RetryingStore {
    inner: SharedStore,
    policy: RetryPolicy,
    dice: Arc<Dice>,
}

impl RetryingStore {
    /// Wraps a store.
    pub fn new(inner: SharedStore, policy: RetryPolicy, dice: Arc<Dice>) -> Self {
        Self { inner, policy, dice }
    }

    async fn again<T, Op, Fut>(&self, operation: Op) -> Result<T, StoreError>
    where
        Op: FnMut() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        // Not conflicts: after a 409 it is the whole operation that begins again, which only the caller can do. Nor a
        // breaker that is open: it stays so for longer than anybody should wait here.
        let worth_it =
            |error: &StoreError| matches!(error.kind, StoreErrorKind::Unavailable | StoreErrorKind::Throttled);
        retry(&self.policy, &self.dice, worth_it, operation).await
    }
}

#[async_trait]
impl ObjectStore for RetryingStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        self.again(|| self.inner.head(key)).await
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        self.again(|| self.inner.get(key, range.clone())).await
    }

    /// Only the beginning is tried again; an error in the middle ends the stream.
    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        self.again(|| self.inner.get_stream(key, range.clone())).await
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        self.again(|| self.inner.put(key, bytes.clone(), options)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.again(|| self.inner.delete(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        self.again(|| self.inner.list(prefix, after, limit)).await
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        self.again(|| self.inner.create_upload(key, metadata)).await
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        self.again(|| self.inner.put_part(key, upload_id, number, bytes.clone())).await
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        self.again(|| self.inner.list_parts(key, upload_id)).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        self.again(|| self.inner.complete_upload(key, upload_id, parts, mode)).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        self.again(|| self.inner.abort_upload(key, upload_id)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        self.again(|| self.inner.list_uploads(prefix, limit)).await
    }

    /// Not tried again as a whole: a probe is for finding out how the store is now.
    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        self.inner.probe(prefix).await
    }

    /// Not tried again: readiness asks how the store is now.
    async fn check(&self) -> Result<(), StoreError> {
        self.inner.check().await
    }
}
