//! A real cluster on one machine: redis-server, SeaweedFS with two zones in two buckets, coordinator, workers and
//! retriever as processes of their own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::servers::{Redis, SeaweedFs, ServerError, Supervised};

/// How long a service may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How a cluster is laid out.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Workers at the start.
    pub workers: usize,
    /// Lease time; a killed worker's tasks run again after it.
    pub lease: Duration,
    /// Folder sources may be read from.
    pub source_root: PathBuf,
    /// Source bytes of a shard.
    pub max_shard_size: u64,
    /// Further environment of every service.
    pub env: Vec<(String, String)>,
}

/// A running cluster. Dropping it kills everything and removes its folder.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    env: Vec<(String, String)>,
    /// The workers, in the order of their start.
    pub workers: Vec<Service>,
    /// The coordinator.
    pub coordinator: Service,
    /// The retriever.
    pub retriever: Service,
    /// Redis of the cluster.
    pub redis: Redis,
    /// The S3 server of the cluster.
    pub s3: Arc<SeaweedFs>,
    /// Names of the two zones' buckets.
    pub buckets: [String; 2],
    /// Workers started so far: each has a folder and a log of its own, also after another was taken out of the list.
    started: usize,
    folder: TempDir,
}

/// Ports on 127.0.0.1 under which services reach their servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Redis.
    pub redis: u16,
    /// S3.
    pub s3: u16,
}

/// One service process.
#[derive(Debug)]
pub struct Service {
    process: Supervised,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    folder: PathBuf,
}

/// Why a cluster is not there.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Redis or SeaweedFS.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The operating system.
    #[error("the cluster's folder or processes: {0}")]
    Io(#[from] io::Error),
    /// A program of the project is not built.
    #[error("{0} is not built; run `cargo build --workspace --bins` first")]
    NotBuilt(PathBuf),
    /// A service did not become ready.
    #[error("{program} was not ready within {READY_WITHIN:?}: {why}\n--- its log ---\n{log}")]
    NotReady {
        /// Its program.
        program: String,
        /// The last answer.
        why: String,
        /// The end of its log.
        log: String,
    },
}

/// A program of the project, built into the same target folder as the caller.
///
/// # Errors
/// [`ClusterError::NotBuilt`].
pub fn program(name: &str) -> Result<PathBuf, ClusterError> {
    let here = std::env::current_exe()?;
    let mut folder = here.parent().unwrap_or(Path::new("/"));
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join(name);
    if path.is_file() { Ok(path) } else { Err(ClusterError::NotBuilt(path)) }
}

impl Cluster {
    /// Starts everything and waits until every service is ready.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let s3 = SeaweedFs::shared().await?;
        let redis = Redis::start().await?;
        Self::start_on(options, redis, s3).await
    }

    /// The same on servers that run already.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start_on(options: ClusterOptions, redis: Redis, s3: Arc<SeaweedFs>) -> Result<Self, ClusterError> {
        let ports = Ports { redis: redis.port(), s3: s3.port() };
        Self::start_through(options, redis, s3, ports).await
    }

    /// The same with something between the services and their servers, on other ports of 127.0.0.1.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start_through(
        options: ClusterOptions,
        redis: Redis,
        s3: Arc<SeaweedFs>,
        ports: Ports,
    ) -> Result<Self, ClusterError> {
        let folder = tempfile::Builder::new().prefix("des-cluster-").tempdir()?;
        let buckets = [s3.new_bucket().await?, s3.new_bucket().await?];
        let zones = folder.path().join("zones.yaml");
        std::fs::write(&zones, zones_file(&buckets, &format!("http://127.0.0.1:{}", ports.s3)))?;
        let (access, secret) = SeaweedFs::credentials();
        let spool = folder.path().join("spool");
        std::fs::create_dir(&spool)?;
        let mut env: Vec<(String, String)> = [
            ("DES_REDIS_URL", redis.url_through(ports.redis)),
            ("DES_BACKEND", "multi_s3".to_owned()),
            ("DES_ZONES_CONFIG", zones.display().to_string()),
            ("DES_SOURCE_ROOTS", options.source_root.display().to_string()),
            ("DES_LEASE_SECONDS", options.lease.as_secs().max(1).to_string()),
            ("DES_MAX_SHARD_SIZE", options.max_shard_size.to_string()),
            ("DES_SPOOL_DIR", spool.display().to_string()),
            ("DES_LISTEN", "127.0.0.1:0".to_owned()),
            ("DES_LOG_FORMAT", "json".to_owned()),
            ("AWS_ACCESS_KEY_ID", access.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        env.extend(options.env.iter().cloned());
        let coordinator = Service::start(folder.path(), "des-coordinator", "coordinator", &env).await?;
        let retriever_env: Vec<_> = env.iter().filter(|(name, _)| name != "DES_REDIS_URL").cloned().collect();
        let retriever = Service::start(folder.path(), "des-retriever", "retriever", &retriever_env).await?;
        let mut cluster =
            Self { options, env, workers: Vec::new(), coordinator, retriever, redis, s3, buckets, started: 0, folder };
        for _ in 0..cluster.options.workers {
            cluster.add_worker().await?;
        }
        Ok(cluster)
    }

    /// Starts one more worker.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn add_worker(&mut self) -> Result<(), ClusterError> {
        let name = format!("worker-{}", self.started);
        self.started += 1;
        let worker = Service::start(self.folder.path(), "des-worker", &name, &self.env).await?;
        self.workers.push(worker);
        Ok(())
    }

    /// Starts one more worker without waiting until it is ready: its servers may be away.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn spawn_worker(&mut self) -> Result<(), ClusterError> {
        let worker = self.spawn("des-worker", "worker")?;
        self.workers.push(worker);
        Ok(())
    }

    /// Starts one more coordinator without waiting until it is ready.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn spawn_coordinator(&mut self) -> Result<Service, ClusterError> {
        self.spawn("des-coordinator", "coordinator")
    }

    fn spawn(&mut self, program_name: &str, kind: &str) -> Result<Service, ClusterError> {
        let name = format!("{kind}-{}", self.started);
        self.started += 1;
        Service::spawn(self.folder.path(), program_name, &name, &self.env)
    }

    /// Environment that lets the command line reach the zones' buckets.
    pub fn s3_env(&self) -> Vec<(String, String)> {
        let wanted = |name: &str| name.starts_with("AWS_") || name == "DES_ZONES_CONFIG" || name == "DES_BACKEND";
        let mut env: Vec<_> = self.env.iter().filter(|(name, _)| wanted(name)).cloned().collect();
        env.push(("DES_S3_ENDPOINT_URL".to_owned(), self.s3.endpoint()));
        env
    }
}

