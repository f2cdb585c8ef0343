//! Redis at its memory limit, how much a job takes of it, what is left of it in the end, and how long a script keeps
//! others waiting.

use std::time::{Duration, Instant};

use des_shared::ids::FencingToken;
use des_shared::queue::{
    Checkpoint, FailOutcome, Held, HeldTask, JobShare, MAX_CHECKPOINT_BYTES, NewTask, Queue, QueueError, TaskFailure,
    TaskState, TaskTotals,
};

use super::faults::{job, queue_at, submit, worker};
use super::server::RedisServer;

const SHARE: JobShare = JobShare { priority: 0, weight: 1, max_running: None };

fn totals(files: u64) -> TaskTotals {
    TaskTotals { files_packed: files, files_failed: 0, source_bytes: 1 << 30, stored_bytes: 1 << 29 }
}

/// A checkpoint as a real upload leaves it behind: an S3 upload id, one writer.
fn checkpoint(upload_id: String) -> Checkpoint {
    Checkpoint {
        upload_id,
        parts: 57,
        writers: vec![(FencingToken(1_700_000_000_000_000), 57)],
        next_file: 513,
        offset: 57 << 23,
        files_packed: 512,
        files_failed: 1,
        source_bytes: 1 << 29,
    }
}

async fn number(server: &RedisServer, words: &[&str]) -> u64 {
    redis::from_redis_value(server.command(words).await).expect("a number")
}

async fn keys(server: &RedisServer) -> Vec<String> {
    let mut keys: Vec<String> = redis::from_redis_value(server.command(&["KEYS", "*"]).await).expect("keys");
    keys.sort();
    keys
}

/// What all keys take, in bytes.
async fn used(server: &RedisServer) -> u64 {
    let mut sum = 0;
    for key in keys(server).await {
        sum += number(server, &["MEMORY", "USAGE", &key, "SAMPLES", "0"]).await;
    }
    sum
}

/// Fills the server until it takes nothing more.
async fn fill(server: &RedisServer) {
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    let info: String = redis::from_redis_value(server.command(&["INFO", "memory"]).await).expect("text");
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("used_memory");
    let limit = used.trim().parse::<u64>().expect("bytes") + (4 << 20);
    server.command(&["CONFIG", "SET", "maxmemory", &limit.to_string()]).await;
    let big = "x".repeat(64 << 10);
    for n in 0.. {
        if let Err(error) = server.try_command(&["SET", &format!("filler:{n}"), &big]).await {
            assert_eq!(error.code(), Some("OOM"), "{error}");
            break;
        }
        assert!(n < 1000, "the server never fills");
    }
    // A connection that closes gives some memory back; that must not count as room.
    server.command(&["CONFIG", "SET", "maxmemory", &(limit - (3 << 20)).to_string()]).await;
}

#[tokio::test]
async fn workers_finish_though_redis_is_at_its_memory_limit() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 6).await;
    submit(&queue, job(2), 600).await;
    let early = queue.claim(&worker(1), 1).await.expect("claim").remove(0);
    fill(&server).await;

    // Nothing new is taken in, in words that say try again.
    for refused in [
        queue.add_job(job(3), SHARE).await,
        queue.add_tasks(job(1), &[NewTask { number: 99, source_bytes: 1 }]).await.map(drop),
    ] {
        assert!(
            matches!(&refused, Err(e @ QueueError::Unavailable(why)) if e.is_transient() && why.contains("OOM")),
            "{refused:?}"
        );
    }
    // Everything that was begun goes on to its end.
    queue.ping().await.expect("ping");
    let held = HeldTask { task: early.task, token: early.token, done_bytes: 5 };
    assert_eq!(queue.heartbeat(&worker(1), &[held]).await, Ok(vec![Held::Yes]));
    let long = checkpoint("u".repeat(1500));
    assert_eq!(queue.checkpoint(early.task, early.token, &long).await, Ok(Held::Yes));
    queue.commit(early.task, early.token, &totals(9)).await.expect("commit");
    queue.set_paused(job(2), true).await.expect("pause");
    let leases = queue.claim(&worker(2), 4).await.expect("claim");
    assert_eq!(leases.len(), 4);
    queue.drop_checkpoint(leases[0].task, leases[0].token).await.expect("drop a checkpoint");
    queue.release(leases[0].task, leases[0].token).await.expect("release");
    let failure = TaskFailure { permanent: true, message: "m".repeat(500) };
    assert_eq!(queue.fail(leases[1].task, leases[1].token, &failure).await, Ok(FailOutcome::Dead));
    let failure = TaskFailure { permanent: false, ..failure };
    let outcome = queue.fail(leases[2].task, leases[2].token, &failure).await;
    assert!(matches!(outcome, Ok(FailOutcome::Delayed { .. })), "{outcome:?}");
    queue.settle(leases[3].task, TaskState::Committed, &totals(1)).await.expect("settle");
    queue.tick(10).await.expect("tick");
    let ttl = Duration::from_secs(5);
    assert!(queue.lock("reconcile", "me", ttl).await.expect("lock").is_some());
    queue.unlock("reconcile", "me").await.expect("unlock");
    queue.set_share(job(1), JobShare { weight: 5, ..SHARE }).await.expect("share");
    assert_eq!(queue.audit().await, Ok(vec![]));
    assert_eq!(queue.repair_job(job(1)).await, Ok(0));
    assert_eq!(queue.tasks(job(1), 0, 10).await.expect("tasks").len(), 6);
    assert_eq!(queue.workers().await.expect("workers").len(), 2);
    assert_eq!(queue.stats().await.expect("stats").paused, 600);
    while queue.cancel_job(job(1), 3).await.expect("cancel") > 0 {}
    queue.forget_job(job(1)).await.expect("forget");
    queue.forget_job(job(2)).await.expect("forgetting makes room");
    assert_eq!(queue.jobs().await, Ok(vec![]));
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    submit(&queue, job(3), 1).await;
    assert_eq!(queue.claim(&worker(1), 1).await.expect("claim").len(), 1);
}

