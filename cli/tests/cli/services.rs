//! `des dev` with `submit`, `jobs`, `status` and `get` around it, and `des demo`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{Dev, corpus, des, file, names, text};
use des_shared::shard::hex32;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[test]
fn a_folder_is_submitted_served_and_still_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (data, input) = (dir.path().join("data"), dir.path().join("in"));
    let files = corpus(&input);
    let dev = Dev::start(&data, dir.path());
    let submit = ["--json", "submit", text(&input), "--wait", "--name", "first", "--coordinator", dev.coordinator()];
    let result = des(&submit).code(0).json();
    assert_eq!(result["job"]["state"], "completed");
    assert_eq!(result["job"]["files"], json!({"total": files.len(), "packed": files.len(), "failed": 0}));
    let id = result["job"]["id"].as_str().unwrap().to_owned();

    let jobs = des(&["--json", "jobs", "--state", "completed", "--coordinator", dev.coordinator()]).code(0).lines();
    assert_eq!((jobs.len(), &jobs[0]["name"]), (1, &json!("first")));
    let table = des(&["jobs", "--coordinator", dev.coordinator()]).code(0).out;
    assert!(table.starts_with("JOB ") && table.contains(&id), "{table}");
    let status = des(&["status", &id, "--coordinator", dev.coordinator()]).code(0).out;
    assert!(status.contains("completed") && status.contains("44 packed + 0 failed"), "{status}");
    let overview = des(&["--json", "status", "--coordinator", dev.coordinator()]).code(0).json();
    assert_eq!((&overview["queue"]["depth"], overview["workers"].as_array().map(Vec::len)), (&json!(0), Some(1)));
    des(&["status", "00000000-0000-7000-8000-000000000000", "--coordinator", dev.coordinator()]).code(1);
    des(&["jobs", "--state", "asleep", "--coordinator", dev.coordinator()]).code(2);

    read_all(&dev, &files);
    assert_eq!(dev.stop(Signal::SIGINT), Some(0));
    let dev = Dev::start(&data, dir.path());
    read_all(&dev, &files);
    let jobs = des(&["--json", "jobs", "--coordinator", dev.coordinator()]).code(0).lines();
    assert_eq!(jobs[0]["state"], "completed");
    assert_eq!(dev.stop(Signal::SIGTERM), Some(0));
}

fn read_all(dev: &Dev, files: &[(String, Vec<u8>)]) {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("got");
    for (uid, bytes) in files {
        let at = ["--created-at", "2025-03-10T09:46:40Z", "--retriever", dev.retriever(), "-o", text(&target)];
        let got = des(&[&["--json", "get", uid][..], &at].concat()).code(0).json();
        assert!(fs::read(&target).unwrap() == *bytes, "{uid}");
        let hash = hex32(&Sha256::digest(bytes).into());
        assert_eq!((&got["sha256"], &got["size_bytes"]), (&json!(hash), &json!(bytes.len())));
    }
    let missing = dir.path().join("missing");
    let at = ["--created-at", "2025-03-10T09:46:40Z", "--retriever", dev.retriever(), "-o", text(&missing)];
    let ran = des(&[&["get", "no such uid"][..], &at].concat()).code(1);
    assert!(ran.err.contains("404"), "{}", ran.err);
    assert!(!missing.exists());
}

#[test]
fn a_killed_process_goes_on_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (data, input) = (dir.path().join("data"), dir.path().join("in"));
    let files = corpus(&input);
    let dev = Dev::start(&data, dir.path());
    let submit = ["--json", "submit", text(&input), "--idempotency-key", "once", "--coordinator"];
    let accepted = des(&[&submit[..], &[dev.coordinator()]].concat()).code(0).json();
    // Wherever it is just now: accepted is durable.
    assert_eq!(dev.stop(Signal::SIGKILL), None);
    let dev = Dev::start(&data, dir.path());
    let result = des(&[&submit[..], &[dev.coordinator(), "--wait"]].concat()).code(0).json();
    assert_eq!(result["job"]["id"], accepted["id"], "the same submission is the same job");
    assert_eq!(result["job"]["files"], json!({"total": files.len(), "packed": files.len(), "failed": 0}));
    read_all(&dev, &files);
}

