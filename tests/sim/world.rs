//! Servers, processes and files of one run. Everything is decided by the seed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use des_coordinator::{Config, Deps as CoordinatorDeps, Embedded, Limits, ShardInspector};
use des_shared::clock::Dice;
use des_shared::config::{Auth, Listen, SourceRoots};
use des_shared::job::JobDefaults;
use des_shared::metrics::Metrics;
use des_shared::queue::memory::MemoryQueue;
use des_shared::queue::{QueueConfig, SharedQueue};
use des_shared::retry::RetryPolicy;
use des_shared::routing::{NBits, shard_index};
use des_shared::service::Shutdown;
use des_shared::state::StateStore;
use des_shared::store::memory::MemoryStore;
use des_shared::store::retrying::RetryingStore;
use des_shared::store::zones::Zones;
use des_shared::store::{ObjectStore, SharedStore, WriteOptions};
use des_worker::budget::Budget;
use des_worker::config::WorkerOptions;
use des_worker::metrics::WorkerMetrics;
use des_worker::pack::PackLimits;
use des_worker::source::Sources;
use des_worker::{Deps as WorkerDeps, RunningWorker};

use crate::ledger::Ledger;
use crate::net::{Net, Node, SimClock, Target};
use crate::net_queue::NetQueue;
use crate::net_store::NetStore;

/// When every run begins, Unix milliseconds.
const BEGINNING_MS: u64 = 1_750_000_000_000;
/// How long a lease lives.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// The bucket of the sources.
const BUCKET: &str = "src";
const BITS: u8 = 4;

/// One source file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) uid: String,
    pub(crate) created_at: String,
    pub(crate) size: u64,
    /// Key in the bucket of the sources.
    pub(crate) key: String,
}

pub(crate) struct WorkerProcess {
    pub(crate) node: Arc<Node>,
    pub(crate) running: RunningWorker,
    pub(crate) shutdown: Shutdown,
    /// Its clock goes so slowly that it never notices that a lease ran out.
    pub(crate) deluded: bool,
}

pub(crate) struct CoordinatorProcess {
    pub(crate) node: Arc<Node>,
    pub(crate) embedded: Embedded,
    pub(crate) shutdown: Shutdown,
}

#[derive(Default)]
struct Processes {
    started: u32,
    workers: Vec<WorkerProcess>,
    coordinators: Vec<CoordinatorProcess>,
}

pub(crate) struct World {
    pub(crate) net: Arc<Net>,
    pub(crate) queue: Arc<MemoryQueue>,
    pub(crate) state: Arc<MemoryStore>,
    pub(crate) zone: Arc<MemoryStore>,
    pub(crate) sources: Arc<MemoryStore>,
    pub(crate) dice: Dice,
    pub(crate) files: Vec<File>,
    /// Everything each source ever was, by key; a source that was ever missing has an empty place.
    versions: Mutex<BTreeMap<String, Vec<Option<Bytes>>>>,
    limits: PackLimits,
    processes: Mutex<Processes>,
}

impl World {
    pub(crate) async fn new(seed: u64, keep_log: bool) -> Arc<Self> {
        let dice = Dice::seeded(seed);
        let clock = Arc::new(SimClock::new(BEGINNING_MS));
        let net = Net::new(Dice::seeded(dice.up_to(u64::MAX)), Arc::clone(&clock), Ledger::new(keep_log));
        let config = QueueConfig {
            lease: LEASE,
            max_attempts: 3 + dice.up_to(3) as u32,
            backoff_base: Duration::from_millis(500),
            backoff_max: Duration::from_secs(10),
            ..QueueConfig::default()
        };
        let store = |name| Arc::new(MemoryStore::new(name, clock.clone()).with_small_parts());
        let queue = MemoryQueue::new(config, clock.clone(), Arc::new(Dice::seeded(dice.up_to(u64::MAX))));
        let limits = PackLimits {
            part_bytes: 300 + dice.up_to([500, 5000][dice.up_to(1) as usize]) as usize,
            parts_in_flight: 1 + dice.up_to(2) as usize,
            batches_ahead: 1 + dice.up_to(3) as usize,
            budget: Budget::new(1 << 20, 2),
        };
        let files = make_files(&dice);
        let world = Arc::new(Self {
            queue: Arc::new(queue),
            state: store("state"),
            zone: store("zone"),
            sources: store("src"),
            net,
            dice,
            files,
            versions: Mutex::default(),
            limits,
            processes: Mutex::default(),
        });
        for file in &world.files {
            world.write_source(&file.key, Some(content(&world.dice, file.size))).await;
        }
        world
    }

