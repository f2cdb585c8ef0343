//! An S3 bucket, at AWS or any compatible server, under a prefix.
//!
//! Who tries again: nobody here. The SDK's retries are off and every method is one attempt, because a lost answer of a
//! conditional write must be seen by a layer that knows what it means, and because two layers that both retry multiply.
//! [`RetryingStore`](super::retrying::RetryingStore) is that layer; it sits around this store and its metrics.
//!
//! Invariants:
//! - No answer is trusted: the length and `Content-Range` of a read are compared with what was asked for, so that a
//!   server which ignores ranges cannot hand out other files' bytes.
//! - The prefix is added and stripped here; callers see keys relative to it.
//! - Where the server does not honour `If-None-Match` (found by `probe`), `CreateOnly` asks first whether the key is
//!   taken. That is not atomic: the caller's lease has to keep others away.
//! - No secret is in `Debug`, errors or logs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;

use self::errors::{Refused, s3_error};
use self::small::SmallRanges;
use super::call::{Call, MAX_PAGE, Operation};
use super::{
    ByteRange, Capabilities, Fetched, FetchedStream, ListPage, ObjectMeta, ObjectStore, PartTag, StoreError,
    StoreErrorKind, UploadMeta, WriteMode, WriteOptions,
};
use crate::clock::{Clock, SystemClock};

mod clients;
mod errors;
mod multipart;
mod read;
mod small;

pub use super::s3_config::{DEFAULT_REGION, S3Config, S3Credentials, S3Timeouts};

/// A bucket, or the part of it under a prefix.
pub struct S3Store {
    url: Arc<str>,
    bucket: String,
    /// "" or ending in a slash.
    prefix: String,
    /// For calls that send little: one attempt is given up after [`S3Timeouts::attempt`].
    client: Client,
    /// For calls that send bytes: [`S3Timeouts::upload_attempt`]. Shares the connections of `client`.
    uploader: Client,
    small: SmallRanges,
    /// Whether the server was found to ignore conditions on PUT, on completion.
    ignores_put_condition: AtomicBool,
    ignores_complete_condition: AtomicBool,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store").field("url", &self.url).finish_non_exhaustive()
    }
}

impl S3Store {
    /// A store for a bucket. Loads configuration and credentials the way AWS's own tools do (environment, profile,
    /// web identity, container, instance), but sends nothing to the bucket: [`ObjectStore::check`] does.
    ///
    /// # Errors
    /// [`Invalid`](StoreErrorKind::Invalid) when the configuration cannot be used.
    pub async fn connect(config: &S3Config) -> Result<Self, StoreError> {
        let url: Arc<str> = config.url().into();
        config.check().map_err(|problem| Call::new(&url, Operation::Open, "").invalid(problem))?;
        let (client, uploader) = config.clients().await;
        Ok(Self {
            url,
            bucket: config.bucket.clone(),
            prefix: config.normal_prefix(),
            client,
            uploader,
            small: SmallRanges::new(&config.timeouts),
            ignores_put_condition: AtomicBool::new(false),
            ignores_complete_condition: AtomicBool::new(false),
        })
    }

    fn call(&self, operation: Operation, key: &str) -> Call {
        Call::new(&self.url, operation, key)
    }

    /// The call and the full key, checked.
    fn keyed(&self, operation: Operation, key: &str) -> Result<(Call, String), StoreError> {
        let call = self.call(operation, key);
        call.check_key(self.prefix.len())?;
        Ok((call, format!("{}{key}", self.prefix)))
    }

