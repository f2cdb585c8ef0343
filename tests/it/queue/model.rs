//! The same random operations on the model and on Redis: every answer and everything visible must agree, and both
//! auditors must be content, after each step. `DES_MODEL_CASES` sets the number of sequences.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use des_shared::clock::{Dice, ManualClock};
use des_shared::ids::{FencingToken, JobId, TaskId, WorkerId};
use des_shared::queue::contract::Engine;
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::{
    Checkpoint, Exchanged, FinishedTask, HeldTask, JobShare, NewTask, QueueConfig, QueueError, SharedQueue,
    TaskFailure, TaskState, TaskTotals, WorkerInfo,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::server::RedisServer;
use super::{START_MS, Subject};

/// Sequences in a normal run.
const CASES: u32 = 48;
const JOBS: u8 = 3;
const LEASE_MS: u64 = 1000;

#[derive(Clone, Debug)]
enum Op {
    AddJob {
        job: u8,
        share: JobShare,
    },
    AddTasks {
        job: u8,
        tasks: Vec<NewTask>,
    },
    Claim {
        worker: u8,
        max: usize,
    },
    Heartbeat {
        worker: u8,
        leases: Vec<usize>,
    },
    Checkpoint {
        lease: usize,
        parts: u32,
    },
    DropCheckpoint {
        lease: usize,
    },
    Commit {
        lease: usize,
        totals: TaskTotals,
    },
    /// Commits the worker's own newest leases and others, then claims.
    Exchange {
        worker: u8,
        own: usize,
        others: Vec<usize>,
        totals: TaskTotals,
        free: usize,
    },
    Fail {
        lease: usize,
        permanent: bool,
        message: String,
    },
    Release {
        lease: usize,
    },
    Settle {
        job: u8,
        number: u32,
        state: TaskState,
        totals: TaskTotals,
    },
    Tick {
        limit: usize,
    },
    Forget {
        job: u8,
    },
    SetShare {
        job: u8,
        share: JobShare,
    },
    SetPaused {
        job: u8,
        paused: bool,
    },
    Cancel {
        job: u8,
        limit: usize,
    },
    Repair {
        job: u8,
    },
    Lock {
        name: u8,
        holder: u8,
        ttl_ms: u64,
    },
    Unlock {
        name: u8,
        holder: u8,
    },
    Advance {
        ms: u64,
    },
    LoseEverything,
}

fn totals() -> impl Strategy<Value = TaskTotals> {
    (0..9_u64, 0..9_u64, 0..1_u64 << 40, 0..1_u64 << 40).prop_map(
        |(files_packed, files_failed, source_bytes, stored_bytes)| TaskTotals {
            files_packed,
            files_failed,
            source_bytes,
            stored_bytes,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let job = 0..JOBS;
    // Few numbers, so that operations meet; a few sizes that strain doubles.
    let size = prop_oneof![4 => 0..100_u64, 1 => 1_u64 << 30..1 << 40, 1 => Just((1 << 53) - 1)];
    let task = (0..30_u32, size).prop_map(|(number, source_bytes)| NewTask { number, source_bytes });
    let cap = prop_oneof![2 => Just(None), 1 => (1..4_u32).prop_map(Some)];
    let share = (-1..=1_i32, 1..=7_u32, cap).prop_map(|(priority, weight, max_running)| JobShare {
        priority,
        weight,
        max_running,
    });
    let lease = any::<prop::sample::Index>().prop_map(|index| index.index(64));
    let others = prop_oneof![4 => Just(vec![]), 1 => prop::collection::vec(lease.clone(), 0..3)];
    let time = prop_oneof![2 => 0..50_u64, 2 => 50..LEASE_MS, 1 => Just(LEASE_MS), 1 => LEASE_MS..3 * LEASE_MS];
    let state = prop_oneof![4 => Just(TaskState::Committed), 3 => Just(TaskState::Dead), 1 => Just(TaskState::Pending)];
    prop_oneof![
        3 => (job.clone(), share.clone()).prop_map(|(job, share)| Op::AddJob { job, share }),
        6 => (job.clone(), prop::collection::vec(task, 0..12)).prop_map(|(job, tasks)| Op::AddTasks { job, tasks }),
        // Mostly one at a time, as workers with a free slot ask: that has its own way through the script.
        10 => (0..4_u8, prop_oneof![6 => Just(1), 2 => 0..4_usize, 1 => 4..12_usize])
            .prop_map(|(worker, max)| Op::Claim { worker, max }),
        4 => (0..4_u8, prop::collection::vec(lease.clone(), 0..5))
            .prop_map(|(worker, leases)| Op::Heartbeat { worker, leases }),
        5 => (lease.clone(), 0..50_u32).prop_map(|(lease, parts)| Op::Checkpoint { lease, parts }),
        2 => lease.clone().prop_map(|lease| Op::DropCheckpoint { lease }),
        4 => (lease.clone(), totals()).prop_map(|(lease, totals)| Op::Commit { lease, totals }),
        10 => (0..4_u8, 0..5_usize, others, totals(), prop_oneof![0..3_usize, 3..12_usize]).prop_map(
            |(worker, own, others, totals, free)| Op::Exchange { worker, own, others, totals, free }
        ),
        5 => (lease.clone(), prop::bool::weighted(0.2), "\\PC{0,200}|ä{250,260}|(a\n){1,5}")
            .prop_map(|(lease, permanent, message)| Op::Fail { lease, permanent, message }),
        3 => lease.prop_map(|lease| Op::Release { lease }),
        3 => (job.clone(), 0..32_u32, state, totals())
            .prop_map(|(job, number, state, totals)| Op::Settle { job, number, state, totals }),
        5 => (0..6_usize).prop_map(|limit| Op::Tick { limit }),
        1 => job.clone().prop_map(|job| Op::Forget { job }),
        3 => (job.clone(), share).prop_map(|(job, share)| Op::SetShare { job, share }),
        4 => (job.clone(), any::<bool>()).prop_map(|(job, paused)| Op::SetPaused { job, paused }),
        1 => (job.clone(), prop_oneof![0..4_usize, Just(500)]).prop_map(|(job, limit)| Op::Cancel { job, limit }),
        1 => job.prop_map(|job| Op::Repair { job }),
        2 => (0..2_u8, 0..3_u8, 0..2 * LEASE_MS).prop_map(|(name, holder, ttl_ms)| Op::Lock { name, holder, ttl_ms }),
        1 => (0..2_u8, 0..3_u8).prop_map(|(name, holder)| Op::Unlock { name, holder }),
        7 => time.prop_map(|ms| Op::Advance { ms }),
        1 => prop::bool::weighted(0.3).prop_map(|lose| if lose { Op::LoseEverything } else { Op::Tick { limit: 9 } }),
    ]
}

/// Jobs of one priority with tasks to hand out, so that who is served next, and by how much, is decided again and again.
fn backlog() -> impl Strategy<Value = Vec<Op>> {
    let sizes = prop::collection::vec(0..100_u64, 4..12);
    prop::collection::vec((1..=7_u32, sizes), usize::from(JOBS)).prop_map(|jobs| {
        let jobs = (0_u8..).zip(jobs).flat_map(|(job, (weight, sizes))| {
            let tasks = (0..).zip(sizes).map(|(number, source_bytes)| NewTask { number, source_bytes }).collect();
            let share = JobShare { priority: 0, weight, max_running: None };
            [Op::AddJob { job, share }, Op::AddTasks { job, tasks }]
        });
        jobs.collect()
    })
}

fn sequence() -> impl Strategy<Value = Vec<Op>> {
    let first = prop_oneof![1 => Just(Vec::new()), 2 => backlog()];
    (first, prop::collection::vec(op(), 10..80)).prop_map(|(first, then)| [first, then].concat())
}

fn job(n: u8) -> JobId {
    JobId::from_parts(START_MS, [n; 10])
}

fn worker(n: u8) -> WorkerInfo {
    WorkerInfo { id: WorkerId::from_random([n; 16]), name: format!("host {n}"), slots: 2 }
}

fn checkpoint(parts: u32) -> Checkpoint {
    Checkpoint {
        upload_id: format!("upload {parts}"),
        parts,
        writers: vec![(FencingToken(u64::from(parts)), parts)],
        next_file: parts,
        offset: u64::from(parts) << 23,
        files_packed: u64::from(parts) * 3,
        files_failed: u64::from(parts / 5),
        source_bytes: u64::from(parts) << 24,
    }
}

/// Leases given so far, with the workers that got them, one of which many operations use; the first of them never was.
type Given = Vec<(TaskId, FencingToken, u8)>;

/// Applies an operation and puts the answer into words.
async fn apply(q: &SharedQueue, op: &Op, leases: &mut Given) -> String {
    let pick = |index: usize| leases[leases.len() - 1 - index % leases.len().min(12)];
    match op {
        Op::AddJob { job: n, share } => say(q.add_job(job(*n), *share).await),
        Op::AddTasks { job: n, tasks } => say(q.add_tasks(job(*n), tasks).await),
        Op::Claim { worker: n, max } => {
            let answer = q.claim(&worker(*n), *max).await;
            for lease in answer.iter().flatten() {
                leases.push((lease.task, lease.token, *n));
            }
            say(answer)
        }
        Op::Exchange { worker: n, own, others, totals, free } => {
            let own = leases.iter().rev().filter(|lease| lease.2 == *n).take(*own).copied();
            let finished: Vec<FinishedTask> = own
                .chain(others.iter().map(|&index| pick(index)))
                .map(|(task, token, _)| FinishedTask { task, token, totals: *totals })
                .collect();
            let answer = q.exchange(&worker(*n), &finished, *free).await;
            for lease in answer.iter().flat_map(|exchanged| &exchanged.leases) {
                leases.push((lease.task, lease.token, *n));
            }
            say_each(answer)
        }
        Op::Heartbeat { worker: n, leases } => {
            let held: Vec<_> = leases
                .iter()
                .map(|&index| HeldTask { task: pick(index).0, token: pick(index).1, done_bytes: index as u64 })
                .collect();
            say(q.heartbeat(&worker(*n), &held).await)
        }
        Op::Checkpoint { lease, parts } => say(q.checkpoint(pick(*lease).0, pick(*lease).1, &checkpoint(*parts)).await),
        Op::DropCheckpoint { lease } => say(q.drop_checkpoint(pick(*lease).0, pick(*lease).1).await),
        Op::Commit { lease, totals } => say(q.commit(pick(*lease).0, pick(*lease).1, totals).await),
        Op::Fail { lease, permanent, message } => {
            let failure = TaskFailure { permanent: *permanent, message: message.clone() };
            say(q.fail(pick(*lease).0, pick(*lease).1, &failure).await)
        }
        Op::Release { lease } => say(q.release(pick(*lease).0, pick(*lease).1).await),
        Op::Settle { job: n, number, state, totals } => {
            say(q.settle(TaskId { job: job(*n), number: *number }, *state, totals).await)
        }
        Op::Tick { limit } => say(q.tick(*limit).await),
        Op::Forget { job: n } => say(q.forget_job(job(*n)).await),
        Op::SetShare { job: n, share } => say(q.set_share(job(*n), *share).await),
        Op::SetPaused { job: n, paused } => say(q.set_paused(job(*n), *paused).await),
        Op::Cancel { job: n, limit } => say(q.cancel_job(job(*n), *limit).await),
        Op::Repair { job: n } => say(q.repair_job(job(*n)).await),
        Op::Lock { name, holder, ttl_ms } => {
            say(q.lock(&format!("lock {name}"), &format!("holder {holder}"), Duration::from_millis(*ttl_ms)).await)
        }
        Op::Unlock { name, holder } => say(q.unlock(&format!("lock {name}"), &format!("holder {holder}")).await),
        Op::Advance { .. } | Op::LoseEverything => String::new(),
    }
}

/// As [`say`], for the tasks of an exchange one by one.
fn say_each(answer: Result<Exchanged, QueueError>) -> String {
    match answer {
        Ok(Exchanged { committed, leases }) => {
            let committed: Vec<String> = committed.into_iter().map(say).collect();
            format!("{committed:?} {leases:?}")
        }
        Err(error) => say(Err::<(), _>(error)),
    }
}

/// An answer as text. Of a refusal only the kind counts.
fn say<T: Debug>(answer: Result<T, QueueError>) -> String {
    match answer {
        Err(QueueError::Invalid(_)) => "invalid".to_owned(),
        Err(QueueError::Unavailable(why)) => panic!("Redis is gone: {why}"),
        other => format!("{other:?}"),
    }
}

/// Everything the trait shows.
async fn visible(q: &SharedQueue) -> String {
    let mut seen = vec![say(q.jobs().await), say(q.stats().await), say(q.workers().await)];
    for n in 0..JOBS {
        seen.push(say(q.job(job(n)).await));
        seen.push(say(q.tasks(job(n), 0, 50).await));
        seen.push(say(q.tasks(job(n), 5, 3).await));
    }
    seen.join("\n")
}

async fn compare(server: &Arc<RedisServer>, case: u64, ops: &[Op], steps: &AtomicU64) -> Result<(), TestCaseError> {
    let config = QueueConfig {
        namespace: format!("model-{case}"),
        lease: Duration::from_millis(LEASE_MS),
        max_attempts: 3,
        backoff_base: Duration::from_millis(100),
        backoff_max: Duration::from_millis(1500),
    };
    let redis = Subject::new(server, config.clone(), case, true).await;
    let clock = Arc::new(ManualClock::new(START_MS));
    let memory = Arc::new(MemoryQueue::new(config, Arc::<ManualClock>::clone(&clock), Arc::new(Dice::seeded(case))));
    let model: SharedQueue = Arc::<MemoryQueue>::clone(&memory);
    let engine = redis.queue();
    let never = (TaskId { job: job(0), number: 0 }, FencingToken(1), 0);
    let (mut ours, mut theirs) = (vec![never], vec![never]);
    for (step, op) in ops.iter().enumerate() {
        match op {
            Op::Advance { ms } => {
                clock.advance(Duration::from_millis(*ms));
                redis.advance(Duration::from_millis(*ms)).await;
            }
            Op::LoseEverything => {
                memory.lose_everything();
                redis.lose_everything().await;
            }
            _ => {}
        }
        let expected = apply(&model, op, &mut ours).await;
        let got = apply(&engine, op, &mut theirs).await;
        prop_assert_eq!(&got, &expected, "answer {} to {:?}", step, op);
        prop_assert_eq!(visible(&engine).await, visible(&model).await, "after step {} {:?}", step, op);
        prop_assert_eq!(memory.audit(), Vec::<String>::new(), "the model after step {} {:?}", step, op);
        prop_assert_eq!(redis.audit().await, Vec::<String>::new(), "Redis after step {} {:?}", step, op);
        steps.fetch_add(1, Ordering::Relaxed);
    }
    server.command(&["FLUSHALL"]).await;
    Ok(())
}

#[test]
fn redis_agrees_with_the_model() {
    let cases = match std::env::var("DES_MODEL_CASES") {
        Ok(text) => text.parse().expect("DES_MODEL_CASES is a number of sequences"),
        Err(_) => CASES,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = Arc::new(runtime.block_on(RedisServer::start()));
    let (case, steps) = (AtomicU64::new(0), AtomicU64::new(0));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let result = TestRunner::new(config)
        .run(&sequence(), |ops| runtime.block_on(compare(&server, case.fetch_add(1, Ordering::Relaxed), &ops, &steps)));
    if let Err(error) = result {
        panic!("{error}");
    }
    println!("{cases} sequences, {} steps: both engines agree", steps.load(Ordering::Relaxed));
}
