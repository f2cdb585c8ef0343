//! Whole jobs: pausing, cancelling, and what failures and holders leave to be seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::claims::wait_and_claim;
use super::{
    Engine, LEASE, LONG, SHARE, TOTALS, checkpoint, claim, failure, held, in_progress, job, submit, view, worker,
};
use crate::ids::{FencingToken, TaskId};
use crate::queue::{
    Held, HeldTask, MAX_HISTORY, MAX_HISTORY_MESSAGE_BYTES, NewTask, QueueError, SharedQueue, TaskState, TaskTotals,
    Tick, WorkerTask,
};

pub(super) async fn a_paused_job_is_not_served(engine: &dyn Engine) {
    let q = engine.queue();
    assert_eq!(q.set_paused(job(1), true).await, Err(QueueError::UnknownJob(job(1))));
    submit(&q, job(1), SHARE, &[10; 4]).await;
    let (first, second) = (claim(&q, 1).await, claim(&q, 1).await);
    for _ in 0..2 {
        q.set_paused(job(1), true).await.expect("pausing may be repeated");
    }
    assert_eq!(q.claim(&worker(2), 9).await, Ok(vec![]), "paused");
    let stats = q.stats().await.expect("stats");
    assert_eq!((stats.pending, stats.paused, stats.leased), (2, 2, 2), "its tasks stay pending");
    // What comes back or is added stays with it; another job is served.
    q.release(first.task, first.token).await.expect("release");
    q.add_tasks(job(1), &[NewTask { number: 9, source_bytes: 1 }]).await.expect("add a task");
    assert_eq!(q.claim(&worker(2), 9).await, Ok(vec![]));
    assert_eq!(q.stats().await.expect("stats").paused, 4);
    submit(&q, job(2), SHARE, &[1]).await;
    assert_eq!(claim(&q, 2).await.task.job, job(2));
    q.commit(second.task, second.token, &TOTALS).await.expect("a holder may finish");
    for _ in 0..2 {
        q.set_paused(job(1), false).await.expect("resuming may be repeated");
    }
    assert_eq!(q.stats().await.expect("stats").paused, 0);
    let numbers: Vec<u32> = q.claim(&worker(2), 9).await.expect("claim").iter().map(|l| l.task.number).collect();
    assert_eq!(numbers, [0, 2, 3, 9]);
}

pub(super) async fn holders_of_a_paused_job_hand_back(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1; 2]).await;
    let (lease, other) = (claim(&q, 1).await, claim(&q, 1).await);
    assert_eq!(q.checkpoint(lease.task, lease.token, &checkpoint(1)).await, Ok(Held::Yes));
    q.set_paused(job(1), true).await.expect("pause");
    let named = [held(lease.task, lease.token), held(other.task, FencingToken(1))];
    assert_eq!(q.heartbeat(&worker(1), &named).await, Ok(vec![Held::HandBack, Held::Lost]));
    engine.advance(LEASE * 2 / 3).await;
    assert_eq!(q.checkpoint(lease.task, lease.token, &checkpoint(2)).await, Ok(Held::HandBack));
    engine.advance(LEASE / 2).await;
    let tick = q.tick(9).await.expect("tick");
    assert_eq!(tick.expired, [other.task], "the lease is renewed all the same");
    q.release(lease.task, lease.token).await.expect("hand back");
    q.set_paused(job(1), false).await.expect("resume");
    let again = claim(&q, 1).await;
    assert_eq!((again.task, again.checkpoint, again.attempt), (lease.task, Some(checkpoint(2)), 1));
    assert_eq!(q.heartbeat(&worker(1), &[held(again.task, again.token)]).await, Ok(vec![Held::Yes]));
}

