//! The operations of the queue, each the call of a script.

use std::time::Duration;

use async_trait::async_trait;

use super::wire::{self, Reply};
use super::{CHUNK, RedisQueue, always, out_of_place, share_args};
use crate::ids::{FencingToken, JobId, TaskId};
use crate::queue::values::{
    CLAIM_REVIVES, EXPIRED_ATTEMPT, EXPIRED_MESSAGE, MAX_CLAIM, MAX_EXACT, MAX_SHOWN_TASKS, MAX_STEP, MAX_TICK,
    MAX_WAITING_BYTES, check_finished, check_lock, check_settled, check_share, check_tasks, check_totals, cut,
    encode_checkpoint, history_message, millis, progress,
};
use crate::queue::{
    Checkpoint, Exchanged, FailOutcome, FinishedTask, Held, HeldTask, JobCounters, JobShare, Lease, MAX_MESSAGE_BYTES,
    NewTask, Queue, QueueError, QueueStats, TaskFailure, TaskState, TaskTotals, TaskView, Tick, WorkerInfo, WorkerView,
};

#[async_trait]
impl Queue for RedisQueue {
    async fn add_job(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        check_share(share)?;
        loop {
            let values = always(self.run(&self.scripts.add_job, &share_args(job, share)).await?)?;
            match wire::single::<String>(values, "kind of answer")?.as_str() {
                // What is left of a job of that name is cleared away first.
                "busy" => self.forget_job(job).await?,
                _ => return Ok(()),
            }
        }
    }

    async fn add_tasks(&self, job: JobId, tasks: &[NewTask]) -> Result<u64, QueueError> {
        check_tasks(tasks)?;
        let mut added = 0;
        let mut rest = tasks;
        loop {
            let (chunk, behind) = rest.split_at(rest.len().min(CHUNK));
            let mut args = vec![job.to_string(), MAX_WAITING_BYTES.to_string()];
            for task in chunk {
                args.extend([wire::number(task.number), task.source_bytes.to_string()]);
            }
            added += wire::single::<u64>(self.run_job(&self.scripts.add_tasks, job, &args).await?, "count")?;
            rest = behind;
            if rest.is_empty() {
                return Ok(added);
            }
        }
    }

    async fn claim(&self, worker: &WorkerInfo, max: usize) -> Result<Vec<Lease>, QueueError> {
        Ok(self.exchange(worker, &[], max).await?.leases)
    }

    async fn heartbeat(&self, worker: &WorkerInfo, held: &[HeldTask]) -> Result<Vec<Held>, QueueError> {
        let mut args = self.worker_args(worker);
        args.push(MAX_SHOWN_TASKS.to_string());
        for HeldTask { task, token, done_bytes } in held {
            args.extend(wire::task_args(*task));
            args.extend([token.to_string(), (*done_bytes).min(MAX_EXACT).to_string()]);
        }
        let answers: Vec<u8> =
            wire::single(always(self.run(&self.scripts.heartbeat, &args).await?)?, "list of answers")?;
        if answers.len() != held.len() {
            return Err(out_of_place());
        }
        answers.into_iter().map(wire::held).collect()
    }

    async fn checkpoint(&self, task: TaskId, token: FencingToken, checkpoint: &Checkpoint) -> Result<Held, QueueError> {
        let json = encode_checkpoint(checkpoint)?;
        let text = format!("{} {json}", wire::totals(&progress(checkpoint), ' '));
        let values = self.run_lease(&self.scripts.checkpoint, task, token, [self.lease_ms(), text]).await?;
        wire::held(wire::single(values, "answer")?)
    }

    async fn drop_checkpoint(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.run_lease(&self.scripts.checkpoint, task, token, [self.lease_ms()]).await?;
        Ok(())
    }

    async fn commit(&self, task: TaskId, token: FencingToken, totals: &TaskTotals) -> Result<(), QueueError> {
        check_totals(totals)?;
        self.run_lease(&self.scripts.commit, task, token, [wire::totals(totals, ',')]).await?;
        Ok(())
    }

