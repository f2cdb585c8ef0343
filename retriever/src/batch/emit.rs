//! The files of a batch, one after the other, to the client; and at the end a report of what became of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_shared::archive::ArchiveError;
use des_shared::offload;
use des_shared::safe_name::RESERVED;
use des_shared::service::Problem;
use futures::StreamExt;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::Batch;
use super::asked::Asked;
use super::form::{Archive, Member};
use super::patience::{Patience, zone_of};
use super::plan::Planner;
use super::read::{Reader, Ready, Window};
use crate::error::Error;
use crate::locate::Located;
use crate::metrics::RetrieverMetrics;
use crate::places::Replica;
use crate::represent;
use crate::serve::{Answer, Body, Files, Wanted};

/// Pieces of an answer have about this many bytes.
pub(super) const PIECE: usize = 64 << 10;
/// What is this long is sent as it is, without being copied.
const LARGE: usize = 16 << 10;
/// How often a file is tried when the memory for large files is in use.
const TRIES: usize = 6;

/// Why an answer is broken off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Bytes that were sent in part turned out wrong, or the store failed.
    #[error("file {uid:?}: {source}")]
    File { uid: String, source: ArchiveError },
    /// A stream had another length than its file.
    #[error("file {uid:?} ended after {seen} of {size} bytes")]
    Length { uid: String, seen: u64, size: u64 },
    #[error("the client took nothing for {} s", .0.as_secs())]
    Stalled(Duration),
    #[error("the client went away")]
    Gone,
    #[error("a defect: {0}")]
    Panicked(String),
}

/// Where an answer goes, in pieces.
pub(super) struct Out {
    pieces: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
    stall: Duration,
}

impl Out {
    pub(super) fn new(pieces: mpsc::Sender<Bytes>, stall: Duration) -> Self {
        Self { pieces, buffer: Vec::new(), stall }
    }

    /// A piece of a file.
    async fn bytes(&mut self, bytes: Bytes) -> Result<(), Broken> {
        if bytes.len() < LARGE {
            self.buffer.extend_from_slice(&bytes);
            return self.grown().await;
        }
        self.flush().await?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE));
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Something was appended to the buffer.
    async fn grown(&mut self) -> Result<(), Broken> {
        if self.buffer.len() >= PIECE { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE + LARGE));
        self.send(full.into()).await
    }

    async fn send(&mut self, piece: Bytes) -> Result<(), Broken> {
        match tokio::time::timeout(self.stall, self.pieces.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Broken::Gone),
            Err(_) => Err(Broken::Stalled(self.stall)),
        }
    }
}

/// What became of a file: a line of the report.
#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    uid: &'a str,
    created_at: &'a str,
    status: u16,
    /// Where it is in this answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    /// Why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a Problem>,
}

/// Answers a batch to its end.
pub(super) async fn run(batch: Batch, (budget, patience): (Arc<Semaphore>, Patience), out: Out) -> Result<(), Broken> {
    let Batch { files, metrics, asked, form, boundary } = batch;
    let asked = Arc::new(asked);
    let planner = Planner::new(files.clone(), asked.clone(), patience.clone());
    let (reading, counting) = (patience.clone(), metrics.clone());
    let reader = Reader { planner, files: files.clone(), budget, patience: reading, metrics: counting };
    let read = |reader: Reader| AbortOnDropHandle::new(offload::spawn(reader.window()));
    let archive = form.archive(boundary);
    let (report, counts) = (Vec::new(), BTreeMap::new());
    let mut sender = Sender { files, metrics, asked, patience, archive, out, report, counts };
    let mut next = read(reader);
    loop {
        let (reader, window) = next.await.map_err(|e| Broken::Panicked(e.to_string()))?;
        if window.files.is_empty() {
            break;
        }
        next = read(reader);
        sender.window(window).await?;
    }
    sender.finish().await
}

/// Sends files.
struct Sender {
    files: Arc<Files>,
    metrics: RetrieverMetrics,
    asked: Arc<Vec<Asked>>,
    patience: Patience,
    archive: Box<dyn Archive>,
    out: Out,
    report: Vec<u8>,
    /// How many had which status.
    counts: BTreeMap<u16, usize>,
}

/// A file that is there.
struct Good<'a> {
    content_type: &'a str,
    size: u64,
    body: Body,
}

/// The answer to one file. A batch has time: it may wait longer for memory than a single request.
async fn in_time(files: &Files, patience: &Patience, (asked, wanted): (&Asked, &Wanted)) -> Result<Answer, Error> {
    let zone = zone_of(files, asked)?;
    let mut answer = patience.within(zone, files.answer(wanted)).await;
    for _ in 1..TRIES {
        if !matches!(answer, Err(Error::Busy)) {
            break;
        }
        answer = patience.within(zone, files.answer(wanted)).await;
    }
    answer
}

impl Sender {
    async fn window(&mut self, window: Window) -> Result<(), Broken> {
        let asked = self.asked.clone();
        for (index, ready) in (window.first..).zip(window.files) {
            let asked = &asked[index];
            match ready {
                Ready::Stored(replica, located, stored) => {
                    self.stored(index, asked, (&replica, &located, stored)).await?;
                }
                Ready::Raw(located, bytes) => {
                    let content_type = represent::content_type(&located.entry);
                    let size = bytes.len() as u64;
                    self.good(index, asked, Good { content_type: &content_type, size, body: Body::Bytes(bytes) })
                        .await?;
                }
                Ready::Alone => self.alone(index, asked).await?,
                Ready::Failed(error) => self.failed(index, asked, &error).await?,
            }
        }
        // What is ready is not kept waiting for the next reads.
        self.out.flush().await
    }

