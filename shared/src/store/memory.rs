//! A store in memory: for simulations and tests. Everything happens at once and in the order of the calls, and nothing
//! in it is random, so the same calls give the same answers, ids and tags.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};

use super::call::{Call, Operation};
use super::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, StoreError,
    StoreErrorKind, UploadMeta, WriteMode, WriteOptions,
};
use crate::clock::Clock;

/// Bytes of one piece of a stream.
const CHUNK_BYTES: usize = 64 * 1024;

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    url: Arc<str>,
    clock: Arc<dyn Clock>,
    small_parts: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    begun: u64,
}

#[derive(Clone, Debug)]
struct Object {
    bytes: Bytes,
    etag: String,
    metadata: BTreeMap<String, String>,
    modified_ms: u64,
}

#[derive(Debug)]
struct Upload {
    key: String,
    metadata: BTreeMap<String, String>,
    parts: BTreeMap<u32, (PartTag, Bytes)>,
    started_ms: u64,
}

impl MemoryStore {
    /// An empty store. `name` stands in its URL.
    pub fn new(name: &str, clock: Arc<dyn Clock>) -> Self {
        Self { url: format!("memory:///{name}").into(), clock, small_parts: false, state: Mutex::default() }
    }

    /// Takes parts of any size, so that small objects have many parts.
    #[must_use]
    pub fn with_small_parts(self) -> Self {
        Self { small_parts: true, ..self }
    }

    /// Every object, by key.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.state().objects.iter().map(|(key, object)| (key.clone(), object.bytes.clone())).collect()
    }

    /// Key and id of every unfinished upload.
    pub fn uploads(&self) -> Vec<(String, String)> {
        self.state().uploads.iter().map(|(id, upload)| (upload.key.clone(), id.clone())).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, operation: Operation, key: &str) -> Call {
        Call::new(&self.url, operation, key)
    }

    fn on_key(&self, operation: Operation, key: &str) -> Result<Call, StoreError> {
        let call = self.call(operation, key);
        call.check_key(0)?;
        Ok(call)
    }

    fn found(&self, call: &Call) -> Result<Object, StoreError> {
        let missing = || call.error(StoreErrorKind::NotFound, "there is no such object");
        self.state().objects.get(&call.key).cloned().ok_or_else(missing)
    }
}

impl State {
    fn write(&mut self, call: &Call, object: Object, mode: WriteMode) -> Result<ObjectMeta, StoreError> {
        if mode == WriteMode::CreateOnly && self.objects.contains_key(&call.key) {
            return Err(call.error(StoreErrorKind::AlreadyExists, "there is such an object already"));
        }
        let meta = object.meta(&call.key);
        self.objects.insert(call.key.clone(), object);
        Ok(meta)
    }

    fn upload(&mut self, call: &Call, id: &str) -> Result<&mut Upload, StoreError> {
        let gone = || call.error(StoreErrorKind::UploadGone, format!("there is no upload {id}"));
        self.uploads.get_mut(id).filter(|upload| upload.key == call.key).ok_or_else(gone)
    }
}

impl Object {
    fn meta(&self, key: &str) -> ObjectMeta {
        ObjectMeta {
            key: key.to_owned(),
            size: self.bytes.len() as u64,
            etag: self.etag.clone(),
            last_modified_ms: self.modified_ms,
            metadata: self.metadata.clone(),
        }
    }
}

/// A tag that follows from the bytes alone.
fn etag(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    format!("\"{:016x}\"", hasher.finish())
}

