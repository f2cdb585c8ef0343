//! Which shards are asked for many different index blocks in a short time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::ObjectId;
use super::memory::{CacheOptions, MemoryCache};

/// How long misses are counted together.
const WINDOW: Duration = Duration::from_secs(10);
/// So many blocks of a shard missed in that time make it hot: reading all of them then costs less than it saves.
const HOT: u32 = 8;
/// Shards that are counted at a time; the others are not hot.
const MAX_SHARDS: u64 = 10_000;

/// Counts missed blocks.
pub(super) struct Heat {
    missed: MemoryCache<Arc<ObjectId>, Arc<AtomicU32>>,
}

impl Heat {
    pub(super) fn new() -> Self {
        let options = CacheOptions { capacity: MAX_SHARDS, time_to_live: Some(WINDOW), ..CacheOptions::default() };
        Self { missed: MemoryCache::new(options) }
    }

    /// Counts a block that has to be read; whether it is one too many.
    pub(super) async fn is_hot(&self, id: &Arc<ObjectId>) -> bool {
        let missed = self.missed.get_or_make(id.clone(), Arc::default).await;
        missed.fetch_add(1, Ordering::Relaxed) + 1 >= HOT
    }
}
