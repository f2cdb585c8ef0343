//! Deletes the shards of a cancelled job whose submitter asked for it.
//!
//! A shard's key is made from its files and options, so another job with the same work has the same shard. Invariant:
//! a shard is deleted only when it is younger than the job and no other job that was open at any time since shortly
//! before the job was accepted plans it or has it in a receipt. Everything else stays. Big files always stay: shards
//! of any job may name them.
//!
//! While this goes on, the lock `drop` keeps newly planned jobs from being queued (see `restore`), so that no worker
//! adopts a shard that is about to go.

use std::collections::BTreeMap;

use des_shared::ids::{FencingToken, JobId, TaskId};
use des_shared::job::JobRecord;
use des_shared::layout;
use des_shared::store::{StoreErrorKind, list_all};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::Core;
use crate::error::Error;

/// Name of the lock.
const LOCK: &str = "drop";
/// A shard this much older than the job was there before it, ms. Clocks of store and coordinator may differ by less.
const OLDER_MS: u64 = 30 * 60 * 1000;
/// A job that ended this long before the job was accepted cannot have one of its shards that counts as young, ms.
const LONG_BEFORE_MS: u64 = 2 * OLDER_MS;
/// Receipts or segments read side by side.
const READS: usize = 16;
/// Shards deleted between two looks at the lock.
const BATCH: usize = 100;

/// Shards of one job: zone by key.
type Shards = BTreeMap<String, String>;

impl Core {
    /// Deletes what is this job's alone. Repeating it is fine.
    pub(crate) async fn drop_shards(&self, record: &JobRecord) -> Result<(), Error> {
        let Some(token) = self.queue().lock(LOCK, &self.holder, self.config.limits.lock).await? else {
            return Err(busy("another job's shards are being deleted"));
        };
        let outcome = self.drop_locked(record, token).await;
        if let Err(e) = self.queue().unlock(LOCK, &self.holder).await {
            tracing::debug!("the lock {LOCK} ends by itself: {e}");
        }
        outcome
    }

    /// Waits with new tasks while shards are being deleted.
    pub(crate) async fn no_shard_is_going(&self) -> Result<(), Error> {
        // Another holder than the one who deletes, who may be this process.
        let holder = format!("{}-queueing", self.holder);
        match self.queue().lock(LOCK, &holder, self.config.limits.lock).await {
            Ok(Some(_)) => Ok(self.queue().unlock(LOCK, &holder).await?),
            Ok(None) => Err(busy("shards of a cancelled job are being deleted")),
            Err(e) => Err(e.into()),
        }
    }

    async fn drop_locked(&self, record: &JobRecord, token: FencingToken) -> Result<(), Error> {
        let mut shards = self.shards_of(record.id).await?;
        let all = shards.len();
        if all > 0 {
            self.spare_others(record, &mut shards, token).await?;
        }
        let mut deleted = 0_usize;
        let doomed: Vec<(String, String)> = shards.into_iter().collect();
        for batch in doomed.chunks(BATCH) {
            self.still_ours(token).await?;
            for (key, zone) in batch {
                deleted += usize::from(self.delete_young(record, zone, key).await?);
            }
        }
        tracing::info!(job = %record.id, deleted, kept = all - deleted, "shards of a cancelled job");
        Ok(())
    }

    /// A lock that was lost says that workers may have begun to look at these shards.
    async fn still_ours(&self, token: FencingToken) -> Result<(), Error> {
        match self.queue().lock(LOCK, &self.holder, self.config.limits.lock).await? {
            Some(now) if now == token => Ok(()),
            _ => Err(busy("the lock for deleting shards was lost")),
        }
    }

    async fn shards_of(&self, job: JobId) -> Result<Shards, Error> {
        let mut shards = Shards::new();
        let mut receipts = self.state().receipts(job);
        while let Some(receipt) = receipts.try_next().await? {
            shards.extend(receipt.shard.map(|shard| (shard.key, shard.zone)));
        }
        Ok(shards)
    }

    /// Takes out of `shards` what another job may have.
    async fn spare_others(&self, record: &JobRecord, shards: &mut Shards, token: FencingToken) -> Result<(), Error> {
        let mut jobs = list_all(self.state().objects().clone(), layout::NEWEST_PREFIX.to_owned());
        while let Some(marker) = jobs.try_next().await? {
            let Some(job) = layout::job_of_newest_marker(&marker.key) else { continue };
            if job == record.id {
                continue;
            }
            let end = self.state().end(job).await?;
            if end.as_ref().is_some_and(|end| end.ended_ms + LONG_BEFORE_MS < record.accepted_ms) {
                continue;
            }
            self.still_ours(token).await?;
            if end.is_some() {
                for key in self.shards_of(job).await?.keys() {
                    shards.remove(key);
                }
            } else {
                self.spare_planned(job, shards).await?;
            }
        }
        Ok(())
    }

    /// An open job may adopt any shard it plans, at any moment.
    async fn spare_planned(&self, job: JobId, shards: &mut Shards) -> Result<(), Error> {
        let Some(plan) = self.state().plan(job).await? else { return Ok(()) };
        let mut keys = stream::iter(0..plan.tasks.len() as u32)
            .map(|number| async move {
                let segment = self.state().segment(TaskId { job, number }).await?;
                Ok::<_, Error>(layout::shard_key(&segment))
            })
            .buffer_unordered(READS);
        while let Some(key) = keys.try_next().await? {
            shards.remove(&key);
        }
        Ok(())
    }

    /// Deletes a shard unless it was there before the job.
    async fn delete_young(&self, record: &JobRecord, zone: &str, key: &str) -> Result<bool, Error> {
        let Some(zone) = self.deps.zones.all().iter().find(|known| known.name == zone) else {
            tracing::warn!(key, zone, "a shard stays: its zone is not one of ours any more");
            return Ok(false);
        };
        let meta = match zone.store.head(key).await {
            Ok(meta) => meta,
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        if meta.last_modified_ms + OLDER_MS < record.accepted_ms {
            return Ok(false);
        }
        zone.store.delete(key).await?;
        Ok(true)
    }
}

fn busy(what: &str) -> Error {
    Error::Busy(format!("{what}; it goes on in a moment"))
}
