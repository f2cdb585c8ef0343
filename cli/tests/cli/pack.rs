//! `des pack`, `ls`, `cat` and `verify` on this machine alone.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{corpus, des, des_in, file, names, shards, text, vectors};
use des_shared::created_at::CreatedAt;
use des_shared::layout::SHARD_SUFFIX;
use des_shared::routing::{NBits, candidate_slots};
use des_shared::tombstone;
use serde_json::{Value, json};

fn pack(input: &Path, out: &Path, more: &[&str]) -> crate::support::Ran {
    des(&[&["--json", "pack", text(input), "--output-dir", text(out)], more].concat())
}

#[test]
fn a_folder_goes_in_and_every_byte_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    let files = corpus(&input);
    std::os::unix::fs::symlink("empty", input.join("link")).unwrap();
    let result = pack(&input, &out, &["--big-file-threshold", "50000"]).code(0).json();
    assert_eq!(result["files"], json!({"accepted": files.len(), "packed": files.len(), "failed": 0}));
    assert_eq!(result["skipped"]["symbolic_links"], 1);
    let size: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(result["bytes"]["source"], size);
    assert!(result["bytes"]["stored"].as_u64().unwrap() < size as u64);
    assert!(names(&out).contains(&"_bigFiles".to_owned()));

    let listed = des(&["--json", "ls", text(&out)]).code(0).lines();
    let mut uids: Vec<&str> = listed.iter().map(|l| l["uid"].as_str().unwrap()).collect();
    uids.sort_unstable();
    assert_eq!(uids, files.iter().map(|(uid, _)| uid.as_str()).collect::<Vec<_>>());
    for line in &listed {
        for field in ["shard", "uid", "size_bytes", "stored_bytes", "codec", "offset", "crc32c", "big_file"] {
            assert!(line.get(field).is_some(), "{field} is missing in {line}");
        }
    }
    let target = dir.path().join("got");
    for (uid, bytes) in &files {
        des(&["cat", text(&out), uid, "--created-at", "2025-03-10T09:46:40Z", "-o", text(&target)]).code(0);
        assert!(fs::read(&target).unwrap() == *bytes, "{uid} by its time");
    }
    let ran = des(&["cat", text(&out), "docs/page-03.txt"]).code(0);
    assert_eq!(ran.out.into_bytes(), files.iter().find(|(uid, _)| uid == "docs/page-03.txt").unwrap().1);
    let verdict = des(&["--json", "verify", text(&out)]).code(0).json();
    assert_eq!(
        (&verdict["ok"], &verdict["files"], &verdict["big_files"]),
        (&json!(true), &json!(files.len()), &json!(1))
    );
}

#[test]
fn a_deleted_file_is_marked_and_read_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    let files = corpus(&input);
    pack(&input, &out, &[]).code(0);
    let (uid, time) = ("docs/page-03.txt", "2025-03-10T09:46:40Z");
    let slot = candidate_slots(uid, &CreatedAt::parse_query(time).unwrap(), NBits::default())[0];
    let marked = || {
        let lines = des(&["--json", "ls", text(&out)]).code(0).lines();
        let deleted = lines.into_iter().filter(|line| !line["deleted_at"].is_null());
        deleted.map(|line| (line["uid"].clone(), line["deleted_at"].clone())).collect::<Vec<_>>()
    };
    // Deleted before its shard was made: it was packed again.
    file(&out.join(tombstone::key(&slot, uid, 0)), b"{}");
    assert_eq!(marked(), []);
    des(&["cat", text(&out), uid]).code(0);
    file(&out.join(tombstone::key(&slot, uid, 4_000_000_000_000)), b"{}");
    assert_eq!(marked(), [(json!(uid), json!("2096-10-02T07:06:40Z"))]);
    let listed = des(&["ls", text(&out)]).code(0).out;
    let lines: Vec<&str> = listed.lines().filter(|line| line.contains("(deleted ")).collect();
    assert!(lines.len() == 1 && lines[0].ends_with("docs/page-03.txt  (deleted 2096-10-02T07:06:40Z)"), "{lines:?}");
    for place in [text(&out).to_owned(), format!("{}/{}", text(&out), shard_of(&out, uid))] {
        for more in [&[] as &[&str], &["--created-at", time]] {
            let ran = des(&[&["cat", &place, uid][..], more].concat()).code(1);
            assert!(ran.out.is_empty() && ran.err.contains("was deleted at 2096-10-02T07:06:40Z"), "{}", ran.err);
            assert!(ran.err.contains("--deleted"), "{}", ran.err);
            let ran = des(&[&["cat", &place, uid, "--deleted"][..], more].concat()).code(0);
            assert_eq!(ran.out.into_bytes(), files.iter().find(|(name, _)| name == uid).unwrap().1);
        }
    }
    des(&["cat", text(&out), "docs/page-04.txt"]).code(0);
    des(&["verify", text(&out)]).code(0);
}

