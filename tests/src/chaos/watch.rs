//! Watches a cluster under chaos from beside: the queue past its proxy, and the shard buckets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use des_shared::clock::Dice;
use des_shared::ids::{FencingToken, TaskId};
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{QueueConfig, QueueError, SharedQueue, TaskState};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::ChaosError;
use crate::cluster::Cluster;

/// How often the queue is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often the buckets are listed.
const LIST: Duration = Duration::from_secs(2);
/// Tasks of a job that are looked at.
const TASKS: usize = 1000;

/// A task whose holder was killed.
#[derive(Clone, Debug)]
struct Orphan {
    token: FencingToken,
    killed: Instant,
    /// When it was first seen that nobody holds it any more.
    free: Option<Instant>,
    term: bool,
    /// Faults of the queue so far: one in between spoils the measurement.
    disturbances: u64,
}

/// How long an orphaned task waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// From the kill until another worker held the task, or it was finished.
    pub waited: Duration,
    /// From the kill until its old holder held it no more: from then on it waits only for a worker with a free slot.
    pub held: Duration,
    /// Its worker was asked to stop (SIGTERM) and not killed.
    pub term: bool,
    /// The queue, or all workers, were disturbed meanwhile.
    pub disturbed: bool,
}

#[derive(Debug, Default)]
struct Seen {
    orphans: BTreeMap<TaskId, Orphan>,
    waits: Vec<Wait>,
    /// The last state of each task: its holder by name, its token.
    leased: BTreeMap<TaskId, (String, FencingToken)>,
    shards: BTreeMap<String, (String, u64)>,
    republished: Vec<String>,
    audits: Vec<String>,
    disturbances: u64,
}

/// The watcher. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Watcher {
    seen: Arc<Mutex<Seen>>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// Opens the queue of a cluster, past every proxy.
///
/// # Errors
/// When the URL makes no sense.
pub(super) fn queue_of(cluster: &Cluster) -> Result<SharedQueue, ChaosError> {
    let dice = Arc::new(Dice::from_os());
    let queue = RedisQueue::new(&RedisOptions::new(cluster.redis.url()), QueueConfig::default(), dice);
    Ok(Arc::new(queue.map_err(|e| ChaosError(format!("queue: {e}")))?))
}

impl Watcher {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the queue cannot be opened.
    pub(super) fn start(cluster: &Cluster) -> Result<Self, ChaosError> {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let queue = queue_of(cluster)?;
        let (client, buckets) = (cluster.s3.client(), cluster.buckets.clone());
        let looking = {
            let seen = Arc::clone(&seen);
            async move {
                loop {
                    // What cannot be asked now is asked again.
                    let _away = look(&queue, &seen).await;
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        let listing = {
            let seen = Arc::clone(&seen);
            async move {
                loop {
                    for bucket in &buckets {
                        list(&client, bucket, &seen).await;
                    }
                    tokio::time::sleep(LIST).await;
                }
            }
        };
        let tasks = vec![AbortOnDropHandle::new(tokio::spawn(looking)), AbortOnDropHandle::new(tokio::spawn(listing))];
        Ok(Self { seen, _tasks: tasks })
    }

    /// A worker process ends now; `term` when it was asked to.
    pub(super) fn ends(&self, pid: i32, term: bool) {
        let mut seen = lock(&self.seen);
        let (now, disturbances, mark) = (Instant::now(), seen.disturbances, format!("{pid}"));
        let held: Vec<_> = seen
            .leased
            .iter()
            .filter(|(_, (name, _))| name.rsplit(|c: char| !c.is_ascii_digit()).next() == Some(mark.as_str()))
            .map(|(task, (_, token))| (*task, *token))
            .collect();
        for (task, token) in held {
            seen.orphans.insert(task, Orphan { token, killed: now, free: None, term, disturbances });
        }
    }

    /// The queue is disturbed, or so many workers are that waits say nothing.
    pub(super) fn disturb(&self) {
        lock(&self.seen).disturbances += 1;
    }

    /// Every wait so far.
    pub(super) fn waits(&self) -> Vec<Wait> {
        lock(&self.seen).waits.clone()
    }

    /// Shards that were seen with two different contents.
    pub(super) fn republished(&self) -> Vec<String> {
        lock(&self.seen).republished.clone()
    }

    /// Shards seen so far.
    pub(super) fn shards(&self) -> usize {
        lock(&self.seen).shards.len()
    }

    /// What the queue's auditor found.
    pub(super) fn audits(&self) -> Vec<String> {
        lock(&self.seen).audits.clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One look at every task.
async fn look(queue: &SharedQueue, seen: &Mutex<Seen>) -> Result<(), QueueError> {
    let names: BTreeMap<_, _> = queue.workers().await?.into_iter().map(|worker| (worker.id, worker.name)).collect();
    let mut leased = BTreeMap::new();
    let mut states = BTreeMap::new();
    for job in queue.jobs().await? {
        for view in queue.tasks(job, 0, TASKS).await? {
            let task = TaskId { job, number: view.number };
            states.insert(task, (view.state, view.token));
            if let Some(name) = view.worker.and_then(|id| names.get(&id)) {
                leased.insert(task, (name.clone(), view.token));
            }
        }
    }
    let found = queue.audit().await?;
    let mut seen = lock(seen);
    seen.leased = leased;
    seen.audits.extend(found.into_iter().take(3));
    seen.audits.truncate(20);
    let (now, disturbances) = (Instant::now(), seen.disturbances);
    for (task, orphan) in &mut seen.orphans {
        let still = states.get(task).is_some_and(|is| *is == (TaskState::Leased, orphan.token));
        if !still {
            orphan.free.get_or_insert(now);
        }
    }
    let over: Vec<(TaskId, Orphan)> = seen
        .orphans
        .iter()
        .filter(|(task, orphan)| match states.get(task) {
            Some((TaskState::Leased, token)) => *token != orphan.token,
            Some((state, _)) => state.is_final(),
            // Its job has ended or was forgotten.
            None => true,
        })
        .map(|(task, orphan)| (*task, orphan.clone()))
        .collect();
    for (task, orphan) in over {
        seen.orphans.remove(&task);
        let disturbed = orphan.disturbances != disturbances || !states.contains_key(&task);
        let held = orphan.free.unwrap_or(now) - orphan.killed;
        seen.waits.push(Wait { waited: now - orphan.killed, held, term: orphan.term, disturbed });
    }
    Ok(())
}

/// Compares what is in a bucket with what was there.
async fn list(client: &aws_sdk_s3::Client, bucket: &str, seen: &Mutex<Seen>) {
    let mut pages = client.list_objects_v2().bucket(bucket).into_paginator().send();
    while let Ok(Some(page)) = pages.try_next().await {
        let mut seen = lock(seen);
        for object in page.contents() {
            let key = object.key().unwrap_or_default();
            if !key.ends_with(des_shared::layout::SHARD_SUFFIX) {
                continue;
            }
            let is = (object.e_tag().unwrap_or_default().to_owned(), object.size().unwrap_or_default().cast_unsigned());
            let name = format!("{bucket}/{key}");
            let was = seen.shards.entry(name.clone()).or_insert_with(|| is.clone()).clone();
            if was != is {
                seen.republished.push(format!("{name} was {was:?} and is {is:?}"));
                seen.shards.insert(name, is);
            }
        }
    }
}
