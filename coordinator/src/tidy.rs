//! Tidies up now and then: records of jobs that ended long ago, and unfinished uploads that nobody knows.
//!
//! Shards are never touched here. One coordinator does it at a time; two would only do the same twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use des_shared::ids::JobId;
use des_shared::layout;
use des_shared::state::StateError;
use des_shared::store::{SharedStore, UploadMeta, list_all};
use futures::stream::TryStreamExt;
use tokio::time::MissedTickBehavior;

use crate::Core;
use crate::error::Error;
use crate::reconcile::Trouble;
use crate::submit::reservation_of;
use crate::upload::is_missing;

/// Name of the lock.
const LOCK: &str = "tidy";
/// Objects removed side by side.
const REMOVALS: usize = 16;
/// The longest listing of uploads: when one is full there may be more.
const FULL_LISTING: usize = 1000;
/// Tasks looked through at once.
const TASKS: usize = 1000;
/// Age at which a scratch key belongs to nobody: whoever tries out a store needs seconds.
const SCRATCH_AGE: Duration = Duration::from_hours(1);

/// Tidies at once and then every while, until the shutdown.
pub(crate) async fn run(core: Arc<Core>) {
    let mut trouble = Trouble::default();
    let mut rounds = tokio::time::interval(core.config.limits.tidy);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = core.shutdown.wait() => return,
            _ = rounds.tick() => {}
        }
        let round = tokio::select! {
            biased;
            () = core.shutdown.wait() => return,
            round = core.tidy() => round,
        };
        trouble.note("tidying up", round);
    }
}

impl Core {
    async fn tidy(&self) -> Result<(), Error> {
        let holder = format!("{}-tidy", self.holder);
        if self.queue().lock(LOCK, &holder, self.config.limits.lock).await?.is_none() {
            return Ok(());
        }
        let outcome = async {
            self.remove_old_jobs().await?;
            self.remove_scratch_keys().await?;
            self.drop_orphans().await
        }
        .await;
        self.queue().unlock(LOCK, &holder).await?;
        outcome
    }

