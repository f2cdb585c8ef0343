//! A thousand workers at once.

use std::path::Path;
use std::time::Duration;

use des_tests::swarm::{SwarmOptions, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_workers_do_each_task_once_though_some_vanish() {
    let options = SwarmOptions {
        url: String::new(),
        workers: 1000,
        processes: 4,
        tasks: 3000,
        vanish_every: 10,
        work: Duration::from_millis(20),
        lease: Duration::from_secs(3),
        own_connections: false,
        first: 0,
    };
    let report = run(Path::new(env!("CARGO_BIN_EXE_swarm")), options).await.expect("a run");
    let seen = &report.seen;
    assert_eq!(report.counters.committed, 3000);
    assert_eq!(report.times.len(), 3000);
    assert!(report.times.values().all(|times| *times == 1), "{:?}", report.times);
    assert_eq!(report.findings, [""; 0]);
    assert!(seen.vanished > 0, "nobody vanished");
    println!(
        "{:?}: {} vanished, {} stale, claims p50 {} us, p99 {} us",
        report.took,
        seen.vanished,
        seen.stale,
        seen.claim_quantile(500),
        seen.claim_quantile(990)
    );
}
