//! From a manifest to a file over HTTP on a real Redis, a real S3 and real processes, with a worker killed.

use std::time::Duration;

use des_tests::cluster::{Cluster, ClusterOptions};
use des_tests::corpus::Corpus;
use des_tests::story::{cat_back, pack_kill_and_read_back, submit, verify_zones};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_comes_back_right_though_a_worker_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Corpus::gather(folder.path(), 1500, 7).unwrap();
    let mut cluster = Cluster::start(ClusterOptions {
        workers: 2,
        lease: Duration::from_secs(3),
        source_root: corpus.root.clone(),
        max_shard_size: 1 << 20,
        env: Vec::new(),
    })
    .await
    .unwrap();
    let summary = pack_kill_and_read_back(&mut cluster, &corpus).await.unwrap();
    assert!(summary.is_good(), "{summary}");
    assert_eq!(summary.right, corpus.files.len());

    let (right, wrong) = cat_back(&cluster, &corpus.files[..40]).await.unwrap();
    assert_eq!((right, wrong), (40, Vec::new()));
    verify_zones(&cluster).await.unwrap();

    // The same manifest again writes the same shards: nothing new, nothing replaced, and again everything is packed.
    let again = submit(&cluster, &corpus).await.unwrap();
    let patience = Duration::from_mins(2);
    let view = des_tests::story::wait_for(&cluster, again.id, patience, |view| view.state.is_final()).await.unwrap();
    assert_eq!(view.files.packed, corpus.files.len() as u64, "{view:?}");
}
