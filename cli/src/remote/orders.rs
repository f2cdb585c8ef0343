//! `des pause`, `resume`, `cancel`, `retry` and `share`: steering a job that was accepted.

use des_coordinator::JobBody;
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::wait::{conclude, fetch_failures, lines, state_name, wait_for};
use crate::args::{CancelArgs, CoordinatorArgs, JobArg, RetryArgs, ShardsArg, ShareArgs};
use crate::client::{Client, Service, job_path, view};
use crate::error::{CliError, Exit};
use crate::failures::FailureList;
use crate::output::Screen;

/// A client of the coordinator that was asked for.
pub(super) fn coordinator(args: &CoordinatorArgs) -> Result<Client, CliError> {
    Client::new(Service::Coordinator, &args.coordinator, &args.key)
}

/// Runs `des pause`.
///
/// # Errors
/// When the coordinator cannot be reached or refuses.
pub(crate) async fn pause(args: JobArg, screen: Screen) -> Result<Exit, CliError> {
    let note = "running shards are handed back at their next part; des resume lets it go on";
    order(&args, "/pause", note, screen).await
}

/// Runs `des resume`.
///
/// # Errors
/// When the coordinator cannot be reached or refuses.
pub(crate) async fn resume(args: JobArg, screen: Screen) -> Result<Exit, CliError> {
    order(&args, "/resume", "what was packed is not packed again", screen).await
}

async fn order(args: &JobArg, what: &str, note: &str, screen: Screen) -> Result<Exit, CliError> {
    let client = coordinator(&args.coordinator)?;
    let (_, raw) = client.call(Method::POST, &job_path(&args.job, what), &[], None).await?;
    show(&raw, screen)?;
    screen.note(note);
    Ok(Exit::Done)
}

/// One line about a job that was changed, or its JSON.
fn show(raw: &Value, screen: Screen) -> Result<(), CliError> {
    if screen.json() {
        return screen.object(raw);
    }
    let job = view(raw)?;
    screen.line(&format!("job {}: {}", job.id, standing(raw, state_name(job.state))))
}

/// The state, and what holds the job where the state does not say it.
pub(super) fn standing(raw: &Value, state: &str) -> String {
    let hold = serde_json::from_value::<JobBody>(raw.clone()).map(|body| body.hold).unwrap_or_default();
    match hold {
        des_shared::control::Hold::Cancelled => format!("{state}, being cancelled"),
        des_shared::control::Hold::Paused if state != "paused" => format!("{state}, will be paused"),
        _ => state.to_owned(),
    }
}

/// Runs `des cancel`.
///
/// # Errors
/// When the coordinator cannot be reached or refuses.
pub(crate) async fn cancel(args: CancelArgs, screen: Screen) -> Result<Exit, CliError> {
    let client = coordinator(&args.coordinator)?;
    let shards = match args.shards {
        ShardsArg::Keep => "keep",
        ShardsArg::Drop => "drop",
    };
    let path = job_path(&args.job, "/cancel");
    let (_, raw) = client.call(Method::POST, &path, &[("shards", shards.to_owned())], None).await?;
    if !args.wait {
        show(&raw, screen)?;
        screen.note("what was not packed is in the job's list of failures when it has ended; des retry packs it");
        return Ok(Exit::Done);
    }
    let (job, raw) = wait_for(&client, &args.job, screen).await?;
    if screen.json() {
        screen.object(&raw)?;
    } else {
        lines(&job).iter().try_for_each(|line| screen.line(line))?;
    }
    Ok(Exit::Done)
}

/// Runs `des retry`.
///
/// # Errors
/// When the coordinator cannot be reached or refuses, or the new job fails.
pub(crate) async fn retry(args: RetryArgs, screen: Screen) -> Result<Exit, CliError> {
    let client = coordinator(&args.coordinator)?;
    let answer = client.call(Method::POST, &job_path(&args.job, "/retry"), &[], None).await?;
    let id = accepted(&answer, args.wait, screen)?;
    if !args.wait {
        return Ok(Exit::Done);
    }
    let (job, raw) = wait_for(&client, &id, screen).await?;
    let mut failures = FailureList::create(args.failures)?;
    fetch_failures(&client, &id, &mut failures).await?;
    conclude(&job, &raw, 0, failures, screen)
}

/// Says which job packs again; returns its id.
pub(super) fn accepted(answer: &(StatusCode, Value), waits: bool, screen: Screen) -> Result<String, CliError> {
    let (status, raw) = answer;
    let id = view(raw)?.id.to_string();
    let before = if *status == StatusCode::OK { " (asked for before)" } else { "" };
    if waits {
        screen.note(&format!("job {id}{before}"));
    } else if screen.json() {
        screen.object(raw)?;
    } else {
        screen.line(&format!("{id}{before}"))?;
        screen.note(&format!("the failed files are packed again as this job; des status {id} shows how it goes"));
    }
    Ok(id)
}

/// Runs `des share`.
///
/// # Errors
/// When the coordinator cannot be reached or refuses.
pub(crate) async fn share(args: ShareArgs, screen: Screen) -> Result<Exit, CliError> {
    let client = coordinator(&args.coordinator)?;
    let mut change = Map::new();
    let mut set = |name: &str, value: Option<Value>| change.extend(value.map(|value| (name.to_owned(), value)));
    set("priority", args.priority.map(|n| json!(n)));
    set("weight", args.weight.map(|n| json!(n)));
    set("max_running", args.max_running.map(|max| json!(max.0)));
    let body = Value::Object(change);
    let (_, raw) = client.call(Method::PATCH, &job_path(&args.job, ""), &[], Some(&body)).await?;
    if screen.json() {
        screen.object(&raw)?;
        return Ok(Exit::Done);
    }
    let job = view(&raw)?;
    let share = job.options.share;
    let bound =
        share.max_running.map_or_else(|| "no bound on running shards".to_owned(), |n| format!("at most {n} running"));
    screen.line(&format!("job {}: priority {}, weight {}, {bound}", job.id, share.priority, share.weight))?;
    Ok(Exit::Done)
}
