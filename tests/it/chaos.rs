//! A short chaos on real servers and processes; the long one is `tests/src/bin/chaos.rs`.

use std::time::Duration;

use des_tests::chaos::{ChaosOptions, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_is_twice_in_a_short_chaos() {
    let options = ChaosOptions {
        seed: 3,
        kills: 12,
        at_most: Duration::from_secs(30),
        workers: 3,
        files: 60,
        lease: Duration::from_secs(2),
        versions: false,
    };
    let report = Box::pin(run(options)).await.unwrap();
    assert!(report.wrong.is_empty(), "{report}");
    assert_eq!(report.right, 60);
    assert!(report.counts.kills() > 0 && report.checked.tasks > 0, "{report}");
    assert_eq!((report.checked.lost_tasks, report.checked.lost_files, report.checked.republished), (0, 0, 0));
}
