//! Steering jobs from the command line, against `des dev`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Dev, des, des_command, file, text};

/// Submits a manifest whose only file does not exist; returns the job. With `extra` there are files that do.
fn submit(dev: &Dev, root: &Path, name: &str, extra: usize) -> String {
    let line = |uid: &str, source: &str| {
        json!({"uid": uid, "created_at": "2025-03-10T00:00:00Z", "size_bytes": 1, "source_path": source}).to_string()
    };
    let mut lines = vec![line("gone", "no-such-file")];
    for n in 0..extra {
        file(&root.join(format!("f{n}")), b"1");
        lines.push(line(&format!("f{n}"), &format!("f{n}")));
    }
    let manifest = root.join(format!("{name}.ndjson"));
    fs::write(&manifest, lines.join("\n")).unwrap();
    let args = ["--json", "submit", text(&manifest), "--name", name, "--coordinator", dev.coordinator()];
    let job = des(&args).code(0).json();
    job["id"].as_str().unwrap().to_owned()
}

/// Submits so many files that do not exist, in many shards that run one at a time; returns the job.
fn submit_many(dev: &Dev, root: &Path, count: usize) -> String {
    let manifest = root.join("many.ndjson");
    let lines: Vec<String> = (0..count)
        .map(|n| {
            let day = format!("2025-{:02}-{:02}T00:00:00Z", 1 + n % 12, 1 + n % 28);
            json!({"uid": format!("f{n}"), "created_at": day, "size_bytes": 1, "source_path": "no-such-file"})
                .to_string()
        })
        .collect();
    fs::write(&manifest, lines.join("\n")).unwrap();
    let accepted = order(dev, &["--json", "submit", text(&manifest), "--max-running", "1"]).code(0).json();
    accepted["id"].as_str().unwrap().to_owned()
}

fn order(dev: &Dev, args: &[&str]) -> crate::support::Ran {
    des(&[args, &["--coordinator", dev.coordinator()]].concat())
}

#[test]
fn a_job_is_paused_changed_resumed_and_its_failures_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let dev = Dev::start(&dir.path().join("data"), &root);
    // A job that ended is refused in the coordinator's own words.
    let job = submit(&dev, &root, "first", 3);
    assert_eq!(order(&dev, &["status", &job, "--watch"]).code(3).err.matches("could not be packed").count(), 1);
    let refused = order(&dev, &["pause", &job]).code(1);
    assert!(refused.err.contains("is completed_with_errors") && refused.err.contains("des status"), "{}", refused.err);

    let again = order(&dev, &["--json", "retry", &job]).code(0).json();
    let child = again["id"].as_str().unwrap().to_owned();
    let known = order(&dev, &["retry", &child]);
    assert!(known.code == 0 || known.err.contains("has ended"), "{}", known.err);
    file(&root.join("no-such-file"), b"2");
    let ran = order(&dev, &["retry", &job, "--wait"]);
    assert!(matches!(ran.code, 0 | 3), "{}", ran.err);
    let ran = order(&dev, &["retry", &job, "--wait"]).code(0);
    assert!(ran.out.contains("1 packed + 0 failed") || ran.out.contains("completed"), "{}", ran.out);
    for wrong in [&["share", &job][..], &["share", &job, "--max-running", "0"], &["cancel", &job, "--shards", "burn"]] {
        order(&dev, wrong).code(2);
    }
    order(&dev, &["resume", "00000000-0000-7000-8000-000000000000"]).code(1);
}

#[test]
fn a_watch_goes_on_through_a_restart_and_shows_lines_in_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let (data, root) = (dir.path().join("data"), dir.path().join("root"));
    fs::create_dir(&root).unwrap();
    let dev = Dev::start(&data, &root);
    // Many shards, one at a time, so that the job is still there when it is paused.
    let job = submit_many(&dev, &root, 700);
    let paused = order(&dev, &["pause", &job]).code(0);
    assert!(paused.out.contains("paused") && paused.err.contains("des resume"), "{} {}", paused.out, paused.err);
    let share = order(&dev, &["share", &job, "--priority", "-3", "--max-running", "none"]).code(0);
    assert_eq!(share.out, format!("job {job}: priority -3, weight 1, no bound on running shards\n"));

    let coordinator = dev.coordinator().to_owned();
    let mut watch = des_command()
        .args(["status", &job, "--watch", "--coordinator", &coordinator])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(watch.stdout.take().unwrap()).lines();
    // It may still be planned when the first event comes.
    while !out.next().unwrap().unwrap().starts_with("paused: ") {}
    assert_eq!(dev.stop(Signal::SIGKILL), None);
    let dev = Dev::start_at(&data, &root, coordinator.strip_prefix("http://").unwrap());
    assert_eq!(dev.coordinator(), coordinator);
    order(&dev, &["resume", &job]).code(0);
    let rest: Vec<String> = out.map(Result::unwrap).collect();
    assert!(rest.iter().any(|line| line.contains(&format!("job {job}: completed_with_errors"))), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("700 accepted = 0 packed + 700 failed")), "{rest:?}");
    let ended = watch.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(said.contains("connecting again"), "{said}");

    let events = order(&dev, &["--json", "status", &job, "--watch"]).code(3).lines();
    assert_eq!((events.len(), &events[0]["state"]), (1, &json!("completed_with_errors")));
    let audit = order(&dev, &["audit"]).code(0);
    assert!(audit.out.contains("1 job,") && audit.out.contains("nothing is wrong"), "{}", audit.out);
}

#[test]
fn a_cancelled_job_says_what_became_of_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let dev = Dev::start(&dir.path().join("data"), &root);
    let job = submit_many(&dev, &root, 1500);
    order(&dev, &["pause", &job]).code(0);
    let ran = order(&dev, &["cancel", &job, "--shards", "drop", "--wait"]).code(0);
    assert!(ran.out.contains(&format!("job {job}: cancelled")), "{}", ran.out);
    assert!(ran.out.contains("1,500 accepted = 0 packed + 1,500 failed"), "{}", ran.out);
    let list = order(&dev, &["dead"]).code(0);
    assert_eq!((list.out.as_str(), list.err.as_str()), ("", "no shard was given up\n"));
    let status: Value = order(&dev, &["--json", "status", &job]).code(0).json();
    assert_eq!(status["files"], json!({"total": 1500, "packed": 0, "failed": 1500}));
}
