//! Deleting a file: a tombstone in every store of its zone.
//!
//! The zone's own store decides whether the file is there. A copy that does not take the tombstone would go on serving
//! the file when it stands in, so the request is answered with an error then; sent again, it mends what is missing.

use std::sync::Arc;

use bytes::Bytes;
use des_shared::created_at::CreatedAt;
use des_shared::routing::{Slot, candidate_slots};
use des_shared::store::{ByteRange, StoreErrorKind, WriteOptions};
use des_shared::tombstone::{self, Reasons, Tombstone};

use crate::error::Error;
use crate::locate::Freshness;
use crate::places::Replica;
use crate::serve::{Files, shown};

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Deletion {
    pub(crate) uid: String,
    pub(crate) created_at: CreatedAt,
    pub(crate) why: Reasons,
}

/// What a slot has of the file.
struct State {
    slot: Slot,
    /// Sequence of the newest shard that holds it.
    sequence: Option<u64>,
    deleted_ms: Option<u64>,
}

impl Files {
    /// Deletes a file.
    pub(crate) async fn delete(&self, deletion: &Deletion, now_ms: u64) -> Result<Tombstone, Error> {
        let Deletion { uid, created_at, why } = deletion;
        let mut states = Vec::new();
        for slot in candidate_slots(uid, created_at, self.places.zones().n_bits()) {
            let own = &self.places.replicas(slot.index)?[0];
            let found = self.locator.find(own, slot, uid, Freshness::New).await?;
            if let Some(source) = found.damage.filter(|_| found.best.is_none() && found.deleted_ms.is_none()) {
                return Err(Error::Damaged { zone: own.zone.clone(), source });
            }
            let sequence = found.best.map(|located| located.shard.sequence());
            states.push(State { slot, sequence, deleted_ms: found.deleted_ms });
        }
        let standing: Vec<&State> = states.iter().filter(|s| s.sequence.is_some() && s.deleted_ms.is_none()).collect();
        let Some(newest) = standing.iter().filter_map(|state| state.sequence).max() else {
            return Err(self.gone_already(uid, &states).await?);
        };
        // Later than what it hides, also by a clock that is late.
        let tombstone = Tombstone::new(uid, created_at.as_str(), now_ms.max(newest + 1), why.clone());
        let bytes: Bytes = serde_json::to_vec(&tombstone).expect("a tombstone always encodes").into();
        for State { slot, .. } in standing {
            let key = tombstone::key(slot, uid, tombstone.deleted_ms);
            for replica in self.places.replicas(slot.index)? {
                self.bury(replica, *slot, &key, bytes.clone()).await?;
            }
        }
        let Reasons { deleted_by, reason, ticket_id, key_name } = why;
        tracing::info!(
            uid = shown(uid),
            created_at = created_at.as_str(),
            deleted_by,
            reason,
            ticket_id,
            key_name,
            "file deleted"
        );
        Ok(tombstone)
    }

    async fn bury(&self, replica: &Arc<Replica>, slot: Slot, key: &str, bytes: Bytes) -> Result<(), Error> {
        let written = replica.source.store().put(key, bytes, &WriteOptions::create_only()).await;
        // Also after an error, whose write may have happened.
        self.locator.cache.changed(replica, slot);
        match written {
            Ok(_) => Ok(()),
            // The answer to an earlier attempt of this very write was lost.
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(Error::at_zone(&replica.zone, e.into())),
        }
    }

    /// Why there is nothing to delete. Tombstones that a copy lacks are brought there first.
    async fn gone_already(&self, uid: &str, states: &[State]) -> Result<Error, Error> {
        let mut answer = Error::NotFound { uid: shown(uid) };
        for State { slot, deleted_ms, .. } in states {
            let Some(deleted_ms) = *deleted_ms else { continue };
            answer = Error::Deleted { uid: shown(uid), deleted_ms };
            let [own, copies @ ..] = self.places.replicas(slot.index)? else { continue };
            let key = tombstone::key(slot, uid, deleted_ms);
            for copy in copies {
                let wrap = |e| Error::at_zone(&copy.zone, e);
                match copy.source.store().head(&key).await {
                    Ok(_) => {}
                    Err(e) if e.kind == StoreErrorKind::NotFound => {
                        let stored = own.source.store().get(&key, ByteRange::Full).await.map_err(|e| wrap(e.into()))?;
                        self.bury(copy, *slot, &key, stored.bytes).await?;
                    }
                    Err(e) => return Err(wrap(e.into())),
                }
            }
        }
        Ok(answer)
    }
}
