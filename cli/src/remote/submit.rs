//! `des submit`: streams a local manifest or folder to a coordinator, or names a manifest it reads itself.
//!
//! A local manifest is read, checked and sent entry by entry as NDJSON with absolute sources; the first mistake in it
//! breaks the request off, so that the coordinator never accepts half a manifest.

use std::io;

use bytes::Bytes;
use des_shared::manifest::ManifestError;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::wait::{fetch_failures, wait_for};
use crate::args::SubmitArgs;
use crate::client::{Client, Service, Submitted};
use crate::error::{CliError, Exit};
use crate::failures::FailureList;
use crate::folder::{Leave, Skipped};
use crate::input::{Input, Item};
use crate::output::{Measure, Screen, bytes, number_of};

/// Lines are sent in pieces of this many bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that wait for the network.
const PIECES_AHEAD: usize = 8;

/// Runs `des submit`.
///
/// # Errors
/// When the input is wrong, or the coordinator cannot be reached or refuses.
pub(crate) async fn submit(args: SubmitArgs, screen: Screen) -> Result<Exit, CliError> {
    let client = Client::new(Service::Coordinator, &args.coordinator.coordinator, &args.coordinator.key)?;
    let request = args.options.request();
    let key = args.idempotency_key.as_deref();
    let mut failures = FailureList::create(args.failures.clone())?;
    let submitted = match Input::find(&args.input)? {
        Input::Remote(uri) => client.submit_uri(&uri, &request, key).await?,
        input => {
            let (body, sending) = Sending::start(&input, Leave::default(), failures)?;
            let answer = client.submit_stream(body, &request, key).await;
            let sent = sending.finish(answer, screen).await?;
            failures = sent.failures;
            tell_skipped(screen, sent.skipped);
            sent.submitted
        }
    };
    if !args.wait {
        return accepted(&submitted, &mut failures, screen);
    }
    let id = submitted.job.id.to_string();
    screen.note(&format!("job {id} accepted{}", if submitted.known { " before; waiting for it" } else { "" }));
    let before = failures.count();
    let (job, raw) = tokio::select! {
        ended = wait_for(&client, &id, screen) => ended?,
        _ = tokio::signal::ctrl_c() => {
            screen.note(&format!("the job goes on without you; des status {id} shows it"));
            return Err(CliError::Interrupted);
        }
    };
    fetch_failures(&client, &id, &mut failures).await?;
    super::wait::conclude(&job, &raw, before, failures, screen)
}

fn accepted(submitted: &Submitted, failures: &mut FailureList, screen: Screen) -> Result<Exit, CliError> {
    if screen.json() {
        screen.object(&submitted.raw)?;
    } else {
        let before = if submitted.known { " (submitted before)" } else { "" };
        screen.line(&format!("{}{before}", submitted.job.id))?;
        screen.note(&format!("accepted; des status {} shows how it goes", submitted.job.id));
    }
    failures.show(screen)?;
    Ok(if failures.count() > 0 { Exit::SomeFilesFailed } else { Exit::Done })
}

fn tell_skipped(screen: Screen, skipped: Skipped) {
    if let Some(text) = skipped_text(skipped) {
        screen.note(&text);
    }
}

/// What a folder walk left out, for people.
pub(crate) fn skipped_text(skipped: Skipped) -> Option<String> {
    let one = |n: u64, what: &str| (n > 0).then(|| number_of(n, what));
    let parts: Vec<String> =
        [one(skipped.links, "symbolic link"), one(skipped.special, "special file")].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("{} left out", parts.join(" and ")))
}

/// A manifest on its way to the coordinator.
pub(crate) struct Sending {
    reader: JoinHandle<Result<Read, CliError>>,
}

/// What the reader of the input found.
struct Read {
    files: u64,
    bytes: u64,
    failures: FailureList,
    skipped: Skipped,
}

