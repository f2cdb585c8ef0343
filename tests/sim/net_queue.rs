//! The queue at the other end of the network.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use des_shared::clock::Clock;
use des_shared::ids::{FencingToken, JobId, TaskId};
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::{
    Checkpoint, Exchanged, FailOutcome, FinishedTask, Held, HeldTask, JobCounters, JobShare, Lease, NewTask, Queue,
    QueueError, QueueStats, TaskFailure, TaskState, TaskTotals, TaskView, Tick, WorkerInfo, WorkerView,
};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::ledger::Ledger;
use crate::net::{Node, Target};

/// A process's view of the queue.
pub(crate) struct NetQueue {
    node: Arc<Node>,
    inner: Arc<MemoryQueue>,
}

impl fmt::Debug for NetQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetQueue").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What the server has at hand while it carries out a call.
#[derive(Clone)]
struct Server {
    queue: Arc<MemoryQueue>,
    node: Arc<Node>,
}

impl Server {
    fn ledger(&self) -> &Ledger {
        &self.node.net.ledger
    }

    fn now_ms(&self) -> u64 {
        self.node.net.clock.now_ms()
    }
}

type Answer<T> = Result<T, QueueError>;

impl NetQueue {
    pub(crate) fn new(node: &Arc<Node>, inner: &Arc<MemoryQueue>) -> Self {
        Self { node: Arc::clone(node), inner: Arc::clone(inner) }
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: String,
        carry_out: impl Fn(Server) -> BoxFuture<'static, Answer<T>> + Send + 'static,
    ) -> Answer<T> {
        let server = Server { queue: Arc::clone(&self.inner), node: Arc::clone(&self.node) };
        let away = |why: &str| QueueError::Unavailable(why.to_owned());
        self.node.call(Target::Queue, what, move || carry_out(server.clone()), away).await
    }
}

#[async_trait]
impl Queue for NetQueue {
    async fn add_job(&self, job: JobId, share: JobShare) -> Answer<()> {
        self.ask(format!("add_job {job}"), move |s| async move { s.queue.add_job(job, share).await }.boxed()).await
    }

    async fn add_tasks(&self, job: JobId, tasks: &[NewTask]) -> Answer<u64> {
        let tasks = tasks.to_vec();
        self.ask(format!("add_tasks {job} {}", tasks.len()), move |s| {
            let tasks = tasks.clone();
            async move {
                let added = s.queue.add_tasks(job, &tasks).await?;
                if added > 0 {
                    s.ledger().brought_in(s.now_ms(), job, &tasks);
                }
                Ok(added)
            }
            .boxed()
        })
        .await
    }

    async fn claim(&self, worker: &WorkerInfo, max: usize) -> Answer<Vec<Lease>> {
        let worker = worker.clone();
        self.ask(format!("claim {max}"), move |s| {
            let worker = worker.clone();
            async move {
                let leases = s.queue.claim(&worker, max).await?;
                s.ledger().claimed(s.now_ms(), &s.node.name, &leases);
                Ok(leases)
            }
            .boxed()
        })
        .await
    }

    async fn heartbeat(&self, worker: &WorkerInfo, held: &[HeldTask]) -> Answer<Vec<Held>> {
        let (worker, held) = (worker.clone(), held.to_vec());
        self.ask(format!("heartbeat {}", held.len()), move |s| {
            let (worker, held) = (worker.clone(), held.clone());
            async move {
                let answers = s.queue.heartbeat(&worker, &held).await?;
                for (task, answer) in held.iter().zip(&answers) {
                    s.ledger().renewed(s.now_ms(), task.task, task.token, *answer);
                }
                Ok(answers)
            }
            .boxed()
        })
        .await
    }

    async fn checkpoint(&self, task: TaskId, token: FencingToken, checkpoint: &Checkpoint) -> Answer<Held> {
        let checkpoint = checkpoint.clone();
        self.ask(format!("checkpoint {task} {token} {}", checkpoint.parts), move |s| {
            let checkpoint = checkpoint.clone();
            async move {
                let held = s.queue.checkpoint(task, token, &checkpoint).await?;
                s.ledger().check_token("checkpoint", task, token);
                s.ledger().renewed(s.now_ms(), task, token, held);
                Ok(held)
            }
            .boxed()
        })
        .await
    }

    async fn drop_checkpoint(&self, task: TaskId, token: FencingToken) -> Answer<()> {
        self.ask(format!("drop_checkpoint {task} {token}"), move |s| {
            async move {
                s.queue.drop_checkpoint(task, token).await?;
                s.ledger().check_token("drop_checkpoint", task, token);
                Ok(())
            }
            .boxed()
        })
        .await
    }

    async fn commit(&self, task: TaskId, token: FencingToken, totals: &TaskTotals) -> Answer<()> {
        let totals = *totals;
        self.ask(format!("commit {task} {token}"), move |s| {
            async move {
                s.queue.commit(task, token, &totals).await?;
                s.ledger().check_token("commit", task, token);
                s.ledger().finished(task);
                Ok(())
            }
            .boxed()
        })
        .await
    }

    async fn exchange(&self, worker: &WorkerInfo, finished: &[FinishedTask], free: usize) -> Answer<Exchanged> {
        let (worker, finished) = (worker.clone(), finished.to_vec());
        let tasks: Vec<String> = finished.iter().map(|done| format!("{} {}", done.task, done.token)).collect();
        self.ask(format!("exchange {} for {free} more", tasks.join(", ")), move |s| {
            let (worker, finished) = (worker.clone(), finished.clone());
            async move {
                let exchanged = s.queue.exchange(&worker, &finished, free).await?;
                for (done, answer) in finished.iter().zip(&exchanged.committed) {
                    if answer.is_ok() {
                        s.ledger().check_token("commit", done.task, done.token);
                        s.ledger().finished(done.task);
                    }
                }
                s.ledger().claimed(s.now_ms(), &s.node.name, &exchanged.leases);
                Ok(exchanged)
            }
            .boxed()
        })
        .await
    }

