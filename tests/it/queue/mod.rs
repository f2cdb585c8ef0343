//! The task queue on a real Redis: the contract, the model, and what only a server can do to it.

mod cluster;
mod contract;
mod faults;
mod hostile;
mod limits;
mod model;
mod places;
mod server;
mod storms;
mod swarm;
mod usual;
mod work;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use des_shared::clock::{Clock, Dice, ManualClock};
use des_shared::queue::contract::Engine;
use des_shared::queue::redis::{RedisOptions, RedisQueue};
use des_shared::queue::{Queue, QueueConfig, SharedQueue};

use self::server::RedisServer;

/// Where a held clock starts.
const START_MS: u64 = 1_700_000_000_000;

/// The Redis engine with a namespace of its own on a server of its test.
struct Subject {
    server: Arc<RedisServer>,
    queue: Arc<RedisQueue>,
    namespace: String,
    /// The held clock; without one the server's counts.
    clock: Option<ManualClock>,
}

impl Subject {
    async fn new(server: &Arc<RedisServer>, config: QueueConfig, seed: u64, held: bool) -> Self {
        let options = RedisOptions::new(server.url());
        let namespace = config.namespace.clone();
        let dice = Arc::new(Dice::seeded(seed));
        let queue = if held {
            RedisQueue::with_manual_time(&options, config, dice)
        } else {
            RedisQueue::new(&options, config, dice)
        };
        let subject = Self {
            server: Arc::clone(server),
            queue: Arc::new(queue.expect("a usable configuration")),
            namespace,
            clock: held.then(|| ManualClock::new(START_MS)),
        };
        subject.set_clock().await;
        subject
    }

    async fn set_clock(&self) {
        if let Some(clock) = &self.clock {
            let key = format!("{{{}}}:clock", self.namespace);
            self.server.command(&["SET", &key, &clock.now_ms().to_string()]).await;
        }
    }
}

#[async_trait]
impl Engine for Subject {
    fn queue(&self) -> SharedQueue {
        Arc::<RedisQueue>::clone(&self.queue)
    }
    async fn advance(&self, by: Duration) {
        match &self.clock {
            Some(clock) => {
                clock.advance(by);
                self.set_clock().await;
            }
            None => tokio::time::sleep(by + Duration::from_millis(2)).await,
        }
    }
    async fn lose_everything(&self) {
        self.server.command(&["FLUSHALL"]).await;
        self.set_clock().await;
    }
    async fn audit(&self) -> Vec<String> {
        self.queue.audit().await.expect("audit")
    }
}