/// A submission that was answered, and what stood beside it.
pub(crate) struct Sent {
    /// The answer.
    pub(crate) submitted: Submitted,
    /// Files that could not even be submitted.
    pub(crate) failures: FailureList,
    /// What a folder walk left out.
    pub(crate) skipped: Skipped,
}

#[derive(Serialize)]
struct Line<'a> {
    uid: &'a str,
    created_at: &'a str,
    size_bytes: u64,
    source_path: &'a str,
}

impl Sending {
    /// Begins to read `input`; the body ends when it does, and breaks off where it is wrong.
    ///
    /// # Errors
    /// When the input cannot be opened.
    pub(crate) fn start(input: &Input, leave: Leave, failures: FailureList) -> Result<(reqwest::Body, Self), CliError> {
        let entries = input.entries(None, leave)?;
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_AHEAD);
        let reader = tokio::task::spawn_blocking(move || {
            let outcome = read_all(entries, failures, &sender);
            if outcome.is_err() {
                // The request must not end as if it were whole. The receiver may be gone already: same effect.
                drop(sender.blocking_send(Err(io::Error::other("the manifest is wrong"))));
            }
            outcome
        });
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            let piece = receiver.recv().await?;
            Some((piece, receiver))
        });
        Ok((reqwest::Body::wrap_stream(stream), Self { reader }))
    }

    /// Joins the reader and the coordinator's answer: a mistake in the manifest explains a broken request.
    ///
    /// # Errors
    /// The manifest's error, else the coordinator's.
    pub(crate) async fn finish(self, answer: Result<Submitted, CliError>, screen: Screen) -> Result<Sent, CliError> {
        let read = self.reader.await.map_err(|e| CliError::failed(format!("reading the input failed: {e}")))?;
        match (read, answer) {
            (Ok(read), Ok(submitted)) => {
                screen.note(&format!("{}, {} submitted", number_of(read.files, "file"), bytes(read.bytes)));
                Ok(Sent { submitted, failures: read.failures, skipped: read.skipped })
            }
            // The reader stops early when the coordinator hangs up: then its answer is what counts.
            (Err(CliError::PipeClosed), Ok(_)) => {
                Err(CliError::failed("the coordinator answered before it had read the whole manifest"))
            }
            (Err(CliError::PipeClosed) | Ok(_), Err(error)) | (Err(error), _) => Err(error),
        }
    }
}

fn read_all(
    mut entries: crate::input::Entries,
    mut failures: FailureList,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<Read, CliError> {
    let mut piece = Vec::with_capacity(PIECE_BYTES + 1024);
    let mut measure = Measure::default();
    let send = |piece: &mut Vec<u8>| {
        let bytes = Bytes::from(std::mem::take(piece));
        sender.blocking_send(Ok(bytes)).map_err(|_| CliError::PipeClosed)
    };
    for item in entries.by_ref() {
        match item? {
            Item::Failed(failure) => failures.push(&failure)?,
            Item::File(_, entry) => {
                measure.files += 1;
                measure.bytes = measure.bytes.saturating_add(entry.size_bytes);
                let line = Line {
                    uid: entry.uid.as_str(),
                    created_at: entry.created_at.as_str(),
                    size_bytes: entry.size_bytes,
                    source_path: &entry.source_path,
                };
                serde_json::to_writer(&mut piece, &line)
                    .map_err(|e| CliError::failed(format!("cannot write JSON: {e}")))?;
                piece.push(b'\n');
            }
        }
        if piece.len() >= PIECE_BYTES {
            send(&mut piece)?;
        }
    }
    if measure.files == 0 {
        return Err(ManifestError::Empty.into());
    }
    send(&mut piece)?;
    Ok(Read { files: measure.files, bytes: measure.bytes, failures, skipped: entries.skipped() })
}

/// What `--json` says of a job that ended.
pub(crate) fn job_result(raw: &serde_json::Value, failures: &mut FailureList) -> Result<serde_json::Value, CliError> {
    Ok(json!({ "job": raw, "failures": failures.first()?, "failures_file": failures.path() }))
}
