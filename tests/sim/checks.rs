//! What must hold when everything has come to its end, read from the stores alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use des_shared::control::Hold;
use des_shared::ids::{JobId, TaskId};
use des_shared::job::JobState;
use des_shared::layout;
use des_shared::queue::{Queue, TaskState};
use des_shared::receipt::{FailedFile, FailureReason, PublishedShard, Receipt};
use des_shared::segment::Segment;
use des_shared::shard::{Location, Shard};
use futures::TryStreamExt;

use crate::client::Submission;
use crate::story::known_jobs;
use crate::world::{File, World};

/// What there was, for people.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) jobs: usize,
    pub(crate) files: u64,
    pub(crate) failed: u64,
    pub(crate) shards: usize,
    /// Parts uploaded behind a checkpoint of somebody else.
    pub(crate) resumed: usize,
}

struct Checker<'a> {
    world: &'a World,
    objects: BTreeMap<String, Bytes>,
    files: BTreeMap<&'a str, &'a File>,
    /// Tasks by the key of their shard.
    tasks: BTreeMap<String, Vec<TaskId>>,
    /// What each receipt says of a key.
    shards: BTreeMap<String, PublishedShard>,
    sums: Sums,
}

/// Checks everything; what is wrong goes to the ledger.
pub(crate) async fn check(world: &World, submissions: &[Arc<Submission>], all_ended: bool) -> Sums {
    let mut checker = Checker {
        world,
        objects: world.zone.objects(),
        files: world.files.iter().map(|file| (file.uid.as_str(), file)).collect(),
        tasks: BTreeMap::new(),
        shards: BTreeMap::new(),
        sums: Sums::default(),
    };
    let jobs = known_jobs(world);
    checker.sums.jobs = jobs.len();
    checker.submissions(submissions, &jobs);
    for job in jobs.into_iter().filter(|(_, ended)| *ended).map(|(job, _)| job) {
        let told = submissions.iter().find(|submission| submission.told().contains(&job));
        if let Err(why) = checker.job(job, told).await {
            checker.wrong(format!("job {job}: {why}"));
        }
    }
    checker.takeovers();
    if all_ended {
        checker.nothing_is_left().await;
        checker.nothing_ran_again();
    }
    checker.sums.shards = checker.shards.len();
    checker.sums
}

