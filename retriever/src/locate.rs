//! From a uid and a slot to the entry of the shard that wins.

use std::sync::Arc;
use std::time::Duration;

use des_shared::archive::{ArchiveError, Lookup, RemoteShard};
use des_shared::clock::Clock;
use des_shared::routing::Slot;
use des_shared::shard::Entry;
use des_shared::store::ObjectMeta;
use futures::{StreamExt, stream};

use crate::cache::{IndexCache, Listing};
use crate::error::Error;
use crate::places::Replica;

/// Shards of one slot looked at side by side for one request.
const SHARDS_AT_ONCE: usize = 16;
/// A slot is listed anew for the sake of a miss at most this often, so that a new shard is seen at once and nobody can
/// make the store list all day.
const MISS_RELIST_MS: u64 = 1000;

/// A file, found.
#[derive(Clone, Debug)]
pub(crate) struct Located {
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
    pub(crate) clock: Arc<dyn Clock>,
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
        let ttl_ms = match freshness {
            Freshness::Cached => self.listing_ttl.as_millis() as u64,
            Freshness::New => 0,
        };
        let (listing, own) = self.cache.listing(replica, slot, ttl_ms).await?;
        let found = self.search(replica, &listing, uid).await?.under(&listing, uid);
        let may_relist = self.clock.now_ms().saturating_sub(listing.missed_ms) >= MISS_RELIST_MS;
        // Behind a tombstone the file may have been packed again.
        let settled = found.best.is_some() && found.deleted_ms.is_none();
        if settled || own || !may_relist {
            return Ok(found);
        }
        let newer = self.cache.newer_listing(replica, slot, &listing).await?;
        if newer.shards == listing.shards {
            return Ok(found);
        }
        Ok(self.search(replica, &newer, uid).await?.under(&newer, uid))
    }

    async fn search(&self, replica: &Arc<Replica>, listing: &Arc<Listing>, uid: &str) -> Result<Found, Error> {
        // Most slots have one shard: no need for the machinery.
        if let [object] = &listing.shards[..] {
            let mut found = Found::default();
            found.add(self.in_shard(replica, object, uid).await)?;
            return Ok(found);
        }
        let uid: Arc<str> = uid.into();
        let searches = (0..listing.shards.len()).map(|at| {
            let (this, replica, listing, uid) = (self.clone(), replica.clone(), listing.clone(), uid.clone());
            async move { this.in_shard(&replica, &listing.shards[at], &uid).await }
        });
        let mut results = stream::iter(searches).buffer_unordered(SHARDS_AT_ONCE);
        let mut found = Found::default();
        while let Some(result) = results.next().await {
            found.add(result)?;
        }
        Ok(found)
    }

    async fn in_shard(&self, replica: &Replica, object: &ObjectMeta, uid: &str) -> Result<Option<Located>, Error> {
        let shard = self.cache.shard(replica, object).await?;
        let wrap = |e: ArchiveError| Error::at_zone(&replica.zone, e);
        let entry = match shard.look_up(uid).map_err(wrap)? {
            Lookup::Found(entry) => Some(entry),
            Lookup::Absent => None,
            Lookup::InBlock(number) => {
                let block = self.cache.block(replica, &shard, number).await?;
                block.find(uid).map_err(|e| wrap(shard.damaged(e)))?
            }
        };
        Ok(entry.map(|entry| Located { shard, entry }))
    }
}

impl Found {
    /// With what the slot's tombstones say. One hides what was packed before it, so the newest shard decides; where a
    /// damaged shard may hold something newer, what is deleted stays deleted.
    fn under(mut self, listing: &Listing, uid: &str) -> Self {
        let sequence = self.best.as_ref().map_or(0, |best| best.shard.sequence());
        self.deleted_ms = listing.deleted_ms(uid).filter(|time| *time > sequence);
        self
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
