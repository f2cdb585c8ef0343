//! Takes files in, groups them, and hands the groups on.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::sync::Arc;

use super::duplicates::{Fingerprints, Suspects};
use super::record;
use super::shards::{GROUP_PAYLOAD_BYTES, Group, GroupStore, Groups, PlannedShards, damaged};
use super::sorter::{Sorted, Sorter};
use super::spool::{PlanProgress, Spool};
use super::{PlanConfig, PlanError};
use crate::manifest::{ManifestEntry, ManifestError, ManifestReader, Position, SourceBase};
use crate::routing::{NBits, ShardDate, Slot};

/// Slot and position in the plan.
pub(super) const FILE_KEY_BYTES: usize = 16;
const BUFFER_BYTES: usize = 256 * 1024;

/// Plans a whole manifest, its sources resolved against `base`.
///
/// # Errors
/// [`PlanError::Manifest`] when the manifest is wrong or empty, otherwise as [`Planner`].
pub fn plan_manifest<R: Read>(
    manifest: ManifestReader<R>,
    base: &SourceBase,
    config: PlanConfig,
) -> Result<PlannedShards, PlanError> {
    let mut planner = Planner::new(config)?;
    for item in manifest {
        let (position, entry) = item?;
        planner.push(position, &entry.resolved(position, base)?)?;
    }
    if planner.progress().files() == 0 {
        return Err(ManifestError::Empty.into());
    }
    planner.finish()
}

/// Takes the files of a plan, in the order of the manifest.
pub struct Planner {
    config: PlanConfig,
    spool: Spool,
    progress: Arc<PlanProgress>,
    files: Sorter<FILE_KEY_BYTES>,
    fingerprints: Fingerprints,
    sequence: u64,
    record: Vec<u8>,
}

impl Planner {
    /// An empty plan.
    ///
    /// # Errors
    /// [`PlanError::Config`] when the maximum size is 0 or the spool folder is not a folder.
    pub fn new(config: PlanConfig) -> Result<Self, PlanError> {
        let progress = Arc::new(PlanProgress::default());
        let spool = Spool::new(config.spool_dir.clone(), Arc::clone(&progress));
        Self::with_spool(config, progress, spool)
    }

    pub(super) fn with_spool(config: PlanConfig, progress: Arc<PlanProgress>, spool: Spool) -> Result<Self, PlanError> {
        if config.max_shard_size == 0 {
            return Err(PlanError::Config("max_shard_size is 0; expected at least 1 byte".to_owned()));
        }
        if !config.spool_dir.is_dir() {
            let dir = config.spool_dir.display();
            return Err(PlanError::Config(format!("the spool folder {dir} is not a folder; expected one that exists")));
        }
        // While files come in, their sort and the fingerprints' hold memory; afterwards the groups', and, when
        // nothing was spooled, the files where the sort has them.
        let share = config.memory_limit_bytes / 5;
        Ok(Self {
            files: Sorter::new(spool.clone(), share * 3),
            fingerprints: Fingerprints::new(spool.clone(), share),
            config,
            spool,
            progress,
            sequence: 0,
            record: Vec::new(),
        })
    }

    /// Counters to watch from another thread.
    pub fn progress(&self) -> Arc<PlanProgress> {
        Arc::clone(&self.progress)
    }

    /// Takes the next file. `entry.source_path` goes into the plan as it is: resolve it first
    /// ([`ManifestEntry::resolved`]).
    ///
    /// # Errors
    /// [`PlanError::Spool`] when the spool folder fails.
    pub fn push(&mut self, position: Position, entry: &ManifestEntry) -> Result<(), PlanError> {
        let slot = Slot::for_new(entry.uid.as_str(), &entry.created_at, self.config.n_bits, self.config.date_rule);
        self.record.clear();
        record::encode(position, entry, &mut self.record);
        self.files.push(file_key(slot, self.sequence), &self.record)?;
        self.fingerprints.push(slot.date, &entry.uid, self.sequence)?;
        self.sequence += 1;
        self.progress.file_taken(entry.size_bytes);
        Ok(())
    }

    /// The plan: empty when no file was pushed.
    ///
    /// # Errors
    /// [`PlanError::Duplicate`] when a uid stands twice on one date, [`PlanError::Spool`] when the spool folder fails.
    pub fn finish(self) -> Result<PlannedShards, PlanError> {
        let suspects = self.fingerprints.finish()?;
        let groups_limit = self.config.memory_limit_bytes / 5;
        let mut grouping = Grouping {
            store: GroupWriter::new(&self.spool, self.files.spilled())?,
            groups: Sorter::new(self.spool.clone(), groups_limit),
            open: None,
            slots: 0,
        };
        let mut files = self.files.finish()?;
        let duplicate = lay_out(&mut files, &mut grouping, suspects, &self.config, &self.progress)?;
        if let Some(duplicate) = duplicate {
            return Err(PlanError::Duplicate(Box::new(duplicate)));
        }
        grouping.close_group()?;
        let groups =
            Groups { slots: grouping.slots, store: grouping.store.finish(files)?, order: grouping.groups.finish()? };
        Ok(PlannedShards::new(&self.config, self.spool, self.progress, groups))
    }
}

