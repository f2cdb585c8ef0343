//! A real S3 server: `weed`, which is `SeaweedFS`, one for each test process, a bucket for each test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use des_shared::clock::Dice;
use des_shared::store::SharedStore;
use des_shared::store::s3::{S3Config, S3Credentials, S3Store};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::supervised::LEFTOVERS;
use super::{ServerError, Supervised, on_path, ports};

const READY_WITHIN: Duration = Duration::from_mins(1);
const PORT_TRIES: usize = 4;
const ACCESS_KEY: &str = "des-test-key";
const SECRET_KEY: &str = "des-test-secret";
/// May make buckets. Kept apart: `SeaweedFS` makes a missing bucket by itself when an administrator writes to it, which
/// would hide a wrong bucket name.
const ADMIN_ACCESS_KEY: &str = "des-admin-key";
const ADMIN_SECRET_KEY: &str = "des-admin-secret";

/// The one server of this test process. It is never dropped: its supervisor ends it with the process.
static SHARED: OnceCell<Arc<SeaweedFs>> = OnceCell::const_new();

/// Who may do what.
#[derive(Clone, Copy, Debug)]
enum Access {
    ByKey,
    Everybody,
}

/// A real S3 server.
#[derive(Debug)]
pub struct SeaweedFs {
    // Before the folder: the program must be gone when its folder goes.
    process: Supervised,
    folder: TempDir,
    program: PathBuf,
    args: Vec<String>,
    /// Of the master, the volume server, the filer, and S3.
    ports: [u16; 4],
}

impl SeaweedFs {
    /// The server that all tests of this process share, started by the first that asks.
    ///
    /// # Errors
    /// [`ServerError`]. The next caller tries again.
    pub async fn shared() -> Result<Arc<Self>, ServerError> {
        SHARED.get_or_try_init(async || Self::start().await.map(Arc::new)).await.cloned()
    }

