//! A Redis that holds what nobody of ours wrote: refused in words, never a panic, and not in everybody's way.

use des_shared::ids::TaskId;
use des_shared::queue::{Queue, QueueError, TaskFailure, TaskState, TaskTotals};

use super::faults::{job, queue_at, submit, worker};
use super::server::RedisServer;

fn key(name: &str) -> String {
    format!("{{des}}:{name}:{}", job(1))
}

const GARBAGE: [&str; 7] =
    ["", "L", "L:1:2:3", "L:x:0:0:", "Z:1:0:0:", "L:99999999999999999999999:1:1:x", "P:1:0:0:\u{0}\u{ff}\n"];

#[tokio::test]
async fn unreadable_tasks_are_refused_or_dropped() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    for garbage in GARBAGE {
        server.command(&["FLUSHALL"]).await;
        submit(&queue, job(1), 3).await;
        let lease = queue.claim(&worker(1), 1).await.expect("claim").remove(0);
        server.command(&["HSET", &key("tasks"), "0000000000", garbage]).await;
        let answer = queue.commit(lease.task, lease.token, &TaskTotals::default()).await;
        assert!(matches!(answer, Err(QueueError::Invalid(_))), "{garbage:?}: {answer:?}");
        let answer = queue.tasks(job(1), 0, 10).await;
        assert!(matches!(answer, Err(QueueError::Invalid(_))), "{garbage:?}: {answer:?}");
        assert!(!queue.audit().await.expect("audit").is_empty(), "{garbage:?}: the auditor sees it");
        // An unreadable pending task must not keep the others from being served.
        server.command(&["HSET", &key("tasks"), "0000000001", garbage]).await;
        let leases = queue.claim(&worker(1), 5).await.expect("claim");
        assert_eq!(leases.iter().map(|lease| lease.task.number).collect::<Vec<_>>(), [2], "{garbage:?}");
        // What was dropped can be added again, as reconciliation does.
        submit(&queue, job(1), 3).await;
        let leases = queue.claim(&worker(1), 5).await.expect("claim");
        assert_eq!(leases.iter().map(|lease| lease.task.number).collect::<Vec<_>>(), [1], "{garbage:?}");
    }
}

#[tokio::test]
async fn unreadable_values_of_every_kind_are_refused() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    let invalid = |what: &str, error: Option<QueueError>| {
        assert!(matches!(error, Some(QueueError::Invalid(_))), "{what}: {error:?}");
    };
    submit(&queue, job(1), 2).await;
    queue.heartbeat(&worker(1), &[]).await.expect("heartbeat");

    server.command(&["HSET", &key("job"), "C", "many"]).await;
    invalid("counter", queue.job(job(1)).await.err());
    server.command(&["HSET", "{des}:worker", &worker(1).id.to_string(), "x"]).await;
    invalid("worker", queue.workers().await.err());
    server.command(&["ZADD", "{des}:jobs", "0", "not a job"]).await;
    invalid("job id", queue.jobs().await.err());
    server.command(&["HSET", "{des}:sums", "X", "-3"]).await;
    invalid("count", queue.stats().await.err());
    server.command(&["SET", "{des}:token", "9223372036854775807"]).await;
    invalid("token counter", queue.claim(&worker(1), 1).await.err());
    server.command(&["FLUSHALL"]).await;
    server.command(&["SET", "{des}:jobs", "x"]).await;
    invalid("type", queue.jobs().await.err());
    server.command(&["SET", &key("job"), "x"]).await;
    invalid("type", queue.job(job(1)).await.err());
    invalid("type", queue.audit().await.err());
    server.command(&["FLUSHALL"]).await;
    server.command(&["SET", "{des}:lock:a", "what is this"]).await;
    let lock = queue.lock("a", "me", std::time::Duration::from_secs(1)).await;
    assert!(matches!(lock, Ok(Some(_))), "a lock nobody can read is free: {lock:?}");
}

#[tokio::test]
async fn a_broken_job_does_not_stop_the_others() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    for broken in [&["DEL"][..], &["HSET", "weight", "heavy"], &["HSET", "P", "x"], &["HSET", "weight", "-1"]] {
        server.command(&["FLUSHALL"]).await;
        submit(&queue, job(1), 2).await;
        submit(&queue, job(2), 1).await;
        let key = key("job");
        let words: Vec<&str> = [broken[0], &key].into_iter().chain(broken[1..].iter().copied()).collect();
        server.command(&words).await;
        let leases = queue.claim(&worker(1), 5).await.expect("claim");
        assert_eq!(leases.iter().map(|lease| lease.task.job).collect::<Vec<_>>(), [job(2)], "{broken:?}");
    }
}

#[tokio::test]
async fn an_unreadable_checkpoint_starts_the_task_again() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    for garbage in ["", "1 2 3 4 {", "nonsense", "1 2 3 4 {\"upload_id\":7}"] {
        server.command(&["FLUSHALL"]).await;
        submit(&queue, job(1), 1).await;
        server.command(&["HSET", &key("checkpoints"), "0000000000", garbage]).await;
        let lease = queue.claim(&worker(1), 1).await.expect("claim").remove(0);
        assert_eq!(lease.checkpoint, None, "{garbage:?}");
    }
}

