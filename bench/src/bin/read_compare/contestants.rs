//! Who serves, and how each is started.

use std::fmt;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use des_shared::store::{SharedStore, WriteOptions};
use des_tests::servers::SeaweedFs;
use futures::{StreamExt, TryStreamExt, stream};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::corpus::{self, Corpus, DAY};
use super::{Args, Failure};

/// Uploads under way.
const UPLOADS: usize = 32;

/// One way to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    Nginx,
    DesLocal,
    DesLocalCached,
    PythonLocal,
    PythonLocalOne,
    Volume,
    Plain,
    Ranges,
    DesS3,
    DesS3Cached,
    PythonS3,
    PythonS3One,
}

/// What is asked for: ours, theirs, at least.
pub(super) const RATIOS: [(Contestant, Contestant, &str); 12] = [
    (Contestant::DesLocal, Contestant::Nginx, "0.7"),
    (Contestant::DesLocalCached, Contestant::Nginx, "0.7"),
    (Contestant::DesLocal, Contestant::Volume, "2"),
    (Contestant::DesLocalCached, Contestant::Volume, "2"),
    (Contestant::DesS3, Contestant::Ranges, "0.9"),
    (Contestant::DesS3Cached, Contestant::Plain, "5"),
    (Contestant::DesLocal, Contestant::PythonLocal, "25"),
    (Contestant::DesLocal, Contestant::PythonLocalOne, "25"),
    (Contestant::DesS3, Contestant::PythonS3, "25"),
    (Contestant::DesS3, Contestant::PythonS3One, "25"),
    (Contestant::DesS3Cached, Contestant::PythonS3, "25"),
    (Contestant::DesS3Cached, Contestant::PythonS3One, "25"),
];

impl Contestant {
    pub(super) const ALL: [Self; 12] = [
        Self::Nginx,
        Self::DesLocal,
        Self::DesLocalCached,
        Self::PythonLocal,
        Self::PythonLocalOne,
        Self::Volume,
        Self::Plain,
        Self::Ranges,
        Self::DesS3,
        Self::DesS3Cached,
        Self::PythonS3,
        Self::PythonS3One,
    ];

    fn is_python(self) -> bool {
        self.name().starts_with("Python")
    }

    /// Processes of the Python retriever. Its image starts one.
    fn processes(self) -> &'static str {
        if matches!(self, Self::PythonLocal | Self::PythonS3) { "2" } else { "1" }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx, plain files",
            Self::DesLocal => "DES, local, payloads not cached",
            Self::DesLocalCached => "DES, local, payloads cached",
            Self::PythonLocal => "Python retriever, local, two processes",
            Self::PythonLocalOne => "Python retriever, local, as it is shipped",
            Self::Volume => "SeaweedFS volume server",
            Self::Plain => "SeaweedFS S3, plain objects",
            Self::Ranges => "SeaweedFS S3, bare ranges",
            Self::DesS3 => "DES, S3, payloads not cached",
            Self::DesS3Cached => "DES, S3, payloads cached",
            Self::PythonS3 => "Python retriever, S3, two processes",
            Self::PythonS3One => "Python retriever, S3, as it is shipped",
        }
    }
}

/// Path and query, and the range where one is asked for.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) path: String,
    pub(super) range: Option<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        self.range.as_ref().map_or(Ok(()), |range| write!(f, " {range}"))
    }
}

/// A contestant that answers. Its processes end when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) base: String,
    /// One for each file of the corpus.
    pub(super) targets: Vec<Target>,
    pub(super) folder: PathBuf,
    _processes: Option<Processes>,
}

/// A process and those that it started, which would outlive it when it alone were killed.
#[derive(Debug)]
struct Processes {
    first: Child,
    group: Pid,
}

impl Processes {
    fn start(command: &mut Command) -> std::io::Result<Self> {
        let first = command.process_group(0).kill_on_drop(true).spawn()?;
        let id = first.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| std::io::Error::other("no process"))?;
        Ok(Self { first, group: Pid::from_raw(id) })
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // When it has no processes left, all is well.
        let _ = killpg(self.group, Signal::SIGKILL);
    }
}

/// What all contestants share: files, shards, and the store with both.
#[derive(Debug)]
pub(super) struct Arena<'a> {
    corpus: &'a Corpus,
    python: Option<PathBuf>,
    n_bits: u8,
    weed: SeaweedFs,
    /// Shards of v3, of v2, and plain objects.
    buckets: [String; 3],
    /// URLs of the files on the volume server.
    volume: Vec<String>,
}