pub(super) async fn resuming_wakes_who_waits(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    q.set_paused(job(1), true).await.expect("pause");
    let start = Instant::now();
    q.wait_for_work(Duration::from_millis(30)).await;
    assert!(start.elapsed() < LONG);
    let waiter = tokio::spawn(wait_and_claim(Arc::clone(&q)));
    tokio::task::yield_now().await;
    q.set_paused(job(1), false).await.expect("resume");
    assert_eq!(waiter.await.expect("the waiter ends well").task.job, job(1));
}

/// Every operation that asks for a token must say that the job was cancelled.
async fn assert_cancelled(q: &SharedQueue, task: TaskId, token: FencingToken) {
    let cancelled = QueueError::Cancelled { task };
    assert!(!cancelled.is_transient());
    assert_eq!(q.heartbeat(&worker(1), &[held(task, token)]).await, Ok(vec![Held::Cancelled]));
    assert_eq!(q.checkpoint(task, token, &checkpoint(9)).await, Err(cancelled.clone()));
    assert_eq!(q.drop_checkpoint(task, token).await, Err(cancelled.clone()));
    assert_eq!(q.commit(task, token, &TOTALS).await, Err(cancelled.clone()));
    assert_eq!(q.fail(task, token, &failure(true, "x")).await, Err(cancelled.clone()));
    assert_eq!(q.release(task, token).await, Err(cancelled));
    let other = FencingToken(token.0 + 1);
    assert_eq!(q.release(task, other).await, Err(QueueError::Stale { task, token: other }), "another's token is stale");
    assert_eq!(q.heartbeat(&worker(1), &[held(task, other)]).await, Ok(vec![Held::Lost]));
}

pub(super) async fn cancelling_takes_bounded_steps(engine: &dyn Engine) {
    let q = engine.queue();
    assert_eq!(q.cancel_job(job(1), 5).await, Err(QueueError::UnknownJob(job(1))));
    submit(&q, job(1), SHARE, &[10; 8]).await;
    let leases = q.claim(&worker(1), 4).await.expect("claim");
    q.commit(leases[0].task, leases[0].token, &TOTALS).await.expect("commit");
    q.fail(leases[1].task, leases[1].token, &failure(false, "late")).await.expect("fail");
    q.checkpoint(leases[2].task, leases[2].token, &checkpoint(2)).await.expect("checkpoint");
    // Before a single task is cancelled, nothing is handed out any more and every holder is told.
    assert_eq!(q.cancel_job(job(1), 0).await, Ok(7));
    assert_eq!(q.claim(&worker(1), 9).await, Ok(vec![]));
    assert_cancelled(&q, leases[2].task, leases[2].token).await;
    let mut left = 7;
    while left > 0 {
        let now = q.cancel_job(job(1), 3).await.expect("cancel");
        assert!(left - now <= 3 && now < left, "{left} then {now}");
        left = now;
    }
    assert_eq!(q.cancel_job(job(1), 3).await, Ok(0), "repeating it is fine");
    assert_cancelled(&q, leases[2].task, leases[2].token).await;
    assert_cancelled(&q, leases[3].task, leases[3].token).await;
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.committed, counters.cancelled, counters.open()), (1, 7, 0));
    assert_eq!((counters.totals, counters.in_progress), (TOTALS, TaskTotals::default()));
    let stats = q.stats().await.expect("stats");
    assert_eq!((stats.pending, stats.leased, stats.delayed, stats.waiting_bytes, stats.jobs), (0, 0, 0, 0, 1));
    let seen = view(&q, leases[2].task).await;
    assert_eq!((seen.state, seen.worker), (TaskState::Cancelled, None));
    assert_eq!(seen.checkpoint, Some(checkpoint(2)), "its upload can be dropped");
    // A receipt that was found counts even so.
    q.settle(leases[2].task, TaskState::Committed, &TOTALS).await.expect("settle");
    assert_eq!(view(&q, leases[2].task).await.checkpoint, None);
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.committed, counters.cancelled), (2, 6));
}

