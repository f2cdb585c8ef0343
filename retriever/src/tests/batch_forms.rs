//! Batches over HTTP: every form, opened with the tools people have.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use des_shared::layout::bigfile_key;
use des_shared::segment::ShardFormat;
use des_shared::shard::ShardWriter;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::batch::{lines, list, untar};
use super::support::{Content, NOON, Place, Rig, Server, key, many, noise, put_in_all_slots, v3};

/// Names that a careless archive would write where they do not belong.
fn tricky() -> Content {
    let long = format!("{}/日本語.txt", "long-".repeat(40));
    let mut files = many(300);
    for uid in ["../../evil.txt", "/etc/evil", "a b/ü+%2F?.json", "plain.txt", "x/./y", "_des/report.ndjson", &long] {
        files.insert(uid.to_owned(), format!("the bytes of {uid:?}\r\n--").into_bytes());
    }
    files
}

/// Where a file must be after unpacking.
fn expected(files: &Content) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(uid, raw)| (des_shared::safe_name::safe_name(uid), raw.clone())).collect()
}

fn big() -> Vec<u8> {
    noise(3_000_000)
}

/// The files, and a big one whose object is `stored`.
async fn serve(place: &Place, files: &Content, stored: &[u8]) -> Server {
    put_in_all_slots(place, "0000", &v3(1, files));
    let sha256 = Sha256::digest(big()).into();
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).expect("a writer");
    let mut out = writer.header().to_vec();
    writer.append_bigfile("movie.mp4", sha256, big().len() as u64, None).expect("appended");
    out.extend_from_slice(&writer.finish().expect("finished"));
    put_in_all_slots(place, "0001", &out);
    place.put(&bigfile_key("_bigFiles", &sha256), stored);
    Rig::new(place, 4).serve().await
}

async fn post(server: &Server, accept: &str, body: impl Into<reqwest::Body>) -> Response {
    let request = Client::new().post(server.url("/files/batch")).header("Accept", accept);
    request.body(body).send().await.expect("an answer")
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("{name} is there")).to_str().expect("text")
}

