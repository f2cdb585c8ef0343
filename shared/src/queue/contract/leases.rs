//! What a lease permits, and until when.

use std::time::Duration;

use super::{
    Engine, LEASE, MAX_ATTEMPTS, SHARE, TOTALS, checkpoint, claim, failure, held, in_progress, job, submit, view,
    worker,
};
use crate::ids::{FencingToken, TaskId};
use crate::queue::{FailOutcome, Held, MAX_MESSAGE_BYTES, QueueError, SharedQueue, TaskState, TaskTotals, Tick};

/// Every operation that asks for a token must refuse this one.
async fn assert_stale(q: &SharedQueue, task: TaskId, token: FencingToken, with_commit: bool) {
    let stale = QueueError::Stale { task, token };
    assert!(!stale.is_transient());
    assert_eq!(q.checkpoint(task, token, &checkpoint(1)).await, Err(stale.clone()), "checkpoint");
    assert_eq!(q.drop_checkpoint(task, token).await, Err(stale.clone()), "drop_checkpoint");
    assert_eq!(q.fail(task, token, &failure(false, "x")).await, Err(stale.clone()), "fail");
    assert_eq!(q.fail(task, token, &failure(true, "x")).await, Err(stale.clone()), "fail for good");
    assert_eq!(q.release(task, token).await, Err(stale.clone()), "release");
    assert_eq!(q.heartbeat(&worker(1), &[held(task, token)]).await, Ok(vec![Held::Lost]), "heartbeat");
    if with_commit {
        assert_eq!(q.commit(task, token, &TOTALS).await, Err(stale), "commit");
    }
}

pub(super) async fn each_change_asks_for_the_token(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1, 1]).await;
    let lease = claim(&q, 1).await;
    for wrong in [0, 1, lease.token.0 - 1, lease.token.0 + 1, u64::MAX] {
        assert_stale(&q, lease.task, FencingToken(wrong), true).await;
    }
    // A task nobody holds, and one the job does not have.
    for number in [1, 77] {
        assert_stale(&q, TaskId { job: job(1), number }, lease.token, true).await;
        assert_stale(&q, TaskId { job: job(1), number }, FencingToken(0), true).await;
    }
    let unknown = TaskId { job: job(9), number: 0 };
    assert_eq!(q.commit(unknown, lease.token, &TOTALS).await, Err(QueueError::UnknownJob(job(9))));
    assert_eq!(q.release(unknown, lease.token).await, Err(QueueError::UnknownJob(job(9))));
    assert_eq!(q.heartbeat(&worker(1), &[held(unknown, lease.token)]).await, Ok(vec![Held::Lost]));
    assert_eq!(view(&q, lease.task).await.state, TaskState::Leased, "none of this changed anything");
    q.commit(lease.task, lease.token, &TOTALS).await.expect("the right token commits");
}

pub(super) async fn a_final_task_takes_no_token(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1, 1]).await;
    let (done, dead) = (claim(&q, 1).await, claim(&q, 1).await);
    q.commit(done.task, done.token, &TOTALS).await.expect("commit");
    q.fail(dead.task, dead.token, &failure(true, "broken")).await.expect("fail");
    assert_stale(&q, done.task, done.token, false).await;
    assert_stale(&q, dead.task, dead.token, true).await;
}

pub(super) async fn an_expired_lease_passes_on(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let first = claim(&q, 1).await;
    q.checkpoint(first.task, first.token, &checkpoint(2)).await.expect("checkpoint");
    engine.advance(LEASE).await;
    // Ran out, but not taken back yet: nobody else can hold it, so it may still be renewed.
    assert_eq!(q.heartbeat(&worker(1), &[held(first.task, first.token)]).await, Ok(vec![Held::Yes]));
    engine.advance(LEASE).await;
    let tick = q.tick(10).await.expect("tick");
    assert_eq!(tick, Tick { expired: vec![first.task], died: vec![], revived: 0 });
    assert_eq!(q.tick(10).await, Ok(Tick::default()));
    assert_stale(&q, first.task, first.token, true).await;
    let second = claim(&q, 2).await;
    assert_eq!(second.task, first.task);
    assert!(second.token > first.token);
    assert_eq!(second.checkpoint, Some(checkpoint(2)), "the next holder continues");
    assert_stale(&q, first.task, first.token, true).await;
    q.commit(second.task, second.token, &TOTALS).await.expect("the new holder commits");
    assert_stale(&q, first.task, first.token, true).await;
}

