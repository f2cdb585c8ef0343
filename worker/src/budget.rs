//! What all tasks of a process share: memory for files read ahead, buffers, and threads that read and compress.
//!
//! Permits for bytes are taken in packing order before a file is read and given back when its stored bytes are in a
//! part. The oldest file of a task always has its permit, so a task never waits for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::param::page_size;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buffer::Pool;
use crate::pack::{BATCH_BYTES, PART_ROOM};
use crate::shelf::Shelf;

/// Granularity of the byte budget: a semaphore counts to less than 2^29 on the smallest targets.
const UNIT: u64 = 1024;
/// Threads that read local files at the same time, for one that compresses: files that are in no cache, or on a share,
/// are waited for.
const READERS: usize = 8;
/// Buffers kept for parts, for one thread that compresses: as many as small shards are packed at once.
const KEPT: usize = 8;

/// Limits shared by all packs of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    units: u32,
    threads: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    batches: Pool,
    parts: Pool,
    shelf: Shelf,
    waiting: Arc<AtomicBool>,
}

impl Budget {
    /// `read_ahead` bytes of files in memory that are not yet part of a shard's next part, and `threads` that compress
    /// at the same time.
    pub fn new(read_ahead: u64, threads: usize) -> Self {
        let units = u32::try_from(read_ahead.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        let threads = threads.max(1);
        Self {
            bytes: Arc::new(Semaphore::new(units as usize)),
            units,
            threads: Arc::new(Semaphore::new(threads)),
            readers: Arc::new(Semaphore::new(READERS * threads)),
            // One byte more than a batch: the last file's end is looked for. As many as the read-ahead
            // has when they are full.
            batches: Pool::new(BATCH_BYTES as usize + 1, (read_ahead / BATCH_BYTES) as usize),
            parts: Pool::new(PART_ROOM + page_size(), KEPT * threads),
            shelf: Shelf::new(threads + 1),
            waiting: Arc::default(),
        }
    }

    /// Waits for room for `bytes`. More than the whole budget waits for all of it, so one large file is always possible.
    pub(crate) async fn bytes(&self, bytes: u64) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        Arc::clone(&self.bytes).acquire_many_owned(units).await.expect("the budget is never closed")
    }

    /// Waits for a thread that reads local files.
    pub(crate) async fn reader(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.readers).acquire_owned().await.expect("the budget is never closed")
    }

    /// Buffers for batches of files.
    pub(crate) fn batches(&self) -> &Pool {
        &self.batches
    }

    /// Buffers for parts.
    pub(crate) fn parts(&self) -> &Pool {
        &self.parts
    }

    /// Encoders and workspaces that were used before.
    pub(crate) fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// Whether the local files read last were waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Says so of the files that were read last.
    pub(crate) fn waited(&self, waited: bool) {
        self.waiting.store(waited, Ordering::Relaxed);
    }

    /// [`Self::thread`] on a blocking thread.
    pub(crate) fn thread_here(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.threads).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => Handle::current().block_on(self.thread()),
        }
    }

    /// Waits for a compressing thread.
    pub(crate) async fn thread(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.threads).acquire_owned().await.expect("the budget is never closed")
    }
}

impl Default for Budget {
    /// 32 MiB read ahead, one thread a core and one more that compresses: until the next thread has woken up, a core would have
    /// none. Readers and buffers are those of the cores.
    fn default() -> Self {
        let budget = Self::new(32 << 20, std::thread::available_parallelism().map_or(2, std::num::NonZero::get));
        budget.threads.add_permits(1);
        budget
    }
}
