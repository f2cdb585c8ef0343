//! Simulated workers on one real Redis, and what it took:
//! `swarm [--workers 1000] [--processes 4] [--tasks 20000] [--vanish-every 10] [--work-ms 50] [--own-connections 0]`
//! A single argument that is JSON makes it one of the processes.

use std::process::ExitCode;
use std::time::Duration;

use des_tests::swarm::{SwarmOptions, process, run};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn options() -> Result<SwarmOptions, Failure> {
    let mut options = SwarmOptions {
        url: String::new(),
        workers: 1000,
        processes: 4,
        tasks: 20_000,
        vanish_every: 10,
        work: Duration::from_millis(50),
        lease: Duration::from_secs(10),
        own_connections: false,
        first: 0,
    };
    let args: Vec<String> = std::env::args().skip(1).collect();
    for pair in args.chunks(2) {
        let number: u32 = pair.get(1).ok_or("every flag wants a number")?.parse()?;
        match pair[0].as_str() {
            "--workers" => options.workers = number,
            "--processes" => options.processes = number.max(1),
            "--tasks" => options.tasks = number,
            "--vanish-every" => options.vanish_every = number,
            "--work-ms" => options.work = Duration::from_millis(number.into()),
            "--own-connections" => options.own_connections = number > 0,
            other => return Err(format!("{other} is no flag").into()),
        }
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> Result<ExitCode, Failure> {
    if let Some(json) = std::env::args().nth(1).filter(|text| text.starts_with('{')) {
        let seen = process(serde_json::from_str(&json)?).await?;
        println!("{}", serde_json::to_string(&seen)?);
        return Ok(ExitCode::SUCCESS);
    }
    let options = options()?;
    let report = run(&std::env::current_exe()?, options.clone()).await?;
    let seen = &report.seen;
    println!(
        "{} workers in {} processes, {} tasks, {} vanished",
        options.workers, options.processes, options.tasks, seen.vanished
    );
    let seconds = report.took.as_secs_f64();
    println!("{seconds:.1} s: {:.0} claims/s, {} clients", seen.claim_us.len() as f64 / seconds, report.clients);
    let quantile = |per_mille| f64::from(seen.claim_quantile(per_mille)) / 1000.0;
    println!("claim: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms", quantile(500), quantile(990), quantile(1000));
    println!("Redis: {} bytes before, {} at its fullest", report.memory.0, report.memory.1);
    let once = report.times.len() == options.tasks as usize && report.times.values().all(|times| *times == 1);
    println!(
        "each task once: {once}; stale commits {}, unanswered calls {}; audit {:?}",
        seen.stale, seen.unavailable, report.findings
    );
    Ok(if once && report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
