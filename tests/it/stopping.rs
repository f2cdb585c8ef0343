//! SIGTERM: every service stops accepting, finishes or hands back, and exits with 0.

use std::time::Duration;

use des_tests::cluster::{Cluster, ClusterOptions, Service};
use des_tests::corpus::Corpus;
use des_tests::story::{submit, wait_for};
use nix::sys::signal::Signal;
use tokio::time::Instant;

/// Longer than the test waits for anything: a task that ran again must have been handed back, not expired.
const LEASE: Duration = Duration::from_mins(10);

async fn exit_code(service: &mut Service) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(code) = service.exit_code().unwrap() {
            return Some(code);
        }
        assert!(Instant::now() < deadline, "it does not stop: {}", service.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_worker_hands_back_and_every_service_exits_with_zero() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Corpus::gather(folder.path(), 1200, 11).unwrap();
    let mut cluster = Cluster::start(ClusterOptions {
        workers: 1,
        lease: LEASE,
        source_root: corpus.root.clone(),
        max_shard_size: 256 << 10,
        env: Vec::new(),
    })
    .await
    .unwrap();
    let job = submit(&cluster, &corpus).await.unwrap().id;
    let patience = Duration::from_mins(3);
    wait_for(&cluster, job, patience, |view| view.files.packed > 0).await.unwrap();
    let mut first = cluster.workers.remove(0);
    first.signal(Signal::SIGTERM).unwrap();
    assert_eq!(exit_code(&mut first).await, Some(0), "{}", first.log());

    cluster.add_worker().await.unwrap();
    let view = wait_for(&cluster, job, patience, |view| view.state.is_final()).await.unwrap();
    assert_eq!(view.files.packed, corpus.files.len() as u64, "{view:?}");

    for service in [&mut cluster.workers[0], &mut cluster.coordinator, &mut cluster.retriever] {
        service.signal(Signal::SIGTERM).unwrap();
        assert_eq!(exit_code(service).await, Some(0), "{}", service.log());
    }
}
