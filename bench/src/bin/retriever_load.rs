//! Load on a retriever: packs made-up files into a folder, starts the retriever as a process of its own over it, sends
//! GETs from many connections, checks what comes back, and prints requests a second, latencies and the peak memory of
//! the server next to the size of its cache.
//!
//! ```text
//! cargo run --release -p des-bench --bin retriever_load -- --files 20000 --connections 64 --seconds 10
//! cargo run --release -p des-bench --bin retriever_load -- --files 64 --file-bytes 10485760 --connections 16
//! ```
//!
//! The allocator is that of `des-retriever`: with glibc's the peak of large files was twice as high.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use des_retriever::{Config, Deps, Retriever};
use des_shared::clock::{Dice, SystemClock};
use des_shared::config::{Values, ZoneSettings};
use des_shared::created_at::CreatedAt;
use des_shared::metrics::Metrics;
use des_shared::routing::{NBits, Slot, candidate_slots};
use des_shared::segment::{CodecChoice, PackOptions};
use des_shared::service::Shutdown;
use des_shared::shard::{Encoder, PackDictionary, ShardWriter, choose_samples};
use des_shared::store::local::LocalStore;
use des_shared::store::zones::Zones;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// The same as in `des-retriever`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const DAY: &str = "2025-03-10T12:00:00Z";

#[derive(Debug, Parser)]
#[command(about = "Measures a retriever under load")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Files to pack
    #[arg(long, default_value_t = 20_000)]
    files: u32,
    /// Size of each file; the median of sizes between an eighth and eight times that with --spread
    #[arg(long, default_value_t = 2_000)]
    file_bytes: usize,
    /// Sizes differ
    #[arg(long)]
    spread: bool,
    /// Connections that send one request after the other
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How long to send
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bits of the shard index
    #[arg(long, default_value_t = 8)]
    n_bits: u8,
    /// Cache of the retriever in bytes
    #[arg(long, default_value_t = 64 << 20)]
    cache_bytes: u64,
    /// Cache of files of the retriever in bytes; 0 so that every request reads
    #[arg(long, default_value_t = 0)]
    payload_cache_bytes: u64,
    /// Compression: auto, none, zstd or lz4
    #[arg(long, default_value = "zstd")]
    codec: CodecChoice,
    /// Folder to pack into; a temporary one when not set
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The server's side; started by the other
    Serve {
        /// Folder of shards
        folder: String,
        /// Bits of the shard index
        n_bits: String,
        /// Cache in bytes
        cache_bytes: String,
        /// Cache of files in bytes
        payload_cache_bytes: String,
    },
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(des_retriever::blocking_threads())
        .enable_all()
        .build()?;
    match &args.role {
        Some(Role::Serve { folder, n_bits, cache_bytes, payload_cache_bytes }) => {
            runtime.block_on(serve(folder, n_bits, (cache_bytes, payload_cache_bytes)))
        }
        None => runtime.block_on(measure(&args)),
    }
}

async fn serve(folder: &str, n_bits: &str, (cache_bytes, payload_cache_bytes): (&str, &str)) -> Result<(), Failure> {
    let pairs = [
        ("DES_BASE_DIR", folder),
        ("DES_N_BITS", n_bits),
        ("DES_CACHE_BYTES", cache_bytes),
        ("DES_PAYLOAD_CACHE_BYTES", payload_cache_bytes),
        ("DES_LISTEN", "127.0.0.1:0"),
    ];
    let mut values = Values::from_pairs(&des_retriever::all_settings(), &pairs);
    let zones = ZoneSettings::read(&mut values);
    let config = Config::read(&mut values, zones.as_ref());
    let config = values.finish(config)?;
    let zones = Arc::new(Zones::single(n_bits.parse()?, Arc::new(LocalStore::open(folder)?)));
    let deps = Deps { zones, clock: Arc::new(SystemClock), dice: Arc::new(Dice::from_os()), metrics: Metrics::new() };
    let running = Retriever::start(config, deps, Shutdown::new()).await?;
    println!("{}", running.local_addr());
    Ok(running.join().await?)
}

/// One file of the load.
struct Sample {
    uid: String,
    length: usize,
    crc32c: u32,
}

async fn measure(args: &Args) -> Result<(), Failure> {
    let temporary = tempfile::tempdir()?;
    let folder = args.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder)?;
    let began = Instant::now();
    let samples = Arc::new(pack(args, &folder)?);
    let raw: usize = samples.iter().map(|s| s.length).sum();
    println!("{} files, {raw} bytes, packed in {:.1} s", samples.len(), began.elapsed().as_secs_f64());
    let (mut child, base) = start(args, &folder).await?;
    for round in ["cold", "warm"] {
        let outcome = load(args, &base, &samples).await?;
        println!("{round}: {outcome}");
    }
    let metrics = reqwest::get(format!("{base}/metrics")).await?.text().await?;
    for line in metrics.lines().filter(|line| line.starts_with("des_cache") || line.starts_with("des_s3_range")) {
        println!("  {line}");
    }
    let peak = peak_memory(child.id())?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("peak memory of the server {:.1} MiB, cache {:.1} MiB", mib(peak), mib(args.cache_bytes));
    child.kill().await?;
    Ok(())
}

