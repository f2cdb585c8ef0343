//! The main story of the whole system: submit a corpus, kill a worker in the middle, wait, read every file back over
//! HTTP and compare.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use des_shared::ids::JobId;
use des_shared::job::{JobState, JobView};
use des_shared::routing::{NBits, shard_index};
use futures::{StreamExt, stream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::Instant;

use crate::cluster::{Cluster, N_BITS, ZONE_NAMES, program};
use crate::corpus::{Corpus, CorpusFile};

/// Requests in flight while reading back.
const READERS: usize = 16;
/// Processes of `des cat` side by side.
const CATS: usize = 4;

/// What happened.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The job when it had ended.
    pub job: JobView,
    /// From the submission to the job's end.
    pub packing: Duration,
    /// Workers killed in the middle.
    pub killed: usize,
    /// Files that came back with the right bytes.
    pub right: usize,
    /// What was wrong with the others, one line each.
    pub wrong: Vec<String>,
    /// How long reading back took.
    pub reading: Duration,
}

/// Why a story could not be told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoryError(pub String);

fn failed(what: &str, why: impl fmt::Display) -> StoryError {
    StoryError(format!("{what}: {why}"))
}

impl Summary {
    /// Whether nothing was lost and nothing came back wrong.
    pub fn is_good(&self) -> bool {
        let files = &self.job.files;
        self.wrong.is_empty()
            && self.job.state == JobState::Completed
            && files.total == Some(files.packed + files.failed)
            && files.failed == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (job, mib) = (&self.job, |bytes: u64| bytes as f64 / f64::from(1 << 20));
        let source = job.bytes.source.unwrap_or(0);
        writeln!(f, "job          {} {:?}", job.id, job.state)?;
        writeln!(
            f,
            "files        {} accepted = {} packed + {} failed",
            job.files.total.unwrap_or(0),
            job.files.packed,
            job.files.failed
        )?;
        writeln!(
            f,
            "bytes        {:.1} MiB in, {:.1} MiB stored, ratio {:.2}",
            mib(source),
            mib(job.bytes.stored),
            source as f64 / job.bytes.stored.max(1) as f64
        )?;
        writeln!(f, "shards       {} ({} given up)", job.shards.committed, job.shards.dead)?;
        writeln!(f, "workers      {} killed in the middle", self.killed)?;
        writeln!(f, "packing      {:.1} s", self.packing.as_secs_f64())?;
        writeln!(
            f,
            "read back    {} right, {} wrong, {:.1} s, {:.0} reads/s",
            self.right,
            self.wrong.len(),
            self.reading.as_secs_f64(),
            (self.right + self.wrong.len()) as f64 / self.reading.as_secs_f64().max(0.001)
        )?;
        self.wrong.iter().take(10).try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Streams the corpus's manifest to the coordinator.
///
/// # Errors
/// When the coordinator does not answer 202.
pub async fn submit(cluster: &Cluster, corpus: &Corpus) -> Result<JobView, StoryError> {
    let body = tokio::fs::read(&corpus.manifest).await.map_err(|e| failed("manifest", e))?;
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/jobs?name=story", cluster.coordinator.url))
        .header("content-type", "application/x-ndjson")
        .body(body)
        .send()
        .await
        .map_err(|e| failed("submit", e))?;
    if answer.status() != reqwest::StatusCode::ACCEPTED {
        return Err(failed("submit", format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default())));
    }
    answer.json().await.map_err(|e| failed("submit", e))
}

/// The job as the coordinator shows it.
///
/// # Errors
/// When the coordinator does not answer 200.
pub async fn show(cluster: &Cluster, job: JobId) -> Result<JobView, StoryError> {
    let url = format!("{}/v1/jobs/{job}", cluster.coordinator.url);
    let answer = reqwest::get(url).await.and_then(reqwest::Response::error_for_status);
    answer.map_err(|e| failed("job", e))?.json().await.map_err(|e| failed("job", e))
}

/// Waits until `enough` holds for the job.
///
/// # Errors
/// When it does not within `within`, or the coordinator fails.
pub async fn wait_for(
    cluster: &Cluster,
    job: JobId,
    within: Duration,
    enough: impl Fn(&JobView) -> bool,
) -> Result<JobView, StoryError> {
    let deadline = Instant::now() + within;
    loop {
        let view = show(cluster, job).await?;
        if enough(&view) {
            return Ok(view);
        }
        if Instant::now() > deadline {
            return Err(failed("job", format!("not there within {within:?}; it is {view:?}")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Packs the corpus, kills a worker once a fifth of the files is packed, reads everything back.
///
/// # Errors
/// When the job does not end, or a service fails in a way that is not a wrong file.
pub async fn pack_kill_and_read_back(cluster: &mut Cluster, corpus: &Corpus) -> Result<Summary, StoryError> {
    let begun = Instant::now();
    let job = submit(cluster, corpus).await?.id;
    let half_way = corpus.files.len() as u64 / 5;
    let patience = Duration::from_mins(15);
    let middle =
        wait_for(cluster, job, patience, |view| view.files.packed >= half_way || view.state.is_final()).await?;
    let mut killed = 0;
    if !middle.state.is_final() && cluster.workers.len() > 1 {
        cluster.workers.remove(0).kill().map_err(|e| failed("kill", e))?;
        killed += 1;
    }
    let view = wait_for(cluster, job, patience, |view| view.state.is_final()).await?;
    let packing = begun.elapsed();
    let begun = Instant::now();
    let (right, wrong) = read_back(&cluster.retriever.url, &corpus.files).await;
    Ok(Summary { job: view, packing, killed, right, wrong, reading: begun.elapsed() })
}

/// Reads files over HTTP and compares their hashes: how many were right, and what was wrong with the others.
pub async fn read_back(retriever: &str, files: &[CorpusFile]) -> (usize, Vec<String>) {
    let client = Arc::new(reqwest::Client::new());
    let answers: Vec<Result<(), String>> = stream::iter(files.to_vec())
        .map(|file| {
            let (client, url) = (client.clone(), file_url(retriever, &file));
            async move { compare(&client, &url, &file).await.map_err(|why| format!("{}: {why}", file.uid)) }
        })
        .buffer_unordered(READERS)
        .collect()
        .await;
    let right = answers.iter().filter(|answer| answer.is_ok()).count();
    (right, answers.into_iter().filter_map(Result::err).collect())
}

/// Reads files with `des cat`, one process each, straight from the zones' buckets, and compares their hashes.
///
/// # Errors
/// When `des` is not built.
pub async fn cat_back(cluster: &Cluster, files: &[CorpusFile]) -> Result<(usize, Vec<String>), StoryError> {
    let des = program("des").map_err(|e| failed("des cat", e))?;
    let answers: Vec<Result<(), String>> = stream::iter(files.to_vec())
        .map(|file| {
            let command = zone_url(cluster, &file).map(|zone| {
                let mut command = Command::new(&des);
                command.args(["cat", &zone, "--n-bits", N_BITS, "--created-at", &file.created_at, "--", &file.uid]);
                command.envs(cluster.s3_env());
                command
            });
            async move {
                let output = command?.output().await.map_err(|e| e.to_string())?;
                let found: [u8; 32] = Sha256::digest(&output.stdout).into();
                if output.status.success() && found == file.sha256 {
                    return Ok(());
                }
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                Err(format!("{}: {} bytes of {}: {said}", file.uid, output.stdout.len(), file.size))
            }
        })
        .buffer_unordered(CATS)
        .collect()
        .await;
    let right = answers.iter().filter(|answer| answer.is_ok()).count();
    Ok((right, answers.into_iter().filter_map(Result::err).collect()))
}

/// Runs `des verify` on both zones: structure, every checksum, every payload.
///
/// # Errors
/// When it does not answer with 0, with what it said.
pub async fn verify_zones(cluster: &Cluster) -> Result<(), StoryError> {
    let des = program("des").map_err(|e| failed("des verify", e))?;
    for (bucket, name) in cluster.buckets.iter().zip(ZONE_NAMES) {
        let zone = format!("s3://{bucket}/{name}");
        let output = Command::new(&des).args(["verify", &zone]).envs(cluster.s3_env()).output().await;
        let output = output.map_err(|e| failed("des verify", e))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            return Err(failed("des verify", format!("{zone}: {}", String::from_utf8_lossy(&said))));
        }
    }
    Ok(())
}

/// The place of the zone that keeps a file.
fn zone_url(cluster: &Cluster, file: &CorpusFile) -> Result<String, String> {
    let bits = N_BITS.parse::<NBits>()?;
    let zone = usize::from(shard_index(&file.uid, bits) >= bits.slots() / 2);
    Ok(format!("s3://{}/{}", cluster.buckets[zone], ZONE_NAMES[zone]))
}

/// The address of a file.
pub fn file_url(retriever: &str, file: &CorpusFile) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    format!("{retriever}/files/{}?created_at={}", encode(&file.uid), encode(&file.created_at))
}

async fn compare(client: &reqwest::Client, url: &str, file: &CorpusFile) -> Result<(), String> {
    let answer = client.get(url).send().await.map_err(|e| e.to_string())?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("{status}: {}", answer.text().await.unwrap_or_default()));
    }
    let (mut hash, mut size, mut body) = (Sha256::new(), 0, answer.bytes_stream());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| e.to_string())?;
        size += chunk.len() as u64;
        hash.update(&chunk);
    }
    let found: [u8; 32] = hash.finalize().into();
    if size != file.size || found != file.sha256 {
        return Err(format!("{size} bytes came back, {} were packed, and the hashes differ", file.size));
    }
    Ok(())
}
