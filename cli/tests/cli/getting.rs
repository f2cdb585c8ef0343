//! `des get` for many files.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Dev, corpus, des, names, text};

const AT: &str = "2025-03-10T09:46:40Z";

fn manifest(path: &Path, files: &[(String, Vec<u8>)]) {
    let line = |(uid, bytes): &(String, Vec<u8>)| {
        json!({"uid": uid, "created_at": AT, "size_bytes": bytes.len(), "source_path": "x"}).to_string() + "\n"
    };
    fs::write(path, files.iter().map(line).collect::<String>()).unwrap();
}

#[test]
fn all_files_of_a_manifest_come_and_what_is_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (input, list, out) = (dir.path().join("in"), dir.path().join("list"), dir.path().join("out"));
    let mut files = corpus(&input);
    let dev = Dev::start(&dir.path().join("data"), dir.path());
    des(&["submit", text(&input), "--wait", "--coordinator", dev.coordinator()]).code(0);
    manifest(&list, &files);
    let get = ["--json", "get", "--manifest", text(&list), "--output-dir", text(&out), "--retriever", dev.retriever()];
    let result = des(&get).code(0).json();
    assert_eq!(result["files"], json!({"fetched": files.len(), "there": 0, "failed": 0}));
    for (uid, bytes) in &files {
        assert!(fs::read(out.join("20250310").join(uid)).unwrap() == *bytes, "{uid}");
    }
    // One is gone, and one is another length than it should be.
    fs::remove_file(out.join("20250310/12345")).unwrap();
    fs::write(out.join("20250310/photo.jpg"), "half").unwrap();
    let result = des(&get).code(0).json();
    assert_eq!(result["files"], json!({"fetched": 2, "there": files.len() - 2, "failed": 0}));
    let photo = files.iter().find(|(uid, _)| uid == "photo.jpg").unwrap();
    assert!(fs::read(out.join("20250310/photo.jpg")).unwrap() == photo.1);
    // Some are not to be had: the others come, the list says which, and is a manifest again.
    files.push(("../../evil".to_owned(), b"never".to_vec()));
    files.insert(0, ("not/there".to_owned(), Vec::new()));
    manifest(&list, &files);
    let failures = dir.path().join("failures");
    fs::remove_dir_all(&out).unwrap();
    let ran = des(&[&get[1..], &["--failures", text(&failures), "--parallel", "1"]].concat()).code(3);
    assert!(ran.err.contains("2 files could not be fetched") && ran.err.contains("not/there"), "{}", ran.err);
    let lines: Vec<Value> =
        fs::read_to_string(&failures).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["status"], &lines[1]["uid"]), (2, &json!(404), &json!("../../evil")));
    assert_eq!(names(&out), ["20250310"]);
    let again = ["get", "--manifest", text(&failures), "--output-dir", text(&out), "--retriever", dev.retriever()];
    des(&again).code(3);
}

#[test]
fn wrong_usage_is_told() {
    for args in [
        &["get"][..],
        &["get", "uid"],
        &["get", "--manifest", "x"],
        &["get", "--output-dir", "x"],
        &["get", "uid", "--created-at", AT, "--manifest", "x", "--output-dir", "y"],
        &["get", "--manifest", "x", "--output-dir", "y", "-o", "z"],
        &["get", "--manifest", "x", "--output-dir", "y", "--parallel", "0"],
    ] {
        des(args).code(2);
    }
    let dir = tempfile::tempdir().unwrap();
    let ran = des(&["get", "--manifest", "/no/such/list", "--output-dir", text(dir.path())]).code(1);
    assert!(ran.err.contains("/no/such/list"), "{}", ran.err);
}

/// Answers the first batch with one file and half of the second, then breaks off; further ones well.
fn breaking_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (turn, stream) in listener.incoming().take(2).enumerate() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let asked: Vec<Value> = serde_json::from_slice(&body).unwrap();
            let mut answer = String::new();
            for (index, file) in asked.iter().enumerate() {
                let bytes = format!("the bytes of {}", file["uid"].as_str().unwrap());
                let length = bytes.len();
                let head = format!("Content-Length: {length}\r\nX-DES-Index: {index}\r\nX-DES-Status: 200");
                write!(answer, "\r\n--b\r\n{head}\r\n\r\n{bytes}").unwrap();
                if turn == 0 && index == 1 {
                    answer.truncate(answer.len() - 5);
                    break;
                }
            }
            if turn > 0 {
                answer.push_str("\r\n--b--\r\n");
            }
            let head = "HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=b\r\nTransfer-Encoding: chunked\r\nConnection: close";
            let end = if turn > 0 { "0\r\n\r\n" } else { "" };
            write!(reader.get_mut(), "{head}\r\n\r\n{:x}\r\n{answer}\r\n{end}", answer.len()).unwrap();
        }
    });
    url
}

#[test]
fn an_answer_that_breaks_off_is_asked_for_again_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let (list, out) = (dir.path().join("list"), dir.path().join("out"));
    let files: Vec<(String, Vec<u8>)> =
        ["a", "b", "c"].iter().map(|uid| ((*uid).to_owned(), format!("the bytes of {uid}").into_bytes())).collect();
    manifest(&list, &files);
    let url = breaking_server();
    let get = ["--json", "get", "--manifest", text(&list), "--output-dir", text(&out), "--retriever", &url];
    let result = des(&get).code(0).json();
    assert_eq!(result["files"], json!({"fetched": 3, "there": 0, "failed": 0}));
    assert_eq!(names(&out.join("20250310")), ["a", "b", "c"], "no half file and no temporary one");
    for (uid, bytes) in &files {
        assert!(fs::read(out.join("20250310").join(uid)).unwrap() == *bytes);
    }
}
