//! What both engines agree on: accepted values, cuts, costs and bounds. No engine, no time, no IO.

use std::time::Duration;

use super::{
    Checkpoint, FinishedTask, JobShare, MAX_CHECKPOINT_BYTES, MAX_FINISHED, MAX_HISTORY_MESSAGE_BYTES, MAX_RUNNING,
    NewTask, QueueConfig, QueueError, TaskState, TaskTotals,
};

/// Largest number the engines count with: Lua numbers are doubles and exact up to here. Tokens are microseconds since
/// 1970, about 2^50.7, and stay below it until the year 2255.
pub(crate) const MAX_EXACT: u64 = 1 << 53;
/// Most tasks one claim leases.
pub(crate) const MAX_CLAIM: usize = 1000;
/// Most tasks one tick looks at.
pub(crate) const MAX_TICK: usize = 1000;
/// Most due retries one claim makes pending before it looks for work.
pub(crate) const CLAIM_REVIVES: usize = 100;
/// Longest worker name kept, in bytes.
pub(crate) const MAX_WORKER_NAME_BYTES: usize = 256;
/// Longest name of a lock and of its holder, in bytes.
pub(crate) const MAX_LOCK_NAME_BYTES: usize = 256;
/// Message of a task whose last attempt ended with its lease.
pub(crate) const EXPIRED_MESSAGE: &str =
    "the lease ran out and no attempt is left: the task may take its workers down, or they were cut off from the queue";

/// What the history says of an attempt that ended with its lease.
pub(crate) const EXPIRED_ATTEMPT: &str = "the lease ran out";
/// Most tasks one step cancels or forgets.
pub(crate) const MAX_STEP: usize = 250;
/// Most violations an audit names.
pub(crate) const MAX_VIOLATIONS: usize = 100;
/// Most tasks of one heartbeat that are shown with the worker.
pub(crate) const MAX_SHOWN_TASKS: usize = 256;
/// Source bytes that can wait in a queue: sums are signed 64-bit numbers and must never run over.
pub(crate) const MAX_WAITING_BYTES: u64 = 1 << 62;

/// A duration in whole milliseconds, at most about 139 years.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(1 << 42)
}

/// `text` cut to at most `max` bytes, between two characters.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// A failure's message as the history keeps it: short and on one line.
pub(crate) fn history_message(text: &str) -> String {
    cut(text, MAX_HISTORY_MESSAGE_BYTES).replace('\n', " ")
}

/// Upper bound in milliseconds of the delay after a failed attempt: `base * 2^(attempt - 1)`, at most the maximum.
pub(crate) fn backoff_bound(config: &QueueConfig, attempts: u32) -> u64 {
    let max = millis(config.backoff_max).min(u64::from(u32::MAX));
    let factor = 1_u64 << attempts.saturating_sub(1).min(20);
    millis(config.backoff_base).saturating_mul(factor).min(max)
}

/// A random delay in `0..=bound` from a roll of 32 bits.
pub(crate) fn jitter(roll: u64, bound: u64) -> u64 {
    roll % (bound + 1)
}

/// What a checkpoint adds to its job while its task is open: the shard bytes uploaded count as stored.
pub(crate) fn progress(checkpoint: &Checkpoint) -> TaskTotals {
    TaskTotals {
        files_packed: checkpoint.files_packed,
        files_failed: checkpoint.files_failed,
        source_bytes: checkpoint.source_bytes,
        stored_bytes: checkpoint.offset,
    }
}

/// The text of a checkpoint as the queue keeps it.
pub(crate) fn encode_checkpoint(checkpoint: &Checkpoint) -> Result<String, QueueError> {
    check_totals(&progress(checkpoint))?;
    let text = serde_json::to_string(checkpoint)
        .map_err(|error| QueueError::Invalid(format!("a checkpoint cannot be encoded: {error}")))?;
    if text.len() > MAX_CHECKPOINT_BYTES {
        return Err(QueueError::Invalid(format!(
            "a checkpoint is {} bytes long; expected at most {MAX_CHECKPOINT_BYTES}",
            text.len()
        )));
    }
    Ok(text)
}

