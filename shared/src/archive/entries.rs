//! All entries of a shard as a stream, with one index block in memory at a time; and where those from a uid on are.

use std::ops::Range;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use bytes::Bytes;

use super::error::ArchiveError;
use super::remote::{OpenIndex, RemoteShard, V3Index};
use super::source::ReadKind;
use crate::shard::Entry;

/// Neighbouring index blocks are read together up to this many bytes.
const BLOCKS_READ_BYTES: u64 = 1 << 20;

/// Where a shard has its entries from a uid on.
pub enum EntriesFrom<'a> {
    /// In memory, in the byte order of their uids.
    Here(Box<dyn Iterator<Item = Result<Entry, ArchiveError>> + Send + 'a>),
    /// In the index blocks of these numbers, in this order; the first may hold lesser ones too.
    InBlocks(Range<usize>),
}

impl std::fmt::Debug for EntriesFrom<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(_) => f.write_str("Here"),
            Self::InBlocks(blocks) => f.debug_tuple("InBlocks").field(blocks).finish(),
        }
    }
}

/// Where the walk over the blocks is.
struct Walk<'a> {
    shard: &'a RemoteShard,
    v3: &'a V3Index,
    next: usize,
    /// Bytes read ahead and where they start in the shard.
    read: (u64, Bytes),
}

impl RemoteShard {
    /// All entries in the byte order of their uids, each or why it cannot be read. A damaged entry or index block is
    /// one error, and the others follow; the stream ends behind an error of the store.
    pub fn entries(&self) -> BoxStream<'_, Result<Entry, ArchiveError>> {
        match self.index() {
            OpenIndex::Legacy(index) => {
                stream::iter(index.entries().map(|entry| entry.map_err(|e| self.damaged(e)))).boxed()
            }
            OpenIndex::V3(v3) => {
                let walk = Walk { shard: self, v3, next: 0, read: (0, Bytes::new()) };
                stream::unfold(Some(walk), Walk::step).map(stream::iter).flatten().boxed()
            }
        }
    }

    /// Where the entries from these bytes on are, which need not be UTF-8. Nothing is read.
    pub fn entries_from(&self, uid: &[u8]) -> EntriesFrom<'_> {
        match self.index() {
            OpenIndex::Legacy(index) => {
                EntriesFrom::Here(Box::new(index.entries_from(uid).map(|entry| entry.map_err(|e| self.damaged(e)))))
            }
            OpenIndex::V3(v3) => {
                let all = v3.directory.len();
                EntriesFrom::InBlocks(v3.directory.find_from(uid).map_or(all, |block| block.number)..all)
            }
        }
    }
}

impl<'a> Walk<'a> {
    /// The entries of the next block, and the walk behind it.
    async fn step(walk: Option<Self>) -> Option<(Vec<Result<Entry, ArchiveError>>, Option<Walk<'a>>)> {
        let mut walk = walk?;
        let block = walk.v3.directory.block(walk.next)?;
        let bytes = match walk.bytes_of(block.range()).await {
            Ok(bytes) => bytes,
            Err(error) => return Some((vec![Err(error)], None)),
        };
        let parsed = match walk.shard.parse_block(walk.next, &bytes) {
            Ok(block) => block.entries().map(|entry| entry.map_err(|e| walk.shard.damaged(e))).collect(),
            Err(error) => vec![Err(error)],
        };
        walk.next += 1;
        Some((parsed, Some(walk)))
    }

    async fn bytes_of(&mut self, range: Range<u64>) -> Result<Bytes, ArchiveError> {
        if let Some(bytes) = self.v3.held(&range) {
            return Ok(bytes);
        }
        if range.start < self.read.0 || range.end > self.read.0 + self.read.1.len() as u64 {
            let mut end = range.end;
            let following = (self.next + 1..).map_while(|number| self.v3.directory.block(number));
            for block in following.take_while(|block| block.range().end - range.start <= BLOCKS_READ_BYTES) {
                end = block.range().end;
            }
            self.read = (range.start, self.shard.remote().read(range.start..end, ReadKind::Block).await?);
        }
        let from = (range.start - self.read.0) as usize;
        Ok(self.read.1.slice(from..from + (range.end - range.start) as usize))
    }
}