    /// Changes a source, behind everybody's back.
    pub(crate) async fn write_source(&self, key: &str, content: Option<Bytes>) {
        let done = match &content {
            Some(bytes) => self.sources.put(key, bytes.clone(), &WriteOptions::overwrite()).await.map(drop),
            None => self.sources.delete(key).await,
        };
        done.expect("a store in memory");
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.entry(key.to_owned()).or_default().push(content);
    }

    /// Everything a source ever was.
    pub(crate) fn versions(&self, key: &str) -> Vec<Option<Bytes>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned().unwrap_or_default()
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_node(&self, kind: &str) -> Arc<Node> {
        let mut processes = self.processes();
        processes.started += 1;
        Node::new(&self.net, format!("{kind}{}", processes.started))
    }

    pub(crate) async fn start_worker(&self, deluded: bool) {
        let node = self.new_node("w");
        let dice = Arc::new(Dice::seeded(self.dice.up_to(u64::MAX)));
        let registry = Metrics::new();
        let deps = WorkerDeps {
            queue: Arc::new(NetQueue::new(&node, &self.queue)) as SharedQueue,
            state: StateStore::new(through(&node, Target::State, &self.state, &dice)),
            zones: Arc::new(Zones::single(bits(), through(&node, Target::Zone, &self.zone, &dice))),
            sources: Arc::new(Sources::new(roots(), self.buckets(&node, &dice))),
            clock: self.net.clock.clone(),
            dice,
            metrics: WorkerMetrics::register(&registry),
            registry,
        };
        let options = WorkerOptions {
            name: node.name.clone(),
            slots: 1 + self.dice.up_to(1) as u32,
            lease: if deluded { LEASE * 100 } else { LEASE },
            heartbeat: if deluded { LEASE * 100 } else { Duration::from_secs(1) },
            stall: Duration::from_mins(10),
            drain: Duration::from_secs(5),
            listen: None,
            limits: self.limits.clone(),
            probe_stores: false,
        };
        let shutdown = Shutdown::new();
        self.net.event(format_args!("{} starts, deluded: {deluded}", node.name));
        let running = des_worker::start(options, deps, shutdown.clone()).await.expect("it binds nothing");
        self.processes().workers.push(WorkerProcess { node, running, shutdown, deluded });
    }

    pub(crate) fn start_coordinator(&self) {
        let node = self.new_node("c");
        let dice = Arc::new(Dice::seeded(self.dice.up_to(u64::MAX)));
        let deps = CoordinatorDeps {
            queue: Arc::new(NetQueue::new(&node, &self.queue)) as SharedQueue,
            state: StateStore::new(through(&node, Target::State, &self.state, &dice)),
            zones: Arc::new(Zones::single(bits(), through(&node, Target::Zone, &self.zone, &dice))),
            buckets: self.buckets(&node, &dice),
            inspector: ShardInspector::default(),
            clock: self.net.clock.clone(),
            dice,
            metrics: Metrics::new(),
        };
        let address = "127.0.0.1:0".parse().expect("an address");
        let limits = Limits {
            tick: Duration::from_secs(2),
            reconcile: Duration::from_secs(15),
            lock: Duration::from_secs(12),
            cancel_grace: LEASE,
            tidy: Duration::from_secs(20),
            orphans: Some(Duration::from_mins(2)),
            ..Limits::default()
        };
        let config = Config {
            listen: Listen { address, auth: Auth::default(), drain: Duration::from_secs(5) },
            defaults: JobDefaults { n_bits: bits(), ..JobDefaults::default() },
            roots: roots(),
            spool_dir: std::env::temp_dir(),
            limits,
        };
        let shutdown = Shutdown::new();
        self.net.event(format_args!("{} starts", node.name));
        let embedded = Embedded::start(config, deps, shutdown.clone());
        self.processes().coordinators.push(CoordinatorProcess { node, embedded, shutdown });
    }

    fn buckets(&self, node: &Arc<Node>, dice: &Arc<Dice>) -> BTreeMap<String, SharedStore> {
        BTreeMap::from([(BUCKET.to_owned(), through(node, Target::Sources, &self.sources, dice))])
    }