impl<'a> Arena<'a> {
    /// Starts the store and fills it.
    pub(super) async fn open(args: &Args, corpus: &'a Corpus) -> Result<Self, Failure> {
        let weed = SeaweedFs::start_open().await?;
        let mut buckets = [const { String::new() }; 3];
        for (bucket, folder) in buckets.iter_mut().zip([corpus.shards("v3"), corpus.shards("v2"), corpus.plain()]) {
            *bucket = weed.new_bucket().await?;
            let backend = des_shared::store::s3::S3Store::connect(&weed.config(bucket)).await?;
            upload(&(std::sync::Arc::new(backend) as SharedStore), &folder).await?;
        }
        let volume = fill_volume(&weed, corpus).await?;
        Ok(Self { corpus, python: args.python.clone(), n_bits: args.n_bits, weed, buckets, volume })
    }

    pub(super) fn has(&self, contestant: Contestant) -> bool {
        !contestant.is_python() || self.python.is_some()
    }

    /// Starts a contestant's process where it is not the store itself.
    pub(super) async fn start(&mut self, contestant: Contestant) -> Result<Running, Failure> {
        let by_uid = |prefix: &str| self.targets(|file| format!("{prefix}/{}", file.uid));
        let des = || self.targets(|file| format!("/files/{}?created_at={DAY}", file.uid));
        let local = self.corpus.shards("v3").display().to_string();
        match contestant {
            Contestant::Nginx => self.nginx(by_uid("")).await,
            Contestant::DesLocal => self.retriever(&[("DES_BASE_DIR", &local)], "0", des()).await,
            Contestant::DesLocalCached => self.retriever(&[("DES_BASE_DIR", &local)], "268435456", des()).await,
            Contestant::PythonLocal | Contestant::PythonLocalOne => {
                let folder = self.corpus.shards("v2").display().to_string();
                self.python(contestant.processes(), &[("DES_BACKEND", "local"), ("DES_BASE_DIR", &folder)], des()).await
            }
            Contestant::Volume => {
                let paths = self.volume.iter().map(|path| Target { path: path.clone(), range: None }).collect();
                Ok(self.of_store(self.weed.volume_endpoint(), paths))
            }
            Contestant::Plain => Ok(self.of_store(self.weed.endpoint(), by_uid(&format!("/{}", self.buckets[2])))),
            Contestant::Ranges => {
                let ranged = |file: &corpus::File| {
                    let (key, first, last) = file.stored.as_ref().ok_or_else(|| format!("{} is nowhere", file.uid))?;
                    let range = Some(format!("bytes={first}-{last}"));
                    Ok::<_, Failure>(Target { path: format!("/{}/{key}", self.buckets[0]), range })
                };
                let targets = self.corpus.files.iter().map(ranged).collect::<Result<_, _>>()?;
                Ok(self.of_store(self.weed.endpoint(), targets))
            }
            Contestant::DesS3 | Contestant::DesS3Cached => {
                let endpoint = self.weed.endpoint();
                let cache = if contestant == Contestant::DesS3 { "0" } else { "268435456" };
                let env = [
                    ("DES_BACKEND", "s3"),
                    ("DES_S3_BUCKET", self.buckets[0].as_str()),
                    ("DES_S3_ENDPOINT_URL", &endpoint),
                ];
                self.retriever(&env, cache, des()).await
            }
            Contestant::PythonS3 | Contestant::PythonS3One => {
                let endpoint = self.weed.endpoint();
                let env = [
                    ("DES_BACKEND", "s3"),
                    ("DES_S3_BUCKET", self.buckets[1].as_str()),
                    ("DES_S3_ENDPOINT_URL", &endpoint),
                ];
                self.python(contestant.processes(), &env, des()).await
            }
        }
    }

    fn targets(&self, path: impl Fn(&corpus::File) -> String) -> Vec<Target> {
        self.corpus.files.iter().map(|file| Target { path: path(file), range: None }).collect()
    }

    fn of_store(&self, base: String, targets: Vec<Target>) -> Running {
        Running { base, targets, folder: self.corpus.folder().to_owned(), _processes: None }
    }

