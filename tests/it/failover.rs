//! A zone's own store dies, hangs and comes back while people read: real servers, a real retriever, real signals.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use des_shared::created_at::CreatedAt;
use des_shared::routing::{NBits, candidate_slots};
use des_shared::segment::{PackOptions, ShardFormat};
use des_shared::shard::{Encoder, ShardWriter};
use des_shared::store::s3::{S3Config, S3Store};
use des_shared::store::{ObjectStore, WriteOptions};
use des_tests::cluster::Service;
use des_tests::servers::SeaweedFs;
use nix::sys::signal::Signal;
use reqwest::{Client, StatusCode};
use tokio::task::JoinSet;
use tokio::time::Instant;

const DAY: &str = "2025-03-10T12:00:00Z";
const FILES: usize = 200;
/// Readers side by side, each with one request at a time.
const READERS: usize = 8;

fn uid(n: usize) -> String {
    format!("folder/file-{n}.txt")
}

fn content(n: usize) -> String {
    format!("the content of file {n}, ").repeat(n % 40 + 1)
}

/// One shard for each slot, the same bytes in every store.
async fn pack(stores: &[S3Store]) {
    let (created_at, n_bits) = (CreatedAt::parse(DAY).expect("a moment"), NBits::new(4).expect("a width"));
    let mut slots = std::collections::BTreeMap::<_, std::collections::BTreeMap<String, usize>>::new();
    for n in 0..FILES {
        let slot = candidate_slots(&uid(n), &created_at, n_bits)[0];
        slots.entry(slot).or_default().insert(uid(n), n);
    }
    let options = PackOptions { format: ShardFormat::V3, ..PackOptions::default() };
    for (slot, files) in slots {
        let mut writer = ShardWriter::new(options.format, None, 1).expect("a writer");
        let mut encoder = Encoder::new(&options, None).expect("an encoder");
        let mut out = writer.header().to_vec();
        for (uid, n) in files {
            let raw = content(n);
            let stored = encoder.encode(&uid, raw.as_bytes()).expect("encoded");
            writer.append(&uid, &stored.info, None).expect("appended");
            out.extend_from_slice(&stored.bytes);
        }
        out.extend_from_slice(&writer.finish().expect("finished"));
        let key = format!("{}0000.des", slot.object_prefix());
        for store in stores {
            let put = store.put(&key, Bytes::from(out.clone()), &WriteOptions::create_only()).await;
            put.unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// What readers met since the last look.
#[derive(Debug, Default)]
struct Met {
    answers: usize,
    errors: Vec<(Instant, String)>,
    slowest: Duration,
}

/// Readers that compare every byte, and what they met.
struct Load {
    stop: Arc<AtomicBool>,
    readers: JoinSet<()>,
    met: Arc<std::sync::Mutex<Met>>,
}

impl Load {
    fn start(url: &str) -> Self {
        let (stop, met) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(Met::default())));
        let mut readers = JoinSet::new();
        for reader in 0..READERS {
            let (url, stop, met, client) = (url.to_owned(), stop.clone(), met.clone(), Client::new());
            readers.spawn(async move {
                let mut n = reader * 31;
                while !stop.load(Ordering::Relaxed) {
                    n = (n + 7) % FILES;
                    let began = Instant::now();
                    let outcome = read(&client, &url, n).await;
                    let mut met = met.lock().expect("no reader panics while it writes down");
                    met.slowest = met.slowest.max(began.elapsed());
                    match outcome {
                        Ok(()) => met.answers += 1,
                        Err(why) => met.errors.push((Instant::now(), why)),
                    }
                }
            });
        }
        Self { stop, readers, met }
    }

    fn met(&self) -> Met {
        std::mem::take(&mut *self.met.lock().expect("no reader panics while it writes down"))
    }

    /// Lets the readers read for so long, and says what they met.
    async fn go_on(&self, time: Duration) -> Met {
        tokio::time::sleep(time).await;
        self.met()
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.readers.join_next().await {
            ended.expect("no wrong byte");
        }
    }
}

async fn read(client: &Client, url: &str, n: usize) -> Result<(), String> {
    let answer = client.get(format!("{url}/files/{}?created_at={DAY}", uid(n))).send().await;
    let answer = answer.map_err(|e| e.to_string())?;
    let status = answer.status();
    let retry_after = answer.headers().contains_key("retry-after");
    let body = answer.bytes().await.map_err(|e| e.to_string())?;
    if status == StatusCode::OK {
        assert_eq!(body, content(n), "a wrong byte");
        return Ok(());
    }
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && retry_after, "{status}: {body:?}");
    Err(format!("{status}"))
}

