//! Listings of a day's shards, and of what is deleted of a day.
//!
//! One listing serves all slots of a day. A day that does not fit into one page is listed slot by slot instead. How old a
//! listing may be is for the one who asks to say; one that is too old is replaced once for all who wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use des_shared::clock::Clock;
use des_shared::layout::parse_shard_name;
use des_shared::routing::{ShardDate, Slot};
use des_shared::store::{ListPage, ObjectMeta};
use des_shared::tombstone::{self, TOMBSTONES_PREFIX, UidHash};

use super::memory::{CacheOptions, MemoryCache};
use super::{ENTRY_OVERHEAD, ObjectId};
use crate::error::Error;
use crate::metrics::{CacheKind, RetrieverMetrics};
use crate::places::Replica;

/// Objects of one page of a listing.
const PAGE: usize = 1000;
/// How long it is remembered that a day has more than a page.
const LARGE_DAY_MS: u64 = 600_000;
/// Slots whose changes by this process are told apart; beyond, all listings begin anew.
const MAX_CHANGED: usize = 10_000;

/// How old a listing may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// Asked for less than this before now.
    Below(Duration),
    /// Asked for after now.
    New,
}

/// What is listed: shards or tombstones.
pub(crate) trait Listable: Sized + Ord + Send + Sync + 'static {
    /// The most of one slot that are looked at.
    const LIMIT: usize;
    /// For errors.
    const NAME: &'static str;
    const KIND: CacheKind;
    /// Prefix of a day's objects: those of a slot have the slot's number in hexadecimal and `_` behind it.
    fn prefix(date: ShardDate) -> String;
    /// The slot's number and the thing itself; `None` for whatever else lies there.
    fn parse(store: u32, like: Slot, object: ObjectMeta) -> Option<(u32, Self)>;
    fn weight(&self) -> usize;
}

/// A shard of a listing.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) meta: ObjectMeta,
    pub(crate) id: Arc<ObjectId>,
}

impl Listed {
    /// A shard of the store of this number.
    pub(crate) fn new(store: u32, meta: ObjectMeta) -> Self {
        let id = Arc::new(ObjectId::new(store, &meta));
        Self { meta, id }
    }
}

/// A file that is deleted, and when, Unix milliseconds.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tombstone(UidHash, u64);

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Listed {}

impl PartialOrd for Listed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Listed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.meta.key.cmp(&other.meta.key)
    }
}

impl Listable for Listed {
    /// A list of that many takes some 20 MB.
    const LIMIT: usize = 100_000;
    const NAME: &'static str = "shards";
    const KIND: CacheKind = CacheKind::Listing;

    fn prefix(date: ShardDate) -> String {
        format!("{date}_")
    }

    fn parse(store: u32, like: Slot, object: ObjectMeta) -> Option<(u32, Self)> {
        if object.key.contains('/') {
            return None;
        }
        let name = parse_shard_name(&object.key)?;
        let slot = Slot::parse(&name.slot, like.n_bits).ok()?;
        (slot.date == like.date).then(|| (slot.index, Self::new(store, object)))
    }

    fn weight(&self) -> usize {
        size_of::<Self>() + self.meta.key.len() + self.meta.etag.len() + self.id.weight()
    }
}

impl Listable for Tombstone {
    const LIMIT: usize = 1_000_000;
    const NAME: &'static str = "tombstones";
    const KIND: CacheKind = CacheKind::Tombstones;

    fn prefix(date: ShardDate) -> String {
        format!("{TOMBSTONES_PREFIX}{date}_")
    }

    fn parse(_: u32, like: Slot, object: ObjectMeta) -> Option<(u32, Self)> {
        let (hex, _) = object.key.strip_prefix(&Self::prefix(like.date))?.split_once('_')?;
        let index = u32::from_str_radix(hex, 16).ok()?;
        let (hash, deleted_ms) = tombstone::parse(&Slot { index, ..like }, &object.key)?;
        Some((index, Self(hash, deleted_ms)))
    }

    fn weight(&self) -> usize {
        size_of::<Self>()
    }
}

