//! `des dead`: shards that were given up, why, and what becomes of them.

use des_coordinator::DeadPage;
use des_shared::receipt::DeadTask;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::orders::{accepted, coordinator};
use crate::args::{DeadArgs, DeadCommand};
use crate::client::Client;
use crate::error::{CliError, Exit};
use crate::output::{Screen, bytes, number_of, visible};

/// Entries asked for at once.
const PAGE: usize = 200;

/// Runs `des dead`.
///
/// # Errors
/// When the coordinator cannot be reached or refuses.
pub(crate) async fn dead(args: DeadArgs, screen: Screen) -> Result<Exit, CliError> {
    match args.command {
        None => {
            let client = coordinator(&args.coordinator)?;
            list(&client, args.job.as_deref(), args.limit, screen).await
        }
        Some(DeadCommand::Retry(task)) => {
            let client = coordinator(&task.coordinator)?;
            let answer = client.call(Method::POST, &path(&task.job, task.task, "/retry"), &[], None).await?;
            accepted(&answer, false, screen)?;
            Ok(Exit::Done)
        }
        Some(DeadCommand::Drop(task)) => {
            let client = coordinator(&task.coordinator)?;
            client.call(Method::DELETE, &path(&task.job, task.task, ""), &[], None).await?;
            screen.note(&format!("shard {} of job {} is out of the list", task.task, task.job));
            Ok(Exit::Done)
        }
    }
}

fn path(job: &str, task: u32, rest: &str) -> String {
    format!("v1/dead/{}/{task}{rest}", utf8_percent_encode(job, NON_ALPHANUMERIC))
}

async fn list(client: &Client, job: Option<&str>, limit: usize, screen: Screen) -> Result<Exit, CliError> {
    let (mut shown, mut cursor) = (0, None::<String>);
    while shown < limit {
        let mut query = vec![("limit", PAGE.min(limit - shown).to_string())];
        query.extend(job.map(|job| ("job", job.to_owned())));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page: DeadPage = client.json("v1/dead", &query).await?;
        shown += page.dead.len();
        for task in &page.dead {
            if screen.json() {
                screen.object(task)?;
            } else {
                describe(task).iter().try_for_each(|line| screen.line(line))?;
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    if shown == 0 {
        screen.note("no shard was given up");
    } else if cursor.is_some() {
        screen.note("there are more; --limit shows them");
    } else {
        screen.note("des dead retry JOB TASK packs the files again, des dead drop JOB TASK takes one out of the list");
    }
    Ok(Exit::Done)
}

/// A shard that was given up, with its history, in lines.
fn describe(task: &DeadTask) -> Vec<String> {
    let retried = task.retried_as.map(|job| format!("; packed again as job {job}")).unwrap_or_default();
    let mut lines = vec![
        format!(
            "job {} shard {}: {}, {}, given up at {}{retried}",
            task.job,
            task.task,
            number_of(task.files, "file"),
            bytes(task.source_bytes),
            moment(task.died_ms),
        ),
        format!("  {}", visible(&task.message)),
    ];
    for attempt in &task.history {
        let worker = attempt.worker.map_or_else(|| "nobody".to_owned(), |worker| worker.to_string());
        lines.push(format!("    {}  worker {worker}: {}", moment(attempt.at_ms), visible(&attempt.message)));
    }
    lines
}

/// Unix milliseconds as RFC 3339 to the second.
fn moment(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms after 1970-01-01"))
}
