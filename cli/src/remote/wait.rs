//! Waiting for a job, with its progress, and saying how it ended.

use std::time::Duration;

use des_shared::job::{JobState, JobView};
use serde_json::Value;

use super::submit::job_result;
use crate::client::{Client, next_chunk};
use crate::error::{CliError, Exit};
use crate::failures::FailureList;
use crate::output::{Measure, Screen, bytes, count, number_of, ratio};

/// How long the coordinator is left alone between two questions: short at first, for small jobs.
const ASK_FIRST: Duration = Duration::from_millis(100);
const ASK_LATER: Duration = Duration::from_secs(1);
/// How often in a row the coordinator may fail to answer before waiting is given up.
const PATIENCE: u32 = 60;

/// Returns when the job has ended. A coordinator that restarts meanwhile is waited for.
///
/// # Errors
/// When the coordinator stays away or does not know the job.
pub(crate) async fn wait_for(client: &Client, id: &str, screen: Screen) -> Result<(JobView, Value), CliError> {
    let mut meter = screen.meter("packing");
    let mut pause = ASK_FIRST;
    let mut silent = 0;
    loop {
        match client.job(id).await {
            Ok((job, raw)) => {
                silent = 0;
                meter.set(&measure(&job, &raw));
                if job.state.is_final() {
                    meter.finish();
                    return Ok((job, raw));
                }
            }
            Err(error) if silent >= PATIENCE => return Err(error),
            Err(error) => {
                if silent == 0 && pause == ASK_LATER {
                    meter.say(&format!("{error}; still trying"));
                } else if pause < ASK_LATER {
                    return Err(error);
                }
                silent += 1;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(ASK_LATER);
    }
}

/// Finished shards, and what the checkpoints of running ones add.
fn measure(job: &JobView, raw: &Value) -> Measure {
    let under_way = |name: &str| raw["progress"]["in_progress"][name].as_u64().unwrap_or(0);
    let mut notes = Vec::new();
    if matches!(job.state, JobState::Planning | JobState::Paused) {
        notes.push(state_name(job.state).to_owned());
    }
    if let Some(total) = job.shards.total {
        notes.push(format!("{}/{}", count(job.shards.committed), number_of(total, "shard")));
    }
    if job.files.failed > 0 {
        notes.push(format!("{} failed", count(job.files.failed)));
    }
    Measure {
        files: job.files.packed + job.files.failed + under_way("files_packed") + under_way("files_failed"),
        of_files: job.files.total,
        note: notes.join(", "),
        ..Measure::default()
    }
}

/// Adds the job's failure list to `failures`.
///
/// # Errors
/// When the coordinator fails or the list cannot be written.
pub(crate) async fn fetch_failures(client: &Client, id: &str, failures: &mut FailureList) -> Result<(), CliError> {
    let mut response = client.failures(id).await?;
    let mut rest: Vec<u8> = Vec::new();
    while let Some(chunk) = next_chunk(client, &mut response).await? {
        rest.extend_from_slice(&chunk);
        let mut begin = 0;
        while let Some(end) = rest[begin..].iter().position(|b| *b == b'\n') {
            take(&rest[begin..begin + end], failures)?;
            begin += end + 1;
        }
        rest.drain(..begin);
    }
    take(&rest, failures)
}

fn take(line: &[u8], failures: &mut FailureList) -> Result<(), CliError> {
    if line.is_empty() {
        return Ok(());
    }
    let failure = serde_json::from_slice(line)
        .map_err(|e| CliError::failed(format!("the coordinator's list of failures is not readable: {e}")))?;
    failures.push(&failure)
}

/// Shows how a job ended. `local` files of the list never reached the coordinator.
///
/// # Errors
/// When the result cannot be written.
pub(crate) fn conclude(
    job: &JobView,
    raw: &Value,
    local: u64,
    mut failures: FailureList,
    screen: Screen,
) -> Result<Exit, CliError> {
    if screen.json() {
        screen.object(&job_result(raw, &mut failures)?)?;
    } else {
        for line in lines(job) {
            screen.line(&line)?;
        }
    }
    failures.show(screen)?;
    match job.state {
        JobState::Completed if local == 0 => Ok(Exit::Done),
        JobState::Completed | JobState::CompletedWithErrors => Ok(Exit::SomeFilesFailed),
        state => {
            let why = job.error.clone().unwrap_or_else(|| format!("it is {}", state_name(state)));
            Err(CliError::failed(format!("job {}: {why}", job.id)))
        }
    }
}

/// A job as text, a few lines.
pub(crate) fn lines(job: &JobView) -> Vec<String> {
    let or_unknown = |n: Option<u64>, show: fn(u64) -> String| n.map_or_else(|| "?".to_owned(), show);
    let name = if job.name.is_empty() { String::new() } else { format!(" ({})", job.name) };
    let mut lines = vec![
        format!("job {}{name}: {}", job.id, state_name(job.state)),
        format!(
            "  files   {} accepted = {} packed + {} failed{}",
            or_unknown(job.files.total, count),
            count(job.files.packed),
            count(job.files.failed),
            open_files(job),
        ),
        format!(
            "  bytes   {} of source, {} stored{}",
            or_unknown(job.bytes.source, bytes),
            bytes(job.bytes.stored),
            match job.bytes.source {
                Some(source) if job.state.is_final() && job.bytes.stored > 0 =>
                    format!(" ({})", ratio(source, job.bytes.stored)),
                _ => String::new(),
            }
        ),
        format!(
            "  shards  {} planned, {} done{}",
            or_unknown(job.shards.total, count),
            count(job.shards.committed),
            if job.shards.dead > 0 { format!(", {} given up", count(job.shards.dead)) } else { String::new() }
        ),
    ];
    if let Some(error) = &job.error {
        lines.push(format!("  error   {error}"));
    }
    lines
}

fn open_files(job: &JobView) -> String {
    let done = job.files.packed + job.files.failed;
    match job.files.total {
        Some(total) if total > done => format!(" + {} open", count(total - done)),
        _ => String::new(),
    }
}

/// A state as the interfaces spell it.
pub(crate) fn state_name(state: JobState) -> &'static str {
    state.label()
}