#[tokio::test]
async fn the_auditor_finds_what_was_planted_and_repair_mends_it() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    let id = format!("{}/0000000000", job(1));
    let (record, order, tasks) = (key("job"), key("order"), key("tasks"));
    let other = format!("{}/0000000000", job(9));
    let plants: [&[&str]; 32] = [
        &["ZREM", "{des}:leases", &id],
        &["ZADD", "{des}:waiting", "5", &id],
        &["ZADD", "{des}:delayed", "5", "somebody else"],
        &["ZADD", "{des}:leases", "5", &other],
        &["DEL", "{des}:waiting"],
        &["HINCRBY", &record, "L", "1"],
        &["HINCRBY", &record, "X", "-1"],
        &["HSET", &record, "P", "many"],
        &["HSET", &record, "C", "x"],
        &["HINCRBY", &record, "W", "1"],
        &["HDEL", &record, "W"],
        &["HINCRBY", &record, "files_packed", "1"],
        &["HINCRBY", &record, "p_stored_bytes", "-5"],
        &["HSET", &record, "weight", "heavy"],
        &["HSET", &record, "cap", "-1"],
        &["HSET", &record, "start", "nan"],
        &["HSET", &record, "hold", "?"],
        &["DEL", &record],
        &["ZADD", &order, "0", "0000000000"],
        &["ZREM", &order, "0000000001"],
        &["ZADD", &order, "7", "0000000077"],
        &["DEL", &order],
        &["HSET", &tasks, "0000000001", "?"],
        &["HSET", &tasks, "what", "P:1:0:0:"],
        &["HDEL", &tasks, "0000000002"],
        &["HINCRBY", "{des}:sums", "X", "1"],
        &["HSET", "{des}:sums", "W", "much"],
        &["HINCRBY", "{des}:sums", "P", "3"],
        &["DEL", "{des}:ready:0"],
        &["ZADD", "{des}:ready:0", "1", &id],
        &["DEL", "{des}:priorities"],
        &["DEL", "{des}:held"],
    ];
    for plant in plants {
        server.command(&["FLUSHALL"]).await;
        submit(&queue, job(1), 5).await;
        let leases = queue.claim(&worker(1), 3).await.expect("claim");
        let failure = TaskFailure { permanent: true, message: "x".to_owned() };
        queue.fail(leases[2].task, leases[2].token, &failure).await.expect("fail");
        queue.commit(leases[1].task, leases[1].token, &TaskTotals::default()).await.expect("commit");
        assert_eq!(queue.audit().await, Ok(vec![]));
        server.command(plant).await;
        assert!(!queue.audit().await.expect("audit").is_empty(), "{plant:?}");
        assert!(queue.repair_job(job(1)).await.expect("repair") > 0, "{plant:?}");
        assert_eq!(queue.audit().await, Ok(vec![]), "{plant:?}: repaired");
        assert_eq!(queue.repair_job(job(1)).await, Ok(0), "{plant:?}: once");
        // What was lost is added again; then the job can be brought to its end.
        submit(&queue, job(1), 5).await;
        queue.set_paused(job(1), false).await.expect("whoever knows the share and the hold sets them");
        queue.claim(&worker(2), 9).await.expect("claim");
        for number in 0..5 {
            let task = TaskId { job: job(1), number };
            queue.settle(task, TaskState::Committed, &TaskTotals::default()).await.expect("settle");
        }
        let counters = queue.job(job(1)).await.expect("job").expect("known");
        assert_eq!((counters.committed, counters.open()), (5, 0), "{plant:?}");
        assert_eq!(queue.audit().await, Ok(vec![]), "{plant:?}: in the end");
    }
}

#[tokio::test]
async fn unreadable_histories_and_reports_harm_nobody() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 2).await;
    let lease = queue.claim(&worker(1), 1).await.expect("claim").remove(0);
    let many = vec!["x"; 50].join("\n");
    for garbage in ["", "1", "1 2 3", "x y z m", &many] {
        server.command(&["HSET", &key("histories"), "0000000000", garbage]).await;
        let seen = queue.tasks(job(1), 0, 1).await;
        assert!(matches!(seen, Err(QueueError::Invalid(_)) | Ok(_)), "{garbage:?}: {seen:?}");
        assert!(garbage.is_empty() == seen.is_ok(), "{garbage:?}: {seen:?}");
        server.command(&["HSET", "{des}:running", &worker(1).id.to_string(), garbage]).await;
        assert_eq!(queue.workers().await.expect("workers")[0].tasks, [], "{garbage:?}");
    }
    let huge = format!("{}/{:010} {} 99999999999999999999", lease.task.job, lease.task.number, lease.token);
    server.command(&["HSET", "{des}:running", &worker(1).id.to_string(), &huge]).await;
    let workers = queue.workers().await;
    assert!(matches!(workers, Err(QueueError::Invalid(_))), "{workers:?}");
    queue.heartbeat(&worker(1), &[]).await.expect("heartbeat");
    queue.workers().await.expect("the next heartbeat mends it");
    // A failure on top of garbage is remembered, and the garbage goes with time.
    server.command(&["HSET", &key("histories"), "0000000000", "garbage"]).await;
    let failure = TaskFailure { permanent: true, message: "x".to_owned() };
    queue.fail(lease.task, lease.token, &failure).await.expect("fail");
}

