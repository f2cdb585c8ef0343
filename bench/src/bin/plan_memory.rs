//! Plans a manifest of many files, made up on the fly, and says how fast that was and how much memory it took.
//!
//! `cargo run --release -p des-bench --bin plan_memory -- --files 10000000`. One process is one measurement: the
//! peak is that of the whole process, which holds nothing else.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use des_shared::manifest::{ManifestReader, SourceBase};
use des_shared::plan::{PlanConfig, plan_manifest};
use des_shared::routing::NBits;

/// Measures planning.
#[derive(Parser)]
struct Options {
    /// How many lines the manifest has.
    #[arg(long, default_value_t = 10_000_000)]
    files: u64,
    /// Over how many days the files are spread, 1 to 336.
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u64).range(1..=336))]
    days: u64,
    /// Width of the shard index.
    #[arg(long, default_value = "8")]
    n_bits: NBits,
    /// Maximum shard size, in bytes.
    #[arg(long, default_value_t = 1_000_000_000)]
    max_shard_size: u64,
    /// Memory the planner may hold, in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: usize,
    /// Folder for temporary files.
    #[arg(long)]
    spool_dir: Option<PathBuf>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// NDJSON, line by line, as it is read. The same options always make the same bytes.
struct Lines {
    next: u64,
    files: u64,
    days: u64,
    text: String,
    read: usize,
    bytes: u64,
}

impl Lines {
    fn write_next(&mut self) {
        let n = self.next;
        self.next += 1;
        // SplitMix64's finaliser: files come in no order of date or slot.
        let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let (day, hour, minute) = (x % self.days, (x >> 8) % 24, (x >> 16) % 60);
        // From 0 to 16 MiB, each power of two equally often.
        let size = (x >> 40) >> ((x >> 32) & 15);
        self.text.clear();
        self.read = 0;
        let uid =
            if n.is_multiple_of(3) { format!("{n}") } else { format!("customers/{:05}/scan-{n}.pdf", x % 90_000) };
        writeln!(
            self.text,
            "{{\"uid\": \"{uid}\", \"created_at\": \"2025-{:02}-{:02}T{hour:02}:{minute:02}:00+02:00\", \
             \"size_bytes\": {size}, \"source_path\": \"/archive/inbox/2025/{:03}/{n}.bin\"}}",
            day / 28 + 1,
            day % 28 + 1,
            n % 1000,
        )
        .expect("a string takes any text");
        self.bytes += self.text.len() as u64;
    }
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.read == self.text.len() {
                if self.next == self.files {
                    break;
                }
                self.write_next();
            }
            let n = (self.text.len() - self.read).min(buffer.len() - filled);
            buffer[filled..filled + n].copy_from_slice(&self.text.as_bytes()[self.read..self.read + n]);
            filled += n;
            self.read += n;
        }
        Ok(filled)
    }
}

/// What was measured.
struct Outcome {
    files: u64,
    manifest_bytes: u64,
    source_bytes: u64,
    slots: u64,
    shards: u64,
    largest_shard: usize,
    spooled_bytes: u64,
    taking_in: Duration,
    handing_out: Duration,
}

fn measure(options: &Options) -> Result<Outcome, Box<dyn std::error::Error>> {
    let mut lines = Lines { next: 0, files: options.files, days: options.days, text: String::new(), read: 0, bytes: 0 };
    let mut config = PlanConfig {
        n_bits: options.n_bits,
        max_shard_size: options.max_shard_size,
        memory_limit_bytes: options.memory_mib << 20,
        ..PlanConfig::new()
    };
    if let Some(dir) = &options.spool_dir {
        config.spool_dir.clone_from(dir);
    }
    let start = Instant::now();
    let plan = plan_manifest(ManifestReader::new(&mut lines)?, &SourceBase::None, config)?;
    let taking_in = start.elapsed();
    let (slots, progress) = (plan.slots(), plan.progress());
    let (mut shards, mut largest_shard, mut planned) = (0, 0, 0);
    for shard in plan {
        let files = shard?.files.len();
        shards += 1;
        planned += files as u64;
        largest_shard = largest_shard.max(files);
    }
    if planned != options.files {
        return Err(format!("{planned} files were planned of {}", options.files).into());
    }
    Ok(Outcome {
        files: planned,
        manifest_bytes: lines.bytes,
        source_bytes: progress.source_bytes(),
        slots,
        shards,
        largest_shard,
        spooled_bytes: progress.spooled_bytes(),
        taking_in,
        handing_out: start.elapsed().saturating_sub(taking_in),
    })
}

/// The process's peak of resident memory, in bytes.
fn peak_memory() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib: u64| kib * 1024).ok_or_else(|| io::Error::other("no VmHWM in /proc/self/status"))
}

fn as_json(options: &Options, outcome: &Outcome, peak: u64) -> String {
    let seconds = (outcome.taking_in + outcome.handing_out).as_secs_f64();
    serde_json::json!({
        "files": outcome.files,
        "files_per_second": outcome.files as f64 / seconds,
        "seconds": seconds,
        "taking_in_seconds": outcome.taking_in.as_secs_f64(),
        "handing_out_seconds": outcome.handing_out.as_secs_f64(),
        "manifest_bytes": outcome.manifest_bytes,
        "source_bytes": outcome.source_bytes,
        "slots": outcome.slots,
        "shards": outcome.shards,
        "largest_shard_files": outcome.largest_shard,
        "spooled_bytes": outcome.spooled_bytes,
        "memory_limit_bytes": options.memory_mib << 20,
        "peak_rss_bytes": peak,
    })
    .to_string()
}

fn as_text(options: &Options, outcome: &Outcome, peak: u64) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (taking_in, handing_out) = (outcome.taking_in.as_secs_f64(), outcome.handing_out.as_secs_f64());
    let seconds = taking_in + handing_out;
    [
        format!(
            "plan of {} files ({:.1} MiB of NDJSON), {} days, n_bits {}, shards up to {} bytes, memory limit {} MiB",
            outcome.files,
            mib(outcome.manifest_bytes),
            options.days,
            options.n_bits.get(),
            options.max_shard_size,
            options.memory_mib
        ),
        format!(
            "  time         {seconds:.1} s ({taking_in:.1} s reading and grouping, {handing_out:.1} s handing out)"
        ),
        format!("  speed        {:.0} files/s", outcome.files as f64 / seconds),
        format!(
            "  result       {} shards in {} slots, {:.1} MiB of sources, at most {} files in a shard",
            outcome.shards,
            outcome.slots,
            mib(outcome.source_bytes),
            outcome.largest_shard
        ),
        format!("  peak memory  {:.1} MiB", mib(peak)),
        format!("  spooled      {:.1} MiB", mib(outcome.spooled_bytes)),
    ]
    .join("\n")
}

fn main() -> ExitCode {
    let options = Options::parse();
    match measure(&options).and_then(|outcome| Ok((outcome, peak_memory()?))) {
        Ok((outcome, peak)) => {
            let show = if options.json { as_json } else { as_text };
            println!("{}", show(&options, &outcome, peak));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("plan_memory: {error}");
            ExitCode::FAILURE
        }
    }
}
