//! What the queue tells about itself, and the changes that need no lease.

use std::time::Duration;

use super::{Engine, LEASE, SHARE, TOTALS, checkpoint, claim, failure, in_progress, job, submit, worker};
use crate::ids::{FencingToken, TaskId, WorkerId};
use crate::queue::{
    Checkpoint, JobCounters, JobShare, Lease, NewTask, QueueError, QueueStats, SharedQueue, TaskState, TaskTotals,
    WorkerInfo,
};

/// Tasks 0 to 5 of job 1, one in each state a task can be in by itself; task 5 is pending.
async fn one_in_each_state(q: &SharedQueue) -> Vec<Lease> {
    submit(q, job(1), SHARE, &[1; 6]).await;
    let leases = q.claim(&worker(1), 5).await.expect("claim");
    q.commit(leases[0].task, leases[0].token, &TOTALS).await.expect("commit");
    q.fail(leases[1].task, leases[1].token, &failure(true, "dead")).await.expect("fail");
    q.fail(leases[2].task, leases[2].token, &failure(false, "late")).await.expect("fail");
    q.checkpoint(leases[3].task, leases[3].token, &checkpoint(2)).await.expect("checkpoint");
    leases
}

pub(super) async fn settle_takes_any_task_to_its_end(engine: &dyn Engine) {
    let q = engine.queue();
    let leases = one_in_each_state(&q).await;
    let unknown = TaskId { job: job(2), number: 0 };
    assert_eq!(q.settle(unknown, TaskState::Dead, &TOTALS).await, Err(QueueError::UnknownJob(job(2))));
    for (round, state) in [(1, TaskState::Committed), (2, TaskState::Committed), (3, TaskState::Dead)] {
        // Number 9 is not known before.
        for number in [0, 1, 2, 3, 4, 5, 9] {
            q.settle(TaskId { job: job(1), number }, state, &TOTALS).await.expect("settle");
        }
        let counters = q.job(job(1)).await.expect("job").expect("known");
        assert_eq!(counters.committed + counters.dead, 7, "round {round}");
        assert_eq!(if state == TaskState::Dead { counters.dead } else { counters.committed }, 7);
        assert_eq!((counters.open(), counters.in_progress), (0, TaskTotals::default()));
        assert_eq!(counters.totals.files_packed, 7 * TOTALS.files_packed, "round {round}: counted once");
        assert_eq!(counters.totals.stored_bytes, 7 * TOTALS.stored_bytes, "round {round}: counted once");
    }
    let half = TaskTotals { files_packed: 3, ..TOTALS };
    q.settle(leases[0].task, TaskState::Committed, &half).await.expect("settle");
    let packed = q.job(job(1)).await.expect("job").expect("known").totals.files_packed;
    assert_eq!(packed, 6 * TOTALS.files_packed + 3, "new totals replace old ones");
    let held = leases[3].clone();
    let stale = QueueError::Stale { task: held.task, token: held.token };
    assert_eq!(q.release(held.task, held.token).await, Err(stale), "its lease is over");
    assert_eq!(q.claim(&worker(1), 9).await, Ok(vec![]));
    for state in [TaskState::Pending, TaskState::Leased, TaskState::Delayed, TaskState::Cancelled] {
        assert!(matches!(q.settle(held.task, state, &TOTALS).await, Err(QueueError::Invalid(_))), "{state:?}");
    }
}