#[test]
fn failed_files_end_in_three_and_wrong_manifests_in_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    file(&root.join("a"), b"1");
    file(&dir.path().join("secret"), b"2");
    let dev = Dev::start(&dir.path().join("data"), &root);
    let line = |uid: &str, source: &str| {
        json!({"uid": uid, "created_at": "2025-03-10T00:00:00Z", "size_bytes": 1, "source_path": source}).to_string()
    };
    let manifest = root.join("m.ndjson");
    fs::write(&manifest, [line("good", "a"), line("gone", "b"), line("out", "../secret")].join("\n")).unwrap();
    let list = dir.path().join("failed.ndjson");
    let args =
        ["--json", "submit", text(&manifest), "--wait", "--failures", text(&list), "--coordinator", dev.coordinator()];
    let result = des(&args).code(3).json();
    assert_eq!(result["job"]["state"], "completed_with_errors");
    assert_eq!(result["job"]["files"], json!({"total": 3, "packed": 1, "failed": 2}));
    let mut failed: Vec<(String, String)> = fs::read_to_string(&list)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap())
        .map(|f| (f["uid"].as_str().unwrap().to_owned(), f["reason"].as_str().unwrap().to_owned()))
        .collect();
    failed.sort();
    assert_eq!(failed, [("gone".into(), "missing".into()), ("out".into(), "outside_roots".into())]);

    let twice = [&args[..], &["--idempotency-key", "k1"]].concat();
    let first = des(&twice).code(3).json();
    assert_eq!(des(&twice).code(3).json()["job"]["id"], first["job"]["id"], "one key is one job");

    fs::write(&manifest, format!("{}\n{{\"uid\": 1", line("good", "a"))).unwrap();
    let ran = des(&["submit", text(&manifest), "--coordinator", dev.coordinator()]).code(1);
    assert!(ran.err.contains("the manifest is not valid at line 2"), "{}", ran.err);
    fs::write(&manifest, "").unwrap();
    des(&["submit", text(&manifest), "--coordinator", dev.coordinator()]).code(1);
    fs::write(&manifest, [line("x", "a"), line("x", "a")].join("\n")).unwrap();
    let ran = des(&["submit", text(&manifest), "--wait", "--coordinator", dev.coordinator()]).code(1);
    assert!(ran.err.contains("stands twice"), "{}", ran.err);
    let jobs = des(&["--json", "jobs", "--coordinator", dev.coordinator()]).code(0).lines();
    assert_eq!(jobs.len(), 3, "half a manifest is no job");
}

#[test]
fn nobody_there_is_said_with_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = des(&["jobs", "--coordinator", &format!("http://{free}")]).code(1);
    assert!(ran.err.contains("no coordinator answers") && ran.err.contains("des dev"), "{}", ran.err);
    des(&["jobs", "--coordinator", "localhost"]).code(2);
    let ran = des(&["get", "x", "--created-at", "yesterday"]).code(2);
    assert!(ran.err.contains("--created-at"), "{}", ran.err);
}

/// A server that gives one answer.
fn answering(answer: &'static str) -> (String, JoinHandle<String>) {
    use std::io::{BufRead, BufReader};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut request).unwrap() > 0, "{request}");
        }
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
        request
    });
    (url, server)
}

#[test]
fn another_address_that_an_answer_names_gets_neither_the_key_nor_the_request() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    other.set_nonblocking(true).unwrap();
    let place = other.local_addr().unwrap();
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let answer = format!(
            "HTTP/1.1 {status}\r\nlocation: http://{place}/v1/jobs\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let (url, server) = answering(answer.leak());
        let ran = des(&["jobs", "--coordinator", &url, "--api-key", "correct-horse"]).code(1);
        assert!(ran.err.contains("not followed") && ran.err.contains("--coordinator"), "{}", ran.err);
        assert!(server.join().unwrap().contains("correct-horse"));
        assert!(other.accept().is_err(), "{status} was followed");
    }
}

#[test]
fn a_refusal_is_shown_in_the_servers_words() {
    let body = r#"{"type":"/problems/unauthorized","title":"Unauthorized","status":401,"detail":"send a key in X-API-Key","errors":["one","two"]}"#;
    let answer = format!(
        "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let (url, server) = answering(answer.leak());
    let ran = des(&["jobs", "--coordinator", &url, "--api-key", "correct-horse"]).code(1);
    assert!(server.join().unwrap().to_lowercase().contains("x-api-key: correct-horse"));
    for part in ["send a key in X-API-Key", "- one", "- two", "DES_API_KEY"] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
}

#[test]
fn an_answer_cut_short_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("got");
    let (url, server) = answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\nonly this");
    let at = ["--created-at", "2025-03-10T00:00:00Z", "--retriever", &url, "-o", text(&target)];
    des(&[&["get", "a/b"][..], &at].concat()).code(1);
    assert!(server.join().unwrap().starts_with("GET /files/a%2Fb?created_at=2025-03-10T00%3A00%3A00Z "));
    assert_eq!(crate::support::names(dir.path()), Vec::<String>::new());
}

