//! Shares, caps and priorities, with numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::claims::wait_and_claim;
use super::{Engine, SHARE, TOTALS, claim, job, submit, worker};
use crate::ids::JobId;
use crate::queue::{JobShare, Lease, MAX_RUNNING, QueueError, SharedQueue};

fn share(priority: i32, weight: u32) -> JobShare {
    JobShare { priority, weight, max_running: None }
}

fn capped(max: u32) -> JobShare {
    JobShare { max_running: Some(max), ..SHARE }
}

async fn commit(q: &SharedQueue, lease: &Lease) {
    q.commit(lease.task, lease.token, &TOTALS).await.expect("commit");
}

/// The jobs of the next claims, one by one.
async fn serve(q: &SharedQueue, claims: usize) -> Vec<JobId> {
    let mut jobs = Vec::new();
    for _ in 0..claims {
        jobs.push(claim(q, 1).await.task.job);
    }
    jobs
}

fn count(jobs: &[JobId], n: u8) -> usize {
    jobs.iter().filter(|&&served| served == job(n)).count()
}

pub(super) async fn shares_of_three_jobs_are_within_two_percent(engine: &dyn Engine) {
    let q = engine.queue();
    // Shards of 50 to 149 units in an order that has nothing to do with the weights.
    let size = |n: u64| 50 + n * 37 % 100;
    let sizes: Vec<u64> = (0..400).map(size).collect();
    for (n, weight) in [(1, 3), (2, 2), (3, 1)] {
        submit(&q, job(n), share(0, weight), &sizes).await;
    }
    let mut served: BTreeMap<JobId, (u64, f64)> = BTreeMap::new();
    while served.get(&job(3)).is_none_or(|&(shards, _)| shards < 110) {
        let lease = claim(&q, 1).await;
        let entry = served.entry(lease.task.job).or_default();
        *entry = (entry.0 + 1, entry.1 + size(u64::from(lease.task.number)) as f64);
        commit(&q, &lease).await;
    }
    let all: f64 = served.values().map(|&(_, bytes)| bytes).sum();
    for (n, weight) in [(1, 3.0), (2, 2.0), (3, 1.0)] {
        let (shards, bytes) = served[&job(n)];
        let off = bytes / all / (weight / 6.0) - 1.0;
        assert!(
            shards >= 100 && off.abs() < 0.02,
            "job {n}: {shards} shards, its share is off by {:.2} %",
            off * 100.0
        );
    }
}

pub(super) async fn a_small_job_behind_ten_thousand_tasks_is_next(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &vec![1 << 30; 10_000]).await;
    serve(&q, 10).await;
    submit(&q, job(2), SHARE, &[1 << 30; 2]).await;
    assert_eq!(serve(&q, 4).await, [2, 1, 2, 1].map(job));
}

pub(super) async fn a_cap_bounds_what_runs(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), capped(2), &[1; 6]).await;
    submit(&q, job(2), share(-5, 1), &[1; 3]).await;
    let leases = q.claim(&worker(1), 9).await.expect("claim");
    let jobs: Vec<JobId> = leases.iter().map(|lease| lease.task.job).collect();
    assert_eq!(jobs, [1, 1, 2, 2, 2].map(job), "the others are not kept waiting");
    assert_eq!(q.claim(&worker(1), 9).await, Ok(vec![]));
    // A freed place wakes who waits for it.
    let waiter = tokio::spawn(wait_and_claim(Arc::clone(&q)));
    tokio::task::yield_now().await;
    commit(&q, &leases[0]).await;
    let third = waiter.await.expect("the waiter ends well");
    assert_eq!((third.task.job, third.task.number), (job(1), 2));
    assert_eq!(q.claim(&worker(1), 9).await, Ok(vec![]));
    // Lower: nobody is stopped, nobody is added. Higher: at once, and waiters hear of it.
    q.set_share(job(1), capped(1)).await.expect("lower");
    q.release(third.task, third.token).await.expect("release");
    assert_eq!(q.claim(&worker(1), 9).await, Ok(vec![]));
    let waiter = tokio::spawn(wait_and_claim(Arc::clone(&q)));
    tokio::task::yield_now().await;
    q.set_share(job(1), capped(3)).await.expect("higher");
    assert_eq!(waiter.await.expect("the waiter ends well").task.number, 2);
    assert_eq!(q.claim(&worker(1), 9).await.expect("claim").len(), 1);
    q.set_share(job(1), SHARE).await.expect("no bound");
    assert_eq!(q.claim(&worker(1), 9).await.expect("claim").len(), 2);
    assert_eq!(q.job(job(1)).await.expect("job").expect("known").leased, 5);
    for wrong in [0, MAX_RUNNING + 1] {
        assert!(matches!(q.set_share(job(1), capped(wrong)).await, Err(QueueError::Invalid(_))));
        assert!(matches!(q.add_job(job(9), capped(wrong)).await, Err(QueueError::Invalid(_))));
    }
}

pub(super) async fn a_capped_job_saves_up_nothing(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), capped(1), &[10; 100]).await;
    let held = claim(&q, 1).await;
    submit(&q, job(2), SHARE, &[10; 200]).await;
    assert_eq!(count(&serve(&q, 50).await, 1), 0);
    q.set_share(job(1), SHARE).await.expect("no bound");
    commit(&q, &held).await;
    let served = count(&serve(&q, 20).await, 1);
    assert!((10..=11).contains(&served), "{served} of 20: turns, no catching up");
}

pub(super) async fn priorities_and_weights_change_while_jobs_run(engine: &dyn Engine) {
    let q = engine.queue();
    assert_eq!(q.set_share(job(1), SHARE).await, Err(QueueError::UnknownJob(job(1))));
    submit(&q, job(1), SHARE, &[10; 200]).await;
    submit(&q, job(2), share(5, 1), &[10; 200]).await;
    assert_eq!(count(&serve(&q, 20).await, 1), 0, "the higher priority first");
    q.set_share(job(1), share(5, 3)).await.expect("change");
    let served = count(&serve(&q, 80).await, 1);
    assert!((59..=61).contains(&served), "{served} of 80 at weights 3 and 1");
    q.set_share(job(1), share(9, 3)).await.expect("change");
    assert_eq!(count(&serve(&q, 10).await, 1), 10);
    // Back again: neither is made to wait for the past.
    q.set_share(job(1), share(5, 1)).await.expect("change");
    let served = count(&serve(&q, 20).await, 1);
    assert!((9..=11).contains(&served), "{served} of 20 at equal weights");
}

pub(super) async fn changing_back_and_forth_wins_nothing(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[10; 300]).await;
    submit(&q, job(2), SHARE, &[10; 300]).await;
    let mut served = Vec::new();
    for round in 0..60 {
        served.extend(serve(&q, 2).await);
        // Up for nothing, and back before it is served.
        let (priority, weight) = if round % 2 == 0 { (7, 1000) } else { (-7, 1) };
        q.set_share(job(1), share(priority, weight)).await.expect("change");
        q.set_share(job(1), SHARE).await.expect("change");
    }
    let first = count(&served, 1);
    assert!((58..=62).contains(&first), "{first} of 120");
}
