//! A short soak on a real server and a real retriever; the long one is `tests/src/bin/soak.rs`.

use std::time::Duration;

use des_tests::soak::{Odds, SoakOptions, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wrong_byte_is_served_in_a_minute_of_faults() {
    let options = SoakOptions {
        seed: 7,
        length: Duration::from_mins(1),
        files: 1_500,
        clients: 6,
        odds: Odds::default(),
        as_shipped: false,
        keep: None,
    };
    let report = Box::pin(run(options)).await.unwrap();
    println!("{report}");
    assert!(report.problems().is_empty(), "{report}");
    for what in ["503 SlowDown", "connections reset", "answers cut short", "payloads with a wrong byte"] {
        assert!(report.injected[what] > 0, "{what}: {report}");
    }
    assert!(report.found() > 0 && report.seen.bytes > 0, "{report}");
}