    async fn fail(&self, task: TaskId, token: FencingToken, failure: &TaskFailure) -> Answer<FailOutcome> {
        let failure = failure.clone();
        if failure.message.contains("panicked") {
            self.node.net.ledger.violation(format!("task {task}: {}", failure.message));
        }
        self.ask(format!("fail {task} {token} {}", failure.message), move |s| {
            let failure = failure.clone();
            async move {
                let outcome = s.queue.fail(task, token, &failure).await?;
                s.ledger().check_token("fail", task, token);
                s.ledger().given_back(task);
                Ok(outcome)
            }
            .boxed()
        })
        .await
    }

    async fn release(&self, task: TaskId, token: FencingToken) -> Answer<()> {
        self.ask(format!("release {task} {token}"), move |s| {
            async move {
                s.queue.release(task, token).await?;
                s.ledger().check_token("release", task, token);
                s.ledger().given_back(task);
                Ok(())
            }
            .boxed()
        })
        .await
    }

    async fn settle(&self, task: TaskId, state: TaskState, totals: &TaskTotals) -> Answer<()> {
        let totals = *totals;
        self.ask(format!("settle {task} {state:?}"), move |s| {
            async move {
                s.queue.settle(task, state, &totals).await?;
                s.ledger().finished(task);
                Ok(())
            }
            .boxed()
        })
        .await
    }

    async fn tick(&self, limit: usize) -> Answer<Tick> {
        self.ask("tick".to_owned(), move |s| {
            async move {
                let answer = s.queue.tick(limit).await;
                s.ledger().ticked(&answer);
                answer
            }
            .boxed()
        })
        .await
    }

    async fn job(&self, job: JobId) -> Answer<Option<JobCounters>> {
        self.ask(format!("job {job}"), move |s| async move { s.queue.job(job).await }.boxed()).await
    }

    async fn tasks(&self, job: JobId, from: u32, limit: usize) -> Answer<Vec<TaskView>> {
        self.ask(format!("tasks {job}"), move |s| async move { s.queue.tasks(job, from, limit).await }.boxed()).await
    }

    async fn jobs(&self) -> Answer<Vec<JobId>> {
        self.ask("jobs".to_owned(), move |s| async move { s.queue.jobs().await }.boxed()).await
    }

    async fn set_share(&self, job: JobId, share: JobShare) -> Answer<()> {
        self.ask(format!("set_share {job}"), move |s| async move { s.queue.set_share(job, share).await }.boxed()).await
    }

    async fn set_paused(&self, job: JobId, paused: bool) -> Answer<()> {
        self.ask(format!("set_paused {job} {paused}"), move |s| {
            async move {
                s.queue.set_paused(job, paused).await?;
                let mut facts = s.ledger().facts();
                if paused {
                    facts.held_back.insert(job)
                } else {
                    facts.held_back.remove(&job)
                };
                Ok(())
            }
            .boxed()
        })
        .await
    }

    async fn cancel_job(&self, job: JobId, limit: usize) -> Answer<u64> {
        self.ask(format!("cancel_job {job}"), move |s| {
            async move {
                let left = s.queue.cancel_job(job, limit).await?;
                s.ledger().facts().held_back.insert(job);
                Ok(left)
            }
            .boxed()
        })
        .await
    }

    async fn audit(&self) -> Answer<Vec<String>> {
        self.ask("audit".to_owned(), move |s| async move { Queue::audit(&*s.queue).await }.boxed()).await
    }

    async fn repair_job(&self, job: JobId) -> Answer<u64> {
        self.ask(format!("repair_job {job}"), move |s| async move { s.queue.repair_job(job).await }.boxed()).await
    }

    async fn forget_job(&self, job: JobId) -> Answer<()> {
        self.ask(format!("forget_job {job}"), move |s| {
            async move {
                s.queue.forget_job(job).await?;
                s.ledger().forgotten(Some(job));
                Ok(())
            }
            .boxed()
        })
        .await
    }

    async fn stats(&self) -> Answer<QueueStats> {
        self.ask("stats".to_owned(), move |s| async move { s.queue.stats().await }.boxed()).await
    }

    async fn workers(&self) -> Answer<Vec<WorkerView>> {
        self.ask("workers".to_owned(), move |s| async move { s.queue.workers().await }.boxed()).await
    }

    async fn lock(&self, name: &str, holder: &str, ttl: Duration) -> Answer<Option<FencingToken>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.ask(format!("lock {name} {holder}"), move |s| {
            let (name, holder) = (name.clone(), holder.clone());
            async move { s.queue.lock(&name, &holder, ttl).await }.boxed()
        })
        .await
    }

    async fn unlock(&self, name: &str, holder: &str) -> Answer<()> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.ask(format!("unlock {name} {holder}"), move |s| {
            let (name, holder) = (name.clone(), holder.clone());
            async move { s.queue.unlock(&name, &holder).await }.boxed()
        })
        .await
    }

    async fn wait_for_work(&self, at_most: Duration) {
        self.node.running().await;
        self.inner.wait_for_work(at_most).await;
        self.node.running().await;
    }

    async fn ping(&self) -> Answer<()> {
        self.ask("ping".to_owned(), move |s| async move { s.queue.ping().await }.boxed()).await
    }
}
