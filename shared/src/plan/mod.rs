//! From a stream of manifest entries to planned shards, in memory that does not grow with the manifest.
//!
//! The rules are those of the existing implementation (the golden file `planner.json`): files are grouped by slot,
//! groups come in the order of their first file, files keep their order in a group, and a group is cut next-fit: a
//! file that would push a shard over the limit starts the next one, and a file larger than the limit has one alone.
//!
//! How it stays small: [`Planner::push`] hands every file to an external sort by (slot, position). At the end the
//! groups come out of it one by one, a second, tiny sort orders them by their first file, and [`PlannedShards`] reads
//! one shard at a time. A third sort, by a fingerprint of (date, uid), finds duplicates first. What fits the memory
//! limit stays where the sort has it and never touches the disk; everything else is laid, group behind group, into
//! unlinked files, which vanish with the process that opened them, however it ends.

mod duplicates;
mod planner;
mod record;
mod shards;
mod sorter;
mod spool;

use std::io;
use std::path::PathBuf;

use crate::ids::{TaskId, Uid};
use crate::manifest::{ManifestError, Position};
use crate::routing::{DateRule, NBits, ShardDate, Slot};
use crate::segment::{FileList, PackOptions, Segment};

pub use planner::{Planner, plan_manifest};
pub use shards::PlannedShards;
pub use spool::PlanProgress;

/// The most files of one shard, however small they are: a bound on a segment, which a worker holds in memory.
pub const MAX_FILES_PER_SHARD: usize = 500_000;

/// The most bytes of file names, sources and sizes in one segment, before compression: the same bound for long names.
pub const MAX_SEGMENT_NAME_BYTES: usize = 64 << 20;

/// What a plan needs to know.
#[derive(Clone, Debug)]
pub struct PlanConfig {
    /// Width of the shard index.
    pub n_bits: NBits,
    /// A shard ends before the file that would make it larger than this many source bytes. At least 1.
    pub max_shard_size: u64,
    /// Which date files are filed under.
    pub date_rule: DateRule,
    /// Planning holds about this many bytes; what is beyond goes to `spool_dir`. Read and write buffers, a few
    /// MiB, and the shard being handed out come on top.
    pub memory_limit_bytes: usize,
    /// An existing folder for temporary files.
    pub spool_dir: PathBuf,
}

impl PlanConfig {
    /// The existing implementation's defaults (8 bits, shards of 1,000,000,000 bytes), the UTC date, 256 MiB of
    /// memory, and the system's folder for temporary files.
    pub fn new() -> Self {
        Self {
            n_bits: NBits::default(),
            max_shard_size: 1_000_000_000,
            date_rule: DateRule::default(),
            memory_limit_bytes: 256 << 20,
            spool_dir: std::env::temp_dir(),
        }
    }
}

impl Default for PlanConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// One shard to pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedShard {
    /// Date and index its files share.
    pub slot: Slot,
    /// NNNN: counts the shards of the slot in this plan from 0.
    pub number: u32,
    /// Its files in the order of the manifest; at least one.
    pub files: FileList,
    /// Sum of their sizes in bytes, as the manifest says.
    pub source_bytes: u64,
}

impl PlannedShard {
    /// The shard as a task's segment.
    pub fn into_segment(self, task: TaskId, sequence: u64, options: PackOptions) -> Segment {
        Segment { task, slot: self.slot, number: self.number, sequence, options, files: self.files }
    }
}

/// How many shards a group of `source_bytes` takes at least. The existing tool prints this as its estimate; next-fit
/// can need more, and a group of empty files counts as none.
///
/// `max_shard_size` is at least 1, as [`Planner::new`] checks.
pub fn estimated_shards(source_bytes: u64, max_shard_size: u64) -> u64 {
    source_bytes.div_ceil(max_shard_size.max(1))
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The configuration is wrong. It must be corrected.
    #[error("{0}")]
    Config(String),
    /// The manifest cannot be read or is wrong; see the inner error.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A uid stands twice on one date, so one of the two could never be read. The manifest must be corrected.
    #[error(transparent)]
    Duplicate(Box<DuplicateUid>),
    /// The spool folder failed: full, gone, read-only. Planning can be tried again with another or an emptier one.
    #[error("{action} in the spool folder {} failed after {written} bytes were spooled: {source}; planning needs free space there of about twice the manifest's size", dir.display())]
    Spool {
        /// The folder.
        dir: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Bytes written there before.
        written: u64,
        /// What the system said.
        source: io::Error,
    },
    /// More shards of one slot than a number in their name can count.
    #[error("slot {0} needs more than 4294967295 shards; a larger max_shard_size makes fewer")]
    TooManyShards(Slot),
}

/// A uid that stands more than once on one date of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("uid {:?} stands twice on the date {date}: at {first} and at {second}{}; expected once, because only one of them could be read", shortened(uid), more_text(*more))]
pub struct DuplicateUid {
    /// The uid.
    pub uid: Uid,
    /// The date both are filed under.
    pub date: ShardDate,
    /// Where it stands first.
    pub first: Position,
    /// Where it stands again. Of several duplicates in a manifest, the one whose repetition comes first.
    pub second: Position,
    /// How many more repetitions the manifest has, of this or other uids.
    pub more: u64,
}

fn shortened(uid: &Uid) -> String {
    let mut text: String = uid.as_str().chars().take(200).collect();
    if text.len() < uid.as_str().len() {
        text.push_str("...");
    }
    text
}

fn more_text(more: u64) -> String {
    if more == 0 { String::new() } else { format!(" (and {more} more repetitions)") }
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