    /// The moment so long ago.
    fn before_now(&self, age: Duration) -> u64 {
        self.deps.clock.now_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    /// Removes the records of jobs that ended longer ago than they are kept.
    async fn remove_old_jobs(&self) -> Result<(), Error> {
        let Some(retention) = self.config.limits.retention else { return Ok(()) };
        let until = self.before_now(retention);
        let mut last = None;
        while let Some(job) = self.state().job_after(last).await? {
            // Ids sort by the time of acceptance, and no job ends before it was accepted.
            if job.unix_millis() >= until {
                break;
            }
            if self.state().end(job).await?.is_some_and(|end| end.ended_ms < until) {
                self.remove_job(job).await?;
                self.own_metrics.job_removed();
                tracing::info!(%job, "the records of the job were removed; its shards stay");
            }
            last = Some(job);
        }
        Ok(())
    }

    /// Removes everything of an ended job but its shards. Its end goes last, so that what breaks off is gone on with.
    async fn remove_job(&self, job: JobId) -> Result<(), Error> {
        for key in [layout::newest_marker(job), layout::open_marker(job)] {
            self.state().delete(&key).await?;
        }
        self.remove_all(&layout::dead_prefix(job), &[]).await?;
        let notes: Vec<String> = self.keys_below(&format!("{}keys/", layout::job_prefix(job))).await?;
        let bound = notes.iter().filter_map(|note| layout::key_of_bound_key(note));
        for key in bound.chain(self.reservation_to_remove(job).await?) {
            self.state().delete(&key).await?;
        }
        let (record, end) = (layout::job_record(job), layout::end(job));
        self.remove_all(&layout::job_prefix(job), &[&record, &end]).await?;
        self.state().delete(&record).await?;
        Ok(self.state().delete(&end).await?)
    }

    /// Whether an ended job is on its way out: its place in the listing went first.
    pub(crate) async fn is_being_removed(&self, job: JobId) -> Result<bool, Error> {
        match self.state().objects().head(&layout::newest_marker(job)).await {
            Ok(_) => Ok(false),
            Err(e) if is_missing(&e) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }

    /// The reservation of a job, unless it is a link of a chain of equal submissions: then later links would be lost
    /// with it, and it stays (about 1 KB).
    async fn reservation_to_remove(&self, job: JobId) -> Result<Option<String>, Error> {
        let Some(record) = self.state().job(job).await? else { return Ok(None) };
        let (head, hint) = reservation_of(&record);
        let alone = record.submission_key == head && self.state().read::<String>(&hint).await?.is_none();
        Ok(alone.then_some(head))
    }

    async fn keys_below(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let objects = list_all(self.state().objects().clone(), prefix.to_owned());
        Ok(objects.map_ok(|object| object.key).try_collect().await?)
    }

    async fn remove_all(&self, prefix: &str, but: &[&str]) -> Result<(), Error> {
        let objects = self.state().objects();
        list_all(objects.clone(), prefix.to_owned())
            .try_filter(|object| futures::future::ready(!but.contains(&object.key.as_str())))
            .map_ok(|object| async move { objects.delete(&object.key).await })
            .try_buffer_unordered(REMOVALS)
            .try_for_each(|()| futures::future::ready(Ok(())))
            .await?;
        Ok(())
    }

    /// Removes what services left behind that died while they tried out a store.
    async fn remove_scratch_keys(&self) -> Result<(), Error> {
        let until = self.before_now(SCRATCH_AGE);
        for store in self.stores() {
            let mut keys = list_all(store.clone(), layout::SCRATCH_PREFIX.to_owned());
            while let Some(object) = keys.try_next().await? {
                if layout::is_scratch_key(&object.key) && object.last_modified_ms < until {
                    store.delete(&object.key).await?;
                    tracing::info!(key = object.key, "a key that was left behind by a trial of the store was removed");
                }
            }
        }
        Ok(())
    }

    /// Every store that services write to.
    fn stores(&self) -> impl Iterator<Item = &SharedStore> {
        self.deps.zones.all().iter().map(|zone| &zone.store).chain([self.state().objects()])
    }

    /// Drops old unfinished uploads of ours that neither a checkpoint nor a mark names.
    async fn drop_orphans(&self) -> Result<(), Error> {
        let Some(age) = self.config.limits.orphans else { return Ok(()) };
        let until = self.before_now(age);
        for zone in self.deps.zones.all() {
            while self.drop_orphans_of(&zone.store, "", until).await? {}
        }
        for prefix in [layout::JOBS_PREFIX, layout::SCRATCH_PREFIX] {
            while self.drop_orphans_of(self.state().objects(), prefix, until).await? {}
        }
        Ok(())
    }

    /// True when there may be more.
    async fn drop_orphans_of(&self, store: &SharedStore, prefix: &str, until: u64) -> Result<bool, Error> {
        let uploads = store.list_uploads(prefix, FULL_LISTING).await?;
        let full = uploads.len() >= FULL_LISTING;
        let old: Vec<UploadMeta> =
            uploads.into_iter().filter(|upload| upload.started_ms < until && is_ours(&upload.key)).collect();
        if old.is_empty() {
            return Ok(false);
        }
        let known = self.uploads_in_use().await?;
        let mut unknown: Vec<UploadMeta> =
            old.into_iter().filter(|upload| !known.contains(&upload.upload_id)).collect();
        if unknown.iter().any(|upload| layout::parse_shard_name(&upload.key).is_some()) {
            let marked = self.shards_with_marks().await?;
            unknown.retain(|upload| !marked.contains(&upload.key));
        }
        let mut dropped = 0;
        for upload in &unknown {
            store.abort_upload(&upload.key, &upload.upload_id).await?;
            dropped += 1;
            tracing::info!(key = upload.key, started_ms = upload.started_ms, "an orphaned upload was dropped");
        }
        self.own_metrics.uploads_aborted(dropped);
        Ok(full && dropped > 0)
    }

    /// Uploads that checkpoints name.
    async fn uploads_in_use(&self) -> Result<BTreeSet<String>, Error> {
        let mut uploads = BTreeSet::new();
        for job in self.queue().jobs().await? {
            let mut from = 0;
            loop {
                let tasks = self.tasks_if_known(job, from, TASKS).await?;
                let (full, last) = (tasks.len() == TASKS, tasks.last().map(|task| task.number));
                uploads.extend(tasks.into_iter().filter_map(|task| Some(task.checkpoint?.upload_id)));
                match last.and_then(|last| last.checked_add(1)) {
                    Some(next) if full => from = next,
                    _ => break,
                }
            }
        }
        Ok(uploads)
    }

    /// Keys of shards of open jobs that have marks in the state store. Where the queue has lost a checkpoint, its next
    /// holder goes on from these, in the same upload.
    async fn shards_with_marks(&self) -> Result<BTreeSet<String>, Error> {
        let mut shards = BTreeSet::new();
        let objects = self.state().objects();
        let mut open = list_all(objects.clone(), layout::OPEN_PREFIX.to_owned());
        while let Some(marker) = open.try_next().await? {
            let Some(job) = layout::job_of_open_marker(&marker.key) else { continue };
            let mut tasks = BTreeSet::new();
            let mut marks = list_all(objects.clone(), layout::checkpoints_prefix(job));
            while let Some(mark) = marks.try_next().await? {
                tasks.extend(layout::task_of_checkpoint(&mark.key));
            }
            for task in tasks {
                match self.state().segment(task).await {
                    Ok(segment) => drop(shards.insert(layout::shard_key(&segment))),
                    // Nobody can go on with a task whose file list cannot be read.
                    Err(StateError::Corrupt { key, why }) => {
                        tracing::warn!(%task, key, "its upload is not kept: {why}");
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(shards)
    }
}

/// Whether DES made this upload: a shard with a digest in its name, a big file, a manifest, or a trial of the store. A
/// bucket may hold other things, whose uploads are none of our business.
fn is_ours(key: &str) -> bool {
    let shard = layout::parse_shard_name(key).is_some_and(|name| name.digest.is_some_and(|digest| is_hex(&digest, 16)));
    let big_file = key.rsplit_once('/').is_some_and(|(_, name)| is_hex(name, 64));
    let manifest = layout::job_of_key(key).is_some_and(|job| key == layout::manifest(job));
    shard || big_file || manifest || layout::is_scratch_key(key)
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_des_writes_is_ours() {
        let job = JobId::from_parts(1_700_000_000_000, [1; 10]);
        let sha = "0123456789abcdef".repeat(4);
        let ours =
            ["20250310_1F_0000-0123456789abcdef.des".to_owned(), format!("_bigFiles/{sha}"), layout::manifest(job)];
        assert!(is_ours(&layout::probe_key(layout::SCRATCH_PREFIX, 1)));
        assert!(ours.iter().all(|key| is_ours(key)));
        let others = [
            "20250310_1F_0000.des".to_owned(),
            "20250310_1F_0000-0123.des".to_owned(),
            "backup/2025.tar".to_owned(),
            format!("backup/{sha}.tar"),
            sha,
            layout::job_record(job),
        ];
        assert!(!others.iter().any(|key| is_ours(key)), "{others:?}");
    }
}
