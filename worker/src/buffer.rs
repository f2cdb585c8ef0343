//! Large buffers that go back to the operating system when they are dropped.
//!
//! glibc keeps what was freed below a threshold that it raises up to 32 MiB, in one arena for each thread that
//! allocated. Parts and large files, allocated on one thread and dropped on another, then pile up: 275 MiB at the peak
//! of a pack that never holds more than 110. What is allocated above 32 MiB is always mapped and unmapped by itself, and
//! costs only the pages that are written.

use std::collections::TryReserveError;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_mapped_and_small_ones_exact() {
        assert_eq!(with_room(100).unwrap().capacity(), 100);
        assert!(with_room(LARGE_BYTES).unwrap().capacity() >= MAPPED_BYTES);
        assert!(with_room(64 << 20).unwrap().capacity() >= 64 << 20);
        assert!(with_room(usize::MAX / 2).is_err());
    }
}
