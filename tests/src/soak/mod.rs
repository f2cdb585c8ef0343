//! A soak: one real retriever in front of a real S3 server that answers badly now and then, mixed requests for as long as
//! one likes, every byte compared, every wrong byte of the store accounted for, memory watched.
//!
//! The accounts: a payload with a wrong byte that reached the retriever is a 502 of a single request, a 502 of a file of a
//! batch, or a file of a batch that was read again by itself; 502s of big files are taken off, whose damage is found
//! block by block when a range is asked for. Second calls and a cache of files would blur that (the
//! answer nobody waited for; one read for many requests), so both are off unless asked for.

mod faults;
mod files;
mod load;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use des_shared::store::SharedStore;
use des_shared::store::s3::S3Store;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::Service;
use crate::servers::SeaweedFs;

pub use faults::{Counts, FaultProxy, Odds};
pub use load::Seen;

use files::Files;
use load::{DELETER, Load};

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_secs(1);
/// How much more memory the last quarter may take than the second one: by this factor in percent, and these KiB.
const GROWTH_PERCENT: u64 = 115;
const GROWTH_KIB: u64 = 16 * 1024;

/// What a soak does.
#[derive(Clone, Debug)]
pub struct SoakOptions {
    /// Of everything random.
    pub seed: u64,
    /// How long there are requests.
    pub length: Duration,
    /// Files in the store.
    pub files: usize,
    /// Clients side by side.
    pub clients: usize,
    /// What goes wrong how often.
    pub odds: Odds,
    /// Leave second calls and the cache of files as they are shipped.
    pub as_shipped: bool,
    /// Leaves the retriever's log, with every damage it met, and `wrong.txt`, the requests that got a wrong byte, in this
    /// folder, which must be there.
    pub keep: Option<PathBuf>,
}

/// Why a soak could not be made.
#[derive(Debug, thiserror::Error)]
#[error("soak: {0}")]
pub struct SoakError(pub String);

