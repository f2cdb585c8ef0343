//! What leads to a payload, in memory bounded by bytes: listings ([`listings`]), opened shards and index blocks (here),
//! and the files that are asked for most ([`payloads`]). [`disk`] keeps what was read of stores across restarts.
//!
//! Shards are immutable, so what is known of one stays true: it is kept under the object's key, entity tag and size, and
//! leaves only when room is needed. Whatever many requests want at once is read once: the others wait for it. Failures
//! are not kept.

pub(crate) mod disk;
mod heat;
mod listings;
pub(crate) mod memory;
mod payloads;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use des_shared::archive::{ArchiveError, RemoteShard};
use des_shared::clock::Clock;
use des_shared::routing::Slot;
use des_shared::shard::Block;
use des_shared::store::ObjectMeta;
use tokio::sync::Semaphore;

use self::heat::Heat;
use self::listings::Listings;
use self::memory::{CacheOptions, MemoryCache};
use crate::error::Error;
use crate::metrics::{CacheKind, RetrieverMetrics};
use crate::places::Replica;

#[cfg(feature = "s3-gateway")]
pub(crate) use listings::Listable;
pub(crate) use listings::{Age, Listed, Page, Tombstone};
pub(crate) use payloads::{PayloadKey, Payloads};

/// Shards of which all blocks are read at the same time, each in one read of up to [`MAX_HOT_READ_BYTES`].
const HOT_READS_AT_ONCE: usize = 2;
/// The most bytes of index blocks that are read at once. Of 100,000 files they are 1 to 2.6 MB.
const MAX_HOT_READ_BYTES: u64 = 8 << 20;
/// What a block takes in memory for each stored byte, at most in practice.
const BLOCK_GROWTH: u64 = 8;
/// What an entry of a cache takes beside its content: key, links, counters.
pub(super) const ENTRY_OVERHEAD: usize = 256;

/// One immutable object. Made once for each listing, so that looking it up costs no text and no hashing.
#[derive(Debug)]
pub(crate) struct ObjectId {
    store: u32,
    key: Box<str>,
    /// Entity tag and size.
    version: Box<str>,
    hash: u64,
}

impl ObjectId {
    pub(crate) fn new(store: u32, object: &ObjectMeta) -> Self {
        let version = format!("{} {}", object.etag, object.size);
        let mut hasher = DefaultHasher::new();
        (store, &object.key, &version).hash(&mut hasher);
        Self { store, key: object.key.as_str().into(), version: version.into(), hash: hasher.finish() }
    }

    fn weight(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.version.len()
    }
}

impl PartialEq for ObjectId {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.store == other.store && self.key == other.key && self.version == other.version
    }
}

impl Eq for ObjectId {}

impl Hash for ObjectId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Shard(Arc<ObjectId>),
    Block(Arc<ObjectId>, u32),
    /// All blocks of a shard, while they are being read.
    Blocks(Arc<ObjectId>),
}

#[derive(Clone)]
enum Value {
    Shard(Arc<RemoteShard>),
    Block(Arc<Block>),
    Blocks,
}

/// The cache of everything but payloads.
pub(crate) struct IndexCache {
    shards: Listings<Listed>,
    tombstones: Listings<Tombstone>,
    entries: MemoryCache<Key, Value>,
    heat: Heat,
    bytes: u64,
    hot_reads: Semaphore,
    metrics: RetrieverMetrics,
}

fn weight(key: &Key, value: &Value) -> u32 {
    let named = match key {
        Key::Shard(id) | Key::Block(id, _) | Key::Blocks(id) => id.weight(),
    };
    let content = match value {
        Value::Shard(shard) => shard.heap_bytes(),
        Value::Block(block) => block.heap_bytes(),
        Value::Blocks => 0,
    };
    u32::try_from(ENTRY_OVERHEAD + named + content).unwrap_or(u32::MAX)
}

impl IndexCache {
    /// A cache of `bytes`: an eighth for listings of shards, an eighth for what is deleted, the rest for indexes.
    pub(crate) fn new(bytes: u64, clock: Arc<dyn Clock>, metrics: RetrieverMetrics) -> Self {
        let listings = bytes / 8;
        let options = CacheOptions { capacity: bytes - 2 * listings, ..CacheOptions::default() };
        let entries = MemoryCache::weighed(options, weight);
        Self {
            shards: Listings::new(listings, clock.clone(), metrics.clone()),
            tombstones: Listings::new(listings, clock, metrics.clone()),
            entries,
            heat: Heat::new(),
            bytes,
            hot_reads: Semaphore::new(HOT_READS_AT_ONCE),
            metrics,
        }
    }

    /// The shards of a slot and of others of its day.
    pub(crate) async fn shards(&self, replica: &Replica, slot: Slot, age: Age) -> Result<Arc<Page<Listed>>, Error> {
        self.shards.page(replica, slot, age).await
    }

    /// What is deleted in a slot and in others of its day.
    pub(crate) async fn tombstones(
        &self,
        replica: &Replica,
        slot: Slot,
        age: Age,
    ) -> Result<Arc<Page<Tombstone>>, Error> {
        self.tombstones.page(replica, slot, age).await
    }