fn run(program: &str, args: &[&str]) -> String {
    let ran = Command::new(program).args(args).env("LC_ALL", "C.UTF-8").output();
    let ran = ran.unwrap_or_else(|e| panic!("{program}, which this test needs: {e}"));
    assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("UTF-8")
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// All files below a folder.
fn unpacked(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").to_str().expect("UTF-8").to_owned();
                found.insert(name, std::fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

#[tokio::test]
async fn tar_and_zip_unpack_with_the_usual_tools() {
    let (place, mut files) = (Place::new(), tricky());
    let server = serve(&place, &files, &big()).await;
    files.insert("movie.mp4".to_owned(), big());
    let asked = list(files.keys().map(String::as_str).chain(["not/there"]));
    let folder = tempfile::tempdir().expect("a folder");
    for (accept, kind) in [("application/x-tar", "tar"), ("application/zip", "zip"), ("application/zip", "py")] {
        if kind == "zip" && !is_installed("unzip") {
            // Python opens the same archive.
            continue;
        }
        let response = post(&server, accept, asked.clone()).await;
        assert_eq!((response.status().as_u16(), header(&response, "content-type")), (200, accept));
        assert!(header(&response, "content-disposition").starts_with("attachment"));
        let archive = folder.path().join(format!("files.{kind}"));
        std::fs::write(&archive, response.bytes().await.expect("to its end")).expect("written");
        let into = folder.path().join(kind);
        std::fs::create_dir(&into).expect("made");
        let (archive, target) = (archive.to_str().expect("UTF-8"), into.to_str().expect("UTF-8"));
        match kind {
            "tar" => run("tar", &["-xf", archive, "-C", target]),
            "zip" => run("unzip", &["-q", archive, "-d", target]),
            _ => {
                let script = "import sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
assert z.testzip() is None
z.extractall(sys.argv[2])";
                run("python3", &["-c", script, archive, target])
            }
        };
        let mut found = unpacked(&into);
        let report = lines(&found.remove("_des/report.ndjson").expect("the report"));
        assert_eq!(report.len(), files.len() + 1);
        assert_eq!(report.last().expect("a line")["status"], 404);
        let expected = expected(&files);
        assert!(found.keys().eq(expected.keys()), "{kind}: {:?}", found.keys());
        assert!(found == expected, "{kind}: other bytes");
    }
    server.stop().await;
}

#[tokio::test]
async fn multipart_reads_as_the_rfc_says() {
    let (place, mut files) = (Place::new(), tricky());
    let server = serve(&place, &files, &big()).await;
    files.insert("movie.mp4".to_owned(), big());
    let uids: Vec<&str> = files.keys().map(String::as_str).chain(["not/there"]).collect();
    let response = post(&server, "multipart/mixed", list(&uids)).await;
    let mut message =
        format!("MIME-Version: 1.0\r\nContent-Type: {}\r\n\r\n", header(&response, "content-type")).into_bytes();
    message.extend_from_slice(&response.bytes().await.expect("to its end"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("message");
    std::fs::write(&path, message).expect("written");
    // The parser of mail makes line ends of its own, so it reads the headers, and the parts are cut as RFC 2046 section
    // 5.1.1 says.
    let script = "import sys, email, email.policy, json, hashlib
raw = open(sys.argv[1], 'rb').read()
m = email.message_from_bytes(raw, policy=email.policy.HTTP)
assert m.is_multipart() and not m.defects, m.defects
cut = b'\\r\\n--' + m.get_boundary().encode()
parts = (b'\\r\\n' + raw.split(b'\\r\\n\\r\\n', 1)[1]).split(cut)
assert parts[0].strip() == b'' and parts[-1].strip() == b'--', (parts[0], parts[-1])
for part in parts[1:-1]:
    head, b = part.split(b'\\r\\n\\r\\n', 1)
    p = email.message_from_bytes(head.lstrip() + b'\\r\\n\\r\\n', policy=email.policy.HTTP)
    assert not p.defects, p.defects
    print(json.dumps([p['X-DES-Index'], p['X-DES-Status'], p.get_filename(), p.get_content_type(), int(p['Content-Length']), len(b), hashlib.sha256(b).hexdigest()]))";
    let said = run("python3", &["-c", script, path.to_str().expect("UTF-8")]);
    let parts: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(parts.len(), uids.len() + 1);
    for (n, (part, uid)) in parts.iter().zip(&uids).enumerate() {
        assert_eq!((&part[0], &part[2]), (&json!(n.to_string()), &json!(des_shared::safe_name::safe_name(uid))));
        let Some(raw) = files.get(*uid) else {
            assert_eq!((&part[1], &part[3]), (&json!("404"), &json!("application/problem+json")));
            continue;
        };
        assert_eq!(part[1], "200");
        assert_eq!((&part[4], &part[5]), (&json!(raw.len()), &json!(raw.len())), "{uid}");
        assert_eq!(part[6], des_shared::shard::hex32(&Sha256::digest(raw).into()), "{uid}");
    }
    assert_eq!(parts.last().expect("the report")[2], "_des/report.ndjson");
    server.stop().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let (place, files) = (Place::new(), many(20));
    let mut wrong = big();
    wrong[2_000_000] ^= 1;
    let server = serve(&place, &files, &wrong).await;
    for accept in ["application/x-tar", "application/zip", "multipart/mixed"] {
        let response =
            post(&server, accept, list(["folder/file-00001.json", "movie.mp4", "folder/file-00002.json"])).await;
        assert_eq!(response.status(), 200, "{accept}");
        response.bytes().await.expect_err("the hash of the big file is wrong");
        // What is right is still to be had.
        let response = post(&server, accept, list(["folder/file-00001.json"])).await;
        response.bytes().await.expect("whole");
    }
    let metrics = reqwest::get(server.url("/metrics")).await.expect("metrics").text().await.expect("text");
    assert!(metrics.contains("des_responses_broken_off_total 3"), "{metrics}");
    assert!(metrics.contains("des_batch_files_total{backend=\"local\",status=\"200\"} 6"), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn wrong_lists_are_refused_before_anything_is_read() {
    let place = Place::new();
    place.put(&key("batch", 0), v3(1, &super::support::content(&[("batch", b"a file of that name")])));
    let mut rig = Rig::new(&place, 8);
    rig.config.batch_max_files = 100;
    let server = rig.serve().await;
    let hundred_and_one = list((0..101).map(|n| n.to_string()));
    let long = format!("[{}]", " ".repeat(200_000));
    for (accept, body, status, word) in [
        ("text/html", "[]", 406, "application/zip"),
        ("*/*", "nonsense", 400, "element 1"),
        ("*/*", "[{\"uid\":\"a\"}]", 400, "created_at"),
        ("*/*", &hundred_and_one, 413, "more than 100 files"),
        ("*/*", &long, 413, "bytes"),
    ] {
        let response = post(&server, accept, body.to_owned()).await;
        assert_eq!(response.status(), status, "{body:.40}");
        assert_eq!(header(&response, "content-type"), "application/problem+json");
        let text = response.text().await.expect("text");
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(place.counted(), (0, 0));
    // Without a header, NDJSON, and a manifest's other fields.
    let line = json!({"uid": "batch", "created_at": NOON, "size_bytes": 1, "source_path": "x"}).to_string();
    let response = Client::new().post(server.url("/files/batch")).body(format!("{line}\n{line}\n")).send().await;
    let response = response.expect("an answer");
    assert_eq!(header(&response, "content-type"), "application/x-tar");
    let (files, report) = untar(&response.bytes().await.expect("to its end"));
    assert_eq!((files.len(), report.len()), (2, 2));
    // The name is still a uid's, too.
    let response = reqwest::get(server.url(&format!("/files/batch?created_at={NOON}"))).await.expect("an answer");
    assert_eq!(response.text().await.expect("text"), "a file of that name");
    server.stop().await;
}
