//! Stores that are down, and bytes that are wrong: nothing wrong is ever served.

use std::sync::Arc;
use std::time::Duration;

use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::store::StoreErrorKind;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};

use super::support::{
    Content, NOON, Place, Rig, content, key, many, n_bits, options, pack, put_in_all_slots, v3, wanted,
};
use crate::error::Error;

#[tokio::test]
async fn no_flipped_bit_of_a_v3_shard_is_ever_served() {
    let place = Place::new();
    let mut files = many(12);
    files.remove("folder/noise.bin");
    files.insert("a".to_owned(), b"the first one".to_vec());
    flip(&place, &files, &v3(1, &files), 1).await;
    // With a dictionary, in samples.
    let files = many(600);
    flip(&place, &files, &v3(1, &files), 173).await;
}

/// Flips one bit of every `step`th byte and reads a file each time, in turn, as well as the one whose bytes were hit.
async fn flip(place: &Place, files: &Content, whole: &[u8], step: usize) {
    let uids: Vec<&String> = files.keys().collect();
    let (mut refused, mut served) = (0, 0);
    for at in (0..whole.len()).step_by(step) {
        let mut damaged = whole.to_vec();
        damaged[at] ^= 1 << (at % 8);
        // All slots of one day hold the same shard; two uids are asked for, whichever their slots are.
        for uid in [uids[at % uids.len()], uids[(at * uids.len() / whole.len()).min(uids.len() - 1)]] {
            let slot = super::support::slot(uid, NOON, 4);
            let name = format!("{}0000.des", slot.object_prefix());
            std::fs::write(place.folder.path().join(&name), &damaged).expect("written");
            match Rig::new(place, 4).get(uid).await {
                Ok(bytes) => {
                    assert_eq!(bytes, files[uid], "byte {at}");
                    served += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(matches!(error, Error::Damaged { .. }) && text.contains(&name), "byte {at}: {text}");
                    refused += 1;
                }
            }
            place.recording.take();
        }
    }
    assert!(refused > 0 && served > 0, "{refused} refused, {served} served");
}

#[tokio::test]
async fn a_shard_cut_short_is_not_served() {
    let place = Place::new();
    let whole = v3(1, &content(&[("a", b"some bytes that are there")]));
    for len in 0..whole.len() {
        place.put(&key("a", 0), &whole[..len]);
        let error = Rig::new(&place, 8).get("a").await.expect_err("cut short");
        assert_eq!(error.status(), 502, "{len}: {error}");
        place.recording.take();
    }
}

#[tokio::test]
async fn a_damaged_shard_does_not_make_the_others_of_its_slot_unreadable() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"intact")])));
    place.put(&key("a", 1), b"cut short by a crash of another tool");
    let rig = Rig::new(&place, 8);
    assert_eq!(rig.get("a").await.expect("found"), &b"intact"[..]);
    // What is in no intact shard may be in the damaged one: that is not the same as not being there.
    let other = (0..100_000).map(|n| format!("x{n}")).find(|uid| key(uid, 0) == key("a", 0)).expect("one of 256");
    assert_eq!(rig.status(&other).await, 502);
}

#[tokio::test]
async fn a_zone_that_is_down_is_503_and_comes_back() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let rig = Rig::new(&place, 8);
    for (kind, word) in [
        (StoreErrorKind::Unavailable, "does not answer"),
        (StoreErrorKind::Denied, "cannot be used"),
        (StoreErrorKind::NoSuchBucket, "cannot be used"),
    ] {
        place.faults.add(Rule::always(Fault::Before(kind)));
        let error = rig.get("a").await.expect_err("down");
        assert!(error.status() == 503 && error.to_string().contains(word), "{error}");
        place.faults.heal();
    }
    assert_eq!(rig.get("a").await.expect("failures are not kept"), &b"here"[..]);
    // Down in the middle: the index is known, the payload is not.
    place.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)));
    assert_eq!(rig.status("a").await, 503);
    place.faults.heal();
    assert_eq!(rig.status("a").await, 200);
}

#[tokio::test]
async fn a_copy_stands_in() {
    let (place, copy) = (Place::new(), Place::new());
    let shard = v3(1, &content(&[("a", b"here")]));
    place.put(&key("a", 0), &shard);
    copy.put(&key("a", 0), &shard);
    let rig = Rig::with_copies(&place, &[&copy]);
    let etag = |answer: crate::serve::Answer| answer.etag;
    let own = rig.answer(&wanted("a", NOON)).await.map(etag).expect("found");
    assert_eq!(copy.counted(), (0, 0), "copies are not asked while the zone's own store answers");
    for kind in [StoreErrorKind::Unavailable, StoreErrorKind::Denied, StoreErrorKind::NoSuchBucket] {
        place.faults.add(Rule::always(Fault::Before(kind)));
        assert_eq!(rig.get("a").await.expect("the copy has it"), &b"here"[..]);
        assert_eq!(rig.answer(&wanted("a", NOON)).await.map(etag).expect("found"), own, "the same entity tag");
        // A copy may lag behind: it cannot say that something does not exist. The own store said it less than a second
        // ago, which will do.
        rig.clock.advance(Duration::from_secs(1));
        assert_eq!(rig.status("nowhere").await, 503);
        place.faults.heal();
    }
    assert_eq!(rig.status("nowhere").await, 404);
}

