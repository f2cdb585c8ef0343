//! What really happened, as an observer sees it who sits inside the servers: every call that was carried out, in order.
//! Promises that can be checked while things happen are checked here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use des_shared::ids::{FencingToken, JobId, TaskId};
use des_shared::layout;
use des_shared::queue::{Held, Lease, NewTask, QueueError, Tick};

/// The most violations that are kept.
const MAX_VIOLATIONS: usize = 20;

/// Longer than anybody takes from a look at receipts to queueing what has none, ms.
const LONG_AGO_MS: u64 = 40_000;

/// The lease that counts for a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) token: FencingToken,
    pub(crate) renewed_ms: u64,
    /// Neither expired nor given back.
    pub(crate) held: bool,
    pub(crate) finished: bool,
}

/// A task that was handed to a worker.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) at_ms: u64,
    pub(crate) node: String,
    pub(crate) task: TaskId,
    /// The upload and the parts of the checkpoint that came with it.
    pub(crate) checkpoint: Option<(String, u32)>,
}

/// A part that was uploaded.
#[derive(Clone, Debug)]
pub(crate) struct PartWrite {
    pub(crate) at_ms: u64,
    pub(crate) node: String,
    pub(crate) key: String,
    pub(crate) upload_id: String,
    pub(crate) number: u32,
}

/// A beginning of a shard: a whole put, or an upload.
#[derive(Clone, Debug)]
pub(crate) struct ShardWrite {
    pub(crate) at_ms: u64,
    pub(crate) node: String,
    pub(crate) key: String,
}

#[derive(Default)]
pub(crate) struct Facts {
    hash: DefaultHasher,
    line: String,
    pub(crate) events: u64,
    pub(crate) log: Option<Vec<String>>,
    pub(crate) violations: Vec<String>,
    pub(crate) grants: BTreeMap<TaskId, Grant>,
    last_token: u64,
    pub(crate) claims: Vec<Claim>,
    pub(crate) shard_writes: Vec<ShardWrite>,
    pub(crate) parts: Vec<PartWrite>,
    /// When each record that is written once was written, by its key.
    pub(crate) written: BTreeMap<String, u64>,
    /// Jobs that are paused or cancelled in the queue as it is now.
    pub(crate) held_back: BTreeSet<JobId>,
    /// Somebody asked for shards to be deleted.
    pub(crate) may_delete: bool,
}

/// The observer. Everything runs on one thread; the lock is for the compiler.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Facts>);

impl Ledger {
    pub(crate) fn new(keep_log: bool) -> Self {
        Self(Mutex::new(Facts { log: keep_log.then(Vec::new), ..Facts::default() }))
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened. The text is part of the run's hash.
    pub(crate) fn event(&self, now_ms: u64, text: std::fmt::Arguments<'_>) {
        let mut facts = self.facts();
        let mut line = std::mem::take(&mut facts.line);
        line.clear();
        write!(line, "{now_ms} {text}").expect("writing to a string");
        facts.hash.write(line.as_bytes());
        facts.hash.write_u8(0xff);
        facts.events += 1;
        if let Some(log) = &mut facts.log {
            log.push(line.clone());
        }
        facts.line = line;
    }

    pub(crate) fn violation(&self, text: String) {
        let mut facts = self.facts();
        if let Some(log) = &mut facts.log {
            log.push(format!("VIOLATION {text}"));
        }
        if facts.violations.len() < MAX_VIOLATIONS {
            facts.violations.push(text);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.facts().hash.finish()
    }

    pub(crate) fn claimed(&self, now_ms: u64, node: &str, leases: &[Lease]) {
        for lease in leases {
            self.event(now_ms, format_args!("{node} holds {} {}", lease.task, lease.token));
            let mut facts = self.facts();
            let (last, held_back) = (facts.last_token, facts.held_back.contains(&lease.task.job));
            facts.last_token = lease.token.0.max(last);
            let grant = Grant { token: lease.token, renewed_ms: now_ms, held: true, finished: false };
            facts.grants.insert(lease.task, grant);
            let checkpoint = lease.checkpoint.as_ref().map(|had| (had.upload_id.clone(), had.parts));
            facts.claims.push(Claim { at_ms: now_ms, node: node.to_owned(), task: lease.task, checkpoint });
            drop(facts);
            if lease.token.0 <= last {
                self.violation(format!("task {}: token {} is not above {last}", lease.task, lease.token));
            }
            if held_back {
                self.violation(format!("task {} was handed out while its job was paused or cancelled", lease.task));
            }
        }
    }

    pub(crate) fn renewed(&self, now_ms: u64, task: TaskId, token: FencingToken, held: Held) {
        if matches!(held, Held::Yes | Held::HandBack) {
            self.check_token("heartbeat", task, token);
            if let Some(grant) = self.facts().grants.get_mut(&task) {
                grant.renewed_ms = now_ms;
            }
        }
    }

    /// A change of a task was accepted under a token.
    pub(crate) fn check_token(&self, what: &str, task: TaskId, token: FencingToken) {
        let current = self.facts().grants.get(&task).copied();
        match current {
            // A commit may be repeated, also when a receipt settled the task meanwhile: it changes nothing then.
            Some(grant)
                if grant.token == token
                    && ((grant.held && !grant.finished) || (grant.finished && what == "commit")) => {}
            other => {
                self.violation(format!("{what} of task {task} was accepted under {token}, the lease is {other:?}"));
            }
        }
    }

    pub(crate) fn finished(&self, task: TaskId) {
        if let Some(grant) = self.facts().grants.get_mut(&task) {
            grant.finished = true;
        }
    }

    pub(crate) fn given_back(&self, task: TaskId) {
        if let Some(grant) = self.facts().grants.get_mut(&task) {
            grant.held = false;
        }
    }

    /// Tasks were queued. Whoever does so has looked for their receipts not long ago.
    pub(crate) fn brought_in(&self, now_ms: u64, job: JobId, tasks: &[NewTask]) {
        for task in tasks {
            let key = layout::receipt(TaskId { job, number: task.number });
            let written = self.facts().written.get(&key).copied();
            if let Some(at_ms) = written.filter(|at_ms| at_ms + LONG_AGO_MS < now_ms) {
                self.violation(format!("task {job}/{} was queued again; its receipt is of {at_ms}", task.number));
            }
        }
    }

    pub(crate) fn ticked(&self, answer: &Result<Tick, QueueError>) {
        if let Ok(tick) = answer {
            let mut facts = self.facts();
            for task in tick.expired.iter().chain(&tick.died) {
                if let Some(grant) = facts.grants.get_mut(task) {
                    grant.held = false;
                }
            }
        }
    }

    /// The queue is again as it was when these grants were in it.
    pub(crate) fn went_back(&self, grants: BTreeMap<TaskId, Grant>, held_back: BTreeSet<JobId>) {
        let mut facts = self.facts();
        (facts.grants, facts.held_back) = (grants, held_back);
    }

    /// The queue forgot a job, or everything.
    pub(crate) fn forgotten(&self, job: Option<JobId>) {
        let mut facts = self.facts();
        facts.grants.retain(|task, _| job.is_some_and(|job| task.job != job));
        facts.held_back.retain(|held| job.is_some_and(|job| *held != job));
    }
}
