//! Parts of big files, each byte checked: what is known of their blocks is kept here, in bounded memory.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use des_shared::archive::{ArchiveError, BigFileBlocks, Source};
use futures::stream::BoxStream;
use tokio::sync::Semaphore;

use crate::cache::memory::{CacheOptions, MemoryCache};

/// Memory for checksums of blocks, in bytes: those of 1 TiB of big files.
const KNOWN_BYTES: u64 = 16 << 20;
/// Files that are read whole at the same time because somebody wants a part of them.
const LEARNERS: usize = 4;

/// The big file of an index entry: SHA-256 and size in bytes.
pub(crate) type BigFileId = ([u8; 32], u64);

/// Reads parts of big files.
pub(crate) struct Parts {
    known: MemoryCache<BigFileId, Arc<BigFileBlocks>>,
    learners: Semaphore,
}

impl Parts {
    pub(crate) fn new() -> Self {
        let weigh = |(_, size): &BigFileId, _: &Arc<BigFileBlocks>| {
            u32::try_from(BigFileBlocks::heap_bytes(*size)).unwrap_or(u32::MAX)
        };
        let known = MemoryCache::weighed(CacheOptions { capacity: KNOWN_BYTES, ..CacheOptions::default() }, weigh);
        Self { known, learners: Semaphore::new(LEARNERS) }
    }

    /// The bytes of `range`. The first part of a file costs one read of all of it.
    pub(crate) async fn read(
        &self,
        source: &Source,
        prefix: &str,
        file: BigFileId,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, ArchiveError>>, ArchiveError> {
        let (sha256, size) = file;
        let blocks = self.known.get_or_make(file, || Arc::new(BigFileBlocks::new(sha256, size))).await;
        blocks.learn(source, prefix, &self.learners).await?;
        blocks.read(source, prefix, range).await
    }
}
