//! Shards of the existing implementation, and this project's own golden ones: every entry comes back over HTTP.

use std::fs;
use std::path::{Path, PathBuf};

use des_shared::shard::hex32;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Client;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::support::{NOON, Place, Rig, put_in_all_slots};

/// Longer targets do not fit into an HTTP request line.
const MAX_TARGET: usize = 60_000;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// The shards of a folder with the descriptions that lie beside them.
fn shards(folder: &Path) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("golden files") {
        let shard = entry.expect("readable").path();
        let description = shard.with_extension("json");
        if shard.extension().is_some_and(|e| e == "des") && description.exists() {
            let text = fs::read(&description).expect("readable");
            found.push((shard, serde_json::from_slice(&text).expect("JSON")));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn sha256(bytes: &[u8]) -> String {
    hex32(&Sha256::digest(bytes).into())
}

/// Reads every entry; how many there were.
async fn check(shard: &Path, description: &Value, bigfiles: Option<(&Path, &str)>) -> usize {
    let place = Place::new();
    put_in_all_slots(&place, "0000", &fs::read(shard).expect("readable"));
    let mut rig = Rig::new(&place, 4);
    if let Some((folder, prefix)) = bigfiles {
        for entry in fs::read_dir(folder).expect("big files") {
            let path = entry.expect("readable").path();
            let name = path.file_name().expect("a name").to_str().expect("hexadecimal");
            place.put(&format!("{prefix}/{name}"), fs::read(&path).expect("readable"));
        }
        rig.config.bigfiles_prefix = prefix.to_owned();
        let metrics = crate::metrics::RetrieverMetrics::register(&des_shared::metrics::Metrics::new(), "local");
        rig.files = crate::files(&rig.config, &rig.deps, &metrics).into();
    }
    let server = rig.serve().await;
    let client = Client::new();
    let entries = description["entries"].as_array().expect("entries");
    for entry in entries {
        let (uid, hash) = (entry["uid"].as_str().expect("a uid"), entry["sha256"].as_str().expect("a hash"));
        let shown: String = uid.chars().take(50).collect();
        let direct = rig.get(uid).await.unwrap_or_else(|e| panic!("{}: {shown}: {e}", shard.display()));
        assert_eq!((sha256(&direct), direct.len() as u64), (hash.to_owned(), entry["size"].as_u64().expect("a size")));
        let encoded = utf8_percent_encode(uid, NON_ALPHANUMERIC).to_string();
        if uid.is_empty() || uid == "." || uid == ".." || encoded.len() > MAX_TARGET {
            continue;
        }
        let url = server.url(&format!("/files/{encoded}?created_at={NOON}"));
        let response = client.get(url).send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{shown}");
        assert_eq!(sha256(&response.bytes().await.expect("the body")), hash, "{shown}");
    }
    place.calls();
    server.stop().await;
    entries.len()
}

#[tokio::test]
async fn every_entry_of_the_existing_implementations_shards_comes_back() {
    let mut entries = 0;
    for (shard, description) in shards(&golden("vectors")) {
        entries += check(&shard, &description, None).await;
    }
    assert!(entries >= 200, "{entries} entries");
}

#[tokio::test]
async fn their_big_files_come_back() {
    for (folder, objects, prefix) in
        [("vectors/bigfiles", "_bigFiles", "_bigFiles"), ("vectors/bigfiles_prefix", "blobs", "blobs")]
    {
        let folder = golden(folder);
        for (shard, description) in shards(&folder) {
            assert!(check(&shard, &description, Some((&folder.join(objects), prefix))).await > 1);
        }
    }
}

#[tokio::test]
async fn odd_shards_give_the_file_or_an_error_and_never_other_bytes() {
    let text = fs::read(golden("vectors/odd_shards.json")).expect("golden file");
    let cases: Value = serde_json::from_slice(&text).expect("JSON");
    let mut read = 0;
    for case in cases["cases"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        let place = Place::new();
        put_in_all_slots(&place, "0000", &base64(case["bytes_b64"].as_str().expect("base64")));
        let rig = Rig::new(&place, 4);
        let Some(reads) = case["reads"].as_object() else { continue };
        for (uid, expected) in reads {
            // Where the existing reader gives bytes, we give the same or refuse.
            if let (Ok(bytes), Some(hash)) = (rig.get(uid).await, expected["sha256"].as_str()) {
                assert_eq!(sha256(&bytes), hash, "{name}: {uid}");
                read += 1;
            }
        }
        place.calls();
    }
    assert!(read >= 5, "{read} were read");
}

/// Standard base64 with padding.
fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        let value = ALPHABET.iter().position(|a| *a == c).expect("a base64 digit") as u32;
        (bits, held) = (bits << 6 | value, held + 6);
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}
