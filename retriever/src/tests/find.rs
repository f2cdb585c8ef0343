//! Which file is found: dates, slots, duplicates, new shards.

use std::sync::Arc;
use std::time::Duration;

use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use des_shared::tombstone::{self, TOMBSTONES_PREFIX};
use futures::future::join_all;

use super::support::{
    Content, NOON, Place, Rig, content, key, many, options, pack, put_in_all_slots, slot, touch, v3, wanted,
};

#[tokio::test]
async fn every_format_and_codec_is_served() {
    let place = Place::new();
    let files = many(600);
    for format in [ShardFormat::V2, ShardFormat::V3] {
        for codec in [CodecChoice::None, CodecChoice::Zstd, CodecChoice::Lz4, CodecChoice::Auto] {
            put_in_all_slots(&place, "0000", &pack(&options(format, codec), 1, &files, None));
            let rig = Rig::new(&place, 4);
            for (uid, raw) in &files {
                assert_eq!(rig.get(uid).await.expect(uid), raw, "{format} {codec} {uid}");
            }
            assert_eq!(rig.status("folder/file-99999.json").await, 404);
            place.calls();
        }
    }
}

#[tokio::test]
async fn an_instant_is_found_however_it_is_written() {
    let place = Place::new();
    // 2025-03-11 in UTC, the tenth where it was written.
    let written = "2025-03-10T22:30:00-05:00";
    let (new, old) = (content(&[("new", b"under the UTC date")]), content(&[("old", b"under the date as written")]));
    place.put(&format!("{}0000.des", slot("new", "2025-03-11T00:00:00Z", 8).object_prefix()), v3(1, &new));
    place.put(&format!("{}0000.des", slot("old", "2025-03-10T00:00:00Z", 8).object_prefix()), v3(1, &old));
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.get_at("new", written).await.expect("found"), new["new"]);
    assert_eq!(rig.get_at("new", "2025-03-11T03:30:00Z").await.expect("found"), new["new"]);
    // An archive that was filed by the date as written is found by whoever asks as it was written.
    assert_eq!(rig.get_at("old", written).await.expect("found"), old["old"]);
    assert_eq!(rig.get_at("old", "2025-03-11T03:30:00Z").await.expect_err("no trace of it").status(), 404);
    // Both: the UTC date goes first.
    place.put(&format!("{}0000.des", slot("new", "2025-03-10T00:00:00Z", 8).object_prefix()), v3(9, &new));
    place.calls();
    assert_eq!(rig.get_at("new", written).await.expect("found"), new["new"]);
    assert!(place.calls().iter().all(|call| !call.key.starts_with("20250310")), "no need to look there");
}

#[tokio::test]
async fn a_slot_is_not_the_prefix_of_another() {
    let place = Place::new();
    // 9 bits are padded to two digits: 0x1F and 0x1F0.
    let uid_of = |index: u32| (0..).map(|n: u32| (n * 512 + index).to_string()).next().expect("numbers go on");
    let (short, long) = (uid_of(0x1F), uid_of(0x1F0));
    assert_eq!(slot(&short, NOON, 9).object_prefix(), "20250310_1F_");
    assert_eq!(slot(&long, NOON, 9).object_prefix(), "20250310_1F0_");
    let both = |text: &[u8]| content(&[(short.as_str(), text), (long.as_str(), text)]);
    place.put("20250310_1F_0000.des", v3(1, &both(b"short")));
    for number in 0..40 {
        place.put(&format!("20250310_1F0_{number:04}.des"), v3(2, &both(b"long")));
    }
    let rig = Rig::new(&place, 9);
    assert_eq!(rig.get(&short).await.expect("found"), &b"short"[..]);
    let calls = place.calls();
    let reads = |keys: &[&str]| calls.iter().filter(|c| c.range.is_some() && keys.iter().any(|k| c.key == *k)).count();
    assert_eq!((calls.len(), reads(&["20250310_1F_0000.des"])), (4, 2), "two listings, tail, payload: {calls:?}");
    assert_eq!(rig.get(&long).await.expect("found"), &b"long"[..]);
}

