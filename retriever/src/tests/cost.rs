//! What a read costs: requests to the store, counted.

use std::sync::Arc;

use des_shared::segment::ShardFormat;
use des_shared::shard::{Codec, PayloadInfo, ShardWriter, TAIL_READ_BYTES};
use des_shared::store::call::Operation;
use des_shared::tombstone::TOMBSTONES_PREFIX;
use futures::future::join_all;

use super::support::{NOON, Place, Rig, content, key, many, slot, v3};

/// A shard whose index is too long for the tail.
fn long_index(uids: &[String]) -> Vec<u8> {
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 5).expect("a writer");
    let mut out = writer.header().to_vec();
    for uid in uids {
        let raw = uid.as_bytes();
        writer.append(uid, &PayloadInfo::of(Codec::None, raw.len() as u64, raw), None).expect("appended");
        out.extend_from_slice(raw);
    }
    out.extend_from_slice(&writer.finish().expect("finished"));
    assert!(out.len() as u64 > 4 * TAIL_READ_BYTES);
    out
}

fn uids(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("{n:08}-{:08x}", n.wrapping_mul(0x9E37_79B1))).collect()
}

/// Uids of one slot, so that one shard can hold all of them.
fn of_one_slot(all: &[String]) -> Vec<&String> {
    all.iter().filter(|uid| slot(uid, NOON, 4) == slot(&all[0], NOON, 4)).collect()
}

#[tokio::test]
async fn a_large_shard_costs_three_reads_cold_and_one_warm() {
    let place = Place::new();
    let all = uids(60_000);
    let prefix = slot(&all[0], NOON, 4).object_prefix();
    place.put(&format!("{prefix}0000.des"), long_index(&all));
    let rig = Rig::new(&place, 4);
    let mine = of_one_slot(&all);
    assert_eq!(rig.get(mine[7]).await.expect("found"), mine[7].as_bytes());
    assert_eq!(place.counted(), (1, 3), "one listing; tail, block, payload");
    assert_eq!(rig.get(mine[7]).await.expect("found"), mine[7].as_bytes());
    assert_eq!(place.counted(), (0, 1), "the payload alone");
    assert_eq!(rig.get(mine[3_000]).await.expect("found"), mine[3_000].as_bytes());
    assert_eq!(place.counted(), (0, 2), "another block and the payload");
}

#[tokio::test]
async fn a_small_shard_costs_two_reads_cold_and_one_warm() {
    let place = Place::new();
    place.put(&key("folder/file-00001.json", 0), v3(1, &many(600)));
    let rig = Rig::new(&place, 8);
    rig.get("folder/file-00001.json").await.expect("found");
    assert_eq!(place.counted(), (1, 2));
    rig.get("folder/file-00001.json").await.expect("found");
    assert_eq!(place.counted(), (0, 1));
}

#[tokio::test]
async fn empty_files_ask_for_nothing() {
    let place = Place::new();
    place.put(&key("empty", 0), v3(1, &content(&[("empty", b""), ("other", b"somebody else's bytes")])));
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.get("empty").await.expect("found").len(), 0);
    assert_eq!(place.counted(), (1, 1), "listing and tail");
    assert_eq!(rig.get("empty").await.expect("found").len(), 0);
    assert_eq!(place.counted(), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_at_once_open_a_cold_shard_once() {
    let place = Place::new();
    let all = uids(60_000);
    let prefix = slot(&all[0], NOON, 4).object_prefix();
    place.put(&format!("{prefix}0000.des"), long_index(&all));
    let rig = Arc::new(Rig::new(&place, 4));
    let uid = all[0].clone();
    let requests = (0..100).map(|_| {
        let (rig, uid) = (rig.clone(), uid.clone());
        tokio::spawn(async move { rig.get(&uid).await.expect("found") })
    });
    for bytes in join_all(requests).await {
        assert_eq!(bytes.expect("no panic"), uid.as_bytes());
    }
    let mut calls = place.calls();
    calls.retain(|call| !call.key.starts_with(TOMBSTONES_PREFIX));
    let suffix = calls.iter().filter(|c| matches!(c.range, Some(des_shared::store::ByteRange::Suffix(_)))).count();
    let lists = calls.iter().filter(|c| c.operation == Operation::List).count();
    assert_eq!((lists, suffix, calls.len()), (1, 1, 103), "one listing, one tail, one block, a payload each");
}

#[tokio::test]
async fn a_cache_without_room_still_answers() {
    let place = Place::new();
    place.put(&key("folder/file-00001.json", 0), v3(1, &many(600)));
    let mut rig = Rig::new(&place, 8);
    rig.config.cache_bytes = 0;
    let metrics = crate::metrics::RetrieverMetrics::register(&des_shared::metrics::Metrics::new(), "local");
    rig.files = Arc::new(crate::files(&rig.config, &rig.deps, &metrics));
    for _ in 0..3 {
        rig.get("folder/file-00001.json").await.expect("found");
    }
}
