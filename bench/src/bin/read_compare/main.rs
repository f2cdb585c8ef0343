//! Reading small files over HTTP, DES beside what else could serve them, in one run and in turns: nginx with plain
//! files, `SeaweedFS`'s own volume server, plain objects and bare ranges of its S3, and, where its folder is given, the
//! existing Python retriever. `wrk` sends; every contestant's answers are compared with the files before it is timed.
//!
//! `cargo run --release -p des-bench --bin read_compare -- [--files 20000] [--seconds 8] [--rounds 3] [--python DIR]`
//!
//! wants `wrk`, `nginx` and `weed`, and `des` and `des-retriever` built beside this program. The ratios carry over to
//! other machines, the numbers do not: server, store and `wrk` share the cores.

mod contestants;
mod corpus;
mod load;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Parser;

use self::contestants::{Arena, Contestant};
use self::corpus::Corpus;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Compares ways to read small files.
#[derive(Debug, Parser)]
struct Args {
    /// Files.
    #[arg(long, default_value_t = 20_000)]
    files: u32,
    /// Their median size in bytes.
    #[arg(long, default_value_t = 2_000)]
    file_bytes: usize,
    /// How long each contestant is asked in each round, seconds.
    #[arg(long, default_value_t = 8)]
    seconds: u32,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Connections of wrk.
    #[arg(long, default_value_t = 32)]
    connections: u32,
    /// Bits of the shard index: 2^BITS shards.
    #[arg(long, default_value_t = 4)]
    n_bits: u8,
    /// Compression of the shards of version 3: with `none`, whoever asks DES for a file gets the very bytes that whoever
    /// asks the store for its range gets, otherwise more.
    #[arg(long, default_value = "zstd")]
    codec: des_shared::segment::CodecChoice,
    /// Checkout of the existing implementation with a virtual environment in `venv`.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Only contestants whose name contains this, or one of several of these with `|` between them.
    #[arg(long, default_value = "")]
    only: String,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let corpus = Corpus::make(&args).await?;
    println!("{}", corpus.summary());
    let mut arena = Arena::open(&args, &corpus).await?;
    let mut rates: BTreeMap<&'static str, Vec<load::Rate>> = BTreeMap::new();
    for round in 0..args.rounds {
        for contestant in Contestant::ALL {
            let asked = args.only.split('|').any(|only| contestant.name().contains(only));
            if !asked || !arena.has(contestant) {
                continue;
            }
            let running = arena.start(contestant).await?;
            if round == 0 {
                load::check(&running, &corpus).await.map_err(|e| format!("{}: {e}", contestant.name()))?;
            }
            let rate = load::measure(&args, &running).await?;
            println!("round {} {}: {rate}", round + 1, contestant.name());
            rates.entry(contestant.name()).or_default().push(rate);
        }
    }
    report(&rates);
    Ok(())
}

/// Medians, and the ratios that are asked for.
fn report(rates: &BTreeMap<&'static str, Vec<load::Rate>>) {
    let median = |name: &str| {
        let mut all: Vec<f64> = rates.get(name)?.iter().map(|rate| rate.per_second).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    };
    println!("\n| contestant | requests/s (median) | p50 ms | p99 ms |\n| --- | --- | --- | --- |");
    for contestant in Contestant::ALL {
        if let (Some(median), Some(all)) = (median(contestant.name()), rates.get(contestant.name())) {
            let last = &all[all.len() - 1];
            println!("| {} | {median:.0} | {} | {} |", contestant.name(), last.p50, last.p99);
        }
    }
    println!("\n| ratio | measured | asked for |\n| --- | --- | --- |");
    for (ours, theirs, wanted) in contestants::RATIOS {
        if let (Some(ours_rate), Some(theirs_rate)) = (median(ours.name()), median(theirs.name())) {
            println!("| {} / {} | {:.2} | {wanted} |", ours.name(), theirs.name(), ours_rate / theirs_rate);
        }
    }
}
