//! `des-retriever`: the retriever as a process.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use des_retriever::{Config, Deps, Retriever, all_settings, blocking_threads};
use des_shared::clock::{Dice, SystemClock};
use des_shared::config::{self, LoadError, Values, ZoneSettings};
use des_shared::metrics::Metrics;
use des_shared::retry::RetryPolicy;
use des_shared::service::Shutdown;
use des_shared::store::backend::Layers;
use des_shared::store::metered::StoreMetrics;
use des_shared::telemetry::{self, LogSettings};

/// Large answers come and go on many threads. glibc keeps what they free in an arena for each thread, which took peak
/// memory to twice its bound (docs/benchmarks.md); this allocator gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for wrong usage or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let settings = all_settings();
    let command = config::command("des-retriever", "Serves files out of shards over HTTP.", &settings);
    let mut values = match Values::load(command, &settings, std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(values) => values,
        Err(LoadError::Usage(text)) => text.exit(),
        Err(LoadError::Config(problems)) => return fail(USAGE, &problems),
    };
    let log = LogSettings::read(&mut values);
    let zones = ZoneSettings::read(&mut values);
    let config = Config::read(&mut values, zones.as_ref());
    let all = log.zip(zones).zip(config).map(|((log, zones), config)| (log, zones, config));
    let (log, zones, config) = match values.finish(all) {
        Ok(all) => all,
        Err(problems) => return fail(USAGE, &problems),
    };
    let logging = telemetry::init(&log);
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().max_blocking_threads(blocking_threads()).enable_all().build()
        {
            Ok(runtime) => runtime,
            Err(e) => return fail(1, &format!("no threads: {e}")),
        };
    let outcome = runtime.block_on(run(config, zones));
    drop(logging);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(1, &e),
    }
}

fn fail(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    // Standard error may be closed; the exit code still reports the failure.
    drop(writeln!(std::io::stderr(), "des-retriever: {why}"));
    ExitCode::from(code)
}

async fn run(config: Config, zones: ZoneSettings) -> Result<(), Box<dyn std::error::Error>> {
    let metrics = Metrics::new();
    let dice = Arc::new(Dice::from_os());
    // The retriever's own guard stands between the stores and the layer that tries again.
    let store_metrics = Some(StoreMetrics::register(metrics.registry())?);
    let layers = Layers { metrics: store_metrics, retry: RetryPolicy::NEVER, dice: dice.clone() };
    let zones = Arc::new(zones.zones.open(&layers).await?);
    let shutdown = Shutdown::new();
    let signals = tokio::spawn(shutdown.on_signals()?);
    let deps = Deps { zones, clock: Arc::new(SystemClock), dice, metrics };
    Retriever::start(config, deps, shutdown.clone()).await?.join().await?;
    shutdown.begin();
    signals.await?;
    Ok(())
}
