//! What happens to servers and connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use des_shared::clock::{Clock, Dice, SystemClock};
use des_shared::ids::{FencingToken, JobId, WorkerId};
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{
    HeldTask, JobShare, NewTask, Queue, QueueConfig, QueueError, TaskFailure, TaskState, TaskTotals, WorkerInfo,
};

use super::server::RedisServer;

pub(super) fn queue_at(url: &str) -> RedisQueue {
    RedisQueue::new(&RedisOptions::new(url), QueueConfig::default(), Arc::new(Dice::from_os())).expect("a queue")
}

pub(super) fn job(n: u8) -> JobId {
    JobId::from_parts(1_700_000_000_000, [n; 10])
}

pub(super) fn worker(n: u8) -> WorkerInfo {
    WorkerInfo { id: WorkerId::from_random([n; 16]), name: "host:1".to_owned(), slots: 1 }
}

pub(super) async fn submit(queue: &RedisQueue, job: JobId, tasks: u32) {
    queue.add_job(job, JobShare { priority: 0, weight: 1, max_running: None }).await.expect("add a job");
    let tasks: Vec<NewTask> = (0..tasks).map(|number| NewTask { number, source_bytes: 1 << 30 }).collect();
    queue.add_tasks(job, &tasks).await.expect("add tasks");
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_taught_again() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 3).await;
    for _ in 0..3 {
        server.command(&["SCRIPT", "FLUSH"]).await;
        assert_eq!(queue.claim(&worker(1), 1).await.expect("claim").len(), 1);
    }
}

