//! Starts and stops the three services in this process, over an in-memory queue and folders.
//!
//! ```text
//! DATA/shards/    the zone: shards and big files
//! DATA/state/     the state store: what brings unfinished jobs back after a restart
//! DATA/dev.json   what must not change between two runs
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use des_coordinator::{Coordinator, ShardInspector};
use des_retriever::Retriever;
use des_shared::archive::RemoteShard;
use des_shared::clock::{Clock, Dice, SystemClock};
use des_shared::config::{Auth, Listen, SourceRoots};
use des_shared::ids::Uid;
use des_shared::job::JobDefaults;
use des_shared::metrics::Metrics;
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::{QueueConfig, SharedQueue};
use des_shared::routing::NBits;
use des_shared::service::Shutdown;
use des_shared::state::StateStore;
use des_shared::store::SharedStore;
use des_shared::store::local::LocalStore;
use des_shared::store::zones::Zones;
use des_worker::metrics::WorkerMetrics;
use des_worker::source::Sources;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::output::Screen;

/// Where a coordinator listens when nobody says anything.
pub(super) const COORDINATOR_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080));
/// Where a retriever listens when nobody says anything.
pub(super) const RETRIEVER_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8000));

/// How long a stopping service may take.
const DRAIN: Duration = Duration::from_secs(10);
/// How often the coordinator looks whether a job has ended: often, because somebody sits and waits, and the queue is here.
const TICK: Duration = Duration::from_millis(100);
/// How long a worker may still finish what was cancelled: it hears of it with its next heartbeat, a third of a lease
/// away at most, and no network keeps it from it.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// Memory of the retriever's cache in bytes.
const CACHE_BYTES: u64 = 128 << 20;
/// How long the retriever trusts a listing: short, because whoever tries things out reads what was just packed.
const LISTING_TTL: Duration = Duration::from_secs(1);

/// An address to listen on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Port {
    /// This one, or it is an error.
    Exactly(SocketAddr),
    /// This one, or a free port of the same host when it is taken.
    Usual(SocketAddr),
}

/// What is to be started.
pub(super) struct Setup {
    /// Folder of everything that is kept.
    pub(super) data: PathBuf,
    /// Folders sources may lie in.
    pub(super) roots: SourceRoots,
    pub(super) coordinator: Port,
    pub(super) retriever: Port,
    /// Shards packed side by side.
    pub(super) slots: usize,
    /// Width of the shard index that the user asked for; a folder begun with another one is then an error.
    pub(super) n_bits: Option<NBits>,
    /// Width of a new data folder when nobody asked for one.
    pub(super) usual_bits: NBits,
}

/// What must not change between two runs on one folder.
#[derive(Debug, Serialize, Deserialize)]
struct DevRecord {
    n_bits: NBits,
}

/// The running services.
pub(super) struct Cluster {
    coordinator: des_coordinator::Running,
    retriever: des_retriever::Running,
    worker: des_worker::RunningWorker,
    coordinator_url: String,
    retriever_url: String,
    shards: PathBuf,
    shutdown: Shutdown,
    /// Held as long as this runs: the queue is in memory, so two processes on one folder would pack everything twice.
    _lock: File,
}

impl Cluster {
    /// Opens the folder and starts everything.
    ///
    /// # Errors
    /// When the folder is in use or cannot be written, or an address is taken.
    pub(super) async fn start(setup: Setup, screen: Screen) -> Result<Self, CliError> {
        let shards = setup.data.join("shards");
        let zone: SharedStore = Arc::new(LocalStore::create(&shards)?);
        let lock = lock_folder(&setup.data)?;
        let n_bits = settle_n_bits(&setup.data, setup.n_bits, setup.usual_bits)?;
        let state = StateStore::new(Arc::new(LocalStore::create(setup.data.join("state"))?));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let dice = Arc::new(Dice::from_os());
        let rules = QueueConfig::default();
        let queue: SharedQueue = Arc::new(MemoryQueue::new(rules.clone(), clock.clone(), dice.clone()));
        let zones = Arc::new(Zones::single(n_bits, zone));
        let shutdown = Shutdown::new();
        let parts = Parts { setup: &setup, zones, state, queue, clock, dice, shutdown: shutdown.clone() };
        let coordinator = parts.coordinator(n_bits, screen).await?;
        let retriever = parts.retriever(screen).await?;
        let worker = parts.worker(rules.lease).await?;
        Ok(Self {
            coordinator_url: format!("http://{}", coordinator.local_addr()),
            retriever_url: format!("http://{}", retriever.local_addr()),
            coordinator,
            retriever,
            worker,
            shards,
            shutdown,
            _lock: lock,
        })
    }

