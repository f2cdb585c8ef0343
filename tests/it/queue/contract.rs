//! The contract on the Redis engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use des_shared::queue::QueueConfig;
use des_shared::queue::contract::{self, Engine};

use super::Subject;
use super::server::RedisServer;

async fn run(held: bool) {
    let server = Arc::new(RedisServer::start().await);
    let cases = AtomicU32::new(0);
    contract::run(async |config| {
        let case = cases.fetch_add(1, Ordering::Relaxed);
        let config = QueueConfig { namespace: format!("case-{case}"), ..config };
        Box::new(Subject::new(&server, config, 1, held).await) as Box<dyn Engine>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_the_contract_on_a_held_clock() {
    run(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_the_contract_on_the_servers_clock() {
    run(false).await;
}