pub(super) async fn heartbeats_keep_leases(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1, 1, 1]).await;
    let (kept, lost) = (claim(&q, 1).await, claim(&q, 1).await);
    let other = claim(&q, 2).await;
    for _ in 0..3 {
        engine.advance(LEASE * 2 / 3).await;
        let named = [held(kept.task, kept.token), held(kept.task, lost.token), held(other.task, other.token)];
        let answers = [Held::Yes, Held::Lost, Held::Yes];
        assert_eq!(q.heartbeat(&worker(1), &named).await, Ok(answers.to_vec()), "in the order of the question");
    }
    let tick = q.tick(10).await.expect("tick");
    assert_eq!(tick.expired, [lost.task], "only what was not renewed ran out");
    assert_eq!(q.heartbeat(&worker(1), &[]).await, Ok(vec![]));
}

pub(super) async fn checkpoints_are_progress(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1, 1]).await;
    let first = claim(&q, 1).await;
    q.fail(first.task, first.token, &failure(false, "once")).await.expect("fail");
    engine.advance(Duration::from_millis(100)).await;
    let lease = claim(&q, 1).await;
    assert_eq!((lease.task, lease.attempt), (first.task, 2));
    q.checkpoint(lease.task, lease.token, &checkpoint(1)).await.expect("checkpoint");
    assert_eq!(view(&q, lease.task).await.attempts, 0, "progress resets the count");
    engine.advance(LEASE * 2 / 3).await;
    q.checkpoint(lease.task, lease.token, &checkpoint(3)).await.expect("checkpoint");
    engine.advance(LEASE / 2).await;
    assert_eq!(q.tick(10).await, Ok(Tick::default()), "a checkpoint renews the lease");
    let other = claim(&q, 1).await;
    q.checkpoint(other.task, other.token, &checkpoint(1)).await.expect("checkpoint");
    let mut sum = in_progress(3);
    sum.change(&in_progress(1), &TaskTotals::default());
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.in_progress, counters.totals), (sum, TaskTotals::default()));
    q.release(lease.task, lease.token).await.expect("release");
    q.commit(other.task, other.token, &TOTALS).await.expect("commit");
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.in_progress, counters.totals), (in_progress(3), TOTALS), "an open task keeps its progress");
    let again = claim(&q, 2).await;
    assert_eq!((again.checkpoint, again.attempt), (Some(checkpoint(3)), 1));
}

pub(super) async fn a_dropped_checkpoint_is_gone(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let lease = claim(&q, 1).await;
    q.drop_checkpoint(lease.task, lease.token).await.expect("there may be none");
    q.checkpoint(lease.task, lease.token, &checkpoint(4)).await.expect("checkpoint");
    q.drop_checkpoint(lease.task, lease.token).await.expect("drop");
    assert_eq!(q.job(job(1)).await.expect("job").expect("known").in_progress, TaskTotals::default());
    q.release(lease.task, lease.token).await.expect("release");
    assert_eq!(claim(&q, 1).await.checkpoint, None);
}

pub(super) async fn release_costs_nothing(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    for _ in 0..MAX_ATTEMPTS * 2 {
        let lease = claim(&q, 1).await;
        assert_eq!(lease.attempt, 1);
        q.release(lease.task, lease.token).await.expect("release");
        let seen = view(&q, lease.task).await;
        assert_eq!((seen.state, seen.attempts, seen.worker), (TaskState::Pending, 0, None), "claimable at once");
    }
}