    async fn exchange(
        &self,
        worker: &WorkerInfo,
        finished: &[FinishedTask],
        free: usize,
    ) -> Result<Exchanged, QueueError> {
        check_finished(finished)?;
        let mut args = self.worker_args(worker);
        args.extend([free.min(MAX_CLAIM).to_string(), CLAIM_REVIVES.to_string()]);
        // By job and number, as the script takes them.
        let mut places: Vec<usize> = (0..finished.len()).collect();
        places.sort_by_key(|&place| finished[place].task);
        for tasks in places.chunk_by(|&a, &b| finished[a].task.job == finished[b].task.job) {
            let mut sum = TaskTotals::default();
            for &place in tasks {
                sum.change(&finished[place].totals, &TaskTotals::default());
            }
            args.extend([finished[tasks[0]].task.job.to_string(), tasks.len().to_string()]);
            let TaskTotals { files_packed, files_failed, source_bytes, stored_bytes } = sum;
            args.extend([files_packed, files_failed, source_bytes, stored_bytes].map(|sum| sum.to_string()));
            for &place in tasks {
                let FinishedTask { task, token, totals } = finished[place];
                args.extend([wire::number(task.number), token.to_string(), wire::totals(&totals, ',')]);
            }
        }
        let mut values = always(self.run(&self.scripts.exchange, &args).await?)?.into_iter();
        let leases: Vec<wire::LeaseParts> = wire::part(values.next(), "list of leases")?;
        let refused: Vec<wire::RefusalParts> = wire::part(values.next(), "list of refused tasks")?;
        let mut committed = vec![Ok(()); finished.len()];
        for refused in refused {
            let (place, refusal) = wire::refusal(refused, &places, finished)?;
            committed[place] = Err(refusal);
        }
        Ok(Exchanged { committed, leases: leases.into_iter().map(wire::lease).collect::<Result<_, _>>()? })
    }

    async fn fail(&self, task: TaskId, token: FencingToken, failure: &TaskFailure) -> Result<FailOutcome, QueueError> {
        let roll = self.dice.up_to(u64::from(u32::MAX));
        let args = [
            u8::from(failure.permanent).to_string(),
            cut(&failure.message, MAX_MESSAGE_BYTES).to_owned(),
            history_message(&failure.message),
            self.config.max_attempts.to_string(),
            roll.to_string(),
            millis(self.config.backoff_base).to_string(),
            millis(self.config.backoff_max).min(u64::from(u32::MAX)).to_string(),
        ];
        let values = self.run_lease(&self.scripts.fail, task, token, args).await?;
        let outcome: String = wire::single(values, "outcome")?;
        match outcome.as_str() {
            "dead" => Ok(FailOutcome::Dead),
            until => Ok(FailOutcome::Delayed { until_ms: wire::parse(until, "time")? }),
        }
    }

    async fn release(&self, task: TaskId, token: FencingToken) -> Result<(), QueueError> {
        self.run_lease(&self.scripts.release, task, token, []).await?;
        Ok(())
    }

    async fn settle(&self, task: TaskId, state: TaskState, totals: &TaskTotals) -> Result<(), QueueError> {
        check_settled(state)?;
        check_totals(totals)?;
        let [job, number] = wire::task_args(task);
        let letter = if state == TaskState::Committed { "C" } else { "X" };
        let args = [job, number, letter.to_owned(), wire::totals(totals, ',')];
        self.run_job(&self.scripts.settle, task.job, &args).await?;
        Ok(())
    }

    async fn tick(&self, limit: usize) -> Result<Tick, QueueError> {
        let args = [
            limit.min(MAX_TICK).to_string(),
            self.config.max_attempts.to_string(),
            EXPIRED_MESSAGE.to_owned(),
            self.lease_ms(),
            EXPIRED_ATTEMPT.to_owned(),
        ];
        let mut values = always(self.run(&self.scripts.tick, &args).await?)?.into_iter();
        let mut ids = |what| wire::task_ids(&wire::part::<Vec<String>>(values.next(), what)?);
        let (expired, died) = (ids("list of expired tasks")?, ids("list of dead tasks")?);
        Ok(Tick { expired, died, revived: wire::part(values.next(), "count")? })
    }

    async fn job(&self, job: JobId) -> Result<Option<JobCounters>, QueueError> {
        match self.run(&self.scripts.job, &[job.to_string()]).await? {
            Reply::Done(values) => {
                Ok(Some(wire::counters(&wire::single::<Vec<String>>(values, "set of job counters")?)?))
            }
            Reply::Unknown => Ok(None),
            Reply::Stale | Reply::Cancelled => Err(out_of_place()),
        }
    }