/// Refuses shares outside the ranges of [`JobShare`].
pub(crate) fn check_share(share: JobShare) -> Result<(), QueueError> {
    if !(-100..=100).contains(&share.priority) {
        return Err(QueueError::Invalid(format!("priority is {}; expected -100 to 100", share.priority)));
    }
    if !(1..=1000).contains(&share.weight) {
        return Err(QueueError::Invalid(format!("weight is {}; expected 1 to 1000", share.weight)));
    }
    if let Some(max) = share.max_running.filter(|max| !(1..=MAX_RUNNING).contains(max)) {
        return Err(QueueError::Invalid(format!("max_running is {max}; expected 1 to {MAX_RUNNING}")));
    }
    Ok(())
}

/// Refuses tasks whose size the engines could not count exactly.
pub(crate) fn check_tasks(tasks: &[NewTask]) -> Result<(), QueueError> {
    match tasks.iter().find(|task| task.source_bytes > MAX_EXACT) {
        Some(task) => Err(QueueError::Invalid(format!(
            "task {} has {} source bytes; expected at most 2^53",
            task.number, task.source_bytes
        ))),
        None => Ok(()),
    }
}

/// Refuses totals the engines could not count exactly.
pub(crate) fn check_totals(totals: &TaskTotals) -> Result<(), QueueError> {
    let largest = totals.files_packed.max(totals.files_failed).max(totals.source_bytes).max(totals.stored_bytes);
    if largest > MAX_EXACT {
        return Err(QueueError::Invalid(format!("a total is {largest}; expected at most 2^53")));
    }
    Ok(())
}

/// Refuses more finished tasks than a step commits, and totals the engines could not count exactly.
pub(crate) fn check_finished(finished: &[FinishedTask]) -> Result<(), QueueError> {
    if finished.len() > MAX_FINISHED {
        return Err(QueueError::Invalid(format!(
            "{} tasks are to be committed in one step; expected at most {MAX_FINISHED}",
            finished.len()
        )));
    }
    finished.iter().try_for_each(|task| check_totals(&task.totals))
}

/// Refuses more waiting bytes than the engines can count.
pub(crate) fn too_many_waiting(waiting: u64) -> QueueError {
    QueueError::Invalid(format!("the tasks that wait would have {waiting} source bytes; expected at most 2^62"))
}

/// Refuses states [`super::Queue::settle`] cannot take a task to.
pub(crate) fn check_settled(state: TaskState) -> Result<(), QueueError> {
    match state {
        TaskState::Committed | TaskState::Dead => Ok(()),
        other => Err(QueueError::Invalid(format!("a task cannot be settled as {other:?}; expected Committed or Dead"))),
    }
}

/// Refuses names of locks that are empty or too long.
pub(crate) fn check_lock(name: &str, holder: &str) -> Result<(), QueueError> {
    for (what, text) in [("name of a lock", name), ("holder of a lock", holder)] {
        if text.is_empty() || text.len() > MAX_LOCK_NAME_BYTES {
            return Err(QueueError::Invalid(format!(
                "the {what} is {} bytes long; expected 1 to {MAX_LOCK_NAME_BYTES}",
                text.len()
            )));
        }
    }
    Ok(())
}

impl TaskTotals {
    /// Adds `more`, then takes `less` away. Saturates: a counter for people must not end a process.
    pub(crate) fn change(&mut self, more: &Self, less: &Self) {
        let change = |to: &mut u64, more: u64, less: u64| *to = to.saturating_add(more).saturating_sub(less);
        change(&mut self.files_packed, more.files_packed, less.files_packed);
        change(&mut self.files_failed, more.files_failed, less.files_failed);
        change(&mut self.source_bytes, more.source_bytes, less.source_bytes);
        change(&mut self.stored_bytes, more.stored_bytes, less.stored_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_never_splits_a_character() {
        assert_eq!(cut("aäb", 2), "a");
        assert_eq!(cut("aäb", 3), "aä");
        assert_eq!(cut("ab", 512), "ab");
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let config = QueueConfig { backoff_base: Duration::from_millis(100), ..QueueConfig::default() };
        let bounds: Vec<u64> = [0, 1, 2, 3, 10, 11, u32::MAX].iter().map(|&n| backoff_bound(&config, n)).collect();
        assert_eq!(bounds, [100, 100, 200, 400, 51_200, 60_000, 60_000]);
        assert_eq!(jitter(u64::from(u32::MAX), 0), 0);
        assert!((0..100).all(|roll| jitter(roll, 9) <= 9));
    }
}
