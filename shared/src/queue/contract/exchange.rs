//! Commits and claims in one step.

use super::{Engine, LEASE, SHARE, TOTALS, checkpoint, claim, failure, job, submit, view, worker};
use crate::ids::{FencingToken, TaskId};
use crate::queue::{
    Exchanged, FinishedTask, JobShare, Lease, MAX_FINISHED, QueueError, SharedQueue, TaskState, TaskTotals,
};

fn finished(lease: &Lease) -> FinishedTask {
    FinishedTask { task: lease.task, token: lease.token, totals: TOTALS }
}

async fn exchange(q: &SharedQueue, n: u8, leases: &[Lease], free: usize) -> Exchanged {
    let finished: Vec<FinishedTask> = leases.iter().map(finished).collect();
    q.exchange(&worker(n), &finished, free).await.expect("exchange")
}

fn tasks(leases: &[Lease]) -> Vec<TaskId> {
    leases.iter().map(|lease| lease.task).collect()
}

fn numbers(leases: &[Lease]) -> Vec<u32> {
    leases.iter().map(|lease| lease.task.number).collect()
}

pub(super) async fn an_exchange_commits_and_claims_as_much_again(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[10; 20]).await;
    let first = exchange(&q, 1, &[], 3).await;
    assert_eq!((first.committed.len(), numbers(&first.leases)), (0, vec![0, 1, 2]), "nothing finished: a claim");
    let second = exchange(&q, 1, &first.leases[..2], 2).await;
    assert_eq!((second.committed, numbers(&second.leases)), (vec![Ok(()); 2], vec![3, 4, 5, 6]));
    let tokens: Vec<FencingToken> = first.leases.iter().chain(&second.leases).map(|lease| lease.token).collect();
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.committed, counters.leased, counters.pending), (2, 5, 13));
    assert_eq!(
        counters.totals,
        TaskTotals { files_packed: 14, files_failed: 2, source_bytes: 1400, stored_bytes: 600 }
    );
    assert_eq!(q.workers().await.expect("workers")[0].leases, 5);
    assert_eq!(view(&q, second.leases[0].task).await.worker, Some(worker(1).id));
    // The token counts, not who brings it.
    let third = exchange(&q, 2, &second.leases[..1], 0).await;
    assert_eq!((third.committed, numbers(&third.leases)), (vec![Ok(())], vec![7]));
    let held: Vec<u32> = q.workers().await.expect("workers").iter().map(|worker| worker.leases).collect();
    assert_eq!(held, [4, 1]);
    // What a worker took in an exchange expires like any other lease.
    engine.advance(LEASE).await;
    assert_eq!(q.tick(100).await.expect("tick").expired.len(), 5);
    assert_eq!(q.stats().await.expect("stats").pending, 17);
    let again = exchange(&q, 1, &[], 2).await.leases;
    let attempts: Vec<(u32, u32)> = again.iter().map(|lease| (lease.task.number, lease.attempt)).collect();
    assert_eq!(attempts, [(2, 2), (4, 2)]);
}

pub(super) async fn one_refused_task_keeps_no_other_from_its_commit(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[10; 20]).await;
    submit(&q, job(2), SHARE, &[10; 1]).await;
    let mut leases = exchange(&q, 1, &[], 6).await.leases;
    let other = leases.iter().position(|lease| lease.task.job == job(2)).expect("its turn");
    let other = leases.remove(other);
    q.cancel_job(job(2), 0).await.expect("cancel");
    let gone = Lease { task: TaskId { job: job(9), number: 0 }, ..other.clone() };
    let stale = Lease { token: leases[4].token, ..leases[3].clone() };
    q.release(leases[1].task, leases[1].token).await.expect("release");
    let all = [leases[0].clone(), leases[1].clone(), other.clone(), gone, stale.clone(), leases[2].clone()];
    let answer = exchange(&q, 1, &all, 0).await;
    let refused = |lease: &Lease| Err(QueueError::Stale { task: lease.task, token: lease.token });
    assert_eq!(
        answer.committed,
        [
            Ok(()),
            refused(&leases[1]),
            Err(QueueError::Cancelled { task: other.task }),
            Err(QueueError::UnknownJob(job(9))),
            refused(&stale),
            Ok(()),
        ]
    );
    assert_eq!(tasks(&answer.leases)[0], leases[1].task, "what was released is first");
    assert_eq!(answer.leases.len(), 2, "as many as were committed");
    assert_eq!(q.job(job(1)).await.expect("job").expect("known").committed, 2);
}

pub(super) async fn a_repeated_exchange_commits_once(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[10; 20]).await;
    let leases = exchange(&q, 1, &[], 2).await.leases;
    for round in 1..=3 {
        // The answers are lost: what was claimed with them comes back with the end of its lease.
        assert_eq!(exchange(&q, 1, &leases, 0).await.committed, [Ok(()), Ok(())], "round {round}");
    }
    // Named twice at once, too.
    let twice = [leases[0].clone(), leases[0].clone()];
    assert_eq!(exchange(&q, 1, &twice, 0).await.committed, [Ok(()), Ok(())]);
    let held = exchange(&q, 1, &[], 1).await.leases.remove(0);
    let answer = exchange(&q, 1, &[held.clone(), held], 0).await;
    assert_eq!((answer.committed, answer.leases.len()), (vec![Ok(()); 2], 2));
    let counters = q.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.committed, counters.leased, counters.totals.files_packed), (3, 10, 21));
    engine.advance(LEASE).await;
    assert_eq!(q.tick(100).await.expect("tick").expired.len(), 10);
}

