//! Cuts groups into shards, one at a time.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::sync::Arc;

use super::record;
use super::sorter::Sorted;
use super::spool::{PlanProgress, Spool};
use super::{MAX_FILES_PER_SHARD, MAX_SEGMENT_NAME_BYTES, PlanConfig, PlanError, PlannedShard};
use crate::routing::{NBits, ShardDate, Slot};
use crate::segment::FileList;

/// Small, because groups are read in another order than they lie: with millions of groups of a file or two each,
/// a buffer of 256 KiB was filled anew for each of them, and 10 million files took 304 s.
const BUFFER_BYTES: usize = 8 * 1024;
/// Length of [`Group::encode`].
pub(super) const GROUP_PAYLOAD_BYTES: usize = 24;

/// The files of one slot, in the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) slot: Slot,
    /// Where its first record starts.
    pub(super) offset: u64,
    /// How many records it has.
    pub(super) files: u64,
}

impl Group {
    pub(super) fn encode(&self) -> [u8; GROUP_PAYLOAD_BYTES] {
        let mut bytes = [0; GROUP_PAYLOAD_BYTES];
        bytes[..2].copy_from_slice(&self.slot.date.year.to_le_bytes());
        bytes[2] = self.slot.date.month;
        bytes[3] = self.slot.date.day;
        bytes[4..8].copy_from_slice(&self.slot.index.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..].copy_from_slice(&self.files.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], n_bits: NBits) -> Option<Self> {
        let bytes: &[u8; GROUP_PAYLOAD_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| bytes[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let date = ShardDate { year: u16::from_le_bytes([bytes[0], bytes[1]]), month: bytes[2], day: bytes[3] };
        let index = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        Some(Self { slot: Slot { date, index, n_bits }, offset: word(8)?, files: word(16)? })
    }
}

/// The records of all groups, group behind group.
pub(super) enum GroupStore {
    Memory(Vec<u8>),
    Disk { file: BufReader<File>, at: u64 },
}

impl GroupStore {
    pub(super) fn disk(spool: &Spool, mut file: File) -> Result<Self, PlanError> {
        file.rewind().map_err(|error| spool.error("reading", error))?;
        Ok(Self::Disk { file: BufReader::with_capacity(BUFFER_BYTES, file), at: 0 })
    }

    /// Reads the record at `offset` into `record`.
    fn read(&mut self, offset: u64, record: &mut Vec<u8>) -> io::Result<()> {
        let mut length = [0; 4];
        match self {
            Self::Memory(bytes) => {
                let mut rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                rest.read_exact(&mut length)?;
                record.resize(u32::from_le_bytes(length) as usize, 0);
                rest.read_exact(record)
            }
            Self::Disk { file, at } => {
                // Within the buffer this is no system call.
                file.seek_relative(offset.cast_signed() - at.cast_signed())?;
                file.read_exact(&mut length)?;
                record.resize(u32::from_le_bytes(length) as usize, 0);
                file.read_exact(record)?;
                *at = offset + (length.len() + record.len()) as u64;
                Ok(())
            }
        }
    }
}

/// All groups of a plan.
pub(super) struct Groups {
    /// Keyed by the position of their first file, with [`Group::encode`] as payload.
    pub(super) order: Sorted<8>,
    pub(super) store: GroupStore,
    /// How many there are.
    pub(super) slots: u64,
}

/// Bounds of one shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    pub(super) source_bytes: u64,
    pub(super) files: usize,
    pub(super) name_bytes: usize,
}

/// The group being cut.
struct OpenGroup {
    group: Group,
    /// The number of its next shard.
    number: u32,
}

/// The shards of a plan, in order. It ends after the first error.
pub struct PlannedShards {
    caps: Caps,
    n_bits: NBits,
    spool: Spool,
    progress: Arc<PlanProgress>,
    groups: Groups,
    open: Option<OpenGroup>,
    record: Vec<u8>,
    ended: bool,
}

impl PlannedShards {
    pub(super) fn new(config: &PlanConfig, spool: Spool, progress: Arc<PlanProgress>, groups: Groups) -> Self {
        let caps = Caps {
            source_bytes: config.max_shard_size,
            files: MAX_FILES_PER_SHARD,
            name_bytes: MAX_SEGMENT_NAME_BYTES,
        };
        Self { caps, n_bits: config.n_bits, spool, progress, groups, open: None, record: Vec::new(), ended: false }
    }

    /// How many files the plan has.
    pub fn files(&self) -> u64 {
        self.progress.files()
    }

    /// Sum of their sizes in bytes, as the manifest says.
    pub fn source_bytes(&self) -> u64 {
        self.progress.source_bytes()
    }

    /// How many slots the plan touches; there are at least as many shards.
    pub fn slots(&self) -> u64 {
        self.groups.slots
    }

    /// Counters to watch from another thread.
    pub fn progress(&self) -> Arc<PlanProgress> {
        Arc::clone(&self.progress)
    }

    #[cfg(test)]
    pub(super) fn with_caps(mut self, files: usize, name_bytes: usize) -> Self {
        self.caps = Caps { files, name_bytes, ..self.caps };
        self
    }

    fn next_shard(&mut self) -> Result<Option<PlannedShard>, PlanError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => match self.next_group()? {
                Some(group) => OpenGroup { group, number: 0 },
                None => return Ok(None),
            },
        };
        let shard = self.cut(&mut open.group, open.number)?;
        self.progress.files_planned(shard.files.len() as u64);
        if open.group.files > 0 {
            open.number = open.number.checked_add(1).ok_or(PlanError::TooManyShards(open.group.slot))?;
            self.open = Some(open);
        }
        Ok(Some(shard))
    }

    fn next_group(&mut self) -> Result<Option<Group>, PlanError> {
        if self.groups.order.next(&mut self.record)?.is_none() {
            return Ok(None);
        }
        Group::decode(&self.record, self.n_bits).map(Some).ok_or_else(|| self.damaged())
    }

    /// Takes files from the group until one does not fit.
    fn cut(&mut self, group: &mut Group, number: u32) -> Result<PlannedShard, PlanError> {
        let mut shard = PlannedShard { slot: group.slot, number, files: FileList::new(), source_bytes: 0 };
        let mut name_bytes = 0;
        while group.files > 0 {
            let read = self.groups.store.read(group.offset, &mut self.record);
            read.map_err(|error| self.spool.error("reading", error))?;
            let length = self.record.len();
            let file = record::view(&self.record).ok_or_else(|| self.damaged())?;
            // A first file always fits, however large. A sum that does not fit 64 bits is over any limit.
            let sum = shard.source_bytes.checked_add(file.size_bytes).filter(|sum| *sum <= self.caps.source_bytes);
            let room = shard.files.len() < self.caps.files && name_bytes + length <= self.caps.name_bytes;
            if !shard.files.is_empty() && (sum.is_none() || !room) {
                break;
            }
            shard.source_bytes = sum.unwrap_or(file.size_bytes);
            name_bytes += length;
            shard.files.push_texts(file.size_bytes, file.texts);
            group.files -= 1;
            group.offset += (size_of::<u32>() + length) as u64;
        }
        Ok(shard)
    }

    fn damaged(&self) -> PlanError {
        let error = io::Error::new(io::ErrorKind::InvalidData, "a spooled record reads back changed");
        self.spool.error("reading", error)
    }
}

impl Iterator for PlannedShards {
    type Item = Result<PlannedShard, PlanError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.next_shard().transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}
