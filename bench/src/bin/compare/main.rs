//! Packing small files, DES beside what else could do it and beside what the machine can do at all, in one run and in
//! turns: `tar`, `tar --zstd` with two threads, `zip`, loops that only read or only read and compress, and, where its folder
//! is given, the existing Python packer. Every contestant ends with its bytes on disk (`fsync`); every result of DES is
//! verified, and in the first round every file is read back and compared. Beside that: one worker into a real S3 server, the
//! sizes of shards, index and planner (`--parts`).
//!
//! `cargo build --release --workspace --bins && target/release/compare --files 50000 --rounds 3 --python DIR --write docs/benchmarks.md`
//!
//! wants `tar`, `zstd`, `zip`, `rclone` and `weed`, and `des` built beside this program. The ratios carry over to other machines, the numbers do not.

mod check;
mod index;
mod limits;
mod local;
mod plot;
mod report;
mod s3;
mod sizes;
mod worker;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use des_bench::corpus::{Corpus, Wanted};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Compares ways to pack small files.
#[derive(Debug, Parser)]
struct Args {
    /// Files of the corpus, when it is made here.
    #[arg(long, default_value_t = 50_000)]
    files: usize,
    /// Folder of the corpus: its files are taken as they are, or it is filled where it is missing, and kept. Without it,
    /// a corpus is made and removed again.
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Folders to choose the corpus from; crate sources, /usr/share and Python's library when none is given.
    #[arg(long = "from")]
    folders: Vec<PathBuf>,
    /// No file of a corpus made here has more bytes.
    #[arg(long, default_value_t = 192 << 10)]
    largest: u64,
    /// Decides which files are chosen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Local, Part::S3, Part::Sizes, Part::Index])]
    parts: Vec<Part>,
    /// Only contestants of local packing whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// How many of the files rclone uploads.
    #[arg(long, default_value_t = 5_000)]
    rclone_files: usize,
    /// JSON documents whose size is measured.
    #[arg(long, default_value_t = 100_000)]
    documents: u32,
    /// Checkout of the existing implementation with a virtual environment in `venv`.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Where temporary files go.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Put the tables between their marks in this file, and the plot into `plots` beside it.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From files to shards on this machine's disk.
    Local,
    /// One worker into a real S3 server.
    S3,
    /// How large shards are.
    Sizes,
    /// Index and planner.
    Index,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let scratch = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let corpus = corpus(&args, scratch.path())?;
    eprintln!("{} in {}", corpus.summary(), corpus.root.display());
    let mut failed = Vec::new();
    for part in &args.parts {
        // A scratch folder of its own: what a part that failed has left is not in the way of the next.
        let scratch = tempfile::tempdir_in(scratch.path())?;
        let measured = match part {
            Part::Local => local::measure(&args, &corpus, scratch.path()),
            Part::S3 => s3::measure(&args, &corpus, scratch.path()),
            Part::Sizes => sizes::measure(&args, &corpus, scratch.path()),
            Part::Index => index::measure(&args),
        };
        match measured {
            Ok(measured) => {
                println!("{}", measured.text());
                if let Some(page) = &args.write {
                    measured.write(page)?;
                }
            }
            Err(error) => {
                eprintln!("{part:?} could not be measured: {error}");
                failed.push(format!("{part:?}"));
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured: {}", failed.join(", ")).into()) }
}

fn corpus(args: &Args, scratch: &std::path::Path) -> Result<Corpus, Failure> {
    if let Some(folder) = args.corpus.as_ref().filter(|folder| folder.is_dir()) {
        return Ok(Corpus::read(folder)?);
    }
    let folder = args.corpus.clone().unwrap_or_else(|| scratch.join("corpus"));
    let (folders, files) = (args.folders.clone(), args.files);
    Ok(Corpus::gather(&folder, &Wanted { folders, files, largest: args.largest, seed: args.seed })?)
}
