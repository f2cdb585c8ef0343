//! Workers that go on whatever happens to their connections, and what they saw.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use des_shared::clock::Dice;
use des_shared::ids::{FencingToken, JobId, TaskId};
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{Queue, QueueConfig, QueueError, TaskTotals};
use tokio::task::JoinSet;

use super::faults::worker;

/// Nothing here takes as long, whatever breaks.
const LIMIT: Duration = Duration::from_secs(90);

/// A queue whose leases run out soon, so that a claim whose answer was lost costs little.
pub(super) fn hasty_queue(options: &RedisOptions) -> Arc<RedisQueue> {
    let config = QueueConfig { lease: Duration::from_millis(700), max_attempts: 1000, ..QueueConfig::default() };
    Arc::new(RedisQueue::new(options, config, Arc::new(Dice::from_os())).expect("a queue"))
}

/// Options with little patience.
pub(super) fn hasty(url: &str) -> RedisOptions {
    let mut options = RedisOptions::new(url);
    options.connect_timeout = Duration::from_secs(2);
    options.response_timeout = Duration::from_secs(1);
    options
}

/// What became of the work.
#[derive(Debug, Default)]
pub(super) struct Worked {
    /// Commits that were answered, by task.
    pub(super) commits: BTreeMap<u32, u32>,
    /// Calls that were not answered.
    pub(super) unavailable: u32,
    /// Lowest token of a commit by a task claimed last.
    pub(super) last_token: Option<FencingToken>,
}

/// Claims and commits until no task of the job is open. Each commit is repeated until it is answered.
pub(super) async fn work(queue: &Arc<RedisQueue>, job: JobId, workers: u8) -> Worked {
    let deadline = Instant::now() + LIMIT;
    let mut running = JoinSet::new();
    for n in 1..=workers {
        let queue = Arc::clone(queue);
        running.spawn(async move {
            let mut worked = Worked::default();
            while !one_task(&queue, job, n, &mut worked).await {
                assert!(Instant::now() < deadline, "still at work after {LIMIT:?}: {worked:?}");
            }
            worked
        });
    }
    let mut all = Worked::default();
    while let Some(worked) = running.join_next().await {
        let worked = worked.expect("a worker ends well");
        for (task, times) in worked.commits {
            *all.commits.entry(task).or_default() += times;
        }
        all.unavailable += worked.unavailable;
        all.last_token = all.last_token.max(worked.last_token);
    }
    all
}

/// One round; true when nothing is left.
async fn one_task(queue: &Arc<RedisQueue>, job: JobId, n: u8, worked: &mut Worked) -> bool {
    match queue.claim(&worker(n), 1).await {
        Ok(leases) => {
            for lease in leases {
                commit(queue, lease.task, lease.token, worked).await;
            }
        }
        Err(error) => failed(&error, worked).await,
    }
    match queue.tick(100).await {
        Ok(_) => {}
        Err(error) => failed(&error, worked).await,
    }
    match queue.job(job).await {
        Ok(Some(counters)) => counters.open() == 0,
        Ok(None) => panic!("the job is gone"),
        Err(error) => {
            failed(&error, worked).await;
            false
        }
    }
}

async fn commit(queue: &Arc<RedisQueue>, task: TaskId, token: FencingToken, worked: &mut Worked) {
    loop {
        match queue.commit(task, token, &TaskTotals { files_packed: 1, ..TaskTotals::default() }).await {
            Ok(()) => {
                *worked.commits.entry(task.number).or_default() += 1;
                worked.last_token = worked.last_token.max(Some(token));
                return;
            }
            // The lease ran out while nobody answered.
            Err(QueueError::Stale { .. }) => return,
            Err(error) => failed(&error, worked).await,
        }
    }
}

/// Only what may pass is forgiven.
async fn failed(error: &QueueError, worked: &mut Worked) {
    assert!(matches!(error, QueueError::Unavailable(_)), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    worked.unavailable += 1;
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Every task was committed, exactly once as far as anybody was told, and everything counts up.
pub(super) async fn assert_done_once(queue: &RedisQueue, job: JobId, tasks: u32, worked: &Worked) {
    let counters = queue.job(job).await.expect("job").expect("known");
    assert_eq!((counters.committed, counters.totals.files_packed), (u64::from(tasks), u64::from(tasks)), "{worked:?}");
    assert_eq!(worked.commits.len(), tasks as usize, "{worked:?}");
    assert!(worked.commits.values().all(|times| *times == 1), "{worked:?}");
    assert_eq!(queue.audit().await, Ok(vec![]));
}
