//! Reads every file of a manifest back over HTTP and compares it with its source, byte for byte by SHA-256.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use des_shared::manifest::{ManifestEntry, ManifestReader};
use des_shared::shard::hex32;
use futures::{StreamExt, stream};
use sha2::{Digest, Sha256};

use crate::client::{Client, next_chunk};
use crate::error::CliError;
use crate::output::{Measure, Screen};

/// Files read back side by side.
const READERS: usize = 16;
/// Differences kept for the report.
const SHOWN: usize = 20;
/// Entries of the manifest read ahead.
const AHEAD: usize = 256;

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Files asked for.
    pub(super) asked: u64,
    /// Files that were served.
    pub(super) served: u64,
    /// Files whose bytes are those of the source.
    pub(super) equal: u64,
    /// Bytes served.
    pub(super) bytes: u64,
    /// The first few that were not served or differ, and why.
    pub(super) wrong: Vec<String>,
    /// How long reading took.
    pub(super) took: Duration,
}

enum Verdict {
    Equal(u64),
    Different(u64, String),
    NotServed(String),
}

/// Reads back and compares every file of the manifest at `path`.
///
/// # Errors
/// When the manifest cannot be read. A file that differs is a finding, not an error.
pub(super) async fn compare(
    client: &Client,
    path: &Path,
    total: (u64, u64),
    screen: Screen,
) -> Result<Comparison, CliError> {
    let mut meter = screen.meter("reading");
    let started = Instant::now();
    let mut measure = Measure { of_files: Some(total.0), of_bytes: Some(total.1), ..Measure::default() };
    let mut result = Comparison::default();
    let entries = entries(path.to_owned());
    let mut verdicts = pin!(entries.map(|entry| judge(client, entry)).buffer_unordered(READERS));
    while let Some(verdict) = verdicts.next().await {
        result.asked += 1;
        let wrong = match verdict? {
            Verdict::Equal(bytes) => {
                result.served += 1;
                result.equal += 1;
                result.bytes += bytes;
                None
            }
            Verdict::Different(bytes, why) => {
                result.served += 1;
                result.bytes += bytes;
                Some(why)
            }
            Verdict::NotServed(why) => Some(why),
        };
        result.wrong.extend(wrong.filter(|_| result.wrong.len() < SHOWN));
        (measure.files, measure.bytes) = (result.asked, result.bytes);
        meter.set(&measure);
    }
    meter.finish();
    result.took = started.elapsed();
    Ok(result)
}

/// The entries of a manifest, read on a thread of its own.
fn entries(path: PathBuf) -> impl futures::Stream<Item = Result<ManifestEntry, CliError>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(AHEAD);
    // Ends with the manifest, or when nobody listens any more.
    drop(tokio::task::spawn_blocking(move || {
        let read = || -> Result<(), CliError> {
            let file = File::open(&path).map_err(|e| CliError::path("open", &path, &e))?;
            for item in ManifestReader::new(BufReader::new(file))? {
                if sender.blocking_send(Ok(item?.1)).is_err() {
                    break;
                }
            }
            Ok(())
        };
        if let Err(error) = read() {
            drop(sender.blocking_send(Err(error)));
        }
    }));
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

async fn judge(client: &Client, entry: Result<ManifestEntry, CliError>) -> Result<Verdict, CliError> {
    let entry = entry?;
    let (served, source) = tokio::join!(fetch(client, &entry), source_hash(entry.source_path.clone()));
    Ok(match (served, source) {
        (Err(error), _) => Verdict::NotServed(format!("{}: {error}", entry.uid)),
        (Ok((bytes, _)), Err(error)) => {
            Verdict::Different(bytes, format!("{}: its source cannot be read again: {error}", entry.uid))
        }
        (Ok((bytes, served)), Ok(source)) if served == source => Verdict::Equal(bytes),
        (Ok((bytes, served)), Ok(source)) => {
            let text = format!("{}: served SHA-256 {}, the source has {}", entry.uid, hex32(&served), hex32(&source));
            Verdict::Different(bytes, text)
        }
    })
}

async fn fetch(client: &Client, entry: &ManifestEntry) -> Result<(u64, [u8; 32]), CliError> {
    let mut response = client.get(client.file_url(entry.uid.as_str(), entry.created_at.as_str())?).await?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(piece) = next_chunk(client, &mut response).await? {
        hash.update(&piece);
        size += piece.len() as u64;
    }
    Ok((size, hash.finalize().into()))
}

async fn source_hash(path: String) -> io::Result<[u8; 32]> {
    let hashing = tokio::task::spawn_blocking(move || {
        let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 64 * 1024]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hash.finalize().into()),
                Ok(n) => hash.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    });
    hashing.await.unwrap_or_else(|e| Err(io::Error::other(e)))
}
