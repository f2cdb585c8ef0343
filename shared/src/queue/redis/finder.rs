//! Opens connections to the one server that takes our scripts: the server of the URL, the master that Sentinels name,
//! or the cluster node that owns the namespace's slot.
//!
//! A server that cannot be used is refused here, with the reason: a replica, a Sentinel, a version that is too old.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionInfo, FromRedisValue, PushInfo, PushKind, RedisError, Value};

use super::place::{Place, at, split_address};

/// Scripts say in their first line that they may run at the memory limit; older servers cannot read that.
pub(super) const OLDEST_SERVER: u32 = 7;
/// Nodes of a cluster that are remembered, besides those of the URL.
const MAX_LEARNT: usize = 64;

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum OpenError {
    /// It may work later.
    Down(String),
    /// Somebody has to change something first.
    Wrong(String),
}

impl OpenError {
    fn text(self) -> String {
        match self {
            Self::Down(text) | Self::Wrong(text) => text,
        }
    }
}

/// An open connection. Many calls use it side by side; dropped with its last clone.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) connection: MultiplexedConnection,
    /// Where it leads, for a further connection to the same server.
    pub(super) info: ConnectionInfo,
    /// Set as soon as the other end is known to be gone.
    lost: Arc<AtomicBool>,
}

impl Live {
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lost, &other.lost)
    }

    /// Host and port.
    pub(super) fn address(&self) -> String {
        self.info.addr().to_string()
    }
}

/// What a server says of itself.
#[derive(Debug, Default)]
struct Hello {
    version: String,
    mode: String,
    role: String,
}

/// Finds the right server, again for each connection: it may have changed.
pub(super) struct Finder {
    place: Place,
    /// The hash tag of the namespace, whose slot counts in a cluster.
    tag: String,
    connect_timeout: Duration,
    response_timeout: Duration,
    /// Nodes of a cluster or Sentinels, the most promising first.
    candidates: Mutex<Vec<ConnectionInfo>>,
}

