//! Losing everything and getting it back, as reconciliation does from plans and receipts.

use std::time::Duration;

use super::{Engine, LONG, SHARE, TOTALS, checkpoint, held, job, sized, submit, worker};
use crate::queue::{Held, QueueError, TaskState};

pub(super) async fn everything_may_be_lost(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[10; 5]).await;
    let before = q.claim(&worker(1), 3).await.expect("claim");
    q.commit(before[0].task, before[0].token, &TOTALS).await.expect("commit");
    q.checkpoint(before[1].task, before[1].token, &checkpoint(2)).await.expect("checkpoint");
    let locked = q.lock("reconcile", "a", LONG).await.expect("lock").expect("free");
    engine.lose_everything().await;

    assert_eq!(q.jobs().await, Ok(vec![]));
    let (task, token) = (before[1].task, before[1].token);
    assert_eq!(q.checkpoint(task, token, &checkpoint(3)).await, Err(QueueError::UnknownJob(job(1))));
    assert_eq!(q.heartbeat(&worker(1), &[held(task, token)]).await, Ok(vec![Held::Lost]));
    assert_eq!(q.workers().await.expect("workers").len(), 1, "a heartbeat makes the worker known again");

    // Time moved on, and be it by a millisecond, between the loss and the return.
    engine.advance(Duration::from_millis(2)).await;
    let relocked = q.lock("reconcile", "b", LONG).await.expect("lock").expect("forgotten");
    assert!(relocked > locked);
    for _ in 0..2 {
        // Twice: two reconcilers, or one that was interrupted.
        q.add_job(job(1), SHARE).await.expect("add the job again");
        q.add_tasks(job(1), &sized(&[10; 5])).await.expect("add its tasks again");
        q.settle(before[0].task, TaskState::Committed, &TOTALS).await.expect("its receipt was found");
    }
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.committed, counters.pending, counters.totals), (1, 4, TOTALS));

    let stale = QueueError::Stale { task, token };
    assert_eq!(q.commit(task, token, &TOTALS).await, Err(stale.clone()), "a worker from before holds nothing");
    let after = q.claim(&worker(2), 10).await.expect("claim");
    assert_eq!(after.iter().map(|lease| lease.task.number).collect::<Vec<_>>(), [1, 2, 3, 4], "committed stays done");
    assert!(after.iter().all(|lease| before.iter().all(|old| lease.token > old.token)), "tokens go on growing");
    assert_eq!(q.commit(task, token, &TOTALS).await, Err(stale));
}
