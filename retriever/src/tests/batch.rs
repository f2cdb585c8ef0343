//! Batches: what they cost, what they say of files that cannot be had, what they hold in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use des_shared::archive::RecordedCall;
use des_shared::clock::Clock;
use des_shared::created_at::CreatedAt;
use des_shared::metrics::Metrics;
use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use des_shared::store::{ByteRange, StoreErrorKind};
use des_shared::tombstone::Reasons;
use futures::{Stream, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::support::{Content, NOON, Place, Rig, content, key, noise, options, pack, put_in_all_slots, v3};
use crate::batch::{Batch, Batches, Broken, Form, read_list};
use crate::delete::Deletion;
use crate::metrics::RetrieverMetrics;

/// A list for these uids, all of noon.
pub(super) fn list(uids: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let all: Vec<Value> = uids.into_iter().map(|uid| json!({"uid": uid.as_ref(), "created_at": NOON})).collect();
    Value::from(all).to_string()
}

pub(super) async fn begin(
    rig: &Rig,
    batches: &Batches,
    list: &str,
) -> impl Stream<Item = Result<Bytes, Broken>> + Send + Unpin + use<> {
    let asked = read_list(list.as_bytes(), 100_000).expect("a list");
    let metrics = RetrieverMetrics::register(&Metrics::new(), "local");
    let boundary = batches.boundary();
    let batch = Batch { files: rig.files.clone(), metrics, asked, form: Form::Tar, boundary };
    let turn = batches.turn().await.expect("a free turn");
    Box::pin(batches.start(batch, turn))
}

/// The files of a tar answer in their order, and the lines of its report.
pub(super) type Answer = (Vec<(String, Vec<u8>)>, Vec<Value>);

pub(super) async fn get(rig: &Rig, list: &str) -> Answer {
    let pieces: Vec<Bytes> = begin(rig, &Batches::new(100_000), list).await.try_collect().await.expect("to its end");
    untar(&pieces.concat())
}

pub(super) fn untar(bytes: &[u8]) -> Answer {
    let mut archive = tar::Archive::new(bytes);
    let mut files = Vec::new();
    for entry in archive.entries().expect("a tar file") {
        let mut entry = entry.expect("an entry");
        let name = String::from_utf8(entry.path_bytes().into_owned()).expect("UTF-8");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).expect("its bytes");
        files.push((name, bytes));
    }
    let (name, report) = files.pop().expect("the report");
    assert_eq!(name, "_des/report.ndjson");
    (files, lines(&report))
}

