//! The leases a worker holds, and until when it may believe so.
//!
//! Invariant: a task's work is stopped before its lease can be given to another. The deadline counts from the moment
//! a renewal was *sent*, on this machine's own monotonic clock: the queue's own expiry is never earlier.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use des_shared::ids::{FencingToken, TaskId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The most a task needs to stop.
const STOP_MARGIN: Duration = Duration::from_secs(1);

/// Every lease of a worker. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Leases {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    believed: Duration,
    held: Mutex<BTreeMap<(TaskId, FencingToken), Held>>,
    changed: Notify,
}

#[derive(Debug)]
struct Held {
    until: Instant,
    lost: CancellationToken,
}

/// One held lease. Dropping it ends the renewals.
#[derive(Debug)]
pub(crate) struct LeaseGuard {
    leases: Leases,
    pub(crate) task: TaskId,
    pub(crate) token: FencingToken,
    lost: CancellationToken,
}

impl Leases {
    /// Leases that live for `lease` without a renewal.
    pub(crate) fn new(lease: Duration) -> Self {
        let believed = lease.saturating_sub(STOP_MARGIN.min(lease / 10));
        Self { shared: Arc::new(Shared { believed, held: Mutex::default(), changed: Notify::new() }) }
    }

    /// A lease that was asked for at `asked`.
    pub(crate) fn hold(&self, task: TaskId, token: FencingToken, asked: Instant) -> LeaseGuard {
        let lost = CancellationToken::new();
        let held = Held { until: asked + self.shared.believed, lost: lost.clone() };
        self.held().insert((task, token), held);
        self.shared.changed.notify_one();
        LeaseGuard { leases: self.clone(), task, token, lost }
    }

    /// What a heartbeat has to name.
    pub(crate) fn names(&self) -> Vec<(TaskId, FencingToken)> {
        self.held().keys().copied().collect()
    }

    /// The answer of a heartbeat that was sent at `asked`.
    pub(crate) fn answered(&self, names: &[(TaskId, FencingToken)], still_held: &[bool], asked: Instant) {
        let mut held = self.held();
        for (name, still) in names.iter().zip(still_held) {
            match held.get_mut(name) {
                Some(lease) if *still => lease.until = lease.until.max(asked + self.shared.believed),
                Some(lease) => lease.lost.cancel(),
                None => {}
            }
        }
    }

    /// Stops every task whose lease may have ended, as long as it runs.
    pub(crate) async fn watch(&self) {
        loop {
            let next = {
                let held = self.held();
                let now = Instant::now();
                held.values().filter(|lease| lease.until <= now).for_each(|lease| lease.lost.cancel());
                held.values().map(|lease| lease.until).filter(|until| *until > now).min()
            };
            let changed = self.shared.changed.notified();
            match next {
                Some(until) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<(TaskId, FencingToken), Held>> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseGuard {
    /// A renewal that was sent at `asked` has succeeded.
    pub(crate) fn renewed(&self, asked: Instant) {
        self.leases.answered(&[(self.task, self.token)], &[true], asked);
    }

    /// Cancelled when the lease is lost.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.leases.held().remove(&(self.task, self.token));
    }
}
