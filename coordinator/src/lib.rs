//! The coordinator: accepts manifests, plans shards, queues tasks, reconciles.
//!
//! The way of a job: [`api`] reads a request, [`submit`] makes it durable in the state store and answers,
//! [`planner`] turns the manifest into segments off the request, [`restore`] brings tasks into the queue,
//! [`reconcile`] watches over all open jobs, and [`finish`] ends a job whose tasks are all done. What people decide on
//! the way is in [`control`], what failed is packed again by [`retry`], [`tidy`] removes what nobody needs any more,
//! and [`audit`] looks whether everything agrees.
//!
//! Nothing here is the only copy of anything: any number of coordinators run side by side, each can die at any
//! moment, and what one leaves behind another picks up from the state store.

mod api;
mod audit;
mod conditions;
mod config;
mod control;
mod dead;
mod drop;
mod error;
mod finish;
mod inspect;
mod metrics;
mod pace;
mod pipe;
mod planner;
mod pressure;
mod reconcile;
mod restore;
mod retry;
mod source;
mod stored;
mod submit;
mod tidy;
mod upload;
mod view;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use des_shared::clock::{Clock, Dice};
use des_shared::metrics::Metrics;
use des_shared::offload::offload;
use des_shared::queue::SharedQueue;
use des_shared::service::{self, Shutdown};
use des_shared::state::StateStore;
use des_shared::store::SharedStore;
use des_shared::store::zones::Zones;
use futures::future::BoxFuture;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::conditions::Conditions;
use crate::metrics::CoordinatorMetrics;
use crate::planner::Planning;
use crate::pressure::Pressure;
use crate::view::Views;

pub use api::audit::AuditLine;
pub use api::dead::DeadPage;
pub use api::jobs::{JobPage, ShardPage, ShardView};
pub use api::plan::{DryRun, PlannedShardView};
pub use api::queue::QueueView;
pub use audit::{Finding, FindingKind};
pub use config::{Config, Limits, Places, all_settings};
pub use error::Error;
pub use inspect::{Inspect, ShardInspector};
pub use view::{ActiveTask, JobBody, JobDetail, JobProgress};

/// What a coordinator works with; opened by whoever starts it.
#[derive(Clone)]
pub struct Deps {
    /// The task queue.
    pub queue: SharedQueue,
    /// The state store.
    pub state: StateStore,
    /// Where shards are.
    pub zones: Arc<Zones>,
    /// Buckets of the source roots by name, each a store without a prefix: manifests may be read from them.
    pub buckets: BTreeMap<String, SharedStore>,
    /// Says which files a published shard holds.
    pub inspector: ShardInspector,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Randomness of ids.
    pub dice: Arc<Dice>,
    /// The registry of the process.
    pub metrics: Metrics,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps").field("state", &self.state).field("zones", &self.zones).finish_non_exhaustive()
    }
}

/// What every part of a coordinator shares.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) deps: Deps,
    pub(crate) shutdown: Shutdown,
    /// Name of this process in locks; random, so that a restarted process is another holder.
    pub(crate) holder: String,
    pub(crate) planning: Planning,
    pub(crate) views: Views,
    pub(crate) own_metrics: CoordinatorMetrics,
    /// One change of a job at a time in this process; see [`control`].
    pub(crate) controls: Mutex<()>,
    /// One submission at a time in this process is counted and accepted while a limit is set; see [`pressure`].
    pub(crate) admission: Mutex<()>,
    pub(crate) pressure: Pressure,
    pub(crate) conditions: Conditions,
    /// Seats for clients that watch jobs.
    pub(crate) watchers: Arc<Semaphore>,
    /// One audit at a time.
    pub(crate) auditors: Arc<Semaphore>,
    /// Room for bodies and dry runs in memory, one permit a KiB.
    pub(crate) inline: Arc<Semaphore>,
    /// Submissions and blocking work that outlive the request that began them.
    pub(crate) tasks: TaskTracker,
}

/// The coordinator as a service.
#[derive(Debug)]
pub struct Coordinator;

/// A running coordinator.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    shutdown: Shutdown,
    drain: Duration,
    server: JoinHandle<io::Result<()>>,
    background: Vec<JoinHandle<()>>,
    tasks: TaskTracker,
}

/// A coordinator without an address, inside another program. Dropping it stops it where it is, as a crash would, but
/// for requests that are under way.
#[derive(Debug)]
pub struct Embedded {
    /// Its interface.
    pub router: Router,
    _background: Vec<AbortOnDropHandle<()>>,
}

