//! `des-coordinator`: the coordinator as a process.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use des_coordinator::{Config, Coordinator, Deps, Places, ShardInspector, all_settings};
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

/// Exit code for wrong usage or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let settings = all_settings();
    let about = "Accepts manifests, plans shards, queues tasks and watches over them.";
    let command = config::command("des-coordinator", about, &settings);
    let mut values = match Values::load(command, &settings, std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(values) => values,
        Err(LoadError::Usage(text)) => text.exit(),
        Err(LoadError::Config(problems)) => return fail(USAGE, &problems),
    };
    let places = Places::read(&mut values);
    let config = Config::read(&mut values, places.as_ref().map(|places| &places.zones));
    let (places, config) = match values.finish(places.zip(config)) {
        Ok(both) => both,
        Err(problems) => return fail(USAGE, &problems),
    };
    let logging = telemetry::init(&places.log);
    let config = Config { limits: config.limits.with_lease(places.queue.queue.lease), ..config };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(1, &format!("no threads: {e}")),
    };
    let outcome = runtime.block_on(run(config, places));
    drop(logging);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(1, &e),
    }
}

fn fail(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    // Standard error may be closed; the exit code still reports the failure.
    drop(writeln!(std::io::stderr(), "des-coordinator: {why}"));
    ExitCode::from(code)
}

async fn run(config: Config, places: Places) -> Result<(), Box<dyn std::error::Error>> {
    let dice = Arc::new(Dice::from_os());
    let metrics = Metrics::new();
    let store_metrics = StoreMetrics::register(metrics.registry())?;
    let layers = Layers { metrics: Some(store_metrics), retry: RetryPolicy::QUICK, dice: Arc::clone(&dice) };
    let queue = queue::in_redis(&places.queue.redis, places.queue.queue.clone(), Arc::clone(&dice))?;
    let mut buckets = BTreeMap::new();
    for (bucket, _) in &config.roots.buckets {
        let backend = Backend::S3(S3Config { bucket: bucket.clone(), ..places.zones.s3_defaults() });
        buckets.insert(bucket.clone(), backend.open(&layers).await?);
    }
    let deps = Deps {
        queue,
        state: places.state.open(&layers).await?,
        zones: Arc::new(places.zones.zones.open(&layers).await?),
        buckets,
        inspector: ShardInspector::default(),
        clock: Arc::new(SystemClock),
        dice,
        metrics,
    };
    let shutdown = Shutdown::new();
    let signals = tokio::spawn(shutdown.on_signals()?);
    Coordinator::start(config, deps, shutdown.clone()).await?.join().await?;
    shutdown.begin();
    signals.await?;
    tracing::info!("the coordinator has stopped");
    Ok(())
}