pub(super) async fn a_cancelled_job_stays_cancelled(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1; 3]).await;
    q.set_paused(job(1), true).await.expect("pause");
    q.cancel_job(job(1), 9).await.expect("a paused job can be cancelled");
    assert_eq!(q.stats().await.expect("stats").paused, 0);
    q.set_paused(job(1), false).await.expect("no resurrection");
    q.set_paused(job(1), true).await.expect("nor this");
    q.set_paused(job(1), false).await.expect("nor this");
    q.add_job(job(1), SHARE).await.expect("a known job is left as it is");
    let late = [NewTask { number: 0, source_bytes: 1 }, NewTask { number: 7, source_bytes: 9 }];
    assert_eq!(q.add_tasks(job(1), &late).await, Ok(1), "whatever is added later is cancelled at once");
    assert_eq!(q.claim(&worker(1), 9).await, Ok(vec![]));
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.cancelled, counters.open()), (4, 0));
    let never = TaskId { job: job(1), number: 7 };
    let stale = QueueError::Stale { task: never, token: FencingToken(0) };
    assert_eq!(q.release(never, FencingToken(0)).await, Err(stale), "nobody ever held it");
    q.forget_job(job(1)).await.expect("forget");
    submit(&q, job(1), SHARE, &[1]).await;
    assert_eq!(claim(&q, 1).await.task.job, job(1), "a forgotten job begins anew");
}

pub(super) async fn housekeeping_ends_the_tasks_of_a_cancelled_job(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1; 2]).await;
    let (lost, failed) = (claim(&q, 1).await, claim(&q, 1).await);
    q.fail(failed.task, failed.token, &failure(false, "late")).await.expect("fail");
    assert_eq!(q.cancel_job(job(1), 0).await, Ok(2));
    engine.advance(LEASE).await;
    assert_eq!(q.tick(9).await, Ok(Tick::default()), "nothing waits again");
    for lease in [lost, failed] {
        assert_eq!(view(&q, lease.task).await.state, TaskState::Cancelled);
    }
    assert_eq!(q.cancel_job(job(1), 0).await, Ok(0));
}

pub(super) async fn failed_attempts_leave_a_history(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let task = TaskId { job: job(1), number: 0 };
    assert_eq!(view(&q, task).await.history, []);
    let mut tokens = Vec::new();
    for n in 0..MAX_HISTORY as u8 + 2 {
        let lease = claim(&q, n).await;
        // Progress keeps it from being given up.
        q.checkpoint(task, lease.token, &checkpoint(1)).await.expect("checkpoint");
        tokens.push(lease.token);
        if n % 2 == 0 {
            q.fail(task, lease.token, &failure(false, &format!("{n}\n{}", "ä".repeat(300)))).await.expect("fail");
            engine.advance(Duration::from_millis(80)).await;
        } else {
            engine.advance(LEASE).await;
        }
        q.tick(9).await.expect("tick");
    }
    let history = view(&q, task).await.history;
    assert_eq!(
        history.iter().map(|attempt| attempt.token).collect::<Vec<_>>(),
        tokens[2..],
        "the newest, oldest first"
    );
    assert!(history.is_sorted_by_key(|attempt| attempt.at_ms));
    for (n, attempt) in (2..).zip(&history) {
        assert_eq!(attempt.worker, Some(worker(n).id));
        if n % 2 == 0 {
            let message = format!("{n} {}", "ä".repeat((MAX_HISTORY_MESSAGE_BYTES - 2) / 2));
            assert_eq!(attempt.message, message, "on one line and cut");
        } else {
            assert!(attempt.message.contains("lease"), "{attempt:?}");
        }
    }
    let last = claim(&q, 1).await;
    q.commit(task, last.token, &TOTALS).await.expect("commit");
    assert_eq!(view(&q, task).await.history, [], "a committed task has none");
}

