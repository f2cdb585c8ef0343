//! The queue on a real Redis Cluster. All keys share a slot, so one node at a time has the whole queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use des_shared::clock::Dice;
use des_shared::queue::contract::{self, Engine};
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{Queue, QueueConfig, QueueError, SharedQueue};
use des_tests::servers::RedisCluster;

use super::faults::{job, queue_at, submit, worker};
use super::work::{assert_done_once, hasty, hasty_queue, work};

/// The hash tag whose slot these tests are about.
const TAG: &str = "{des}";

async fn start() -> RedisCluster {
    RedisCluster::start(TAG).await.unwrap_or_else(|e| panic!("{e}"))
}

struct Subject {
    cluster: Arc<RedisCluster>,
    queue: Arc<RedisQueue>,
}

#[async_trait]
impl Engine for Subject {
    fn queue(&self) -> SharedQueue {
        Arc::<RedisQueue>::clone(&self.queue)
    }
    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by + Duration::from_millis(2)).await;
    }
    async fn lose_everything(&self) {
        for node in &self.cluster.nodes[..3] {
            node.command(&["FLUSHALL"]).await.expect("flush");
        }
    }
    async fn audit(&self) -> Vec<String> {
        self.queue.audit().await.expect("audit")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_the_contract() {
    let cluster = Arc::new(start().await);
    let cases = AtomicU32::new(0);
    contract::run(async |config| {
        // Namespaces of different slots, so every node has its turn; the first node is often the wrong one.
        let case = cases.fetch_add(1, Ordering::Relaxed);
        let config = QueueConfig { namespace: format!("case-{case}"), ..config };
        let options = RedisOptions::new(cluster.url(&[case as usize % 3]));
        let queue = RedisQueue::new(&options, config, Arc::new(Dice::seeded(1))).expect("a queue");
        Box::new(Subject { cluster: Arc::clone(&cluster), queue: Arc::new(queue) }) as Box<dyn Engine>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_takes_the_queue_with_it() {
    let cluster = start().await;
    let to = cluster.another(TAG).await.expect("a node");
    let from = cluster.owner(TAG).await.expect("an owner");
    // The URL names only the node that will have the slot later.
    let queue = hasty_queue(&hasty(&cluster.url(&[to])));
    submit(&queue, job(1), 2000).await;
    let at_work = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { work(&queue, job(1), 6).await })
    };
    wait_until(async || queue.job(job(1)).await.is_ok_and(|job| job.is_some_and(|job| job.committed > 200))).await;
    cluster.begin_migration(TAG, to).await.expect("begin");
    let mut moved = 0;
    loop {
        // While some keys are here and some there, nobody may do anything: half a queue looks like another one.
        let error = queue_at(&cluster.url(&[to])).claim(&worker(50), 1).await.expect_err("on its way");
        assert!(matches!(error, QueueError::Unavailable(_)), "{error}");
        match cluster.migrate_keys(TAG, to, 3).await.expect("migrate") {
            0 => break,
            keys => moved += keys,
        }
    }
    assert!(moved > 6, "{moved} keys");
    assert!(!at_work.is_finished(), "the work was over too soon");
    cluster.end_migration(TAG, to).await.expect("end");
    assert_eq!(cluster.owner(TAG).await.expect("an owner"), to);
    let worked = at_work.await.expect("work");
    assert!(worked.unavailable > 0);
    assert_done_once(&queue, job(1), 2000, &worked).await;
    let left: u64 =
        redis::from_redis_value(cluster.nodes[from].command(&["DBSIZE"]).await.expect("size")).expect("count");
    assert_eq!(left, 0, "nothing was written where the slot was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_replaced_by_its_replica() {
    const TASKS: u32 = 2000;
    let mut cluster = start().await;
    let (owner, other) = (cluster.owner(TAG).await.expect("an owner"), cluster.another(TAG).await.expect("a node"));
    // The URL names only the node that will die: the others are heard of from it.
    let queue = hasty_queue(&hasty(&cluster.url(&[owner])));
    submit(&queue, job(1), TASKS).await;
    // A replica counts as being there before the stream to it has begun, so it is asked itself.
    let keys = async |node: usize| {
        let answer = cluster.nodes[node].command(&["DBSIZE"]).await.expect("size");
        redis::from_redis_value::<u64>(answer).expect("a count")
    };
    wait_until(async || keys(3).await >= 5 && keys(3).await == keys(owner).await).await;
    let at_work = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { work(&queue, job(1), 4).await })
    };
    wait_until(async || queue.job(job(1)).await.is_ok_and(|job| job.is_some_and(|job| job.committed > 100))).await;
    cluster.nodes[owner].kill().unwrap_or_else(|e| panic!("{e}"));
    let worked = at_work.await.expect("work");
    let counters = queue.job(job(1)).await.expect("job").expect("known");
    assert_eq!((counters.committed, counters.open()), (u64::from(TASKS), 0));
    assert_eq!(worked.commits.len(), TASKS as usize, "every task was worked on");
    assert_eq!(queue.audit().await, Ok(vec![]));
    assert_eq!(cluster.owner(TAG).await.expect("an owner"), 3, "the replica has the slot");
    queue_at(&cluster.url(&[other])).stats().await.expect("the others know");
    println!("node died: {} calls were not answered", worked.unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_at_any_node_is_woken() {
    let cluster = start().await;
    let queue = Arc::new(queue_at(&cluster.url(&[0])));
    submit(&queue, job(1), 0).await;
    let waiter = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { queue.wait_for_work(Duration::from_mins(1)).await })
    };
    let owner = cluster.owner(TAG).await.expect("an owner");
    wait_until(async || {
        let answer = cluster.nodes[owner].command(&["PUBSUB", "NUMSUB", "{des}:wake"]).await.expect("count");
        redis::from_redis_value::<(String, u64)>(answer).expect("channel and count").1 > 0
    })
    .await;
    let start = Instant::now();
    submit(&queue_at(&cluster.url(&[1])), job(1), 1).await;
    waiter.await.expect("woken");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

async fn wait_until(holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !holds().await {
        assert!(Instant::now() < deadline, "it never happened");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
