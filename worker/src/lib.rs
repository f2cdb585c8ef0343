//! The worker: leases tasks, packs files into shards, uploads and commits them.
//!
//! A task's way: [`driver`](self) claims it at the [`desk`], `execute` runs it top to bottom, [`pack`] reads, compresses and uploads,
//! `checkpoint` remembers each part, the receipt in the state store ends it. [`pack::pack_segment`] also works alone.

pub mod budget;
pub mod config;
pub mod desk;
pub mod error;
pub mod metrics;
pub mod pack;
pub mod source;
pub mod vitals;

mod adopt;
mod bigfile;
mod buffer;
mod capabilities;
mod checkpoint;
mod driver;
mod execute;
mod leases;
mod shelf;
mod upload;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use des_shared::clock::{Clock, Dice};
use des_shared::ids::WorkerId;
use des_shared::metrics::Metrics;
use des_shared::queue::{SharedQueue, WorkerInfo};
use des_shared::service::{Check, Readiness, Shutdown, bind, health_routes, serve, with_auth};
use des_shared::state::StateStore;
use des_shared::store::SharedStore;
use des_shared::store::zones::Zones;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::task::AbortOnDropHandle;

use config::WorkerOptions;
use desk::Desk;
use driver::Driver;
use execute::TaskContext;
use metrics::WorkerMetrics;
use source::SourceOpener;

/// What a worker is connected to.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where tasks come from.
    pub queue: SharedQueue,
    /// Where segments, checkpoints and receipts are.
    pub state: StateStore,
    /// Where shards go.
    pub zones: Arc<Zones>,
    /// Where files come from.
    pub sources: Arc<dyn SourceOpener>,
    /// Stamps receipts.
    pub clock: Arc<dyn Clock>,
    /// Ids and jitter.
    pub dice: Arc<Dice>,
    /// The process's registry, served on `/metrics`.
    pub registry: Metrics,
    /// The worker's own metrics, registered there.
    pub metrics: WorkerMetrics,
}

/// A worker at work. Dropping it stops everything where it is, as a crash would.
#[derive(Debug)]
pub struct RunningWorker {
    /// This run's id.
    pub id: WorkerId,
    /// Where health and metrics are served.
    pub local_addr: Option<SocketAddr>,
    task: AbortOnDropHandle<io::Result<()>>,
}

impl RunningWorker {
    /// Waits until the shutdown has begun and every task is handed back.
    ///
    /// # Errors
    /// When serving health and metrics failed.
    pub async fn join(self) -> io::Result<()> {
        match self.task.await {
            Ok(ended) => ended,
            Err(e) => Err(io::Error::other(format!("the worker ended unexpectedly: {e}"))),
        }
    }
}

/// Starts a worker. It works until `shutdown` begins.
///
/// # Errors
/// When the address for health and metrics cannot be bound.
pub fn start(options: WorkerOptions, deps: Deps, shutdown: Shutdown) -> BoxFuture<'static, io::Result<RunningWorker>> {
    // Boxed: an async function is compiled where it is awaited, and the whole worker would be in every program anew.
    Box::pin(start_worker(options, deps, shutdown))
}

async fn start_worker(options: WorkerOptions, deps: Deps, shutdown: Shutdown) -> io::Result<RunningWorker> {
    let listener = match &options.listen {
        Some(listen) => Some((bind(listen.address).await?, listen.clone())),
        None => None,
    };
    let local_addr = listener.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?;
    let id = WorkerId::from_random(deps.dice.bytes());
    let readiness = readiness(&deps, shutdown.clone());
    let registry = deps.registry.clone();
    let info = WorkerInfo { id, name: options.name, slots: options.slots };
    let (desk, counter) = Desk::new(deps.queue.clone(), info.clone(), options.lease);
    let driver = Driver {
        info,
        lease: options.lease,
        heartbeat: options.heartbeat,
        stall: options.stall,
        drain: options.drain,
        shutdown: shutdown.clone(),
        probe_stores: options.probe_stores,
        context: Arc::new(TaskContext {
            queue: deps.queue,
            counter,
            state: deps.state,
            zones: deps.zones,
            sources: deps.sources,
            clock: deps.clock,
            dice: deps.dice,
            metrics: deps.metrics,
            limits: options.limits,
        }),
    };
    let work = async move {
        let served = async {
            match listener {
                Some((listener, listen)) => {
                    let about = "Health and metrics of a worker, which packs shards.";
                    let router = health_routes(readiness, registry).finish("DES worker", about);
                    let router = with_auth(router, listen.auth);
                    serve(listener, router, shutdown, options.drain).await
                }
                None => Ok(()),
            }
        };
        let ((), served) = tokio::join!(driver.run(desk), served);
        served
    };
    Ok(RunningWorker { id, local_addr, task: AbortOnDropHandle::new(tokio::spawn(work)) })
}

/// A worker is ready when the queue, the state store and every zone answer.
fn readiness(deps: &Deps, shutdown: Shutdown) -> Readiness {
    let queue = deps.queue.clone();
    let ping: Check = Arc::new(move || {
        let queue = queue.clone();
        async move { queue.ping().await.map_err(|e| e.to_string()) }.boxed()
    });
    let mut readiness =
        Readiness::new(shutdown).with("queue", ping).with("state", store_check(deps.state.objects().clone()));
    for zone in deps.zones.all() {
        readiness = readiness.with(format!("zone {}", zone.name), store_check(zone.store.clone()));
    }
    readiness
}

fn store_check(store: SharedStore) -> Check {
    Arc::new(move || {
        let store = store.clone();
        async move { store.check().await.map_err(|e| e.to_string()) }.boxed()
    })
}