#[async_trait]
impl ObjectStore for MemoryStore {
    fn url(&self) -> String {
        self.url.to_string()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        let call = self.on_key(Operation::Head, key)?;
        Ok(self.found(&call)?.meta(key))
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        let call = self.on_key(Operation::Get, key)?;
        if call.check_range(&range)?.is_none() {
            return Ok(Fetched { meta: ObjectMeta::unasked(key), offset: 0, bytes: Bytes::new() });
        }
        let object = self.found(&call)?;
        let span = call.resolve(&range, object.bytes.len() as u64)?;
        let bytes = object.bytes.slice(span.start as usize..span.end as usize);
        Ok(Fetched { meta: object.meta(key), offset: span.start, bytes })
    }

    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        let Fetched { meta, bytes, .. } =
            self.get(key, range).await.map_err(|e| StoreError { operation: Operation::GetStream.label(), ..e })?;
        let chunks: Vec<_> = (0..bytes.len())
            .step_by(CHUNK_BYTES)
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + CHUNK_BYTES))))
            .collect();
        Ok(FetchedStream { meta, stream: stream::iter(chunks).boxed() })
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        let call = self.on_key(Operation::Put, key)?;
        call.check_metadata(&options.metadata)?;
        let (etag, metadata) = (etag(&bytes), options.metadata.clone());
        let object = Object { bytes, etag, metadata, modified_ms: self.clock.now_ms() };
        self.state().write(&call, object, options.mode)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let call = self.on_key(Operation::Delete, key)?;
        self.state().objects.remove(&call.key);
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        let call = self.call(Operation::List, prefix);
        call.check_prefix(0)?;
        call.check_limit(limit)?;
        let state = self.state();
        let behind = |key: &&String| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after);
        let from = after.map_or(prefix, |after| after.max(prefix)).to_owned();
        let mut found = state.objects.range(from..).filter(|(key, _)| behind(key));
        let mut objects: Vec<ObjectMeta> = Vec::new();
        for (key, object) in found.by_ref().take(limit) {
            objects.push(ObjectMeta { metadata: BTreeMap::new(), ..object.meta(key) });
        }
        let next = found.next().and_then(|_| objects.last().map(|last| last.key.clone()));
        Ok(ListPage { objects, next })
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        let call = self.on_key(Operation::CreateUpload, key)?;
        call.check_metadata(metadata)?;
        let mut state = self.state();
        state.begun += 1;
        let id = format!("upload-{:08}", state.begun);
        let started_ms = self.clock.now_ms();
        let upload = Upload { key: key.to_owned(), metadata: metadata.clone(), parts: BTreeMap::new(), started_ms };
        state.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        let call = self.on_key(Operation::PutPart, key)?;
        call.check_part_number(number)?;
        let tag = PartTag { number, etag: etag(&bytes), size: bytes.len() as u64 };
        self.state().upload(&call, upload_id)?.parts.insert(number, (tag.clone(), bytes));
        Ok(tag)
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        let call = self.on_key(Operation::ListParts, key)?;
        Ok(self.state().upload(&call, upload_id)?.parts.values().map(|(tag, _)| tag.clone()).collect())
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        let call = self.on_key(Operation::CompleteUpload, key)?;
        let mut sorted = parts.to_vec();
        sorted.sort_by_key(|part| part.number);
        if !self.small_parts || sorted.is_empty() {
            call.check_parts(parts)?;
        }
        let mut state = self.state();
        if mode == WriteMode::CreateOnly && state.objects.contains_key(key) {
            return Err(call.error(StoreErrorKind::AlreadyExists, "there is such an object already"));
        }
        let upload = state.upload(&call, upload_id)?;
        let mut bytes = BytesMut::new();
        for part in &sorted {
            match upload.parts.get(&part.number) {
                Some((tag, content)) if tag.etag == part.etag => bytes.extend_from_slice(content),
                _ => return Err(call.invalid(format!("part {} is not the one that was uploaded", part.number))),
            }
        }
        let (bytes, metadata) = (bytes.freeze(), upload.metadata.clone());
        let tag = format!("{}-{}\"", etag(&bytes).trim_end_matches('"'), sorted.len());
        let object = Object { bytes, etag: tag, metadata, modified_ms: self.clock.now_ms() };
        let meta = state.write(&call, object, mode)?;
        state.uploads.remove(upload_id);
        Ok(meta)
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        let call = self.on_key(Operation::AbortUpload, key)?;
        let mut state = self.state();
        if state.upload(&call, upload_id).is_ok() {
            state.uploads.remove(upload_id);
        }
        Ok(())
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        let call = self.call(Operation::ListUploads, prefix);
        call.check_prefix(0)?;
        call.check_uploads_limit(limit)?;
        let state = self.state();
        let found = state.uploads.iter().filter(|(_, upload)| upload.key.starts_with(prefix));
        let view = |(id, upload): (&String, &Upload)| UploadMeta {
            key: upload.key.clone(),
            upload_id: id.clone(),
            started_ms: upload.started_ms,
        };
        let mut all: Vec<UploadMeta> = found.map(view).collect();
        all.sort_by(|a, b| (&a.key, &a.upload_id).cmp(&(&b.key, &b.upload_id)));
        all.truncate(limit);
        Ok(all)
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        self.call(Operation::Probe, prefix).check_prefix(0)?;
        Ok(Capabilities { conditional_put: true, conditional_complete: true, metadata: true })
    }

    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::SharedStore;
    use super::super::contract::{self, Completion};
    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memory_keeps_the_contract() {
        let make = async || Arc::new(MemoryStore::new("contract", Arc::new(SystemClock))) as SharedStore;
        contract::run(make, Completion::OneWinner).await;
    }
}
