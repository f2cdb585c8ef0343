//! What the soak reads: files made from a seed, in shards and beside them, and what each of them must be.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use des_shared::created_at::CreatedAt;
use des_shared::layout::bigfile_key;
use des_shared::routing::{NBits, candidate_slots};
use des_shared::segment::PackOptions;
use des_shared::shard::{Encoder, ShardWriter};
use des_shared::store::{SharedStore, WriteOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use super::{SoakError, failed};

/// Bits of the shard index.
pub(super) const N_BITS: u8 = 4;
const DAYS: [&str; 2] = ["2025-03-10T12:00:00Z", "2025-03-11T23:30:00-05:00"];
/// Of so many files one is an object of its own.
const BIG_EVERY: usize = 150;

/// A file and what has become of it.
#[derive(Debug)]
pub(super) struct File {
    pub(super) uid: String,
    pub(super) created_at: &'static str,
    pub(super) raw: Bytes,
    /// An object of its own.
    pub(super) big: bool,
    /// May be deleted.
    pub(super) mortal: bool,
    state: AtomicU8,
}

/// Whether a file is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    There,
    /// A deletion is under way, or nobody knows how it ended.
    Unsure,
    Deleted,
}

impl File {
    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::There,
            1 => State::Unsure,
            _ => State::Deleted,
        }
    }

    pub(super) fn set(&self, state: State) {
        self.state.fetch_max(state as u8, Ordering::SeqCst);
    }
}

/// All files, stored.
pub(super) struct Files {
    pub(super) all: Vec<File>,
    /// Where the payloads of each shard end: what is read before that is one.
    pub(super) data_ends: HashMap<String, u64>,
    pub(super) bytes: u64,
}

impl Files {
    /// Makes `count` files and writes their shards.
    pub(super) async fn store(store: &SharedStore, count: usize, seed: u64) -> Result<Self, SoakError> {
        let mut rng = StdRng::seed_from_u64(seed);
        let all: Vec<File> = (0..count).map(|number| make(&mut rng, number)).collect();
        let n_bits = NBits::new(N_BITS).map_err(SoakError)?;
        let mut shards: BTreeMap<String, BTreeMap<&str, &File>> = BTreeMap::new();
        for file in &all {
            let at = CreatedAt::parse(file.created_at).map_err(|e| failed("a date", e))?;
            let prefix = candidate_slots(&file.uid, &at, n_bits)[0].object_prefix();
            shards.entry(format!("{prefix}0000.des")).or_default().insert(&file.uid, file);
        }
        let mut data_ends = HashMap::new();
        for (key, files) in shards {
            let (bytes, data_end) = shard(store, &files).await?;
            put(store, &key, bytes).await?;
            data_ends.insert(key, data_end);
        }
        let bytes = all.iter().map(|file| file.raw.len() as u64).sum();
        Ok(Self { all, data_ends, bytes })
    }
}

async fn put(store: &SharedStore, key: &str, bytes: Vec<u8>) -> Result<(), SoakError> {
    let written = store.put(key, bytes.into(), &WriteOptions::overwrite()).await;
    written.map(drop).map_err(|e| failed("writing to the store", e))
}

/// A shard of these files, and where its payloads end. Big ones are written.
async fn shard(store: &SharedStore, files: &BTreeMap<&str, &File>) -> Result<(Vec<u8>, u64), SoakError> {
    let options = PackOptions::default();
    let wrong = |e| failed("making a shard", e);
    let mut writer = ShardWriter::new(options.format, None, 1).map_err(wrong)?;
    let mut encoder = Encoder::new(&options, None).map_err(wrong)?;
    let mut out = writer.header().to_vec();
    for (uid, file) in files {
        if file.big {
            let sha256 = Sha256::digest(&file.raw).into();
            writer.append_bigfile(uid, sha256, file.raw.len() as u64, None).map_err(wrong)?;
            put(store, &bigfile_key("_bigFiles", &sha256), file.raw.to_vec()).await?;
            continue;
        }
        let stored = encoder.encode(uid, &file.raw).map_err(wrong)?;
        writer.append(uid, &stored.info, None).map_err(wrong)?;
        out.extend_from_slice(&stored.bytes);
    }
    let data_end = out.len() as u64;
    out.extend_from_slice(&writer.finish().map_err(wrong)?);
    Ok((out, data_end))
}

fn make(rng: &mut StdRng, number: usize) -> File {
    let big = number % BIG_EVERY == BIG_EVERY - 1;
    let uid = match number % 4 {
        0 => number.to_string(),
        1 => format!("folder {}/\u{65e5}\u{672c}-{number} \u{e9}.txt", number % 7),
        2 => format!("{:016x}.json", rng.random::<u64>()),
        _ => format!("a%2Fb+c?{number}&d=#.bin"),
    };
    let len = match number % 50 {
        _ if big => rng.random_range(300_000..2_000_000),
        0 => 0,
        // As many below 1 KiB as above.
        _ => 1 << rng.random_range(5..15_u32) | rng.random_range(0..32),
    };
    let raw: Vec<u8> = if number.is_multiple_of(3) {
        (0..len).map(|_| rng.random()).collect()
    } else {
        let text = format!("{{\"number\": {number}, \"uid\": {uid:?}, \"tags\": [\"alpha\", \"beta\"]}}\n");
        text.into_bytes().into_iter().cycle().take(len).collect()
    };
    let mortal = !big && number % 10 == 3;
    File { uid, created_at: DAYS[number / 2 % 2], raw: raw.into(), big, mortal, state: AtomicU8::new(0) }
}
