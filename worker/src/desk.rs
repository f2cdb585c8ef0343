//! Where a worker's finished tasks are committed and new ones claimed, in one call.
//!
//! One call is under way at a time; what is finished meanwhile goes with the next one, together. A worker whose tasks take
//! seconds commits them one by one, and each call brings the slot's next task; one whose tasks are short commits and
//! claims many at once, which costs the queue little more than one. A task waits a short time for its call, then it is
//! committed by one of its own. Both may happen: a commit can be repeated.

use std::time::Duration;

use des_shared::queue::{FinishedTask, Lease, MAX_FINISHED, QueueError, SharedQueue, WorkerInfo};
use tokio::sync::{mpsc, oneshot};

/// The longest a finished task waits for a call that takes others along.
const MAX_PATIENCE: Duration = Duration::from_millis(500);

/// A finished task, and who waits to hear that it is committed.
#[derive(Debug)]
struct Waiting {
    task: FinishedTask,
    answer: oneshot::Sender<Result<(), QueueError>>,
}

/// Where tasks come to be committed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Counter {
    queue: SharedQueue,
    sender: mpsc::Sender<Waiting>,
    patience: Duration,
}

impl Counter {
    /// Commits a task; its slot's next task may come with the same call.
    ///
    /// # Errors
    /// Those of [`des_shared::queue::Queue::commit`].
    pub async fn hand_in(&self, task: FinishedTask) -> Result<(), QueueError> {
        let (answer, answered) = oneshot::channel();
        if self.sender.try_send(Waiting { task, answer }).is_ok()
            && let Ok(Ok(answer)) = tokio::time::timeout(self.patience, answered).await
        {
            return answer;
        }
        // Nobody sits at the desk any more, its call failed, or it takes too long.
        self.commit(task).await
    }

    /// Commits a task and claims nothing with it.
    ///
    /// # Errors
    /// Those of [`des_shared::queue::Queue::commit`].
    pub async fn commit(&self, task: FinishedTask) -> Result<(), QueueError> {
        self.queue.commit(task.task, task.token, &task.totals).await
    }
}

/// The other side of the counter.
#[derive(Debug)]
pub struct Desk {
    queue: SharedQueue,
    worker: WorkerInfo,
    receiver: mpsc::Receiver<Waiting>,
    next: Option<Waiting>,
}

impl Desk {
    /// A desk and its counter, of a worker whose leases live for `lease`.
    pub fn new(queue: SharedQueue, worker: WorkerInfo, lease: Duration) -> (Self, Counter) {
        let (sender, receiver) = mpsc::channel(worker.slots.max(1) as usize);
        let counter = Counter { queue: queue.clone(), sender, patience: MAX_PATIENCE.min(lease / 10) };
        (Self { queue, worker, receiver, next: None }, counter)
    }

    /// Returns when a finished task waits. Loses nothing when it is dropped.
    pub async fn finished(&mut self) {
        if self.next.is_none() {
            match self.receiver.recv().await {
                Some(waiting) => self.next = Some(waiting),
                // No counter is left: nothing will ever be finished.
                None => std::future::pending().await,
            }
        }
    }

    /// Whether a finished task waits.
    pub fn has_finished(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.receiver.try_recv().ok();
        }
        self.next.is_some()
    }

    /// Commits what is finished, and claims as much again and `free` tasks more.
    ///
    /// # Errors
    /// When the call failed as a whole; whoever waits for a commit then makes a call of its own.
    pub async fn exchange(&mut self, free: usize) -> Result<Vec<Lease>, QueueError> {
        let mut waiting = Vec::new();
        while waiting.len() < MAX_FINISHED
            && let Some(next) = self.next.take().or_else(|| self.receiver.try_recv().ok())
        {
            // Somebody ran out of patience, or was stopped.
            if !next.answer.is_closed() {
                waiting.push(next);
            }
        }
        let finished: Vec<FinishedTask> = waiting.iter().map(|waiting| waiting.task).collect();
        let exchanged = self.queue.exchange(&self.worker, &finished, free).await?;
        for (waiting, answer) in waiting.into_iter().zip(exchanged.committed) {
            // Who waited may be gone; the task is committed all the same.
            let _gone = waiting.answer.send(answer);
        }
        Ok(exchanged.leases)
    }
}
