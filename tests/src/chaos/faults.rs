//! The faults.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::RngExt;
use tokio::time::Instant;

use super::{Arena, ChaosError, failed};
use crate::proxy::{Proxy, Traffic};

impl Arena {
    /// Something goes wrong.
    pub(super) async fn fault(&mut self) -> Result<(), ChaosError> {
        match self.rng.random_range(0..32) {
            0..14 => self.kill_worker(),
            14..17 => self.kill_coordinator(),
            17 => self.kill_while_planning().await,
            18..21 => {
                self.freeze();
                Ok(())
            }
            21..24 => self.stop_worker(),
            24 => self.flush().await,
            25 => self.restart_redis(false).await,
            26 => self.restart_redis(true).await,
            27..30 => {
                self.break_redis();
                Ok(())
            }
            _ => {
                self.break_s3();
                Ok(())
            }
        }
    }

    fn some_worker(&mut self) -> Option<usize> {
        let count = self.cluster.workers.len();
        (count > 0).then(|| self.rng.random_range(0..count))
    }

    /// SIGKILL, and another in its place.
    fn kill_worker(&mut self) -> Result<(), ChaosError> {
        if let Some(at) = self.some_worker() {
            let mut worker = self.cluster.workers.remove(at);
            self.watcher.ends(worker.pid(), false);
            worker.kill().map_err(|e| failed("kill", e))?;
            self.counts.workers_killed += 1;
        }
        self.cluster.spawn_worker().map_err(|e| failed("worker", e))
    }

    fn kill_coordinator(&mut self) -> Result<(), ChaosError> {
        let fresh = self.cluster.spawn_coordinator().map_err(|e| failed("coordinator", e))?;
        let place = if self.rng.random_range(0..2) == 0 { &mut self.second } else { &mut self.cluster.coordinator };
        let mut old = std::mem::replace(place, fresh);
        self.counts.coordinators_killed += 1;
        old.kill().map_err(|e| failed("kill", e))
    }

    /// A coordinator dies while it takes or plans a job.
    async fn kill_while_planning(&mut self) -> Result<(), ChaosError> {
        self.submit();
        let wait = self.rng.random_range(0..400);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        self.kill_coordinator()
    }

    /// SIGSTOP, and SIGCONT when the leases may have run out: the process does not know how late it is.
    fn freeze(&mut self) {
        let lease = self.options.lease.as_millis() as u64;
        let until = Instant::now() + Duration::from_millis(self.rng.random_range(lease / 2..lease * 2));
        let victim = match self.rng.random_range(0..4) {
            0 => &self.second,
            1 => &self.cluster.coordinator,
            _ => match self.some_worker() {
                Some(at) => &self.cluster.workers[at],
                None => return,
            },
        };
        if victim.signal(Signal::SIGSTOP).is_ok() {
            self.counts.frozen += 1;
            let pid = victim.pid();
            self.frozen.push((until, pid));
        }
    }

    /// SIGTERM under load.
    fn stop_worker(&mut self) -> Result<(), ChaosError> {
        if let Some(at) = self.some_worker() {
            let worker = self.cluster.workers.remove(at);
            // One that is frozen can stop only once it is awake.
            let pid = worker.pid();
            self.frozen.retain(|(_, frozen)| *frozen != pid);
            let _gone = worker.signal(Signal::SIGCONT);
            self.watcher.ends(pid, true);
            if worker.signal(Signal::SIGTERM).is_ok() {
                self.counts.stopped += 1;
                self.leaving.push((Instant::now(), worker));
            }
        }
        self.cluster.spawn_worker().map_err(|e| failed("worker", e))
    }

    async fn flush(&mut self) -> Result<(), ChaosError> {
        self.watcher.disturb();
        self.counts.flushed += 1;
        let client = redis::Client::open(self.cluster.redis.url()).map_err(|e| failed("FLUSHALL", e))?;
        let mut connection = client.get_multiplexed_async_connection().await.map_err(|e| failed("FLUSHALL", e))?;
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.map_err(|e| failed("FLUSHALL", e))
    }

    async fn restart_redis(&mut self, lose: bool) -> Result<(), ChaosError> {
        self.watcher.disturb();
        let done = if lose {
            self.counts.redis_lost += 1;
            self.cluster.redis.lose_everything().await
        } else {
            self.counts.redis_killed += 1;
            self.cluster.redis.kill().map_err(|e| failed("Redis", e))?;
            let away = self.rng.random_range(0..3000);
            tokio::time::sleep(Duration::from_millis(away)).await;
            self.cluster.redis.start_again().await
        };
        self.watcher.disturb();
        done.map_err(|e| failed("Redis", e))
    }

    fn break_redis(&mut self) {
        self.watcher.disturb();
        let proxy = Arc::clone(&self.redis_proxy);
        self.break_network(proxy);
    }

    fn break_s3(&mut self) {
        let proxy = Arc::clone(&self.s3_proxy);
        self.break_network(proxy);
    }

    fn break_network(&mut self, proxy: Arc<Proxy>) {
        self.counts.networks += 1;
        let traffic = match self.rng.random_range(0..5) {
            0 => None,
            1 => Some(Traffic::Delay(Duration::from_millis(self.rng.random_range(1..80)))),
            2 => Some(Traffic::LoseAnswers),
            3 => Some(Traffic::Blackhole),
            _ => Some(Traffic::Refuse),
        };
        let lease = self.options.lease.as_millis() as u64;
        let wait = Duration::from_millis(self.rng.random_range(200..lease * 3 / 2));
        let Some(traffic) = traffic else {
            proxy.cut();
            return;
        };
        proxy.set(traffic);
        if traffic == Traffic::Refuse {
            proxy.cut();
        }
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            proxy.set(Traffic::Pass);
            // Lost answers leave connections out of step.
            if traffic == Traffic::LoseAnswers {
                proxy.cut();
            }
        });
    }
}