/// Lays all files into the store, group by group, and compares the suspects on the way.
fn lay_out(
    files: &mut Sorted<FILE_KEY_BYTES>,
    grouping: &mut Grouping,
    mut suspects: Suspects,
    config: &PlanConfig,
    progress: &PlanProgress,
) -> Result<Option<super::DuplicateUid>, PlanError> {
    let mut buffer = Vec::new();
    while let Some((key, record)) = files.next(&mut buffer)? {
        let (slot, sequence) = split_file_key(key, config.n_bits);
        if !suspects.is_empty() {
            let view = record::view(record);
            let file = view.as_ref().and_then(record::View::to_file).zip(view.as_ref());
            let (file, view) = file.ok_or_else(|| damaged(&grouping.store.spool))?;
            suspects.look(sequence, slot.date, view.position, &file);
        }
        grouping.add(slot, sequence, record)?;
        progress.file_grouped();
    }
    Ok(suspects.verdict())
}

fn file_key(slot: Slot, sequence: u64) -> [u8; FILE_KEY_BYTES] {
    let mut key = [0; FILE_KEY_BYTES];
    key[..2].copy_from_slice(&slot.date.year.to_be_bytes());
    key[2] = slot.date.month;
    key[3] = slot.date.day;
    key[4..8].copy_from_slice(&slot.index.to_be_bytes());
    key[8..].copy_from_slice(&sequence.to_be_bytes());
    key
}

fn split_file_key(key: [u8; FILE_KEY_BYTES], n_bits: NBits) -> (Slot, u64) {
    let [y0, y1, month, day, i0, i1, i2, i3, sequence @ ..] = key;
    let date = ShardDate { year: u16::from_be_bytes([y0, y1]), month, day };
    (Slot { date, index: u32::from_be_bytes([i0, i1, i2, i3]), n_bits }, u64::from_be_bytes(sequence))
}

/// Groups as they come out of the sort.
struct Grouping {
    store: GroupWriter,
    groups: Sorter<8>,
    open: Option<(u64, Group)>,
    slots: u64,
}

impl Grouping {
    fn add(&mut self, slot: Slot, sequence: u64, record: &[u8]) -> Result<(), PlanError> {
        if self.open.as_ref().is_none_or(|(_, group)| group.slot != slot) {
            self.close_group()?;
            self.slots += 1;
            self.open = Some((sequence, Group { slot, place: self.store.length, files: 0 }));
        }
        if let Some((_, group)) = &mut self.open {
            group.files += 1;
        }
        self.store.write(record)
    }

    fn close_group(&mut self) -> Result<(), PlanError> {
        let Some((first, group)) = self.open.take() else { return Ok(()) };
        let payload: [u8; GROUP_PAYLOAD_BYTES] = group.encode();
        self.groups.push(first.to_be_bytes(), &payload)
    }
}

/// Writes the files of all groups, group behind group, unless they stand so in memory already.
struct GroupWriter {
    spool: Spool,
    disk: Option<BufWriter<File>>,
    /// Where the next file goes: bytes on disk, files in memory.
    length: u64,
}

impl GroupWriter {
    fn new(spool: &Spool, on_disk: bool) -> Result<Self, PlanError> {
        let file = on_disk.then(|| spool.create()).transpose()?;
        let disk = file.map(|file| BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Self { spool: spool.clone(), disk, length: 0 })
    }

    fn write(&mut self, record: &[u8]) -> Result<(), PlanError> {
        let Some(file) = &mut self.disk else {
            self.length += 1;
            return Ok(());
        };
        let length = u32::try_from(record.len()).expect("records are a few MiB at most").to_le_bytes();
        self.length += (length.len() + record.len()) as u64;
        let written = file.write_all(&length).and_then(|()| file.write_all(record));
        written.map_err(|error| self.spool.error("writing", error))
    }

    /// `files` are the sorted ones, all of which came by.
    fn finish(self, files: Sorted<FILE_KEY_BYTES>) -> Result<GroupStore, PlanError> {
        match (self.disk, files) {
            (None, Sorted::Memory(held)) => Ok(GroupStore::Memory(held)),
            (Some(file), _) => {
                let file = file.into_inner().map_err(|error| self.spool.error("writing", error.into_error()))?;
                self.spool.wrote(self.length);
                GroupStore::disk(&self.spool, file)
            }
            (None, Sorted::Disk(_)) => unreachable!("what was spooled once is written to disk again"),
        }
    }
}
