//! What the scripts take and answer. Everything read here may have been written by anybody: whatever does not parse is
//! [`QueueError::Invalid`].

use std::fmt::Display;
use std::str::FromStr;

use redis::{FromRedisValue, Value, from_redis_value};

use crate::ids::{FencingToken, JobId, TaskId};
use crate::queue::{
    Attempt, Checkpoint, FinishedTask, Held, JobCounters, Lease, MAX_HISTORY, QueueError, QueueStats, TaskState,
    TaskTotals, TaskView, WorkerTask, WorkerView,
};

/// What a script answered.
pub(super) enum Reply {
    /// It did what it was asked to; the rest of its answer.
    Done(Vec<Value>),
    /// The job is not known.
    Unknown,
    /// The token is not that of the present lease.
    Stale,
    /// The job was cancelled.
    Cancelled,
}

/// Reads the answer of any script.
pub(super) fn reply(values: Vec<Value>) -> Result<Reply, QueueError> {
    let mut values = values.into_iter();
    let kind: String = part(values.next(), "kind of answer")?;
    match kind.as_str() {
        "ok" => Ok(Reply::Done(values.collect())),
        "unknown" => Ok(Reply::Unknown),
        "stale" => Ok(Reply::Stale),
        "cancelled" => Ok(Reply::Cancelled),
        "invalid" => Err(QueueError::Invalid(part(values.next(), "reason")?)),
        other => Err(invalid("kind of answer", other)),
    }
}

/// The only part of an answer.
pub(super) fn single<T: FromRedisValue>(values: Vec<Value>, what: &str) -> Result<T, QueueError> {
    part(values.into_iter().next(), what)
}

/// One part of an answer.
pub(super) fn part<T: FromRedisValue>(value: Option<Value>, what: &str) -> Result<T, QueueError> {
    let value = value.ok_or_else(|| invalid(what, "nothing"))?;
    from_redis_value(value).map_err(|error| invalid(what, error))
}

/// Reads a number or an id.
pub(super) fn parse<T: FromStr>(text: &str, what: &str) -> Result<T, QueueError> {
    text.parse().map_err(|_| invalid(what, text))
}

fn invalid(what: &str, got: impl Display) -> QueueError {
    let got: String = got.to_string().chars().take(100).collect();
    QueueError::Invalid(format!("Redis holds a {what} this version cannot read: {got:?}"))
}

/// Task numbers have one width, so that text sorts as numbers do.
pub(super) fn number(number: u32) -> String {
    format!("{number:010}")
}

/// Job and number of a task, as the scripts take them.
pub(super) fn task_args(task: TaskId) -> [String; 2] {
    [task.job.to_string(), number(task.number)]
}

/// Totals as the scripts take them.
pub(super) fn totals(totals: &TaskTotals, separator: char) -> String {
    let TaskTotals { files_packed, files_failed, source_bytes, stored_bytes } = totals;
    format!("{files_packed}{separator}{files_failed}{separator}{source_bytes}{separator}{stored_bytes}")
}

/// Task ids of a tick.
pub(super) fn task_ids(texts: &[String]) -> Result<Vec<TaskId>, QueueError> {
    texts.iter().map(|text| parse(text, "task id")).collect()
}

/// Task id, token, attempts and checkpoint of a lease.
pub(super) type LeaseParts = (String, String, String, Option<String>);

/// One lease of a claim.
pub(super) fn lease((id, token, attempt, checkpoint): LeaseParts) -> Result<Lease, QueueError> {
    let task = parse(&id, "task id")?;
    // The lease is taken already. A task without its checkpoint starts again, which is right if slow; an error would keep
    // every claim from ever handing it out.
    let checkpoint = checkpoint.and_then(|text| read_checkpoint(&text, &task));
    let token = FencingToken(parse(&token, "token")?);
    Ok(Lease { task, token, attempt: parse(&attempt, "number of attempts")?, checkpoint })
}

/// Place among the finished tasks as they were named, from 1, kind and reason of a refusal.
pub(super) type RefusalParts = (usize, String, String);

/// Which of the finished tasks was not committed, and why. `places` is the order in which they were named.
pub(super) fn refusal(
    (place, kind, reason): RefusalParts,
    places: &[usize],
    finished: &[FinishedTask],
) -> Result<(usize, QueueError), QueueError> {
    let Some(&place) = place.checked_sub(1).and_then(|place| places.get(place)) else {
        return Err(invalid("place of a refused task", place));
    };
    let FinishedTask { task, token, .. } = finished[place];
    let refusal = match kind.as_str() {
        "unknown" => QueueError::UnknownJob(task.job),
        "stale" => QueueError::Stale { task, token },
        "cancelled" => QueueError::Cancelled { task },
        "invalid" => QueueError::Invalid(reason),
        other => return Err(invalid("refusal", other)),
    };
    Ok((place, refusal))
}

/// The checkpoint in its text; none when it cannot be read.
fn read_checkpoint(text: &str, task: &impl Display) -> Option<Checkpoint> {
    let json = text.splitn(5, ' ').nth(4).unwrap_or_default();
    serde_json::from_str(json).inspect_err(|error| tracing::warn!(%task, %error, "unreadable checkpoint ignored")).ok()
}

