//! Finds uids that stand twice on one date, in bounded memory.
//!
//! A sort by fingerprint brings repetitions together; the few whose repetition comes earliest are looked at again,
//! text by text, when the files themselves come by. Fingerprints are 128 bits of SHA-256, so that nobody can make
//! different uids that crowd the real ones out of the few.

use sha2::{Digest, Sha256};

use super::sorter::Sorter;
use super::spool::Spool;
use super::{DuplicateUid, PlanError};
use crate::ids::Uid;
use crate::manifest::Position;
use crate::routing::ShardDate;
use crate::segment::SegmentFile;

const PRINT_BYTES: usize = 16;
const KEY_BYTES: usize = PRINT_BYTES + 8;
/// How many suspects are kept.
const KEPT: usize = 8;

/// Collects one fingerprint a file.
pub(super) struct Fingerprints {
    sorter: Sorter<KEY_BYTES>,
}

impl Fingerprints {
    pub(super) fn new(spool: Spool, limit: usize) -> Self {
        Self { sorter: Sorter::new(spool, limit) }
    }

    /// Takes the `sequence`th file of the plan.
    pub(super) fn push(&mut self, date: ShardDate, uid: &Uid, sequence: u64) -> Result<(), PlanError> {
        let mut hash = Sha256::new();
        hash.update(date_bytes(date));
        hash.update(uid.as_str().as_bytes());
        let print = hash.finalize();
        let mut key = [0; KEY_BYTES];
        key[..PRINT_BYTES].copy_from_slice(&print[..PRINT_BYTES]);
        key[PRINT_BYTES..].copy_from_slice(&sequence.to_be_bytes());
        self.sorter.push(key, &[])
    }

    /// The suspects.
    pub(super) fn finish(self) -> Result<Suspects, PlanError> {
        let mut sorted = self.sorter.finish()?;
        let mut suspects = Suspects::default();
        let mut first_of_print: Option<([u8; PRINT_BYTES], u64)> = None;
        while let Some((key, _)) = sorted.next(&mut Vec::new())? {
            let (print, sequence) = split_key(key);
            match first_of_print {
                Some((same, first)) if same == print => suspects.add(first, sequence),
                _ => first_of_print = Some((print, sequence)),
            }
        }
        Ok(suspects)
    }
}

fn date_bytes(date: ShardDate) -> [u8; 4] {
    let [high, low] = date.year.to_be_bytes();
    [high, low, date.month, date.day]
}

fn split_key(key: [u8; KEY_BYTES]) -> ([u8; PRINT_BYTES], u64) {
    let (mut print, mut sequence) = ([0; PRINT_BYTES], [0; 8]);
    print.copy_from_slice(&key[..PRINT_BYTES]);
    sequence.copy_from_slice(&key[PRINT_BYTES..]);
    (print, u64::from_be_bytes(sequence))
}

/// A file whose fingerprint stands twice.
struct Seen {
    date: ShardDate,
    uid: Uid,
    position: Position,
}

struct Suspect {
    first: u64,
    second: u64,
    first_seen: Option<Seen>,
    second_seen: Option<Seen>,
}

/// Pairs of files with one fingerprint, those with the earliest repetitions, to be compared as texts.
#[derive(Default)]
pub(super) struct Suspects {
    pairs: Vec<Suspect>,
    repetitions: u64,
}

impl Suspects {
    fn add(&mut self, first: u64, second: u64) {
        self.repetitions += 1;
        let at = self.pairs.partition_point(|pair| pair.second < second);
        if at < KEPT {
            self.pairs.insert(at, Suspect { first, second, first_seen: None, second_seen: None });
            self.pairs.truncate(KEPT);
        }
    }

    /// No file is under suspicion.
    pub(super) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Looks at the `sequence`th file of the plan.
    pub(super) fn look(&mut self, sequence: u64, date: ShardDate, position: Position, file: &SegmentFile) {
        for pair in &mut self.pairs {
            let place = match sequence {
                n if n == pair.first => &mut pair.first_seen,
                n if n == pair.second => &mut pair.second_seen,
                _ => continue,
            };
            *place = Some(Seen { date, uid: file.uid.clone(), position });
        }
    }

    /// The earliest real repetition, after all files were looked at.
    pub(super) fn verdict(self) -> Option<DuplicateUid> {
        let more = self.repetitions.saturating_sub(1);
        self.pairs.into_iter().find_map(|pair| {
            let (first, second) = (pair.first_seen?, pair.second_seen?);
            let real = first.date == second.date && first.uid == second.uid;
            real.then_some(DuplicateUid {
                uid: first.uid,
                date: first.date,
                first: first.position,
                second: second.position,
                more,
            })
        })
    }
}