async fn retriever(folder: &Path, zones: String) -> Service {
    std::fs::write(folder.join("zones.yaml"), zones).expect("written");
    let (access, secret) = SeaweedFs::credentials();
    let env = [
        ("DES_BACKEND", "multi_s3".to_owned()),
        ("DES_ZONES_CONFIG", folder.join("zones.yaml").display().to_string()),
        ("DES_LISTEN", "127.0.0.1:0".to_owned()),
        ("DES_LOG_FORMAT", "json".to_owned()),
        ("DES_LISTING_TTL_SECONDS", "1".to_owned()),
        // Every read asks the store.
        ("DES_PAYLOAD_CACHE_BYTES", "0".to_owned()),
        ("AWS_ACCESS_KEY_ID", access.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    Service::start(folder, "des-retriever", "retriever", &env).await.unwrap_or_else(|e| panic!("{e}"))
}

fn zone(config: &S3Config, copy: &S3Config) -> String {
    let place = |config: &S3Config| {
        let endpoint = config.endpoint_url.as_deref().expect("a server of ours");
        format!("{{ bucket: {}, region_name: us-east-1, endpoint_url: \"{endpoint}\" }}", config.bucket)
    };
    format!(
        "n_bits: 4\nzones:\n  - name: zone-a\n    range: {{ start: 0, end: 15 }}\n    s3: {}\n    failover:\n      - {}\n",
        place(config),
        place(copy)
    )
}

/// State of the breaker in front of the zone's own store, from `/metrics`.
async fn breaker(url: &str) -> String {
    let text = reqwest::get(format!("{url}/metrics")).await.expect("metrics").text().await.expect("text");
    let line = text.lines().find(|line| line.starts_with("des_store_breaker_state{store=\"own\""));
    line.and_then(|line| line.rsplit(' ').next()).expect("the breaker's state").to_owned()
}

async fn wait_for_breaker(url: &str, state: &str) -> Duration {
    let began = Instant::now();
    while breaker(url).await != state {
        assert!(began.elapsed() < Duration::from_secs(40), "the breaker does not come to {state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// Errors end within a second of the blow.
fn assert_short(what: &str, met: &Met, blow: Instant) {
    let last = met.errors.iter().map(|(at, _)| at.duration_since(blow)).max().unwrap_or_default();
    let (answers, errors, slowest) = (met.answers, met.errors.len(), met.slowest);
    println!("{what}: {answers} answers, {errors} errors, the last after {last:?}, slowest {slowest:?}");
    assert!(last < Duration::from_secs(1), "{what}: {:?}", met.errors);
    assert!(answers > 0, "{what}: nobody was served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_whose_own_store_dies_or_hangs_goes_on_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (own, copy) = tokio::join!(SeaweedFs::start(), SeaweedFs::start());
    let (mut own, copy) = (own.unwrap_or_else(|e| panic!("{e}")), copy.unwrap_or_else(|e| panic!("{e}")));
    let own_config = own.config(&own.new_bucket().await.expect("a bucket"));
    let copy_config = copy.config(&copy.new_bucket().await.expect("a bucket"));
    let open = async |config: &S3Config| S3Store::connect(config).await.unwrap_or_else(|e| panic!("{e}"));
    pack(&[open(&own_config).await, open(&copy_config).await]).await;
    let retriever = retriever(folder.path(), zone(&own_config, &copy_config)).await;
    let load = Load::start(&retriever.url);
    let calm = load.go_on(Duration::from_secs(2)).await;
    assert!(calm.errors.is_empty() && calm.answers > 100, "{calm:?}");
    assert_eq!(breaker(&retriever.url).await, "0");

    let blow = Instant::now();
    own.kill().expect("SIGKILL");
    assert_short("killed", &load.go_on(Duration::from_secs(3)).await, blow);
    let later = load.go_on(Duration::from_secs(2)).await;
    assert!(later.errors.is_empty(), "{:?}", later.errors);
    own.start_again().await.unwrap_or_else(|e| panic!("{e}"));
    println!("back through half-open after {:?}", wait_for_breaker(&retriever.url, "0").await);

    load.met();
    let blow = Instant::now();
    own.process().signal(Signal::SIGSTOP).expect("it runs");
    assert_short("frozen", &load.go_on(Duration::from_secs(3)).await, blow);
    assert_ne!(breaker(&retriever.url).await, "0");
    let ready = reqwest::get(format!("{}/health/ready", retriever.url)).await.expect("an answer");
    assert_eq!(ready.status(), 200, "the copy stands in: {}", ready.text().await.unwrap_or_default());
    own.process().signal(Signal::SIGCONT).expect("it is there");
    println!("back through half-open after {:?}", wait_for_breaker(&retriever.url, "0").await);
    load.met();
    let calm = load.go_on(Duration::from_secs(1)).await;
    assert!(calm.errors.is_empty() && calm.answers > 50, "{calm:?}");
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_a_retriever_that_stops_behind_a_balancer() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = SeaweedFs::shared().await.unwrap_or_else(|e| panic!("{e}"));
    let config = server.config(&server.new_bucket().await.expect("a bucket"));
    pack(&[S3Store::connect(&config).await.unwrap_or_else(|e| panic!("{e}"))]).await;
    let mut retriever = retriever(folder.path(), zone(&config, &config)).await;
    let load = Load::start(&retriever.url);
    let calm = load.go_on(Duration::from_secs(1)).await;
    assert!(calm.errors.is_empty() && calm.answers > 50, "{calm:?}");

    retriever.signal(Signal::SIGTERM).expect("it runs");
    // What a balancer does: it asks readiness, and sends nothing more as soon as that says no.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let ready = reqwest::get(format!("{}/health/ready", retriever.url)).await.expect("still answered");
        if ready.status() == StatusCode::SERVICE_UNAVAILABLE {
            assert!(ready.text().await.expect("text").contains("draining"));
            break;
        }
        assert!(Instant::now() < deadline, "it does not say that it stops");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let meanwhile = load.go_on(Duration::from_millis(500)).await;
    assert!(meanwhile.answers > 0, "it serves while balancers hear of it");
    let met = load.met.clone();
    load.end().await;
    let errors = [meanwhile.errors, std::mem::take(&mut met.lock().expect("no panic").errors)].concat();
    assert!(errors.is_empty(), "{errors:?}");
    let deadline = Instant::now() + Duration::from_secs(30);
    let code = loop {
        if let Some(code) = retriever.exit_code().expect("its status") {
            break code;
        }
        assert!(Instant::now() < deadline, "it does not stop: {}", retriever.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(code, 0, "{}", retriever.log());
}
