//! One cache, bounded by bytes, for everything that leads to a payload: listings of slots, opened shards, index
//! blocks.
//!
//! Shards are immutable, so what is known of one stays true: its entries are keyed by the object's entity tag and
//! leave only when room is needed. A listing is trusted for a while. Whatever many requests want at once is read once:
//! the others wait for it. Failures are not kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use des_shared::archive::{ArchiveError, RemoteShard};
use des_shared::clock::Clock;
use des_shared::layout::parse_shard_name;
use des_shared::routing::Slot;
use des_shared::shard::Block;
use des_shared::store::ObjectMeta;
use des_shared::tombstone::{self, UidHash};
use moka::future::Cache;
use moka::ops::compute::Op;
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::metrics::RetrieverMetrics;
use crate::places::Replica;

/// The most shards of one slot that are searched; a list of that many takes some 20 MB.
const MAX_SHARDS_OF_SLOT: usize = 100_000;
/// The most tombstones of one slot that are looked at; they take 24 bytes each.
const MAX_TOMBSTONES_OF_SLOT: usize = 1_000_000;
/// Objects of one page of a listing.
const PAGE: usize = 1000;
/// Listings, tails and blocks read at the same time: each takes memory that is not the cache's.
const READS_AT_ONCE: usize = 64;
/// What an entry of the cache takes beside its content: key, links, counters.
const ENTRY_OVERHEAD: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Listing { store: u32, slot: Slot },
    Shard(ObjectId),
    Block(ObjectId, u32),
}

/// One immutable object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ObjectId {
    store: u32,
    key: Arc<str>,
    /// Entity tag and size.
    version: Arc<str>,
}

#[derive(Clone)]
enum Value {
    Listing(Arc<Listing>),
    Shard(Arc<RemoteShard>),
    Block(Arc<Block>),
}

/// The shards of a slot in one store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    /// In the order of their keys.
    pub(crate) shards: Arc<Vec<ObjectMeta>>,
    /// What is deleted.
    tombstones: Arc<Tombstones>,
    /// When it was asked for, Unix milliseconds.
    asked_ms: u64,
    /// When a miss last led to a new listing of this slot; 0 for never.
    pub(crate) missed_ms: u64,
}

/// What is still good of an older listing.
#[derive(Default)]
struct Kept {
    missed_ms: u64,
    /// With when they were asked for.
    shards: Option<(Arc<Vec<ObjectMeta>>, u64)>,
    tombstones: Option<Arc<Tombstones>>,
}

/// What is deleted in a slot.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tombstones {
    /// File and time, in this order.
    all: Vec<(UidHash, u64)>,
    asked_ms: u64,
}

impl Listing {
    /// When a file was deleted last, Unix milliseconds; `None` when it never was.
    pub(crate) fn deleted_ms(&self, uid: &str) -> Option<u64> {
        let all = &self.tombstones.all;
        if all.is_empty() {
            return None;
        }
        let hash = UidHash::of(uid);
        let behind = all.partition_point(|(other, _)| *other <= hash);
        all[..behind].last().filter(|(other, _)| *other == hash).map(|(_, time)| *time)
    }
}

/// The cache.
pub(crate) struct IndexCache {
    entries: Cache<Key, Value>,
    reads: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
    metrics: RetrieverMetrics,
}

fn weight(key: &Key, value: &Value) -> u32 {
    let object = |id: &ObjectId| id.key.len() + id.version.len();
    let named = match key {
        Key::Listing { .. } => 0,
        Key::Shard(id) | Key::Block(id, _) => object(id),
    };
    let content = match value {
        Value::Listing(listing) => {
            let shards: usize =
                listing.shards.iter().map(|o| size_of::<ObjectMeta>() + o.key.len() + o.etag.len()).sum();
            shards + size_of::<(UidHash, u64)>() * listing.tombstones.all.len()
        }
        Value::Shard(shard) => shard.heap_bytes(),
        Value::Block(block) => block.heap_bytes(),
    };
    u32::try_from(ENTRY_OVERHEAD + named + content).unwrap_or(u32::MAX)
}

