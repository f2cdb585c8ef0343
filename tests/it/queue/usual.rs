//! The usual claim and the usual commit stand in front of their scripts in one straight line. What is not as usual has
//! to fall through to them: each of these is taken for usual without the condition it is about.

use std::sync::Arc;

use des_shared::queue::contract::Engine;
use des_shared::queue::{Lease, Queue, QueueConfig, QueueError, TaskFailure, TaskTotals};

use super::Subject;
use super::faults::{job, submit, worker};
use super::server::RedisServer;

const TOTALS: TaskTotals = TaskTotals { files_packed: 7, files_failed: 1, source_bytes: 70, stored_bytes: 50 };

/// A job of so many tasks on a held clock, and its server.
async fn with_tasks(tasks: u32) -> (Arc<RedisServer>, Subject) {
    let server = Arc::new(RedisServer::start().await);
    let config = QueueConfig { namespace: "usual".to_owned(), ..QueueConfig::default() };
    let subject = Subject::new(&server, config, 1, true).await;
    submit(&subject.queue, job(1), tasks).await;
    (server, subject)
}

fn key(name: &str) -> String {
    format!("{{usual}}:{name}:{}", job(1))
}

async fn set(server: &RedisServer, hash: &str, field: &str, value: &str) {
    server.command(&["HSET", &key(hash), field, value]).await;
}

async fn get(server: &RedisServer, hash: &str, field: &str) -> Option<String> {
    let value = server.command(&["HGET", &key(hash), field]).await;
    redis::from_redis_value::<Option<String>>(value).expect("a text or nothing")
}

async fn claim(subject: &Subject) -> Vec<Lease> {
    subject.queue.claim(&worker(1), 1).await.expect("a claim")
}

#[tokio::test]
async fn a_retry_that_is_due_is_served_by_the_next_claim() {
    let (_server, subject) = with_tasks(4).await;
    let first = claim(&subject).await.remove(0);
    let failure = TaskFailure { permanent: false, message: "late".to_owned() };
    subject.queue.fail(first.task, first.token, &failure).await.expect("a failure");
    subject.advance(QueueConfig::default().backoff_max).await;
    assert_eq!(claim(&subject).await[0].task, first.task, "it has the lowest number");
}

#[tokio::test]
async fn nothing_of_a_job_that_is_held_is_handed_out_though_it_still_stands_in_the_order() {
    for hold in ["P", "N"] {
        let (server, subject) = with_tasks(3).await;
        set(&server, "job", "hold", hold).await;
        assert_eq!(claim(&subject).await, [], "{hold}");
    }
}

#[tokio::test]
async fn what_the_order_calls_pending_and_is_not_is_not_handed_out() {
    let (server, subject) = with_tasks(3).await;
    set(&server, "tasks", "0000000000", "C:10:5:1:1,0,10,10").await;
    assert_eq!(claim(&subject).await[0].task.number, 1);
}

#[tokio::test]
async fn a_share_nobody_can_count_with_is_not_served() {
    for (field, value) in [("weight", "0"), ("weight", "-2"), ("start", "-1"), ("start", "1e301")] {
        let (server, subject) = with_tasks(3).await;
        set(&server, "job", field, value).await;
        assert_eq!(claim(&subject).await, [], "{field} {value}");
        assert_eq!(get(&server, "job", field).await.as_deref(), Some(value), "nothing was counted with it");
    }
}

/// A walk of an audit has passed the tasks: whoever changes what they add up to changes its count, too.
#[tokio::test]
async fn a_walk_under_way_hears_of_every_claim_and_commit() {
    let (server, subject) = with_tasks(4).await;
    set(&server, "job", "walk", "3 1").await;
    let lease = claim(&subject).await.remove(0);
    assert_eq!(get(&server, "walk", "W").await, Some(format!("-{}", 1_u64 << 30)));
    subject.queue.commit(lease.task, lease.token, &TOTALS).await.expect("a commit");
    assert_eq!(get(&server, "walk", "files_packed").await.as_deref(), Some("7"));
    assert_eq!(get(&server, "walk", "stored_bytes").await.as_deref(), Some("50"));
}

#[tokio::test]
async fn a_commit_in_a_cancelled_job_is_refused_though_its_task_was_not_reached_yet() {
    let (_server, subject) = with_tasks(4).await;
    let lease = claim(&subject).await.remove(0);
    assert_eq!(subject.queue.cancel_job(job(1), 0).await, Ok(4));
    let answer = subject.queue.commit(lease.task, lease.token, &TOTALS).await;
    assert_eq!(answer, Err(QueueError::Cancelled { task: lease.task }));
}

#[tokio::test]
async fn a_commit_needs_a_leased_task_and_a_token_of_somebody() {
    let (server, subject) = with_tasks(4).await;
    let lease = claim(&subject).await.remove(0);
    set(&server, "tasks", "0000000000", &format!("X:10:{}:1:0,0,0,0", lease.token)).await;
    let answer = subject.queue.commit(lease.task, lease.token, &TOTALS).await;
    assert!(matches!(answer, Err(QueueError::Stale { .. })), "{answer:?}");
    set(&server, "tasks", "0000000000", &format!("L:10:0:1:{}", worker(1).id)).await;
    let answer = subject.queue.commit(lease.task, des_shared::ids::FencingToken(0), &TOTALS).await;
    assert!(matches!(answer, Err(QueueError::Stale { .. })), "{answer:?}");
}

#[tokio::test]
async fn sums_stay_numbers_that_can_be_counted_with() {
    let (server, subject) = with_tasks(4).await;
    set(&server, "job", "W", "5").await;
    claim(&subject).await;
    let waiting: i64 = get(&server, "job", "W").await.expect("a sum").parse().expect("a whole number");
    assert_eq!(waiting, 5 - (1 << 30), "counted exactly, for the auditor to find");
    let lease = claim(&subject).await.remove(0);
    set(&server, "job", "source_bytes", "9007199254740991").await;
    subject.queue.commit(lease.task, lease.token, &TOTALS).await.expect("a commit");
    assert_eq!(get(&server, "job", "source_bytes").await.as_deref(), Some("9007199254741061"), "beyond doubles");
}
