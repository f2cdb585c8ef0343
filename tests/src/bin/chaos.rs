//! Chaos at length: kills processes of a real cluster until so many are dead, then checks everything.
//!
//! `cargo build --workspace --bins && cargo run -p des-tests --bin chaos -- --kills 200`

use std::process::ExitCode;
use std::time::Duration;

use des_tests::chaos::{ChaosOptions, run};

fn options() -> Result<ChaosOptions, String> {
    let mut options = ChaosOptions {
        seed: 1,
        kills: 200,
        at_most: Duration::from_mins(40),
        workers: 4,
        files: 300,
        lease: Duration::from_secs(3),
        versions: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        if flag == "--versions" {
            options.versions = true;
            continue;
        }
        let value = args.next().and_then(|text| text.parse::<u64>().ok()).filter(|n| *n > 0);
        let value = value.ok_or_else(|| format!("{flag} wants a whole number above 0"))?;
        match flag.as_str() {
            "--seed" => options.seed = value,
            "--kills" => options.kills = u32::try_from(value).map_err(|e| e.to_string())?,
            "--minutes" => options.at_most = Duration::from_mins(value),
            "--workers" => options.workers = value as usize,
            "--files" => options.files = value as usize,
            "--lease-seconds" => options.lease = Duration::from_secs(value),
            _ => {
                let known = "--seed --kills --minutes --workers --files --lease-seconds --versions";
                return Err(format!("{flag} is not known; there are {known}"));
            }
        }
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match options() {
        Ok(options) => Box::pin(run(options)).await.map_err(|e| e.to_string()),
        Err(problem) => Err(problem),
    };
    match outcome {
        Ok(report) => {
            print!("{report}");
            if report.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(problem) => {
            eprintln!("chaos: {problem}");
            ExitCode::from(2)
        }
    }
}