#[tokio::test]
async fn of_several_shards_the_highest_sequence_wins_then_the_key() {
    let place = Place::new();
    let put = |number: u32, sequence: u64, text: &str| {
        place.put(&key("a", number), v3(sequence, &content(&[("a", text.as_bytes())])));
    };
    put(7, 100, "old");
    put(3, 300, "newest");
    put(5, 200, "middle");
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.get("a").await.expect("found"), &b"newest"[..]);
    put(9, 300, "as new, later key");
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.get("a").await.expect("found"), &b"as new, later key"[..]);
    // Versions 1 and 2 have no sequence: their last change counts.
    let v2 =
        |text: &str| pack(&options(ShardFormat::V2, CodecChoice::None), 0, &content(&[("a", text.as_bytes())]), None);
    place.put(&key("a", 1), v2("copied in last"));
    touch(place.folder.path(), &key("a", 1), 400);
    assert_eq!(Rig::new(&place, 8).get("a").await.expect("found"), &b"copied in last"[..]);
    touch(place.folder.path(), &key("a", 1), 299);
    assert_eq!(Rig::new(&place, 8).get("a").await.expect("found"), &b"as new, later key"[..]);
}

#[tokio::test]
async fn more_shards_than_a_page_holds_are_all_searched() {
    let place = Place::new();
    let prefix = slot("a", NOON, 8).object_prefix();
    for number in 0..1_100 {
        let uid = format!("file-{number}");
        place.put(&format!("{prefix}{number:04}.des"), v3(1, &content(&[(uid.as_str(), b"x")])));
    }
    place.put(&format!("{prefix}1100.des"), v3(1, &content(&[("a", b"behind the first page")])));
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.get("a").await.expect("found"), &b"behind the first page"[..]);
    assert_eq!(place.counted(), (3, 1_102), "the day is too large, two pages, every tail once, one payload");
    assert_eq!(rig.get("a").await.expect("found"), &b"behind the first page"[..]);
    assert_eq!(place.counted(), (0, 1));
}

#[tokio::test]
async fn what_is_not_a_shard_is_left_alone() {
    let place = Place::new();
    let prefix = slot("a", NOON, 8).object_prefix();
    let file = content(&[("a", b"found")]);
    place.put(&format!("{prefix}0001-0123456789abcdef.des"), v3(1, &file));
    for name in ["0000.meta", "0000.des.meta", "x.des", "0002.DES", "9.tmp", "0003/part.des"] {
        place.put(&format!("{prefix}{name}"), b"no shard");
    }
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.get("a").await.expect("found"), &b"found"[..]);
    assert_eq!(rig.status("a-thing-that-is-nowhere").await, 404);
    let calls = place.calls();
    assert!(calls.iter().all(|call| call.range.is_none() || call.key.contains("0001-")), "{calls:?}");
}

#[tokio::test]
async fn a_new_shard_is_seen_at_once_and_misses_do_not_list_all_day() {
    let place = Place::new();
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.status("a").await, 404);
    assert_eq!(place.calls().len(), 1, "nothing is there that could be deleted");
    place.put(&key("a", 0), v3(1, &content(&[("a", b"there now")])));
    rig.clock.advance(Duration::from_millis(999));
    assert_eq!(rig.status("a").await, 404);
    assert_eq!(place.calls().len(), 0, "the day was listed less than a second ago");
    rig.clock.advance(Duration::from_millis(1));
    assert_eq!(rig.get("a").await.expect("the miss led to a new listing"), &b"there now"[..]);
    place.counted();
    // The same day, other uids and other slots: misses.
    let others: Vec<String> = (0..50).map(|n| format!("x{n}")).collect();
    for uid in &others {
        assert_eq!(rig.status(uid).await, 404);
    }
    assert_eq!(place.calls().len(), 0, "the day was listed for a miss less than a second ago");
    rig.clock.advance(Duration::from_secs(1));
    for uid in &others {
        assert_eq!(rig.status(uid).await, 404);
    }
    assert_eq!(place.calls().len(), 1, "once a second, and only what is there");
    // Hits do not list before the listing is too old.
    rig.clock.advance(Duration::from_millis(4_999));
    rig.get("a").await.expect("found");
    assert_eq!(place.counted(), (0, 1));
    rig.clock.advance(Duration::from_millis(2));
    rig.get("a").await.expect("found");
    assert_eq!(place.counted(), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_misses_at_once_list_once() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"there")])));
    let rig = Arc::new(Rig::new(&place, 8));
    rig.get("a").await.expect("found");
    place.calls();
    for _ in 0..3 {
        rig.clock.advance(Duration::from_secs(1));
        let misses = (0..1_000).map(|n| {
            let rig = rig.clone();
            tokio::spawn(async move { rig.status(&format!("x{n}")).await })
        });
        for status in join_all(misses).await {
            assert_eq!(status.expect("no panic"), 404);
        }
        let calls = place.calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
    }
}