#[tokio::test]
async fn a_million_files_take_little_and_leave_nothing() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    // What an installation has anyway: a worker, and the token counter.
    queue.heartbeat(&worker(1), &[]).await.expect("heartbeat");
    queue.lock("reconcile", "me", Duration::from_secs(1)).await.expect("lock");
    queue.unlock("reconcile", "me").await.expect("unlock");
    let (keys_before, before) = (keys(&server).await, used(&server).await);

    submit(&queue, job(1), 1000).await;
    let pending = used(&server).await - before;
    let leases = queue.claim(&worker(1), 1000).await.expect("claim");
    // Far more than real: every task under way at once, each with a checkpoint, one of them as long as may be.
    for lease in &leases {
        let mark = checkpoint("2~Vx0pDkqM1mBq0e8gqXc3TgkqMdd4h9W".repeat(2));
        queue.checkpoint(lease.task, lease.token, &mark).await.expect("checkpoint");
    }
    let packing = used(&server).await - before;
    for lease in &leases {
        let mark = checkpoint("u".repeat(MAX_CHECKPOINT_BYTES - 250));
        queue.checkpoint(lease.task, lease.token, &mark).await.expect("checkpoint");
    }
    let worst = used(&server).await - before;
    for lease in &leases {
        queue.commit(lease.task, lease.token, &totals(1000)).await.expect("commit");
    }
    let committed = used(&server).await - before;
    assert_eq!(queue.audit().await, Ok(vec![]));
    println!(
        "1,000,000 files in 1,000 tasks: {pending} bytes pending, {packing} with all tasks under way and checkpoints, \
         {worst} with checkpoints of the greatest length, {committed} committed"
    );
    assert!(pending.max(packing).max(worst).max(committed) < 5 << 20, "{pending} {packing} {worst} {committed}");
    queue.forget_job(job(1)).await.expect("forget");
    assert_eq!(keys(&server).await, keys_before, "nothing of it is left");
    assert!(used(&server).await <= before + 64, "{} bytes before, {} after", before, used(&server).await);
}

/// How long commands of more than a millisecond took since the last look, in microseconds, the longest first.
async fn slow(server: &RedisServer) -> Vec<u64> {
    let log: Vec<Vec<redis::Value>> =
        redis::from_redis_value(server.command(&["SLOWLOG", "GET", "2000"]).await).expect("the slow log");
    server.command(&["SLOWLOG", "RESET"]).await;
    let took = |mut entry: Vec<redis::Value>| redis::from_redis_value(entry.swap_remove(2)).expect("microseconds");
    let mut took: Vec<u64> = log.into_iter().map(took).collect();
    took.sort_unstable_by(|a, b| b.cmp(a));
    took
}

/// A job of 100,000 tasks in every step that walks over tasks: others never wait long for a single script.
#[tokio::test]
async fn no_script_keeps_others_waiting() {
    const TASKS: u32 = 100_000;
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    server.command(&["CONFIG", "SET", "slowlog-max-len", "2000"]).await;
    server.command(&["CONFIG", "SET", "slowlog-log-slower-than", "1000"]).await;
    let mut report = Vec::new();
    let mut measure = async |name: &'static str, start: Instant| {
        let whole = start.elapsed();
        let took = slow(&server).await;
        report.push((name, whole, took));
    };
    let start = Instant::now();
    submit(&queue, job(1), TASKS).await;
    measure("add", start).await;
    let start = Instant::now();
    for _ in 0..100 {
        queue.claim(&worker(1), 100).await.expect("claim");
    }
    measure("claim 100 at a time", start).await;
    let start = Instant::now();
    assert_eq!(queue.audit().await, Ok(vec![]));
    measure("audit", start).await;
    let start = Instant::now();
    assert_eq!(queue.repair_job(job(1)).await, Ok(0));
    measure("repair", start).await;
    let start = Instant::now();
    queue.set_paused(job(1), true).await.expect("pause");
    queue.set_paused(job(1), false).await.expect("resume");
    measure("pause and resume", start).await;
    let start = Instant::now();
    assert_eq!(queue.tasks(job(1), 0, TASKS as usize).await.expect("tasks").len(), TASKS as usize);
    measure("list all tasks", start).await;
    let start = Instant::now();
    while queue.cancel_job(job(1), 500).await.expect("cancel") > 50_000 {}
    measure("cancel half", start).await;
    let start = Instant::now();
    queue.forget_job(job(1)).await.expect("forget");
    measure("forget, half of it open", start).await;
    for (name, whole, took) in report {
        let longest = took.first().copied().unwrap_or(0);
        println!("a job of 100,000 tasks: {name}: {whole:?}, the longest script {longest} microseconds");
        // A busy machine holds up a script now and then; one in ten is no accident.
        let late = took.iter().filter(|&&took| took >= 50_000).count();
        assert!(late <= 2 + took.len() / 10, "{name}: {late} of {} took 50 ms or more", took.len());
    }
}