impl IndexCache {
    pub(crate) fn new(bytes: u64, clock: Arc<dyn Clock>, metrics: RetrieverMetrics) -> Self {
        let entries = Cache::builder().max_capacity(bytes).weigher(weight).build();
        Self { entries, reads: Arc::new(Semaphore::new(READS_AT_ONCE)), clock, metrics }
    }

    /// The value of `key`, read with `load` when it is not there. True when this very call read it.
    async fn get<F>(&self, key: Key, load: F) -> Result<(Value, bool), Error>
    where
        F: Future<Output = Result<Value, Error>>,
    {
        let loaded = AtomicBool::new(false);
        let counted = async {
            loaded.store(true, Ordering::Relaxed);
            let _permit = self.reads.acquire().await.expect("never closed");
            load.await
        };
        let value = self.entries.try_get_with(key, counted).await.map_err(|e| Error::clone(&e))?;
        let loaded = loaded.into_inner();
        self.metrics.cache_asked(!loaded);
        if loaded {
            self.metrics.cache_weighs(self.entries.weighted_size());
        }
        Ok((value, loaded))
    }

    /// The shards of a slot and what is deleted there, both as listings not older than `max_age_ms` have them. True when
    /// this very call listed the shards.
    pub(crate) async fn listing(
        &self,
        replica: &Replica,
        slot: Slot,
        max_age_ms: u64,
    ) -> Result<(Arc<Listing>, bool), Error> {
        let key = Key::Listing { store: replica.id, slot };
        let mut keep = Kept::default();
        if let Some(Value::Listing(known)) = self.entries.get(&key).await {
            let now = self.clock.now_ms();
            let fresh = |asked_ms: u64| now.saturating_sub(asked_ms) < max_age_ms;
            let (shards, tombstones) = (fresh(known.asked_ms), fresh(known.tombstones.asked_ms));
            if shards && tombstones {
                self.metrics.cache_asked(true);
                return Ok((known, false));
            }
            keep = Kept {
                missed_ms: known.missed_ms,
                shards: shards.then(|| (known.shards.clone(), known.asked_ms)),
                tombstones: tombstones.then(|| known.tombstones.clone()),
            };
            self.forget(&key, &known).await;
        }
        let kept_shards = keep.shards.is_some();
        let (listing, loaded) = self.listed(key, replica, slot, keep).await?;
        Ok((listing, loaded && !kept_shards))
    }

    /// Shards newer than those of `old`, which did not lead to what somebody wanted.
    pub(crate) async fn newer_listing(
        &self,
        replica: &Replica,
        slot: Slot,
        old: &Arc<Listing>,
    ) -> Result<Arc<Listing>, Error> {
        let key = Key::Listing { store: replica.id, slot };
        self.forget(&key, old).await;
        let tombstones = Some(old.tombstones.clone());
        let keep = Kept { missed_ms: self.clock.now_ms(), shards: None, tombstones };
        Ok(self.listed(key, replica, slot, keep).await?.0)
    }

    /// Drops what is known of a slot, because this process changed it.
    pub(crate) async fn changed(&self, replica: &Replica, slot: Slot) {
        self.entries.invalidate(&Key::Listing { store: replica.id, slot }).await;
    }

    /// Drops a listing, unless it was replaced already.
    async fn forget(&self, key: &Key, old: &Arc<Listing>) {
        let decide = |entry: Option<moka::Entry<Key, Value>>| {
            let same = entry.is_some_and(|e| matches!(e.value(), Value::Listing(l) if Arc::ptr_eq(l, old)));
            std::future::ready(if same { Op::Remove } else { Op::Nop })
        };
        self.entries.entry(key.clone()).and_compute_with(decide).await;
    }

