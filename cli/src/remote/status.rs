//! `des jobs` and `des status`: what a coordinator is doing.

use std::time::Duration;

use des_coordinator::{ActiveTask, QueueView};
use des_shared::job::{JobState, JobView};
use des_shared::queue::WorkerView;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::orders::{coordinator, standing};
use super::wait::{fetch_failures, lines, state_name};
use super::watch::watch;
use crate::args::{JobsArgs, StatusArgs};
use crate::client::{Client, Service, view};
use crate::error::{CliError, Exit};
use crate::failures::FailureList;
use crate::output::{Screen, Table, bytes, count, duration, number_of, whole};

/// Jobs asked for at once.
const PAGE: usize = 100;

/// Runs `des jobs`.
///
/// # Errors
/// When the coordinator cannot be reached or the state is none.
pub(crate) async fn jobs(args: JobsArgs, screen: Screen) -> Result<Exit, CliError> {
    if let Some(state) = &args.state {
        serde_json::from_value::<JobState>(json!(state)).map_err(|_| {
            CliError::usage(format!("{state:?} is not a state of a job"))
                .hint("expected planning, running, paused, completed, completed_with_errors, failed or cancelled")
        })?;
    }
    let client = Client::new(Service::Coordinator, &args.coordinator.coordinator, &args.coordinator.key)?;
    let found = list(&client, &args).await?;
    if screen.json() {
        for job in &found {
            screen.object(job)?;
        }
        return Ok(Exit::Done);
    }
    if found.is_empty() {
        screen.note("no jobs; des submit MANIFEST|FOLDER starts one");
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&[
        "JOB", "STATE", ">FILES", ">PACKED", ">FAILED", ">SHARDS", ">SOURCE", ">STORED", "CREATED", "NAME",
    ]);
    let unknown = || "?".to_owned();
    for raw in &found {
        let job = view(raw)?;
        table.row(vec![
            job.id.to_string(),
            state_name(job.state).to_owned(),
            job.files.total.map_or_else(unknown, count),
            count(job.files.packed),
            count(job.files.failed),
            job.shards.total.map_or_else(unknown, |all| format!("{}/{}", count(job.shards.committed), count(all))),
            job.bytes.source.map_or_else(unknown, bytes),
            bytes(job.bytes.stored),
            job.created_at.chars().take(19).collect(),
            job.name,
        ]);
    }
    table.lines().iter().try_for_each(|line| screen.line(line))?;
    Ok(Exit::Done)
}

async fn list(client: &Client, args: &JobsArgs) -> Result<Vec<Value>, CliError> {
    let mut found: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    while found.len() < args.limit {
        let mut query = vec![("limit", PAGE.min(args.limit - found.len()).to_string())];
        query.extend(args.state.clone().map(|state| ("state", state)));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let mut page: Value = client.json("v1/jobs", &query).await?;
        let jobs: Vec<Value> = take(&mut page, "jobs")?;
        found.extend(jobs);
        cursor = page["next"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    found.truncate(args.limit);
    Ok(found)
}

/// Runs `des status`.
///
/// # Errors
/// When the coordinator cannot be reached or does not know the job.
pub(crate) async fn status(args: StatusArgs, screen: Screen) -> Result<Exit, CliError> {
    let client = coordinator(&args.coordinator)?;
    let Some(id) = &args.job else { return overview(&client, screen).await };
    if args.watch {
        return watch(&client, id, args.failures, screen).await;
    }
    let (job, raw) = client.job(id).await?;
    if screen.json() {
        screen.object(&raw)?;
    } else {
        lines(&job).iter().try_for_each(|line| screen.line(line))?;
        if !job.state.is_final() {
            pace_lines(&job, &raw).iter().try_for_each(|line| screen.line(line))?;
        }
        screen.line(&format!("  since   {}, last change {}", job.created_at, job.updated_at))?;
    }
    if job.files.failed > 0 && (args.failures.is_some() || !screen.json()) {
        let mut failures = FailureList::create(args.failures)?;
        fetch_failures(&client, id, &mut failures).await?;
        failures.show(screen)?;
    }
    Ok(Exit::Done)
}

/// How an open job goes: what holds it, its rate, and who works on it.
fn pace_lines(job: &JobView, raw: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let held = standing(raw, state_name(job.state));
    if held != state_name(job.state) {
        lines.push(format!("  held    {held}"));
    }
    let seconds = |name: &str| raw["progress"][name].as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok());
    if let Some(rate) = raw["progress"]["bytes_per_second"].as_f64() {
        let left = seconds("eta_seconds").map(|left| format!(", about {} left", duration(left))).unwrap_or_default();
        lines.push(format!("  rate    {}/s{left}", bytes(whole(rate))));
    }
    let active: Vec<ActiveTask> = serde_json::from_value(raw["active"].clone()).unwrap_or_default();
    for task in active {
        let (done, all) = (bytes(task.done_bytes), bytes(task.source_bytes));
        lines.push(format!("  active  shard {} at {}: {done} of {all}", task.number, task.name));
    }
    lines
}

async fn overview(client: &Client, screen: Screen) -> Result<Exit, CliError> {
    let mut queue: Value = client.json("v1/queue", &[]).await?;
    let mut workers: Value = client.json("v1/workers", &[]).await?;
    if screen.json() {
        let list = if workers.is_array() { workers } else { workers["workers"].take() };
        screen.object(&json!({ "queue": queue, "workers": list }))?;
        return Ok(Exit::Done);
    }
    let stats: QueueView = serde_json::from_value(queue.take()).map_err(|e| unknown("queue", &e))?;
    let age = Duration::from_millis(stats.oldest_age_ms);
    let oldest = if stats.depth == 0 { String::new() } else { format!(", the oldest for {}", duration(age)) };
    screen.line(&format!(
        "queue: {} waiting{oldest}{}; {} being packed, {} to be tried again, {} given up; {} open",
        number_of(stats.depth, "shard"),
        if stats.paused > 0 { format!(", {} paused", count(stats.paused)) } else { String::new() },
        count(stats.in_flight),
        count(stats.delayed),
        count(stats.dead),
        number_of(stats.jobs, "job"),
    ))?;
    let workers: Vec<WorkerView> = take(&mut workers, "workers")?;
    if workers.is_empty() {
        screen.line("no worker has been heard of lately; shards wait until one comes")?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["WORKER", "NAME", ">SLOTS", ">BUSY", ">LAST HEARD OF"]);
    for worker in workers {
        table.row(vec![
            worker.id.to_string(),
            worker.name,
            worker.slots.to_string(),
            worker.leases.to_string(),
            format!("{} ago", duration(Duration::from_millis(worker.idle_ms))),
        ]);
    }
    table.lines().iter().try_for_each(|line| screen.line(line))?;
    Ok(Exit::Done)
}

/// A list, bare or under its name.
fn take<T: DeserializeOwned>(value: &mut Value, name: &str) -> Result<Vec<T>, CliError> {
    let list = if value.is_array() { value.take() } else { value[name].take() };
    serde_json::from_value(list).map_err(|e| unknown(name, &e))
}

fn unknown(what: &str, error: &serde_json::Error) -> CliError {
    CliError::failed(format!("the coordinator's {what} are not what this version understands: {error}"))
        .hint("coordinator and des should be of the same version")
}
