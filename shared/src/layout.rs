//! Every object key is built and parsed here.
//!
//! Product keys live in the zone's store: shards, and big files beside them. State keys live in the state store:
//!
//! ```text
//! jobs/{job}/job.json                       the accepted job (immutable)
//! jobs/{job}/manifest                       the manifest as it came
//! jobs/{job}/segments/{task:08}.bin         one plan segment: the compact form in zstd
//! jobs/{job}/plan.json                      written last: the plan is complete
//! jobs/{job}/checkpoints/{task:08}/{token}-{part:05}.bin   index rows of an uploaded part
//! jobs/{job}/receipts/{task:08}.json        written once: the task is finished (published or dead)
//! jobs/{job}/failures/{task:08}-{token}.ndjson   files of a finished task that are in no shard
//! jobs/{job}/control.json                   what people decided since: paused, another share (changes)
//! jobs/{job}/cancelled.json                 written once: the job was cancelled, which nothing takes back
//! jobs/{job}/keys/{sha256}                  a key in keys/ that leads to this job, so that it goes with the job
//! jobs/{job}/end.json                       written once: the job is finished
//! keys/{sha256}.json                        one submission: Idempotency-Key or manifest digest to job (immutable)
//! open/{job}                                the job may be open: written before anything else of it, removed after its end
//! dead/{job}-{task:08}.json                 a task that was given up, with its history; until it is dropped
//! newest/{inverted id}-{job}                one for each job, so that a listing in key order goes from new to old
//! ```

use crate::ids::{FencingToken, JobId, TaskId};
use crate::routing::Slot;
use crate::segment::{Segment, SegmentDigest};

/// Ending of every shard object.
pub const SHARD_SUFFIX: &str = ".des";

/// Key of a published shard: `{YYYYMMDD}_{HEX}_{NNNN}-{digest}.des` (a zone's store adds its own prefix).
pub fn shard_key(segment: &Segment) -> String {
    shard_key_with(segment, segment.digest())
}

/// [`shard_key`] of a segment whose digest is known: it takes as long to make as the list of files is.
pub fn shard_key_with(segment: &Segment, digest: SegmentDigest) -> String {
    format!("{}{:04}-{}{SHARD_SUFFIX}", segment.slot.object_prefix(), segment.number, digest.short())
}

/// Name of a locally packed shard as the existing readers know it: `{YYYYMMDD}_{HEX}_{NNNN}.des`.
pub fn bare_shard_key(slot: &Slot, number: u32) -> String {
    format!("{}{number:04}{SHARD_SUFFIX}", slot.object_prefix())
}

/// Key of a big file: `{bigfiles_prefix}/{sha256 in lower-case hex}`.
pub fn bigfile_key(bigfiles_prefix: &str, sha256: &[u8; 32]) -> String {
    use std::fmt::Write;
    let mut key = String::with_capacity(bigfiles_prefix.len() + 65);
    key.push_str(bigfiles_prefix.trim_end_matches('/'));
    key.push('/');
    for byte in sha256 {
        write!(key, "{byte:02x}").expect("writing to a string");
    }
    key
}

/// What a shard's object name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardName {
    /// The part before the number: `{date}_{HEX}`.
    pub slot: String,
    /// NNNN.
    pub number: u32,
    /// The plan digest, where the name has one.
    pub digest: Option<String>,
}

/// Reads the last component of a shard key. `None` for any other kind of object.
pub fn parse_shard_name(key: &str) -> Option<ShardName> {
    let name = key.rsplit('/').next()?.strip_suffix(SHARD_SUFFIX)?;
    let (slot, tail) = name.rsplit_once('_')?;
    let (date, hex) = slot.split_once('_')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (number, digest) = match tail.split_once('-') {
        Some((number, digest)) => (number, Some(digest.to_owned())),
        None => (tail, None),
    };
    let hex_ok = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    if !digits(date) || !hex_ok || !digits(number) {
        return None;
    }
    Some(ShardName { slot: slot.to_owned(), number: number.parse().ok()?, digest })
}

/// Prefix of the keys under which services try out what a store honours.
pub const SCRATCH_PREFIX: &str = "scratch/";