pub(super) async fn an_exchange_goes_by_the_same_order(engine: &dyn Engine) {
    let q = engine.queue();
    let share = |weight| JobShare { weight, ..SHARE };
    // The same jobs in two priorities: one is served task by task, the other in one step.
    for (n, weight) in [(1, 3), (2, 2), (3, 1)] {
        let sizes: Vec<u64> = (0..60).map(|number| 1 + (number * 37 + u64::from(n) * 11) % 100).collect();
        submit(&q, job(n), JobShare { priority: 5, ..share(weight) }, &sizes).await;
        submit(&q, job(10 + n), share(weight), &sizes).await;
    }
    let mut one_by_one = Vec::new();
    for _ in 0..50 {
        one_by_one.push(claim(&q, 1).await.task);
    }
    for n in 1..=3 {
        q.set_paused(job(n), true).await.expect("pause");
    }
    let mut leases = exchange(&q, 1, &[], 20).await.leases;
    while leases.len() < 50 {
        let held = leases[leases.len() - 10..].to_vec();
        leases.extend(exchange(&q, 1, &held, 0).await.leases);
    }
    let together: Vec<TaskId> = (1..=3)
        .flat_map(|n| leases.iter().filter(move |lease| lease.task.job == job(10 + n)))
        .map(|lease| lease.task)
        .collect();
    let order = |tasks: Vec<TaskId>, base: u8| -> Vec<(u8, u32)> {
        let n = |task: &TaskId| (1..=3).find(|n| job(base + n) == task.job).expect("one of the three");
        tasks.iter().map(|task| (n(task), task.number)).collect()
    };
    assert_eq!(together.len(), 50);
    assert_eq!(order(tasks(&leases), 10), order(one_by_one, 0));
}

pub(super) async fn holds_and_caps_count_within_an_exchange(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), JobShare { max_running: Some(2), ..SHARE }, &[10; 9]).await;
    let leases = exchange(&q, 1, &[], 5).await.leases;
    assert_eq!(numbers(&leases), [0, 1], "the cap");
    let next = exchange(&q, 1, &leases[..1], 5).await.leases;
    assert_eq!(numbers(&next), [2], "the place the commit frees");
    q.set_paused(job(1), true).await.expect("pause");
    let held = [leases[1].clone(), next[0].clone()];
    let answer = exchange(&q, 1, &held, 5).await;
    assert_eq!(answer, Exchanged { committed: vec![Ok(()); 2], leases: vec![] }, "paused: committed, and nothing new");
    q.set_paused(job(1), false).await.expect("resume");
    // The last tasks of a job.
    submit(&q, job(2), JobShare { priority: -1, ..SHARE }, &[10; 3]).await;
    q.set_share(job(1), SHARE).await.expect("no cap");
    let rest = exchange(&q, 1, &[], 8).await.leases;
    assert_eq!(tasks(&rest), (3..9).map(|n| (1, n)).chain([(2, 0), (2, 1)]).map(task).collect::<Vec<_>>());
    assert_eq!(tasks(&exchange(&q, 1, &rest, 8).await.leases), [task((2, 2))]);
    assert_eq!(exchange(&q, 1, &[], 8).await.leases, []);
}

fn task((n, number): (u8, u32)) -> TaskId {
    TaskId { job: job(n), number }
}

pub(super) async fn checkpoints_and_histories_end_with_an_exchange(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &[10; 9]).await;
    let leases = exchange(&q, 1, &[], 3).await.leases;
    q.checkpoint(leases[0].task, leases[0].token, &checkpoint(2)).await.expect("checkpoint");
    q.fail(leases[1].task, leases[1].token, &failure(false, "a reason")).await.expect("fail");
    engine.advance(LEASE).await;
    // The lease of the first ran out; nobody took it back, so it is still its holder's. The retry is due.
    let answer = exchange(&q, 1, &leases[..1], 0).await;
    assert_eq!(answer.committed, [Ok(())]);
    assert_eq!(tasks(&answer.leases), [leases[1].task], "due retries come first");
    assert_eq!(exchange(&q, 1, &answer.leases, 0).await.committed, [Ok(())]);
    // A checkpoint, and nothing else out of the usual.
    q.checkpoint(leases[2].task, leases[2].token, &checkpoint(3)).await.expect("checkpoint");
    assert_eq!(exchange(&q, 1, &leases[2..], 0).await.committed, [Ok(())]);
    for lease in &leases {
        let seen = view(&q, lease.task).await;
        assert_eq!(
            (seen.state, seen.checkpoint, seen.message, seen.history),
            (TaskState::Committed, None, None, vec![])
        );
    }
    assert_eq!(q.job(job(1)).await.expect("job").expect("known").in_progress, TaskTotals::default());
}

pub(super) async fn an_exchange_is_bounded(engine: &dyn Engine) {
    let q = engine.queue();
    submit(&q, job(1), SHARE, &vec![1; 200]).await;
    let leases = exchange(&q, 1, &[], MAX_FINISHED).await.leases;
    let answer = exchange(&q, 1, &leases, 1).await;
    assert_eq!((answer.committed.len(), answer.leases.len()), (MAX_FINISHED, MAX_FINISHED + 1));
    let many: Vec<FinishedTask> = answer.leases.iter().map(finished).collect();
    assert!(matches!(q.exchange(&worker(1), &many, 0).await, Err(QueueError::Invalid(_))));
    let huge = FinishedTask { totals: TaskTotals { stored_bytes: u64::MAX, ..TOTALS }, ..many[0] };
    assert!(matches!(q.exchange(&worker(1), &[huge], 0).await, Err(QueueError::Invalid(_))));
    assert_eq!(q.job(job(1)).await.expect("job").expect("known").committed, 64, "nothing was done by half");
}