    /// [`Self::keyed`] for a call on an upload. An id that no server gives out would make another request of this one:
    /// without an id, a part is a whole object.
    fn uploading(&self, operation: Operation, key: &str, upload_id: &str) -> Result<(Call, String), StoreError> {
        let (call, full) = self.keyed(operation, key)?;
        let plausible = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b'\\' | b'?' | b'#' | b'&');
        if upload_id.is_empty() || !upload_id.bytes().all(plausible) {
            return Err(call.error(StoreErrorKind::UploadGone, format!("{upload_id:?} is no upload id")));
        }
        Ok((call, full))
    }

    /// The call and the full prefix, checked.
    fn prefixed(&self, operation: Operation, prefix: &str) -> Result<(Call, String), StoreError> {
        let call = self.call(operation, prefix);
        call.check_prefix(self.prefix.len())?;
        Ok((call, format!("{}{prefix}", self.prefix)))
    }

    /// The store's key of a full key. `None` for what is not below the prefix, or is the prefix itself.
    fn stripped<'a>(&self, full: &'a str) -> Option<&'a str> {
        full.strip_prefix(&self.prefix).filter(|key| !key.is_empty())
    }

    /// Metadata of an object whose last bytes the server would not give.
    async fn head_empty(&self, call: &Call) -> Result<ObjectMeta, StoreError> {
        match self.head(&call.key).await? {
            meta if meta.size == 0 => Ok(meta),
            _ => Err(call.invalid("the server refuses suffix ranges of objects that are not empty")),
        }
    }

    /// Fails when a key is taken: the stand-in for a condition that the server ignores.
    async fn check_free(&self, call: &Call) -> Result<(), StoreError> {
        match self.head(&call.key).await {
            Ok(_) => Err(call.error(StoreErrorKind::AlreadyExists, "an object of that name is there already")),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// An object just written. S3 does not say when it took it, so the writer's clock has to do.
    fn written(call: &Call, size: u64, etag: Option<String>) -> Result<ObjectMeta, StoreError> {
        let etag = etag.ok_or_else(|| call.error(StoreErrorKind::Unavailable, "the answer has no ETag"))?;
        Ok(ObjectMeta { size, etag, last_modified_ms: SystemClock.now_ms(), ..ObjectMeta::unasked(&call.key) })
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn url(&self) -> String {
        self.url.to_string()
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        let (call, full) = self.keyed(Operation::Head, key)?;
        let sent = self.client.head_object().bucket(&self.bucket).key(full).send().await;
        let head = sent.map_err(|e| s3_error(&call, &e, Refused::Object))?;
        Ok(ObjectMeta {
            key: call.key,
            size: head.content_length.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            etag: head.e_tag.unwrap_or_default(),
            last_modified_ms: read::unix_ms(head.last_modified),
            metadata: head.metadata.unwrap_or_default().into_iter().collect(),
        })
    }

    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError> {
        let (call, full) = self.keyed(Operation::Get, key)?;
        if call.check_range(&range)?.is_none() {
            return Ok(Fetched { meta: ObjectMeta::unasked(key), offset: 0, bytes: Bytes::new() });
        }
        if let Some(fetched) = self.small.get(self, &call, &full, &range).await? {
            return Ok(fetched);
        }
        match self.open(&call, &full, &range).await? {
            Some(answer) => answer.collect(call).await,
            None => Ok(Fetched { meta: self.head_empty(&call).await?, offset: 0, bytes: Bytes::new() }),
        }
    }

    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError> {
        let (call, full) = self.keyed(Operation::GetStream, key)?;
        if call.check_range(&range)?.is_none() {
            return Ok(FetchedStream::empty(key));
        }
        match self.open(&call, &full, &range).await? {
            Some(answer) => Ok(answer.into_stream(call)),
            None => Ok(FetchedStream { meta: self.head_empty(&call).await?, ..FetchedStream::empty(key) }),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError> {
        let (call, full) = self.keyed(Operation::Put, key)?;
        call.check_metadata(&options.metadata)?;
        let size = bytes.len() as u64;
        let mut request = self.uploader.put_object().bucket(&self.bucket).key(full).body(ByteStream::from(bytes));
        for (name, value) in &options.metadata {
            request = request.metadata(name, value);
        }
        if options.mode == WriteMode::CreateOnly {
            if self.ignores_put_condition.load(Ordering::Relaxed) {
                self.check_free(&call).await?;
            } else {
                request = request.if_none_match("*");
            }
        }
        let put = request.send().await.map_err(|e| s3_error(&call, &e, Refused::Object))?;
        let meta = Self::written(&call, size, put.e_tag)?;
        Ok(ObjectMeta { metadata: options.metadata.clone(), ..meta })
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let (call, full) = self.keyed(Operation::Delete, key)?;
        let sent = self.client.delete_object().bucket(&self.bucket).key(full).send().await;
        match sent.map_err(|e| s3_error(&call, &e, Refused::Object)) {
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError> {
        let (call, full) = self.prefixed(Operation::List, prefix)?;
        call.check_limit(limit)?;
        read::list(self, &call, &full, after, limit).await
    }

    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError> {
        let (call, full) = self.keyed(Operation::CreateUpload, key)?;
        call.check_metadata(metadata)?;
        let mut request = self.client.create_multipart_upload().bucket(&self.bucket).key(full);
        for (name, value) in metadata {
            request = request.metadata(name, value);
        }
        let created = request.send().await.map_err(|e| s3_error(&call, &e, Refused::Object))?;
        created.upload_id.ok_or_else(|| call.error(StoreErrorKind::Unavailable, "the answer has no upload id"))
    }

    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError> {
        let (call, full) = self.uploading(Operation::PutPart, key, upload_id)?;
        call.check_part_number(number)?;
        multipart::put_part(self, &call, full, upload_id, (number, bytes)).await
    }

    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError> {
        let (call, full) = self.uploading(Operation::ListParts, key, upload_id)?;
        multipart::list_parts(self, &call, &full, upload_id).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError> {
        let (call, full) = self.uploading(Operation::CompleteUpload, key, upload_id)?;
        let parts = call.check_parts(parts)?;
        multipart::complete(self, &call, full, upload_id, (parts, mode)).await
    }

    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        match multipart::abort(self, self.uploading(Operation::AbortUpload, key, upload_id), upload_id).await {
            Err(error) if error.kind == StoreErrorKind::UploadGone => Ok(()),
            other => other,
        }
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError> {
        let (call, full) = self.prefixed(Operation::ListUploads, prefix)?;
        call.check_uploads_limit(limit)?;
        multipart::list_uploads(self, &call, &full, limit).await
    }

    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError> {
        self.prefixed(Operation::Probe, prefix)?;
        // Asked of the server itself, not of the stand-in that an earlier probe may have switched on.
        self.ignores_put_condition.store(false, Ordering::Relaxed);
        self.ignores_complete_condition.store(false, Ordering::Relaxed);
        let found = super::probe::probe(self, prefix).await?;
        self.ignores_put_condition.store(!found.conditional_put, Ordering::Relaxed);
        self.ignores_complete_condition.store(!found.conditional_complete, Ordering::Relaxed);
        Ok(found)
    }

    async fn check(&self) -> Result<(), StoreError> {
        let (call, full) = self.prefixed(Operation::Check, "")?;
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(full).max_keys(1);
        request.send().await.map(drop).map_err(|e| s3_error(&call, &e, Refused::Bucket))
    }
}

const _: () = assert!(MAX_PAGE == 1000, "S3 gives at most 1000 objects a page");