pub(super) async fn a_dead_task_keeps_its_checkpoint(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1; 2]).await;
    let (dead, open) = (claim(&q, 1).await, claim(&q, 1).await);
    q.checkpoint(dead.task, dead.token, &checkpoint(3)).await.expect("checkpoint");
    q.checkpoint(open.task, open.token, &checkpoint(1)).await.expect("checkpoint");
    q.fail(dead.task, dead.token, &failure(true, "broken")).await.expect("fail");
    let seen = view(&q, dead.task).await;
    assert_eq!((seen.state, seen.checkpoint), (TaskState::Dead, Some(checkpoint(3))), "its upload can be dropped");
    assert_eq!((seen.history.len(), seen.history[0].message.as_str()), (1, "broken"));
    assert_eq!(view(&q, open.task).await.checkpoint, Some(checkpoint(1)));
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!(counters.in_progress, in_progress(1), "only open tasks make progress");
    q.settle(dead.task, TaskState::Dead, &TOTALS).await.expect("settle");
    let seen = view(&q, dead.task).await;
    assert_eq!((seen.checkpoint, seen.history.len()), (None, 1));
    assert_eq!(q.job(job(1)).await.expect("job").expect("known").in_progress, in_progress(1));
}

pub(super) async fn waiting_bytes_are_those_nobody_packs(engine: &dyn Engine) {
    let q = engine.queue();
    let waiting = async || q.stats().await.expect("stats").waiting_bytes;
    submit(&q, job(1), SHARE, &[1, 20, 300]).await;
    submit(&q, job(2), SHARE, &[4000]).await;
    assert_eq!(waiting().await, 4321);
    q.set_paused(job(2), true).await.expect("pause");
    let (first, second) = (claim(&q, 1).await, claim(&q, 1).await);
    assert_eq!(waiting().await, 4300, "paused ones wait, held ones do not");
    q.fail(first.task, first.token, &failure(false, "again")).await.expect("fail");
    assert_eq!(waiting().await, 4301, "delayed ones wait");
    q.commit(second.task, second.token, &TOTALS).await.expect("commit");
    q.settle(TaskId { job: job(1), number: 2 }, TaskState::Dead, &TOTALS).await.expect("settle");
    assert_eq!(waiting().await, 4001);
    q.forget_job(job(2)).await.expect("forget");
    assert_eq!((waiting().await, q.stats().await.expect("stats").paused), (1, 0));
}

pub(super) async fn workers_show_what_they_hold(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[100, 200, 300]).await;
    let leases = q.claim(&worker(1), 3).await.expect("claim");
    let shown = async |n| {
        let workers = q.workers().await.expect("workers");
        workers.into_iter().find(|seen| seen.id == worker(n).id).expect("the worker is known").tasks
    };
    assert_eq!(shown(1).await, [], "nothing was named yet");
    let named: Vec<HeldTask> = (0..)
        .zip(&leases)
        .map(|(n, lease)| HeldTask { task: lease.task, token: lease.token, done_bytes: n * 50 })
        .chain([HeldTask { task: leases[0].task, token: FencingToken(1), done_bytes: 7 }])
        .collect();
    q.heartbeat(&worker(1), &named).await.expect("heartbeat");
    let task = |n: u64| WorkerTask { task: leases[n as usize].task, done_bytes: n * 50, source_bytes: (n + 1) * 100 };
    assert_eq!(shown(1).await, [task(0), task(1), task(2)], "what is not its own is not shown");
    q.commit(leases[1].task, leases[1].token, &TOTALS).await.expect("commit");
    q.claim(&worker(1), 1).await.expect("a claim changes nothing of it");
    assert_eq!(shown(1).await, [task(0), task(2)], "and still holds");
    q.heartbeat(&worker(1), &[HeldTask { done_bytes: u64::MAX, ..named[0] }]).await.expect("heartbeat");
    let seen = shown(1).await;
    assert_eq!(seen.len(), 1);
    assert!(seen[0].done_bytes >= 1 << 53, "nonsense is shown as a large number: {seen:?}");
    q.heartbeat(&worker(1), &[]).await.expect("heartbeat");
    assert_eq!(shown(1).await, []);
}

