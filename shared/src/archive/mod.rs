//! Reading shards where they are: the IO on top of the decoders of [`crate::shard`].
//!
//! [`RemoteShard`] opens a shard with one read of its end, finds a uid with at most one more, and reads the payload
//! with another. [`open_big_file`] streams the objects that lie beside shards. [`verify`] reads everything there is.
//!
//! Invariants:
//! - Nothing leaves this module unchecked: lengths, checksums and hashes are compared first, and an error names the
//!   store, the shard, and the uid and offset where they are known.
//! - All reads of an opened shard are of the same object: one that was replaced in between is an error.
//! - Memory is bounded by one index and one window of payloads, not by the shard.
//! - Nobody is asked for a range of zero bytes.

mod bigfile;
mod blocks;
mod entries;
mod error;
mod recording;
mod remote;
mod source;
mod span;
mod verify;

pub use bigfile::{BigFileStream, check_big_file, open_big_file};
pub use blocks::BigFileBlocks;
pub use entries::EntriesFrom;
pub use error::ArchiveError;
pub use recording::{RecordedCall, RecordingStore, Streams};
pub use remote::{Lookup, RemoteShard};
pub use source::{OnRead, ReadCache, ReadKind, Source};
pub use span::Span;
pub use verify::{Depth, Progress, Report, VerifyEvent, verify};

/// Work on more bytes than this is done on a blocking thread, so that other requests are not held up.
const OFFLOAD_BYTES: u64 = 256 * 1024;

/// Runs `work`, which handles `bytes` bytes: at once when they are few, otherwise on a blocking thread. A panic there
/// is passed on.
pub async fn offload<T, F>(bytes: u64, work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if bytes <= OFFLOAD_BYTES {
        return work();
    }
    crate::offload::offload(work).await
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