#[tokio::test]
async fn a_copy_stands_in_for_damaged_bytes() {
    let (place, copy) = (Place::new(), Place::new());
    let files = content(&[("a", b"the right bytes")]);
    let none = options(ShardFormat::V3, CodecChoice::None);
    let shard = pack(&none, 1, &files, None);
    let mut damaged = shard.clone();
    damaged[9] ^= 1;
    place.put(&key("a", 0), &damaged);
    copy.put(&key("a", 0), &shard);
    assert_eq!(Rig::with_copies(&place, &[&copy]).get("a").await.expect("the copy has it"), files["a"]);
    copy.put(&key("a", 0), &damaged);
    assert_eq!(Rig::with_copies(&place, &[&copy]).status("a").await, 502);
    // A shard beside the one that answers is damaged here and intact there, where it holds a newer file.
    place.put(&key("a", 0), &shard);
    place.put(&key("a", 1), &damaged[..20]);
    copy.put(&key("a", 0), &shard);
    copy.put(&key("a", 1), v3(2, &content(&[("a", b"newer")])));
    assert_eq!(Rig::with_copies(&place, &[&copy]).get("a").await.expect("found"), &b"newer"[..]);
    // Nobody has it intact: what there is is served.
    copy.put(&key("a", 1), &damaged[..20]);
    copy.put(&key("a", 0), &damaged[..20]);
    assert_eq!(Rig::with_copies(&place, &[&copy]).get("a").await.expect("found"), files["a"]);
}

#[tokio::test]
async fn an_answer_to_another_range_is_not_believed() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    place.faults.add(Rule::once(Operation::Get, Fault::Before(StoreErrorKind::Invalid)));
    assert_eq!(Rig::new(&place, 8).status("a").await, 502);
}

#[tokio::test]
async fn only_the_zone_of_a_file_is_asked() {
    use des_shared::store::zones::{ShardRange, Zone, Zones};
    let (low, high) = (Place::new(), Place::new());
    let zone = |name: &str, start, end, place: &Place| Zone {
        name: name.to_owned(),
        range: ShardRange { start, end },
        store: place.store(),
        replicas: Vec::new(),
    };
    let zones = Zones::new(n_bits(8), vec![zone("low", 0, 127, &low), zone("high", 128, 255, &high)]);
    let rig = Rig::over(zones.expect("two zones"));
    low.put(&key("5", 0), v3(1, &content(&[("5", b"low")])));
    high.put(&key("200", 0), v3(1, &content(&[("200", b"high")])));
    high.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)));
    assert_eq!(rig.get("5").await.expect("its zone is up"), &b"low"[..]);
    let error = rig.get("200").await.expect_err("its zone is down");
    assert!(error.status() == 503 && error.to_string().contains("\"high\""), "{error}");
    high.faults.heal();
    assert_eq!(rig.get("200").await.expect("back"), &b"high"[..]);
}

#[tokio::test]
async fn a_file_too_large_for_memory_is_refused_before_it_is_read() {
    use des_shared::shard::{Codec, PayloadInfo, ShardWriter};
    let place = Place::new();
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).expect("a writer");
    let mut out = writer.header().to_vec();
    // An index that lies: a few stored bytes are said to be 65 MiB.
    let info = PayloadInfo { raw_len: 65 << 20, ..PayloadInfo::of(Codec::Zstd, 0, b"few") };
    writer.append("a", &info, None).expect("appended");
    out.extend_from_slice(b"few");
    out.extend_from_slice(&writer.finish().expect("finished"));
    place.put(&key("a", 0), out);
    let error = Arc::new(Rig::new(&place, 8)).get("a").await.expect_err("too large");
    assert!(error.status() == 500 && error.to_string().contains("des cat"), "{error}");
    assert_eq!(place.counted(), (1, 1), "the payload was not asked for");
}

#[tokio::test]
async fn all_slots_can_be_read_side_by_side() {
    // The same shard under every slot: nothing that is cached for one is used for another.
    let place = Place::new();
    for index in 0..16 {
        let files = content(&[("0", b"0"), ("1", b"1")]);
        put_in_all_slots(&place, &format!("{index:04}"), &v3(index, &files));
    }
    let rig = Rig::new(&place, 4);
    assert_eq!(rig.get("0").await.expect("found"), &b"0"[..]);
    assert_eq!(rig.get("1").await.expect("found"), &b"1"[..]);
}