pub(super) fn lines(report: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(report).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

pub(super) fn statuses(report: &[Value]) -> Vec<u64> {
    report.iter().map(|line| line["status"].as_u64().expect("a number")).collect()
}

/// How many requests for payloads there were, and for how many bytes.
pub(super) fn spans(calls: &[RecordedCall]) -> (usize, u64) {
    let spans = calls.iter().filter_map(|call| match &call.range {
        Some(ByteRange::Span(span)) if call.operation == Operation::Get => Some(span.end - span.start),
        _ => None,
    });
    spans.fold((0, 0), |(count, bytes), own| (count + 1, bytes + own))
}

/// `0..count` as uids, which goes round the 16 slots of four bits; 1 to 4 KiB each, which do not compress.
fn numbered(count: usize) -> Content {
    let noise = noise(8_000);
    (0..count).map(|n| (n.to_string(), noise[n % 3_000..n % 3_000 + 1_024 + n * 37 % 3_072].to_vec())).collect()
}

/// Those files in 16 shards, one for each slot.
fn put_numbered(place: &Place, files: &Content) {
    let mut shards: BTreeMap<String, Content> = BTreeMap::new();
    for (uid, raw) in files {
        let slot = super::support::slot(uid, NOON, 4);
        shards.entry(format!("{}0000.des", slot.object_prefix())).or_default().insert(uid.clone(), raw.clone());
    }
    assert_eq!(shards.len(), 16);
    let none = options(ShardFormat::V3, CodecChoice::None);
    for (key, files) in shards {
        place.put(&key, pack(&none, 1, &files, None));
    }
}

/// `count` of the files, in an order that has nothing to do with that of the shards.
fn sample(files: &Content, count: usize) -> Vec<String> {
    let uids: Vec<&String> = files.keys().collect();
    (0..count).map(|n| uids[n * 7_919 % uids.len()].clone()).collect()
}

#[tokio::test]
async fn a_thousand_files_of_sixteen_shards_cost_few_reads() {
    let place = Place::new();
    let files = numbered(1_250);
    put_numbered(&place, &files);
    let rig = Rig::new(&place, 4);
    let uids = sample(&files, 1_000);
    let wanted: u64 = uids.iter().map(|uid| files[uid].len() as u64).sum();
    for round in ["cold", "warm"] {
        place.calls();
        let (answer, report) = get(&rig, &list(&uids)).await;
        assert_eq!(answer.len(), 1_000);
        for ((name, bytes), uid) in answer.iter().zip(&uids) {
            assert!(name == uid && *bytes == files[uid], "in the order asked for: {name}");
        }
        assert!(report.iter().enumerate().all(|(n, line)| line["index"] == n && line["status"] == 200));
        let calls = place.calls();
        let lists = calls.iter().filter(|call| call.operation == Operation::List).count();
        let (reads, bytes) = spans(&calls);
        println!(
            "{round}: {reads} payload reads of {bytes} bytes for {wanted}, {} reads, {lists} lists",
            calls.len() - lists
        );
        assert!(reads <= 32 && calls.len() - lists <= 50, "{round}: {reads} payload reads, {} calls", calls.len());
        assert!(bytes * 10 <= wanted * 13, "{bytes} for {wanted}");
    }
}

#[tokio::test]
async fn a_sparse_sample_never_reads_much_for_nothing() {
    let place = Place::new();
    let files = numbered(16 * 2_000);
    put_numbered(&place, &files);
    let rig = Rig::new(&place, 4);
    let uids = sample(&files, 1_000);
    let wanted: u64 = uids.iter().map(|uid| files[uid].len() as u64).sum();
    get(&rig, &list(&uids)).await;
    place.calls();
    let (answer, _) = get(&rig, &list(&uids)).await;
    assert!(answer.iter().zip(&uids).all(|((_, bytes), uid)| *bytes == files[uid]));
    let (reads, bytes) = spans(&place.calls());
    println!("sparse: {reads} payload reads of {bytes} bytes for {wanted}");
    assert!(bytes * 10 <= wanted * 13 && reads < 1_000, "{reads} reads, {bytes} bytes for {wanted}");
}

#[tokio::test]
async fn what_cannot_be_had_is_reported_and_the_rest_comes() {
    let place = Place::new();
    let files = content(&[("a", b"first"), ("b", b"second"), ("c", b"third"), ("empty", b"")]);
    let none = options(ShardFormat::V3, CodecChoice::None);
    put_in_all_slots(&place, "0000", &pack(&none, 1, &files, None));
    let rig = Rig::new(&place, 4);
    let why = Reasons { deleted_by: "ann".to_owned(), reason: "asked to".to_owned(), ticket_id: None, key_name: None };
    let deletion = Deletion { uid: "b".to_owned(), created_at: CreatedAt::parse(NOON).expect("a moment"), why };
    rig.files.delete(&deletion, rig.clock.now_ms()).await.expect("deleted");
    let (answer, report) = get(&rig, &list(["a", "b", "nowhere", "empty", "c", "a"])).await;
    let expected: [(&str, &[u8]); 4] = [("a", b"first"), ("empty", b""), ("c", b"third"), ("_des/again/5/a", b"first")];
    assert_eq!(answer, expected.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
    assert_eq!(statuses(&report), [200, 410, 404, 200, 200, 200]);
    assert_eq!((report[5]["name"].as_str(), report[5]["uid"].as_str()), (Some("_des/again/5/a"), Some("a")));
    assert_eq!((&report[1]["problem"]["type"], &report[1]["name"]), (&json!("/problems/file-deleted"), &Value::Null));
    assert_eq!((&report[0]["size_bytes"], &report[0]["created_at"]), (&json!(5), &json!(NOON)));
    let (answer, report) = get(&rig, "[]").await;
    assert!(answer.is_empty() && report.is_empty());
}

#[tokio::test]
async fn damage_hits_only_its_own_file_and_a_copy_mends_it() {
    let (place, copy) = (Place::new(), Place::new());
    let files: Content = (0..8).map(|n| (format!("{}", n * 256 + 5), noise(500 + n))).collect();
    let none = options(ShardFormat::V3, CodecChoice::None);
    let shard = pack(&none, 1, &files, None);
    let mut damaged = shard.clone();
    damaged[8 + 600] ^= 1;
    place.put(&key("5", 0), &damaged);
    copy.put(&key("5", 0), &shard);
    let uids: Vec<&String> = files.keys().collect();
    let (answer, report) = get(&Rig::new(&place, 8), &list(&uids)).await;
    assert_eq!(answer.len(), 7);
    assert!(answer.iter().all(|(uid, bytes)| *bytes == files[uid]));
    let wrong: Vec<&Value> = report.iter().filter(|line| line["status"] != 200).collect();
    assert!(wrong.len() == 1 && wrong[0]["status"] == 502, "{wrong:?}");
    assert_eq!(wrong[0]["uid"], *uids[1], "the second of the shard");
    let (answer, report) = get(&Rig::with_copies(&place, &[&copy]), &list(&uids)).await;
    assert!(answer.len() == 8 && answer.iter().all(|(uid, bytes)| *bytes == files[uid]));
    assert_eq!(statuses(&report), [200; 8]);
}

#[tokio::test]
async fn a_zone_that_is_down_costs_its_files_and_a_copy_stands_in_at_the_same_price() {
    let (place, copy) = (Place::new(), Place::new());
    let files: Content = (0..300).map(|n| ((n * 256 + 5).to_string(), noise(700 + n))).collect();
    let shard = v3(1, &files);
    place.put(&key("5", 0), &shard);
    copy.put(&key("5", 0), &shard);
    let asked = list(files.keys());
    let down = || Rule::always(Fault::Before(StoreErrorKind::Unavailable));
    let alone = Rig::new(&place, 8);
    place.faults.add(down());
    let (answer, report) = get(&alone, &asked).await;
    assert!(answer.is_empty() && statuses(&report) == [503; 300]);
    assert_eq!(report[0]["problem"]["type"], "/problems/zone-unavailable");
    place.faults.heal();
    get(&alone, &asked).await;
    // The index is known, the payloads are not.
    place.faults.add(down());
    let (answer, report) = get(&alone, &asked).await;
    assert!(answer.is_empty() && statuses(&report) == [503; 300]);
    let rig = Rig::with_copies(&place, &[&copy]);
    for round in ["down from the start", "index known"] {
        copy.calls();
        let (answer, report) = get(&rig, &asked).await;
        assert!(statuses(&report) == [200; 300], "{round}");
        assert!(answer.iter().all(|(uid, bytes)| *bytes == files[uid]));
        let (reads, _) = spans(&copy.calls());
        assert!(reads <= 2, "{round}: {reads} reads of the copy");
        place.faults.heal();
        get(&rig, &asked).await;
        place.faults.add(down());
    }
}

#[tokio::test]
async fn a_shard_that_was_replaced_is_found_again() {
    let place = Place::new();
    let files = content(&[("a", b"first"), ("5", b"x")]);
    place.put(&key("a", 0), v3(1, &files));
    let rig = Rig::new(&place, 8);
    get(&rig, &list(["a"])).await;
    place.remove(&key("a", 0));
    place.put(&key("a", 1), v3(2, &content(&[("a", b"second")])));
    let (answer, _) = get(&rig, &list(["a"])).await;
    assert_eq!(answer, [("a".to_owned(), b"second".to_vec())]);
}

#[tokio::test]
async fn old_shards_and_both_dates_are_searched() {
    let place = Place::new();
    for (n, format) in [ShardFormat::V2, ShardFormat::V3].into_iter().enumerate() {
        let uid = format!("old-{n}");
        let codec = if n == 0 { CodecChoice::Lz4 } else { CodecChoice::Zstd };
        let files = content(&[(&uid, b"the same, the same, the same, the same, the same, the same")]);
        // Filed under the date as written, which is the day after the UTC date.
        let slot = super::support::slot(&uid, "2025-03-11T00:00:00Z", 8);
        place.put(&format!("{}0000.des", slot.object_prefix()), pack(&options(format, codec), 1, &files, None));
    }
    let at = "2025-03-11T01:00:00+05:00";
    let asked = json!([{"uid": "old-0", "created_at": at}, {"uid": "old-1", "created_at": at}]).to_string();
    let (answer, report) = get(&Rig::new(&place, 8), &asked).await;
    assert_eq!(statuses(&report), [200, 200]);
    assert!(answer.iter().all(|(_, bytes)| bytes.starts_with(b"the same")));
}

/// A place with 4,000 files of 16 KiB: eight windows.
pub(super) fn large_place() -> (Place, Content) {
    let place = Place::new();
    let noise = noise(20_000);
    let files: Content =
        (0..4_000).map(|n| ((n * 16).to_string(), noise[n % 3_000..n % 3_000 + 16_384].to_vec())).collect();
    let none = options(ShardFormat::V3, CodecChoice::None);
    let name = format!("{}0000.des", super::support::slot("0", NOON, 4).object_prefix());
    place.put(&name, pack(&none, 1, &files, None));
    (place, files)
}

/// Waits until every batch has ended.
pub(super) async fn ended(batches: &Batches) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while batches.running() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "a batch goes on without its client");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_that_nobody_takes() {
    let (place, files) = large_place();
    let rig = Rig::new(&place, 4);
    let whole: u64 = files.values().map(|raw| raw.len() as u64).sum();
    let asked = list(files.keys());
    // A client that goes away.
    let batches = Batches::new(10_000);
    let mut answer = begin(&rig, &batches, &asked).await;
    answer.next().await.expect("a piece").expect("good");
    assert_eq!(batches.running(), 1);
    drop(answer);
    ended(&batches).await;
    let (_, bytes) = spans(&place.calls());
    assert!(bytes < whole / 2, "{bytes} of {whole} bytes were read for one piece");
    // A client that takes nothing more is let go, and does not think that it has everything.
    let batches = Batches::new(10_000).with_stall(Duration::from_millis(300));
    let mut answer = begin(&rig, &batches, &asked).await;
    answer.next().await.expect("a piece").expect("good");
    ended(&batches).await;
    let (_, bytes) = spans(&place.calls());
    assert!(bytes < whole / 2, "{bytes} of {whole} bytes were read for one piece");
    let rest: Vec<Result<Bytes, Broken>> = answer.collect().await;
    let (last, good) = rest.split_last().expect("an end");
    assert!(matches!(last, Err(Broken::Stalled(_))) && good.len() < 16, "{} pieces, then {last:?}", good.len());
    // A client that takes its time gets everything.
    let batches = Arc::new(Batches::new(10_000));
    let mut answer = begin(&rig, &batches, &asked).await;
    let mut all = Vec::new();
    while let Some(piece) = answer.next().await {
        all.extend_from_slice(&piece.expect("good"));
        tokio::task::yield_now().await;
    }
    let (answer, report) = untar(&all);
    assert!(answer.len() == 4_000 && report.len() == 4_000);
    assert!(answer.iter().all(|(uid, bytes)| *bytes == files[uid]));
}
