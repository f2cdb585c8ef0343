//! Cuts groups into shards, one at a time.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::sync::Arc;

use super::planner::FILE_KEY_BYTES;
use super::record;
use super::sorter::{Held, Sorted};
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
    /// The place of its first record, as [`GroupStore`] counts.
    pub(super) place: u64,
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
        bytes[8..16].copy_from_slice(&self.place.to_le_bytes());
        bytes[16..].copy_from_slice(&self.files.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], n_bits: NBits) -> Option<Self> {
        let bytes: &[u8; GROUP_PAYLOAD_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| bytes[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let date = ShardDate { year: u16::from_le_bytes([bytes[0], bytes[1]]), month: bytes[2], day: bytes[3] };
        let index = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        Some(Self { slot: Slot { date, index, n_bits }, place: word(8)?, files: word(16)? })
    }
}

/// The records of all groups, group behind group. A place in it is a position in memory, and an offset on disk.
pub(super) enum GroupStore {
    Memory(Held<FILE_KEY_BYTES>),
    Disk { file: BufReader<File>, at: u64 },
}

impl GroupStore {
    pub(super) fn disk(spool: &Spool, mut file: File) -> Result<Self, PlanError> {
        file.rewind().map_err(|error| spool.error("reading", error))?;
        Ok(Self::Disk { file: BufReader::with_capacity(BUFFER_BYTES, file), at: 0 })
    }

    /// The record at a place, which may lie in `buffer`, and the place behind it.
    fn read<'a>(&'a mut self, place: u64, buffer: &'a mut Vec<u8>) -> io::Result<(&'a [u8], u64)> {
        match self {
            Self::Memory(held) => {
                let record = usize::try_from(place).ok().and_then(|at| held.payload_in_turn(at));
                Ok((record.ok_or(io::ErrorKind::UnexpectedEof)?, place + 1))
            }
            Self::Disk { file, at } => {
                // Within the buffer this is no system call.
                file.seek_relative(place.cast_signed() - at.cast_signed())?;
                let mut length = [0; 4];
                file.read_exact(&mut length)?;
                buffer.resize(u32::from_le_bytes(length) as usize, 0);
                file.read_exact(buffer)?;
                *at = place + (length.len() + buffer.len()) as u64;
                Ok((buffer, *at))
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

/// What a file counts for beside its texts where names are bounded. It decides where shards end, so it stays what it was when
/// records had this many bytes more than their texts.
const FILE_BYTES: usize = 37;

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
        let Some((_, payload)) = self.groups.order.next(&mut self.record)? else { return Ok(None) };
        Group::decode(payload, self.n_bits).map(Some).ok_or_else(|| damaged(&self.spool))
    }

    /// Takes files from the group until one does not fit.
    fn cut(&mut self, group: &mut Group, number: u32) -> Result<PlannedShard, PlanError> {
        let mut shard = PlannedShard { slot: group.slot, number, files: FileList::new(), source_bytes: 0 };
        let mut name_bytes = 0;
        while group.files > 0 {
            let read = self.groups.store.read(group.place, &mut self.record);
            let (record, behind) = read.map_err(|error| self.spool.error("reading", error))?;
            let file = record::view(record).ok_or_else(|| damaged(&self.spool))?;
            let length = FILE_BYTES + file.texts.iter().map(|text| text.len()).sum::<usize>();
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
            group.place = behind;
        }
        Ok(shard)
    }
}

/// What was written to the spool, or kept in memory, does not read back.
pub(super) fn damaged(spool: &Spool) -> PlanError {
    spool.error("reading", io::Error::new(io::ErrorKind::InvalidData, "a spooled record reads back changed"))
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
