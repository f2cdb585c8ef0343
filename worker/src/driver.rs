//! Claims tasks, keeps their leases alive, and hands everything back when the process stops.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use des_shared::queue::{Lease, QueueError, TaskFailure, WorkerInfo};
use des_shared::retry::{RetryPolicy, retry};
use des_shared::service::Shutdown;
use des_shared::store::SharedStore;
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::capabilities;
use crate::checkpoint;
use crate::desk::Desk;
use crate::error::{Advice, PackError};
use crate::execute::{TaskContext, execute};
use crate::leases::{LeaseGuard, Leases, StopReason};

/// How long an idle worker waits for work before it asks again anyway.
const IDLE_WAIT: Duration = Duration::from_secs(5);
/// The longest wait after a claim that failed.
const MAX_CLAIM_PAUSE: Duration = Duration::from_secs(5);
/// How long a task may take to reach its next part once it is asked to stop there.
const HAND_BACK_WITHIN: Duration = Duration::from_millis(400);
/// The longest pause between two rounds of the queue's housekeeping by a worker; a coordinator does it more often.
const TICK_PAUSE: Duration = Duration::from_secs(3);
/// Expired leases and due retries handled by one round of housekeeping.
const TICK_LIMIT: usize = 100;

/// The worker's main loop.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) context: Arc<TaskContext>,
    pub(crate) info: WorkerInfo,
    pub(crate) lease: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) stall: Duration,
    pub(crate) drain: Duration,
    pub(crate) shutdown: Shutdown,
    pub(crate) probe_stores: bool,
}