    async fn listed(&self, key: Key, replica: &Replica, slot: Slot, keep: Kept) -> Result<(Arc<Listing>, bool), Error> {
        let load = async {
            let now = self.clock.now_ms();
            let shards = async {
                match keep.shards {
                    Some(known) => Ok::<_, Error>(known),
                    None => Ok((Arc::new(list_shards(replica, slot).await?), now)),
                }
            };
            let tombstones = async {
                match keep.tombstones {
                    Some(known) => Ok::<_, Error>(known),
                    None => Ok(Arc::new(Tombstones { all: list_tombstones(replica, slot).await?, asked_ms: now })),
                }
            };
            let ((shards, asked_ms), tombstones) = tokio::try_join!(shards, tombstones)?;
            let missed_ms = keep.missed_ms;
            Ok(Value::Listing(Arc::new(Listing { shards, tombstones, asked_ms, missed_ms })))
        };
        match self.get(key, load).await? {
            (Value::Listing(listing), loaded) => Ok((listing, loaded)),
            _ => unreachable!("a listing's key leads to a listing"),
        }
    }

    /// An opened shard.
    pub(crate) async fn shard(&self, replica: &Replica, object: &ObjectMeta) -> Result<Arc<RemoteShard>, Error> {
        let load = async {
            let opened = RemoteShard::open_listed(replica.source.clone(), object).await;
            Ok(Value::Shard(Arc::new(opened.map_err(|e| Error::at_zone(&replica.zone, e))?)))
        };
        match self.get(Key::Shard(object_id(replica, object)), load).await?.0 {
            Value::Shard(shard) => Ok(shard),
            _ => unreachable!("a shard's key leads to a shard"),
        }
    }

    /// An index block of an opened shard.
    pub(crate) async fn block(
        &self,
        replica: &Replica,
        shard: &RemoteShard,
        number: usize,
    ) -> Result<Arc<Block>, Error> {
        let wrap = |e: ArchiveError| Error::at_zone(&replica.zone, e);
        let load = async { Ok(Value::Block(Arc::new(shard.block(number).await.map_err(wrap)?))) };
        // A directory has far fewer than 2^32 blocks: its size is limited.
        let key = Key::Block(object_id(replica, shard.object()), number as u32);
        match self.get(key, load).await?.0 {
            Value::Block(block) => Ok(block),
            _ => unreachable!("a block's key leads to a block"),
        }
    }
}

fn object_id(replica: &Replica, object: &ObjectMeta) -> ObjectId {
    let version = format!("{} {}", object.etag, object.size);
    ObjectId { store: replica.id, key: object.key.as_str().into(), version: version.into() }
}

/// All shards of a slot. Whatever else lies under the prefix is not a shard and is left alone.
async fn list_shards(replica: &Replica, slot: Slot) -> Result<Vec<ObjectMeta>, Error> {
    let name = slot.to_string();
    let shard = |object: ObjectMeta| {
        let named = parse_shard_name(&object.key).is_some_and(|shard| shard.slot == name);
        (named && !object.key.contains('/')).then_some(object)
    };
    list_slot(replica, slot, (slot.object_prefix(), "shards", MAX_SHARDS_OF_SLOT), shard).await
}

/// What is deleted in a slot, sorted.
async fn list_tombstones(replica: &Replica, slot: Slot) -> Result<Vec<(UidHash, u64)>, Error> {
    let parse = |object: ObjectMeta| tombstone::parse(&slot, &object.key);
    let what = (tombstone::prefix(&slot), "tombstones", MAX_TOMBSTONES_OF_SLOT);
    let mut all = list_slot(replica, slot, what, parse).await?;
    all.sort_unstable();
    Ok(all)
}

/// What `keep` makes of all objects under a prefix, page by page, up to a number.
async fn list_slot<T>(
    replica: &Replica,
    slot: Slot,
    (prefix, what, limit): (String, &'static str, usize),
    keep: impl Fn(ObjectMeta) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let (mut found, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = replica.source.store().list(&prefix, after.as_deref(), PAGE).await;
        let page = page.map_err(|e| Error::at_zone(&replica.zone, e.into()))?;
        found.extend(page.objects.into_iter().filter_map(&keep));
        if found.len() > limit {
            return Err(Error::TooMany { zone: replica.zone.clone(), slot: slot.to_string(), what, limit });
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}