#[tokio::test]
async fn tokens_follow_the_servers_clock_in_microseconds() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    let before = SystemClock.now_ms() * 1000;
    let mut last = FencingToken(before);
    for _ in 0..3 {
        submit(&queue, job(1), 1).await;
        let token = queue.claim(&worker(1), 1).await.expect("claim")[0].token;
        assert!(token > last, "{token} after {last}");
        assert!(token.0 < 1 << 53);
        last = token;
        server.command(&["FLUSHALL"]).await;
    }
    // A counter ahead of the clock (the clock was set back) still grows.
    let ahead = last.0 + 1_000_000_000_000;
    server.command(&["SET", "{des}:token", &ahead.to_string()]).await;
    submit(&queue, job(1), 1).await;
    assert_eq!(queue.claim(&worker(1), 1).await.expect("claim")[0].token, FencingToken(ahead + 1));
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_refilled() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 2).await;
    let before = queue.claim(&worker(1), 1).await.expect("claim").remove(0);
    server.kill();
    for _ in 0..3 {
        let error = queue.ping().await.expect_err("nobody answers");
        assert!(matches!(error, QueueError::Unavailable(_)), "{error}");
        assert!(error.is_transient());
    }
    assert!(matches!(queue.claim(&worker(1), 1).await, Err(QueueError::Unavailable(_))));
    server.restart().await;
    queue.ping().await.expect("the pool connects again");
    submit(&queue, job(1), 2).await;
    queue.settle(before.task, TaskState::Committed, &TaskTotals::default()).await.expect("settle");
    let after = queue.claim(&worker(1), 5).await.expect("claim");
    assert_eq!(after.len(), 1);
    assert!(after[0].task != before.task && after[0].token > before.token);
    assert_eq!(queue.audit().await, Ok(vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_wakes_after_its_connection_was_cut() {
    let server = RedisServer::start().await;
    let queue = Arc::new(queue_at(&server.url()));
    queue.add_job(job(1), JobShare { priority: 0, weight: 1, max_running: None }).await.expect("add a job");
    for (round, kind) in ["pubsub", "normal"].into_iter().enumerate() {
        let waiter = {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                loop {
                    match queue.claim(&worker(1), 1).await {
                        Ok(leases) if leases.is_empty() => queue.wait_for_work(Duration::from_mins(1)).await,
                        Ok(mut leases) => return leases.remove(0),
                        // The connection that was cut is noticed by its next user.
                        Err(QueueError::Unavailable(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        };
        let start = Instant::now();
        wait_for_listener(&server).await;
        server.command(&["CLIENT", "KILL", "TYPE", kind]).await;
        let other = queue_at(&server.url());
        let task = NewTask { number: round as u32, source_bytes: 1 };
        other.add_tasks(job(1), &[task]).await.expect("add a task");
        assert_eq!(waiter.await.expect("the waiter ends well").task.number, round as u32);
        assert!(start.elapsed() < Duration::from_secs(30), "woken, not timed out");
    }
}

/// Until somebody listens for work.
async fn wait_for_listener(server: &RedisServer) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = server.command(&["PUBSUB", "NUMSUB", "{des}:wake"]).await;
        if redis::from_redis_value::<(String, u64)>(answer).expect("channel and count").1 > 0 {
            return;
        }
        assert!(Instant::now() < deadline, "nobody listens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time() {
    let server = RedisServer::start().await;
    let mut options = RedisOptions::new(server.url());
    options.response_timeout = Duration::from_millis(200);
    options.connect_timeout = Duration::from_millis(200);
    let queue = RedisQueue::new(&options, QueueConfig::default(), Arc::new(Dice::from_os())).expect("a queue");
    submit(&queue, job(1), 1).await;
    server.command(&["CLIENT", "PAUSE", "1500", "ALL"]).await;
    let start = Instant::now();
    assert!(matches!(queue.claim(&worker(1), 1).await, Err(QueueError::Unavailable(_))));
    queue.wait_for_work(Duration::from_millis(300)).await;
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    while queue.ping().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(30), "it answers again");
    }
    queue.stats().await.expect("the hung connections were dropped");
}

#[tokio::test]
async fn passwords_are_asked_for_and_never_shown() {
    let server = RedisServer::start_with(Some("hunter2")).await;
    let queue = queue_at(&server.url());
    queue.ping().await.expect("the right password");
    queue.wait_for_work(Duration::from_millis(1)).await;
    assert!(!format!("{queue:?}").contains("hunter2"));
    for url in [
        format!("redis://:wrong-hunter2@127.0.0.1:{}/0", server.port()),
        format!("redis://127.0.0.1:{}/0", server.port()),
        // TLS towards a server that speaks none.
        format!("rediss://:hunter2@127.0.0.1:{}/0", server.port()),
    ] {
        let error = queue_at(&url).ping().await.expect_err("refused");
        assert!(matches!(error, QueueError::Unavailable(_)), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn the_namespace_is_one_hash_slot() {
    let server = RedisServer::start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 4).await;
    let mut leases = queue.claim(&worker(1), 4).await.expect("claim");
    let lease = leases.remove(0);
    let failure = TaskFailure { permanent: true, message: "broken".to_owned() };
    queue.commit(lease.task, lease.token, &TaskTotals::default()).await.expect("commit");
    queue.lock("reconcile", "me", Duration::from_secs(1)).await.expect("lock");
    queue.fail(leases[0].task, leases[0].token, &failure).await.expect("fail");
    let held = HeldTask { task: leases[1].task, token: leases[1].token, done_bytes: 1 };
    queue.heartbeat(&worker(1), &[held]).await.expect("heartbeat");
    queue.audit().await.expect("audit");
    let keys: Vec<String> = redis::from_redis_value(server.command(&["KEYS", "*"]).await).expect("keys");
    assert!(keys.len() > 5 && keys.iter().all(|key| key.starts_with("{des}:")), "{keys:?}");
    for bad in ["", "a{b", "}"] {
        let config = QueueConfig { namespace: bad.to_owned(), ..QueueConfig::default() };
        let made = RedisQueue::new(&RedisOptions::new(server.url()), config, Arc::new(Dice::from_os()));
        assert!(matches!(made, Err(QueueError::Invalid(_))), "{bad:?}");
    }
}
