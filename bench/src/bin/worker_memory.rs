//! Peak memory and speed of packing: shards of about 1 GB each, as many side by side as a worker has slots, into a folder.
//!
//! The files are generated (the same bytes on every machine) by this process and packed by a child of its own, so that
//! the peak is that of packing alone. Prints one line of JSON for each kind of options.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use des_shared::config::SourceRoots;
use des_shared::ids::{JobId, TaskId, Uid};
use des_shared::routing::{NBits, ShardDate, Slot};
use des_shared::segment::{CodecChoice, PackOptions, Segment, SegmentFile, ShardFormat};
use des_shared::store::SharedStore;
use des_shared::store::local::LocalStore;
use des_worker::pack::{NoHooks, PackJob, PackLimits, Packed, pack_segment};
use des_worker::source::{SourceOpener, Sources};
use tokio_util::sync::CancellationToken;

/// What the shard is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mix {
    /// Small records, documents, images and a few big files.
    Mixed,
    /// Files just below the big-file threshold that do not compress: the largest buffers there can be.
    Large,
    /// Records of about 1 KB: the most rows and the most system calls.
    Tiny,
}

/// Measures the peak memory of packing.
#[derive(Debug, Parser)]
struct Args {
    /// Source bytes of each shard.
    #[arg(long, default_value_t = 1_000_000_000)]
    bytes: u64,
    /// Shards packed side by side; one a core when not given.
    #[arg(long)]
    slots: Option<u32>,
    /// What the files are like.
    #[arg(long, value_enum, default_value = "mixed")]
    mix: Mix,
    /// Shard format.
    #[arg(long, default_value = "v3")]
    format: ShardFormat,
    /// Codec.
    #[arg(long, default_value = "zstd")]
    codec: CodecChoice,
    /// Where temporary files go.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Used by the program itself: pack what is in this folder.
    #[arg(long, hide = true)]
    pack: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if let Some(dir) = &args.pack {
        return pack(&args, dir);
    }
    let dir = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let sources = dir.path().join("src");
    std::fs::create_dir_all(&sources)?;
    std::fs::create_dir_all(dir.path().join("out"))?;
    generate(&sources, args.bytes, args.mix)?;
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["--pack".as_ref(), dir.path().as_os_str()]).args(["--format", &args.format.to_string()]);
    child.args(["--codec", &args.codec.to_string()]);
    if let Some(slots) = args.slots {
        child.args(["--slots", &slots.to_string()]);
    }
    let status = child.status()?;
    if status.success() { Ok(()) } else { Err(format!("packing failed: {status}").into()) }
}

/// A small generator of its own: the corpus must not change with a library.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn between(&mut self, low: u64, high: u64) -> usize {
        (low + self.next() % (high - low)) as usize
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 8] = ["invoice", "customer", "amount", "approved", "pending", "warehouse", "2024", "total"];
        let mut text = String::with_capacity(len + 64);
        while text.len() < len {
            let (n, word) = (self.next(), WORDS[(self.next() % 8) as usize]);
            writeln!(text, "{{\"id\":{},\"kind\":\"{word}\",\"value\":{}}}", n % 1_000_000, n % 997).expect("a string");
        }
        text.truncate(len);
        text.into_bytes()
    }
}

/// Writes files of together about `bytes`.
fn generate(dir: &Path, bytes: u64, mix: Mix) -> Result<(), Box<dyn Error>> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut written, mut count) = (0, 0_u32);
    while written < bytes {
        let (name, content) = match (mix, count % 1000) {
            (Mix::Tiny, _) => {
                let len = numbers.between(200, 2000);
                ("json", numbers.text(len))
            }
            (Mix::Large, _) => {
                let len = numbers.between(9 << 20, 10 << 20);
                ("bin", numbers.noise(len))
            }
            (Mix::Mixed, 999) => {
                let len = numbers.between(20 << 20, 30 << 20);
                ("bin", numbers.noise(len))
            }
            (Mix::Mixed, 950..) => {
                let len = numbers.between(500_000, 9_000_000);
                ("log", numbers.text(len))
            }
            (Mix::Mixed, 900..950) => {
                let len = numbers.between(100_000, 1_000_000);
                ("jpg", numbers.noise(len))
            }
            (Mix::Mixed, _) => {
                let len = numbers.between(100, 20_000);
                ("json", numbers.text(len))
            }
        };
        let folder = dir.join(format!("{:03}", count / 1000));
        if count % 1000 == 0 {
            std::fs::create_dir(&folder)?;
        }
        std::fs::write(folder.join(format!("{count:07}.{name}")), &content)?;
        written += content.len() as u64;
        count += 1;
    }
    Ok(())
}

fn segment(dir: &Path, number: u32, options: PackOptions) -> Result<Segment, Box<dyn Error>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    folders.sort();
    for folder in folders {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            files.push(SegmentFile {
                uid: Uid::new(entry.path().strip_prefix(dir)?.to_string_lossy())?,
                created_at: "2024-03-01T00:00:00Z".to_owned(),
                size_bytes: entry.metadata()?.len(),
                source: entry.path().to_string_lossy().into_owned(),
            });
        }
    }
    let slot = Slot { date: ShardDate { year: 2024, month: 3, day: 1 }, index: 0, n_bits: NBits::default() };
    let task = TaskId { job: JobId::from_parts(1_700_000_000_000, [0; 10]), number };
    Ok(Segment { task, slot, number, sequence: 1_700_000_000_000, options, files: files.into() })
}

fn pack(args: &Args, dir: &Path) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let slots = args.slots.unwrap_or_else(des_worker::config::default_slots);
    let sources = dir.join("src");
    let (base, began) = (peak_rss()?, Instant::now());
    let packed = runtime.block_on(async {
        let roots = SourceRoots { folders: vec![std::fs::canonicalize(&sources)?], buckets: Vec::new() };
        let opener: Arc<dyn SourceOpener> = Arc::new(Sources::new(roots, BTreeMap::new()));
        let store: SharedStore = Arc::new(LocalStore::open(dir.join("out"))?);
        let limits = PackLimits::default();
        let options = PackOptions { format: args.format, codec: args.codec, ..PackOptions::default() };
        let mut running = Vec::new();
        for number in 0..slots {
            let segment = Arc::new(segment(&sources, number, options.clone())?);
            let job = PackJob::task(segment, store.clone(), limits.clone(), CancellationToken::new());
            let opener = Arc::clone(&opener);
            running.push(tokio::spawn(async move { pack_segment(&job, Vec::new(), opener, &NoHooks).await }));
        }
        let mut packed: Vec<Packed> = Vec::new();
        for shard in running {
            packed.push(shard.await??);
        }
        Ok::<_, Box<dyn Error>>(packed)
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let sum = |of: fn(&Packed) -> u64| packed.iter().map(of).sum::<u64>();
    let source_bytes = sum(|p| p.totals.source_bytes);
    let report = serde_json::json!({
        "slots": slots,
        "format": args.format.to_string(),
        "codec": args.codec.to_string(),
        "files": sum(|p| p.totals.files_packed),
        "failed": sum(|p| p.totals.files_failed),
        "source_bytes": source_bytes,
        "stored_bytes": sum(|p| p.totals.stored_bytes),
        "seconds": (seconds * 100.0).round() / 100.0,
        "megabytes_per_second": (source_bytes as f64 / 1e6 / seconds).round(),
        "peak_rss_mib_before": base / 1024,
        "peak_rss_mib": peak_rss()? / 1024,
    });
    println!("{report}");
    Ok(())
}

/// `VmHWM` of this process, in KiB.
fn peak_rss() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