    /// URL of the coordinator.
    pub(super) fn coordinator(&self) -> &str {
        &self.coordinator_url
    }

    /// URL of the retriever.
    pub(super) fn retriever(&self) -> &str {
        &self.retriever_url
    }

    /// Folder of the shards.
    pub(super) fn shards(&self) -> &Path {
        &self.shards
    }

    /// Returns at SIGINT or SIGTERM, or when a service has stopped by itself.
    ///
    /// # Errors
    /// When the signals cannot be watched.
    pub(super) async fn run_until_stopped(&self) -> Result<(), CliError> {
        let signals = self
            .shutdown
            .on_signals()
            .map_err(|e| CliError::failed(format!("cannot watch for Ctrl-C and SIGTERM: {e}")))?;
        signals.await;
        Ok(())
    }

    /// Stops everything; running work is handed back and goes on at the next start.
    ///
    /// # Errors
    /// The first service that did not end well.
    pub(super) async fn stop(self) -> Result<(), CliError> {
        self.shutdown.begin();
        let (worker, retriever, coordinator) =
            tokio::join!(self.worker.join(), self.retriever.join(), self.coordinator.join());
        for (name, ended) in [("worker", worker), ("retriever", retriever), ("coordinator", coordinator)] {
            ended.map_err(|e| CliError::failed(format!("the {name} did not end well: {e}")))?;
        }
        Ok(())
    }
}

/// What the services are made of.
struct Parts<'a> {
    setup: &'a Setup,
    zones: Arc<Zones>,
    state: StateStore,
    queue: SharedQueue,
    clock: Arc<dyn Clock>,
    dice: Arc<Dice>,
    shutdown: Shutdown,
}

impl Parts<'_> {
    async fn coordinator(&self, n_bits: NBits, screen: Screen) -> Result<des_coordinator::Running, CliError> {
        let address = choose_port(self.setup.coordinator, "coordinator", "--coordinator-listen", screen)?;
        let config = des_coordinator::Config {
            listen: listen(address),
            defaults: JobDefaults { n_bits, ..JobDefaults::default() },
            roots: self.setup.roots.clone(),
            spool_dir: std::env::temp_dir(),
            limits: des_coordinator::Limits {
                tick: TICK,
                cancel_grace: CANCEL_GRACE,
                ..des_coordinator::Limits::default()
            },
        };
        let deps = des_coordinator::Deps {
            queue: self.queue.clone(),
            state: self.state.clone(),
            zones: Arc::clone(&self.zones),
            buckets: BTreeMap::new(),
            inspector: ShardInspector::new(|store, key| Box::pin(uids_of(store, key))),
            clock: Arc::clone(&self.clock),
            dice: Arc::clone(&self.dice),
            metrics: Metrics::new(),
        };
        let started = Coordinator::start(config, deps, self.shutdown.clone()).await;
        started.map_err(|e| CliError::failed(format!("the coordinator does not start: {e}")))
    }

    async fn retriever(&self, screen: Screen) -> Result<des_retriever::Running, CliError> {
        let address = choose_port(self.setup.retriever, "retriever", "--retriever-listen", screen)?;
        let config = des_retriever::Config {
            listen: listen(address),
            backend: "local",
            cache_bytes: CACHE_BYTES,
            payload_cache_bytes: CACHE_BYTES / 4,
            disk: None,
            listing_ttl: LISTING_TTL,
            bigfiles_prefix: JobDefaults::default().pack.bigfiles_prefix,
            cache_control: None,
            deleters: None,
            endurance: des_retriever::Endurance::default(),
            keys: des_retriever::KeySettings::default(),
            batch_max_files: 10_000,
            s3_face: None,
            // One machine, one user: the threads that are there serve as well.
            serving_threads: 0,
        };
        let deps = des_retriever::Deps {
            zones: Arc::clone(&self.zones),
            clock: Arc::clone(&self.clock),
            dice: Arc::clone(&self.dice),
            metrics: Metrics::new(),
        };
        let started = Retriever::start(config, deps, self.shutdown.clone()).await;
        started.map_err(|e| CliError::failed(format!("the retriever does not start: {e}")))
    }

    async fn worker(&self, lease: Duration) -> Result<des_worker::RunningWorker, CliError> {
        let options = des_worker::config::WorkerOptions {
            name: format!("des, process {}", std::process::id()),
            slots: u32::try_from(self.setup.slots).unwrap_or(u32::MAX),
            lease,
            heartbeat: des_worker::config::DEFAULT_HEARTBEAT,
            stall: des_worker::config::DEFAULT_STALL,
            drain: DRAIN,
            listen: None,
            limits: des_worker::pack::PackLimits::default(),
            probe_stores: false,
        };
        let registry = Metrics::new();
        let deps = des_worker::Deps {
            queue: self.queue.clone(),
            state: self.state.clone(),
            zones: Arc::clone(&self.zones),
            sources: Arc::new(Sources::new(self.setup.roots.clone(), BTreeMap::new())),
            clock: Arc::clone(&self.clock),
            dice: Arc::clone(&self.dice),
            metrics: WorkerMetrics::register(&registry),
            registry,
        };
        let started = des_worker::start(options, deps, self.shutdown.clone()).await;
        started.map_err(|e| CliError::failed(format!("the worker does not start: {e}")))
    }
}

