//! What a read costs: requests to the store, counted.

use std::sync::Arc;

use des_shared::segment::ShardFormat;
use des_shared::shard::{Codec, PayloadInfo, ShardWriter, TAIL_READ_BYTES};
use des_shared::store::ByteRange;
use des_shared::store::call::Operation;
use des_shared::tombstone::TOMBSTONES_PREFIX;
use futures::future::join_all;

use super::support::{Content, NOON, Place, Rig, bytes_of, content, key, many, noise, slot, v3, wanted};
use crate::negotiate::Codings;
use crate::serve::Wanted;

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
    let suffix = calls.iter().filter(|c| matches!(c.range, Some(ByteRange::Suffix(_)))).count();
    let lists = calls.iter().filter(|c| c.operation == Operation::List).count();
    assert_eq!((lists, suffix, calls.len()), (1, 1, 103), "one listing, one tail, one block, a payload each");
}

#[tokio::test]
async fn a_hot_shard_has_its_other_blocks_read_at_once() {
    let place = Place::new();
    let all = uids(60_000);
    let prefix = slot(&all[0], NOON, 4).object_prefix();
    place.put(&format!("{prefix}0000.des"), long_index(&all));
    let rig = Rig::new(&place, 4);
    let mine = of_one_slot(&all);
    let mut blocks = Vec::new();
    // Their uids are far apart, so each lies in another block.
    for uid in mine.iter().step_by(mine.len() / 40) {
        assert_eq!(rig.get(uid).await.expect("found"), uid.as_bytes());
        let reads = place.calls().into_iter().filter_map(|call| match call.range {
            Some(ByteRange::Span(span)) if span.end - span.start != uid.len() as u64 => Some(span.end - span.start),
            _ => None,
        });
        blocks.extend(reads);
    }
    assert_eq!(blocks.len(), 8, "{blocks:?}");
    assert!(blocks[..7].iter().all(|bytes| *bytes < 20_000), "one by one: {blocks:?}");
    assert!(blocks[7] > 400_000, "all others: {blocks:?}");
}

fn with_payloads(place: &Place, bytes: u64) -> Rig {
    let mut rig = Rig::new(place, 8);
    rig.config.payload_cache_bytes = bytes;
    let metrics = crate::metrics::RetrieverMetrics::register(&des_shared::metrics::Metrics::new(), "local");
    rig.files = Arc::new(crate::files(&rig.config, &rig.deps, &metrics));
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_at_once_read_a_hot_file_once() {
    let place = Place::new();
    let files = many(600);
    place.put(&key("folder/file-00001.json", 0), v3(1, &files));
    let rig = Arc::new(with_payloads(&place, 1 << 20));
    for calls in [(1, 2), (0, 0)] {
        let requests = (0..100).map(|_| {
            let rig = rig.clone();
            tokio::spawn(async move { rig.get("folder/file-00001.json").await.expect("found") })
        });
        for bytes in join_all(requests).await {
            assert_eq!(bytes.expect("no panic"), files["folder/file-00001.json"]);
        }
        assert_eq!(place.counted(), calls, "listing, tail and payload once, then nothing");
    }
    // The stored frame is another thing than the file.
    let wanted = Wanted { accepts: Codings::read("zstd"), ..wanted("folder/file-00001.json", NOON) };
    for reads in [1, 0] {
        let answer = rig.answer(&wanted).await.expect("found");
        let stored = answer.zstd;
        let length = bytes_of(answer).await.expect("bytes").len();
        assert!(!stored || length < files["folder/file-00001.json"].len());
        assert_eq!(place.counted(), (0, if stored { reads } else { 0 }));
    }
}

#[tokio::test]
async fn one_scan_does_not_drive_out_what_is_hot() {
    let place = Place::new();
    let prefix = slot("hot", NOON, 8).object_prefix();
    let same_slot = (0..).map(|n| format!("cold-{n}")).filter(|uid| slot(uid, NOON, 8) == slot("hot", NOON, 8));
    let mut files: Content = same_slot.take(300).map(|uid| (uid, noise(4_000))).collect();
    files.insert("hot".to_owned(), noise(5_000));
    place.put(&format!("{prefix}0000.des"), v3(1, &files));
    // Room for some 25 of them.
    let rig = with_payloads(&place, 110_000);
    for _ in 0..20 {
        rig.get("hot").await.expect("found");
    }
    for uid in files.keys() {
        rig.get(uid).await.expect("found");
    }
    place.calls();
    assert_eq!(rig.get("hot").await.expect("found"), files["hot"]);
    assert_eq!(place.counted(), (0, 0), "still there after 300 others");
}

#[tokio::test]
async fn large_files_are_not_kept_and_kept_ones_take_no_share_of_the_budget() {
    let place = Place::new();
    let files = content(&[("large", &noise(300_000)), ("small", &noise(200_000))]);
    place.put(&key("large", 0), v3(1, &files));
    place.put(&key("small", 0), v3(1, &files));
    let rig = with_payloads(&place, 64 << 20);
    rig.get("large").await.expect("found");
    place.counted();
    rig.get("large").await.expect("found");
    assert_eq!(place.counted(), (0, 1), "read again");
    // More than the budget of small answers, all let go of.
    for _ in 0..100 {
        assert_eq!(rig.get("small").await.expect("found"), files["small"]);
    }
    // A replaced shard's files are other files.
    let other = content(&[("small", b"other bytes")]);
    place.put(&key("small", 0), v3(1, &other));
    rig.clock.advance(std::time::Duration::from_secs(5));
    assert_eq!(rig.get("small").await.expect("found"), other["small"]);
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
