//! What one store has of one date: its shards and what is deleted. Listed at once for all slots, and kept as long as the
//! listing of a slot is.

use std::sync::Arc;
use std::time::Duration;

use des_shared::clock::Clock;
use des_shared::layout::parse_shard_name;
use des_shared::routing::{NBits, ShardDate, Slot};
use des_shared::store::ObjectMeta;
use des_shared::tombstone::{self, TOMBSTONES_PREFIX, UidHash};

use crate::cache::memory::{CacheOptions, MemoryCache};
use crate::cache::{Listable, Listed};
use crate::error::Error;
use crate::places::Replica;

/// The most shards of one date that are listed; they take some 50 MB.
const MAX_SHARDS: usize = 250_000;
/// The most tombstones of one date; they take 32 bytes each.
const MAX_TOMBSTONES: usize = 1_000_000;
/// Objects of one page of a store's listing.
const PAGE: usize = 1000;
/// Bytes of all views that are kept.
const KEPT_BYTES: u64 = 64 << 20;

/// The shards and tombstones of a date.
#[derive(Debug)]
pub(super) struct DateView {
    /// With the shard index of the slot that the name says.
    pub(super) shards: Vec<(u32, Listed)>,
    /// Shard index of the slot, file, and time of the deletion; sorted.
    tombstones: Vec<(u32, UidHash, u64)>,
    /// When it was asked for, Unix milliseconds.
    pub(super) asked_ms: u64,
}

impl DateView {
    /// When a file of a slot was deleted last, Unix milliseconds.
    pub(super) fn deleted_ms(&self, index: u32, uid: &str) -> Option<u64> {
        if self.tombstones.is_empty() {
            return None;
        }
        let wanted = (index, UidHash::of(uid));
        let behind = self.tombstones.partition_point(|(index, hash, _)| (*index, *hash) <= wanted);
        let last = self.tombstones[..behind].last();
        last.filter(|(index, hash, _)| (*index, *hash) == wanted).map(|(_, _, time)| *time)
    }

    fn weight(&self) -> u32 {
        let shards: usize = self.shards.iter().map(|(_, listed)| size_of::<u32>() + listed.weight()).sum();
        let tombstones = self.tombstones.len() * size_of::<(u32, UidHash, u64)>();
        u32::try_from(shards + tombstones + size_of::<Self>()).unwrap_or(u32::MAX)
    }
}

/// Views by store and date.
pub(super) struct Views {
    kept: MemoryCache<(u32, ShardDate), Arc<DateView>>,
    clock: Arc<dyn Clock>,
    ttl: Duration,
    n_bits: NBits,
}

impl Views {
    pub(super) fn new(n_bits: NBits, clock: Arc<dyn Clock>, ttl: Duration) -> Self {
        let options = CacheOptions { capacity: KEPT_BYTES, ..CacheOptions::default() };
        let kept = MemoryCache::weighed(options, |_, view: &Arc<DateView>| view.weight());
        Self { kept, clock, ttl, n_bits }
    }

    /// True when something asked for at this time is still good.
    pub(super) fn is_fresh(&self, asked_ms: u64) -> bool {
        self.now_ms().saturating_sub(asked_ms) < self.ttl.as_millis() as u64
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// What a store has of a date: two calls for each thousand objects, none while the last answer is fresh.
    pub(super) async fn of(&self, replica: &Replica, date: ShardDate) -> Result<Arc<DateView>, Error> {
        let key = (replica.id, date);
        if self.kept.get(&key).await.is_some_and(|view| !self.is_fresh(view.asked_ms)) {
            self.kept.invalidate(&key).await;
        }
        self.kept.try_get_with(key, self.list(replica, date)).await
    }

    /// Drops what is known, because it led to an object that is gone.
    pub(super) async fn forget(&self, replica: &Replica, date: ShardDate) {
        self.kept.invalidate(&(replica.id, date)).await;
    }

    async fn list(&self, replica: &Replica, date: ShardDate) -> Result<Arc<DateView>, Error> {
        let asked_ms = self.now_ms();
        let shard = |object: ObjectMeta| {
            let name = parse_shard_name(&object.key).filter(|_| !object.key.contains('/'))?;
            Some((Slot::parse(&name.slot, self.n_bits).ok()?.index, Listed::new(replica.id, object)))
        };
        let buried = |object: ObjectMeta| {
            let name = object.key.strip_prefix(TOMBSTONES_PREFIX)?;
            let end = name.match_indices('_').nth(1)?.0;
            let slot = Slot::parse(&name[..end], self.n_bits).ok()?;
            tombstone::parse(&slot, &object.key).map(|(hash, time)| (slot.index, hash, time))
        };
        let tombstones = format!("{TOMBSTONES_PREFIX}{date}_");
        let (shards, mut tombstones) = tokio::try_join!(
            list(replica, date, (format!("{date}_"), "shards", MAX_SHARDS), shard),
            list(replica, date, (tombstones, "tombstones", MAX_TOMBSTONES), buried)
        )?;
        tombstones.sort_unstable();
        Ok(Arc::new(DateView { shards, tombstones, asked_ms }))
    }
}

/// What `keep` makes of all objects under a prefix, page by page, up to a number.
async fn list<T>(
    replica: &Replica,
    date: ShardDate,
    (prefix, what, limit): (String, &'static str, usize),
    keep: impl Fn(ObjectMeta) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let (mut found, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = replica.source.store().list(&prefix, after.as_deref(), PAGE).await;
        let page = page.map_err(|e| Error::at_zone(&replica.zone, e.into()))?;
        found.extend(page.objects.into_iter().filter_map(&keep));
        if found.len() > limit {
            return Err(Error::TooMany { zone: replica.zone.clone(), slot: date.to_string(), what, limit });
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}