impl Driver {
    /// Works until the shutdown begins and everything is handed back.
    pub(crate) async fn run(self, desk: Desk) {
        let leases = Leases::new(self.lease, self.stall);
        let stop = CancellationToken::new();
        let force = CancellationToken::new();
        let beats = self.heartbeats(&leases, &stop);
        let watch = async {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = leases.watch() => {}
            }
        };
        let work = async {
            let mut running = JoinSet::new();
            if self.probe_stores {
                capabilities::find_out(self.stores(), &self.context.dice, &self.shutdown).await;
            }
            self.claim_until_shutdown(desk, &mut running, (&leases, &force)).await;
            self.hand_back(&mut running, &force).await;
            stop.cancel();
        };
        // Side by side in one task: none of the three can outlive the others.
        tokio::join!(beats, watch, work);
    }

    /// Every store this worker writes to.
    fn stores(&self) -> Vec<(String, SharedStore)> {
        let zones = self.context.zones.all().iter();
        let zones = zones.map(|zone| (format!("zone {:?}", zone.name), zone.store.clone()));
        zones.chain([("the state store".to_owned(), self.context.state.objects().clone())]).collect()
    }

    /// Its desk closes with it: what is finished later is committed, and nothing is claimed with it.
    async fn claim_until_shutdown(
        &self,
        mut desk: Desk,
        running: &mut JoinSet<()>,
        (leases, force): (&Leases, &CancellationToken),
    ) {
        let slots = self.info.slots.max(1) as usize;
        let mut failures = 0_u32;
        while !self.shutdown.has_begun() {
            while running.try_join_next().is_some() {}
            // A task that is committed and still cleans up has its slot no more.
            let free = slots.saturating_sub(running.len());
            if free == 0 && !desk.has_finished() {
                tokio::select! {
                    biased;
                    () = self.shutdown.wait() => {}
                    () = desk.finished() => {}
                    _ = running.join_next() => {}
                }
                continue;
            }
            let asked = Instant::now();
            match desk.exchange(free).await {
                Ok(claimed) => {
                    failures = 0;
                    let none = claimed.is_empty();
                    for lease in claimed {
                        let guard = Arc::new(leases.hold(&lease, asked, self.shutdown.token()));
                        running.spawn(self.supervised(lease, guard, force.clone()));
                    }
                    if none {
                        tokio::select! {
                            biased;
                            () = self.shutdown.wait() => {}
                            () = desk.finished() => {}
                            Some(_) = running.join_next() => {}
                            () = self.context.queue.wait_for_work(IDLE_WAIT) => {}
                        }
                    }
                }
                Err(e) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!("no task can be claimed: {e}");
                    let bound = (Duration::from_millis(100) * 2_u32.pow(failures.min(6))).min(MAX_CLAIM_PAUSE);
                    let pause = Duration::from_millis(self.context.dice.up_to(bound.as_millis() as u64));
                    tokio::select! {
                        biased;
                        () = self.shutdown.wait() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    fn supervised(
        &self,
        lease: Lease,
        guard: Arc<LeaseGuard>,
        force: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let context = Arc::clone(&self.context);
        let span = tracing::info_span!("task", job = %lease.task.job, task = lease.task.number, token = %lease.token);
        async move { supervise(&context, &lease, guard, force).await }.instrument(span)
    }

    /// Waits for the tasks to stop at their next part or file; at last stops them where they are.
    async fn hand_back(&self, running: &mut JoinSet<()>, force: &CancellationToken) {
        let all = async { while running.join_next().await.is_some() {} };
        // The last fifth is for handing back what had to be stopped by force.
        if tokio::time::timeout(self.drain.mul_f64(0.8), all).await.is_err() {
            tracing::warn!(tasks = running.len(), "tasks did not reach a part's end in time and are stopped");
            force.cancel();
            while running.join_next().await.is_some() {}
        }
    }

    /// Renews every lease at least three times in its life, and does the queue's housekeeping in passing.
    async fn heartbeats(&self, leases: &Leases, stop: &CancellationToken) {
        let third = self.lease / 3;
        let (beat, hurry) = (self.heartbeat.min(third), self.heartbeat.min(self.lease / 10));
        let (mut wait, mut ticked) = (Duration::ZERO, None::<Instant>);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let names = leases.names();
            let asked = Instant::now();
            let answer = tokio::time::timeout(third, self.context.queue.heartbeat(&self.info, &names)).await;
            wait = match answer {
                Ok(Ok(answers)) => {
                    leases.answered(&names, &answers, asked);
                    if ticked.is_none_or(|at| at.elapsed() >= third.min(TICK_PAUSE)) {
                        ticked = Some(Instant::now());
                        self.tick(third).await;
                    }
                    beat.saturating_sub(asked.elapsed())
                }
                Ok(Err(e)) => {
                    tracing::warn!("heartbeat failed: {e}");
                    hurry
                }
                Err(_) => {
                    tracing::warn!("heartbeat: no answer within {} ms", third.as_millis());
                    hurry
                }
            };
        }
    }

    async fn tick(&self, at_most: Duration) {
        match tokio::time::timeout(at_most, self.context.queue.tick(TICK_LIMIT)).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => tracing::warn!("housekeeping of the queue failed: {e}"),
            Err(_) => tracing::warn!("housekeeping of the queue took too long"),
        }
    }
}

/// Runs one task to its end, whatever that is, and tells the queue.
async fn supervise(context: &TaskContext, lease: &Lease, guard: Arc<LeaseGuard>, force: CancellationToken) {
    context.metrics.task_began(lease);
    let outcome = {
        // A panic in one task must not take the others with it.
        let work = AssertUnwindSafe(execute(context, lease, &guard)).catch_unwind();
        tokio::select! {
            biased;
            why = guard.stopped() => Err(stopped(lease, why)),
            () = overdue(&guard.hand_back) => Err(PackError::Draining),
            () = force.cancelled() => Err(PackError::Draining),
            ended = work => ended.unwrap_or_else(|panic| Err(PackError::Panicked(words(panic.as_ref())))),
        }
    };
    let advice = outcome.as_ref().err().map(PackError::advice);
    if let Err(e) = &outcome {
        // What the work had started ends with it; from here on nothing of it is written.
        guard.vitals.stopped().await;
        guard.ending();
        let told = tell(context, lease, e);
        tokio::select! {
            biased;
            StopReason::Lost = guard.stopped() => {}
            () = told => {}
        }
    }
    context.metrics.task_ended(advice);
    match advice {
        // Its uploads may be the next holder's.
        None | Some(Advice::Stop) => {}
        Some(Advice::CleanUp) => {
            guard.vitals.drop_uploads(true).await;
            checkpoint::remove(&context.state, lease.task).await;
        }
        Some(_) => guard.vitals.drop_uploads(false).await,
    }
}

/// Returns when a task that was asked to stop at its next part has had its time: a store that is slow or does not answer
/// must not keep the task from its next holder. What is dropped then is at most the part under way.
async fn overdue(hand_back: &CancellationToken) {
    hand_back.cancelled().await;
    tokio::time::sleep(HAND_BACK_WITHIN).await;
}

fn stopped(lease: &Lease, why: StopReason) -> PackError {
    match why {
        StopReason::Lost => stale(lease),
        StopReason::Cancelled => QueueError::Cancelled { task: lease.task }.into(),
        StopReason::Stalled(time) => PackError::Stalled(time),
    }
}

fn stale(lease: &Lease) -> PackError {
    QueueError::Stale { task: lease.task, token: lease.token }.into()
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

/// Hands a task back, or says that it failed. When the queue does not answer, the lease runs out by itself.
async fn tell(context: &TaskContext, lease: &Lease, error: &PackError) {
    let (task, token) = (lease.task, lease.token);
    let permanent = match error.advice() {
        Advice::Stop => {
            tracing::warn!("the lease is lost; the task stops here");
            return;
        }
        Advice::CleanUp => {
            tracing::info!("the job was cancelled; the task stops here");
            return;
        }
        Advice::HandBack => {
            tracing::info!("the task is handed back");
            None
        }
        Advice::BeginAgain | Advice::TryLater => {
            tracing::warn!(attempt = lease.attempt, "the task failed and will be tried again: {error}");
            Some(false)
        }
        Advice::GiveUp => {
            tracing::error!("the task failed for good: {error}");
            Some(true)
        }
    };
    let told = retry(&RetryPolicy::QUICK, &context.dice, QueueError::is_transient, || async {
        match permanent {
            None => context.queue.release(task, token).await,
            Some(permanent) => {
                let failure = TaskFailure { permanent, message: error.to_string() };
                context.queue.fail(task, token, &failure).await.map(|_| ())
            }
        }
    });
    if let Err(e) = told.await {
        tracing::warn!("the queue was not told: {e}");
    }
}
