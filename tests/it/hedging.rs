//! Second calls for slow reads: what they save and what they cost, on a clock that stands still while anybody works, and
//! measured on a real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use des_shared::archive::RecordingStore;
use des_shared::clock::{Dice, SystemClock};
use des_shared::metrics::Metrics;
use des_shared::store::faults::{Fault, FaultStore, Odds, Rule};
use des_shared::store::guarded::{GuardMetrics, GuardOptions, GuardedStore};
use des_shared::store::memory::MemoryStore;
use des_shared::store::s3::{S3Config, S3Store};
use des_shared::store::{ByteRange, ObjectStore, SharedStore, StoreErrorKind, WriteOptions};
use des_tests::proxy::{Proxy, Traffic};
use des_tests::servers::SeaweedFs;
use tokio::time::Instant;

const CALLS: usize = 20_000;

/// A store whose reads take up to 10 ms, and of `slow` in a thousand 50 times as long.
async fn store(slow: u16) -> (Arc<RecordingStore>, Arc<FaultStore>) {
    let memory = Arc::new(MemoryStore::new("zone", Arc::new(SystemClock)));
    memory.put("k", Bytes::from_static(b"bytes"), &WriteOptions::overwrite()).await.expect("put");
    let usual = Odds { delay: 1000, longest: Duration::from_millis(10), ..Odds::default() };
    let usual: SharedStore = Arc::new(FaultStore::random(memory, usual, Arc::new(Dice::seeded(1))));
    let odds = Odds { slow, factor: 50, ..Odds::default() };
    let faults = Arc::new(FaultStore::random(usual, odds, Arc::new(Dice::seeded(2))));
    (Arc::new(RecordingStore::new(faults.clone())), faults)
}

fn guarded(store: SharedStore, hedge_share: f64) -> GuardedStore {
    with_options(store, GuardOptions { hedge_share, ..GuardOptions::default() })
}

fn with_options(store: SharedStore, options: GuardOptions) -> GuardedStore {
    let metrics = GuardMetrics::register(Metrics::new().registry()).expect("a new registry");
    GuardedStore::new(store, ("zone-a", "own"), options, &metrics, Arc::new(Dice::seeded(3)))
}

/// How long reads took, sorted, and how many calls they cost.
async fn run(slow: u16, hedge_share: f64) -> (Vec<Duration>, usize) {
    let (recording, _) = store(slow).await;
    let store = guarded(recording.clone(), hedge_share);
    let mut took = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let began = Instant::now();
        let fetched = store.get("k", ByteRange::Span(1..4)).await.expect("read");
        assert_eq!(fetched.bytes, "yte");
        took.push(began.elapsed());
    }
    took.sort_unstable();
    (took, recording.take().len())
}

fn at(sorted: &[Duration], per_mille: usize) -> Duration {
    sorted[(sorted.len() - 1) * per_mille / 1000]
}

