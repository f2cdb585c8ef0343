//! Batches beside stores that hang, beside clients that are slow, and beside the cache of files.

use std::time::Duration;

use bytes::Bytes;
use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::store::faults::Rule;
use futures::TryStreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::batch::{Answer, begin, get, list, spans, statuses, untar};
use super::endurance::{HANGS, with_copy};
use super::support::{Content, NOON, Place, Rig, content, key, noise, options, pack, slot, v3, wanted};
use crate::batch::Batches;
use crate::negotiate::Codings;
use crate::serve::Wanted;

#[tokio::test]
async fn a_list_that_comes_too_slowly_is_told_so() {
    let place = Place::new();
    let mut rig = Rig::new(&place, 8);
    rig.config.endurance.request_deadline = Duration::from_secs(1);
    let server = rig.serve().await;
    let address = server.url("").trim_start_matches("http://").to_owned();
    let mut client = TcpStream::connect(&address).await.expect("connected");
    let request = format!("POST /files/batch HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000\r\n\r\n[");
    let began = Instant::now();
    client.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.windows(8).any(|found| found == b"too-slow") {
        let read = tokio::time::timeout(Duration::from_secs(20), client.read_buf(&mut answer)).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(read.expect("an answer").expect("readable") > 0, "{text}");
    }
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    assert!(began.elapsed() >= Duration::from_millis(500));
    server.stop().await;
}

#[tokio::test]
async fn hot_files_are_not_read_again_and_a_batch_makes_none_hot() {
    let place = Place::new();
    let text = "the same words again and again ".repeat(100);
    let files = content(&[("a", b"first"), ("b", b"second"), ("c", text.as_bytes())]);
    for uid in files.keys() {
        place.put(&key(uid, 0), v3(1, &files));
    }
    let mut rig = Rig::new(&place, 8);
    rig.config.payload_cache_bytes = 1 << 20;
    rig.rebuild();
    rig.get("a").await.expect("found");
    // Kept as it is stored.
    let stored = Wanted { accepts: Codings { zstd: true, plain: true }, ..wanted("c", NOON) };
    assert!(rig.answer(&stored).await.expect("found").zstd);
    for uids in [&["a", "b", "c"][..], &["b", "a", "a", "c"]] {
        get(&rig, &list(["b"])).await;
        place.calls();
        let (answer, report) = get(&rig, &list(uids)).await;
        assert!(statuses(&report).iter().all(|status| *status == 200));
        assert!(answer.iter().zip(uids).all(|((_, bytes), uid)| *bytes == files[*uid]), "{uids:?}");
        assert_eq!(spans(&place.calls()).0, 1, "only b is read, each time");
    }
    // Without a cache everything is read.
    let (answer, _) = get(&Rig::new(&place, 8), &list(["a", "c"])).await;
    assert!(answer.len() == 2 && spans(&place.calls()).0 == 2);
    // What changes under its name is another file.
    place.put(&key("a", 1), v3(2, &content(&[("a", b"other")])));
    rig.clock.advance(Duration::from_secs(10));
    assert_eq!(get(&rig, &list(["a"])).await.0[0].1, b"other");
}

/// Files of one slot.
fn of_one_slot() -> Content {
    (0..300).map(|n| ((n * 256 + 5).to_string(), noise(700 + n))).collect()
}

#[tokio::test]
async fn a_copy_answers_when_the_own_store_hangs() {
    let files = of_one_slot();
    for cold in [true, false] {
        let (own, copy, rig) = with_copy(Duration::from_millis(200));
        for place in [&own, &copy] {
            place.put(&key("5", 0), v3(1, &files));
        }
        if !cold {
            get(&rig, &list(files.keys())).await;
        }
        own.faults.add(Rule::always(HANGS));
        copy.calls();
        let began = Instant::now();
        let (answer, report) = get(&rig, &list(files.keys())).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(statuses(&report), [200; 300], "cold: {cold}");
        assert!(answer.iter().all(|(uid, bytes)| *bytes == files[uid]));
        assert!(spans(&copy.calls()).0 <= 2, "they are read together there too");
    }
}

async fn with(rig: &Rig, batches: &Batches, list: &str) -> Answer {
    let pieces: Vec<Bytes> = begin(rig, batches, list).await.try_collect().await.expect("to its end");
    untar(&pieces.concat())
}

#[tokio::test]
async fn a_zone_that_hangs_costs_its_files_and_its_time_once() {
    let (hangs, well) = (Place::new(), Place::new());
    let files: Content = (0..3_000).map(|n| (n.to_string(), noise(100))).collect();
    let none = options(ShardFormat::V3, CodecChoice::None);
    for index in 0..16 {
        let place = if index < 8 { &hangs } else { &well };
        let own = files.iter().filter(|(uid, _)| slot(uid, NOON, 4).index == index);
        let own: Content = own.map(|(uid, raw)| (uid.clone(), raw.clone())).collect();
        place.put(&format!("20250310_{index:X}_0000.des"), pack(&none, 1, &own, None));
    }
    for cold in [true, false] {
        let mut rig = Rig::two_zones([&hangs, &well], 8);
        // Time alone bounds it here: no breaker opens.
        rig.config.endurance.failover_after = Duration::from_millis(25);
        rig.config.endurance.guard.slow = Duration::from_hours(1);
        rig.rebuild();
        let batches = Batches::new(10_000).within(Duration::from_secs(2));
        let asked = list(files.keys());
        if !cold {
            with(&rig, &batches, &asked).await;
        }
        hangs.faults.add(Rule::always(HANGS));
        let began = Instant::now();
        let (answer, report) = with(&rig, &batches, &asked).await;
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(9), "cold: {cold}: {took:?}");
        for line in &report {
            let uid = line["uid"].as_str().expect("text");
            let expected = if slot(uid, NOON, 4).index < 8 { 503 } else { 200 };
            assert_eq!(line["status"], expected, "{line}");
            assert!(expected == 200 || line["problem"]["type"] == "/problems/deadline-passed", "{line}");
        }
        assert!(answer.iter().all(|(uid, bytes)| *bytes == files[uid]));
        hangs.faults.heal();
    }
}
