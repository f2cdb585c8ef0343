//! Which file is found: dates, slots, duplicates, new shards.

use std::time::Duration;

use des_shared::segment::{CodecChoice, ShardFormat};

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
    assert!(calls.len() <= 4 && calls.iter().all(|c| c.key.contains("20250310_1F_")), "{calls:?}");
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
    assert_eq!(place.counted(), (2, 1_102), "two pages, every tail once, one payload");
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
    assert_eq!(place.counted(), (1, 0));
    place.put(&key("a", 0), v3(1, &content(&[("a", b"there now")])));
    assert_eq!(rig.get("a").await.expect("the miss led to a new listing"), &b"there now"[..]);
    place.counted();
    // The same slot, other uids: misses.
    let others: Vec<String> =
        (0..).map(|n| format!("x{n}")).filter(|uid| slot(uid, NOON, 8) == slot("a", NOON, 8)).take(50).collect();
    for uid in &others {
        assert_eq!(rig.status(uid).await, 404);
    }
    assert_eq!(place.counted().0, 0, "the slot was listed for a miss less than a second ago");
    rig.clock.advance(Duration::from_millis(1_001));
    for uid in &others {
        assert_eq!(rig.status(uid).await, 404);
    }
    assert_eq!(place.counted().0, 1, "once a second");
    // Hits do not list before the listing is too old.
    rig.clock.advance(Duration::from_millis(4_999));
    rig.get("a").await.expect("found");
    assert_eq!(place.counted(), (0, 1));
    rig.clock.advance(Duration::from_millis(2));
    rig.get("a").await.expect("found");
    assert_eq!(place.counted(), (1, 1));
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