#[tokio::test]
async fn a_listing_under_way_when_something_is_deleted_is_not_believed() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"there")])));
    let rig = Arc::new(Rig::new(&place, 8));
    let replica = rig.files.places.replicas(slot("a", NOON, 8).index).expect("a zone")[0].clone();
    let late = Fault::Delay(Duration::from_millis(300));
    place.faults.add(Rule::once(Operation::List, late).on_keys_with(TOMBSTONES_PREFIX));
    let reading = tokio::spawn({
        let rig = rig.clone();
        async move { rig.status("a").await }
    });
    let listings = || place.calls().iter().filter(|call| call.key.starts_with(TOMBSTONES_PREFIX)).count();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while listings() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the listing never began");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    place.put(&tombstone::key(&slot("a", NOON, 8), "a", 5), b"{}");
    rig.files.locator.cache.changed(&replica, slot("a", NOON, 8));
    assert_eq!(rig.status("a").await, 410);
    assert_eq!(listings(), 1, "the one under way may have been answered before");
    reading.await.expect("no panic");
    assert_eq!((rig.status("a").await, listings()), (410, 0));
}

#[tokio::test]
async fn a_newer_shard_takes_over_when_the_listing_is_too_old() {
    let place = Place::new();
    let rig = Rig::new(&place, 8);
    place.put(&key("a", 0), v3(1, &content(&[("a", b"first")])));
    assert_eq!(rig.get("a").await.expect("found"), &b"first"[..]);
    place.put(&key("a", 1), v3(2, &content(&[("a", b"second")])));
    rig.clock.advance(Duration::from_secs(6));
    assert_eq!(rig.get("a").await.expect("found"), &b"second"[..]);
}

#[tokio::test]
async fn a_shard_that_was_replaced_or_merged_away_is_looked_for_again() {
    let place = Place::new();
    let rig = Rig::new(&place, 8);
    let none = options(ShardFormat::V2, CodecChoice::None);
    place.put(&key("a", 0), pack(&none, 0, &content(&[("a", b"first"), ("b", b"x")]), None));
    assert_eq!(rig.get("a").await.expect("found"), &b"first"[..]);
    // Replaced in place, as the existing tool does: the old index must not be used on the new bytes.
    place.put(&key("a", 0), pack(&none, 0, &content(&[("A", b"other bytes, same place"), ("a", b"second")]), None));
    assert_eq!(rig.get("a").await.expect("found"), &b"second"[..]);
    // Merged away.
    place.put(&key("a", 1), v3(5, &content(&[("a", b"merged")])));
    place.remove(&key("a", 0));
    assert_eq!(rig.get("a").await.expect("found"), &b"merged"[..]);
    place.remove(&key("a", 1));
    assert_eq!(rig.status("a").await, 404);
}

#[tokio::test]
async fn unusual_uids_are_found() {
    let place = Place::new();
    let long = "l".repeat(65_535);
    let uids = ["日本/ä ö.txt", "a//b/", "/", "..", "../../etc/passwd", "a\0b", "²³", "١٢٣", "0007", "%2F", &long, " "];
    let files: Content = uids.iter().map(|uid| ((*uid).to_owned(), uid.as_bytes()[..1].to_vec())).collect();
    put_in_all_slots(&place, "0000", &v3(1, &files));
    let rig = Rig::new(&place, 4);
    for (uid, raw) in &files {
        assert_eq!(rig.get(uid).await.expect("found"), raw);
    }
    // Numbers are routed as numbers, but they are other uids.
    assert_eq!(rig.status("7").await, 404);
    assert!(rig.answer(&wanted("0007", NOON)).await.is_ok());
}
