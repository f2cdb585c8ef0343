//! From a uid and a slot to the entry of the shard that wins.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use des_shared::archive::{ArchiveError, Lookup, RemoteShard};
use des_shared::routing::Slot;
use des_shared::shard::Entry;
use futures::{StreamExt, stream};

use crate::cache::{Age, IndexCache, Listed, ObjectId, Page};
use crate::error::Error;
use crate::places::Replica;

/// Shards of one slot looked at side by side for one request.
const SHARDS_AT_ONCE: usize = 16;
/// How old the listing may be that says that there is no such file: a shard just published is seen at once, and nobody
/// can make the store list all day.
const MISS_AGE: Duration = Duration::from_secs(1);

/// A file, found.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// The shard's object, for what is kept of it.
    pub(crate) object: Arc<ObjectId>,
    pub(crate) shard: Arc<RemoteShard>,
    pub(crate) entry: Entry,
}

/// What a search of a slot found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The entry of the shard with the highest sequence, then key.
    pub(crate) best: Option<Located>,
    /// A shard of the slot that could not be searched because it is damaged: it might have held the uid.
    pub(crate) damage: Option<Box<ArchiveError>>,
    /// When the file was deleted, Unix milliseconds, where that hides `best`: nothing of it may be served.
    pub(crate) deleted_ms: Option<u64>,
}

/// Finds files. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Locator {
    pub(crate) cache: Arc<IndexCache>,
    pub(crate) listing_ttl: Duration,
}

/// How a listing may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// One from the cache will do.
    Cached,
    /// The last one led to an object that is gone.
    New,
}

impl Locator {
    /// Searches all shards of a slot in one store.
    pub(crate) async fn find(
        &self,
        replica: &Arc<Replica>,
        slot: Slot,
        uid: &str,
        freshness: Freshness,
    ) -> Result<Found, Error> {
        let age = match freshness {
            Freshness::Cached => Age::Below(self.listing_ttl),
            Freshness::New => Age::New,
        };
        let listing = self.cache.shards(replica, slot, age).await?;
        let found = self.in_listing(replica, slot, &listing, (uid, age)).await?;
        // Behind a tombstone the file may have been packed again.
        if found.best.is_some() && found.deleted_ms.is_none() {
            return Ok(found);
        }
        let newer = self.cache.shards(replica, slot, Age::Below(MISS_AGE)).await?;
        if Arc::ptr_eq(&newer, &listing) || newer.of(slot) == listing.of(slot) {
            return Ok(found);
        }
        self.in_listing(replica, slot, &newer, (uid, age)).await
    }

    /// What the shards of a listing have, and whether it is deleted.
    async fn in_listing(
        &self,
        replica: &Arc<Replica>,
        slot: Slot,
        listing: &Arc<Page<Listed>>,
        (uid, age): (&str, Age),
    ) -> Result<Found, Error> {
        let mut search = pin!(self.search(replica, slot, listing, uid));
        let (mut found, tombstones) = match futures::poll!(search.as_mut()) {
            // Nothing is there that a tombstone could hide: one that is known will do, and the store is not asked.
            Poll::Ready(Ok(found)) if found.is_empty() && age != Age::New => {
                (found, self.cache.known_tombstones(replica, slot).await)
            }
            Poll::Ready(found) => (found?, Some(self.cache.tombstones(replica, slot, age).await?)),
            Poll::Pending => {
                let both = tokio::try_join!(search, self.cache.tombstones(replica, slot, age))?;
                (both.0, Some(both.1))
            }
        };
        // A tombstone hides what was packed before it, so the newest shard decides; where a damaged shard may hold
        // something newer, what is deleted stays deleted.
        let sequence = found.best.as_ref().map_or(0, |best| best.shard.sequence());
        let deleted_ms = tombstones.and_then(|page| page.deleted_ms(slot, uid));
        found.deleted_ms = deleted_ms.filter(|time| *time > sequence);
        Ok(found)
    }

    async fn search(
        &self,
        replica: &Arc<Replica>,
        slot: Slot,
        listing: &Arc<Page<Listed>>,
        uid: &str,
    ) -> Result<Found, Error> {
        let mut found = Found::default();
        // Most slots have one shard: no need for the machinery.
        if let [listed] = listing.of(slot) {
            found.add(self.in_shard(replica, listed, uid).await)?;
            return Ok(found);
        }
        let uid: Arc<str> = uid.into();
        let searches = (0..listing.of(slot).len()).map(|at| {
            let (this, replica, listing, uid) = (self.clone(), replica.clone(), listing.clone(), uid.clone());
            async move { this.in_shard(&replica, &listing.of(slot)[at], &uid).await }
        });
        let mut results = stream::iter(searches).buffer_unordered(SHARDS_AT_ONCE);
        while let Some(result) = results.next().await {
            found.add(result)?;
        }
        Ok(found)
    }

    async fn in_shard(&self, replica: &Replica, listed: &Listed, uid: &str) -> Result<Option<Located>, Error> {
        let shard = self.cache.shard(replica, listed).await?;
        let wrap = |e: ArchiveError| Error::at_zone(&replica.zone, e);
        let entry = match shard.look_up(uid).map_err(wrap)? {
            Lookup::Found(entry) => Some(entry),
            Lookup::Absent => None,
            Lookup::InBlock(number) => {
                let block = self.cache.block(replica, &listed.id, &shard, number).await?;
                block.find(uid).map_err(|e| wrap(shard.damaged(e)))?
            }
        };
        Ok(entry.map(|entry| Located { object: listed.id.clone(), shard, entry }))
    }
}

impl Found {
    fn is_empty(&self) -> bool {
        self.best.is_none() && self.damage.is_none()
    }

    fn add(&mut self, result: Result<Option<Located>, Error>) -> Result<(), Error> {
        match result {
            Ok(None) => {}
            Ok(Some(located)) => {
                if self.best.as_ref().is_none_or(|best| located.rank() > best.rank()) {
                    self.best = Some(located);
                }
            }
            // One damaged shard does not make the others of its slot unreadable.
            Err(Error::Damaged { source, .. }) => {
                self.damage.get_or_insert(source);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Located {
    fn rank(&self) -> (u64, &str) {
        (self.shard.sequence(), &self.shard.object().key)
    }
}