impl Finder {
    pub(super) fn new(place: Place, tag: &str, connect_timeout: Duration, response_timeout: Duration) -> Self {
        let candidates = match &place {
            Place::Server(server) => vec![server.clone()],
            Place::Sentinel { sentinels, .. } => sentinels.clone(),
            Place::Cluster { seeds } => seeds.clone(),
        };
        let candidates = Mutex::new(candidates);
        Self { place, tag: tag.to_owned(), connect_timeout, response_timeout, candidates }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster { .. })
    }

    /// A node of the cluster said where the slot is.
    pub(super) fn moved_to(&self, from: &Live, address: &str) {
        if let Some((host, port)) = split_address(address) {
            self.prefer(node(&from.info, host, port));
        }
    }

    /// Opens a connection to the right server.
    pub(super) async fn open(&self) -> Result<Live, OpenError> {
        let candidates = self.candidates().clone();
        // One that swallows packets must not use up the time of those behind it.
        let each = self.connect_timeout / u32::try_from(candidates.len().clamp(1, 4)).unwrap_or(1);
        let mut problems = Vec::new();
        for candidate in &candidates {
            let opened = match &self.place {
                Place::Server(_) => self.open_server(candidate, each).await,
                Place::Sentinel { master, server, .. } => self.open_master(candidate, master, server, each).await,
                Place::Cluster { .. } => self.open_owner(candidate, each).await,
            };
            match opened {
                Ok(live) => return Ok(live),
                Err(OpenError::Wrong(text)) => return Err(OpenError::Wrong(text)),
                Err(problem) => {
                    problems.push(problem.text());
                    self.avoid(candidate);
                }
            }
        }
        Err(OpenError::Down(problems.join("; ")))
    }

    async fn open_server(&self, server: &ConnectionInfo, within: Duration) -> Result<Live, OpenError> {
        let (live, hello) = self.greet(server, within).await?;
        match hello.mode.as_str() {
            "sentinel" => wrong(&live, "is a Sentinel: the URL for that begins with redis+sentinel://"),
            "cluster" => wrong(&live, "is a node of a cluster: the URL for that begins with redis+cluster://"),
            _ if hello.role == "replica" => down(&live, "is a replica and takes no changes"),
            _ => Ok(live),
        }
    }

    /// Asks a Sentinel for the master and goes there. What the Sentinel says may be old, so the master is asked, too.
    async fn open_master(
        &self,
        sentinel: &ConnectionInfo,
        master: &str,
        server: &ConnectionInfo,
        within: Duration,
    ) -> Result<Live, OpenError> {
        let mut asked = self.connect(sentinel, within).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let answer: Option<(String, u16)> = ask(&mut asked, &question, "which server is the master").await?;
        self.prefer(sentinel.clone());
        let Some((host, port)) = answer else {
            return Err(OpenError::Down(format!("{} knows no master {master:?}", asked.address())));
        };
        let (live, hello) = self.greet(&at(server, &host, port), within).await?;
        match hello.role.as_str() {
            "replica" => down(&live, "is named as the master by the Sentinels, but is a replica"),
            _ => Ok(live),
        }
    }

    /// Asks a node who owns the slot and goes there.
    async fn open_owner(&self, node: &ConnectionInfo, within: Duration) -> Result<Live, OpenError> {
        let (mut live, hello) = self.greet(node, within).await?;
        if !matches!(hello.mode.as_str(), "cluster" | "") {
            return wrong(&live, "is no node of a cluster");
        }
        let slot: u16 = ask(&mut live, redis::cmd("CLUSTER").arg("KEYSLOT").arg(&self.tag), "for our slot").await?;
        let slots: Vec<Value> = ask(&mut live, redis::cmd("CLUSTER").arg("SLOTS"), "for the slots").await?;
        let (owner, nodes) = read_slots(&live.info, &slots, slot);
        self.learn(nodes);
        let Some(owner) = owner else { return down(&live, &format!("knows no node for slot {slot}")) };
        if owner.addr() == node.addr() {
            return Ok(live);
        }
        let (live, _) = self.greet(&owner, within).await?;
        self.prefer(owner);
        Ok(live)
    }

    /// Connects, and hears what the server is.
    async fn greet(&self, server: &ConnectionInfo, within: Duration) -> Result<(Live, Hello), OpenError> {
        let mut live = self.connect(server, within).await?;
        let told: HashMap<String, Value> = match redis::cmd("HELLO").query_async(&mut live.connection).await {
            Ok(told) => told,
            // Something in between that speaks only the old protocol, as the URL asked for: nothing to go by.
            Err(_) if server.redis_settings().protocol() == redis::ProtocolVersion::RESP2 => {
                return Ok((live, Hello::default()));
            }
            Err(error) => return down(&live, &format!("does not say what it is: {error}")),
        };
        let text = |name| told.get(name).and_then(|value| String::from_redis_value_ref(value).ok()).unwrap_or_default();
        let hello = Hello { version: text("version"), mode: text("mode"), role: text("role") };
        match hello.version.split('.').next().map(str::parse::<u32>) {
            Some(Ok(major)) if major < OLDEST_SERVER && hello.mode != "sentinel" => {
                wrong(&live, &format!("is version {}, and {OLDEST_SERVER}.0 or newer is needed", hello.version))
            }
            _ => Ok((live, hello)),
        }
    }

    /// A connection of its own: the pool opens it within its limit and keeps nothing.
    async fn connect(&self, server: &ConnectionInfo, within: Duration) -> Result<Live, OpenError> {
        let lost = Arc::new(AtomicBool::new(false));
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(within))
            .set_response_timeout(Some(self.response_timeout));
        if server.redis_settings().protocol() == redis::ProtocolVersion::RESP3 {
            let lost = Arc::clone(&lost);
            config = config.set_push_sender(move |told: PushInfo| {
                if told.kind == PushKind::Disconnection {
                    lost.store(true, Ordering::Relaxed);
                }
                Ok::<(), std::convert::Infallible>(())
            });
        }
        let at = |what: &dyn std::fmt::Display| OpenError::Down(format!("{}: {what}", server.addr()));
        let manager = Manager::new_with_config(server.clone(), config).map_err(|error| at(&error))?;
        let pool = Pool::builder(manager).max_size(1).create_timeout(Some(within)).runtime(Runtime::Tokio1).build();
        match pool.map_err(|error| at(&error))?.get().await {
            Ok(object) => {
                let connection = deadpool_redis::Connection::take(object);
                Ok(Live { connection, info: server.clone(), lost })
            }
            Err(PoolError::Backend(error)) => Err(at(&error)),
            Err(PoolError::Timeout(_)) => Err(at(&format!("no connection within {within:?}"))),
            Err(error) => Err(at(&error)),
        }
    }

    fn candidates(&self) -> MutexGuard<'_, Vec<ConnectionInfo>> {
        self.candidates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries this one first from now on.
    fn prefer(&self, info: ConnectionInfo) {
        let mut candidates = self.candidates();
        candidates.retain(|known| known.addr() != info.addr());
        candidates.insert(0, info);
    }

    /// Tries this one last from now on.
    fn avoid(&self, info: &ConnectionInfo) {
        let mut candidates = self.candidates();
        if let Some(index) = candidates.iter().position(|known| known.addr() == info.addr()) {
            let info = candidates.remove(index);
            candidates.push(info);
        }
    }

    /// Remembers nodes the URL does not name: those of the URL may all be gone one day.
    fn learn(&self, nodes: Vec<ConnectionInfo>) {
        let Place::Cluster { seeds } = &self.place else { return };
        let mut candidates = self.candidates();
        candidates.retain(|known| seeds.iter().chain(&nodes).any(|node| node.addr() == known.addr()));
        for node in nodes.into_iter().take(MAX_LEARNT) {
            if candidates.iter().all(|known| known.addr() != node.addr()) {
                candidates.push(node);
            }
        }
    }
}