pub(super) async fn failures_are_tried_again_then_given_up(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let task = TaskId { job: job(1), number: 0 };
    for attempt in 1..=MAX_ATTEMPTS {
        let lease = claim(&q, 1).await;
        assert_eq!(lease.attempt, attempt);
        let outcome = q.fail(task, lease.token, &failure(false, &format!("no {attempt}"))).await.expect("fail");
        let seen = view(&q, task).await;
        assert_eq!(seen.message, Some(format!("no {attempt}")));
        assert_eq!((seen.attempts, seen.token, seen.worker), (attempt, lease.token, None));
        if attempt == MAX_ATTEMPTS {
            assert_eq!((outcome, seen.state), (FailOutcome::Dead, TaskState::Dead));
        } else {
            assert!(matches!(outcome, FailOutcome::Delayed { .. }), "{outcome:?}");
            assert_eq!(seen.state, TaskState::Delayed);
            // No delay is above the maximum.
            engine.advance(Duration::from_millis(80)).await;
            assert_eq!(q.tick(10).await.expect("tick").revived, 1);
            assert_eq!(view(&q, task).await.state, TaskState::Pending);
        }
    }
    assert_eq!(q.claim(&worker(1), 1).await, Ok(vec![]));
    assert_eq!(q.job(job(1)).await.expect("job").expect("known").dead, 1);
}

pub(super) async fn permanent_failures_are_given_up_at_once(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let lease = claim(&q, 1).await;
    q.checkpoint(lease.task, lease.token, &checkpoint(1)).await.expect("checkpoint");
    let long = format!("{}ä…", "x".repeat(MAX_MESSAGE_BYTES - 3));
    assert_eq!(q.fail(lease.task, lease.token, &failure(true, &long)).await, Ok(FailOutcome::Dead));
    let message = view(&q, lease.task).await.message.expect("a message");
    assert_eq!(message, format!("{}ä", "x".repeat(MAX_MESSAGE_BYTES - 3)), "cut between two characters");
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.dead, counters.open(), counters.in_progress), (1, 0, TaskTotals::default()));
}

pub(super) async fn a_task_that_takes_its_workers_down_dies(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let task = TaskId { job: job(1), number: 0 };
    for attempt in 1..=MAX_ATTEMPTS {
        assert_eq!(claim(&q, 1).await.attempt, attempt);
        engine.advance(LEASE).await;
        let tick = q.tick(10).await.expect("tick");
        let gone = if attempt == MAX_ATTEMPTS { &tick.died } else { &tick.expired };
        assert_eq!(gone, &[task], "attempt {attempt}: {tick:?}");
    }
    let seen = view(&q, task).await;
    assert_eq!(seen.state, TaskState::Dead);
    assert!(seen.message.expect("a message").contains("lease"));
}

pub(super) async fn a_tick_is_bounded(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1; 8]).await;
    for lease in q.claim(&worker(1), 3).await.expect("claim") {
        q.fail(lease.task, lease.token, &failure(false, "x")).await.expect("fail");
    }
    let held = q.claim(&worker(1), 3).await.expect("claim").len();
    engine.advance(LEASE).await;
    assert_eq!(q.tick(0).await, Ok(Tick::default()));
    let mut changed = Vec::new();
    loop {
        let tick = q.tick(2).await.expect("tick");
        let sum = tick.expired.len() + tick.died.len() + tick.revived as usize;
        if sum == 0 {
            break;
        }
        changed.push(sum);
    }
    assert!(changed.iter().all(|&sum| sum <= 2), "{changed:?}");
    assert_eq!(held, 3);
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.pending, counters.leased, counters.delayed), (8, 0, 0));
}

pub(super) async fn a_commit_may_be_repeated(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[1]).await;
    let lease = claim(&q, 1).await;
    for _ in 0..2 {
        // The answer to the first may have been lost.
        q.commit(lease.task, lease.token, &TOTALS).await.expect("commit");
        let counters = q.job(job(1)).await.expect("job").expect("known");
        assert_eq!((counters.committed, counters.totals), (1, TOTALS), "counted once");
    }
    let other = FencingToken(lease.token.0 + 1);
    let stale = QueueError::Stale { task: lease.task, token: other };
    assert_eq!(q.commit(lease.task, other, &TOTALS).await, Err(stale));
}