/// Packs made-up files, one shard for each slot.
fn pack(args: &Args, folder: &Path) -> Result<Vec<Sample>, Failure> {
    let (mut rng, created_at) = (StdRng::seed_from_u64(7), CreatedAt::parse(DAY)?);
    let n_bits = NBits::new(args.n_bits)?;
    let mut by_slot: BTreeMap<Slot, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    let mut samples = Vec::new();
    let options = PackOptions { codec: args.codec, big_file_threshold_bytes: 64 << 20, ..PackOptions::default() };
    for number in 0..args.files {
        let uid = format!("folder-{}/file-{number}.json", number % 97);
        let length = if args.spread { args.file_bytes * (1 << rng.random_range(0..=6)) / 8 } else { args.file_bytes };
        let raw = text(&mut rng, length);
        samples.push(Sample { uid: uid.clone(), length: raw.len(), crc32c: checksum(&raw) });
        by_slot.entry(candidate_slots(&uid, &created_at, n_bits)[0]).or_default().insert(uid, raw);
        // Large files do not wait for all others.
        if args.file_bytes > 1 << 20 {
            write_all(folder, &options, &mut by_slot, number)?;
        }
    }
    write_all(folder, &options, &mut by_slot, 0)?;
    Ok(samples)
}

fn write_all(
    folder: &Path,
    options: &PackOptions,
    by_slot: &mut BTreeMap<Slot, BTreeMap<String, Vec<u8>>>,
    number: u32,
) -> Result<(), Failure> {
    for (slot, files) in std::mem::take(by_slot) {
        std::fs::write(folder.join(format!("{}{number:04}.des", slot.object_prefix())), shard(options, &files)?)?;
    }
    Ok(())
}

fn shard(options: &PackOptions, files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, Failure> {
    let choice = choose_samples(options, files.iter().map(|(uid, raw)| (uid.as_str(), raw.len() as u64)));
    let dictionary = choice.and_then(|choice| {
        let all: Vec<&Vec<u8>> = files.values().collect();
        let samples: Vec<&[u8]> = choice.files.iter().map(|at| &all[*at][..]).collect();
        choice.train(&samples, options.level)
    });
    let dictionary = dictionary.map(|d| PackDictionary::new(d, options.level).map(Arc::new)).transpose()?;
    let mut writer = ShardWriter::new(options.format, dictionary.as_ref().map(|d| d.bytes()), 1)?;
    let mut encoder = Encoder::new(options, dictionary.clone())?;
    let mut out = writer.header().to_vec();
    for (uid, raw) in files {
        let stored = encoder.encode(uid, raw)?;
        writer.append(uid, &stored.info, None)?;
        out.extend_from_slice(&stored.bytes);
    }
    out.extend_from_slice(&writer.finish()?);
    Ok(out)
}

/// Text that compresses about as source code does.
fn text(rng: &mut StdRng, length: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "return ", "value", " = ", "self.", "index", "(", ")", ";\n", "    ", "length", "if ", "{\n", "}\n", "name",
        "error", ", ",
    ];
    let mut out = Vec::with_capacity(length + 16);
    while out.len() < length {
        if rng.random_ratio(1, 4) {
            out.extend_from_slice(format!("{:x}", rng.random::<u32>()).as_bytes());
        } else {
            out.extend_from_slice(WORDS[rng.random_range(0..WORDS.len())].as_bytes());
        }
    }
    out.truncate(length);
    out
}

fn checksum(bytes: &[u8]) -> u32 {
    des_shared::shard::PayloadInfo::of(des_shared::shard::Codec::None, bytes.len() as u64, bytes).crc32c
}

async fn start(args: &Args, folder: &Path) -> Result<(Child, String), Failure> {
    let folder = folder.to_str().ok_or("the folder's name is not UTF-8")?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["serve", folder, &args.n_bits.to_string(), &args.cache_bytes.to_string()])
        .arg(args.payload_cache_bytes.to_string())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or("no output of the server")?;
    let address = BufReader::new(stdout).lines().next_line().await?.ok_or("the server did not start")?;
    Ok((child, format!("http://{address}")))
}

async fn load(args: &Args, base: &str, samples: &Arc<Vec<Sample>>) -> Result<String, Failure> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(args.connections).build()?;
    let (until, bytes) = (Instant::now() + Duration::from_secs(args.seconds), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let tasks: Vec<_> = (0..args.connections)
        .map(|number| {
            let (client, base, samples, bytes) = (client.clone(), base.to_owned(), samples.clone(), bytes.clone());
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(number as u64);
                let mut took = Vec::new();
                while Instant::now() < until {
                    let sample = &samples[rng.random_range(0..samples.len())];
                    let sent = Instant::now();
                    let response = client.get(format!("{base}/files/{}?created_at={DAY}", sample.uid)).send().await?;
                    let body = response.error_for_status()?.bytes().await?;
                    took.push(sent.elapsed());
                    bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
                    if body.len() != sample.length || checksum(&body) != sample.crc32c {
                        return Err(format!("{} came back wrong", sample.uid).into());
                    }
                }
                Ok::<_, Failure>(took)
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    let seconds = began.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    Ok(format!(
        "{} requests, {:.0}/s, {:.1} MiB/s, p50 {:.2} ms, p99 {:.2} ms",
        took.len(),
        took.len() as f64 / seconds,
        bytes.load(Ordering::Relaxed) as f64 / seconds / f64::from(1 << 20),
        at(50),
        at(99)
    ))
}

/// The highest resident memory of a process so far, in bytes.
fn peak_memory(process: Option<u32>) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.ok_or("the server is gone")?))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kib * 1024)
}