fn failed(what: &str, why: impl fmt::Display) -> SoakError {
    SoakError(format!("{what}: {why}"))
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// What the clients saw.
    pub seen: Seen,
    /// What went wrong at the store, by name.
    pub injected: BTreeMap<&'static str, u64>,
    /// The retriever's own counters at the end.
    pub metrics: Vec<(String, f64)>,
    /// Resident memory in KiB, once a second.
    pub memory: Vec<u64>,
    /// Whether the accounts must be exact.
    pub exact: bool,
    /// Source bytes in the store.
    pub stored: u64,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// The sum of a counter over the series whose labels contain `label`.
    #[expect(clippy::cast_sign_loss, reason = "counters are not below zero")]
    fn metric(&self, name: &str, label: &str) -> u64 {
        let of = |series: &str| series.split('{').next() == Some(name) && series.contains(label);
        self.metrics.iter().filter(|(series, _)| of(series)).map(|(_, value)| *value).sum::<f64>() as u64
    }

    /// Wrong payloads that the retriever found, as it counted them. Big files have an account of their own.
    pub fn found(&self) -> u64 {
        let all = self.metric("des_retrievals_total", "status=\"502\"")
            + self.metric("des_batch_files_total", "status=\"502\"")
            + self.metric("des_batch_files_read_again_total", "");
        all.saturating_sub(self.seen.big_refused)
    }

    fn median(&self, quarter: usize) -> u64 {
        let len = self.memory.len() / 4;
        let mut part = self.memory.get(quarter * len..(quarter + 1) * len).unwrap_or_default().to_vec();
        part.sort_unstable();
        part.get(part.len() / 2).copied().unwrap_or(0)
    }

    /// Everything that is not as it must be, one line each.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.seen.described.clone();
        let more = self.seen.wrong.saturating_sub(problems.len() as u64);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        let mut equal = |what: &str, one: u64, other: u64| {
            if one != other {
                problems.push(format!("{what}: {one} and {other}"));
            }
        };
        let told = self.metric("des_retrievals_total", "status=\"502\"");
        equal("502s seen by clients and counted", self.seen.singles(502), told);
        let broken = self.metric("des_responses_broken_off_total", "");
        equal("answers broken off as clients saw it and counted", self.seen.broken_off, broken);
        let corrupted = self.injected["payloads with a wrong byte"];
        if self.exact {
            equal("payloads with a wrong byte injected and found", corrupted, self.found());
        }
        let (before, after) = (self.median(1), self.median(3));
        if after > before * GROWTH_PERCENT / 100 + GROWTH_KIB {
            problems.push(format!("memory grew from {before} KiB in the second quarter to {after} KiB in the last"));
        }
        problems
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        let all: u64 = self.seen.requests.values().sum();
        writeln!(f, "load         {all} requests in {seconds:.0} s, {:.0} a second", all as f64 / seconds)?;
        let mut kinds: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((kind, status), count) in &self.seen.requests {
            kinds.entry(kind).or_default().push(format!("{status}: {count}"));
        }
        for (kind, statuses) in kinds {
            writeln!(f, "  {kind:<12} {}", statuses.join("  "))?;
        }
        let of: Vec<String> =
            self.seen.batch_files.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        writeln!(f, "  batch files  {}", of.join("  "))?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "compared     {:.0} MiB (the store holds {:.0} MiB)", mib(self.seen.bytes), mib(self.stored))?;
        writeln!(f, "injected")?;
        for (what, count) in &self.injected {
            writeln!(f, "  {count:>8} {what}")?;
        }
        writeln!(
            f,
            "accounts     {} payloads with a wrong byte; found: {} single requests 502, {} files of batches 502, {} files of batches read again",
            self.injected["payloads with a wrong byte"],
            self.metric("des_retrievals_total", "status=\"502\""),
            self.metric("des_batch_files_total", "status=\"502\""),
            self.metric("des_batch_files_read_again_total", "")
        )?;
        writeln!(
            f,
            "             {} big files with a wrong byte; {} answers broken off, {} answered 502 before their first byte",
            self.injected["big files with a wrong byte"], self.seen.broken_off, self.seen.big_refused
        )?;
        let step = self.memory.len().div_ceil(12).max(1);
        let curve: Vec<String> = self.memory.iter().step_by(step).map(|kib| format!("{}", kib / 1024)).collect();
        writeln!(f, "memory       MiB over time: {}", curve.join(" "))?;
        let peak = self.memory.iter().max().copied().unwrap_or(0) / 1024;
        writeln!(
            f,
            "             second quarter {} MiB, last {} MiB, peak {peak} MiB",
            self.median(1) / 1024,
            self.median(3) / 1024
        )?;
        let problems = self.problems();
        writeln!(f, "wrong        {}", problems.len())?;
        problems.iter().take(30).try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Runs a soak.