    /// The interface of some coordinator that is there.
    pub(crate) fn some_coordinator(&self) -> Option<Router> {
        let processes = self.processes();
        let last = processes.coordinators.len().checked_sub(1)?;
        let chosen = self.dice.up_to(last as u64) as usize;
        processes.coordinators.get(chosen).map(|process| process.embedded.router.clone())
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.processes().workers.len()
    }

    pub(crate) fn coordinator_count(&self) -> usize {
        self.processes().coordinators.len()
    }

    /// Takes some worker out of the list.
    pub(crate) fn take_worker(&self, wanted: impl Fn(&WorkerProcess) -> bool) -> Option<WorkerProcess> {
        let mut processes = self.processes();
        let fitting: Vec<usize> = (0..processes.workers.len()).filter(|at| wanted(&processes.workers[*at])).collect();
        let chosen = *fitting.get(self.dice.up_to(fitting.len().checked_sub(1)? as u64) as usize)?;
        Some(processes.workers.remove(chosen))
    }

    /// Takes some coordinator out of the list.
    pub(crate) fn take_coordinator(&self) -> Option<CoordinatorProcess> {
        let mut processes = self.processes();
        let last = processes.coordinators.len().checked_sub(1)?;
        let chosen = self.dice.up_to(last as u64) as usize;
        Some(processes.coordinators.remove(chosen))
    }

    /// Every process.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        let processes = self.processes();
        let workers = processes.workers.iter().map(|process| Arc::clone(&process.node));
        workers.chain(processes.coordinators.iter().map(|process| Arc::clone(&process.node))).collect()
    }

    /// SIGKILL.
    pub(crate) fn kill_worker(&self, wanted: impl Fn(&WorkerProcess) -> bool) -> bool {
        let Some(process) = self.take_worker(wanted) else { return false };
        self.net.event(format_args!("{} is killed", process.node.name));
        process.node.die();
        drop(process.running);
        true
    }

    /// SIGKILL.
    pub(crate) fn kill_coordinator(&self) {
        let Some(process) = self.take_coordinator() else { return };
        self.net.event(format_args!("{} is killed", process.node.name));
        process.node.die();
    }

    /// The state store as it is.
    pub(crate) fn true_state(&self) -> StateStore {
        StateStore::new(self.state.clone())
    }
}

fn bits() -> NBits {
    NBits::new(BITS).expect("a width")
}

fn roots() -> SourceRoots {
    SourceRoots { folders: Vec::new(), buckets: vec![(BUCKET.to_owned(), String::new())] }
}

/// A store as a process sees it: with the retries of a real one.
fn through(node: &Arc<Node>, target: Target, store: &Arc<MemoryStore>, dice: &Arc<Dice>) -> SharedStore {
    let store = Arc::new(NetStore::new(node, target, store));
    Arc::new(RetryingStore::new(store, RetryPolicy::QUICK, Arc::clone(dice)))
}

/// Files on two dates and in two places of the index, so that shards have several and jobs meet in the same places.
fn make_files(dice: &Dice) -> Vec<File> {
    let count = 3 + dice.up_to(40);
    let places = [dice.up_to(15) as u32, dice.up_to(15) as u32];
    let days = dice.up_to(1);
    (0..count)
        .map(|number| {
            let uid = loop {
                let uid = format!("file-{number}-{:x}", dice.up_to(1 << 20));
                if places.contains(&shard_index(&uid, bits())) {
                    break uid;
                }
            };
            let size = match dice.up_to(20) {
                0 => 0,
                1..3 => 4000 + dice.up_to(8000),
                _ => dice.up_to(2500),
            };
            let day = 10 + dice.up_to(days);
            File { uid, created_at: format!("2025-03-{day}T12:00:00Z"), size, key: format!("files/{number}") }
        })
        .collect()
}

/// Bytes of a file; half of them compress.
pub(crate) fn content(dice: &Dice, size: u64) -> Bytes {
    let size = size as usize;
    let seed: [u8; 32] = dice.bytes();
    let noisy = seed[0].is_multiple_of(2);
    let mut state = u64::from_le_bytes(seed[..8].try_into().expect("eight bytes")) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if noisy {
            bytes.extend_from_slice(&state.to_le_bytes());
        } else {
            bytes.extend_from_slice(format!("{{\"id\": {}}}", state % 1000).as_bytes());
        }
    }
    bytes.truncate(size);
    bytes.into()
}
