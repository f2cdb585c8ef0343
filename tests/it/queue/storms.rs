//! Connections that break and servers that change in the middle of work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use des_shared::queue::{Queue, QueueError};
use des_tests::proxy::{Proxy, Traffic};
use des_tests::servers::{Redis, RedisSentinels};

use super::faults::{job, queue_at, submit, worker};
use super::work::{Worked, assert_done_once, hasty, hasty_queue, work};

async fn start() -> Redis {
    Redis::start().await.unwrap_or_else(|e| panic!("{e}"))
}

/// Works while `disturb` runs again and again.
async fn work_through(server: &Redis, url: &str, tasks: u32, mut disturb: impl AsyncFnMut(u32)) -> Worked {
    let queue = hasty_queue(&hasty(url));
    submit(&queue_at(&server.url()), job(1), tasks).await;
    let at_work = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { work(&queue, job(1), 8).await })
    };
    let mut rounds = 0;
    while !at_work.is_finished() {
        disturb(rounds).await;
        rounds += 1;
    }
    let worked = at_work.await.expect("work");
    assert!(rounds > 3, "the work was over before anything could happen to it");
    assert_done_once(&queue, job(1), tasks, &worked).await;
    worked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_killed_and_scripts_forgotten_all_the_time() {
    let server = start().await;
    let worked = work_through(&server, &server.url(), 1500, async |round| {
        let words: &[&str] = if round % 2 == 0 { &["CLIENT", "KILL", "TYPE", "normal"] } else { &["SCRIPT", "FLUSH"] };
        server.command(words).await.expect("a command");
        tokio::time::sleep(Duration::from_millis(7)).await;
    })
    .await;
    println!("killed: {} calls were not answered", worked.unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_loses_answers_and_connections() {
    let server = start().await;
    let proxy = Proxy::start(server.port()).await.expect("a proxy");
    let worked = work_through(&server, &server.url_through(proxy.port()), 300, async |round| {
        match round % 8 {
            0 => proxy.set(Traffic::LoseAnswers),
            1 | 3 => proxy.cut(),
            2 => proxy.set(Traffic::CutAnswer(7)),
            _ => proxy.set(Traffic::Pass),
        }
        tokio::time::sleep(Duration::from_millis(12)).await;
    })
    .await;
    assert!(worked.unavailable > 0, "nothing was ever lost");
    println!("lossy network: {} calls were not answered", worked.unavailable);
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_replaced_before_it_is_used() {
    let server = start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 1).await;
    for _ in 0..20 {
        server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await.expect("kill");
        // The end of a connection arrives after the answer to the command that closed it.
        tokio::time::sleep(Duration::from_millis(10)).await;
        queue.stats().await.expect("no call fails for a connection that nobody was using");
    }
}

#[tokio::test]
async fn a_call_is_one_round_trip() {
    let server = start().await;
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 20).await;
    let leases = queue.claim(&worker(1), 1).await.expect("claim");
    let ping = async || {
        let text: String =
            redis::from_redis_value(server.command(&["INFO", "commandstats"]).await.expect("info")).expect("text");
        let calls = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(&format!("cmdstat_{name}:"))).unwrap_or_default();
            line.split(['=', ',']).nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
        };
        (calls("evalsha"), calls("ping"), calls("hello"), calls("unwatch"))
    };
    let before = ping().await;
    for _ in 0..10 {
        queue.claim(&worker(1), 1).await.expect("claim");
    }
    let after = ping().await;
    assert_eq!(after.0 - before.0, 10);
    assert_eq!((after.1, after.3), (before.1, before.3), "nothing is asked before a connection is used");
    // Each command of this test is a connection of its own.
    assert!(after.2 - before.2 <= 1, "the connection is kept");
    drop(leases);
}

#[tokio::test]
async fn an_answer_cut_in_its_middle_leaves_nothing_behind() {
    let server = start().await;
    let proxy = Proxy::start(server.port()).await.expect("a proxy");
    let queue = queue_at(&server.url_through(proxy.port()));
    submit(&queue, job(1), 600).await;
    proxy.set(Traffic::CutAnswer(2000));
    let error = queue.claim(&worker(1), 500).await.expect_err("cut");
    assert!(matches!(error, QueueError::Unavailable(_)), "{error}");
    proxy.set(Traffic::Pass);
    let stats = queue.stats().await.expect("a new connection answers for itself");
    assert_eq!((stats.leased, stats.pending), (500, 100), "the claim was done, only its answer is lost");
    assert_eq!(queue.claim(&worker(1), 500).await.expect("claim").len(), 100);
}

