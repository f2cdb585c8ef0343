//! `des-worker`: the worker as a process.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use des_shared::clock::{Dice, SystemClock};
use des_shared::config::{self, LoadError, Values};
use des_shared::metrics::Metrics;
use des_shared::queue;
use des_shared::retry::RetryPolicy;
use des_shared::service::Shutdown;
use des_shared::store::backend::{Backend, Layers};
use des_shared::store::metered::StoreMetrics;
use des_shared::store::s3_config::S3Config;
use des_shared::telemetry;
use des_worker::config::{WorkerConfig, WorkerOptions};
use des_worker::metrics::WorkerMetrics;
use des_worker::pack::PackLimits;
use des_worker::source::Sources;
use des_worker::{Deps, start};

/// Exit code for wrong usage or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let settings = WorkerConfig::settings();
    let about = "Leases tasks, packs files into shards, uploads and commits them.";
    let command = config::command("des-worker", about, &settings);
    let mut values = match Values::load(command, &settings, std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(values) => values,
        Err(LoadError::Usage(text)) => text.exit(),
        Err(LoadError::Config(problems)) => return fail(USAGE, &problems),
    };
    let config = WorkerConfig::read(&mut values);
    let config = match values.finish(config) {
        Ok(config) => config,
        Err(problems) => return fail(USAGE, &problems),
    };
    let logging = telemetry::init(&config.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(1, &format!("no threads: {e}")),
    };
    let outcome = runtime.block_on(run(config));
    drop(logging);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(1, &e),
    }
}

fn fail(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    // Standard error may be closed; the exit code still reports the failure.
    drop(writeln!(std::io::stderr(), "des-worker: {why}"));
    ExitCode::from(code)
}

async fn run(config: WorkerConfig) -> Result<(), Box<dyn std::error::Error>> {
    let dice = Arc::new(Dice::from_os());
    let registry = Metrics::new();
    let store_metrics = StoreMetrics::register(registry.registry())?;
    let layers = Layers { metrics: Some(store_metrics), retry: RetryPolicy::PATIENT, dice: Arc::clone(&dice) };
    let queue = queue::in_redis(&config.queue.redis, config.queue.queue.clone(), Arc::clone(&dice))?;
    let mut buckets = BTreeMap::new();
    for (bucket, _) in &config.roots.buckets {
        let backend = Backend::S3(S3Config { bucket: bucket.clone(), ..config.zones.s3_defaults() });
        buckets.insert(bucket.clone(), backend.open(&layers).await?);
    }
    let deps = Deps {
        queue,
        state: config.state.open(&layers).await?,
        zones: Arc::new(config.zones.zones.open(&layers).await?),
        sources: Arc::new(Sources::new(config.roots.clone(), buckets)),
        clock: Arc::new(SystemClock),
        dice,
        metrics: WorkerMetrics::register(&registry),
        registry,
    };
    let options = WorkerOptions {
        name: format!("{}:{}", host_name(), std::process::id()),
        slots: config.slots,
        lease: config.queue.queue.lease,
        heartbeat: config.heartbeat,
        stall: config.stall,
        drain: config.listen.drain,
        listen: Some(config.listen),
        limits: PackLimits::default(),
        probe_stores: true,
    };
    let shutdown = Shutdown::new();
    let signals = tokio::spawn(shutdown.on_signals()?);
    let worker = start(options, deps, shutdown.clone()).await?;
    tracing::info!(id = %worker.id, address = ?worker.local_addr, slots = config.slots, "the worker is up");
    worker.join().await?;
    shutdown.begin();
    signals.await?;
    tracing::info!("the worker has stopped");
    Ok(())
}

/// The machine's name, for people only.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "worker".to_owned() } else { name.to_owned() }
}
