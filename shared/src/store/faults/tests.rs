//! The wrappers around stores: faults, retries, metrics, each on a real folder.

use std::sync::Arc;

use futures::TryStreamExt;
use prometheus::Registry;
use tempfile::TempDir;

use super::*;
use crate::retry::RetryPolicy;
use crate::store::local::LocalStore;
use crate::store::metered::{MeteredStore, StoreMetrics};
use crate::store::retrying::RetryingStore;

const FAST: RetryPolicy = RetryPolicy {
    first: Duration::from_micros(10),
    max: Duration::from_micros(100),
    attempts: 6,
    deadline: Duration::from_mins(1),
};

fn faulty() -> (TempDir, Arc<FaultStore>) {
    let dir = tempfile::tempdir().expect("a folder");
    let inner = Arc::new(LocalStore::open(dir.path()).expect("a store"));
    (dir, Arc::new(FaultStore::scripted(inner)))
}

fn retrying(store: Arc<FaultStore>) -> RetryingStore {
    RetryingStore::new(store, FAST, Arc::new(Dice::seeded(1)))
}

#[tokio::test]
async fn without_faults_it_is_the_store_itself() {
    let root = tempfile::tempdir().expect("a folder");
    let made = AtomicU64::new(0);
    crate::store::contract::run(
        async || {
            let dir = root.path().join(made.fetch_add(1, Ordering::Relaxed).to_string());
            let inner = Arc::new(LocalStore::create(dir).expect("a store"));
            let metrics = StoreMetrics::register(&Registry::new()).expect("a new registry");
            let metered = Arc::new(MeteredStore::new(Arc::new(FaultStore::scripted(inner)), metrics));
            Arc::new(RetryingStore::new(metered, FAST, Arc::new(Dice::seeded(1)))) as SharedStore
        },
        crate::store::contract::Completion::OneWinner,
    )
    .await;
}

#[tokio::test]
async fn rules_count_and_match() {
    let (_dir, store) = faulty();
    let denied = Fault::Before(StoreErrorKind::Denied);
    store.add(Rule::once(Operation::Put, denied).on_keys_with("shard").after(1).times(2));
    let put = async |key: &str| {
        store.put(key, Bytes::from_static(b"x"), &WriteOptions::overwrite()).await.map(drop).map_err(|e| e.kind)
    };
    assert_eq!(put("other").await, Ok(()));
    assert_eq!(put("shard-1").await, Ok(()), "one is let pass");
    assert_eq!(put("shard-2").await, Err(StoreErrorKind::Denied));
    assert_eq!(put("other").await, Ok(()));
    assert_eq!(put("shard-3").await, Err(StoreErrorKind::Denied));
    assert_eq!(put("shard-4").await, Ok(()), "two were asked for");
    assert_eq!(store.head("shard-2").await.expect_err("not done").kind, StoreErrorKind::NotFound);
    assert_eq!(store.injected(), 2);
    store.add(Rule::always(denied));
    assert_eq!(store.check().await.expect_err("all fail").kind, StoreErrorKind::Denied);
    store.heal();
    store.check().await.expect("well again");
}

#[tokio::test]
async fn a_lost_answer_of_a_conditional_write_is_seen_as_taken() {
    let (_dir, store) = faulty();
    store.add(Rule::once(Operation::Put, Fault::After(StoreErrorKind::Unavailable)));
    let again = retrying(store.clone());
    let put = again.put("k", Bytes::from_static(b"mine"), &WriteOptions::create_only()).await;
    assert_eq!(put.expect_err("the second attempt meets the first").kind, StoreErrorKind::AlreadyExists);
    assert_eq!(store.get("k", ByteRange::Full).await.expect("it was written").bytes, "mine");

    let upload = again.create_upload("u", &BTreeMap::new()).await.expect("create");
    let part = again.put_part("u", &upload, 1, Bytes::from_static(b"mine")).await.expect("part");
    store.add(Rule::once(Operation::CompleteUpload, Fault::After(StoreErrorKind::Unavailable)));
    let done = again.complete_upload("u", &upload, &[part], WriteMode::CreateOnly).await;
    assert_eq!(done.expect_err("the upload is gone, the key taken").kind, StoreErrorKind::AlreadyExists);
}