#[tokio::test]
async fn a_history_does_not_grow() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 1).await;
    for _ in 0..4 {
        let lease = queue.claim(&worker(1), 1).await.expect("claim").remove(0);
        let line = format!("1 {} {} x", lease.token, worker(1).id);
        let lines = vec![line; 5].join("\n");
        server.command(&["HSET", &key("histories"), "0000000000", &lines]).await;
        let failure = TaskFailure { permanent: false, message: "x".to_owned() };
        queue.fail(lease.task, lease.token, &failure).await.expect("fail");
        let kept = server.command(&["HGET", &key("histories"), "0000000000"]).await;
        let kept: String = redis::from_redis_value(kept).expect("text");
        assert_eq!(kept.lines().count(), 5, "{kept}");
        // Due at once.
        let id = format!("{}/0000000000", job(1));
        server.command(&["ZADD", "{des}:delayed", "1", &id]).await;
    }
}

#[tokio::test]
async fn a_broken_sum_stands_in_nobodys_way() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 3).await;
    for name in ["W", "X", "P"] {
        server.command(&["HSET", "{des}:sums", name, "much"]).await;
        queue.set_paused(job(1), true).await.expect("pause");
        queue.set_paused(job(1), false).await.expect("resume");
        let lease = queue.claim(&worker(1), 1).await.expect("claim").remove(0);
        let failure = TaskFailure { permanent: true, message: "x".to_owned() };
        queue.fail(lease.task, lease.token, &failure).await.expect("fail");
        assert!(!queue.audit().await.expect("audit").is_empty(), "{name}: the auditor finds it");
        assert!(queue.repair_job(job(1)).await.expect("repair") > 0);
        assert_eq!(queue.audit().await, Ok(vec![]));
    }
}

#[tokio::test]
async fn what_is_left_of_a_half_forgotten_job_is_cleared_away() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 300).await;
    let lease = queue.claim(&worker(1), 20).await.expect("claim").remove(0);
    submit(&queue, job(2), 1).await;
    let keys: Vec<String> = redis::from_redis_value(server.command(&["KEYS", "{des}:*"]).await).expect("keys");
    // As a process leaves it that was killed after the first step.
    server.command(&["HSET", &key("job"), "hold", "F"]).await;
    server.command(&["ZREM", "{des}:jobs", &job(1).to_string()]).await;
    server.command(&["ZREM", "{des}:ready:0", &job(1).to_string()]).await;
    server.command(&["ZADD", "{des}:forgotten", "0", &job(1).to_string()]).await;
    let release = queue.release(lease.task, lease.token).await;
    assert_eq!(release, Err(QueueError::UnknownJob(job(1))), "nobody knows it any more");
    assert_eq!(queue.jobs().await, Ok(vec![job(2)]));
    for _ in 0..4 {
        queue.tick(100).await.expect("tick");
    }
    let left: Vec<String> = redis::from_redis_value(server.command(&["KEYS", "{des}:*"]).await).expect("keys");
    assert!(left.len() < keys.len() && !left.iter().any(|key| key.contains(&job(1).to_string())), "{left:?}");
    assert_eq!(queue.stats().await.expect("stats").pending, 1);

    // Or whoever adds it again does.
    submit(&queue, job(1), 300).await;
    server.command(&["HSET", &key("job"), "hold", "F"]).await;
    server.command(&["ZREM", "{des}:jobs", &job(1).to_string()]).await;
    server.command(&["ZREM", "{des}:ready:0", &job(1).to_string()]).await;
    server.command(&["ZADD", "{des}:forgotten", "0", &job(1).to_string()]).await;
    submit(&queue, job(1), 7).await;
    assert_eq!(queue.job(job(1)).await.expect("job").expect("known").pending, 7);
}

#[tokio::test]
async fn stray_index_entries_are_cleared_away() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 1).await;
    let strays = ["nonsense".to_owned(), format!("{}/0000000000", job(1)), format!("{}/0000000099", job(1))];
    for stray in &strays {
        server.command(&["ZADD", "{des}:leases", "1", stray]).await;
        server.command(&["ZADD", "{des}:delayed", "1", stray]).await;
    }
    let tick = queue.tick(100).await.expect("tick");
    assert!(tick.expired.is_empty() && tick.died.is_empty() && tick.revived == 0, "{tick:?}");
    assert_eq!(queue.audit().await, Ok(vec![]));
    assert_eq!(queue.claim(&worker(1), 5).await.expect("claim").len(), 1, "the true task took no harm");
}