pub(super) async fn counters_and_tasks_agree(engine: &dyn Engine) {
    let q = engine.queue();
    let leases = one_in_each_state(&q).await;
    let counters = q.job(job(1)).await.expect("job").expect("known");
    let expected = JobCounters {
        pending: 1,
        leased: 2,
        delayed: 1,
        committed: 1,
        dead: 1,
        cancelled: 0,
        totals: TOTALS,
        in_progress: in_progress(2),
    };
    assert_eq!(counters, expected);
    let all = q.tasks(job(1), 0, 100).await.expect("tasks");
    let states: Vec<TaskState> = all.iter().map(|task| task.state).collect();
    let expected = "[Committed, Dead, Delayed, Leased, Leased, Pending]";
    assert_eq!(format!("{states:?}"), expected);
    assert_eq!(all.iter().map(|task| task.number).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    let tokens: Vec<FencingToken> = leases.iter().map(|lease| lease.token).chain([FencingToken(0)]).collect();
    assert_eq!(all.iter().map(|task| task.token).collect::<Vec<_>>(), tokens);
    let messages: Vec<Option<&str>> = all.iter().map(|task| task.message.as_deref()).collect();
    assert_eq!(messages, [None, Some("dead"), Some("late"), None, None, None]);
    assert_eq!(q.tasks(job(1), 2, 3).await.expect("tasks"), all[2..5]);
    assert_eq!(q.tasks(job(1), 6, 3).await, Ok(vec![]));
    assert_eq!(q.tasks(job(1), 0, 0).await, Ok(vec![]));
    assert_eq!(q.tasks(job(1), u32::MAX, 5).await, Ok(vec![]));
    assert_eq!(q.tasks(job(2), 0, 1).await, Err(QueueError::UnknownJob(job(2))));
    assert_eq!(q.job(job(2)).await, Ok(None));
}

pub(super) async fn a_forgotten_job_leaves_nothing(engine: &dyn Engine) {
    let q = engine.queue();
    let leases = one_in_each_state(&q).await;
    submit(&q, job(2), SHARE, &[1]).await;
    q.forget_job(job(1)).await.expect("forget");
    q.forget_job(job(1)).await.expect("a job that is not known can be forgotten");
    assert_eq!(q.job(job(1)).await, Ok(None));
    assert_eq!(q.jobs().await, Ok(vec![job(2)]));
    let gone = Err(QueueError::UnknownJob(job(1)));
    assert_eq!(q.commit(leases[3].task, leases[3].token, &TOTALS).await, gone);
    assert!(QueueError::UnknownJob(job(1)).is_transient());
    let stats = q.stats().await.expect("stats");
    assert_eq!((stats.pending, stats.leased, stats.delayed, stats.dead, stats.jobs), (1, 0, 0, 0, 1));
    assert_eq!(q.workers().await.expect("workers")[0].leases, 0);
    submit(&q, job(1), SHARE, &[1]).await;
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!(counters, JobCounters { pending: 1, ..JobCounters::default() }, "it starts anew");
    let token = claim(&q, 1).await.token.max(claim(&q, 1).await.token);
    assert!(token > leases[4].token);
}

pub(super) async fn stats_count_and_age(engine: &dyn Engine) {
    let q = engine.queue();
    assert_eq!(q.stats().await, Ok(QueueStats::default()));
    one_in_each_state(&q).await;
    engine.advance(Duration::from_millis(20)).await;
    submit(&q, job(2), SHARE, &[1; 3]).await;
    let stats = q.stats().await.expect("stats");
    assert_eq!((stats.pending, stats.leased, stats.delayed, stats.dead, stats.jobs), (4, 2, 1, 1, 2));
    assert!(stats.oldest_pending_age_ms >= 20, "{stats:?}");
    q.settle(TaskId { job: job(1), number: 2 }, TaskState::Dead, &TOTALS).await.expect("settle");
    q.settle(TaskId { job: job(1), number: 5 }, TaskState::Committed, &TOTALS).await.expect("settle");
    q.claim(&worker(1), 10).await.expect("claim");
    let stats = q.stats().await.expect("stats");
    assert_eq!((stats.pending, stats.dead, stats.oldest_pending_age_ms), (0, 2, 0));
}

pub(super) async fn workers_come_and_go(engine: &dyn Engine) {
    let q = engine.queue();
    assert_eq!(q.workers().await, Ok(vec![]));
    submit(&q, job(1), SHARE, &[1; 3]).await;
    q.claim(&worker(1), 2).await.expect("claim");
    q.heartbeat(&worker(2), &[]).await.expect("heartbeat");
    let workers = q.workers().await.expect("workers");
    let seen: Vec<_> = workers.iter().map(|w| (w.id, w.name.as_str(), w.slots, w.leases)).collect();
    assert_eq!(seen, [(worker(1).id, "host-1 ü:1", 1, 2), (worker(2).id, "host-2 ü:1", 2, 0)]);
    engine.advance(LEASE).await;
    q.heartbeat(&worker(2), &[]).await.expect("heartbeat");
    assert!(q.workers().await.expect("workers")[0].idle_ms >= 400);
    engine.advance(LEASE).await;
    let left: Vec<WorkerId> = q.workers().await.expect("workers").iter().map(|w| w.id).collect();
    assert_eq!(left, [worker(2).id], "two leases without a heartbeat");
    let long = WorkerInfo { name: "ä".repeat(1000), ..worker(3) };
    q.heartbeat(&long, &[]).await.expect("heartbeat");
    let names: Vec<String> = q.workers().await.expect("workers").into_iter().map(|w| w.name).collect();
    assert!(names.contains(&"ä".repeat(128)), "a long name is cut");
}

pub(super) async fn locks_have_one_holder(engine: &dyn Engine) {
    let q = engine.queue();
    let ttl = Duration::from_millis(300);
    let first = q.lock("reconcile", "a b", ttl).await.expect("lock").expect("free");
    assert_eq!(q.lock("reconcile", "b", ttl).await, Ok(None));
    let other = q.lock("other", "b", ttl).await.expect("lock").expect("another lock");
    assert!(other > first);
    engine.advance(ttl * 2 / 3).await;
    assert_eq!(q.lock("reconcile", "a b", ttl).await, Ok(Some(first)), "renewed in time");
    engine.advance(ttl * 2 / 3).await;
    assert_eq!(q.lock("reconcile", "b", ttl).await, Ok(None), "the renewal counts");
    engine.advance(ttl).await;
    let second = q.lock("reconcile", "b", ttl).await.expect("lock").expect("run out");
    assert!(second > other);
    q.unlock("reconcile", "a b").await.expect("another's lock is left alone");
    assert_eq!(q.lock("reconcile", "a b", ttl).await, Ok(None));
    q.unlock("reconcile", "b").await.expect("unlock");
    q.unlock("reconcile", "b").await.expect("unlock twice");
    let third = q.lock("reconcile", "a b", ttl).await.expect("lock").expect("given back");
    assert!(third > second);
    engine.advance(ttl).await;
    let fourth = q.lock("reconcile", "a b", ttl).await.expect("lock").expect("run out");
    assert!(fourth > third, "not renewed in time: a new hold");
}

pub(super) async fn nonsense_is_refused(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    for share in [(101, 1), (-101, 1), (0, 0), (0, 1001)] {
        let share = JobShare { priority: share.0, weight: share.1, max_running: None };
        assert!(matches!(q.add_job(job(2), share).await, Err(QueueError::Invalid(_))), "{share:?}");
    }
    let huge = NewTask { number: 5, source_bytes: u64::MAX };
    assert!(matches!(q.add_tasks(job(1), &[huge]).await, Err(QueueError::Invalid(_))));
    let lease = claim(&q, 1).await;
    let long = Checkpoint { upload_id: "x".repeat(2048), ..checkpoint(1) };
    assert!(matches!(q.checkpoint(lease.task, lease.token, &long).await, Err(QueueError::Invalid(_))));
    let huge = Checkpoint { source_bytes: u64::MAX, ..checkpoint(1) };
    assert!(matches!(q.checkpoint(lease.task, lease.token, &huge).await, Err(QueueError::Invalid(_))));
    let huge = TaskTotals { files_packed: u64::MAX, ..TOTALS };
    assert!(matches!(q.commit(lease.task, lease.token, &huge).await, Err(QueueError::Invalid(_))));
    assert!(matches!(q.settle(lease.task, TaskState::Dead, &huge).await, Err(QueueError::Invalid(_))));
    for (name, holder) in [("", "a"), ("a", ""), (&*"x".repeat(257), "a"), ("a", &*"x".repeat(257))] {
        assert!(matches!(q.lock(name, holder, LEASE).await, Err(QueueError::Invalid(_))));
    }
    assert_eq!(q.jobs().await, Ok(vec![job(1)]));
    q.commit(lease.task, lease.token, &TOTALS).await.expect("the lease took no harm");
}
