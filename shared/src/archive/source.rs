//! Where a shard is read from: a store, and whoever wants to know about each read.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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

/// A store to read shards from. Cheap to clone; `SharedStore` converts into it.
#[derive(Clone)]
pub struct Source {
    pub(super) store: SharedStore,
    on_read: Option<OnRead>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.store).finish()
    }
}

impl From<SharedStore> for Source {
    fn from(store: SharedStore) -> Self {
        Self { store, on_read: None }
    }
}

impl Source {
    /// A store whose reads are counted by `on_read`.
    pub fn observed(store: SharedStore, on_read: OnRead) -> Self {
        Self { store, on_read: Some(on_read) }
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