/// What became of a lease.
pub(super) fn held(answer: u8) -> Result<Held, QueueError> {
    match answer {
        0 => Ok(Held::Lost),
        1 => Ok(Held::Yes),
        2 => Ok(Held::HandBack),
        3 => Ok(Held::Cancelled),
        other => Err(invalid("state of a lease", other)),
    }
}

/// The counters of a job.
pub(super) fn counters(values: &[String]) -> Result<JobCounters, QueueError> {
    let numbers: Vec<u64> = values.iter().map(|text| parse(text, "job counter")).collect::<Result<_, _>>()?;
    let [pending, leased, delayed, committed, dead, cancelled, t1, t2, t3, t4, p1, p2, p3, p4] = numbers[..] else {
        return Err(invalid("set of job counters", numbers.len()));
    };
    let sums = |files_packed, files_failed, source_bytes, stored_bytes| TaskTotals {
        files_packed,
        files_failed,
        source_bytes,
        stored_bytes,
    };
    let (totals, in_progress) = (sums(t1, t2, t3, t4), sums(p1, p2, p3, p4));
    Ok(JobCounters { pending, leased, delayed, committed, dead, cancelled, totals, in_progress })
}

/// Number, value, message, history and checkpoint of a task.
pub(super) type TaskParts = (String, Option<String>, Option<String>, Option<String>, Option<String>);

/// One task of a job.
pub(super) fn task_view((number, value, message, history, checkpoint): TaskParts) -> Result<TaskView, QueueError> {
    let value = value.unwrap_or_default();
    let parts: Vec<&str> = value.splitn(5, ':').collect();
    let [state, bytes, token, attempts, tail] = parts[..] else { return Err(invalid("task", &value)) };
    let _bytes: u64 = parse(bytes, "task size")?;
    if !tail.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == ',') {
        return Err(invalid("task", &value));
    }
    let state = match state {
        "P" => TaskState::Pending,
        "L" => TaskState::Leased,
        "D" => TaskState::Delayed,
        "C" => TaskState::Committed,
        "X" => TaskState::Dead,
        "N" => TaskState::Cancelled,
        _ => return Err(invalid("task state", state)),
    };
    let worker = if state == TaskState::Leased { Some(parse(tail, "worker id")?) } else { None };
    Ok(TaskView {
        state,
        attempts: parse(attempts, "number of attempts")?,
        worker,
        token: FencingToken(parse(token, "token")?),
        message,
        history: attempts_of(&history.unwrap_or_default())?,
        checkpoint: checkpoint.and_then(|text| read_checkpoint(&text, &number)),
        number: parse(&number, "task number")?,
    })
}

/// The failed attempts of a task, a line each.
fn attempts_of(lines: &str) -> Result<Vec<Attempt>, QueueError> {
    let newest = lines.lines().count().saturating_sub(MAX_HISTORY);
    let attempt = |line: &str| {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        let [at_ms, token, worker, message] = parts[..] else { return Err(invalid("attempt", line)) };
        Ok(Attempt {
            at_ms: parse(at_ms, "time")?,
            worker: Some(parse(worker, "worker id")?),
            token: FencingToken(parse(token, "token")?),
            message: message.to_owned(),
        })
    };
    lines.lines().skip(newest).map(attempt).collect()
}

/// The jobs of the queue.
pub(super) fn job_ids(texts: &[String]) -> Result<Vec<JobId>, QueueError> {
    texts.iter().map(|text| parse(text, "job id")).collect()
}

/// Depth, age and holders.
pub(super) fn stats(values: &[String]) -> Result<QueueStats, QueueError> {
    let numbers: Vec<u64> = values.iter().map(|text| parse(text, "count")).collect::<Result<_, _>>()?;
    let [pending, delayed, leased, dead, oldest_pending_age_ms, jobs, paused, waiting_bytes] = numbers[..] else {
        return Err(invalid("set of counts", numbers.len()));
    };
    Ok(QueueStats { pending, delayed, leased, dead, oldest_pending_age_ms, jobs, paused, waiting_bytes })
}

/// Id, idle time, slots with name, leases and running tasks of a worker.
pub(super) type WorkerParts = (String, String, Option<String>, String, Vec<String>);

/// A worker.
pub(super) fn worker((id, idle_ms, info, leases, tasks): WorkerParts) -> Result<WorkerView, QueueError> {
    let info = info.unwrap_or_default();
    let (slots, name) = info.split_once(' ').ok_or_else(|| invalid("worker", &info))?;
    Ok(WorkerView {
        id: parse(&id, "worker id")?,
        name: name.to_owned(),
        slots: parse(slots, "number of slots")?,
        leases: parse(&leases, "number of leases")?,
        idle_ms: parse(&idle_ms, "time")?,
        tasks: tasks.chunks(3).map(running).collect::<Result<_, _>>()?,
    })
}

fn running(parts: &[String]) -> Result<WorkerTask, QueueError> {
    let [task, done_bytes, source_bytes] = parts else { return Err(invalid("running task", parts.len())) };
    Ok(WorkerTask {
        task: parse(task, "task id")?,
        done_bytes: parse(done_bytes, "number of bytes")?,
        source_bytes: parse(source_bytes, "task size")?,
    })
}
