//! Auditing and repairing in bounded steps: walks over jobs and indexes, each step one script that other clients hardly
//! notice. What a step compares, it compares at one moment; what tasks add up to is counted along (see `walk.lua`).

use redis::Script;

use super::wire::{self, Reply};
use super::{RedisQueue, always, out_of_place};
use crate::ids::JobId;
use crate::queue::QueueError;
use crate::queue::values::MAX_VIOLATIONS;

/// Tasks or entries a step looks at.
const STEP: usize = 250;
/// Leases a step looks at when it counts them by worker; a queue with more is not checked for that.
const MAX_LEASES: usize = 4_000;
/// How often a walk that another one displaced is begun again.
const WALKS: usize = 5;

/// What walks have found.
#[derive(Debug, Default)]
struct Findings {
    named: Vec<String>,
    wrong: u64,
}

impl Findings {
    fn add(&mut self, named: Vec<String>, wrong: u64) {
        self.named.extend(named);
        self.named.truncate(MAX_VIOLATIONS);
        self.wrong += wrong;
    }
}

impl RedisQueue {
    /// Every violated invariant.
    pub(super) async fn audit_all(&self) -> Result<Vec<String>, QueueError> {
        let mut findings = Findings::default();
        let values = always(self.run(&self.scripts.jobs, &[]).await?)?;
        for job in wire::single::<Vec<String>>(values, "list of jobs")? {
            // Displaced again and again: what it counts is compared by those who displace it.
            self.walk(&job, false, &mut findings).await?;
        }
        self.walk_indexes(false, &mut findings).await?;
        Ok(findings.named)
    }

    /// Puts a job right, and what is kept for all jobs together.
    pub(super) async fn repair(&self, job: JobId) -> Result<u64, QueueError> {
        let mut findings = Findings::default();
        let name = job.to_string();
        let mut cursor = "0".to_owned();
        loop {
            let args = [name.clone(), cursor, STEP.to_string()];
            let mut values = self.run_job(&self.scripts.mend, job, &args).await?.into_iter();
            cursor = wire::part(values.next(), "cursor")?;
            findings.wrong += wire::part::<u64>(values.next(), "count")?;
            if cursor == "0" {
                break;
            }
        }
        match self.walk(&name, true, &mut findings).await? {
            Walk::Done => {}
            Walk::Unknown => return Err(QueueError::UnknownJob(job)),
            Walk::Displaced => {
                return Err(QueueError::Unavailable(format!("job {job}: other audits keep this one from its end")));
            }
        }
        self.walk_indexes(true, &mut findings).await?;
        Ok(findings.wrong)
    }

    /// Walks over the tasks of a job.
    async fn walk(&self, job: &str, fix: bool, findings: &mut Findings) -> Result<Walk, QueueError> {
        for _ in 0..WALKS {
            let mut id = String::new();
            let mut seen = Findings::default();
            loop {
                let args = [
                    job.to_owned(),
                    id,
                    STEP.to_string(),
                    u8::from(fix).to_string(),
                    MAX_VIOLATIONS.to_string(),
                    self.lease_ms(),
                ];
                let mut values = match self.run(&self.scripts.walk, &args).await? {
                    Reply::Done(values) => values.into_iter(),
                    Reply::Unknown => return Ok(Walk::Unknown),
                    Reply::Stale | Reply::Cancelled => return Err(out_of_place()),
                };
                let state: String = wire::part(values.next(), "state of a walk")?;
                id = wire::part(values.next(), "id of a walk")?;
                let named: Vec<String> = wire::part(values.next(), "list of violations")?;
                seen.add(named, wire::part(values.next(), "count")?);
                match state.as_str() {
                    "more" => {}
                    "done" => {
                        findings.add(seen.named, seen.wrong);
                        return Ok(Walk::Done);
                    }
                    _ => break,
                }
            }
        }
        Ok(Walk::Displaced)
    }

    async fn walk_indexes(&self, fix: bool, findings: &mut Findings) -> Result<(), QueueError> {
        let fix = u8::from(fix).to_string();
        for state in ["P", "L", "D"] {
            let mut cursor = "0".to_owned();
            loop {
                let args = [state.to_owned(), cursor, STEP.to_string(), fix.clone(), MAX_VIOLATIONS.to_string()];
                let mut values = self.steps(&self.scripts.index, &args).await?;
                cursor = wire::part(values.next(), "cursor")?;
                findings.add(wire::part(values.next(), "list of violations")?, wire::part(values.next(), "count")?);
                if cursor == "0" {
                    break;
                }
            }
        }
        let args = [fix, MAX_VIOLATIONS.to_string(), MAX_LEASES.to_string()];
        let mut values = self.steps(&self.scripts.sums, &args).await?;
        findings.add(wire::part(values.next(), "list of violations")?, wire::part(values.next(), "count")?);
        Ok(())
    }

    async fn steps(&self, script: &Script, args: &[String]) -> Result<std::vec::IntoIter<redis::Value>, QueueError> {
        Ok(always(self.run(script, args).await?)?.into_iter())
    }
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    Done,
    /// The job is not known (any more).
    Unknown,
    /// Other walks over the same job began again and again.
    Displaced,
}