///
/// # Errors
/// When servers or the retriever cannot be started; what went wrong under load is in the report.
pub async fn run(options: SoakOptions) -> Result<Report, SoakError> {
    let s3 = SeaweedFs::shared().await.map_err(|e| failed("S3", e))?;
    let bucket = s3.new_bucket().await.map_err(|e| failed("bucket", e))?;
    let store = S3Store::connect(&s3.config(&bucket)).await.map_err(|e| failed("store", e))?;
    let store: SharedStore = Arc::new(store);
    let files = Files::store(&store, options.files, options.seed).await?;
    let proxy = FaultProxy::start(s3.port(), options.odds, files.data_ends.clone(), options.seed).await;
    let proxy = proxy.map_err(|e| failed("proxy", e))?;
    let folder = tempfile::Builder::new().prefix("des-soak-").tempdir().map_err(|e| failed("folder", e))?;
    let mut env = environment(&bucket, proxy.port(), options.as_shipped);
    if options.keep.is_some() {
        env.push(("DES_LOG".to_owned(), "warn,des_shared=info".to_owned()));
    }
    let home = options.keep.as_deref().unwrap_or(folder.path());
    let retriever = Service::start(home, "des-retriever", "retriever", &env).await;
    let retriever = retriever.map_err(|e| failed("retriever", e))?;
    let stored = files.bytes;
    let (began, memory) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let load = Arc::new(Load {
        files,
        base: retriever.url.clone(),
        http: reqwest::Client::new(),
        seen: Mutex::default(),
        until: began + options.length,
    });
    proxy.arm(true);
    let mut clients = JoinSet::new();
    for number in 0..options.clients {
        clients.spawn(load.clone().client(options.seed.wrapping_add(number as u64)));
    }
    let watching = watch(retriever.pid(), memory.clone());
    tokio::select! {
        never = watching => return Err(never),
        () = async { while clients.join_next().await.is_some() {} } => {}
    }
    proxy.arm(false);
    let took = began.elapsed();
    let metrics = metrics(&retriever.url).await?;
    if let Some(folder) = &options.keep {
        let lines = proxy.wrong().join("\n") + "\n";
        std::fs::write(folder.join("wrong.txt"), lines).map_err(|e| failed("wrong.txt", e))?;
    }
    let seen = load.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let memory = memory.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Report { seen, injected: injected(proxy.counts()), metrics, memory, exact: !options.as_shipped, stored, took })
}

fn environment(bucket: &str, port: u16, as_shipped: bool) -> Vec<(String, String)> {
    let (access, secret) = SeaweedFs::credentials();
    let endpoint = format!("http://127.0.0.1:{port}");
    let n_bits = files::N_BITS.to_string();
    let mut env = vec![
        ("DES_BACKEND", "s3"),
        ("DES_S3_BUCKET", bucket),
        ("DES_S3_REGION", "us-east-1"),
        ("DES_S3_ENDPOINT_URL", &endpoint),
        ("DES_N_BITS", &n_bits),
        ("DES_LISTEN", "127.0.0.1:0"),
        ("DES_LOG_FORMAT", "json"),
        ("DES_LOG", "error,des_shared=info"),
        ("DES_DELETE_API_KEY", DELETER),
        // Little, so that indexes are read again and again.
        ("DES_CACHE_BYTES", "1048576"),
        ("DES_LISTING_TTL_SECONDS", "2"),
        ("AWS_ACCESS_KEY_ID", access),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    if !as_shipped {
        env.extend([("DES_HEDGE_PERCENT", "0"), ("DES_PAYLOAD_CACHE_BYTES", "0")]);
    }
    env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Looks at a process's memory for as long as it runs. Returns only when it is gone.
async fn watch(pid: i32, memory: Arc<Mutex<Vec<u64>>>) -> SoakError {
    let mut ticks = tokio::time::interval(SAMPLE);
    loop {
        ticks.tick().await;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let Some(kib) = line.and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok()) else {
            return failed("the retriever", "it is gone");
        };
        memory.lock().unwrap_or_else(PoisonError::into_inner).push(kib);
    }
}

async fn metrics(base: &str) -> Result<Vec<(String, f64)>, SoakError> {
    let answer = reqwest::get(format!("{base}/metrics")).await.map_err(|e| failed("metrics", e))?;
    let text = answer.text().await.map_err(|e| failed("metrics", e))?;
    let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Ok(series.collect())
}

fn injected(counts: &Counts) -> BTreeMap<&'static str, u64> {
    let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    BTreeMap::from([
        ("requests to the store", of(&counts.requests)),
        ("503 SlowDown", of(&counts.slow_downs)),
        ("connections reset", of(&counts.resets)),
        ("answers delayed", of(&counts.slow)),
        ("answers cut short", of(&counts.truncated)),
        ("payloads with a wrong byte", of(&counts.corrupted)),
        ("big files with a wrong byte", of(&counts.corrupted_big)),
    ])
}
