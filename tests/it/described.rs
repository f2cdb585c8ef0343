//! Schemathesis reads the descriptions of the coordinator's interface and of the worker's, and tries what they say with
//! made-up requests, right and wrong. That of the retriever is tried in its own tests.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use des_tests::cluster::Service;
use des_tests::servers::Redis;
use serde_json::Value;
use tokio::process::Command;

/// Requests for each operation and phase.
const EXAMPLES: &str = "5";
/// It takes some twenty seconds.
const PATIENCE: Duration = Duration::from_mins(5);

/// `DES_SCHEMATHESIS`, or the tools that scripts/setup installs in the repository, or PATH.
fn program() -> PathBuf {
    if let Some(given) = std::env::var_os("DES_SCHEMATHESIS") {
        return given.into();
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/venv/bin/schemathesis");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(tools).chain(std::env::split_paths(&path).map(|dir| dir.join("schemathesis")));
    let found = places.find(|program| program.is_file());
    found.expect("schemathesis is not there; run scripts/setup, which installs what the tests need")
}

/// Tries every operation that a service describes.
async fn try_all(folder: &Path, service: &Service) {
    let description = format!("{}/openapi.json", service.url);
    let mut command = Command::new(program());
    command.args(["run", &description, "--no-color", "--generation-deterministic", "--max-examples", EXAMPLES]);
    command.args(["--phases", "examples,coverage,fuzzing", "--request-timeout", "20", "--continue-on-failure"]);
    // The one that is left out wants nothing that fits its type to be refused: no id of a job that is not there.
    command.args(["--checks", "all", "--exclude-checks", "positive_data_acceptance"]);
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = reqwest::get(&description).await.expect("an answer").json().await.expect("JSON");
    // It does not try the description itself.
    let paths = document["paths"].as_object().expect("paths").iter().filter(|(path, _)| *path != "/openapi.json");
    let count: usize = paths.filter_map(|(_, item)| item.as_object()).map(serde_json::Map::len).sum();
    assert!(count > 0 && said.contains(&format!("Tested: {count}")), "not all of the {count} operations: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_of_coordinator_and_worker_is_as_described() {
    let folder = tempfile::tempdir().expect("a folder");
    let [zone, sources] = ["zone", "sources"].map(|name| folder.path().join(name));
    std::fs::create_dir(&zone).expect("made");
    std::fs::create_dir(&sources).expect("made");
    let redis = Redis::start().await.expect("redis");
    let env = [
        ("DES_REDIS_URL", redis.url()),
        ("DES_BACKEND", "local".to_owned()),
        ("DES_BASE_DIR", zone.display().to_string()),
        ("DES_SOURCE_ROOTS", sources.display().to_string()),
        ("DES_LISTEN", "127.0.0.1:0".to_owned()),
        ("DES_LOG_FORMAT", "json".to_owned()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value));
    for (program, name) in [("des-coordinator", "coordinator"), ("des-worker", "worker")] {
        let mut service = Service::start(folder.path(), program, name, &env).await.unwrap_or_else(|e| panic!("{e}"));
        try_all(folder.path(), &service).await;
        assert_eq!(service.exit_code().expect("its state"), None, "it still runs: {}", service.log());
    }
}