impl Checker<'_> {
    fn wrong(&self, text: String) {
        self.world.net.ledger.violation(text);
    }

    /// The same submission is one job as long as that is open, and for ever under an Idempotency-Key.
    fn submissions(&self, submissions: &[Arc<Submission>], jobs: &BTreeMap<JobId, bool>) {
        let written = self.world.net.ledger.facts().written.clone();
        for submission in submissions {
            let told: BTreeSet<JobId> = submission.told().into_iter().collect();
            if told.is_empty() {
                self.wrong("a submission has no job".to_owned());
            }
            if let Some(lost) = told.iter().find(|job| !jobs.contains_key(job)) {
                self.wrong(format!("job {lost} was accepted and is not there"));
            }
            if submission.has_key() && told.len() > 1 {
                self.wrong(format!("one Idempotency-Key is several jobs: {told:?}"));
            }
            let told: Vec<JobId> = told.into_iter().collect();
            for (at, a) in told.iter().enumerate() {
                for b in &told[at + 1..] {
                    let begun = |job: &JobId| written.get(&layout::job_record(*job)).copied().unwrap_or(0);
                    let ended = |job: &JobId| written.get(&layout::end(*job)).copied().unwrap_or(u64::MAX);
                    if begun(a) < ended(b) && begun(b) < ended(a) {
                        self.wrong(format!("one submission is two open jobs: {a} and {b}"));
                    }
                }
            }
        }
    }

    async fn job(&mut self, job: JobId, told: Option<&Arc<Submission>>) -> Result<(), String> {
        let state = self.world.true_state();
        let text = |e: des_shared::state::StateError| e.to_string();
        let record = state.job(job).await.map_err(text)?.ok_or("it has no record")?;
        let plan = state.plan(job).await.map_err(text)?.ok_or("it ended without a plan")?;
        let end = state.end(job).await.map_err(text)?.ok_or("it has no end")?;
        let control = state.control(job).await.map_err(text)?;
        let (cancelled, dropped) = (control.hold == Hold::Cancelled, control.drop_shards);
        let receipts: Vec<Receipt> = state.receipts(job).try_collect().await.map_err(text)?;
        let lists: Vec<Bytes> = state.failures(job).try_collect().await.map_err(text)?;
        let failures: Vec<FailedFile> = lists
            .iter()
            .flat_map(|list| list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()))
            .map(|line| serde_json::from_slice(line).map_err(|e| e.to_string()))
            .collect::<Result<_, _>>()?;
        if receipts.len() != plan.tasks.len() {
            return Err(format!("{} tasks and {} receipts", plan.tasks.len(), receipts.len()));
        }
        let mut places: BTreeMap<String, u32> = BTreeMap::new();
        let (mut packed, mut failed) = (0, 0);
        for receipt in &receipts {
            let segment = state.segment(receipt.task).await.map_err(text)?;
            for file in segment.files.iter() {
                places.entry(file.uid.to_string()).or_default();
            }
            self.tasks.entry(layout::shard_key(&segment)).or_default().push(receipt.task);
            (packed, failed) = (packed + receipt.totals.files_packed, failed + receipt.totals.files_failed);
            let uids = if dropped && receipt.shard.is_some() {
                // Deleted, as was asked for, and perhaps made again by another job since: its files are those that did
                // not fail.
                let planned = segment.files.iter().map(|file| file.uid.to_string());
                planned.filter(|uid| !failures.iter().any(|failure| failure.uid.as_str() == uid)).collect()
            } else {
                self.shard(receipt, &segment)?
            };
            for uid in uids {
                *places.entry(uid).or_default() += 1;
            }
        }
        for failure in &failures {
            *places.entry(failure.uid.to_string()).or_default() += 1;
            self.failure(failure, cancelled)?;
        }
        if let Some((uid, count)) = places.iter().find(|(_, count)| **count != 1) {
            return Err(format!("the file {uid} is in {count} places"));
        }
        if let Some(submission) = told {
            let sent: BTreeSet<&str> = submission.files.iter().map(|file| file.uid.as_str()).collect();
            let found: BTreeSet<&str> = places.keys().map(String::as_str).collect();
            if sent != found {
                return Err("its files are not those that were submitted".to_owned());
            }
        }
        let sums = (end.files_packed, end.files_failed);
        if sums != (packed, failed) || packed + failed != plan.files || places.len() as u64 != plan.files {
            return Err(format!(
                "{} accepted, {} in places; its end says {sums:?}, its receipts {packed} packed and {failed} failed",
                plan.files,
                places.len()
            ));
        }
        let by_itself = if failed == 0 { JobState::Completed } else { JobState::CompletedWithErrors };
        // A cancellation can come in the moment of the end, and is too late then.
        let called_off = cancelled && end.state == JobState::Cancelled;
        if end.state != by_itself && !called_off {
            return Err(format!("it ended as {:?} with {failed} failed files", end.state));
        }
        if record.id != job {
            return Err(format!("its record is that of {}", record.id));
        }
        self.sums.files += plan.files;
        self.sums.failed += failed;
        Ok(())
    }

    /// The uids in a receipt's shard, each with bytes that its source had.
    fn shard(&mut self, receipt: &Receipt, segment: &Segment) -> Result<Vec<String>, String> {
        let Some(published) = &receipt.shard else {
            return if receipt.totals.files_packed == 0 { Ok(Vec::new()) } else { Err("packed into no shard".into()) };
        };
        let key = &published.key;
        if *key != layout::shard_key(segment) || receipt.state != TaskState::Committed {
            return Err(format!("the receipt of {} names {key}", receipt.task));
        }
        let bytes = self.objects.get(key).ok_or_else(|| format!("{key} is not there"))?;
        if bytes.len() as u64 != published.size {
            return Err(format!("{key} has {} bytes, its receipt says {}", bytes.len(), published.size));
        }
        let before = self.shards.insert(key.clone(), published.clone());
        if before.is_some_and(|before| before != *published) {
            return Err(format!("two receipts say different things of {key}"));
        }
        let shard = Shard::open(bytes.clone()).map_err(|e| format!("{key}: {e}"))?;
        shard.verify().map_err(|e| format!("{key}: {e}"))?;
        let mut uids = Vec::new();
        for entry in shard.entries() {
            let entry = entry.map_err(|e| format!("{key}: {e}"))?;
            if !segment.files.iter().any(|file| file.uid.cmp_str(&entry.uid).is_eq()) {
                return Err(format!("{key} has {}, which is not planned there", entry.uid));
            }
            let content = match entry.location {
                Location::Inline(_) => shard.read(&entry).map_err(|e| format!("{key}: {e}"))?,
                Location::BigFile { sha256, .. } => {
                    let big = layout::bigfile_key(&segment.options.bigfiles_prefix, &sha256);
                    self.objects.get(&big).cloned().ok_or_else(|| format!("{big} is not there"))?
                }
            };
            let file = self.files.get(entry.uid.as_str()).ok_or_else(|| format!("{key}: who is {}", entry.uid))?;
            let ever = self.world.versions(&file.key);
            if content.len() as u64 != file.size || !ever.iter().flatten().any(|version| *version == content) {
                return Err(format!("{key}: {} has bytes that its source never had", entry.uid));
            }
            uids.push(entry.uid.clone());
        }
        if uids.len() as u64 != receipt.totals.files_packed {
            return Err(format!("{key} has {} files, its receipt says {}", uids.len(), receipt.totals.files_packed));
        }
        Ok(uids)
    }

    /// A file whose source was always there fails only with its task.
    fn failure(&self, failure: &FailedFile, cancelled: bool) -> Result<(), String> {
        let file = self.files.get(failure.uid.as_str()).ok_or_else(|| format!("who is {}", failure.uid))?;
        let alone = match failure.reason {
            FailureReason::TaskDead => true,
            FailureReason::Cancelled => cancelled,
            _ => false,
        };
        if self.world.versions(&file.key).len() == 1 && !alone {
            return Err(format!("{} failed as {:?}: {}", failure.uid, failure.reason, failure.message));
        }
        Ok(())
    }

    /// Ended jobs leave nothing in the queue and no open marker.
    async fn nothing_is_left(&self) {
        let jobs = Queue::jobs(&*self.world.queue).await.expect("a queue in memory");
        if !jobs.is_empty() {
            self.wrong(format!("the queue still knows {jobs:?}"));
        }
        let objects = self.world.state.objects();
        let ended = known_jobs(self.world);
        let left = objects.keys().filter_map(|key| layout::job_of_open_marker(key)).find(|job| ended.contains_key(job));
        if let Some(job) = left {
            self.wrong(format!("job {job} has ended and its open marker stays"));
        }
    }

    /// Whoever takes a task over with a checkpoint uploads none of its parts again.
    fn takeovers(&mut self) {
        let facts = self.world.net.ledger.facts();
        let (mut found, mut resumed) = (Vec::new(), 0);
        for part in &facts.parts {
            let tasks = self.tasks.get(&part.key).map_or(&[][..], Vec::as_slice);
            let mut claims = facts.claims.iter().filter(|claim| claim.node == part.node && tasks.contains(&claim.task));
            // Of a process that had the task twice, nobody can say which of the two it was.
            let (Some(claim), None) = (claims.next(), claims.next()) else { continue };
            match &claim.checkpoint {
                Some((id, parts)) if *id == part.upload_id && part.number <= *parts => {
                    let text = format!("{} uploaded part {} of {} again", part.node, part.number, part.key);
                    found.push(format!("{text} at {}, {parts} were checkpointed", part.at_ms));
                }
                Some((id, _)) if *id == part.upload_id => resumed += 1,
                _ => {}
            }
        }
        drop(facts);
        self.sums.resumed = resumed;
        for text in found {
            self.wrong(text);
        }
    }

    /// Whoever began to write a shard held its task since before there was a receipt.
    fn nothing_ran_again(&self) {
        let facts = self.world.net.ledger.facts();
        let mut found = Vec::new();
        for write in &facts.shard_writes {
            let tasks = self.tasks.get(&write.key).map_or(&[][..], Vec::as_slice);
            let may = facts.claims.iter().any(|claim| {
                let receipt = facts.written.get(&layout::receipt(claim.task)).copied().unwrap_or(u64::MAX);
                claim.node == write.node
                    && claim.at_ms <= write.at_ms
                    && claim.at_ms <= receipt
                    && tasks.contains(&claim.task)
            });
            if !may {
                found.push(format!("{} began {} at {} though it was finished", write.node, write.key, write.at_ms));
            }
        }
        drop(facts);
        for text in found {
            self.wrong(text);
        }
    }
}
