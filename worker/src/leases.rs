//! The leases a worker holds, until when it may believe so, and whether their tasks get on.
//!
//! Invariants: a task's work is stopped before its lease can be given to another. The deadline counts from the moment
//! a renewal was *sent*, on this machine's own monotonic clock: the queue's own expiry is never earlier. A task that
//! makes no progress is not renewed for ever.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use des_shared::ids::{FencingToken, TaskId};
use des_shared::queue::{Held, HeldTask, Lease};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::vitals::Vitals;

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
    stall: Duration,
    held: Mutex<BTreeMap<(TaskId, FencingToken), Entry>>,
    changed: Notify,
}

#[derive(Debug)]
struct Entry {
    until: Instant,
    stop: Stop,
    hand_back: CancellationToken,
    vitals: Vitals,
    /// Signs of life when they were last counted, and when they last grew.
    signs: u64,
    lively: Instant,
    /// The task is being ended: what the queue says about the lease no longer matters.
    ending: bool,
}

/// Why a task has to stop where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The lease is, or may be, another's.
    Lost,
    /// The job was cancelled.
    Cancelled,
    /// The task has made no progress for so long.
    Stalled(Duration),
}

/// A stop that says why.
#[derive(Clone, Debug, Default)]
struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<StopReason>>,
}

impl Stop {
    fn because(&self, reason: StopReason) {
        // The first reason counts.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }
}

/// One held lease. Dropping it ends the renewals.
#[derive(Debug)]
pub(crate) struct LeaseGuard {
    leases: Leases,
    pub(crate) task: TaskId,
    pub(crate) token: FencingToken,
    /// Stop at the next file or part and give the task back: the process stops, or the job is paused.
    pub(crate) hand_back: CancellationToken,
    pub(crate) vitals: Vitals,
    stop: Stop,
}

impl Leases {
    /// Leases that live for `lease` without a renewal, of tasks that are hung when they make no progress for `stall`.
    pub(crate) fn new(lease: Duration, stall: Duration) -> Self {
        let believed = lease.saturating_sub(STOP_MARGIN.min(lease / 10));
        Self { shared: Arc::new(Shared { believed, stall, held: Mutex::default(), changed: Notify::new() }) }
    }

    /// A lease that was asked for at `asked`. It is handed back when `drain` is cancelled.
    pub(crate) fn hold(&self, lease: &Lease, asked: Instant, drain: &CancellationToken) -> LeaseGuard {
        let (stop, hand_back, vitals) = (Stop::default(), drain.child_token(), Vitals::default());
        vitals.progressed(lease.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.source_bytes));
        let entry = Entry {
            until: asked + self.shared.believed,
            stop: stop.clone(),
            hand_back: hand_back.clone(),
            signs: vitals.signs(),
            vitals: vitals.clone(),
            lively: Instant::now(),
            ending: false,
        };
        self.held().insert((lease.task, lease.token), entry);
        self.shared.changed.notify_one();
        LeaseGuard { leases: self.clone(), task: lease.task, token: lease.token, hand_back, vitals, stop }
    }

    /// What a heartbeat has to name: every task that gets on. One that does not is stopped instead, and not renewed even
    /// if nothing can stop it.
    pub(crate) fn names(&self) -> Vec<HeldTask> {
        let (now, mut names) = (Instant::now(), Vec::new());
        for (&(task, token), entry) in self.held().iter_mut().filter(|(_, entry)| !entry.ending) {
            let signs = entry.vitals.signs();
            if signs != entry.signs {
                (entry.signs, entry.lively) = (signs, now);
            }
            if now.duration_since(entry.lively) >= self.shared.stall {
                entry.stop.because(StopReason::Stalled(self.shared.stall));
            } else {
                names.push(HeldTask { task, token, done_bytes: entry.vitals.done_bytes() });
            }
        }
        names
    }

    /// The answer of a heartbeat that was sent at `asked`.
    pub(crate) fn answered(&self, names: &[HeldTask], answers: &[Held], asked: Instant) {
        let mut held = self.held();
        for (name, answer) in names.iter().zip(answers) {
            let Some(entry) = held.get_mut(&(name.task, name.token)).filter(|entry| !entry.ending) else { continue };
            match answer {
                Held::Yes => entry.until = entry.until.max(asked + self.shared.believed),
                Held::HandBack => {
                    entry.until = entry.until.max(asked + self.shared.believed);
                    entry.hand_back.cancel();
                }
                Held::Cancelled => entry.stop.because(StopReason::Cancelled),
                Held::Lost => entry.stop.because(StopReason::Lost),
            }
        }
    }

    /// Stops every task whose lease may have ended, as long as it runs.
    pub(crate) async fn watch(&self) {
        loop {
            let next = {
                let held = self.held();
                let now = Instant::now();
                held.values().filter(|entry| entry.until <= now).for_each(|entry| entry.stop.because(StopReason::Lost));
                held.values().map(|entry| entry.until).filter(|until| *until > now).min()
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

    fn held(&self) -> MutexGuard<'_, BTreeMap<(TaskId, FencingToken), Entry>> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseGuard {
    /// What a renewal that was sent at `asked` was answered.
    pub(crate) fn renewed(&self, answer: Held, asked: Instant) {
        let name = HeldTask { task: self.task, token: self.token, done_bytes: 0 };
        self.leases.answered(&[name], &[answer], asked);
    }

    /// The task is about to be ended with its token. A heartbeat under way may not know the lease any more when it is
    /// answered; that is no reason to stop.
    pub(crate) fn ending(&self) {
        if let Some(entry) = self.leases.held().get_mut(&(self.task, self.token)) {
            entry.ending = true;
        }
    }

    /// Returns when the task has to stop where it is.
    pub(crate) async fn stopped(&self) -> StopReason {
        self.stop.token.cancelled().await;
        self.stop.reason.get().copied().unwrap_or(StopReason::Lost)
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.leases.held().remove(&(self.task, self.token));
    }
}
