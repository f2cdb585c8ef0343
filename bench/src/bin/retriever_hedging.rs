//! What second calls save and cost, on a real `SeaweedFS`: some of a hundred reads are slowed, and the same reads are made
//! with and without them, in turn.
//!
//! `cargo run --release -p des-bench --bin retriever_hedging`

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use des_bench::latency::LatencyProxy;
use des_shared::archive::RecordingStore;
use des_shared::clock::Dice;
use des_shared::metrics::Metrics;
use des_shared::store::faults::{FaultStore, Odds};
use des_shared::store::guarded::{GuardMetrics, GuardOptions, GuardedStore};
use des_shared::store::s3::{S3Config, S3Store};
use des_shared::store::{ByteRange, ObjectStore, SharedStore, WriteOptions};
use des_tests::servers::SeaweedFs;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const OBJECT_BYTES: u64 = 4 << 20;

#[derive(Debug, Parser)]
#[command(about = "Measures reads of a store some of whose calls are slow, with and without second calls")]
struct Args {
    /// Reads of a run
    #[arg(long, default_value_t = 30_000)]
    reads: usize,
    /// Reads side by side
    #[arg(long, default_value_t = 16)]
    readers: usize,
    /// Bytes of a read
    #[arg(long, default_value_t = 2048)]
    bytes: u64,
    /// Slowed reads of a thousand
    #[arg(long, default_value_t = 20)]
    slow: u16,
    /// How many times as long they take
    #[arg(long, default_value_t = 50)]
    factor: u32,
    /// Round trip to the store in milliseconds, added to its own
    #[arg(long, default_value_t = 10)]
    round_trip_ms: u64,
    /// Second calls of a hundred
    #[arg(long, default_value_t = 3.0)]
    percent: f64,
    /// Pairs of runs
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let server = SeaweedFs::start().await?;
    let proxy = LatencyProxy::start(server.port(), Duration::from_millis(args.round_trip_ms)).await?;
    let endpoint_url = Some(format!("http://127.0.0.1:{}", proxy.port()));
    let config = S3Config { endpoint_url, ..server.config(&server.new_bucket().await?) };
    let store: SharedStore = Arc::new(S3Store::connect(&config).await?);
    let content: Bytes = (0..OBJECT_BYTES).map(|at| (at % 251) as u8).collect::<Vec<u8>>().into();
    store.put("shard", content.clone(), &WriteOptions::create_only()).await?;
    for round in 1..=args.rounds {
        let without = run(&args, &store, &content, 0.0).await?;
        let with = run(&args, &store, &content, args.percent / 100.0).await?;
        println!("round {round}: p99.9 {:.1} times as long without", without / with);
    }
    Ok(())
}

/// Reads and compares; the answer is p99.9 in milliseconds.
async fn run(args: &Args, store: &SharedStore, content: &Bytes, share: f64) -> Result<f64, Failure> {
    let odds = Odds { slow: args.slow, factor: args.factor, ..Odds::default() };
    let faults = Arc::new(FaultStore::random(store.clone(), odds, Arc::new(Dice::seeded(7))));
    let recording = Arc::new(RecordingStore::new(faults));
    let metrics = GuardMetrics::register(Metrics::new().registry())?;
    // Nothing but second calls: the rest of the guard has no part in this.
    let timeout = Duration::from_mins(5);
    let options = GuardOptions { hedge_share: share, timeout, ..GuardOptions::default() };
    let dice = Arc::new(Dice::seeded(8));
    let guarded = Arc::new(GuardedStore::new(recording.clone(), ("zone", "own"), options, &metrics, dice));
    let left = Arc::new(AtomicUsize::new(args.reads));
    let readers: Vec<_> = (0..args.readers as u64)
        .map(|reader| {
            let (guarded, left, content, bytes) = (guarded.clone(), left.clone(), content.clone(), args.bytes);
            tokio::spawn(async move {
                let (mut took, mut at) = (Vec::new(), reader * 10_007);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    at = (at + 65_537) % (OBJECT_BYTES - bytes);
                    let began = Instant::now();
                    let read = guarded.get("shard", ByteRange::Span(at..at + bytes)).await?;
                    took.push(began.elapsed());
                    if read.bytes != content[at as usize..(at + bytes) as usize] {
                        return Err(format!("{bytes} bytes at {at} came back wrong").into());
                    }
                }
                Ok::<_, Failure>(took)
            })
        })
        .collect();
    let mut took = Vec::with_capacity(args.reads);
    for reader in readers {
        took.extend(reader.await??);
    }
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000].as_secs_f64() * 1000.0;
    let calls = recording.take().len();
    let extra = (calls - took.len()) as f64 * 100.0 / took.len() as f64;
    let (p50, p99, p999) = (at(500), at(990), at(999));
    println!(
        "{:>4} %: {} reads, {calls} calls ({extra:.2} % more), p50 {p50:.1} ms, p99 {p99:.1} ms, p99.9 {p999:.1} ms",
        share * 100.0,
        took.len()
    );
    Ok(p999)
}