#[tokio::test]
async fn only_what_may_pass_is_tried_again() {
    let (_dir, store) = faulty();
    let again = retrying(store.clone());
    store.add(Rule::once(Operation::Put, Fault::Before(StoreErrorKind::Unavailable)).times(5));
    again.put("k", Bytes::from_static(b"x"), &WriteOptions::overwrite()).await.expect("the sixth attempt");
    assert_eq!(store.injected(), 5);
    for kind in [StoreErrorKind::Denied, StoreErrorKind::Full, StoreErrorKind::Conflict] {
        let before = store.injected();
        store.add(Rule::once(Operation::Get, Fault::Before(kind)));
        assert_eq!(again.get("k", ByteRange::Full).await.expect_err("given up at once").kind, kind);
        assert_eq!(store.injected() - before, 1, "{kind:?}");
    }
}

#[tokio::test]
async fn a_cut_stream_gives_so_many_bytes_and_an_error() {
    let (_dir, store) = faulty();
    let bytes = Bytes::from(vec![7; 600_000]);
    store.put("k", bytes, &WriteOptions::overwrite()).await.expect("put");
    store.add(Rule::once(Operation::GetStream, Fault::Cut(300_001)));
    let mut stream = store.get_stream("k", ByteRange::Full).await.expect("the beginning is fine").stream;
    let mut got = 0;
    let error = loop {
        match stream.try_next().await {
            Ok(Some(chunk)) => got += chunk.len(),
            Ok(None) => panic!("the stream ended as if whole, after {got} bytes"),
            Err(error) => break error,
        }
    };
    assert_eq!((got, error.kind), (300_001, StoreErrorKind::Unavailable));
    assert!(stream.try_next().await.expect("over").is_none(), "nothing after the error");
}

#[tokio::test]
async fn the_same_seed_gives_the_same_faults() {
    let odds =
        Odds { before: 200, after: 200, cut: 50, delay: 50, longest: Duration::from_micros(50), ..Odds::default() };
    let outcomes = async |seed: u64| {
        let dir = tempfile::tempdir().expect("a folder");
        let inner = Arc::new(LocalStore::open(dir.path()).expect("a store"));
        let store = FaultStore::random(inner, odds, Arc::new(Dice::seeded(seed)));
        let mut outcomes = Vec::new();
        for n in 0..60 {
            let key = format!("k{}", n % 7);
            outcomes.push(store.put(&key, Bytes::new(), &WriteOptions::create_only()).await.err().map(|e| e.kind));
        }
        (outcomes, store.injected())
    };
    let first = outcomes(11).await;
    assert!(first.1 > 10, "{} faults in 60 operations", first.1);
    assert_eq!(first, outcomes(11).await);
    assert_ne!(first, outcomes(12).await);
}

#[tokio::test]
async fn calls_are_counted_by_operation_and_outcome() {
    let (_dir, faults) = faulty();
    let registry = Registry::new();
    let metrics = StoreMetrics::register(&registry).expect("a new registry");
    let store = MeteredStore::new(faults.clone(), metrics);
    store.put("secret-key", Bytes::from_static(b"12345"), &WriteOptions::overwrite()).await.expect("put");
    store.get("secret-key", ByteRange::Suffix(2)).await.expect("get");
    let streamed = store.get_stream("secret-key", ByteRange::Full).await.expect("stream");
    streamed.stream.try_collect::<Vec<_>>().await.expect("all of it");
    assert!(store.head("missing").await.is_err());
    faults.add(Rule::once(Operation::List, Fault::Delay(Duration::from_hours(1))));
    let abandoned = tokio::time::timeout(Duration::from_millis(20), store.list("", None, 1)).await;
    assert!(abandoned.is_err(), "the caller went away");
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    for line in [
        r#"des_s3_calls_total{operation="put",status="ok"} 1"#,
        r#"des_s3_calls_total{operation="get",status="ok"} 1"#,
        r#"des_s3_calls_total{operation="head",status="not_found"} 1"#,
        r#"des_s3_calls_total{operation="list",status="cancelled"} 1"#,
        r#"des_s3_call_seconds_count{operation="get"} 1"#,
        r#"des_s3_bytes_total{direction="read"} 7"#,
        r#"des_s3_bytes_total{direction="written"} 5"#,
        "des_s3_calls_in_flight 0",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert!(!text.contains("secret-key"), "no key in a label");
    assert!(StoreMetrics::register(&registry).is_err(), "twice in one registry is a mistake that is told");
}
