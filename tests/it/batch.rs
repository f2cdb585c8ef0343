//! Ten thousand files in one request to a real retriever, whose memory is watched.

use std::collections::BTreeMap;

use des_shared::created_at::CreatedAt;
use des_shared::routing::{NBits, candidate_slots};
use des_shared::segment::ShardFormat;
use des_shared::shard::{Codec, PayloadInfo, ShardWriter};
use des_tests::cluster::Service;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

const AT: &str = "2025-03-10T12:00:00Z";
const FILES: usize = 10_000;
const FILE_BYTES: usize = 16 * 1024;
/// What the request may take beside what the process has anyway: two windows, what is on its way, the list and the report.
const ROOM_KIB: u64 = 64 * 1024;

/// Files of noise by number, in 16 shards.
fn pack(folder: &std::path::Path, noise: &[u8]) {
    let n_bits = NBits::new(4).unwrap();
    let at = CreatedAt::parse(AT).unwrap();
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for uid in (0..FILES).map(|number| number.to_string()) {
        shards.entry(candidate_slots(&uid, &at, n_bits)[0].object_prefix()).or_default().push(uid);
    }
    for (prefix, mut uids) in shards {
        uids.sort_unstable();
        let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).unwrap();
        let mut out = writer.header().to_vec();
        for uid in uids {
            let raw = content(noise, uid.parse().unwrap());
            writer.append(&uid, &PayloadInfo::of(Codec::None, raw.len() as u64, raw), None).unwrap();
            out.extend_from_slice(raw);
        }
        out.extend_from_slice(&writer.finish().unwrap());
        std::fs::write(folder.join(format!("{prefix}0000.des")), out).unwrap();
    }
}

fn content(noise: &[u8], number: usize) -> &[u8] {
    &noise[number..number + FILE_BYTES]
}

/// `VmRSS` or `VmHWM`, the peak, in KiB.
fn memory(pid: i32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap()
}

async fn batch(url: &str, numbers: std::ops::Range<usize>) -> reqwest::Response {
    let list: Vec<_> = numbers.map(|n| json!({"uid": (n * 7 % FILES).to_string(), "created_at": AT})).collect();
    let request = reqwest::Client::new().post(format!("{url}/files/batch")).header("Accept", "application/x-tar");
    request.json(&list).send().await.unwrap().error_for_status().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_files_take_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, services) = (folder.path().join("shards"), folder.path().join("services"));
    std::fs::create_dir(&shards).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let noise: Vec<u8> = (0..FILES + FILE_BYTES).map(|_| rng.random()).collect();
    pack(&shards, &noise);
    let env = [
        ("DES_BACKEND", "local"),
        ("DES_BASE_DIR", shards.to_str().unwrap()),
        ("DES_N_BITS", "4"),
        ("DES_LISTEN", "127.0.0.1:0"),
        ("DES_LOG_FORMAT", "json"),
    ];
    let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let retriever = Service::start(&services, "des-retriever", "retriever", &env).await.unwrap();
    batch(&retriever.url, 0..100).await.bytes().await.unwrap();
    let before = memory(retriever.pid(), "VmRSS");
    let mut response = batch(&retriever.url, 0..FILES).await;
    let (mut seen, mut at) = (0, 0);
    // A tar of whole blocks: one of head, 32 of a file. Each file is compared as it comes.
    let mut block = Vec::new();
    while let Some(piece) = response.chunk().await.unwrap() {
        block.extend_from_slice(&piece);
        while at < FILES && block.len() >= 512 + FILE_BYTES {
            let number = at * 7 % FILES;
            assert!(block.starts_with(format!("{number}\0").as_bytes()), "file {at}");
            assert!(&block[512..512 + FILE_BYTES] == content(&noise, number), "file {at}");
            block.drain(..512 + FILE_BYTES);
            at += 1;
            seen += FILE_BYTES;
        }
    }
    assert_eq!(at, FILES);
    let report = String::from_utf8_lossy(&block);
    assert_eq!(report.matches("\"status\":200").count(), FILES);
    let peak = memory(retriever.pid(), "VmHWM");
    println!("{FILES} files, {} MiB: {before} KiB before, {peak} KiB at most", seen >> 20);
    assert!(peak < before + ROOM_KIB, "{before} KiB before, {peak} KiB at most");
}
