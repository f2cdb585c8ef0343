//! `des bench` on a small folder.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::{corpus, des, des_command, des_in, file, names, text};

#[test]
fn it_packs_reads_back_compares_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (input, place) = (dir.path().join("in"), dir.path().join("place"));
    let files = corpus(&input);
    fs::create_dir(&place).unwrap();
    let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    for codec in ["none", "lz4", "zstd", "auto"] {
        let args = ["--json", "bench", text(&input), "--dir", text(&place), "--codec", codec, "--seed", "7"];
        let said = des(&args).code(0).json();
        assert_eq!((&said["ok"], &said["codec"], &said["seed"]), (&json!(true), &json!(codec), &json!(7)));
        assert_eq!(said["chosen"], json!({ "files": files.len(), "bytes": bytes, "among": files.len() }));
        assert_eq!(said["compared"], json!({ "equal": files.len(), "changed": 0, "missing": 0, "wrong": null }));
        assert_eq!((&said["packing"]["files"], &said["packing"]["bytes"]), (&json!(files.len()), &json!(bytes)));
        assert_eq!((&said["raw_read"]["files"], &said["reads"]["bytes"]), (&json!(files.len()), &json!(bytes)));
        assert_eq!((&said["index"]["entries"], &said["look_ups"]["files"]), (&json!(files.len()), &json!(files.len())));
        assert!(said["bytes"]["stored"].as_u64().unwrap() > said["index"]["bytes"].as_u64().unwrap(), "{said}");
        assert_eq!(names(&place), Vec::<String>::new());
    }
}

#[test]
fn files_and_bytes_are_bounded_and_the_seed_decides() {
    let dir = tempfile::tempdir().unwrap();
    let (input, place) = (dir.path().join("in"), dir.path().join("place"));
    corpus(&input);
    fs::create_dir(&place).unwrap();
    let chosen = |args: &[&str]| {
        let docs = input.join("docs");
        let given = ["--json", "bench", text(&input), text(&docs), "--dir", text(&place)];
        des(&[&given[..], args].concat()).code(0).json()
    };
    let few = |seed: &str| chosen(&["--files", "10", "--seed", seed])["packing"]["bytes"].clone();
    assert_eq!(few("1"), few("1"));
    assert!((2..6).any(|seed| few(&seed.to_string()) != few("1")), "five seeds choose the same files");
    let said = chosen(&["--bytes", "2000"]);
    assert!(said["chosen"]["bytes"].as_u64().unwrap() <= 2000, "{said}");
    // The folder inside the other one is walked twice, and packed once.
    let all = chosen(&[]);
    assert_eq!((&all["chosen"]["files"], &all["chosen"]["among"]), (&json!(44), &json!(84)));
}

#[test]
fn people_read_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    corpus(&dir.path().join("in"));
    let ran = des_in(dir.path(), &[], &["bench", "in", "--dir", "."]).code(0);
    for word in ["only reading", "packing", "stored", "index", "look-ups", "random reads", "44 of 44 files are equal"] {
        assert!(ran.out.contains(word), "{word}: {}", ran.out);
    }
    assert_eq!(names(dir.path()), ["in"]);
}

#[test]
fn what_cannot_be_measured_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ran = des(&["bench", text(dir.path())]).code(1);
    assert!(ran.err.contains("no files to pack") && ran.err.contains(text(dir.path())), "{}", ran.err);
    let ran = des(&["bench", "/no/such/folder"]).code(1);
    assert!(ran.err.contains("/no/such/folder"), "{}", ran.err);
    let ran = des(&["bench", text(dir.path()), "--dir", "/no/such/place"]).code(1);
    assert!(ran.err.contains("/no/such/place"), "{}", ran.err);
    des(&["bench", "--files", "0"]).code(2);
    des(&["bench", "--codec", "gzip"]).code(2);
}

#[test]
fn interrupted_it_leaves_nothing_behind_either() {
    let dir = tempfile::tempdir().unwrap();
    let (input, place) = (dir.path().join("in"), dir.path().join("place"));
    for number in 0..3_000 {
        file(&input.join(number.to_string()), &[7; 500]);
    }
    fs::create_dir(&place).unwrap();
    let mut child = des_command();
    child.args(["bench", text(&input), "--dir", text(&place)]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let has_begun = || names(&place).iter().any(|name| place.join(name).join("manifest.ndjson").exists());
    while !has_begun() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "nothing was begun");
        std::thread::yield_now();
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let code = child.wait().unwrap().code();
    // It may have been faster than the signal.
    assert!(matches!(code, Some(130 | 0)), "{code:?}");
    assert_eq!(names(&place), Vec::<String>::new());
}
