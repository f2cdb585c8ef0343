//! What a read costs, counted where it matters: HTTP requests that a proxy in front of a real S3 sees.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_retriever::{Config, Deps, Retriever, Running, all_settings};
use des_shared::clock::{Dice, ManualClock};
use des_shared::config::{Values, ZoneSettings};
use des_shared::metrics::Metrics;
use des_shared::routing::{NBits, shard_index};
use des_shared::segment::ShardFormat;
use des_shared::service::Shutdown;
use des_shared::shard::{Codec, PayloadInfo, ShardWriter};
use des_shared::store::s3::{S3Config, S3Store};
use des_shared::store::zones::Zones;
use des_shared::store::{ObjectStore, WriteOptions};
use des_tests::proxy::Proxy;
use des_tests::servers::SeaweedFs;
use futures::future::join_all;

const DAY: &str = "2025-03-10";
const BITS: u8 = 4;

/// `count` uids of one slot, in the order of a shard.
fn uids(slot: u32, count: usize) -> Vec<String> {
    let n_bits = NBits::new(BITS).expect("a legal width");
    let all = (0u64..).map(|n| format!("{n:010}-{:016x}.json", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    all.filter(|uid| shard_index(uid, n_bits) == slot).take(count).collect()
}

/// Payloads are their own uids.
fn shard(format: ShardFormat, uids: &[String]) -> Bytes {
    let mut writer = ShardWriter::new(format, None, 5).expect("a writer");
    let mut out = writer.header().to_vec();
    for uid in uids {
        writer.append(uid, &PayloadInfo::of(Codec::None, uid.len() as u64, uid.as_bytes()), None).expect("appended");
        out.extend_from_slice(uid.as_bytes());
    }
    out.extend_from_slice(&writer.finish().expect("finished"));
    out.into()
}

/// A retriever whose S3 is behind a counting proxy. Its clock stands still.
struct Bench {
    proxy: Proxy,
    direct: S3Store,
    through: S3Config,
    clock: Arc<ManualClock>,
    client: reqwest::Client,
    running: Running,
    shutdown: Shutdown,
}

impl Bench {
    async fn start(payload_cache_bytes: &str) -> Self {
        let server = SeaweedFs::shared().await.unwrap_or_else(|e| panic!("{e}"));
        let bucket = server.new_bucket().await.expect("a bucket");
        let proxy = Proxy::start(server.port()).await.expect("a proxy");
        let endpoint_url = Some(format!("http://127.0.0.1:{}", proxy.port()));
        let through = S3Config { endpoint_url, ..server.config(&bucket) };
        let direct = S3Store::connect(&server.config(&bucket)).await.expect("a store");
        let clock = Arc::new(ManualClock::new(1_750_000_000_000));
        let setting = ("DES_PAYLOAD_CACHE_BYTES", payload_cache_bytes);
        let (running, shutdown) = retriever(&through, &clock, setting).await;
        Self { proxy, direct, through, clock, client: reqwest::Client::new(), running, shutdown }
    }

    async fn put(&self, slot: u32, number: u32, bytes: Bytes) {
        let key = format!("20250310_{slot:X}_{number:04}.des");
        self.direct.put(&key, bytes, &WriteOptions::create_only()).await.expect("written");
    }

    async fn status(&self, uid: &str) -> u16 {
        self.ask(uid).await.0
    }

    async fn ask(&self, uid: &str) -> (u16, Bytes) {
        let url = format!("http://{}/files/{uid}?created_at={DAY}", self.running.local_addr());
        let answer = self.client.get(url).send().await.expect("an answer");
        (answer.status().as_u16(), answer.bytes().await.expect("a body"))
    }

    /// Reads a file; the requests it took.
    async fn cost(&self, uid: &str) -> Vec<String> {
        let (status, body) = self.ask(uid).await;
        assert_eq!((status, &body[..]), (200, uid.as_bytes()));
        self.proxy.take_requests()
    }

    async fn stop(self) {
        self.shutdown.begin();
        self.running.join().await.expect("stopped");
    }
}

/// One that may delete.
const KEY: &str = "a-key-of-a-test-that-is-long-enough-to-be-one";

async fn retriever(config: &S3Config, clock: &Arc<ManualClock>, setting: (&str, &str)) -> (Running, Shutdown) {
    // Where shards are is told by `zones` below; a folder is named because something must be.
    let pairs = [("DES_BASE_DIR", "/"), ("DES_N_BITS", "4"), ("DES_LISTEN", "127.0.0.1:0"), setting];
    let mut values = Values::from_pairs(&all_settings(), &pairs);
    let zones = ZoneSettings::read(&mut values);
    let settings = Config::read(&mut values, zones.as_ref());
    let settings = values.finish(settings).unwrap_or_else(|e| panic!("{e}"));
    let store = Arc::new(S3Store::connect(config).await.expect("a store"));
    let zones = Arc::new(Zones::single(NBits::new(BITS).expect("a legal width"), store));
    let deps = Deps { zones, clock: clock.clone(), dice: Arc::new(Dice::from_os()), metrics: Metrics::new() };
    let shutdown = Shutdown::new();
    (Retriever::start(settings, deps, shutdown.clone()).await.expect("a free port"), shutdown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_cold_and_warm_reads_and_of_misses() {
    let bench = Bench::start("0").await;
    let (first, small, large) = (uids(0, 10), uids(1, 2_000), uids(2, 100_000));
    bench.put(0, 0, shard(ShardFormat::V3, &first)).await;
    bench.put(1, 0, shard(ShardFormat::V3, &small)).await;
    bench.put(2, 0, shard(ShardFormat::V3, &large)).await;
    bench.put(3, 0, shard(ShardFormat::V2, &uids(3, 2_000))).await;
    let cost = bench.cost(&first[3]).await;
    assert_eq!(cost.len(), 4, "shards, tombstones, tail, payload: {cost:?}");

    // Cold, with the date listing cached.
    let cost = bench.cost(&small[7]).await;
    assert_eq!(cost.len(), 2, "tail, payload: {cost:?}");
    let before = bench.proxy.answered_bytes();
    let cost = bench.cost(&large[7]).await;
    assert_eq!(cost.len(), 3, "tail, block, payload: {cost:?}");
    let bytes = bench.proxy.answered_bytes() - before;
    assert!(bytes < 400_000, "{bytes} bytes for one of 100,000 files");
    let cost = bench.cost(&uids(3, 2_000)[7]).await;
    assert_eq!(cost.len(), 2, "an old shard too: {cost:?}");

    // Warm.
    for uid in [&small[7], &small[1_999], &large[7], &first[3], &first[9]] {
        let cost = bench.cost(uid).await;
        assert_eq!(cost.len(), 1, "{cost:?}");
    }

    // Misses: within a second of the listing, and later.
    let missing = uids(1, 2_100).split_off(2_000);
    for uid in &missing {
        assert_eq!(bench.status(uid).await, 404);
    }
    assert_eq!(bench.proxy.take_requests(), Vec::<String>::new());
    bench.clock.advance(Duration::from_secs(1));
    let asked = join_all(missing.iter().map(|uid| bench.status(uid))).await;
    assert!(asked.iter().all(|status| *status == 404));
    let cost = bench.proxy.take_requests();
    assert_eq!(cost.len(), 1, "one listing for a hundred: {cost:?}");
    assert_eq!(bench.status(&missing[5]).await, 404);
    assert_eq!(bench.proxy.take_requests(), Vec::<String>::new());

    // A uid just packed is found: by the first that misses it.
    bench.put(1, 1, shard(ShardFormat::V3, &missing)).await;
    bench.clock.advance(Duration::from_secs(1));
    let cost = bench.cost(&missing[50]).await;
    assert_eq!(cost.len(), 3, "listing, tail, payload: {cost:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_shard_has_its_blocks_read_at_once() {
    let bench = Bench::start("0").await;
    let large = uids(2, 60_000);
    bench.put(2, 0, shard(ShardFormat::V3, &large)).await;
    bench.cost(&large[0]).await;
    let mut requests = 0;
    for uid in large.iter().skip(100).step_by(1_000) {
        requests += bench.cost(uid).await.len() - 1;
    }
    assert!(requests <= 8, "{requests} reads of index blocks for 60 different ones");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hot_files_cost_nothing_and_deleted_ones_are_gone() {
    let bench = Bench::start("1000000").await;
    let files = uids(1, 500);
    bench.put(1, 0, shard(ShardFormat::V3, &files)).await;
    bench.cost(&files[0]).await;
    let asked = join_all((0..50).map(|_| bench.ask(&files[1]))).await;
    assert!(asked.iter().all(|(status, body)| *status == 200 && &body[..] == files[1].as_bytes()));
    let cost = bench.proxy.take_requests();
    assert_eq!(cost.len(), 1, "one read for fifty: {cost:?}");
    assert_eq!(bench.cost(&files[1]).await, Vec::<String>::new());

    // Another retriever deletes it: within the time that listings are trusted it is gone here, cached or not.
    let setting = ("DES_DELETE_API_KEY", KEY);
    let (other, shutdown) = retriever(&bench.through, &bench.clock, setting).await;
    let url = format!("http://{}/files/{}?created_at={DAY}&deleted_by=ann&reason=asked", other.local_addr(), files[1]);
    let deleted = bench.client.delete(url).header("x-api-key", KEY).send().await.expect("an answer");
    assert!(deleted.status().is_success(), "{}", deleted.text().await.expect("a body"));
    bench.clock.advance(Duration::from_secs(5));
    assert_eq!(bench.status(&files[1]).await, 410);
    assert_eq!(bench.status(&files[0]).await, 200);
    shutdown.begin();
    other.join().await.expect("stopped");
    bench.stop().await;
}
