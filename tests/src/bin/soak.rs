//! A soak at length: mixed requests to a real retriever in front of a store that answers badly, every byte compared.
//!
//! `cargo build --workspace --bins && cargo run -p des-tests --bin soak -- --minutes 60`

use std::process::ExitCode;
use std::time::Duration;

use des_tests::soak::{Odds, SoakOptions, run};

fn options() -> Result<SoakOptions, String> {
    let mut options = SoakOptions {
        seed: 1,
        length: Duration::from_hours(1),
        files: 4_000,
        clients: 8,
        odds: Odds::default(),
        as_shipped: false,
        keep: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        if flag == "--as-shipped" {
            options.as_shipped = true;
            continue;
        }
        if flag == "--keep" {
            let folder = args.next().ok_or("--keep wants a folder")?;
            std::fs::create_dir_all(&folder).map_err(|e| format!("{folder}: {e}"))?;
            options.keep = Some(folder.into());
            continue;
        }
        let value = args.next().and_then(|text| text.parse::<u64>().ok()).filter(|n| *n > 0);
        let value = value.ok_or_else(|| format!("{flag} wants a whole number above 0"))?;
        match flag.as_str() {
            "--seed" => options.seed = value,
            "--minutes" => options.length = Duration::from_mins(value),
            "--seconds" => options.length = Duration::from_secs(value),
            "--files" => options.files = value as usize,
            "--clients" => options.clients = value as usize,
            _ => {
                let known = "--seed --minutes --seconds --files --clients --as-shipped --keep";
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
            if report.problems().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(problem) => {
            eprintln!("soak: {problem}");
            ExitCode::from(2)
        }
    }
}
