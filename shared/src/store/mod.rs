//! Object stores behind one small trait. No vendor type crosses it.
//!
//! Implementations: [`local`] (a folder), `s3` (any S3-compatible server; feature `s3`) and [`faults`] (a wrapper that
//! fails on purpose, for tests). All of them pass the contract suite in [`contract`]. [`zones`] maps shard indexes to stores,
//! [`retrying`] is the one layer that tries again, [`guarded`] protects a store and whoever waits for it, [`metered`]
//! counts, [`backend`] says where a store is.

pub mod backend;
pub mod call;
pub mod contract;
pub mod faults;
pub mod guarded;
pub mod local;
pub mod memory;
pub mod metered;
mod probe;
pub mod retrying;
#[cfg(feature = "s3")]
pub mod s3;
pub mod s3_config;
pub mod zones;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

/// A store shared between tasks.
pub type SharedStore = Arc<dyn ObjectStore>;

/// The smallest part, in bytes, of a multipart upload that is not its last: S3's limit.
pub const MIN_PART_BYTES: u64 = 5 * 1024 * 1024;
/// The most parts one multipart upload can have: S3's limit.
pub const MAX_PARTS: u32 = 10_000;

/// What a store knows about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Key inside the store (without the store's own prefix).
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// Entity tag as the store gives it, quotes included; changes when the bytes do.
    pub etag: String,
    /// Unix milliseconds of the last change; from a write, the writer's own clock.
    pub last_modified_ms: u64,
    /// User metadata given at creation. Empty from `list`, and where a store keeps none (see
    /// [`Capabilities::metadata`]).
    pub metadata: BTreeMap<String, String>,
}

impl ObjectMeta {
    /// What is known of an object that nobody asked the store about: its key.
    pub fn unasked(key: &str) -> Self {
        Self { key: key.to_owned(), size: 0, etag: String::new(), last_modified_ms: 0, metadata: BTreeMap::new() }
    }
}

/// A part of an object to read. Empty ranges (`Span` of no bytes, `Suffix(0)`) are answered without asking the store:
/// their `meta` has only the key, and nothing says whether the object exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// All of it.
    Full,
    /// From `start` up to but not including `end`, in bytes. Reaching past the end of the object is an error, and so is
    /// a `start` greater than `end`.
    Span(Range<u64>),
    /// The last `n` bytes; all of a shorter object.
    Suffix(u64),
}

/// Bytes read, and the object they came from.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The object as it was when read; `size` is that of the whole object.
    pub meta: ObjectMeta,
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// A stream of an object's bytes.
pub struct FetchedStream {
    /// The object as it was when the read began.
    pub meta: ObjectMeta,
    /// The bytes, in order. An error ends the stream.
    pub stream: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl FetchedStream {
    /// The answer to an empty range.
    pub fn empty(key: &str) -> Self {
        Self { meta: ObjectMeta::unasked(key), stream: Box::pin(futures::stream::empty()) }
    }
}

impl fmt::Debug for FetchedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchedStream").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// Whether a write may replace what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// Replace an existing object.
    Overwrite,
    /// Fail with [`StoreErrorKind::AlreadyExists`] when the key is taken; exactly one of many racing writers wins.
    CreateOnly,
}

/// Options of a write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Whether an object may be replaced.
    pub mode: WriteMode,
    /// User metadata to keep with the object (ASCII).
    pub metadata: BTreeMap<String, String>,
}

impl WriteOptions {
    /// Replace what is there, no metadata.
    pub fn overwrite() -> Self {
        Self { mode: WriteMode::Overwrite, metadata: BTreeMap::new() }
    }

    /// Create once, no metadata.
    pub fn create_only() -> Self {
        Self { mode: WriteMode::CreateOnly, metadata: BTreeMap::new() }
    }
}

/// One page of a listing.
///
/// Keys come in byte order, or on servers that keep folders (`SeaweedFS`) in byte order component by component. The two
/// differ only where a sibling's name is a folder's name and something that sorts before a slash: `a/x` and `a-b`.
/// Either way every key comes exactly once over the pages of a listing.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// The objects.
    pub objects: Vec<ObjectMeta>,
    /// Where to go on (pass it as `after`); `None` on the last page.
    pub next: Option<String>,
}

/// One uploaded part of a multipart upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTag {
    /// 1 to [`MAX_PARTS`].
    pub number: u32,
    /// Entity tag the store gave the part.
    pub etag: String,
    /// Size in bytes.
    pub size: u64,
}

/// An unfinished multipart upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadMeta {
    /// Key it will have.
    pub key: String,
    /// The store's id of the upload.
    pub upload_id: String,
    /// Unix milliseconds of its start.
    pub started_ms: u64,
}

/// What a store can do, found out by [`ObjectStore::probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `CreateOnly` is honoured by the store itself on simple writes.
    pub conditional_put: bool,
    /// `CreateOnly` is honoured by the store itself on completing a multipart upload.
    pub conditional_complete: bool,
    /// User metadata is kept.
    pub metadata: bool,
}

/// A place that keeps immutable objects under keys (relative, `/`-separated, no leading slash).
///
/// Methods are safe to retry: a lost answer of a conditional write shows up as [`StoreErrorKind::AlreadyExists`], and
/// the caller compares what is there.
#[async_trait]
pub trait ObjectStore: fmt::Debug + Send + Sync {
    /// The store for people: `s3://bucket/prefix` or `file:///dir`. Never a secret.
    fn url(&self) -> String;

    /// Metadata of an object. [`StoreErrorKind::NotFound`] when there is none, also where the bucket is missing and the
    /// store's answer has no body to say so; [`ObjectStore::check`] tells the two apart.
    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError>;