    async fn tasks(&self, job: JobId, from: u32, limit: usize) -> Result<Vec<TaskView>, QueueError> {
        let mut found: Vec<TaskView> = Vec::new();
        let mut from = from;
        loop {
            let page = (limit - found.len()).min(CHUNK);
            let args = [job.to_string(), from.to_string(), page.to_string()];
            let values = self.run_job(&self.scripts.tasks, job, &args).await?;
            let tasks: Vec<wire::TaskParts> = wire::single(values, "list of tasks")?;
            let full = tasks.len() == page;
            for task in tasks {
                found.push(wire::task_view(task)?);
            }
            match found.last().and_then(|last| last.number.checked_add(1)) {
                Some(next) if full && found.len() < limit => from = next,
                _ => return Ok(found),
            }
        }
    }

    async fn jobs(&self) -> Result<Vec<JobId>, QueueError> {
        let values = always(self.run(&self.scripts.jobs, &[]).await?)?;
        wire::job_ids(&wire::single::<Vec<String>>(values, "list of jobs")?)
    }

    async fn set_share(&self, job: JobId, share: JobShare) -> Result<(), QueueError> {
        check_share(share)?;
        self.run_job(&self.scripts.set_share, job, &share_args(job, share)).await?;
        Ok(())
    }

    async fn set_paused(&self, job: JobId, paused: bool) -> Result<(), QueueError> {
        let args = [job.to_string(), u8::from(paused).to_string()];
        self.run_job(&self.scripts.set_paused, job, &args).await?;
        Ok(())
    }

    async fn cancel_job(&self, job: JobId, limit: usize) -> Result<u64, QueueError> {
        let args = [job.to_string(), limit.min(MAX_STEP).to_string()];
        wire::single(self.run_job(&self.scripts.cancel_job, job, &args).await?, "count")
    }

    async fn audit(&self) -> Result<Vec<String>, QueueError> {
        self.audit_all().await
    }

    async fn repair_job(&self, job: JobId) -> Result<u64, QueueError> {
        self.repair(job).await
    }

    async fn forget_job(&self, job: JobId) -> Result<(), QueueError> {
        let args = [job.to_string(), MAX_STEP.to_string()];
        loop {
            let left: u64 = wire::single(always(self.run(&self.scripts.forget_job, &args).await?)?, "count")?;
            if left == 0 {
                return Ok(());
            }
        }
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        let values = always(self.run(&self.scripts.stats, &[]).await?)?;
        wire::stats(&wire::single::<Vec<String>>(values, "set of counts")?)
    }

    async fn workers(&self) -> Result<Vec<WorkerView>, QueueError> {
        let values = always(self.run(&self.scripts.workers, &[self.lease_ms()]).await?)?;
        let workers: Vec<wire::WorkerParts> = wire::single(values, "list of workers")?;
        let mut workers: Vec<WorkerView> = workers.into_iter().map(wire::worker).collect::<Result<_, _>>()?;
        workers.sort_by_key(|worker| worker.id);
        Ok(workers)
    }

    async fn lock(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<FencingToken>, QueueError> {
        check_lock(name, holder)?;
        let args = [name.to_owned(), holder.to_owned(), millis(ttl).to_string()];
        let token: Option<String> = wire::single(always(self.run(&self.scripts.lock, &args).await?)?, "token")?;
        token.map(|token| Ok(FencingToken(wire::parse(&token, "token")?))).transpose()
    }

    async fn unlock(&self, name: &str, holder: &str) -> Result<(), QueueError> {
        check_lock(name, holder)?;
        always(self.run(&self.scripts.unlock, &[name.to_owned(), holder.to_owned()]).await?)?;
        Ok(())
    }

    async fn wait_for_work(&self, at_most: Duration) {
        self.wake.start(&self.connections, &format!("{}:wake", self.tag));
        let wait = async {
            let woken = self.wake.next();
            tokio::pin!(woken);
            // Registered before the look at the queue, or a word that comes in between would wake nobody.
            woken.as_mut().enable();
            match self.due().await {
                Ok(Some(due)) => {
                    // Running out of time is one of the two ways in which this wait ends well.
                    let _elapsed = tokio::time::timeout(due, woken).await;
                }
                // Without an answer there is nothing to do but wait; the next claim will say what is wrong.
                Ok(None) | Err(_) => woken.await,
            }
        };
        let _elapsed = tokio::time::timeout(at_most, wait).await;
    }

    async fn ping(&self) -> Result<(), QueueError> {
        self.connections.ping().await
    }
}
