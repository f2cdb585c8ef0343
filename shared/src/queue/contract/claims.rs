//! Who gets which task, and who is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Engine, LONG, SHARE, TOTALS, claim, failure, job, sized, submit, view, worker};
use crate::ids::JobId;
use crate::queue::{JobShare, Lease, NewTask, QueueError, SharedQueue, TaskState};

pub(super) async fn jobs_and_tasks_are_added_once(engine: &dyn Engine) {
    let q = engine.queue();
    q.ping().await.expect("ping");
    assert_eq!(q.add_tasks(job(1), &sized(&[1])).await, Err(QueueError::UnknownJob(job(1))));
    assert_eq!(q.add_tasks(job(1), &[]).await, Err(QueueError::UnknownJob(job(1))));
    submit(&q, job(1), SHARE, &[5, 5]).await;
    q.add_job(job(1), JobShare { priority: 50, weight: 3, max_running: None })
        .await
        .expect("a known job is left as it is");
    assert_eq!(q.add_tasks(job(1), &sized(&[9, 9, 9])).await, Ok(1), "two of three are known");
    assert_eq!(q.add_tasks(job(1), &[]).await, Ok(0));
    let twice = [NewTask { number: 7, source_bytes: 1 }, NewTask { number: 7, source_bytes: 2 }];
    assert_eq!(q.add_tasks(job(1), &twice).await, Ok(1));
    // Its priority stayed: a job of priority 1 goes before it.
    submit(&q, job(2), JobShare { priority: 1, weight: 1, max_running: None }, &[1]).await;
    assert_eq!(claim(&q, 1).await.task.job, job(2));
    let lease = claim(&q, 1).await;
    q.commit(lease.task, lease.token, &TOTALS).await.expect("commit");
    assert_eq!(q.add_tasks(job(1), &sized(&[5])).await, Ok(0), "a finished task is known, too");
    assert_eq!(q.jobs().await, Ok(vec![job(1), job(2)]));
}

pub(super) async fn tasks_come_in_number_order_with_growing_tokens(engine: &dyn Engine) {
    let q = engine.queue();
    q.add_job(job(1), SHARE).await.expect("add a job");
    let tasks: Vec<NewTask> =
        [20, 3, 100, 4_000_000_000].map(|number| NewTask { number, source_bytes: 1 }).into_iter().collect();
    q.add_tasks(job(1), &tasks).await.expect("add tasks");
    assert_eq!(q.claim(&worker(1), 0).await, Ok(vec![]));
    let mut leases = q.claim(&worker(1), 3).await.expect("claim");
    leases.extend(q.claim(&worker(2), 3).await.expect("claim"));
    assert_eq!(leases.iter().map(|lease| lease.task.number).collect::<Vec<_>>(), [3, 20, 100, 4_000_000_000]);
    assert!(leases.is_sorted_by(|a, b| a.token < b.token), "tokens grow");
    assert!(leases.iter().all(|lease| lease.attempt == 1 && lease.checkpoint.is_none()));
    let seen = view(&q, leases[3].task).await;
    assert_eq!((seen.state, seen.worker, seen.token), (TaskState::Leased, Some(worker(2).id), leases[3].token));
    assert_eq!(q.claim(&worker(3), 1).await, Ok(vec![]), "nothing is left");
}

pub(super) async fn higher_priority_goes_first(engine: &dyn Engine) {
    let q = engine.queue();
    for (n, priority) in [(1, -100), (2, 0), (3, 100), (4, 9)] {
        submit(&q, job(n), JobShare { priority, weight: 1, max_running: None }, &[1, 1]).await;
    }
    let order: Vec<JobId> =
        q.claim(&worker(1), 8).await.expect("claim").into_iter().map(|lease| lease.task.job).collect();
    assert_eq!(order, [3, 3, 4, 4, 2, 2, 1, 1].map(job));
}

pub(super) async fn bytes_are_shared_by_weight(engine: &dyn Engine) {
    let q = engine.queue();
    // Different sizes: what is shared are bytes, not tasks.
    submit(&q, job(1), JobShare { priority: 0, weight: 3, max_running: None }, &[100; 60]).await;
    submit(&q, job(2), JobShare { priority: 0, weight: 1, max_running: None }, &[50; 60]).await;
    let (mut first, mut second) = (0_u64, 0_u64);
    for _ in 0..70 {
        let lease = claim(&q, 1).await;
        let served = if lease.task.job == job(1) { (100, 0) } else { (0, 50) };
        first += served.0;
        second += served.1;
        // Served bytes per weight differ by less than one task's on either side.
        assert!((first as f64 / 3.0 - second as f64).abs() <= 100.0, "{first} and {second} bytes at weights 3 and 1");
    }
    assert!(first > 0 && second > 0);
}

pub(super) async fn a_small_job_is_served_next(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), JobShare { priority: 0, weight: 1000, max_running: None }, &[1 << 30; 50]).await;
    for _ in 0..20 {
        claim(&q, 1).await;
    }
    submit(&q, job(2), SHARE, &[1 << 30]).await;
    assert_eq!(claim(&q, 1).await.task.job, job(2), "with the next free worker");
    assert_eq!(claim(&q, 1).await.task.job, job(1));
}

