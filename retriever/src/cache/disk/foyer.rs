//! What was read of stores, kept on disk: directories and index blocks in one place, payloads in another, each with its
//! own bound. It survives a restart.
//!
//! Only what has a checksum of its own is put here, after that was found right, and it is checked again when it comes
//! back; what is kept has another one around it. So damaged files of the cache are misses and nothing else. The name of
//! what is kept has the object's key, entity tag and size in it: another object under the key has another name.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use des_shared::archive::{ReadCache, ReadKind};
use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, HybridCachePolicy, Load,
    PsyncIoEngineConfig, RecoverMode,
};

use super::{DiskConfig, DiskError};
use crate::metrics::{CacheKind, RetrieverMetrics};

/// Room is freed in pieces of this size; nothing larger is kept.
const REGION_BYTES: usize = 4 << 20;
/// Bytes on their way to the disk; beyond, what comes is not kept.
const BUFFER_BYTES: usize = 8 << 20;
/// Things read by one process at a time when a cache is opened.
const RECOVER_AT_ONCE: usize = 8;

/// The cache on disk.
pub(crate) struct DiskCache {
    index: HybridCache<String, Vec<u8>>,
    payloads: Option<HybridCache<String, Vec<u8>>>,
    metrics: RetrieverMetrics,
}

impl DiskCache {
    /// Opens it with what an earlier process left there.
    pub(crate) async fn open(config: &DiskConfig, metrics: RetrieverMetrics) -> Result<Arc<Self>, DiskError> {
        let index = open(&config.dir.join("index"), config.index_bytes).await?;
        let payloads = match config.payload_bytes {
            0 => None,
            bytes => Some(open(&config.dir.join("payloads"), bytes).await?),
        };
        Ok(Arc::new(Self { index, payloads, metrics }))
    }

    /// Writes what is still on its way.
    pub(crate) async fn close(&self) {
        for cache in [Some(&self.index), self.payloads.as_ref()].into_iter().flatten() {
            if let Err(error) = cache.close().await {
                tracing::warn!("the disk cache lost what was on its way: {error}");
            }
        }
    }

    fn of(&self, kind: ReadKind) -> (Option<&HybridCache<String, Vec<u8>>>, CacheKind) {
        match kind {
            ReadKind::Tail | ReadKind::Index | ReadKind::Block => (Some(&self.index), CacheKind::DiskIndex),
            ReadKind::Payload => (self.payloads.as_ref(), CacheKind::DiskPayload),
            ReadKind::BigFile => (None, CacheKind::DiskPayload),
        }
    }
}

async fn open(dir: &Path, bytes: u64) -> Result<HybridCache<String, Vec<u8>>, DiskError> {
    let failed = |why: String| DiskError { dir: dir.to_owned(), why };
    std::fs::create_dir_all(dir).map_err(|e| failed(e.to_string()))?;
    let capacity = usize::try_from(bytes).map_err(|e| failed(e.to_string()))?;
    let device = FsDeviceBuilder::new(dir).with_capacity(capacity).build().map_err(|e| failed(e.to_string()))?;
    let engine = BlockEngineConfig::new(device)
        .with_block_size(REGION_BYTES)
        .with_buffer_pool_size(BUFFER_BYTES)
        .with_submit_queue_size_threshold(BUFFER_BYTES)
        .with_recover_concurrency(RECOVER_AT_ONCE);
    // Nothing is kept in memory here: the caches above do that, in their parsed form.
    let builder = HybridCacheBuilder::new().with_policy(HybridCachePolicy::WriteOnInsertion).memory(1).storage();
    let builder = builder.with_io_engine_config(PsyncIoEngineConfig::new()).with_engine_config(engine);
    // What cannot be read is left out.
    builder.with_recover_mode(RecoverMode::Quiet).build().await.map_err(|e| failed(e.to_string()))
}

#[async_trait]
impl ReadCache for DiskCache {
    async fn get(&self, name: &str, kind: ReadKind) -> Option<Bytes> {
        let (cache, kind) = self.of(kind);
        let found = match cache?.storage().load(name).await {
            Ok(Load::Entry { value, .. }) => Some(Bytes::from(value)),
            Ok(Load::Piece { piece, .. }) => Some(Bytes::copy_from_slice(piece.value())),
            Ok(Load::Miss | Load::Throttled) => None,
            Err(error) => {
                tracing::warn!("the disk cache cannot be read, the store is asked: {error}");
                None
            }
        };
        self.metrics.cache_asked(kind, found.is_some());
        found
    }

    fn put(&self, name: String, kind: ReadKind, bytes: &[u8]) {
        if let (Some(cache), _) = self.of(kind)
            && bytes.len() < REGION_BYTES / 2
        {
            cache.storage_writer(name).insert(bytes.to_vec());
        }
    }
}