pub(super) async fn a_sound_queue_needs_no_repair(engine: &dyn Engine) {
    let q = engine.queue();
    assert_eq!(q.repair_job(job(1)).await, Err(QueueError::UnknownJob(job(1))));
    submit(&q, job(1), SHARE, &[1 << 52; 700]).await;
    for lease in q.claim(&worker(1), 300).await.expect("claim") {
        match lease.task.number % 5 {
            0 => q.commit(lease.task, lease.token, &TOTALS).await.expect("commit"),
            1 => q.release(lease.task, lease.token).await.expect("release"),
            2 => drop(q.fail(lease.task, lease.token, &failure(true, "x")).await.expect("fail")),
            3 => drop(q.checkpoint(lease.task, lease.token, &checkpoint(2)).await.expect("checkpoint")),
            _ => drop(q.fail(lease.task, lease.token, &failure(false, "x")).await.expect("fail")),
        }
    }
    let before = q.job(job(1)).await;
    assert_eq!(q.audit().await, Ok(vec![]));
    assert_eq!(q.repair_job(job(1)).await, Ok(0));
    assert_eq!(q.job(job(1)).await, before);
}

/// Auditors and a repairer at work while tasks come, go, fail and are cancelled must find nothing: what is under way is
/// not wrong.
pub(super) async fn an_audit_of_a_busy_queue_names_nothing(engine: &dyn Engine) {
    const TASKS: usize = 1500;
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[3; TASKS]).await;
    submit(&q, job(2), SHARE, &[5; 100]).await;
    let auditors: Vec<_> = (0..2)
        .map(|n| {
            let q = Arc::clone(&q);
            tokio::spawn(async move {
                let mut rounds = 0;
                while q.job(job(1)).await.expect("job").expect("known").open() > 0 {
                    if n == 0 {
                        assert_eq!(q.audit().await, Ok(vec![]), "round {rounds}");
                    } else {
                        // Another walk may keep this one from its end.
                        let wrong = q.repair_job(job(1)).await;
                        assert!(matches!(wrong, Ok(0) | Err(QueueError::Unavailable(_))), "{wrong:?}");
                    }
                    rounds += 1;
                    // The in-memory queue never waits: others need the thread.
                    tokio::task::yield_now().await;
                }
                rounds
            })
        })
        .collect();
    let workers: Vec<_> = (0..3).map(|n| tokio::spawn(work(Arc::clone(&q), n))).collect();
    for paused in [true, false, true] {
        q.set_paused(job(2), paused).await.expect("pause");
        tokio::task::yield_now().await;
    }
    while q.cancel_job(job(2), 10).await.expect("cancel") > 0 {}
    for worker in workers {
        worker.await.expect("a worker ends well");
    }
    for auditor in auditors {
        assert!(auditor.await.expect("an auditor ends well") > 0);
    }
}

/// Works until nothing of job 1 is open.
async fn work(q: SharedQueue, n: u8) {
    while q.job(job(1)).await.expect("job").expect("known").open() > 0 {
        tokio::task::yield_now().await;
        for lease in q.claim(&worker(n), 4).await.expect("claim") {
            let (task, token) = (lease.task, lease.token);
            // Job 2 is being cancelled.
            let cancelled = Err(QueueError::Cancelled { task });
            let held = q.checkpoint(task, token, &checkpoint(task.number % 7)).await;
            assert!(held.is_ok() || held == cancelled, "{held:?}");
            let done = match task.number % 8 {
                0 if lease.attempt == 1 && lease.checkpoint.is_none() => q.release(task, token).await,
                1 => q.fail(task, token, &failure(true, "x")).await.map(drop),
                2 => q.settle(task, TaskState::Committed, &TOTALS).await,
                _ => q.commit(task, token, &TOTALS).await,
            };
            assert!(done.is_ok() || done == Err(QueueError::Cancelled { task }), "{done:?}");
        }
    }
}
