//! Commits and claims in one call: what goes together, and what becomes of a task whose call does not come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use des_shared::clock::{Dice, SystemClock};
use des_shared::ids::{JobId, WorkerId};
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::{
    FinishedTask, JobCounters, JobShare, Lease, NewTask, Queue, QueueConfig, QueueError, TaskTotals, WorkerInfo,
};
use des_worker::desk::{Counter, Desk};
use tokio::task::JoinHandle;

use crate::script::Script;

const LEASE: Duration = Duration::from_secs(30);

struct Office {
    memory: Arc<MemoryQueue>,
    script: Arc<Script>,
    desk: Desk,
    counter: Counter,
}

fn job() -> JobId {
    JobId::from_parts(1_750_000_000_000, [1; 10])
}

impl Office {
    async fn open() -> Self {
        let queue = MemoryQueue::new(QueueConfig::default(), Arc::new(SystemClock), Arc::new(Dice::seeded(1)));
        let memory = Arc::new(queue);
        let script = Script::new(Arc::<MemoryQueue>::clone(&memory));
        memory.add_job(job(), JobShare { priority: 0, weight: 1, max_running: None }).await.unwrap();
        let tasks: Vec<NewTask> = (0..100).map(|number| NewTask { number, source_bytes: 1 }).collect();
        memory.add_tasks(job(), &tasks).await.unwrap();
        let worker = WorkerInfo { id: WorkerId::from_random([7; 16]), name: "desk".to_owned(), slots: 8 };
        let (desk, counter) = Desk::new(Arc::<Script>::clone(&script), worker, LEASE);
        Self { memory, script, desk, counter }
    }

    /// Hands a task in at once; the answer comes with the next call from the desk, or in some other way.
    fn hand_in(&self, lease: &Lease) -> JoinHandle<Result<(), QueueError>> {
        let (counter, lease) = (self.counter.clone(), lease.clone());
        let totals = TaskTotals { files_packed: 1, ..TaskTotals::default() };
        tokio::spawn(
            async move { counter.hand_in(FinishedTask { task: lease.task, token: lease.token, totals }).await },
        )
    }

    async fn counters(&self) -> JobCounters {
        self.memory.job(job()).await.unwrap().unwrap()
    }

    fn calls(&self) -> (u64, u64) {
        (self.script.exchanges.load(Ordering::SeqCst), self.script.bare_commits.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn what_is_finished_together_is_one_call_that_brings_as_much_again() {
    let mut office = Office::open().await;
    let leases = office.desk.exchange(8).await.unwrap();
    assert_eq!((leases.len(), office.calls()), (8, (1, 0)));
    let waiting: Vec<_> = leases[..5].iter().map(|lease| office.hand_in(lease)).collect();
    office.desk.finished().await;
    tokio::task::yield_now().await;
    assert!(office.desk.has_finished());
    let next = office.desk.exchange(0).await.unwrap();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    assert_eq!((next.len(), office.calls()), (5, (2, 0)));
    let counters = office.counters().await;
    assert_eq!((counters.committed, counters.leased, counters.totals.files_packed), (5, 8, 5));
    assert!(!office.desk.has_finished());
}

#[tokio::test]
async fn a_refusal_reaches_the_task_it_is_about() {
    let mut office = Office::open().await;
    let leases = office.desk.exchange(3).await.unwrap();
    office.memory.release(leases[1].task, leases[1].token).await.unwrap();
    let waiting: Vec<_> = leases.iter().map(|lease| office.hand_in(lease)).collect();
    office.desk.finished().await;
    tokio::task::yield_now().await;
    assert_eq!(office.desk.exchange(0).await.unwrap().len(), 2);
    let mut answers = Vec::new();
    for waiting in waiting {
        answers.push(waiting.await.unwrap());
    }
    let stale = Err(QueueError::Stale { task: leases[1].task, token: leases[1].token });
    assert_eq!((answers, office.calls().1), (vec![Ok(()), stale, Ok(())], 0));
}

#[tokio::test]
async fn nobody_waits_long_for_a_desk_that_is_held_up() {
    let mut office = Office::open().await;
    let lease = office.desk.exchange(1).await.unwrap().remove(0);
    let start = Instant::now();
    office.hand_in(&lease).await.unwrap().unwrap();
    assert!(start.elapsed() < LEASE / 2, "{:?}", start.elapsed());
    assert_eq!((office.calls(), office.counters().await.committed), ((1, 1), 1));
    // The one who ran out of patience is not committed for again, and nothing is claimed for it.
    assert_eq!(office.desk.exchange(0).await.unwrap().len(), 0);
    assert_eq!(office.counters().await.leased, 0);
}

#[tokio::test]
async fn a_lost_answer_is_followed_by_a_commit_that_claims_nothing() {
    let mut office = Office::open().await;
    let lease = office.desk.exchange(1).await.unwrap().remove(0);
    office.script.mute.store(true, Ordering::SeqCst);
    let waiting = office.hand_in(&lease);
    office.desk.finished().await;
    assert!(matches!(office.desk.exchange(0).await, Err(QueueError::Unavailable(_))));
    waiting.await.unwrap().unwrap();
    let counters = office.counters().await;
    // What came with the lost answer is the one lease nobody knows of, as after any claim whose answer is lost.
    assert_eq!((counters.committed, counters.totals.files_packed, counters.leased), (1, 1, 1));
    assert_eq!(office.calls(), (2, 1));
}

#[tokio::test]
async fn a_closed_desk_leaves_commits_that_claim_nothing() {
    let mut office = Office::open().await;
    let leases = office.desk.exchange(2).await.unwrap();
    let waiting = office.hand_in(&leases[0]);
    tokio::task::yield_now().await;
    let Office { memory, script, desk, counter } = office;
    drop(desk);
    waiting.await.unwrap().unwrap();
    let FinishedTask { task, token, totals } =
        FinishedTask { task: leases[1].task, token: leases[1].token, totals: TaskTotals::default() };
    counter.hand_in(FinishedTask { task, token, totals }).await.unwrap();
    let counters = memory.job(job()).await.unwrap().unwrap();
    assert_eq!((counters.committed, counters.leased), (2, 0));
    assert_eq!(script.exchanges.load(Ordering::SeqCst), 1);
}