fn listen(address: SocketAddr) -> Listen {
    Listen { address, auth: Auth::default(), drain: DRAIN }
}

/// The uids in a published shard's index.
async fn uids_of(store: SharedStore, key: String) -> Result<HashSet<Uid>, String> {
    let shard = RemoteShard::open(store, &key).await.map_err(|e| e.to_string())?;
    let entries = shard.entries().map_err(|e| e.to_string());
    entries.and_then(async |entry| Uid::new(entry.uid).map_err(|e| e.to_string())).try_collect().await
}

/// The address to use. A usual port that is taken gives way to a free one, and people are told.
fn choose_port(port: Port, name: &str, flag: &str, screen: Screen) -> Result<SocketAddr, CliError> {
    match port {
        Port::Exactly(address) if address.port() == 0 => Ok(address),
        Port::Exactly(address) => match TcpListener::bind(address) {
            Ok(_) => Ok(address),
            Err(e) => Err(CliError::failed(format!("the {name} cannot listen on {address}: {e}"))
                .hint(format!("stop what listens there, or choose another address with {flag}"))),
        },
        Port::Usual(address) => match TcpListener::bind(address) {
            Ok(_) => Ok(address),
            Err(e) => {
                screen.note(&format!("{address} cannot be used by the {name} ({e}); taking a free port"));
                Ok(SocketAddr::new(address.ip(), 0))
            }
        },
    }
}

/// Makes sure that no other process works on this folder.
fn lock_folder(data: &Path) -> Result<File, CliError> {
    let path = data.join(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| CliError::path("write", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(CliError::failed(format!("another des dev or des demo is running on {}", data.display()))
                .hint("stop it, or choose another folder with --data"))
        }
        Err(TryLockError::Error(e)) => Err(CliError::path("lock", &path, &e)),
    }
}

/// The width of the shard index: what the folder was begun with decides, for its shards lie by it.
fn settle_n_bits(data: &Path, asked: Option<NBits>, usual: NBits) -> Result<NBits, CliError> {
    let path = data.join("dev.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let record: DevRecord = serde_json::from_slice(&bytes)
                .map_err(|e| CliError::failed(format!("{} is not readable: {e}", path.display())))?;
            match asked {
                Some(asked) if asked != record.n_bits => Err(CliError::usage(format!(
                    "--n-bits is {}, but {} was begun with {}",
                    asked.get(),
                    data.display(),
                    record.n_bits.get()
                ))
                .hint("leave --n-bits out, or choose another folder")),
                _ => Ok(record.n_bits),
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let record = DevRecord { n_bits: asked.unwrap_or(usual) };
            let bytes = serde_json::to_vec(&record).map_err(|e| CliError::failed(format!("cannot write JSON: {e}")))?;
            std::fs::write(&path, bytes).map_err(|e| CliError::path("write", &path, &e))?;
            Ok(record.n_bits)
        }
        Err(e) => Err(CliError::path("read", &path, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_keeps_its_width() {
        let dir = tempfile::tempdir().unwrap();
        let bits = |n| NBits::new(n).unwrap();
        assert_eq!(settle_n_bits(dir.path(), Some(bits(6)), bits(4)).unwrap(), bits(6));
        assert_eq!(settle_n_bits(dir.path(), None, bits(4)).unwrap(), bits(6));
        assert!(matches!(settle_n_bits(dir.path(), Some(bits(8)), bits(4)), Err(CliError::Usage { .. })));
    }

    #[test]
    fn one_process_has_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_folder(dir.path()).unwrap();
        assert!(lock_folder(dir.path()).is_err());
        drop(first);
        lock_folder(dir.path()).unwrap();
    }

    #[test]
    fn a_taken_port_is_an_error_or_gives_way() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let screen = Screen::new(true);
        let error = choose_port(Port::Exactly(address), "coordinator", "--x", screen).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert_eq!(choose_port(Port::Usual(address), "coordinator", "--x", screen).unwrap().port(), 0);
    }
}
