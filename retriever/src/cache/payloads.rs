//! The files that are asked for most, in memory bounded by bytes.
//!
//! What is kept was checked, and is kept under the object's version and the place in it, so it stays true. Whether a file
//! is deleted is looked at before anybody comes here. A file gets in only when it is asked for more often than those it
//! would drive out (moka's `TinyLFU`), so one scan over everything does not empty the cache.

use std::sync::Arc;

use bytes::Bytes;
use des_shared::shard::Inline;

use super::memory::{CacheOptions, MemoryCache};
use super::{ENTRY_OVERHEAD, ObjectId};
use crate::error::Error;
use crate::fetch::Form;
use crate::metrics::{CacheKind, RetrieverMetrics};

/// Larger files are not kept: reading one costs little beside sending it.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// No file takes more than this share of the cache.
const MIN_FILES: u64 = 16;

/// A file's bytes in one form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PayloadKey {
    pub(crate) object: Arc<ObjectId>,
    /// All of it: in a hostile shard two entries can share a place.
    pub(crate) inline: Inline,
    pub(crate) form: Form,
}

/// The cache of files.
pub(crate) struct Payloads {
    files: MemoryCache<PayloadKey, Bytes>,
    largest: u64,
    metrics: RetrieverMetrics,
}

impl Payloads {
    /// A cache of `bytes`; 0 for none.
    pub(crate) fn new(bytes: u64, metrics: RetrieverMetrics) -> Self {
        let weight = |_: &PayloadKey, bytes: &Bytes| u32::try_from(ENTRY_OVERHEAD + bytes.len()).unwrap_or(u32::MAX);
        let files = MemoryCache::weighed(CacheOptions { capacity: bytes, ..CacheOptions::default() }, weight);
        Self { files, largest: MAX_FILE_BYTES.min(bytes / MIN_FILES), metrics }
    }

    /// Whether a file of so many bytes may be kept.
    pub(crate) fn takes(&self, bytes: u64) -> bool {
        (1..=self.largest).contains(&bytes)
    }

    /// The bytes of a file when they are there. That it was asked for counts either way, for what is kept later on.
    pub(crate) async fn kept(&self, key: &PayloadKey) -> Option<Bytes> {
        self.files.get(key).await
    }

    /// The bytes of a file, read with `load` when they are not there; by one for all who want them at the same time.
    pub(crate) async fn get<Load, Fut>(&self, key: PayloadKey, load: Load) -> Result<Bytes, Error>
    where
        Load: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<Bytes, Error>> + Send,
    {
        if let Some(bytes) = self.files.get(&key).await {
            self.metrics.cache_asked(CacheKind::Payload, true);
            return Ok(bytes);
        }
        self.metrics.cache_asked(CacheKind::Payload, false);
        let loading = Box::pin(self.files.try_get_with(key, async {
            // A copy of its own: what was read may be a piece of a larger buffer, which would live as long.
            load().await.map(|bytes| Bytes::copy_from_slice(&bytes))
        }));
        let bytes = loading.await?;
        self.metrics.cache_weighs(CacheKind::Payload, self.files.weighted_size());
        Ok(bytes)
    }
}
