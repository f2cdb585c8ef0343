//! What all tasks of a process share: memory for files read ahead, and threads that compress.
//!
//! Permits for bytes are taken in packing order before a file is read and given back when its stored bytes are in a
//! part. The oldest file of a task always has its permit, so a task never waits for itself.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Granularity of the byte budget: a semaphore counts to less than 2^29 on the smallest targets.
const UNIT: u64 = 1024;

/// Limits shared by all packs of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    units: u32,
    threads: Arc<Semaphore>,
}

impl Budget {
    /// `read_ahead` bytes of files in memory that are not yet part of a shard's next part, and `threads` that compress
    /// at the same time.
    pub fn new(read_ahead: u64, threads: usize) -> Self {
        let units = u32::try_from(read_ahead.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Self {
            bytes: Arc::new(Semaphore::new(units as usize)),
            units,
            threads: Arc::new(Semaphore::new(threads.max(1))),
        }
    }

    /// Waits for room for `bytes`. More than the whole budget waits for all of it, so one large file is always possible.
    pub(crate) async fn bytes(&self, bytes: u64) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        Arc::clone(&self.bytes).acquire_many_owned(units).await.expect("the budget is never closed")
    }

    /// Waits for a compressing thread.
    pub(crate) async fn thread(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.threads).acquire_owned().await.expect("the budget is never closed")
    }
}

impl Default for Budget {
    /// 32 MiB read ahead, one thread a core.
    fn default() -> Self {
        Self::new(32 << 20, std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
    }
}