/// The shard that holds a file.
fn shard_of(out: &Path, uid: &str) -> String {
    let lines = des(&["--json", "ls", text(out)]).code(0).lines();
    lines.iter().find(|line| line["uid"] == uid).unwrap()["shard"].as_str().unwrap().to_owned()
}

#[test]
fn the_same_again_writes_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    corpus(&input);
    let first = pack(&input, &out, &[]).code(0).json();
    let before: Vec<(String, Vec<u8>)> =
        shards(&out).into_iter().map(|n| (n.clone(), fs::read(out.join(n)).unwrap())).collect();
    let second = pack(&input, &out, &[]).code(0).json();
    assert_eq!(second["files"], first["files"]);
    assert_eq!(
        (&second["shards"]["written"], &second["shards"]["already_there"]),
        (&json!(0), &first["shards"]["written"])
    );
    let after: Vec<(String, Vec<u8>)> =
        shards(&out).into_iter().map(|n| (n.clone(), fs::read(out.join(n)).unwrap())).collect();
    assert!(before == after);
    assert!(names(&out).iter().all(|n| n.ends_with(SHARD_SUFFIX) || n == "_bigFiles"), "{:?}", names(&out));
}

#[test]
fn a_fixed_epoch_makes_two_machines_agree() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    corpus(&input);
    let epoch = [("SOURCE_DATE_EPOCH", "1700000000")];
    for out in ["a", "b"] {
        des_in(dir.path(), &epoch, &["pack", "in", "--output-dir", out, "--bare-names"]).code(0);
    }
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    assert_eq!(shards(&a), shards(&b));
    assert!(shards(&a).iter().all(|n| fs::read(a.join(n)).unwrap() == fs::read(b.join(n)).unwrap()));
    des_in(dir.path(), &[("SOURCE_DATE_EPOCH", "now")], &["pack", "in", "--output-dir", "c"]).code(2);
}

#[test]
fn bare_names_go_on_from_the_highest() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    file(&input.join("7"), b"seven");
    for _ in 0..3 {
        pack(&input, &out, &["--bare-names", "--format", "v2"]).code(0);
    }
    assert_eq!(shards(&out), ["20250310_07_0000.des", "20250310_07_0001.des", "20250310_07_0002.des"]);
}

#[test]
fn the_output_inside_the_input_is_not_packed() {
    let dir = tempfile::tempdir().unwrap();
    corpus(dir.path());
    let out = dir.path().join("out");
    let first = pack(dir.path(), &out, &[]).code(0).json();
    let second = pack(dir.path(), &out, &[]).code(0).json();
    assert_eq!(first["files"], second["files"]);
    assert_eq!(second["shards"]["written"], 0);
}