#[test]
fn two_cannot_share_one_data_folder() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), dir.path());
    let ports = ["--coordinator-listen", "127.0.0.1:0", "--retriever-listen", "127.0.0.1:0"];
    let ran = des(&[&["dev", "--data", text(&dir.path().join("data"))][..], &ports].concat()).code(1);
    assert!(ran.err.contains("another des dev"), "{}", ran.err);
    let taken = dev.coordinator().strip_prefix("http://").unwrap();
    let other = dir.path().join("other");
    let ran = des(&["dev", "--data", text(&other), "--coordinator-listen", taken]).code(1);
    assert!(ran.err.contains(taken), "{}", ran.err);
}

#[test]
fn the_demo_serves_and_compares_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    let files = corpus(&input);
    file(&input.join("target/left-out"), b"x");
    let result = des(&["--json", "demo", text(&input)]).code(0).json();
    let n = files.len();
    assert_eq!(result["files"], json!({"accepted": n, "packed": n, "failed": 0, "served": n, "compared": n}));
    assert_eq!((&result["ok"], &result["wrong"]), (&json!(true), &json!([])));
    assert!(result["reads_per_second"].as_u64().unwrap() > 0);
    assert!(result["curl"].as_str().unwrap().starts_with("curl 'http://127.0.0.1:8000/files/"));
}

#[test]
fn what_the_demo_keeps_can_be_verified_and_served() {
    let dir = tempfile::tempdir().unwrap();
    let (input, keep) = (dir.path().join("in"), dir.path().join("kept"));
    let files = corpus(&input);
    let ran = des(&["demo", text(&input), "--keep", text(&keep)]).code(0);
    for part in ["44 of 44 files have the same SHA-256", "curl 'http", "des dev --data"] {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    des(&["verify", text(&keep.join("shards"))]).code(0);
    let dev = Dev::start(&keep, dir.path());
    read_all(&dev, &files);
}

#[test]
fn the_demo_wants_a_folder_with_files() {
    let dir = tempfile::tempdir().unwrap();
    des(&["demo", text(dir.path())]).code(1);
    des(&["demo", "/no/such/folder"]).code(1);
    crate::support::des_in(dir.path(), &[], &["demo"]).code(2);
}

/// Every file below a folder.
fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.flat_map(|entry| if entry.path().is_dir() { below(&entry.path()) } else { vec![entry.path()] }).collect()
}

/// Names of the uploads that are open in a data folder.
fn open_uploads(data: &Path) -> BTreeSet<String> {
    names(&data.join("shards").join(".uploads")).into_iter().collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "another process writes the file that is waited for")]
fn a_killed_des_dev_goes_on_in_the_upload_it_was_at() {
    let dir = tempfile::tempdir().unwrap();
    let (data, input) = (dir.path().join("data"), dir.path().join("in"));
    let mut entries = Vec::new();
    for n in 0..60_u64 {
        let dice = des_shared::clock::Dice::seeded(n);
        let bytes: Vec<u8> = (0..20_000).flat_map(|_| dice.bytes::<64>()).collect();
        file(&input.join(n.to_string()), &bytes);
        // All in one slot, so in one shard of ten parts.
        let uid = n << 16;
        let source = text(&input.join(n.to_string())).to_owned();
        entries.push(
            json!({"uid": uid, "created_at": "2025-03-10T00:00:00Z", "size_bytes": bytes.len(), "source_path": source}),
        );
    }
    let manifest = dir.path().join("manifest.json");
    fs::write(&manifest, serde_json::to_vec(&entries).unwrap()).unwrap();
    let dev = Dev::start(&data, dir.path());
    let submit = ["--json", "submit", text(&manifest), "--codec", "none", "--coordinator", dev.coordinator()];
    let id = des(&submit).code(0).json()["id"].as_str().unwrap().to_owned();
    let marks = || {
        below(&data.join("state"))
            .iter()
            .filter(|path| text(path).contains("/checkpoints/") && path.extension().is_some_and(|e| e == "bin"))
            .count()
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    while marks() == 0 {
        assert!(Instant::now() < deadline, "no part is checkpointed");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(dev.stop(Signal::SIGKILL), None);
    let (kept, before) = (marks(), open_uploads(&data));
    assert!(kept > 0 && before.len() == 1, "it was killed too late: {kept} marks, {before:?}");

    let dev = Dev::start(&data, dir.path());
    let mut seen = before.clone();
    let status = loop {
        seen.extend(open_uploads(&data));
        let status = des(&["--json", "status", &id, "--coordinator", dev.coordinator()]).code(0).json();
        if status["state"] == "completed" {
            break status;
        }
        assert!(Instant::now() < deadline, "{status}");
    };
    assert_eq!(seen, before, "no other upload was begun");
    assert_eq!(status["files"], json!({"total": 60, "packed": 60, "failed": 0}));
    des(&["verify", text(&data.join("shards"))]).code(0);
    assert_eq!(dev.stop(Signal::SIGINT), Some(0));
    assert!(open_uploads(&data).is_empty() && marks() == 0);
}
