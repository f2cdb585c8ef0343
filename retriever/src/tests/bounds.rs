//! What is held in memory: caches are bounded by bytes, answers and batches by what they take together.

use std::time::Duration;

use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::store::call::Operation;
use futures::StreamExt;
use tokio::time::Instant;

use super::batch::{begin, ended, large_place, list, spans};
use super::support::{Content, NOON, Place, Rig, content, key, noise, options, pack, wanted};
use crate::batch::Batches;
use crate::serve::Body;

/// Reads all files twice, and says how many reads the second time cost.
async fn again(place: &Place, rig: &Rig, uids: &[String]) -> usize {
    for round in 0..2 {
        if round == 1 {
            place.calls();
        }
        for uid in uids {
            rig.get(uid).await.expect("found");
        }
    }
    place.calls().iter().filter(|call| call.operation == Operation::Get).count()
}

#[tokio::test]
async fn what_is_kept_is_bounded_by_bytes() {
    let place = Place::new();
    let (none, noise) = (options(ShardFormat::V3, CodecChoice::None), noise(4_000));
    // A shard for each of 100 slots, with some 100 KB of index each.
    let uids: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    for uid in &uids {
        let mut files: Content = (0..600).map(|n| (format!("{}-{n:05}", "x".repeat(150)), vec![b'x'])).collect();
        files.insert(uid.clone(), noise.clone());
        place.put(&key(uid, 0), pack(&none, 1, &files, None));
    }
    let with = |cache_bytes, payload_cache_bytes| {
        let mut rig = Rig::new(&place, 8);
        (rig.config.cache_bytes, rig.config.payload_cache_bytes) = (cache_bytes, payload_cache_bytes);
        rig.rebuild();
        rig
    };
    let many = 64 << 20;
    assert_eq!(again(&place, &with(many, many), &uids).await, 0, "everything is kept");
    let reads = again(&place, &with(512 << 10, many), &uids).await;
    assert!(reads > 50, "an index is read for most of them: {reads}");
    let reads = again(&place, &with(many, 100 << 10), &uids).await;
    assert!((50..=100).contains(&reads), "most of the files are read, and no index: {reads}");
}

#[tokio::test]
async fn an_answer_waits_until_there_is_memory_for_it() {
    let place = Place::new();
    let none = options(ShardFormat::V3, CodecChoice::None);
    place.put(&key("large", 0), pack(&none, 1, &content(&[("large", &noise(10 << 20)[..])]), None));
    let rig = Rig::new(&place, 8);
    let mut held = Vec::new();
    for _ in 0..3 {
        let answer = rig.answer(&wanted("large", NOON)).await.expect("found");
        let Body::Bytes(bytes) = answer.body else { panic!("it is in memory") };
        held.push(bytes);
    }
    let (fourth, mut waits) = (wanted("large", NOON), true);
    let mut fourth = Box::pin(rig.answer(&fourth));
    if let Ok(answer) = tokio::time::timeout(Duration::from_millis(500), &mut fourth).await {
        waits = answer.is_err();
    }
    assert!(waits, "three take 30 MiB of 32");
    held.pop();
    assert_eq!(fourth.await.expect("found").length, 10 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_batches_together_read_no_more_ahead_than_their_budget() {
    let (place, files) = large_place();
    let rig = Rig::new(&place, 4);
    let (batches, asked) = (Batches::new(10_000), list(files.keys()));
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(begin(&rig, &batches, &asked).await);
    }
    // Nobody takes anything. Each alone would read two windows of 8 MiB.
    let (mut bytes, mut since) = (0, Instant::now());
    while bytes == 0 || since.elapsed() < Duration::from_millis(700) {
        let (_, more) = spans(&place.calls());
        if more > 0 {
            (bytes, since) = (bytes + more, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!((16 << 20..=33 << 20).contains(&bytes), "{bytes} bytes were read for clients that take none");
    // Those that go make room for the others.
    let mut last = answers.pop().expect("six");
    drop(answers);
    last.next().await.expect("a piece").expect("good");
    drop(last);
    ended(&batches).await;
}