#[test]
fn wrong_manifests_write_nothing_and_say_where() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir.path().join("a"), b"1");
    let good = r#"{"uid": "g", "created_at": "2025-03-10T00:00:00Z", "size_bytes": 1, "source_path": "a"}"#;
    let cases = [
        ("[]".to_owned(), "the manifest is empty"),
        (String::new(), "the manifest is empty"),
        (format!("{good}\n{{\"uid\": \n{good}"), "line"),
        (format!("[{good}, {good} {good}]"), "not valid"),
        (format!("{good}\n{good}"), "stands twice"),
        (good.replace("\"uid\": \"g\", ", ""), "uid"),
        (good.replace("\"g\"", "\"\""), "empty"),
        (good.replace("\"size_bytes\": 1", "\"size_bytes\": -1"), "size_bytes"),
        (good.replace("2025-03-10T", "2025-13-10T"), "created_at"),
        (good.replace("\"g\"", &format!("\"{}\"", "x".repeat(65_536))), "65535"),
    ];
    for (manifest, expected) in cases {
        let path = dir.path().join("m.json");
        fs::write(&path, &manifest).unwrap();
        let out = dir.path().join("out");
        let ran = pack(&path, &out, &[]).code(1);
        let error: Value = serde_json::from_str(ran.err.trim()).unwrap_or_else(|e| panic!("{e}: {}", ran.err));
        assert!(error["error"].as_str().unwrap().contains(expected), "{expected}: {error}");
        assert!(error["hint"].is_string(), "{error}");
        assert_eq!(shards(&out), Vec::<String>::new());
    }
    des(&["pack", "/no/such/manifest", "--output-dir", text(dir.path())]).code(1);
    des(&["pack"]).code(2);
}

#[test]
fn bad_files_are_listed_and_the_list_is_a_manifest_again() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir.path().join("a"), b"1");
    file(&dir.path().join("b"), b"22");
    let line = |uid: &str, source: &str, size: u64| {
        json!({"uid": uid, "created_at": "2025-03-10T00:00:00Z", "size_bytes": size, "source_path": source}).to_string()
    };
    let manifest = dir.path().join("m.ndjson");
    let lines = [line("good", "a", 1), line("missing", "late", 4), line("lies", "b", 3), line("folder", "sub", 1)];
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(&manifest, lines.join("\n")).unwrap();
    let (out, list) = (dir.path().join("out"), dir.path().join("failed.ndjson"));
    let result = pack(&manifest, &out, &["--failures", text(&list)]).code(3).json();
    assert_eq!(result["files"], json!({"accepted": 4, "packed": 1, "failed": 3}));
    let failed: Vec<Value> =
        fs::read_to_string(&list).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut reasons: Vec<(&str, &str)> =
        failed.iter().map(|f| (f["uid"].as_str().unwrap(), f["reason"].as_str().unwrap())).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, [("folder", "not_a_file"), ("lies", "size_mismatch"), ("missing", "missing")]);

    fs::write(dir.path().join("late"), b"here").unwrap();
    let result = pack(&list, &out, &[]).code(3).json();
    assert_eq!(result["files"], json!({"accepted": 3, "packed": 1, "failed": 2}));
    assert_eq!(des(&["cat", text(&out), "missing"]).code(0).out, "here");
}

#[test]
fn compressed_manifests_and_standard_input_are_read() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir.path().join("a"), b"1");
    let line = json!({"uid": 5, "created_at": "2025-03-10T00:00:00Z", "size_bytes": 1, "source_path": "a"}).to_string();
    let mut child = crate::support::des_command();
    child.current_dir(dir.path()).args(["--json", "pack", "-", "--output-dir", "out"]);
    let mut child = child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["files"]["packed"], 1);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(line.as_bytes()).unwrap();
    fs::write(dir.path().join("list.gz"), gzip.finish().unwrap()).unwrap();
    fs::write(dir.path().join("list.zst"), zstd::encode_all(line.as_bytes(), 1).unwrap()).unwrap();
    for name in ["list.gz", "list.zst"] {
        let result =
            des_in(dir.path(), &[], &["--json", "pack", name, "--output-dir", name.trim_start_matches("list.")]);
        assert_eq!(result.code(0).json()["files"]["packed"], 1, "{name}");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    corpus(&input);
    file(&dir.path().join("file"), b"x");
    let ran = des(&["pack", text(&input), "--output-dir", text(&dir.path().join("file/out"))]).code(1);
    assert!(ran.err.contains("file/out"), "{}", ran.err);
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(closed.join("probe"), b"").is_err() {
        // The superuser may write everywhere; everybody else gets the error.
        des(&["pack", text(&input), "--output-dir", text(&closed)]).code(1);
    }
}

