//! `des audit`: whether queue, state store and shards agree. Exits with 1 when something is wrong and was not mended.

use std::time::Duration;

use des_coordinator::{AuditLine, Finding};
use reqwest::Method;

use super::events::Lines;
use super::orders::coordinator;
use crate::args::AuditArgs;
use crate::client::next_chunk;
use crate::error::{CliError, Exit};
use crate::output::{Screen, count, duration, number_of, visible};

/// Runs `des audit`.
///
/// # Errors
/// When the coordinator cannot be reached, or something is wrong that was not mended.
pub(crate) async fn audit(args: AuditArgs, screen: Screen) -> Result<Exit, CliError> {
    let client = coordinator(&args.coordinator)?;
    let method = if args.repair { Method::POST } else { Method::GET };
    let query = [("shards", (!args.no_shards).to_string())];
    let mut answer = client.stream(method, "v1/audit", &query, &[]).await?;
    let mut lines = Lines::default();
    while let Some(chunk) = next_chunk(&client, &mut answer).await? {
        lines.feed(&chunk);
        while let Some(line) = lines.next() {
            if let Some(exit) = show(&line, args.repair, screen)? {
                return Ok(exit);
            }
        }
    }
    Err(CliError::failed("the audit's answer was cut; what was shown holds, but it is not all").hint("ask again"))
}

/// Shows one line; the exit code with the last.
fn show(line: &[u8], repair: bool, screen: Screen) -> Result<Option<Exit>, CliError> {
    let read: AuditLine = serde_json::from_slice(line).map_err(|e| {
        CliError::failed(format!("the coordinator's audit is not what this version understands: {e}"))
            .hint("coordinator and des should be of the same version")
    })?;
    if screen.json() {
        screen.object(&read)?;
    }
    match read {
        AuditLine::Finding(finding) => {
            if !screen.json() {
                screen.line(&text(&finding)?)?;
            }
            Ok(None)
        }
        AuditLine::Error { detail } => Err(CliError::failed(format!("the audit could not go on: {detail}"))),
        AuditLine::Summary { jobs, receipts, shards, findings, repaired, seconds } => {
            let took = duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
            let seen = format!(
                "{}, {} and {} looked at in {took}",
                number_of(jobs, "job"),
                number_of(receipts, "receipt"),
                number_of(shards, "shard")
            );
            if !screen.json() {
                let found = match (findings, repaired) {
                    (0, _) => "nothing is wrong".to_owned(),
                    (_, 0) => number_of(findings, "finding"),
                    _ => format!("{}, {} of them mended", number_of(findings, "finding"), count(repaired)),
                };
                screen.line(&format!("{seen}: {found}"))?;
                if findings > 0 && !repair {
                    screen.note("des audit --repair mends what is safe to mend");
                }
            }
            Ok(Some(if findings > repaired { Exit::Failed } else { Exit::Done }))
        }
    }
}

fn text(finding: &Finding) -> Result<String, CliError> {
    let kind = serde_json::to_value(finding.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
    let kind = kind.ok_or_else(|| CliError::failed("a finding has no name"))?;
    let place = match (finding.job, finding.task) {
        (Some(job), Some(task)) => format!("job {job} shard {task}: "),
        (Some(job), None) => format!("job {job}: "),
        (None, _) => String::new(),
    };
    let mended = if finding.repaired { " (mended)" } else { "" };
    Ok(format!("{kind}: {place}{}{mended}", visible(&finding.detail)))
}