fn down<T>(live: &Live, why: &str) -> Result<T, OpenError> {
    Err(OpenError::Down(format!("{} {why}", live.address())))
}

fn wrong<T>(live: &Live, why: &str) -> Result<T, OpenError> {
    Err(OpenError::Wrong(format!("{} {why}", live.address())))
}

async fn ask<T: FromRedisValue>(live: &mut Live, question: &redis::Cmd, what: &str) -> Result<T, OpenError> {
    let answer: Result<T, RedisError> = question.query_async(&mut live.connection).await;
    answer.map_err(|error| OpenError::Down(format!("{}, asked {what}: {error}", live.address())))
}

/// A node as another one names it. An empty host is the other one's own.
fn node(from: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    match from.addr() {
        redis::ConnectionAddr::Tcp(own, _) | redis::ConnectionAddr::TcpTls { host: own, .. }
            if matches!(host, "" | "?") =>
        {
            at(from, own, port)
        }
        _ => at(from, host, port),
    }
}

/// The owner of a slot, and every node, from the answer to CLUSTER SLOTS: rows of first and last slot, the master, and
/// its replicas; each node has its host and port in front. Rows that cannot be read are left out.
fn read_slots(from: &ConnectionInfo, rows: &[Value], slot: u16) -> (Option<ConnectionInfo>, Vec<ConnectionInfo>) {
    let (mut owner, mut nodes) = (None, Vec::new());
    for row in rows {
        let Value::Array(row) = row else { continue };
        let [Value::Int(first), Value::Int(last), named @ ..] = row.as_slice() else { continue };
        for (index, value) in named.iter().enumerate() {
            let Value::Array(parts) = value else { continue };
            let [host, Value::Int(port), ..] = parts.as_slice() else { continue };
            let host = String::from_redis_value_ref(host).unwrap_or_default();
            let Ok(port) = u16::try_from(*port) else { continue };
            let info = node(from, &host, port);
            if index == 0 && (*first..=*last).contains(&i64::from(slot)) {
                owner = Some(info.clone());
            }
            nodes.push(info);
        }
    }
    (owner, nodes)
}
