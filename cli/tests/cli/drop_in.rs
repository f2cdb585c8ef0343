//! `des-pack` in the place of the existing tool.

use std::fs;

use crate::support::{des, des_pack, file, names, shards, text, vectors};
use serde_json::{Value, json};

#[test]
fn the_recorded_run_is_reproduced_byte_for_byte() {
    let out = tempfile::tempdir().unwrap();
    let args = [
        "--input-json",
        "pack_run_manifest.json",
        "--output-dir",
        text(out.path()),
        "--n-bits",
        "4",
        "--max-shard-size",
        "8000",
    ];
    let ran = des_pack(&vectors(), &args).code(0);
    let expected = shards(&vectors().join("pack_run"));
    assert_eq!(expected.len(), 30);
    assert_eq!(names(out.path()), expected, "nothing but the shards");
    for name in &expected {
        let ours = fs::read(out.path().join(name)).unwrap();
        let theirs = fs::read(vectors().join("pack_run").join(name)).unwrap();
        assert!(ours == theirs, "{name} differs");
    }
    let recorded: Value = serde_json::from_slice(&fs::read(vectors().join("pack_run.json")).unwrap()).unwrap();
    let list = recorded["shards"].as_array().unwrap();
    let (mut files, mut size) = (0, 0);
    let mut lines = Vec::new();
    for shard in list {
        let name = shard["file"].as_str().unwrap();
        files += shard["file_count"].as_u64().unwrap();
        size += shard["total_size_bytes"].as_u64().unwrap();
        let path = out.path().join(name);
        lines.push(format!(
            "SHARD: {} files={} size={}",
            path.display(),
            shard["file_count"],
            shard["total_size_bytes"]
        ));
    }
    lines.insert(0, format!("Wrote 30 shard(s) containing {files} files, total logical size {size} bytes."));
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), lines, "the output lines in the order of the plan");
}

#[test]
fn a_second_run_goes_on_and_overwrites_nothing() {
    let out = tempfile::tempdir().unwrap();
    let args = [
        "--input-json",
        "pack_run_manifest.json",
        "--output-dir",
        text(out.path()),
        "--n-bits",
        "4",
        "--max-shard-size",
        "8000",
    ];
    des_pack(&vectors(), &args).code(0);
    let first = shards(out.path());
    des_pack(&vectors(), &args).code(0);
    assert_eq!(shards(out.path()).len(), 60);
    assert!(shards(out.path()).contains(&"20250310_E_0003.des".to_owned()));
    for name in &first {
        let now = fs::read(out.path().join(name)).unwrap();
        assert!(now == fs::read(vectors().join("pack_run").join(name)).unwrap(), "{name} was touched");
    }
    des(&["verify", text(out.path())]).code(0);
}

#[test]
fn a_duplicate_uid_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir.path().join("a"), b"1");
    let entry = json!({"uid": "x", "created_at": "2025-03-10T00:00:00Z", "size_bytes": 1, "source_path": "a"});
    let other = json!({"uid": "y", "created_at": "2025-03-10T00:00:00Z", "size_bytes": 1, "source_path": "a"});
    fs::write(dir.path().join("m.json"), json!([entry, other, entry]).to_string()).unwrap();
    let ran = des_pack(dir.path(), &["--input-json", "m.json", "--output-dir", "out"]).code(1);
    assert!(ran.out.starts_with("Packing failed: uid \"x\" stands twice"), "{}", ran.out);
    assert_eq!(names(&dir.path().join("out")), Vec::<String>::new());
}

#[test]
fn files_are_found_by_the_date_as_written_and_beside_the_current_folder() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir.path().join("a"), b"1");
    let entry = json!({"uid": 7, "created_at": "2025-03-10T23:30:00-05:00", "size_bytes": 1, "source_path": "a"});
    fs::create_dir(dir.path().join("lists")).unwrap();
    fs::write(dir.path().join("lists/m.json"), json!([entry]).to_string()).unwrap();
    let ran = des_pack(dir.path(), &["--input-json", "lists/m.json", "--output-dir", "out"]).code(0);
    assert_eq!(
        ran.out,
        "Wrote 1 shard(s) containing 1 files, total logical size 1 bytes.\nSHARD: out/20250310_07_0000.des files=1 size=1\n"
    );
}

#[test]
fn one_missing_source_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir.path().join("a"), b"1");
    let entry = |uid: &str, source: &str| json!({"uid": uid, "created_at": "2025-03-10T00:00:00Z", "size_bytes": 1, "source_path": source});
    fs::write(dir.path().join("m.json"), json!([entry("good", "a"), entry("bad", "b")]).to_string()).unwrap();
    let ran = des_pack(dir.path(), &["--input-json", "m.json", "--output-dir", "out"]).code(3);
    assert!(ran.out.starts_with("Wrote 1 shard(s) containing 1 files"), "{}", ran.out);
    assert!(ran.err.contains("bad"), "{}", ran.err);
}

#[test]
fn an_empty_list_is_no_error_and_wrong_flags_are() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.json"), "[]").unwrap();
    let ran = des_pack(dir.path(), &["--input-json", "m.json", "--output-dir", "out"]).code(0);
    assert_eq!(ran.out, "Wrote 0 shard(s) containing 0 files, total logical size 0 bytes.\n");
    des_pack(dir.path(), &["--input-json", "m.json"]).code(2);
    for bits in ["3", "17"] {
        des_pack(dir.path(), &["--input-json", "m.json", "--output-dir", "out", "--n-bits", bits]).code(2);
    }
}