    async fn stored(
        &mut self,
        index: usize,
        asked: &Asked,
        (replica, located, stored): (&Replica, &Located, Bytes),
    ) -> Result<(), Broken> {
        match self.files.fetcher.decode(located, stored).await {
            Ok(bytes) => {
                let content_type = represent::content_type(&located.entry);
                let good = Good { content_type: &content_type, size: bytes.len() as u64, body: Body::Bytes(bytes) };
                self.good(index, asked, good).await
            }
            Err(error) => {
                let error = Error::at_zone(&replica.zone, located.shard.damaged(error));
                tracing::warn!("a file is read again by itself: {error}");
                self.metrics.batch_file_read_again();
                self.alone(index, asked).await
            }
        }
    }

    /// As a single request is answered, with all its means.
    async fn alone(&mut self, index: usize, asked: &Asked) -> Result<(), Broken> {
        let wanted = Wanted::whole(asked.uid.clone(), asked.created_at.clone());
        let (files, patience) = (self.files.clone(), self.patience.clone());
        match in_time(&files, &patience, (asked, &wanted)).await {
            Ok(answer) => {
                let good = Good { content_type: &answer.content_type, size: answer.length, body: answer.body };
                self.good(index, asked, good).await
            }
            Err(error) => self.failed(index, asked, &error).await,
        }
    }

    async fn good(&mut self, index: usize, asked: &Asked, good: Good<'_>) -> Result<(), Broken> {
        let name = asked.name(index);
        let Good { content_type, size, body } = good;
        let member = Member {
            name: &name,
            size,
            whole: match &body {
                Body::Empty => Some(&[]),
                Body::Bytes(bytes) => Some(bytes),
                Body::Stream(_) => None,
            },
            index: Some(index),
            status: 200,
            content_type,
            created_at: Some(&asked.created_at),
        };
        self.archive.begin(&member, &mut self.out.buffer);
        self.body(asked, size, body).await?;
        self.archive.end(&mut self.out.buffer);
        self.note(index, asked, 200, (Some((&name, size)), None));
        self.out.grown().await
    }

    async fn body(&mut self, asked: &Asked, size: u64, body: Body) -> Result<(), Broken> {
        let uid = || crate::serve::shown(&asked.uid);
        let mut stream = match body {
            Body::Empty => return Ok(()),
            Body::Bytes(bytes) => {
                self.archive.passed(&bytes);
                return self.out.bytes(bytes).await;
            }
            Body::Stream(stream) => stream,
        };
        let mut seen = 0;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|source| {
                self.metrics.answer_broken_off();
                Broken::File { uid: uid(), source }
            })?;
            seen += piece.len() as u64;
            self.archive.passed(&piece);
            self.out.bytes(piece).await?;
        }
        if seen == size { Ok(()) } else { Err(Broken::Length { uid: uid(), seen, size }) }
    }

    async fn failed(&mut self, index: usize, asked: &Asked, error: &Error) -> Result<(), Broken> {
        let status = error.status().as_u16();
        if status >= 500 && !self.counts.contains_key(&status) {
            // The first stands for the others: they have the same reason most of the time, and may be thousands.
            tracing::warn!(status, "a file of a batch is not served: {error}");
        }
        let problem = error.problem();
        if self.archive.has_failures() {
            let body = serde_json::to_vec(&problem).expect("strings and numbers always encode");
            let name = asked.name(index);
            let member = Member {
                name: &name,
                size: body.len() as u64,
                whole: Some(&body),
                index: Some(index),
                status,
                content_type: "application/problem+json",
                created_at: Some(&asked.created_at),
            };
            self.archive.begin(&member, &mut self.out.buffer);
            self.out.bytes(body.into()).await?;
            self.archive.end(&mut self.out.buffer);
        }
        self.note(index, asked, status, (None, Some(&problem)));
        self.out.grown().await
    }

    fn note(
        &mut self,
        index: usize,
        asked: &Asked,
        status: u16,
        (there, problem): (Option<(&str, u64)>, Option<&Problem>),
    ) {
        let line = Line {
            index,
            uid: &asked.uid,
            created_at: asked.created_at.as_str(),
            status,
            name: there.map(|(name, _)| name),
            size_bytes: there.map(|(_, size)| size),
            problem,
        };
        serde_json::to_writer(&mut self.report, &line).expect("strings and numbers always encode");
        self.report.push(b'\n');
        *self.counts.entry(status).or_default() += 1;
        self.metrics.batch_file(status);
    }

    async fn finish(mut self) -> Result<(), Broken> {
        let report = std::mem::take(&mut self.report);
        let member = Member {
            name: &format!("{RESERVED}/report.ndjson"),
            size: report.len() as u64,
            whole: Some(&report),
            index: None,
            status: 200,
            content_type: "application/x-ndjson",
            created_at: None,
        };
        self.archive.begin(&member, &mut self.out.buffer);
        self.archive.passed(&report);
        self.out.bytes(report.into()).await?;
        self.archive.end(&mut self.out.buffer);
        self.archive.finish(&mut self.out.buffer);
        self.out.flush().await?;
        tracing::debug!(files = self.asked.len(), counts = ?self.counts, "a batch was answered");
        Ok(())
    }
}
