//! A shard by its name.

use std::sync::Arc;

use des_shared::archive::RemoteShard;
use des_shared::layout::parse_shard_name;
use des_shared::routing::Slot;

use crate::cache::Age;
use crate::error::Error;
use crate::serve::{Files, shown};

impl Files {
    /// The zone of a shard's key, and its slot; `None` for what is no name of a shard here.
    pub(super) fn zone_of(&self, key: &str) -> Option<(&str, Slot)> {
        let name = parse_shard_name(key).filter(|_| !key.contains('/'))?;
        let zones = self.places.zones();
        let slot = Slot::parse(&name.slot, zones.n_bits()).ok()?;
        Some((&zones.zone_for(slot.index).ok()?.name, slot))
    }

    /// The shard of this key: opened, or out of the cache. The stores of its zone are asked in order.
    pub(super) async fn shard(&self, key: &str) -> Result<Arc<RemoteShard>, Error> {
        let unknown = || Error::ShardNotFound { key: shown(key) };
        let (_, slot) = self.zone_of(key).ok_or_else(unknown)?;
        let age = Age::Below(self.locator.listing_ttl);
        let mut failed = None;
        for replica in self.places.replicas(slot.index)? {
            let attempt = async {
                let listing = self.locator.cache.shards(replica, slot, age).await?;
                let listed = listing.of(slot).iter().find(|listed| listed.meta.key == key).ok_or_else(unknown)?;
                self.locator.cache.shard(replica, listed).await
            };
            match attempt.await {
                Ok(shard) => return Ok(shard),
                Err(error) if error.may_differ_elsewhere() => drop(failed.get_or_insert(error)),
                // A copy may lag behind: that it has no such shard proves nothing when another store failed.
                Err(error) => return Err(failed.unwrap_or(error)),
            }
        }
        Err(failed.unwrap_or_else(unknown))
    }
}
