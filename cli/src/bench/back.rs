//! Every file looked up and read back, in a random order, and compared with its source.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use des_shared::archive::RemoteShard;
use des_shared::clock::Dice;
use des_shared::created_at::CreatedAt;
use des_shared::layout::SHARD_SUFFIX;
use des_shared::routing::{DateRule, NBits, Slot};
use des_shared::shard::Entry;
use des_shared::store::local::LocalStore;
use des_shared::store::{SharedStore, list_all};
use futures::TryStreamExt;

use super::choose::{Chosen, DAY, Source};
use crate::error::CliError;
use crate::output::{Measure, Screen};

/// What came back.
#[derive(Debug, Default)]
pub(super) struct ReadBack {
    /// Files looked up, and how long that took.
    pub(super) looked_up: u64,
    pub(super) look_ups: Duration,
    /// Files read, their bytes, and how long reading the payloads took.
    pub(super) read: u64,
    pub(super) bytes: u64,
    pub(super) reads: Duration,
    /// Files equal to their source.
    pub(super) equal: u64,
    /// Files whose source was changed while this ran.
    pub(super) changed: u64,
    /// Files that are in no shard.
    pub(super) missing: u64,
    /// The first that differs though its source is as it was.
    pub(super) wrong: Option<String>,
    /// Entries and bytes of all indexes: blocks, directories and footers.
    pub(super) entries: u64,
    pub(super) index_bytes: u64,
    pub(super) shards: u64,
}

/// Opens the shards in a folder, then reads every file.
///
/// # Errors
/// When a shard cannot be opened or read.
pub(super) async fn read_back(
    folder: &Path,
    chosen: &Chosen,
    (seed, began_ms): (u64, u64),
    screen: Screen,
) -> Result<ReadBack, CliError> {
    let mut back = ReadBack::default();
    let shards = open(folder, &mut back).await?;
    let bits = NBits::new(4).expect("4 is in 4 to 16");
    let day = CreatedAt::parse(DAY).expect("a time");
    let mut order: Vec<&Source> = chosen.files.iter().collect();
    shuffle(&mut order, &Dice::seeded(seed));
    let mut found: Vec<(&Source, &RemoteShard, Entry)> = Vec::with_capacity(order.len());
    for file in order {
        let uid = file.uid();
        let began = Instant::now();
        let slot = Slot::for_new(&uid, &day, bits, DateRule::Utc).object_prefix();
        let mut hit = None;
        for shard in shards.get(&slot).into_iter().flatten() {
            if let Some(entry) = shard.find(&uid).await? {
                hit = Some((file, shard, entry));
                break;
            }
        }
        back.look_ups += began.elapsed();
        back.looked_up += 1;
        match hit {
            Some(hit) => found.push(hit),
            None => back.missing += 1,
        }
    }
    let mut meter = screen.meter("reading back");
    for (file, shard, entry) in found {
        let began = Instant::now();
        let bytes = shard.read(&entry).await?;
        back.reads += began.elapsed();
        back.read += 1;
        back.bytes += bytes.len() as u64;
        back.compare(file, &bytes, began_ms);
        meter.set(&Measure { files: back.read, bytes: back.bytes, ..Measure::default() });
    }
    meter.finish();
    Ok(back)
}

/// All shards, by what the names of their slots start with.
async fn open(folder: &Path, back: &mut ReadBack) -> Result<HashMap<String, Vec<RemoteShard>>, CliError> {
    let store: SharedStore = Arc::new(LocalStore::open(folder)?);
    let objects: Vec<_> = list_all(store.clone(), String::new()).try_collect().await?;
    let mut shards: HashMap<String, Vec<RemoteShard>> = HashMap::new();
    for object in objects.into_iter().filter(|object| object.key.ends_with(SHARD_SUFFIX)) {
        let shard = RemoteShard::open(store.clone(), &object.key).await?;
        back.shards += 1;
        back.entries += shard.len();
        let blocks = shard.blocks_range().map_or(0, |range| range.end - range.start);
        // The footer lies between the directory's end and that of the shard.
        let rest = shard.footer().map_or(0, |footer| footer.file_size - footer.directory_offset);
        back.index_bytes += blocks + rest;
        let slot = object.key.splitn(3, '_').take(2).fold(String::new(), |slot, part| slot + part + "_");
        shards.entry(slot).or_default().push(shard);
    }
    Ok(shards)
}

impl ReadBack {
    fn compare(&mut self, file: &Source, bytes: &[u8], began_ms: u64) {
        if std::fs::read(&file.path).is_ok_and(|source| source == bytes) {
            self.equal += 1;
        } else if is_changed(file, began_ms) {
            self.changed += 1;
        } else if self.wrong.is_none() {
            self.wrong = Some(format!("{} came back with other bytes", file.path.display()));
        }
    }
}

/// Whether the source is not the one that was packed.
fn is_changed(file: &Source, began_ms: u64) -> bool {
    let Ok(meta) = std::fs::metadata(&file.path) else { return true };
    let changed_ms = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| at.as_millis());
    meta.len() != file.size || changed_ms.is_none_or(|at| at >= u128::from(began_ms))
}

/// Fisher and Yates's.
fn shuffle<T>(items: &mut [T], dice: &Dice) {
    for at in (1..items.len()).rev() {
        let other = usize::try_from(dice.up_to(at as u64)).unwrap_or(at);
        items.swap(at, other);
    }
}
