//! `des status JOB --watch`: the job's events as they come, until it has ended.
//!
//! Every event is a whole snapshot, so a connection that breaks is simply made again: nothing is missed, whichever
//! coordinator answers next.

use std::time::Duration;

use des_coordinator::JobDetail;
use des_shared::job::JobState;
use reqwest::Method;
use serde_json::Value;

use super::events::Events;
use super::orders::standing;
use super::wait::{fetch_failures, lines, state_name};
use crate::client::{Client, job_path, next_chunk};
use crate::error::{CliError, Exit};
use crate::failures::FailureList;
use crate::output::{Board, Measure, Pace, Row, Screen, count, number_of, whole};

/// First pause before the connection is made again, and the longest.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_LAST: Duration = Duration::from_secs(2);
/// How often in a row it may fail before watching is given up: a few minutes.
const PATIENCE: u32 = 120;

/// Runs `des status JOB --watch`. Exits as `des submit --wait` does.
///
/// # Errors
/// When the coordinator stays away, does not know the job, or the job failed or was cancelled.
pub(super) async fn watch(
    client: &Client,
    id: &str,
    failures: Option<std::path::PathBuf>,
    screen: Screen,
) -> Result<Exit, CliError> {
    let mut board = screen.board();
    let followed = tokio::select! {
        followed = follow(client, id, &mut board, screen) => followed,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
    };
    board.finish();
    if matches!(followed, Err(CliError::Interrupted)) {
        screen.note("the job goes on without you");
    }
    let detail = followed?;
    let job = &detail.body.view;
    if !screen.json() {
        lines(job).iter().try_for_each(|line| screen.line(line))?;
    }
    if job.files.failed > 0 && (failures.is_some() || !screen.json()) {
        let mut list = FailureList::create(failures)?;
        fetch_failures(client, id, &mut list).await?;
        list.show(screen)?;
    }
    match job.state {
        JobState::Completed => Ok(Exit::Done),
        JobState::CompletedWithErrors => Ok(Exit::SomeFilesFailed),
        state => {
            let why = job.error.clone().unwrap_or_else(|| format!("it is {}", state_name(state)));
            Err(CliError::failed(format!("job {}: {why}", job.id)))
        }
    }
}

/// Follows the events to the last one, over as many connections as it takes.
async fn follow(client: &Client, id: &str, board: &mut Board, screen: Screen) -> Result<JobDetail, CliError> {
    let (mut last_id, mut failed, mut pause) = (None, 0, AGAIN_FIRST);
    loop {
        let before = last_id.clone();
        let error = match follow_once(client, id, (board, &mut last_id), screen).await {
            Ok(Some(detail)) => return Ok(detail),
            Ok(None) => None,
            // The screen is gone, or it never worked at all.
            Err(error @ CliError::PipeClosed) => return Err(error),
            Err(error) if last_id.is_none() => return Err(error),
            Err(error) => Some(error),
        };
        if last_id != before {
            (failed, pause) = (0, AGAIN_FIRST);
        }
        failed += 1;
        if let Some(error) = error {
            if failed > PATIENCE {
                return Err(error);
            }
            if failed == 1 {
                board.say(&format!("{error}; connecting again"));
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_LAST);
    }
}

/// One connection. `None` when it ended before the job did: the coordinator stops.
async fn follow_once(
    client: &Client,
    id: &str,
    (board, last_id): (&mut Board, &mut Option<String>),
    screen: Screen,
) -> Result<Option<JobDetail>, CliError> {
    let mut headers = vec![("Accept", "text/event-stream".to_owned())];
    headers.extend(last_id.clone().map(|id| ("Last-Event-ID", id)));
    let mut answer = client.stream(Method::GET, &job_path(id, "/events"), &[], &headers).await?;
    let mut events = Events::default();
    while let Some(chunk) = next_chunk(client, &mut answer).await? {
        events.feed(&chunk);
        while let Some(event) = events.next() {
            let raw: Value = serde_json::from_str(&event.data).map_err(|e| unknown(&e))?;
            let detail: JobDetail = serde_json::from_value(raw.clone()).map_err(|e| unknown(&e))?;
            if screen.json() {
                screen.object(&raw)?;
            } else {
                show(board, &detail, &raw)?;
            }
            *last_id = event.id.or(last_id.take());
            if event.kind == "end" || detail.body.view.state.is_final() {
                return Ok(Some(detail));
            }
        }
    }
    Ok(None)
}

fn unknown(error: &serde_json::Error) -> CliError {
    CliError::failed(format!("the coordinator's events are not what this version understands: {error}"))
        .hint("coordinator and des should be of the same version")
}

fn show(board: &mut Board, detail: &JobDetail, raw: &Value) -> Result<(), CliError> {
    let rows: Vec<Row> = detail
        .active
        .iter()
        .map(|task| Row {
            id: format!("{}-{}", task.worker, task.number),
            label: format!("{}, shard {}", task.name, task.number),
            done: task.done_bytes,
            of: task.source_bytes,
        })
        .collect();
    let job = &detail.body.view;
    board.show(&standing(raw, state_name(job.state)), &measure(detail), &pace(detail), &rows)
}

fn measure(detail: &JobDetail) -> Measure {
    let (job, under_way) = (&detail.body.view, detail.progress.in_progress);
    let mut notes = Vec::new();
    if let Some(total) = job.shards.total {
        notes.push(format!("{}/{}", count(job.shards.committed), number_of(total, "shard")));
    }
    if job.files.failed > 0 {
        notes.push(format!("{} failed", count(job.files.failed)));
    }
    if detail.body.stale {
        notes.push("the queue is away".to_owned());
    }
    Measure {
        files: job.files.packed + job.files.failed + under_way.files_packed + under_way.files_failed,
        of_files: job.files.total,
        bytes: detail.progress.done_bytes.unwrap_or(0),
        // The end of a job with failures does not say how many of its bytes were packed.
        of_bytes: job.bytes.source.filter(|_| detail.progress.done_bytes.is_some()),
        note: notes.join(", "),
    }
}

fn pace(detail: &JobDetail) -> Pace {
    let progress = &detail.progress;
    Pace {
        bytes_per_second: progress.bytes_per_second.map(whole),
        left: progress.eta_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    }
}