#[test]
fn damage_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    corpus(&input);
    pack(&input, &out, &["--n-bits", "4", "--max-shard-size", "40g", "--big-file-threshold", "50000"]).code(0);
    let listed = des(&["--json", "ls", text(&out)]).code(0).lines();
    let victim = listed.iter().find(|l| l["uid"] == "docs/page-30.txt").unwrap();
    let path = out.join(victim["shard"].as_str().unwrap());
    let whole = fs::read(&path).unwrap();

    let mut flipped = whole.clone();
    flipped[usize::try_from(victim["offset"].as_u64().unwrap()).unwrap() + 3] ^= 1;
    fs::write(&path, &flipped).unwrap();
    let ran = des(&["verify", text(&out)]).code(1);
    assert!(ran.out.contains("docs/page-30.txt") && ran.out.contains(victim["shard"].as_str().unwrap()), "{}", ran.out);
    let found = des(&["--json", "verify", text(&out)]).code(1).lines();
    assert_eq!((&found[0]["uid"], &found[0]["offset"]), (&json!("docs/page-30.txt"), &victim["offset"]));
    assert_eq!(
        (&found[1]["ok"], &found[1]["problems"], &found[1]["damaged_shards"]),
        (&json!(false), &json!(1), &json!(1))
    );
    let ran = des(&["cat", text(&out), "docs/page-30.txt"]).code(1);
    assert_eq!(ran.out, "", "nothing damaged is ever written out");

    for cut in [0, 7, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        let ran = des(&["verify", text(&path)]).code(1);
        assert!(ran.out.contains(victim["shard"].as_str().unwrap()), "cut at {cut}: {}", ran.out);
        des(&["ls", text(&path)]).code(1);
    }
    fs::write(&path, &whole).unwrap();
    des(&["verify", text(&out)]).code(0);

    let big = out.join("_bigFiles").join(&names(&out.join("_bigFiles"))[0]);
    let mut bytes = fs::read(&big).unwrap();
    bytes[100] ^= 1;
    fs::write(&big, bytes).unwrap();
    des(&["verify", text(&out)]).code(1);
    des(&["verify", "--deep=false", text(&out)]).code(0);
}

#[test]
fn every_reference_shard_is_listed_and_verified() {
    for name in ["none", "zstd", "lz4", "meta", "unicode", "empty", "v1_legacy", "v1_empty", "mixed_skip_zstd"] {
        let path = vectors().join(format!("{name}.des"));
        des(&["verify", text(&path)]).code(0);
        des(&["ls", text(&path)]).code(0);
    }
    let ran = des(&["--json", "verify", text(&vectors().join("bigfiles"))]).code(0);
    assert_eq!(ran.json()["big_files"], 5, "two uids share one object");
    let place = vectors().join("bigfiles_prefix");
    let other = ["--bigfiles-prefix", "blobs", text(&place)];
    des(&[&["verify"], &other[..]].concat()).code(0);
}

#[test]
fn a_place_without_shards_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["ls", "verify"] {
        let ran = des(&[command, text(dir.path())]).code(1);
        assert!(ran.err.contains("no shards"), "{}", ran.err);
    }
    des(&["cat", text(dir.path()), "x"]).code(1);
    des(&["ls", "s3://"]).code(2);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let out = vectors().join("pack_run");
    let mut child = crate::support::des_command();
    let mut child = child
        .args(["ls", text(&out)])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(matches!(output.status.code(), Some(141 | 0)), "{:?}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_full_output_is_an_error() {
    let out = vectors().join("pack_run");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut child = crate::support::des_command();
    let output = child.args(["ls", text(&out)]).stdout(full).stderr(std::process::Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to standard output"));
}

#[test]
fn help_names_the_commands() {
    let ran = des(&["--help"]).code(0);
    for command in ["demo", "dev", "pack", "bench", "ls", "cat", "verify", "submit", "jobs", "status", "get"] {
        assert!(ran.out.contains(&format!("\n  {command} ")), "{command}: {}", ran.out);
    }
    des(&["--version"]).code(0);
    des(&["nonsense"]).code(2);
}