impl Coordinator {
    /// Binds, begins to serve, plan and reconcile, and returns. Stops when `shutdown` begins.
    ///
    /// # Errors
    /// When the address cannot be bound, the defaults' `n_bits` is not that of the zones, or the state store refuses
    /// to be written in a way that waiting does not mend: a wrong bucket, wrong credentials. One that is only away is
    /// asked again.
    pub fn start(config: Config, deps: Deps, shutdown: Shutdown) -> BoxFuture<'static, io::Result<Running>> {
        // Boxed: an async function is compiled where it is awaited, and all of this would be in every program anew.
        Box::pin(Self::bind_and_serve(config, deps, shutdown))
    }

    async fn bind_and_serve(config: Config, deps: Deps, shutdown: Shutdown) -> io::Result<Running> {
        if config.defaults.n_bits != deps.zones.n_bits() {
            let (ours, zones) = (config.defaults.n_bits.get(), deps.zones.n_bits().get());
            let text = format!("n_bits is {ours}, but the zones are laid out for {zones}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let (listen, drain, auth) = (config.listen.address, config.listen.drain, config.listen.auth.clone());
        let core = Arc::new(Core::new(config, deps, shutdown.clone()));
        let tried = core.try_state_store().await;
        if let Err(error) = &tried
            && !error.kind.is_transient()
        {
            return Err(io::Error::other(error.to_string()));
        }
        let listener = service::bind(listen).await?;
        let address = listener.local_addr()?;
        let router = service::with_auth(router(&core), auth);
        let server = tokio::spawn(service::serve(listener, router, shutdown.clone(), drain));
        let mut background = in_background(&core);
        if let Err(error) = tried {
            tracing::warn!("the state store cannot be written now, and is asked again: {error}");
            background.push(tokio::spawn(conditions::try_until_known(Arc::clone(&core))));
        }
        tracing::info!(%address, holder = core.holder, state = core.deps.state.objects().url(), "coordinator is up");
        Ok(Running { address, shutdown, drain, server, background, tasks: core.tasks.clone() })
    }
}

impl Embedded {
    /// Begins to plan and reconcile. Serving the router is the caller's part.
    pub fn start(config: Config, deps: Deps, shutdown: Shutdown) -> Self {
        let core = Arc::new(Core::new(config, deps, shutdown));
        let background = in_background(&core).into_iter().map(AbortOnDropHandle::new).collect();
        Self { router: router(&core), _background: background }
    }
}

/// Everything a coordinator does by itself.
fn in_background(core: &Arc<Core>) -> Vec<JoinHandle<()>> {
    let mut background = vec![
        tokio::spawn(reconcile::keep_house(Arc::clone(core))),
        tokio::spawn(reconcile::watch_over_jobs(Arc::clone(core))),
        tokio::spawn(tidy::run(Arc::clone(core))),
    ];
    background.extend((0..core.config.limits.planners.max(1)).map(|_| tokio::spawn(planner::run(Arc::clone(core)))));
    background
}

fn router(core: &Arc<Core>) -> Router {
    let (routes, mut described) = api::routes(Arc::clone(core));
    let (health, own) = service::health_routes(api::readiness(core), core.deps.metrics.clone()).into_parts();
    described.merge(own);
    let about = "Takes manifests, plans shards, and hands them out to workers.";
    let document = service::document_route(described, "DES coordinator", about);
    routes.merge(health).merge(document).fallback(api::not_found)
}

impl Core {
    fn new(config: Config, deps: Deps, shutdown: Shutdown) -> Self {
        let random: [u8; 8] = deps.dice.bytes();
        Self {
            holder: format!("coordinator-{:016x}", u64::from_be_bytes(random)),
            planning: Planning::default(),
            views: Views::default(),
            own_metrics: CoordinatorMetrics::register(&deps.metrics),
            controls: Mutex::new(()),
            admission: Mutex::new(()),
            pressure: Pressure::default(),
            conditions: Conditions::default(),
            watchers: Arc::new(Semaphore::new(config.limits.watchers)),
            auditors: Arc::new(Semaphore::new(1)),
            inline: Arc::new(Semaphore::new(api::room_of_all(&config.limits) as usize)),
            tasks: TaskTracker::new(),
            config,
            deps,
            shutdown,
        }
    }

    /// Runs work that keeps a thread busy; the shutdown waits for it, also when its request is gone.
    pub(crate) async fn offload<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let under_way = self.tasks.token();
        offload(move || {
            let _under_way = under_way;
            work()
        })
        .await
    }

    pub(crate) fn state(&self) -> &StateStore {
        &self.deps.state
    }

    pub(crate) fn queue(&self) -> &SharedQueue {
        &self.deps.queue
    }
}

impl Running {
    /// Where it listens; the port is the real one when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the shutdown was asked for and everything has ended. Planning stops half way: another coordinator,
    /// or this one's successor, goes on with it.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn join(self) -> io::Result<()> {
        let served = self.server.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        // A listener that failed takes everything else down with it.
        self.shutdown.begin();
        for task in self.background {
            if let Err(e) = task.await {
                tracing::error!("a background task of the coordinator panicked: {e}");
            }
        }
        self.tasks.close();
        if tokio::time::timeout(self.drain, self.tasks.wait()).await.is_err() {
            tracing::warn!("{} submissions were still under way at the end and were cut", self.tasks.len());
        }
        served
    }
}
