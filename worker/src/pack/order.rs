//! The order in which the files of a segment go into its shard.

use des_shared::segment::{FileView, Segment, ShardFormat};

/// A batch of small files is at most this many bytes by the manifest.
pub(crate) const BATCH_BYTES: u64 = 1 << 20;
/// A batch has at most this many files.
const BATCH_FILES: usize = 128;

/// Packing order: by the bytes of the uid in version 3, as planned in version 2.
#[derive(Debug)]
pub(crate) struct Order {
    /// Positions in the segment's list.
    files: Vec<u32>,
    /// Positions whose uid stands further ahead already. The planner refuses such manifests; a shard must not fail.
    duplicates: Vec<u32>,
}

/// Files that are handled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchPlan {
    /// First position in packing order.
    pub(crate) start: usize,
    /// Behind the last.
    pub(crate) end: usize,
    /// Bytes they need in memory.
    pub(crate) bytes: u64,
    /// One file that becomes an object of its own.
    pub(crate) big: bool,
}

/// Whether a file becomes an object of its own.
pub(crate) fn is_big(segment: &Segment, size_bytes: u64) -> bool {
    size_bytes > segment.options.big_file_threshold_bytes.min(des_shared::job::MAX_INLINE_BYTES)
}

impl Order {
    pub(crate) fn of(segment: &Segment) -> Self {
        let uid = |at: u32| segment.files.uid(at);
        let sorted = segment.files.by_uid();
        let mut duplicates: Vec<u32> =
            sorted.windows(2).filter(|pair| uid(pair[0]) == uid(pair[1])).map(|pair| pair[1]).collect();
        duplicates.sort_unstable();
        let mut files = match segment.options.format {
            ShardFormat::V3 => sorted,
            ShardFormat::V2 => (0..segment.files.len() as u32).collect(),
        };
        if !duplicates.is_empty() {
            files.retain(|at| duplicates.binary_search(at).is_err());
        }
        Self { files, duplicates }
    }

    pub(crate) fn duplicates(&self) -> &[u32] {
        &self.duplicates
    }

    /// Positions in the segment's list of a stretch of the order.
    pub(crate) fn files(&self, plan: &BatchPlan) -> &[u32] {
        &self.files[plan.start..plan.end]
    }

    /// The file at a position in packing order.
    pub(crate) fn file<'a>(&self, segment: &'a Segment, at: usize) -> FileView<'a> {
        segment.files.at(self.files[at])
    }

    /// All files in packing order.
    pub(crate) fn all<'a>(&'a self, segment: &'a Segment) -> impl Iterator<Item = FileView<'a>> {
        self.files.iter().map(|at| segment.files.at(*at))
    }

    /// The batch that starts at a position; `None` at the end.
    pub(crate) fn batch(&self, segment: &Segment, start: usize, part_bytes: usize) -> Option<BatchPlan> {
        let size = |at: usize| self.files.get(at).map(|position| segment.files.size_bytes(*position));
        let first = size(start)?;
        if is_big(segment, first) {
            // Streamed: one part is filled while another is uploaded.
            return Some(BatchPlan { start, end: start + 1, bytes: 2 * part_bytes as u64, big: true });
        }
        let (mut end, mut bytes) = (start + 1, first);
        while let Some(next) = size(end)
            && end - start < BATCH_FILES
            && bytes.saturating_add(next) <= BATCH_BYTES
            && !is_big(segment, next)
        {
            (end, bytes) = (end + 1, bytes + next);
        }
        Some(BatchPlan { start, end, bytes, big: false })
    }
}
