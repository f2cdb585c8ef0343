//! The cache on disk: what a restart finds, and what becomes of damaged files.

use std::path::Path;
use std::time::Duration;

use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use reqwest::Client;
use tempfile::TempDir;

use super::endurance::until;
use super::support::{Content, NOON, Place, Rig, key, many, noise, slot, v3};
use crate::DiskConfig;

const UID: &str = "folder/file-00001.json";

fn config(dir: &TempDir) -> DiskConfig {
    DiskConfig { dir: dir.path().to_owned(), index_bytes: 32 << 20, payload_bytes: 32 << 20 }
}

/// One process: reads files, and says how often the store was asked for bytes.
async fn process(place: &Place, disk: impl Into<Option<DiskConfig>>, files: &Content, uids: &[&str]) -> usize {
    let mut rig = Rig::new(place, 8);
    rig.config.disk = disk.into();
    let server = rig.serve().await;
    for uid in uids {
        let url = server.url(&format!("/files/{uid}?created_at={NOON}"));
        let answer = Client::new().get(url).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{uid}");
        assert_eq!(answer.bytes().await.expect("a body"), files[*uid], "{uid}");
    }
    server.stop().await;
    place.calls().iter().filter(|call| call.operation != Operation::List).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_s3_interface_reads_while_it_drains_is_found_after_a_restart() {
    let (place, dir) = (Place::new(), tempfile::tempdir().expect("a folder"));
    let files = many(600);
    place.put(&key(UID, 0), v3(1, &files));
    let mut rig = Rig::new(&place, 8).with_s3_face();
    rig.config.disk = Some(config(&dir));
    let server = rig.serve().await;
    place.faults.add(Rule::once(Operation::Get, Fault::Delay(Duration::from_secs(2))));
    let slow = tokio::spawn(reqwest::get(server.s3_url(&format!("/des/20250310/{UID}"))));
    until("it waits for the store", async || place.calls().iter().any(|call| call.operation == Operation::Get)).await;
    server.begin_to_stop();
    let alive = server.url("/health/live");
    until("the HTTP interface has stopped", async || reqwest::get(&alive).await.is_err()).await;
    assert!(!slow.is_finished(), "the S3 interface still answers");
    let answer = slow.await.expect("no panic").expect("an answer");
    assert_eq!(answer.bytes().await.expect("a body"), files[UID]);
    server.stop().await;
    place.calls();
    assert_eq!(process(&place, config(&dir), &files, &[UID]).await, 0, "tail and payload are on disk");
}

/// Every file of the cache with a wrong bit every 64 bytes.
fn damage(folder: &Path) -> usize {
    let mut damaged = 0;
    for entry in std::fs::read_dir(folder).expect("the cache").map(|entry| entry.expect("an entry")) {
        if entry.file_type().expect("a type").is_dir() {
            damaged += damage(&entry.path());
            continue;
        }
        let mut bytes = std::fs::read(entry.path()).expect("readable");
        for at in (0..bytes.len()).skip(60).step_by(64) {
            damaged += usize::from(bytes[at] != 0);
            bytes[at] ^= 0x10;
        }
        std::fs::write(entry.path(), bytes).expect("written");
    }
    damaged
}

/// Files of one slot, too many for the tail of their shard to hold the index.
fn large() -> Content {
    let same_slot = (0_u32..).map(|n| format!("{n:08}-{:016x}", u64::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let same_slot = same_slot.filter(|uid| slot(uid, NOON, 8) == slot("a", NOON, 8));
    same_slot.take(9_000).map(|uid| (uid, noise(20))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_index_and_payload() {
    let (place, dir) = (Place::new(), tempfile::tempdir().expect("a folder"));
    let (files, large) = (many(600), large());
    place.put(&key(UID, 0), v3(1, &files));
    place.put(&key("a", 0), v3(1, &large));
    let some: Vec<&str> = large.keys().step_by(500).map(String::as_str).collect();
    assert_eq!(process(&place, config(&dir), &files, &[UID]).await, 2, "tail and payload");
    assert_eq!(process(&place, config(&dir), &files, &[UID]).await, 0);
    assert!(process(&place, config(&dir), &large, &some).await > some.len());
    assert_eq!(process(&place, config(&dir), &large, &some).await, 0, "directory, blocks and payloads");
    assert!(process(&place, None::<DiskConfig>, &files, &[UID]).await > 0, "off");
    // Another object under the same key is another object.
    let other: Content = files.iter().map(|(uid, raw)| (uid.clone(), [&raw[..], b"!"].concat())).collect();
    place.put(&key(UID, 0), v3(2, &other));
    assert_eq!(process(&place, config(&dir), &other, &[UID]).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_of_the_cache_are_misses() {
    let (place, dir) = (Place::new(), tempfile::tempdir().expect("a folder"));
    let files = many(600);
    place.put(&key(UID, 0), v3(1, &files));
    assert_eq!(process(&place, config(&dir), &files, &[UID]).await, 2);
    assert!(damage(dir.path()) > 50);
    assert_eq!(process(&place, config(&dir), &files, &[UID]).await, 2, "read again");
    assert_eq!(process(&place, config(&dir), &files, &[UID]).await, 0, "and kept again");
    // Cut short, and gone.
    for entry in std::fs::read_dir(dir.path().join("index")).expect("files") {
        std::fs::write(entry.expect("an entry").path(), b"short").expect("written");
    }
    process(&place, config(&dir), &files, &[UID]).await;
    std::fs::remove_dir_all(dir.path().join("payloads")).expect("removed");
    process(&place, config(&dir), &files, &[UID]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_in_the_store_is_not_kept() {
    let (place, dir) = (Place::new(), tempfile::tempdir().expect("a folder"));
    let files = many(600);
    let whole = v3(1, &files);
    place.put(&key(UID, 0), &whole);
    // Damaged in place, with the same entity tag: the index is right, the payload is not.
    let path = place.folder.path().join(key(UID, 0));
    let rewrite = |bytes: &[u8]| {
        let file = std::fs::File::options().write(true).open(&path).expect("it is there");
        let modified = file.metadata().expect("metadata").modified().expect("a time");
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).expect("written");
        file.set_modified(modified).expect("set");
    };
    let mut damaged = whole.clone();
    damaged[8..400].iter_mut().for_each(|byte| *byte ^= 1);
    rewrite(&damaged);
    let mut rig = Rig::new(&place, 8);
    rig.config.disk = Some(config(&dir));
    let server = rig.serve().await;
    let url = server.url(&format!("/files/{UID}?created_at={NOON}"));
    assert_eq!(Client::new().get(&url).send().await.expect("an answer").status(), 502);
    server.stop().await;
    place.calls();
    rewrite(&whole);
    assert_eq!(process(&place, config(&dir), &files, &[UID]).await, 1, "the index was kept, the payload not");
    assert_eq!(process(&place, config(&dir), &files, &[UID]).await, 0);
}