    /// What is known to be deleted, however old that is. The store is not asked.
    pub(crate) async fn known_tombstones(&self, replica: &Replica, slot: Slot) -> Option<Arc<Page<Tombstone>>> {
        self.tombstones.known(replica, slot).await
    }

    /// Makes what is known to be deleted in a slot unusable, because this process changed it: also a listing that is
    /// under way, which may have been answered before.
    pub(crate) fn changed(&self, replica: &Replica, slot: Slot) {
        self.tombstones.changed(replica, slot);
    }

    /// An opened shard.
    pub(crate) async fn shard(&self, replica: &Replica, listed: &Listed) -> Result<Arc<RemoteShard>, Error> {
        let key = Key::Shard(listed.id.clone());
        let load = move || async move {
            let opened = RemoteShard::open_listed(replica.source.clone(), &listed.meta).await;
            Ok(Value::Shard(Arc::new(opened.map_err(|e| Error::at_zone(&replica.zone, e))?)))
        };
        match self.get(CacheKind::Directory, replica, key, load).await? {
            Value::Shard(shard) => Ok(shard),
            Value::Block(_) | Value::Blocks => unreachable!("a shard's key leads to a shard"),
        }
    }

    /// An index block of an opened shard. Where many different ones are asked for in a short time, the others are read
    /// together with it.
    pub(crate) async fn block(
        &self,
        replica: &Replica,
        id: &Arc<ObjectId>,
        shard: &RemoteShard,
        number: usize,
    ) -> Result<Arc<Block>, Error> {
        let key = block_key(id, number);
        let load = move || async move {
            let wrap = |e: ArchiveError| Error::at_zone(&replica.zone, e);
            if let Some(block) = shard.kept_block(number).await.map_err(wrap)? {
                return Ok(Value::Block(Arc::new(block)));
            }
            if self.heat.is_hot(id).await && self.may_read_all(shard) {
                self.read_all(replica, id, shard).await?;
                if let Some(block) = self.entries.get(&block_key(id, number)).await {
                    return Ok(block);
                }
            }
            Ok(Value::Block(Arc::new(shard.block(number).await.map_err(wrap)?)))
        };
        match self.get(CacheKind::Block, replica, key, load).await? {
            Value::Block(block) => Ok(block),
            Value::Shard(_) | Value::Blocks => unreachable!("a block's key leads to a block"),
        }
    }

    /// Whether all blocks of a shard fit into memory beside what else is wanted there.
    fn may_read_all(&self, shard: &RemoteShard) -> bool {
        let bytes = shard.blocks_range().map_or(0, |range| range.end - range.start);
        bytes <= MAX_HOT_READ_BYTES.min(self.bytes / 4 / BLOCK_GROWTH)
    }

    /// Reads all blocks of a shard that are not here, in one read.
    async fn read_all(&self, replica: &Replica, id: &Arc<ObjectId>, shard: &RemoteShard) -> Result<(), Error> {
        let key = Key::Blocks(id.clone());
        let load = async {
            let _permit = self.hot_reads.acquire().await.expect("never closed");
            let missing = |number: &usize| !self.entries.contains_key(&block_key(id, *number));
            let numbers = 0..shard.blocks();
            let (Some(first), Some(last)) = (numbers.clone().find(missing), numbers.rev().find(missing)) else {
                return Ok(Value::Blocks);
            };
            let blocks = shard.read_blocks(first..last + 1).await;
            for (number, block) in blocks.map_err(|e| Error::at_zone(&replica.zone, e))? {
                match block {
                    Ok(block) => self.entries.insert(block_key(id, number), Value::Block(Arc::new(block))).await,
                    // Told to whoever asks for it.
                    Err(error) => tracing::debug!("read together with others: {error}"),
                }
            }
            Ok(Value::Blocks)
        };
        let read = self.entries.try_get_with(key.clone(), load).await;
        self.entries.invalidate(&key).await;
        read.map(drop)
    }

    /// The value of `key`, read with `load` when it is not there.
    async fn get<Load, Fut>(&self, kind: CacheKind, replica: &Replica, key: Key, load: Load) -> Result<Value, Error>
    where
        Load: FnOnce() -> Fut + Send,
        Fut: Future<Output = Result<Value, Error>> + Send,
    {
        if let Some(value) = self.entries.get(&key).await {
            self.metrics.cache_asked(kind, true);
            return Ok(value);
        }
        self.metrics.cache_asked(kind, false);
        // Made only now, and boxed: what a miss needs would make the future of every hit larger.
        let loading = Box::pin(self.entries.try_get_with(key, async {
            let _permit = replica.turns.reads.acquire().await.expect("never closed");
            load().await
        }));
        let value = loading.await?;
        self.metrics.cache_weighs(CacheKind::Directory, self.entries.weighted_size());
        Ok(value)
    }
}

fn block_key(id: &Arc<ObjectId>, number: usize) -> Key {
    // A directory has far fewer than 2^32 blocks: its size is limited.
    Key::Block(id.clone(), number as u32)
}
