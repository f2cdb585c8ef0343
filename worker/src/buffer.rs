//! Large buffers that go back to the operating system when they are dropped.
//!
//! glibc keeps what was freed below a threshold that it raises up to 32 MiB, in one arena for each thread that
//! allocated. Parts and large files, allocated on one thread and dropped on another, then pile up: 275 MiB at the peak
//! of a pack that never holds more than 110. What is allocated above 32 MiB is always mapped and unmapped by itself, and
//! costs only the pages that are written.

use std::collections::TryReserveError;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::param::page_size;

/// Just above the largest threshold glibc gives itself on 64-bit machines.
const MAPPED_BYTES: usize = (32 << 20) + (1 << 16);
/// Smaller buffers are left to the allocator: it is faster, and what it keeps of them is little.
const LARGE_BYTES: usize = 512 * 1024;

/// An empty buffer with room for `len` bytes.
pub(crate) fn with_room(len: usize) -> Result<Vec<u8>, TryReserveError> {
    let mut buffer = Vec::new();
    let room = if len < LARGE_BYTES { len } else { len.max(MAPPED_BYTES) };
    // Where address space is scarce, the plain size may still be there.
    buffer.try_reserve_exact(room).or_else(|_| buffer.try_reserve_exact(len))?;
    Ok(buffer)
}

/// Buffers of one size that are used again: a fresh one costs a page fault for every 4 KiB that is written to it. Holds
/// no more than were in use at the same time, and at most `keep`. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
    room: usize,
    keep: usize,
}

impl Pool {
    /// A pool of buffers with room for `room` bytes.
    pub(crate) fn new(room: usize, keep: usize) -> Self {
        Self { idle: Arc::default(), room, keep }
    }

    /// A buffer with room for `len` bytes behind its front: so many bytes that whatever lies at a page's beginning in an
    /// object, whose byte `offset` comes next, lies at a page's beginning in memory. A folder then writes it from there.
    pub(crate) fn take_for(&self, offset: u64, len: usize) -> Result<Fitted, TryReserveError> {
        let page = page_size();
        let mut bytes = self.take(len + page)?;
        let front = (bytes.as_ptr().align_offset(page) + (offset % page as u64) as usize) % page;
        bytes.resize(front, 0);
        Ok(Fitted { bytes, front })
    }

    /// An empty buffer with room for `len` bytes; a larger one than the pool's is not kept afterwards.
    pub(crate) fn take(&self, len: usize) -> Result<Pooled, TryReserveError> {
        let idle = if len <= self.room { self.idle().pop() } else { None };
        let bytes = match idle {
            Some(buffer) => buffer,
            None => with_room(len.max(self.room))?,
        };
        Ok(Pooled { bytes, home: self.clone(), large: len > self.room })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back to its pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Pooled {
    bytes: Vec<u8>,
    home: Pool,
    large: bool,
}

/// A buffer whose place in memory fits its content's place in an object; see [`Pool::take_for`].
#[derive(Debug)]
pub(crate) struct Fitted {
    bytes: Pooled,
    front: usize,
}

impl Fitted {
    /// Bytes of the content.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.front
    }

    /// Bytes that can be added where the buffer is.
    pub(crate) fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// Appends to the content.
    pub(crate) fn extend_from_slice(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// The content.
    pub(crate) fn content(&self) -> &[u8] {
        &self.bytes[self.front..]
    }

    /// The content, to be passed on. The buffer goes back to its pool when everybody has done with it.
    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self.bytes).slice(self.front..)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut idle = self.home.idle();
        if !self.large && idle.len() < self.home.keep {
            idle.push(bytes);
        }
    }
}

impl Deref for Pooled {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_no_more_are_kept_than_asked_for() {
        let pool = Pool::new(100, 1);
        let (mut one, two) = (pool.take(10).unwrap(), pool.take(100).unwrap());
        one.extend_from_slice(b"something");
        let place = one.as_ptr();
        drop(one);
        drop(two);
        drop(pool.take(1000).unwrap());
        let again = pool.take(50).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert_ne!(pool.take(50).unwrap().as_ptr(), place);
    }

    #[test]
    fn pages_of_an_object_are_pages_of_memory() {
        let pool = Pool::new(100_000, 1);
        for offset in [0, 1, 4095, 4096, 5_000_000_001] {
            let mut fitted = pool.take_for(offset, 90_000).unwrap();
            assert!(fitted.len() == 0 && fitted.room() >= 90_000);
            let content: Vec<u8> = (0..9_000_u32).flat_map(u32::to_le_bytes).collect();
            fitted.extend_from_slice(&content[..5]);
            fitted.extend_from_slice(&content[5..]);
            assert_eq!(fitted.content(), content);
            let bytes = fitted.into_bytes();
            assert_eq!(bytes, content);
            let to_page = (page_size() as u64 - offset % page_size() as u64) as usize % page_size();
            assert_eq!(bytes[to_page..].as_ptr().align_offset(page_size()), 0, "{offset}");
        }
    }

    #[test]
    fn large_buffers_are_mapped_and_small_ones_exact() {
        assert_eq!(with_room(100).unwrap().capacity(), 100);
        assert!(with_room(LARGE_BYTES).unwrap().capacity() >= MAPPED_BYTES);
        assert!(with_room(64 << 20).unwrap().capacity() >= 64 << 20);
        assert!(with_room(usize::MAX / 2).is_err());
    }
}
