//! A Redis that holds what nobody of ours wrote: refused in words, never a panic, and not in everybody's way.

use des_shared::queue::{Queue, QueueError, TaskTotals};

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
async fn the_auditor_finds_what_was_planted() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    let id = format!("{}/0000000000", job(1));
    let plants: [&[&str]; 9] = [
        &["ZREM", "{des}:leases", &id],
        &["ZADD", "{des}:waiting", "5", &id],
        &["ZADD", "{des}:delayed", "5", "somebody else"],
        &["HINCRBY", &key("job"), "L", "1"],
        &["HINCRBY", &key("job"), "files_packed", "1"],
        &["ZADD", &key("order"), "0", "0000000000"],
        &["HINCRBY", "{des}:sums", "X", "1"],
        &["DEL", "{des}:ready:0"],
        &["DEL", "{des}:held"],
    ];
    for plant in plants {
        server.command(&["FLUSHALL"]).await;
        submit(&queue, job(1), 3).await;
        queue.claim(&worker(1), 1).await.expect("claim");
        assert_eq!(queue.audit().await, Ok(vec![]));
        server.command(plant).await;
        assert!(!queue.audit().await.expect("audit").is_empty(), "{plant:?}");
    }
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