#[tokio::test]
async fn a_connection_that_swallows_everything_is_left_after_one_wait() {
    let server = start().await;
    let proxy = Proxy::start(server.port()).await.expect("a proxy");
    let mut options = hasty(&server.url_through(proxy.port()));
    options.response_timeout = Duration::from_millis(500);
    let queue = hasty_queue(&options);
    submit(&queue, job(1), 1).await;
    proxy.hang();
    assert!(matches!(queue.stats().await, Err(QueueError::Unavailable(_))));
    queue.stats().await.expect("a new connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_share_a_connection_and_none_blocks_another() {
    let server = start().await;
    let mut options = hasty(&server.url());
    options.connections = 1;
    let queue = hasty_queue(&options);
    submit(&queue, job(1), 64).await;
    let leases = queue.claim(&worker(1), 64).await.expect("claim");
    let start = Instant::now();
    // Waiters for work have no part in it: theirs is a connection of its own.
    let waiter = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { queue.wait_for_work(Duration::from_secs(30)).await })
    };
    let mut all = tokio::task::JoinSet::new();
    for lease in leases {
        let queue = Arc::clone(&queue);
        all.spawn(async move { queue.release(lease.task, lease.token).await });
    }
    while let Some(done) = all.join_next().await {
        done.expect("a call").expect("release");
    }
    waiter.await.expect("the waiter was woken");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let clients: String =
        redis::from_redis_value(server.command(&["CLIENT", "LIST", "TYPE", "normal"]).await.expect("list"))
            .expect("text");
    // One is that of the question itself.
    assert_eq!(clients.lines().count(), 2, "{clients}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_made_a_replica_is_left_and_its_successor_found() {
    let group = RedisSentinels::start("hunter2").await.unwrap_or_else(|e| panic!("{e}"));
    through_failover(&group, async || group.fail_over().await.expect("failover")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_is_replaced_by_its_replica() {
    let mut group = RedisSentinels::start("hunter2").await.unwrap_or_else(|e| panic!("{e}"));
    // The Sentinel that is asked first is gone, too.
    group.kill_first_sentinel().expect("kill");
    let pid = nix::unistd::Pid::from_raw(group.servers[0].process().pid());
    through_failover(&group, async || nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill"))
        .await;
}

/// Works, changes the master in the middle, and works on. What the old master had not passed on may be lost, as Redis
/// says of itself; nothing may be wrong.
async fn through_failover(group: &RedisSentinels, change: impl AsyncFnOnce()) {
    const TASKS: u32 = 3000;
    let queue = hasty_queue(&hasty(&group.url()));
    submit(&queue, job(1), TASKS).await;
    let acknowledged = group.servers[0].command(&["WAIT", "1", "10000"]).await.expect("wait");
    assert_eq!(acknowledged, redis::Value::Int(1), "the replica has the job");
    let before = queue.claim(&worker(99), 1).await.expect("claim").remove(0).token;
    let old = group.master_port().await.expect("a master");
    let at_work = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { work(&queue, job(1), 4).await })
    };
    change().await;
    let start = Instant::now();
    while group.master_port().await.expect("a master") == old {
        assert!(start.elapsed() < Duration::from_mins(1), "the Sentinels do nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let worked = at_work.await.expect("work");
    let counters = queue.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.committed, counters.open()), (u64::from(TASKS), 0));
    assert_eq!(worked.commits.len(), TASKS as usize, "every task was worked on");
    assert!(worked.last_token > Some(before));
    assert_eq!(queue.audit().await, Ok(vec![]));
    let info = group.servers[1].command(&["INFO", "replication"]).await.expect("info");
    let info: String = redis::from_redis_value(info).expect("text");
    assert!(info.contains("role:master"), "{info}");
    println!("failover: {} calls were not answered", worked.unavailable);
}

#[tokio::test]
async fn a_server_that_becomes_a_replica_answers_as_transient() {
    let (server, other) = (start().await, start().await);
    let queue = queue_at(&server.url());
    submit(&queue, job(1), 1).await;
    server.command(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]).await.expect("a replica");
    let error = queue.claim(&worker(1), 1).await.expect_err("read-only");
    assert!(error.is_transient(), "{error}");
    let error = queue.stats().await.expect_err("what a replica says may be old");
    assert!(error.is_transient() && error.to_string().contains("is a replica"), "{error}");
    server.command(&["REPLICAOF", "NO", "ONE"]).await.expect("a master");
    queue.ping().await.expect("it is looked at again");
}