#[tokio::test(start_paused = true)]
async fn two_of_a_hundred_slow_calls_are_not_seen_and_cost_three_of_a_hundred_at_most() {
    let (without, calls) = run(20, 0.0).await;
    assert_eq!(calls, CALLS);
    let (with, calls) = run(20, 0.03).await;
    assert!(calls <= CALLS + CALLS * 3 / 100, "{calls} calls for {CALLS}");
    assert!(calls > CALLS + CALLS * 3 / 200, "most slow ones were sent again: {calls}");
    let (before, after) = (at(&without, 999), at(&with, 999));
    println!("p99.9 without {before:?}, with {after:?}; {calls} calls for {CALLS}");
    assert!(after * 10 <= before, "p99.9 without {before:?}, with {after:?}");
    assert!(at(&with, 500) <= at(&without, 500) * 11 / 10, "the usual ones are no slower");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slow_altogether_is_not_asked_twice_as_often() {
    let (recording, faults) = store(0).await;
    let store = guarded(recording.clone(), 0.03);
    faults.add(Rule::always(Fault::Slow(50)).after(1000));
    for _ in 0..CALLS {
        store.get("k", ByteRange::Span(1..4)).await.expect("read");
    }
    let calls = recording.take().len();
    assert!(calls <= CALLS + CALLS * 3 / 100, "{calls} calls for {CALLS}");
}

#[tokio::test(start_paused = true)]
async fn the_second_call_is_dropped_with_its_caller_and_answers_for_a_failed_first() {
    let (recording, faults) = store(0).await;
    let store = guarded(recording.clone(), 1.0);
    for _ in 0..200 {
        store.get("k", ByteRange::Span(1..4)).await.expect("read");
    }
    recording.take();
    // Both hang; the caller goes away, and nothing more happens.
    faults.add(Rule::always(Fault::Delay(Duration::from_hours(1))).times(2));
    let gone = tokio::time::timeout(Duration::from_secs(2), store.get("k", ByteRange::Span(1..4))).await;
    assert!(gone.is_err());
    assert_eq!(recording.take().len(), 2);
    // The first hangs and the second fails: the first still counts.
    faults.add(Rule::always(Fault::Delay(Duration::from_secs(1))).times(1));
    faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)).times(1));
    let began = Instant::now();
    store.get("k", ByteRange::Span(1..4)).await.expect("the first");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(recording.take().len(), 2);
    // What the second says for good is the answer.
    faults.add(Rule::always(Fault::Delay(Duration::from_hours(1))).times(1));
    faults.add(Rule::always(Fault::Before(StoreErrorKind::NotFound)).times(1));
    let error = store.get("k", ByteRange::Span(1..4)).await.expect_err("not there");
    assert_eq!(error.kind, StoreErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn long_reads_and_writes_are_sent_once() {
    let (recording, _) = store(500).await;
    let store = guarded(recording.clone(), 1.0);
    let put = async |n: u32| {
        store.put(&format!("w{n}"), Bytes::from(vec![0; 2 << 20]), &WriteOptions::create_only()).await.expect("put");
        store.get(&format!("w{n}"), ByteRange::Span(0..2 << 20)).await.expect("read");
    };
    for n in 0..200 {
        put(n).await;
    }
    assert_eq!(recording.take().len(), 400);
}

/// Reads of the measurement, and how many are made side by side.
const READS: usize = 20_000;
const READERS: usize = 16;
/// Bytes of a read and of the object.
const READ_BYTES: u64 = 2048;
const OBJECT_BYTES: u64 = 4 << 20;

/// `cargo test -p des-tests --test it hedging::measured -- --ignored --nocapture`: the same reads of a real server some 10
/// ms away, 2 of a hundred slowed 50 times, in turn without and with second calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of a minute or two"]
async fn measured_on_a_real_server() {
    let server = SeaweedFs::start().await.unwrap_or_else(|e| panic!("{e}"));
    let proxy = Proxy::start(server.port()).await.expect("a proxy");
    let endpoint_url = Some(format!("http://127.0.0.1:{}", proxy.port()));
    let config = S3Config { endpoint_url, ..server.config(&server.new_bucket().await.expect("a bucket")) };
    let s3: SharedStore = Arc::new(S3Store::connect(&config).await.unwrap_or_else(|e| panic!("{e}")));
    let content: Bytes = (0..OBJECT_BYTES).map(|at| (at % 251) as u8).collect::<Vec<u8>>().into();
    s3.put("shard", content.clone(), &WriteOptions::create_only()).await.unwrap_or_else(|e| panic!("{e}"));
    proxy.set(Traffic::Delay(Duration::from_millis(5)));
    for _ in 0..3 {
        let (without, _) = measure(&s3, &content, 0.0).await;
        let (with, calls) = measure(&s3, &content, 0.03).await;
        println!("p99.9 is {:.1} times as long without", without.as_secs_f64() / with.as_secs_f64());
        assert!(calls <= READS + READS * 3 / 100, "{calls} calls for {READS}");
    }
}

/// p99.9 of reads whose bytes are compared, and how many calls they cost.
async fn measure(s3: &SharedStore, content: &Bytes, hedge_share: f64) -> (Duration, usize) {
    let odds = Odds { slow: 20, factor: 50, ..Odds::default() };
    let faults = Arc::new(FaultStore::random(s3.clone(), odds, Arc::new(Dice::seeded(7))));
    let recording = Arc::new(RecordingStore::new(faults));
    // On a busy machine a call takes 100 ms and a slowed one longer than the guard lets it: then it fails, as it should, and
    // whoever wraps the guard tries again. Here it is measured how long the slow ones take.
    let options = GuardOptions { hedge_share, timeout: Duration::from_mins(2), ..GuardOptions::default() };
    let store = Arc::new(with_options(recording.clone(), options));
    let left = Arc::new(AtomicUsize::new(READS));
    let readers = (0..READERS as u64).map(|reader| {
        let (store, left, content) = (store.clone(), left.clone(), content.clone());
        tokio::spawn(async move {
            let (mut took, mut at) = (Vec::new(), reader * 10_007);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                at = (at + 65_537) % (OBJECT_BYTES - READ_BYTES);
                let began = Instant::now();
                let read = store.get("shard", ByteRange::Span(at..at + READ_BYTES)).await;
                took.push(began.elapsed());
                let read = read.unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(read.bytes, content[at as usize..(at + READ_BYTES) as usize], "{at}");
            }
            took
        })
    });
    let mut took = Vec::with_capacity(READS);
    for reader in readers.collect::<Vec<_>>() {
        took.extend(reader.await.expect("no wrong byte"));
    }
    took.sort_unstable();
    let calls = recording.take().len();
    let extra = (calls - took.len()) as f64 * 100.0 / took.len() as f64;
    let (p50, p99, p999) = (at(&took, 500), at(&took, 990), at(&took, 999));
    println!("budget {hedge_share}: {calls} calls ({extra:.2} % more), p50 {p50:.1?}, p99 {p99:.1?}, p99.9 {p999:.1?}");
    (p999, calls)
}
