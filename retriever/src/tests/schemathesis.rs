//! Schemathesis reads the description of the interface and tries what it says with made-up requests, right and wrong.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use des_shared::config::Auth;
use serde_json::Value;
use tokio::process::Command;

use super::support::{Place, Rig, content, put_in_all_slots, v3};

/// Requests for each operation and phase.
const EXAMPLES: &str = "20";

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_as_described() {
    let place = Place::new();
    let text = "the same words again and again ".repeat(500);
    let files = content(&[("a/b.json", b"{}"), ("text.txt", text.as_bytes()), ("old.txt", b"old")]);
    put_in_all_slots(&place, "0000", &v3(1_741_608_000_000, &files));
    let mut rig = Rig::new(&place, 4);
    rig.config.deleters = Some(Auth::new(vec!["a-key".to_owned()]));
    let server = rig.serve().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program());
    command.args(["run", &server.url("/openapi.json"), "--no-color", "--header", "X-API-Key: a-key"]);
    command.args(["--generation-deterministic", "--max-examples", EXAMPLES, "--phases", "examples,coverage,fuzzing"]);
    // The one that is left out wants no 410 for what was deleted, and no 400 for a cursor that is none.
    command.args(["--checks", "all", "--exclude-checks", "positive_data_acceptance"]);
    command.args(["--request-timeout", "20", "--continue-on-failure"]);
    command.current_dir(folder.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let document: Value =
        reqwest::get(server.url("/openapi.json")).await.expect("an answer").json().await.expect("JSON");
    // It does not try the description itself.
    let paths = document["paths"].as_object().expect("paths").iter().filter(|(path, _)| *path != "/openapi.json");
    let count: usize = paths.filter_map(|(_, item)| item.as_object()).map(serde_json::Map::len).sum();
    assert!(said.contains(&format!("Tested: {count}")), "it did not try all of the {count} operations: {said}");
    server.stop().await;
}
