//! Files kept open: a piece of one that is in the page cache is read with two calls of the system, on the thread that
//! asks. Opening, reading and closing on a thread for blocking work costs several times as much as the piece itself.
//!
//! What is at the path decides: a file that was replaced, renamed, changed or removed since it was opened says so when it is
//! asked with the first of the two calls, and then this module has nothing. It never waits for a disk.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::IoSliceMut;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::io::{ReadWriteFlags, preadv2};

use super::super::{ByteRange, Fetched, ObjectMeta};

/// Files open at a time.
const MAX_OPEN: usize = 128;
/// A file that nobody reads for so long is closed: the room of a removed one is free only then.
const IDLE: Duration = Duration::from_secs(5);
/// How long it is believed that a folder on the way to a file was not replaced by another. Of the file itself that is not
/// believed at all: when it is replaced, removed, renamed or written to, the open file says so.
const SAME_FOLDER_MS: u64 = 50;
/// Longer pieces are read elsewhere, so that copying one holds nobody up.
const MAX_PIECE: u64 = 256 * 1024;

/// The open files of a store.
#[derive(Debug)]
pub(super) struct Handles {
    open: RwLock<HashMap<String, Arc<OpenFile>>>,
    began: Instant,
    tidied_ms: AtomicU64,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    identity: Identity,
    meta: ObjectMeta,
    used_ms: AtomicU64,
    /// When the name led to this file last.
    named_ms: AtomicU64,
}

/// What another file, or the same with other bytes, has otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Names it has, and when it or one of them changed: it may lose the one that is asked for.
    links: u64,
    changed: (i64, i64),
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let (device, inode, links) = (metadata.dev(), metadata.ino(), metadata.nlink());
        Self { device, inode, size: metadata.size(), modified, links, changed }
    }
}

impl Handles {
    pub(super) fn new() -> Self {
        Self { open: RwLock::default(), began: Instant::now(), tidied_ms: AtomicU64::new(0) }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// A piece of an object, when it can be had at once. `None` also for whatever is wrong: opening the file anew says
    /// what that is.
    pub(super) fn read_now(&self, key: &str, range: &ByteRange) -> Option<Fetched> {
        let now_ms = self.now_ms();
        if now_ms.saturating_sub(self.tidied_ms.load(Ordering::Relaxed)) >= IDLE.as_millis() as u64 {
            self.tidy();
        }
        // A map of open files has no state that a panic could leave broken.
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner).get(key)?.clone();
        if !open.is_current(now_ms) {
            self.forget(key, &open);
            return None;
        }
        open.used_ms.store(now_ms, Ordering::Relaxed);
        let (from, to) = open.piece(range)?;
        let mut bytes = vec![0; (to - from) as usize];
        let read = preadv2(&open.file, &mut [IoSliceMut::new(&mut bytes)], from, ReadWriteFlags::NOWAIT);
        if read != Ok(bytes.len()) {
            return None; // Not in memory, or a file system that cannot tell.
        }
        Some(Fetched { meta: open.meta.clone(), offset: from, bytes: bytes.into() })
    }

    /// Keeps a file that was just opened. Its metadata is that of the open file.
    pub(super) fn keep(&self, path: PathBuf, file: File, metadata: &Metadata, meta: &ObjectMeta) {
        // When the name led to it is for the next read to find out.
        let (used_ms, named_ms) = (AtomicU64::new(self.now_ms()), AtomicU64::new(0));
        let identity = Identity::from(metadata);
        let opened = Arc::new(OpenFile { file, path, identity, meta: meta.clone(), used_ms, named_ms });
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_OPEN && !open.contains_key(&meta.key) {
            let used = |open: &OpenFile| open.used_ms.load(Ordering::Relaxed);
            let oldest = open.iter().min_by_key(|(_, open)| used(open)).map(|(key, _)| key.clone());
            oldest.and_then(|key| open.remove(&key));
        }
        open.insert(meta.key.clone(), opened);
    }

    /// Closes what nobody reads any more.
    pub(super) fn tidy(&self) {
        let now_ms = self.now_ms();
        self.tidied_ms.store(now_ms, Ordering::Relaxed);
        let idle = |open: &OpenFile| now_ms.saturating_sub(open.used_ms.load(Ordering::Relaxed));
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, open| idle(open) < IDLE.as_millis() as u64);
    }

    fn forget(&self, key: &str, old: &Arc<OpenFile>) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.get(key).is_some_and(|now| Arc::ptr_eq(now, old)) {
            open.remove(key);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl OpenFile {
    /// Whether the name still leads to this file, and the file is as it was. The open file is asked, which costs a third
    /// of what a walk along the path does, and now and then the path.
    fn is_current(&self, now_ms: u64) -> bool {
        let named = self.named_ms.load(Ordering::Relaxed);
        let walk = named == 0 || now_ms.saturating_sub(named) >= SAME_FOLDER_MS;
        let now = if walk { fs::symlink_metadata(&self.path) } else { self.file.metadata() };
        let same = now.is_ok_and(|now| Identity::from(&now) == self.identity);
        if same && walk {
            self.named_ms.store(now_ms.max(1), Ordering::Relaxed);
        }
        same
    }

    /// Where a short piece lies; `None` for a long one, one of nothing and one that is not there.
    fn piece(&self, range: &ByteRange) -> Option<(u64, u64)> {
        let size = self.meta.size;
        let (from, to) = match range {
            ByteRange::Full => (0, size),
            ByteRange::Span(span) => (span.start, span.end),
            ByteRange::Suffix(n) => (size.saturating_sub(*n), size),
        };
        (from < to && to <= size && to - from <= MAX_PIECE).then_some((from, to))
    }
}