    /// A server of one's own, to stop or freeze. It takes about three seconds.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start() -> Result<Self, ServerError> {
        Self::start_with(Access::ByKey).await
    }

    /// A server of one's own that looks at no signature, so that requests may be changed on their way to it.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start_open() -> Result<Self, ServerError> {
        Self::start_with(Access::Everybody).await
    }

    async fn start_with(access: Access) -> Result<Self, ServerError> {
        let program = find_weed()?;
        let mut last = not_started("no ports were free".to_owned(), String::new());
        for _ in 0..PORT_TRIES {
            match launch(&program, access).await {
                Ok(server) => return Ok(server),
                // Most likely another process took a port first.
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// The master, which gives out file ids.
    pub fn master_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// The volume server, which keeps the bytes.
    pub fn volume_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[1])
    }

    /// The S3 port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports[3]
    }

    /// Its folder, which goes with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The sockets it makes in /tmp, which go with it.
    pub fn sockets(&self) -> Vec<PathBuf> {
        sockets(self.ports).split(' ').map(PathBuf::from).collect()
    }

    /// All its ports.
    pub fn ports(&self) -> [u16; 4] {
        self.ports
    }

    /// Access key id and secret of a user who may not make buckets, for processes that get them by environment.
    pub fn credentials() -> (&'static str, &'static str) {
        (ACCESS_KEY, SECRET_KEY)
    }

    /// The process, for signals.
    pub fn process(&mut self) -> &mut Supervised {
        &mut self.process
    }

    /// Kills it as a machine dies that loses its power. What it stored stays in its folder.
    ///
    /// # Errors
    /// When the operating system does not say how it ended.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.process.kill().map(drop)
    }

    /// Starts it again after [`Self::kill`], on the same ports and folder, and waits until it is ready.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        let sockets = sockets(self.ports);
        let started = Supervised::start(self.folder.path(), &self.program, &self.args, &[(LEFTOVERS, &sockets)]);
        self.process = started.map_err(|e| not_started(e.to_string(), String::new()))?;
        self.wait_ready().await
    }

    /// The configuration of a bucket on this server.
    pub fn config(&self, bucket: &str) -> S3Config {
        S3Config {
            region: Some("us-east-1".to_owned()),
            endpoint_url: Some(self.endpoint()),
            credentials: Some(S3Credentials {
                access_key_id: ACCESS_KEY.to_owned(),
                secret_access_key: SECRET_KEY.to_owned(),
            }),
            ..S3Config::new(bucket)
        }
    }

    /// Makes a bucket with a name of its own.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn new_bucket(&self) -> Result<String, ServerError> {
        // A name nobody else has is all that is asked of it: the server is shared by all tests of the process.
        let name = format!("des-{}", uuid::Builder::from_random_bytes(Dice::from_os().bytes()).into_uuid().simple());
        self.create_bucket(&name).await.map_err(|why| not_started(why, self.process.log_tail()))?;
        Ok(name)
    }

    /// A store in a bucket of its own.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn new_store(&self) -> Result<SharedStore, ServerError> {
        let config = self.config(&self.new_bucket().await?);
        let store = S3Store::connect(&config).await;
        Ok(Arc::new(store.map_err(|e| not_started(e.to_string(), String::new()))?))
    }

    /// The SDK's own client with an administrator's credentials, for what a store does not do.
    pub fn client(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::from_static("us-east-1"))
            .endpoint_url(self.endpoint())
            .credentials_provider(Credentials::new(ADMIN_ACCESS_KEY, ADMIN_SECRET_KEY, None, None, "des-tests"))
            .force_path_style(true)
            .retry_config(RetryConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    async fn create_bucket(&self, name: &str) -> Result<(), String> {
        let created = self.client().create_bucket().bucket(name).send().await;
        created.map(drop).map_err(|e| format!("bucket {name}: {}", aws_sdk_s3::error::DisplayErrorContext(e)))
    }

    /// Ready is: a bucket can be made, and an object written to it. The parts of `SeaweedFS` find each other late.
    async fn wait_ready(&mut self) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let Err(problem) = self.try_out().await else { return Ok(()) };
            if let Ok(Some(status)) = self.process.ended() {
                return Err(not_started(format!("it ended: {status}"), self.process.log_tail()));
            }
            if Instant::now() > deadline {
                return Err(not_started(
                    format!("not ready after {READY_WITHIN:?}: {problem}"),
                    self.process.log_tail(),
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn try_out(&self) -> Result<(), String> {
        let client = self.client();
        if client.head_bucket().bucket("ready").send().await.is_err() {
            self.create_bucket("ready").await?;
        }
        let body = aws_sdk_s3::primitives::ByteStream::from_static(b"ready");
        let put = client.put_object().bucket("ready").key("ready").body(body).send().await;
        put.map(drop).map_err(|e| aws_sdk_s3::error::DisplayErrorContext(e).to_string())
    }
}

async fn launch(program: &Path, access: Access) -> Result<SeaweedFs, ServerError> {
    let failed = |e: std::io::Error| not_started(e.to_string(), String::new());
    let folder = tempfile::Builder::new().prefix("des-seaweed-").tempdir().map_err(failed)?;
    let identity = |name: &str, (key, secret): (&str, &str), actions: &[&str]| serde_json::json!({"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions});
    let identities = serde_json::json!({"identities": [
        identity("admin", (ADMIN_ACCESS_KEY, ADMIN_SECRET_KEY), &["Admin", "Read", "Write", "List", "Tagging"]),
        identity("des", (ACCESS_KEY, SECRET_KEY), &["Read", "Write", "List", "Tagging"]),
    ]});
    let identities = identities.to_string();
    std::fs::write(folder.path().join("s3.json"), identities).map_err(failed)?;
    // It reserves room for whole volumes, seven for each bucket unless told otherwise, and answers 500 when the disk has none
    // left for the next test's bucket.
    std::fs::write(folder.path().join("master.toml"), "[master.volume_growth]\ncopy_1 = 1\n").map_err(failed)?;
    std::fs::create_dir(folder.path().join("data")).map_err(failed)?;
    let ports = ports::free_with_twins(4);
    let mut args = vec![
        "-logtostderr=true".to_owned(),
        "server".to_owned(),
        "-dir=data".to_owned(),
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        format!("-master.port={}", ports[0]),
        format!("-volume.port={}", ports[1]),
        "-filer=true".to_owned(),
        format!("-filer.port={}", ports[2]),
        "-s3".to_owned(),
        format!("-s3.port={}", ports[3]),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
        "-master.volumeSizeLimitMB=64".to_owned(),
        "-volume.max=0".to_owned(),
        "-master.telemetry=false".to_owned(),
    ];
    match access {
        Access::ByKey => args.push("-s3.config=s3.json".to_owned()),
        Access::Everybody => {}
    }
    let ports = [ports[0], ports[1], ports[2], ports[3]];
    let env = [(LEFTOVERS, &*sockets(ports))];
    let process = Supervised::start(folder.path(), program, &args, &env).map_err(failed)?;
    let mut server = SeaweedFs { process, folder, program: program.to_owned(), args, ports };
    server.wait_ready().await?;
    Ok(server)
}

/// The sockets that it makes in /tmp beside each of its ports, wherever its folder is.
fn sockets([master, volume, filer, s3]: [u16; 4]) -> String {
    let grpc = |port: u16| u32::from(port) + 10_000;
    [
        format!("/tmp/seaweedfs-master-grpc-{}.sock", grpc(master)),
        format!("/tmp/seaweedfs-volume-grpc-{}.sock", grpc(volume)),
        format!("/tmp/seaweedfs-filer-{filer}.sock"),
        format!("/tmp/seaweedfs-filer-grpc-{}.sock", grpc(filer)),
        format!("/tmp/seaweedfs-s3-{s3}.sock"),
        format!("/tmp/seaweedfs-s3-grpc-{}.sock", grpc(s3)),
    ]
    .join(" ")
}

/// `DES_WEED`, or the tools that scripts/setup installs in the repository, or PATH.
fn find_weed() -> Result<PathBuf, ServerError> {
    if let Some(given) = std::env::var_os("DES_WEED") {
        let given = PathBuf::from(given);
        let looked = format!("DES_WEED names {}", given.display());
        return if given.is_file() { Ok(given) } else { Err(ServerError::Missing { program: "weed", looked }) };
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/venv/bin/weed");
    if tools.is_file() {
        return Ok(tools);
    }
    on_path("weed").map_err(|_| ServerError::Missing {
        program: "weed",
        looked: "not in .tools/venv/bin, not on PATH, and DES_WEED is not set".to_owned(),
    })
}

fn not_started(why: String, log: String) -> ServerError {
    ServerError::NotStarted { program: "weed", why, log }
}
