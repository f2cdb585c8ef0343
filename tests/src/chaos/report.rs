//! What a run did and found, for people.

use std::fmt;
use std::time::Duration;

use super::check::Checked;
use super::watch::Wait;

/// How often each fault happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Workers killed with SIGKILL.
    pub workers_killed: u32,
    /// Coordinators killed with SIGKILL.
    pub coordinators_killed: u32,
    /// Redis killed with SIGKILL, started again with its data.
    pub redis_killed: u32,
    /// Redis killed with SIGKILL, started again without data.
    pub redis_lost: u32,
    /// FLUSHALL.
    pub flushed: u32,
    /// Workers and coordinators frozen with SIGSTOP and woken later.
    pub frozen: u32,
    /// Workers asked to stop with SIGTERM.
    pub stopped: u32,
    /// Connections to Redis or S3 cut, delayed, swallowed, refused, or their answers lost.
    pub networks: u32,
    /// Jobs submitted, each by two clients at once.
    pub submitted: u32,
}

impl Counts {
    /// Processes killed with SIGKILL.
    pub fn kills(&self) -> u32 {
        self.workers_killed + self.coordinators_killed + self.redis_killed + self.redis_lost
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The faults.
    pub counts: Counts,
    /// What was found in the stores.
    pub checked: Checked,
    /// How long tasks of killed and stopped workers waited.
    pub waits: Vec<Wait>,
    /// Files read back over HTTP with the right bytes.
    pub right: usize,
    /// Everything that is wrong, one line each.
    pub wrong: Vec<String>,
    /// How long there were faults.
    pub chaos: Duration,
    /// How long the jobs took to end after the last fault.
    pub calm: Duration,
}

impl Report {
    /// The wait below which so many of a hundred undisturbed waits lie.
    pub fn wait(&self, percent: usize, term: bool) -> Option<Duration> {
        self.percentile(percent, term, |wait| wait.waited)
    }

    /// The same for the time until the old holder held the task no more.
    pub fn held(&self, percent: usize, term: bool) -> Option<Duration> {
        self.percentile(percent, term, |wait| wait.held)
    }

    fn percentile(&self, percent: usize, term: bool, time: impl Fn(&Wait) -> Duration) -> Option<Duration> {
        let waits = self.waits.iter().filter(|wait| wait.term == term && !wait.disturbed);
        let mut waits: Vec<Duration> = waits.map(time).collect();
        waits.sort_unstable();
        let last = waits.len().checked_sub(1)?;
        waits.get((waits.len() * percent).div_ceil(100).saturating_sub(1).min(last)).copied()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "killed       {} processes: {} workers, {} coordinators, Redis {} times with its data and {} without",
            counts.kills(),
            counts.workers_killed,
            counts.coordinators_killed,
            counts.redis_killed,
            counts.redis_lost
        )?;
        writeln!(
            f,
            "besides      {} FLUSHALL, {} frozen and woken, {} stopped with SIGTERM, {} network faults",
            counts.flushed, counts.frozen, counts.stopped, counts.networks
        )?;
        let checked = &self.checked;
        writeln!(
            f,
            "jobs         {} submitted twice each; {} tasks, {} of them lost; {} files accepted, {} packed, {} failed, {} lost",
            counts.submitted,
            checked.tasks,
            checked.lost_tasks,
            checked.accepted,
            checked.packed,
            checked.failed,
            checked.lost_files
        )?;
        writeln!(f, "shards       {}, {} published twice with different bytes", checked.shards, checked.republished)?;
        for (what, term) in [("killed", false), ("SIGTERM", true)] {
            let seconds = |wait: Option<Duration>| wait.map_or("-".to_owned(), |w| format!("{:.2} s", w.as_secs_f64()));
            let of = |percent| seconds(self.wait(percent, term));
            writeln!(
                f,
                "is free      after {what}: median {}, p99 {}, longest {}",
                seconds(self.held(50, term)),
                seconds(self.held(99, term)),
                seconds(self.held(100, term))
            )?;
            let all = self.waits.iter().filter(|wait| wait.term == term).count();
            let used = self.waits.iter().filter(|wait| wait.term == term && !wait.disturbed).count();
            writeln!(
                f,
                "runs again   after {what}: median {}, p99 {}, longest {} ({used} of {all} waits were not disturbed)",
                of(50),
                of(99),
                of(100)
            )?;
        }
        writeln!(
            f,
            "read back    {} right; faults for {:.0} s, calm after {:.1} s",
            self.right,
            self.chaos.as_secs_f64(),
            self.calm.as_secs_f64()
        )?;
        writeln!(f, "wrong        {}", self.wrong.len())?;
        self.wrong.iter().take(20).try_for_each(|line| writeln!(f, "  {line}"))
    }
}