/// One listing, by slot.
#[derive(Debug)]
pub(crate) struct Page<T> {
    /// When it was asked for, Unix milliseconds.
    asked_ms: u64,
    /// The same in the order of what this process did.
    turn: u64,
    /// In order. `None`: the day has more than a page.
    slots: Option<HashMap<u32, Arc<[T]>>>,
}

impl<T> Page<T> {
    /// What lies in a slot, in order.
    pub(crate) fn of(&self, slot: Slot) -> &[T] {
        self.slots.as_ref().and_then(|slots| slots.get(&slot.index)).map_or(&[], |found| found)
    }
}

impl Page<Tombstone> {
    /// When a file of a slot was deleted last, Unix milliseconds; `None` when it never was.
    pub(crate) fn deleted_ms(&self, slot: Slot, uid: &str) -> Option<u64> {
        let all = self.of(slot);
        if all.is_empty() {
            return None;
        }
        let hash = UidHash::of(uid);
        let behind = all.partition_point(|stone| stone.0 <= hash);
        all[..behind].last().filter(|stone| stone.0 == hash).map(|stone| stone.1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Day(ShardDate),
    Slot(Slot),
}

type Key = (u32, Scope);

/// What makes a listing good enough for one request.
#[derive(Clone, Copy)]
struct Wanted {
    now_ms: u64,
    below_ms: u64,
    after_turn: u64,
}

impl Wanted {
    fn takes<T>(&self, page: &Page<T>) -> bool {
        let below_ms = if page.slots.is_some() { self.below_ms } else { LARGE_DAY_MS };
        let newer = page.turn > self.after_turn || page.slots.is_none();
        newer && self.now_ms.saturating_sub(page.asked_ms) < below_ms
    }
}

/// Changes by this process: nothing that was asked for before counts any more.
#[derive(Default)]
struct Changes {
    by_slot: HashMap<(u32, Slot), u64>,
    all: u64,
}

/// Listings of one kind, bounded by bytes.
pub(super) struct Listings<T> {
    pages: MemoryCache<Key, Arc<Page<T>>>,
    turns: AtomicU64,
    changes: RwLock<Changes>,
    clock: Arc<dyn Clock>,
    metrics: RetrieverMetrics,
}

fn weight<T: Listable>(_: &Key, page: &Arc<Page<T>>) -> u32 {
    let slots = page.slots.iter().flatten().map(|(_, found)| 64 + found.iter().map(T::weight).sum::<usize>());
    u32::try_from(ENTRY_OVERHEAD + slots.sum::<usize>()).unwrap_or(u32::MAX)
}

impl<T: Listable> Listings<T> {
    pub(super) fn new(bytes: u64, clock: Arc<dyn Clock>, metrics: RetrieverMetrics) -> Self {
        // A new listing is always worth more than the one that was asked for longest ago.
        let options = CacheOptions { capacity: bytes, least_recently_used: true, ..CacheOptions::default() };
        let pages = MemoryCache::weighed(options, weight);
        Self { pages, turns: AtomicU64::new(0), changes: RwLock::default(), clock, metrics }
    }

    /// A listing that has a slot and is not too old.
    pub(super) async fn page(&self, replica: &Replica, slot: Slot, age: Age) -> Result<Arc<Page<T>>, Error> {
        let wanted = self.wanted(replica, slot, age);
        let day = self.at(replica, slot, Scope::Day(slot.date), wanted).await?;
        if day.slots.is_some() {
            return Ok(day);
        }
        self.at(replica, slot, Scope::Slot(slot), wanted).await
    }

    /// What is known of a slot, however old.
    pub(super) async fn known(&self, replica: &Replica, slot: Slot) -> Option<Arc<Page<T>>> {
        let day = self.pages.get(&(replica.id, Scope::Day(slot.date))).await?;
        if day.slots.is_some() {
            return Some(day);
        }
        self.pages.get(&(replica.id, Scope::Slot(slot))).await
    }

    /// Makes all listings of a slot unusable that were asked for before now, those under way included.
    pub(super) fn changed(&self, replica: &Replica, slot: Slot) {
        let mut changes = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let turn = self.turn();
        if changes.by_slot.len() >= MAX_CHANGED {
            changes.by_slot.clear();
            changes.all = turn;
        }
        changes.by_slot.insert((replica.id, slot), turn);
    }

    fn turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn wanted(&self, replica: &Replica, slot: Slot, age: Age) -> Wanted {
        let changed = {
            // A map of numbers has no state that a panic could leave broken.
            let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
            let own = if changes.by_slot.is_empty() { None } else { changes.by_slot.get(&(replica.id, slot)) };
            changes.all.max(own.copied().unwrap_or_default())
        };
        let (below_ms, asked) = match age {
            Age::Below(age) if !age.is_zero() => (age.as_millis() as u64, 0),
            Age::Below(_) | Age::New => (u64::MAX, self.turn()),
        };
        Wanted { now_ms: self.clock.now_ms(), below_ms, after_turn: changed.max(asked) }
    }

    async fn at(&self, replica: &Replica, slot: Slot, scope: Scope, wanted: Wanted) -> Result<Arc<Page<T>>, Error> {
        let key = (replica.id, scope);
        if let Some(known) = self.pages.get(&key).await.filter(|known| wanted.takes(known)) {
            if known.slots.is_some() {
                self.metrics.cache_asked(T::KIND, true);
            }
            return Ok(known);
        }
        self.metrics.cache_asked(T::KIND, false);
        Box::pin(self.renewed(replica, slot, key, wanted)).await
    }

    async fn renewed(&self, replica: &Replica, slot: Slot, key: Key, wanted: Wanted) -> Result<Arc<Page<T>>, Error> {
        loop {
            if let Some(known) = self.pages.get(&key).await {
                if wanted.takes(&known) {
                    return Ok(known);
                }
                self.forget(key, &known).await;
            }
            let load = self.load(replica, slot, key.1);
            let page = self.pages.try_get_with(key, load).await?;
            // One that was under way already may be too old: then it is the next one's turn, which begins now.
            if wanted.takes(&page) {
                self.metrics.cache_weighs(T::KIND, self.pages.weighted_size());
                return Ok(page);
            }
        }
    }

    /// Drops a listing, unless it was replaced already.
    async fn forget(&self, key: Key, old: &Arc<Page<T>>) {
        self.pages.remove_if(key, |page| Arc::ptr_eq(page, old)).await;
    }

    async fn load(&self, replica: &Replica, slot: Slot, scope: Scope) -> Result<Arc<Page<T>>, Error> {
        let _permit = replica.turns.lists.acquire().await.expect("never closed");
        let (asked_ms, turn) = (self.clock.now_ms(), self.turn());
        let mut prefix = T::prefix(slot.date);
        if let Scope::Slot(slot) = scope {
            prefix.push_str(&slot.hex());
            prefix.push('_');
        }
        let mut slots: HashMap<u32, Vec<T>> = HashMap::new();
        let mut after = None::<String>;
        loop {
            let page = replica.source.store().list(&prefix, after.as_deref(), PAGE).await;
            let ListPage { objects, next } = page.map_err(|e| Error::at_zone(&replica.zone, e.into()))?;
            for (index, thing) in objects.into_iter().filter_map(|object| T::parse(replica.id, slot, object)) {
                slots.entry(index).or_default().push(thing);
            }
            match (next, scope) {
                (None, _) => break,
                (Some(_), Scope::Day(_)) => return Ok(Arc::new(Page { asked_ms, turn, slots: None })),
                (next, Scope::Slot(_)) => after = next,
            }
            if slots.values().map(Vec::len).sum::<usize>() > T::LIMIT {
                let (zone, slot) = (replica.zone.clone(), slot.to_string());
                return Err(Error::TooMany { zone, slot, what: T::NAME, limit: T::LIMIT });
            }
        }
        let sorted = slots.into_iter().map(|(index, mut found)| {
            found.sort_unstable();
            (index, found.into())
        });
        Ok(Arc::new(Page { asked_ms, turn, slots: Some(sorted.collect()) }))
    }
}
