//! Where a shard is read from: a store, and whoever wants to know about each read.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::error::ArchiveError;
use crate::shard::ShardError;
use crate::store::{ByteRange, Fetched, ObjectMeta, SharedStore};

/// What a read of a shard was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReadKind {
    /// The end of the shard.
    Tail,
    /// What of header, index, directory or dictionary did not lie in the tail.
    Index,
    /// An index block of version 3.
    Block,
    /// Stored bytes of files.
    Payload,
    /// An object beside the shard.
    BigFile,
}

impl ReadKind {
    /// The word used as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tail => "tail",
            Self::Index => "index",
            Self::Block => "block",
            Self::Payload => "payload",
            Self::BigFile => "big_file",
        }
    }
}

/// Told of every read just before it is made.
pub type OnRead = Arc<dyn Fn(ReadKind) + Send + Sync>;

/// Keeps what was read of objects, outside of memory. Only bytes with a checksum are put there, after it was found right,
/// and it is compared again when they come back.
#[async_trait]
pub trait ReadCache: Send + Sync {
    /// What was put under `name`; `None` also for what cannot be read any more.
    async fn get(&self, name: &str, kind: ReadKind) -> Option<Bytes>;

    /// Keeps bytes, or does not. Never waits.
    fn put(&self, name: String, kind: ReadKind, bytes: &[u8]);
}

/// A store to read shards from. Cheap to clone; `SharedStore` converts into it.
#[derive(Clone)]
pub struct Source {
    pub(super) store: SharedStore,
    on_read: Option<OnRead>,
    cache: Option<Arc<dyn ReadCache>>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.store).finish()
    }
}

impl From<SharedStore> for Source {
    fn from(store: SharedStore) -> Self {
        Self { store, on_read: None, cache: None }
    }
}

impl Source {
    /// A store whose reads are counted by `on_read`.
    pub fn observed(store: SharedStore, on_read: OnRead) -> Self {
        Self { store, on_read: Some(on_read), cache: None }
    }

    /// The same with a cache of what is read.
    #[must_use]
    pub fn cached(self, cache: Arc<dyn ReadCache>) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// The store.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    pub(super) fn noted(&self, kind: ReadKind) {
        if let Some(on_read) = &self.on_read {
            on_read(kind);
        }
    }
}

/// One object, and reads of it that are sure to be of this very object.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) source: Source,
    pub(super) meta: ObjectMeta,
}

impl Object {
    pub(super) fn damaged(&self, source: ShardError) -> ArchiveError {
        ArchiveError::Shard { url: self.source.store.url(), key: self.meta.key.clone(), source }
    }

    /// Stores that give no entity tag are trusted by size alone.
    pub(super) fn check_same(&self, now: &ObjectMeta) -> Result<(), ArchiveError> {
        let tags_differ = !self.meta.etag.is_empty() && !now.etag.is_empty() && self.meta.etag != now.etag;
        if !tags_differ && self.meta.size == now.size {
            return Ok(());
        }
        let show = |meta: &ObjectMeta| format!("{} of {} bytes", meta.etag, meta.size);
        Err(ArchiveError::Changed {
            url: self.source.store.url(),
            key: self.meta.key.clone(),
            before: show(&self.meta),
            now: show(now),
        })
    }

    /// What `check` makes of kept bytes, when there are any and it finds them right.
    pub(super) async fn kept<T>(
        &self,
        what: &str,
        kind: ReadKind,
        check: impl FnOnce(Bytes) -> Result<T, ArchiveError>,
    ) -> Option<T> {
        let cache = self.source.cache.as_ref()?;
        let bytes = cache.get(&self.kept_name(what)?, kind).await?;
        match check(bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!("kept bytes are wrong, the store is asked: {error}");
                None
            }
        }
    }

    /// Keeps bytes that were found right.
    pub(super) fn keep(&self, what: &str, kind: ReadKind, bytes: &[u8]) {
        if let (Some(cache), Some(name)) = (&self.source.cache, self.kept_name(what)) {
            cache.put(name, kind, bytes);
        }
    }

    /// Another object under the same key has another name. Without a tag nobody could tell the two apart.
    fn kept_name(&self, what: &str) -> Option<String> {
        let ObjectMeta { key, etag, size, .. } = &self.meta;
        (!etag.is_empty()).then(|| format!("{}\n{key}\n{etag}\n{size}\n{what}", self.source.store.url()))
    }

    /// Whether anything is kept at all.
    pub(super) fn keeps(&self) -> bool {
        self.source.cache.is_some()
    }

    /// The bytes of `range` as `check` finds them, kept ones where there are some.
    pub(super) async fn read_checked<T>(
        &self,
        range: Range<u64>,
        kind: ReadKind,
        check: impl Fn(&Bytes) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        if !self.keeps() || range.is_empty() {
            return check(&self.read(range, kind).await?);
        }
        let what = format!("{range:?}");
        if let Some(value) = self.kept(&what, kind, |bytes| check(&bytes)).await {
            return Ok(value);
        }
        let bytes = self.read(range, kind).await?;
        let value = check(&bytes)?;
        self.keep(&what, kind, &bytes);
        Ok(value)
    }

    /// The bytes of `range`; nothing is asked for when it is empty.
    pub(super) async fn read(&self, range: Range<u64>, kind: ReadKind) -> Result<Bytes, ArchiveError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.source.noted(kind);
        let Fetched { meta, offset, bytes } =
            self.source.store.get(&self.meta.key, ByteRange::Span(range.clone())).await?;
        self.check_same(&meta)?;
        if (offset, bytes.len() as u64) != (range.start, range.end - range.start) {
            let detail = format!("{} bytes at {offset} came back for bytes {range:?}", bytes.len());
            return Err(self.damaged(ShardError::Usage(detail)));
        }
        Ok(bytes)
    }
}