    /// Reads a range into memory. [`StoreErrorKind::InvalidRange`] when it reaches past the end.
    async fn get(&self, key: &str, range: ByteRange) -> Result<Fetched, StoreError>;

    /// Reads a range as a stream of bounded chunks.
    async fn get_stream(&self, key: &str, range: ByteRange) -> Result<FetchedStream, StoreError>;

    /// Writes a whole object at once; readers see all of it or nothing.
    async fn put(&self, key: &str, bytes: Bytes, options: &WriteOptions) -> Result<ObjectMeta, StoreError>;

    /// Removes an object. Removing nothing is a success.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// One page of the objects whose key starts with `prefix` and comes after `after` in the order of [`ListPage`], at
    /// most `limit` (1 to 1000). `after` is a key, usually a [`ListPage::next`]: where it is only a folder's name,
    /// servers that keep folders pass over what is in that folder.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<ListPage, StoreError>;

    /// Begins a multipart upload and returns its id.
    async fn create_upload(&self, key: &str, metadata: &BTreeMap<String, String>) -> Result<String, StoreError>;

    /// Uploads part `number` (1 to [`MAX_PARTS`]); every part but the last has at least [`MIN_PART_BYTES`].
    /// [`StoreErrorKind::UploadGone`] when the upload is unknown.
    async fn put_part(&self, key: &str, upload_id: &str, number: u32, bytes: Bytes) -> Result<PartTag, StoreError>;

    /// The parts that are really there, in order of their numbers. `SeaweedFS` goes on listing a part that was replaced
    /// beside the one that replaced it, so look for a number together with its tag.
    async fn list_parts(&self, key: &str, upload_id: &str) -> Result<Vec<PartTag>, StoreError>;

    /// Makes the object out of its parts, in the order of their numbers; readers see all of it or nothing. The upload
    /// is gone after a success, and still there after [`StoreErrorKind::AlreadyExists`]. With `CreateOnly` a key that is
    /// taken is never replaced, except by completions of the same moment on servers that look first and then write: see
    /// [`contract::Completion`].
    async fn complete_upload(
        &self,
        key: &str,
        upload_id: &str,
        parts: &[PartTag],
        mode: WriteMode,
    ) -> Result<ObjectMeta, StoreError>;

    /// Drops an upload and its parts. Dropping an unknown one is a success.
    async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError>;

    /// Unfinished uploads of keys that start with `prefix`, in the order of their keys, at most `limit` (at least 1).
    /// However many pages a server needs, they are all read. Where there are more than `limit`, whoever drops some and
    /// asks again finds the rest.
    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<UploadMeta>, StoreError>;

    /// Writes and removes scratch keys under `prefix` to find out what the store honours. Also the deep health check
    /// of a writer: it fails where writing fails.
    async fn probe(&self, prefix: &str) -> Result<Capabilities, StoreError>;

    /// Cheap check that the store answers and the credentials may read; used by readiness.
    async fn check(&self) -> Result<(), StoreError>;
}

/// What a caller should do about a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// Nothing under that key.
    NotFound,
    /// The key is taken (a conditional write lost).
    AlreadyExists,
    /// The range lies outside the object.
    InvalidRange,
    /// The multipart upload is unknown: begin again.
    UploadGone,
    /// A concurrent change got in the way (409): begin the operation again.
    Conflict,
    /// Credentials missing, wrong, or not allowed to do this. Retrying does not help before someone acts.
    Denied,
    /// The bucket or folder does not exist. Retrying does not help before someone acts.
    NoSuchBucket,
    /// The disk or quota is full.
    Full,
    /// The store is down, slow or overloaded: try again later.
    Unavailable,
    /// The store asks for fewer calls: try again later, with fewer of them.
    Throttled,
    /// The store was not asked, because it failed too often: ask another one, or this one later.
    BreakerOpen,
    /// The request itself is wrong (key, part number, ...): a defect or a hostile input.
    Invalid,
}

impl StoreErrorKind {
    /// Whether the same call may succeed later without anybody acting.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::Throttled | Self::BreakerOpen | Self::Conflict)
    }

    /// The word used as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::InvalidRange => "invalid_range",
            Self::UploadGone => "upload_gone",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::NoSuchBucket => "no_such_bucket",
            Self::Full => "full",
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::BreakerOpen => "breaker_open",
            Self::Invalid => "invalid",
        }
    }
}

/// A store operation that failed: what, where, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} {url}/{key}: {message}")]
pub struct StoreError {
    /// What the caller should do.
    pub kind: StoreErrorKind,
    /// `get`, `put`, ...
    pub operation: &'static str,
    /// The store's URL for people.
    pub url: String,
    /// The key, or the prefix of a listing.
    pub key: String,
    /// What went wrong and, where known, what to do. Never a secret.
    pub message: String,
}

/// Every object under `prefix`, page by page, in the order of [`ListPage`].
pub fn list_all(store: SharedStore, prefix: String) -> BoxStream<'static, Result<ObjectMeta, StoreError>> {
    use futures::{StreamExt, TryStreamExt, stream};
    stream::try_unfold(Some(None::<String>), move |state| {
        let (store, prefix) = (store.clone(), prefix.clone());
        async move {
            let Some(after) = state else { return Ok(None) };
            let page = store.list(&prefix, after.as_deref(), 1000).await?;
            let next = page.next.map(Some);
            Ok(Some((stream::iter(page.objects.into_iter().map(Ok)), next)))
        }
    })
    .try_flatten()
    .boxed()
}