/// Bits of the shard index of every cluster.
pub const N_BITS: &str = "4";
/// Names of the two zones, also the prefixes in their buckets.
pub const ZONE_NAMES: [&str; 2] = ["zone-a", "zone-b"];

fn zones_file(buckets: &[String; 2], endpoint: &str) -> String {
    let zone = |name: &str, bucket: &str, start: u32, end: u32| {
        format!(
            "  - name: {name}\n    range: {{ start: {start}, end: {end} }}\n    s3: {{ bucket: {bucket}, region_name: us-east-1, endpoint_url: \"{endpoint}\", prefix: {name}/ }}\n"
        )
    };
    let [a, b] = ZONE_NAMES;
    format!("n_bits: {N_BITS}\nzones:\n{}{}", zone(a, &buckets[0], 0, 7), zone(b, &buckets[1], 8, 15))
}

impl Service {
    /// Starts a service in a folder of its own and waits until it says it is ready.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start(
        parent: &Path,
        program_name: &str,
        name: &str,
        env: &[(String, String)],
    ) -> Result<Self, ClusterError> {
        let mut service = Self::spawn(parent, program_name, name, env)?;
        service.wait_ready(program_name).await?;
        Ok(service)
    }

    /// Starts a service in a folder of its own.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn spawn(
        parent: &Path,
        program_name: &str,
        name: &str,
        env: &[(String, String)],
    ) -> Result<Self, ClusterError> {
        let folder = parent.join(name);
        std::fs::create_dir_all(&folder)?;
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let process = Supervised::start(&folder, &program(program_name)?, std::iter::empty::<&str>(), &env)?;
        Ok(Self { process, url: String::new(), folder })
    }

    /// Where it listens, once it says so.
    pub fn address(&mut self) -> Option<&str> {
        if self.url.is_empty() {
            self.url = listening(&self.log())?;
        }
        Some(&self.url)
    }

    /// What the service has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.process.signal(signal)
    }

    /// Kills the process with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill().map(drop)
    }

    /// The exit code when the process has ended by itself.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn exit_code(&mut self) -> io::Result<Option<i32>> {
        Ok(self.process.ended()?.and_then(|status| status.code()))
    }

    async fn wait_ready(&mut self, program: &str) -> Result<(), ClusterError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let why = match self.ask_ready().await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            let ended = self.process.ended()?.is_some();
            if ended || Instant::now() > deadline {
                let why = if ended { format!("it ended; {why}") } else { why };
                return Err(ClusterError::NotReady { program: program.to_owned(), why, log: self.process.log_tail() });
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    async fn ask_ready(&mut self) -> Result<(), String> {
        if self.url.is_empty() {
            self.url = listening(&self.log()).ok_or("it does not listen yet")?;
        }
        let answer = reqwest::get(format!("{}/health/ready", self.url)).await.map_err(|e| e.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
    }
}

/// The address in the line a service logs when it listens.
fn listening(log: &str) -> Option<String> {
    log.lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let address = line.get("address")?.as_str()?;
        (line.get("message")?.as_str()? == "listening").then(|| format!("http://{address}"))
    })
}