    async fn nginx(&self, targets: Vec<Target>) -> Result<Running, Failure> {
        let (port, folder) = (free_port()?, self.corpus.folder());
        let at = folder.display();
        let text = format!(
            "daemon off; master_process on; worker_processes 2; pid {at}/nginx.pid; error_log {at}/nginx.log;\n\
             user root; events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type text/plain;\n\
             client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
            self.corpus.plain().display(),
        );
        let config = folder.join("nginx.conf");
        std::fs::write(&config, text)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&config).arg("-e").arg(folder.join("nginx.log"));
        self.process(command, port, targets).await
    }

    async fn retriever(&self, env: &[(&str, &str)], payloads: &str, targets: Vec<Target>) -> Result<Running, Failure> {
        let port = free_port()?;
        let mut command = Command::new(corpus::beside("des-retriever")?);
        command.envs(env.iter().copied()).env("DES_LISTEN", format!("127.0.0.1:{port}"));
        command.env("DES_N_BITS", self.n_bits.to_string()).env("DES_PAYLOAD_CACHE_BYTES", payloads);
        credentials(&mut command);
        self.process(command, port, targets).await
    }

    async fn python(&self, processes: &str, env: &[(&str, &str)], targets: Vec<Target>) -> Result<Running, Failure> {
        let folder = self.python.as_ref().ok_or("--python was not given")?;
        let port = free_port()?;
        let mut command = Command::new(folder.join("venv/bin/uvicorn"));
        command.args(["des_core.http_retriever:app", "--port", &port.to_string(), "--workers", processes]);
        command.args(["--no-access-log", "--log-level", "error"]).envs(env.iter().copied());
        command.env("DES_N_BITS", self.n_bits.to_string()).env("DES_S3_REGION", "us-east-1");
        // As the packer's side does it: its package need not be installed.
        command.current_dir(folder).env("PYTHONPATH", folder.join("src"));
        credentials(&mut command);
        self.process(command, port, targets).await
    }

    async fn process(&self, mut command: Command, port: u16, targets: Vec<Target>) -> Result<Running, Failure> {
        let log = std::fs::File::create(self.corpus.folder().join("log"))?;
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut processes = Processes::start(&mut command).map_err(|e| format!("{name}: {e}"))?;
        let base = format!("http://127.0.0.1:{port}");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let first = format!("{base}{}", targets[0].path);
            if reqwest::get(first).await.is_ok_and(|response| response.status().is_success()) {
                break;
            }
            if Instant::now() > deadline || processes.first.try_wait()?.is_some() {
                let log = std::fs::read_to_string(self.corpus.folder().join("log"))?;
                // The end of it says why; one that starts again and again writes megabytes.
                let lines: Vec<&str> = log.lines().rev().take(20).collect();
                let end: Vec<&str> = lines.into_iter().rev().collect();
                return Err(format!("{name} does not answer; its log ends with:\n{}", end.join("\n")).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Running { base, targets, folder: self.corpus.folder().to_owned(), _processes: Some(processes) })
    }
}

fn credentials(command: &mut Command) {
    let (key, secret) = SeaweedFs::credentials();
    command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret).env("AWS_REGION", "us-east-1");
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Every file of a folder as an object.
async fn upload(store: &SharedStore, folder: &Path) -> Result<(), Failure> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            paths.push(entry.path());
        }
    }
    let puts = paths.into_iter().map(|path| async move {
        let key = path.file_name().and_then(|name| name.to_str()).ok_or("a name is not UTF-8")?.to_owned();
        store.put(&key, std::fs::read(&path)?.into(), &WriteOptions::create_only()).await?;
        Ok::<_, Failure>(())
    });
    stream::iter(puts).buffer_unordered(UPLOADS).try_collect::<Vec<()>>().await?;
    Ok(())
}

/// Every file on the volume server; the paths in the order of the corpus.
async fn fill_volume(weed: &SeaweedFs, corpus: &Corpus) -> Result<Vec<String>, Failure> {
    let client = reqwest::Client::new();
    let count = corpus.files.len();
    let url = format!("{}/dir/assign?count={count}", weed.master_endpoint());
    let assigned: serde_json::Value = client.get(url).send().await?.error_for_status()?.json().await?;
    let fid = assigned["fid"].as_str().ok_or_else(|| format!("no fid in {assigned}"))?.to_owned();
    let volume = weed.volume_endpoint();
    let puts = corpus.files.iter().enumerate().map(|(at, file)| {
        let path = if at == 0 { format!("/{fid}") } else { format!("/{fid}_{at}") };
        let (client, url) = (client.clone(), format!("{volume}{path}"));
        async move {
            client.put(url).body(file.bytes.clone()).send().await?.error_for_status()?;
            Ok::<_, Failure>(path)
        }
    });
    stream::iter(puts).buffered(UPLOADS).try_collect().await
}