/// Key of one such trial under `prefix`.
pub fn probe_key(prefix: &str, id: u128) -> String {
    format!("{prefix}probe-{id:032x}")
}

/// Whether this is a key of a trial by a service: one that died in the middle leaves it behind.
pub fn is_scratch_key(key: &str) -> bool {
    let id = key.strip_prefix(SCRATCH_PREFIX).and_then(|name| name.strip_prefix("probe-"));
    id.is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

/// Prefix of all jobs in the state store.
pub const JOBS_PREFIX: &str = "jobs/";

/// The accepted job.
pub fn job_record(job: JobId) -> String {
    format!("jobs/{job}/job.json")
}

/// The job a state key belongs to.
pub fn job_of_key(key: &str) -> Option<JobId> {
    key.strip_prefix(JOBS_PREFIX)?.split('/').next()?.parse().ok()
}

/// Everything of one job.
pub fn job_prefix(job: JobId) -> String {
    format!("jobs/{job}/")
}

/// The manifest as it was submitted.
pub fn manifest(job: JobId) -> String {
    format!("jobs/{job}/manifest")
}

/// One plan segment.
pub fn segment(task: TaskId) -> String {
    format!("jobs/{}/segments/{:08}.bin", task.job, task.number)
}

/// The marker that a plan is complete.
pub fn plan(job: JobId) -> String {
    format!("jobs/{job}/plan.json")
}

/// Checkpoints of all tasks of a job.
pub fn checkpoints_prefix(job: JobId) -> String {
    format!("jobs/{job}/checkpoints/")
}

/// The task whose checkpoint this is.
pub fn task_of_checkpoint(key: &str) -> Option<TaskId> {
    let job = job_of_key(key)?;
    let (number, _) = key.strip_prefix(&checkpoints_prefix(job))?.split_once('/')?;
    Some(TaskId { job, number: number.parse().ok()? })
}

/// Checkpoints of a task, every holder's.
pub fn checkpoint_prefix(task: TaskId) -> String {
    format!("{}{:08}/", checkpoints_prefix(task.job), task.number)
}

/// Index rows and failures of one uploaded part.
pub fn checkpoint_part(task: TaskId, token: FencingToken, part: u32) -> String {
    format!("{}{token}-{part:05}.bin", checkpoint_prefix(task))
}

/// The holder and the part that a mark's key names.
pub fn part_of_checkpoint(key: &str) -> Option<(FencingToken, u32)> {
    let (token, part) = key.rsplit('/').next()?.strip_suffix(".bin")?.split_once('-')?;
    Some((FencingToken(token.parse().ok()?), part.parse().ok()?))
}

/// The proof that a task is finished.
pub fn receipt(task: TaskId) -> String {
    format!("{}{:08}.json", receipt_prefix(task.job), task.number)
}

/// All receipts of a job.
pub fn receipt_prefix(job: JobId) -> String {
    format!("jobs/{job}/receipts/")
}

/// The task a receipt key belongs to.
pub fn task_of_receipt(key: &str) -> Option<TaskId> {
    let (rest, name) = key.rsplit_once('/')?;
    let job = job_of_key(key)?;
    if format!("{rest}/") != receipt_prefix(job) {
        return None;
    }
    Some(TaskId { job, number: name.strip_suffix(".json")?.parse().ok()? })
}

/// Files of a task that are in no shard, as one holder saw it; the receipt names the holder that counts.
pub fn failures(task: TaskId, token: FencingToken) -> String {
    format!("{}{:08}-{token}.ndjson", failure_prefix(task.job), task.number)
}

/// All failure lists of a job.
pub fn failure_prefix(job: JobId) -> String {
    format!("jobs/{job}/failures/")
}

/// The marker that a job is finished.
pub fn end(job: JobId) -> String {
    format!("jobs/{job}/end.json")
}

/// What people decided about the job since it was accepted.
pub fn control(job: JobId) -> String {
    format!("jobs/{job}/control.json")
}

/// The marker that a job was cancelled. A record of its own that is created once: a decision that was long on its way
/// can replace another one, but never a cancellation.
pub fn cancellation(job: JobId) -> String {
    format!("jobs/{job}/cancelled.json")
}

/// The note that a key made with [`submission_key`] leads to this job.
pub fn bound_key(job: JobId, key: &str) -> Option<String> {
    let name = key.strip_prefix("keys/")?.strip_suffix(".json")?;
    Some(format!("jobs/{job}/keys/{name}"))
}

/// The key that such a note is about.
pub fn key_of_bound_key(note: &str) -> Option<String> {
    let (rest, name) = note.rsplit_once('/')?;
    (rest == format!("jobs/{}/keys", job_of_key(note)?)).then(|| submission_key(name))
}

/// Prefix of the dead list.
pub const DEAD_PREFIX: &str = "dead/";

/// A task of the dead list.
pub fn dead_entry(task: TaskId) -> String {
    format!("{}{:08}.json", dead_prefix(task.job), task.number)
}

/// The dead tasks of one job.
pub fn dead_prefix(job: JobId) -> String {
    format!("{DEAD_PREFIX}{job}-")
}

/// The task an entry of the dead list is about.
pub fn task_of_dead_entry(key: &str) -> Option<TaskId> {
    let (job, number) = key.strip_prefix(DEAD_PREFIX)?.strip_suffix(".json")?.rsplit_once('-')?;
    Some(TaskId { job: job.parse().ok()?, number: number.parse().ok()? })
}

/// The reservation that makes equal submissions one job.
pub fn submission_key(sha256_hex: &str) -> String {
    format!("keys/{sha256_hex}.json")
}

/// Prefix of the markers of jobs that may be open.
pub const OPEN_PREFIX: &str = "open/";

/// The marker of a job that may be open: there as long as the job has no end, so that nobody has to walk through all
/// jobs ever to find these.
pub fn open_marker(job: JobId) -> String {
    format!("{OPEN_PREFIX}{job}")
}

/// The job of an open marker.
pub fn job_of_open_marker(key: &str) -> Option<JobId> {
    key.strip_prefix(OPEN_PREFIX)?.parse().ok()
}

/// Prefix of the listing of jobs from new to old.
pub const NEWEST_PREFIX: &str = "newest/";

/// A job's place in the listing from new to old: stores list in ascending order, so its id is inverted.
pub fn newest_marker(job: JobId) -> String {
    format!("{NEWEST_PREFIX}{:032x}-{job}", !job.number())
}

/// The job of a place in the listing from new to old.
pub fn job_of_newest_marker(key: &str) -> Option<JobId> {
    let (inverted, job) = key.strip_prefix(NEWEST_PREFIX)?.split_once('-')?;
    let job: JobId = job.parse().ok()?;
    (inverted == format!("{:032x}", !job.number())).then_some(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_can_be_read() {
        let job = JobId::from_parts(1_700_000_000_000, [7; 10]);
        let task = TaskId { job, number: 123_456_789 };
        assert_eq!(task_of_dead_entry(&dead_entry(task)), Some(task));
        assert!(dead_entry(task).starts_with(&dead_prefix(job)));
        let key = submission_key("00ff");
        let note = bound_key(job, &key).expect("a key");
        assert!(note.starts_with(&job_prefix(job)));
        assert_eq!(key_of_bound_key(&note), Some(key));
        for other in ["", "dead/x.json", "jobs/x/keys/00", &end(job), &job_record(job)] {
            assert_eq!((task_of_dead_entry(other), key_of_bound_key(other)), (None, None), "{other}");
        }
        assert_eq!(bound_key(job, "jobs/x"), None);
        let mark = checkpoint_part(task, FencingToken(5), 1);
        assert_eq!((task_of_checkpoint(&mark), part_of_checkpoint(&mark)), (Some(task), Some((FencingToken(5), 1))));
        assert_eq!(task_of_checkpoint(&receipt(task)), None);
        assert!(is_scratch_key(&probe_key(SCRATCH_PREFIX, 7)));
        for other in ["scratch/", "scratch/probe-", "scratch/notes.txt", &probe_key("elsewhere/", 7)] {
            assert!(!is_scratch_key(other), "{other}");
        }
    }
}
