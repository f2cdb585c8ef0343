//! A real cluster on this machine, one command: redis-server, SeaweedFS with two zones, coordinator, three workers,
//! retriever. Packs real files, kills a worker in the middle, reads everything back and prints what happened.
//!
//! `cluster [--files N] [--workers N] [--seed N] [--shard-bytes N] [--cat N] [--keep]`, where
//! `--cat` says how many files are read once more with `des cat`, each by a process of its own

use std::process::ExitCode;
use std::time::{Duration, Instant};

use des_tests::cluster::{Cluster, ClusterOptions};
use des_tests::corpus::Corpus;
use des_tests::story::{cat_back, pack_kill_and_read_back, verify_zones};

/// What the command line says.
struct Options {
    files: usize,
    workers: usize,
    seed: u64,
    shard_bytes: u64,
    cat: usize,
    keep: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options { files: 5_000, workers: 3, seed: 1, shard_bytes: 4 << 20, cat: 200, keep: false };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        if flag == "--keep" {
            options.keep = true;
            continue;
        }
        let value = args.next().and_then(|text| text.parse::<u64>().ok());
        let value = value.filter(|n| *n > 0).ok_or_else(|| format!("{flag} wants a whole number above 0"))?;
        match flag.as_str() {
            "--files" => options.files = value as usize,
            "--workers" => options.workers = value as usize,
            "--seed" => options.seed = value,
            "--cat" => options.cat = value as usize,
            "--shard-bytes" => options.shard_bytes = value,
            _ => {
                return Err(format!(
                    "{flag} is not known; there are --files --workers --seed --shard-bytes --cat --keep"
                ));
            }
        }
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("cluster: {problem}");
            return ExitCode::from(2);
        }
    };
    match run(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("cluster: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = tempfile::Builder::new().prefix("des-corpus-").tempdir()?;
    println!("gathering {} real files (seed {}) ...", options.files, options.seed);
    let (path, files, seed) = (folder.path().to_owned(), options.files, options.seed);
    let corpus = tokio::task::spawn_blocking(move || Corpus::gather(&path, files, seed)).await??;
    println!("corpus       {}", corpus.summary());
    println!(
        "starting redis-server, SeaweedFS (two zones), a coordinator, {} workers, a retriever ...",
        options.workers
    );
    let mut cluster = Cluster::start(ClusterOptions {
        workers: options.workers,
        lease: Duration::from_secs(5),
        source_root: corpus.root.clone(),
        max_shard_size: options.shard_bytes,
        env: Vec::new(),
    })
    .await?;
    println!("coordinator  {}\nretriever    {}", cluster.coordinator.url, cluster.retriever.url);
    println!("packing, and killing a worker with SIGKILL in the middle ...");
    let summary = pack_kill_and_read_back(&mut cluster, &corpus).await?;
    print!("{summary}");
    let begun = Instant::now();
    let chosen = &corpus.files[..options.cat.min(corpus.files.len())];
    let (right, wrong) = cat_back(&cluster, chosen).await?;
    println!("des cat      {right} right, {} wrong, {:.1} s", wrong.len(), begun.elapsed().as_secs_f64());
    wrong.iter().take(10).for_each(|line| println!("  {line}"));
    let begun = Instant::now();
    verify_zones(&cluster).await?;
    println!("des verify   both zones, nothing wrong, {:.1} s", begun.elapsed().as_secs_f64());
    let good = summary.is_good() && wrong.is_empty();
    println!("{}", if good { "every file came back right" } else { "SOMETHING IS WRONG" });
    if options.keep {
        println!("the cluster keeps running; Ctrl-C ends it");
        tokio::signal::ctrl_c().await?;
    }
    Ok(good)
}