pub(super) async fn tasks_without_bytes_take_turns(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[0; 10]).await;
    submit(&q, job(2), SHARE, &[0; 10]).await;
    let jobs: Vec<JobId> = q.claim(&worker(1), 6).await.expect("claim").into_iter().map(|l| l.task.job).collect();
    assert_eq!(jobs, [1, 2, 1, 2, 1, 2].map(job));
}

pub(super) async fn an_idle_job_saves_up_nothing(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[10]).await;
    claim(&q, 1).await;
    submit(&q, job(2), SHARE, &[10; 100]).await;
    for _ in 0..50 {
        claim(&q, 1).await;
    }
    // Job 1 was idle for 500 bytes of service. It goes first and then takes turns instead of catching up.
    let more: Vec<NewTask> = (10..20).map(|number| NewTask { number, source_bytes: 10 }).collect();
    q.add_tasks(job(1), &more).await.expect("add tasks");
    let jobs: Vec<JobId> = q.claim(&worker(1), 6).await.expect("claim").into_iter().map(|l| l.task.job).collect();
    let served = jobs.iter().filter(|&&served| served == job(1)).count();
    assert!((3..=4).contains(&served), "{jobs:?}");
}

pub(super) async fn concurrent_claimers_never_share_a_task(engine: &dyn Engine) {
    const TASKS: usize = 200;
    let q = engine.queue();
    for n in 1..=4 {
        submit(&q, job(n), SHARE, &[3; TASKS / 4]).await;
    }
    let claimers: Vec<_> = (0..32)
        .map(|n| {
            let q = Arc::clone(&q);
            tokio::spawn(async move {
                let mut mine = Vec::new();
                loop {
                    let leases = q.claim(&worker(n), 1 + usize::from(n % 3)).await.expect("claim");
                    if leases.is_empty() {
                        return mine;
                    }
                    mine.extend(leases);
                }
            })
        })
        .collect();
    let mut tasks = BTreeSet::new();
    let mut tokens = BTreeSet::new();
    for claimer in claimers {
        for lease in claimer.await.expect("a claimer ends well") {
            assert!(tasks.insert(lease.task), "{} was leased twice", lease.task);
            assert!(tokens.insert(lease.token), "token {} was given twice", lease.token);
        }
    }
    assert_eq!(tasks.len(), TASKS);
}

pub(super) async fn waiting_ends_with_work(engine: &dyn Engine) {
    let q = engine.queue();
    let start = Instant::now();
    // A wait may return early; waiting on and on is what a worker does.
    while start.elapsed() < Duration::from_millis(30) {
        q.wait_for_work(Duration::from_millis(30)).await;
    }
    assert!(start.elapsed() < LONG, "a wait without work ends");
    submit(&q, job(1), SHARE, &[1]).await;
    let start = Instant::now();
    q.wait_for_work(LONG).await;
    assert!(start.elapsed() < LONG, "work that is there needs no waiting");
    let lease = claim(&q, 1).await;
    let waiter = tokio::spawn(wait_and_claim(Arc::clone(&q)));
    tokio::task::yield_now().await;
    q.release(lease.task, lease.token).await.expect("release");
    assert_eq!(waiter.await.expect("the waiter ends well").task, lease.task);
}

pub(super) async fn waiting_ends_when_a_retry_is_due(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let lease = claim(&q, 1).await;
    q.fail(lease.task, lease.token, &failure(false, "again")).await.expect("fail");
    let start = Instant::now();
    q.wait_for_work(LONG).await;
    engine.advance(Duration::from_millis(60)).await;
    q.wait_for_work(LONG).await;
    assert!(start.elapsed() < LONG);
    let again = claim(&q, 1).await;
    assert_eq!((again.task, again.attempt), (lease.task, 2), "a claim takes due retries without a tick");
}

pub(super) async fn a_failure_sets_the_alarm_of_who_waits(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let lease = claim(&q, 1).await;
    // Nothing is due when it begins to wait.
    let waiter = tokio::spawn(wait_and_claim(Arc::clone(&q)));
    tokio::time::sleep(Duration::from_millis(30)).await;
    q.fail(lease.task, lease.token, &failure(false, "again")).await.expect("fail");
    engine.advance(Duration::from_millis(80)).await;
    assert_eq!(waiter.await.expect("the waiter ends well").task, lease.task);
}

pub(super) async fn no_wake_up_is_lost(engine: &dyn Engine) {
    let q = engine.queue();
    q.add_job(job(1), SHARE).await.expect("add a job");
    for number in 0..60 {
        let waiter = tokio::spawn(wait_and_claim(Arc::clone(&q)));
        for _ in 0..number % 7 {
            tokio::task::yield_now().await;
        }
        q.add_tasks(job(1), &[NewTask { number, source_bytes: 1 }]).await.expect("add a task");
        let lease = waiter.await.expect("the waiter ends well");
        assert_eq!(lease.task.number, number);
    }
}

/// Waits as a worker does until it gets a task. Fails when one wait lasts as long as it may: then nobody woke it.
pub(super) async fn wait_and_claim(q: SharedQueue) -> Lease {
    loop {
        if let Some(lease) = q.claim(&worker(9), 1).await.expect("claim").pop() {
            return lease;
        }
        let start = Instant::now();
        q.wait_for_work(LONG).await;
        assert!(start.elapsed() < LONG, "nobody woke the waiter");
    }
}
