//! The guard around stores that fail on purpose.

use futures::future::join_all;
use prometheus::Registry;

use super::*;
use crate::archive::RecordingStore;
use crate::clock::SystemClock;
use crate::store::contract::{self, Completion};
use crate::store::faults::{Fault, FaultStore, Rule};
use crate::store::memory::MemoryStore;

/// A guarded store, what it fails by, and the calls that reach it.
struct Rig {
    store: GuardedStore,
    faults: Arc<FaultStore>,
    calls: Arc<RecordingStore>,
    registry: Registry,
}

fn rig(options: GuardOptions) -> Rig {
    let memory = Arc::new(MemoryStore::new("zone", Arc::new(SystemClock)));
    let faults = Arc::new(FaultStore::scripted(memory));
    let calls = Arc::new(RecordingStore::new(faults.clone()));
    let registry = Registry::new();
    let metrics = GuardMetrics::register(&registry).expect("a new registry");
    let dice = Arc::new(Dice::seeded(1));
    let store = GuardedStore::new(calls.clone(), ("zone-a", "own"), options, &metrics, dice);
    Rig { store, faults, calls, registry }
}

impl Rig {
    async fn get(&self) -> Result<(), StoreErrorKind> {
        self.store.get("k", ByteRange::Span(0..1)).await.map(drop).map_err(|error| error.kind)
    }

    async fn with_object(self) -> Self {
        self.store.put("k", Bytes::from_static(b"bytes"), &WriteOptions::overwrite()).await.expect("put");
        self.calls.take();
        self
    }

    fn asked(&self) -> usize {
        self.calls.take().len()
    }

    fn metric(&self, line: &str) -> bool {
        let text = prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).expect("text");
        text.lines().any(|found| found == line)
    }
}

#[tokio::test]
async fn it_is_still_a_store() {
    contract::run(
        async || {
            let memory = Arc::new(MemoryStore::new("contract", Arc::new(SystemClock)));
            let metrics = GuardMetrics::register(&Registry::new()).expect("a new registry");
            let dice = Arc::new(Dice::seeded(1));
            Arc::new(GuardedStore::new(memory, ("z", "own"), GuardOptions::default(), &metrics, dice)) as SharedStore
        },
        Completion::OneWinner,
    )
    .await;
}

#[tokio::test]
async fn a_store_that_fails_is_left_alone_until_a_check_finds_it_well() {
    let rig = rig(GuardOptions::default()).with_object().await;
    rig.faults.add(Rule::always(Fault::Before(StoreErrorKind::NotFound)).times(50));
    for _ in 0..50 {
        assert_eq!(rig.get().await, Err(StoreErrorKind::NotFound), "an answer, whatever it says");
    }
    rig.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)));
    rig.asked();
    let mut kinds = Vec::new();
    for _ in 0..20 {
        kinds.extend(rig.get().await.err());
    }
    assert_eq!(rig.asked(), 5, "{kinds:?}");
    assert!(kinds[5..].iter().all(|kind| *kind == StoreErrorKind::BreakerOpen), "{kinds:?}");
    assert!(rig.metric(r#"des_store_breaker_state{store="own",zone="zone-a"} 2"#));
    assert!(rig.metric(r#"des_store_calls_refused_total{reason="breaker",store="own",zone="zone-a"} 15"#));
    assert!(rig.store.check().await.is_err() && rig.asked() == 1, "readiness asks all the same");
    rig.faults.heal();
    assert_eq!(rig.get().await, Err(StoreErrorKind::BreakerOpen));
    rig.store.check().await.expect("well again");
    assert!(rig.store.guard().would_pass(), "the next call is the probe");
    assert_eq!(rig.get().await, Ok(()));
    assert_eq!(rig.store.guard().breaker(), BreakerState::Closed);
    assert!(rig.metric(r#"des_store_breaker_state{store="own",zone="zone-a"} 0"#));
}

#[tokio::test]
async fn callers_that_give_up_on_a_silent_store_open_the_breaker() {
    let slow = Duration::from_millis(300);
    let rig = rig(GuardOptions { slow, ..GuardOptions::default() }).with_object().await;
    rig.faults.add(Rule::always(Fault::Delay(Duration::from_hours(1))));
    // Impatient ones say nothing about the store.
    join_all((0..20).map(|_| tokio::time::timeout(Duration::from_millis(1), rig.get()))).await;
    assert_eq!(rig.store.guard().breaker(), BreakerState::Closed);
    join_all((0..5).map(|_| tokio::time::timeout(slow * 2, rig.get()))).await;
    assert_eq!(rig.store.guard().breaker(), BreakerState::Open);
}

#[tokio::test]
async fn listings_that_are_given_up_open_the_breaker_as_soon_as_small_reads() {
    let slow = Duration::from_millis(300);
    let rig = rig(GuardOptions { slow, ..GuardOptions::default() });
    rig.faults.add(Rule::always(Fault::Delay(Duration::from_hours(1))));
    join_all((0..5).map(|_| tokio::time::timeout(slow * 2, rig.store.list("20250310_", None, 1000)))).await;
    assert_eq!(rig.store.guard().breaker(), BreakerState::Open);
}

#[tokio::test]
async fn a_silent_store_fails_the_call_in_the_end() {
    let timeout = Duration::from_millis(30);
    let rig = rig(GuardOptions { timeout, ..GuardOptions::default() }).with_object().await;
    rig.faults.add(Rule::always(Fault::Delay(Duration::from_hours(1))).times(1));
    assert_eq!(rig.get().await, Err(StoreErrorKind::Unavailable));
    assert_eq!(rig.get().await, Ok(()));
}

#[tokio::test]
async fn slow_down_is_heard() {
    let rig = rig(GuardOptions { calls: 64, line: 3, ..GuardOptions::default() }).with_object().await;
    rig.faults.add(Rule::always(Fault::After(StoreErrorKind::Throttled)).times(32));
    let wait = Rule::always(Fault::Delay(Duration::from_millis(5)));
    let answers = join_all((0..32).map(|_| rig.get())).await;
    assert!(answers.iter().all(|answer| *answer == Err(StoreErrorKind::Throttled)), "{answers:?}");
    assert_eq!(rig.store.guard().breaker(), BreakerState::Closed, "busy is not dead");
    let limit = rig.store.guard().call_limit();
    assert!(limit <= 16, "{limit}");
    assert!(rig.metric(r#"des_store_slow_downs_total{store="own",zone="zone-a"} 32"#));
    assert!(rig.metric(&format!(r#"des_store_call_limit{{store="own",zone="zone-a"}} {limit}"#)));
    // As many as the limit at a time, three in line, and the rest is turned away at once.
    rig.faults.add(wait);
    rig.asked();
    let answers = join_all((0..40).map(|_| rig.get())).await;
    let turned_away = answers.iter().filter(|answer| **answer == Err(StoreErrorKind::Throttled)).count();
    assert_eq!((turned_away, rig.asked()), (40 - limit - 3, limit + 3));
    assert!(rig.store.guard().call_limit() > limit, "successes bring it back");
    assert!(rig.metric(r#"des_store_calls_waiting{store="own",zone="zone-a"} 0"#));
}
