//! Several files of a shard out of one read.

use std::ops::Range;

use bytes::Bytes;

use super::error::ArchiveError;
use super::remote::RemoteShard;
use super::source::ReadKind;
use crate::shard::{Entry, Location, ShardError, check_stored};

/// Stored bytes of a shard from one place to another. The default is none, which is enough for an empty file.
#[derive(Clone, Debug, Default)]
pub struct Span {
    start: u64,
    bytes: Bytes,
}

impl RemoteShard {
    /// Reads the stored bytes from `range.start` up to but not including `range.end`, offsets in the shard, with one
    /// request. Nothing of them is checked yet: [`RemoteShard::stored_in`] does that for each file.
    ///
    /// # Errors
    /// [`ArchiveError`] when they cannot be read; [`ShardError::Usage`] in it for a range behind the shard's end.
    pub async fn read_span(&self, range: Range<u64>) -> Result<Span, ArchiveError> {
        if range.start > range.end || range.end > self.object().size {
            let detail = format!("bytes {range:?} lie behind its end, at {}", self.object().size);
            return Err(self.damaged(ShardError::Usage(detail)));
        }
        let start = range.start;
        let bytes = self.remote().read(range, ReadKind::Payload).await?;
        Ok(Span { start, bytes })
    }

    /// The stored bytes of an inline file out of a span that covers them, checked as
    /// [`RemoteShard::read_stored`] does. They share the span's memory.
    ///
    /// # Errors
    /// [`ArchiveError::Shard`] when they are damaged; [`ShardError::Usage`] in it when the span does not cover them, or
    /// for a big file.
    pub fn stored_in(&self, span: &Span, entry: &Entry) -> Result<Bytes, ArchiveError> {
        let range = match entry.location {
            Location::Inline(inline) if inline.stored_len > 0 => inline.range(),
            _ => span.start..span.start,
        };
        let covered = range.start >= span.start && range.end <= span.start + span.bytes.len() as u64;
        if !covered {
            let detail = format!("entry {:?} is not in the {} bytes at {}", entry.uid, span.bytes.len(), span.start);
            return Err(self.damaged(ShardError::Usage(detail)));
        }
        let stored = span.bytes.slice((range.start - span.start) as usize..(range.end - span.start) as usize);
        check_stored(entry, &stored).map_err(|e| self.damaged(e))?;
        Ok(stored)
    }
}
