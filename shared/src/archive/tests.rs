use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

use super::testing::{Bench, Files, files, noise, options, pack};
use super::*;
use crate::segment::{CodecChoice, ShardFormat};
use crate::shard::{Codec, Entry, Location, ShardError, ShardWriter, TAIL_READ_BYTES, Version};
use crate::store::call::Operation;
use crate::store::faults::{Fault, FaultStore, Rule};
use crate::store::{ByteRange, ObjectStore, SharedStore, StoreErrorKind};

const KEY: &str = "20250310_1F_0000.des";

async fn read_all(shard: &RemoteShard, files: &Files) {
    assert_eq!(shard.len(), files.len() as u64);
    for (uid, raw) in files {
        let entry = shard.find(uid).await.expect("readable").unwrap_or_else(|| panic!("{uid} is there"));
        assert_eq!(shard.read(&entry).await.expect("readable"), raw, "{uid}");
    }
    for uid in ["", "a", "folder/file-", "folder/file-000001.json2", "zzz"] {
        assert_eq!(shard.find(uid).await.expect("readable"), None, "{uid}");
    }
}

#[tokio::test]
async fn every_format_and_codec_reads_back() {
    let bench = Bench::new();
    let files = files(600);
    for format in [ShardFormat::V2, ShardFormat::V3] {
        for codec in [CodecChoice::None, CodecChoice::Zstd, CodecChoice::Lz4, CodecChoice::Auto] {
            bench.put(KEY, pack(&options(format, codec), 7, &files));
            let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
            read_all(&shard, &files).await;
            let uids: Vec<String> = shard.entries().map_ok(|entry| entry.uid).try_collect().await.expect("entries");
            assert!(uids.iter().eq(files.iter().map(|(uid, _)| uid)), "{format} {codec}");
            if format == ShardFormat::V3 {
                assert_eq!(shard.sequence(), 7);
                assert_eq!(shard.dictionary().is_some(), matches!(codec, CodecChoice::Zstd | CodecChoice::Auto));
            } else {
                assert_eq!(shard.sequence(), shard.object().last_modified_ms);
            }
            bench.calls();
        }
    }
}

#[tokio::test]
async fn a_small_shard_costs_one_read_and_one_for_the_payload() {
    let bench = Bench::new();
    let files = files(300);
    bench.put(KEY, pack(&options(ShardFormat::V3, CodecChoice::Zstd), 7, &files));
    let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
    let entry = shard.find(&files[7].0).await.expect("readable").expect("there");
    assert_eq!(bench.calls().len(), 1, "the tail holds directory, dictionary and blocks");
    shard.read(&entry).await.expect("readable");
    assert_eq!(bench.calls().len(), 1);
    let empty = shard.find("folder/none.txt").await.expect("readable").expect("there");
    assert_eq!(shard.read(&empty).await.expect("readable"), Bytes::new());
    assert_eq!(bench.calls().len(), 0, "an empty payload is not asked for");
}

/// A shard whose index is too long for the tail, without compressing for long: the payloads are made up.
fn long_index(format: ShardFormat, count: u32) -> (Vec<u8>, Files) {
    let mut writer = ShardWriter::new(format, None, 5).expect("a writer");
    let mut out = writer.header().to_vec();
    let mut files = Files::new();
    for n in 0..count {
        let (uid, raw) = (format!("{n:08}-{:08x}", n.wrapping_mul(0x9E37_79B1)), n.to_le_bytes().to_vec());
        writer.append(&uid, &crate::shard::PayloadInfo::of(Codec::None, 4, &raw), None).expect("appended");
        out.extend_from_slice(&raw);
        files.push((uid, raw));
    }
    out.extend_from_slice(&writer.finish().expect("finished"));
    (out, files)
}

#[tokio::test]
async fn a_large_shard_costs_three_reads_cold_and_one_warm() {
    let bench = Bench::new();
    let (bytes, files) = long_index(ShardFormat::V3, 60_000);
    assert!(bytes.len() as u64 > 2 * TAIL_READ_BYTES);
    bench.put(KEY, bytes);
    let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
    let (uid, raw) = &files[1234];
    let Lookup::InBlock(number) = shard.look_up(uid).expect("readable") else { panic!("version 3 has blocks") };
    let block = shard.block(number).await.expect("readable");
    let entry = block.find(uid).expect("readable").expect("there");
    assert_eq!(shard.read(&entry).await.expect("readable"), raw);
    let calls = bench.calls();
    assert_eq!(calls.len(), 3, "{calls:?}");
    // Warm: the block is known.
    let entry = block.find(uid).expect("readable").expect("there");
    shard.read(&entry).await.expect("readable");
    assert_eq!(bench.calls().len(), 1);
    // All entries: neighbouring blocks come together.
    let count = shard.entries().try_fold(0, |n, _| async move { Ok(n + 1) }).await.expect("entries");
    assert_eq!(count, files.len());
    let calls = bench.calls();
    assert!(calls.len() <= 3, "{} reads for an index of less than 2 MiB", calls.len());
}

#[tokio::test]
async fn old_shards_tell_their_version_without_the_header() {
    let bench = Bench::new();
    for count in [2_000, 20_000] {
        let (v2, files) = long_index(ShardFormat::V2, count);
        // The same as version 1: no flags, no meta, another header.
        let at = v2.len() - 12 - u64::from_le_bytes(v2[v2.len() - 8..].try_into().expect("eight bytes")) as usize;
        let mut v1 = [&v2[..at], &count.to_le_bytes()].concat();
        v1[4] = 1;
        let entry_len = 2 + 17 + 1 + 33 + 4;
        for entry in v2[at + 4..v2.len() - 12].chunks_exact(entry_len) {
            v1.extend_from_slice(&[&entry[..19], &entry[20..53]].concat());
        }
        let index_len = (v1.len() - at) as u64;
        v1.extend_from_slice(&[&b"DESI"[..], &index_len.to_le_bytes()].concat());
        for (bytes, version) in [(v1, Version::V1), (v2, Version::V2)] {
            // Payloads in front, so that the header does not lie in the tail.
            let reads = if count > 2_000 { 2 } else { 1 };
            bench.put(KEY, &bytes);
            let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
            assert_eq!((shard.version(), bench.calls().len()), (version, reads));
            let entry = shard.find(&files[77].0).await.expect("readable").expect("there");
            assert_eq!(shard.read(&entry).await.expect("readable"), files[77].1);
            assert_eq!(bench.calls().len(), 1);
            shard.check_header().await.expect("the header says the same");
            // A header of the other version does not matter to readers, but verification sees it.
            let mut other = bytes.clone();
            other[4] = 3 - other[4];
            bench.put(KEY, other);
            if count > 2_000 {
                let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
                assert!(shard.check_header().await.expect_err("another").is_damage());
            }
            bench.calls();
        }
    }
}

/// Bytes that calls asked for.
fn asked_for(calls: &[RecordedCall]) -> u64 {
    calls
        .iter()
        .map(|call| match &call.range {
            Some(ByteRange::Span(span)) => span.end - span.start,
            Some(ByteRange::Suffix(n)) => *n,
            Some(ByteRange::Full) | None => 0,
        })
        .sum()
}

#[tokio::test]
async fn finding_one_of_a_hundred_thousand_files_takes_a_small_part_of_the_index() {
    let bench = Bench::new();
    let (bytes, files) = long_index(ShardFormat::V3, 100_000);
    bench.put(KEY, bytes);
    let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
    shard.find(&files[71_234].0).await.expect("readable").expect("there");
    let calls = bench.calls();
    assert!(calls.len() == 2 && asked_for(&calls) < 400_000, "{calls:?}");
}

/// Hundredths of a second that all threads of this process have computed so far.
fn computed() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, fields) = stat.rsplit_once(')').expect("the name is in brackets");
    let field = |at: usize| fields.split_whitespace().nth(at).and_then(|field| field.parse::<u64>().ok());
    field(11).expect("user time") + field(12).expect("system time")
}

/// `cargo test -p des-shared --release archive::tests::measure -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn measure_cold_look_ups() {
    const ROUNDS: usize = 1000;
    let bench = Bench::new();
    for (format, count) in [(ShardFormat::V3, 100_000), (ShardFormat::V2, 100_000), (ShardFormat::V3, 2_000)] {
        let (bytes, files) = long_index(format, count);
        bench.put(KEY, bytes);
        let (mut open, mut find) = (Vec::new(), Vec::new());
        let mut heap = 0;
        let rounds = if format == ShardFormat::V3 { ROUNDS } else { ROUNDS / 10 };
        let before = computed();
        for (uid, ..) in files.iter().take(rounds) {
            let began = std::time::Instant::now();
            let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
            let opened = std::time::Instant::now();
            shard.find(uid).await.expect("readable").expect("there");
            find.push(opened.elapsed());
            open.push(opened - began);
            heap = shard.heap_bytes();
        }
        let cpu_ms = (computed() - before) as f64 * 10.0 / rounds as f64;
        let calls = bench.calls();
        open.sort_unstable();
        find.sort_unstable();
        println!(
            "{format} with {count} files: open {:?}, find {:?} (medians), both {cpu_ms:.3} ms of CPU, {:.1} reads of {} bytes, \
             {:.1} bytes of memory a file",
            open[rounds / 2],
            find[rounds / 2],
            calls.len() as f64 / rounds as f64,
            asked_for(&calls) / rounds as u64,
            heap as f64 / f64::from(count)
        );
        assert!(format != ShardFormat::V3 || cpu_ms < 2.0, "{cpu_ms} ms of CPU");
    }
}

#[tokio::test]
async fn a_replaced_object_is_noticed() {
    let bench = Bench::new();
    let first = files(20);
    let format = options(ShardFormat::V2, CodecChoice::None);
    bench.put(KEY, pack(&format, 0, &first));
    let listed = bench.store().list("2025", None, 10).await.expect("listed").objects.remove(0);
    let shard = RemoteShard::open_listed(bench.store(), &listed).await.expect("opened");
    let entry = shard.find(&first[0].0).await.expect("readable").expect("there");
    bench.put(KEY, pack(&format, 0, &files(21)));
    let error = shard.read(&entry).await.expect_err("the bytes there are other files'");
    assert!(matches!(error, ArchiveError::Changed { .. }) && error.is_stale(), "{error}");
    let error = RemoteShard::open_listed(bench.store(), &listed).await.expect_err("not the one listed");
    assert!(error.is_stale(), "{error}");
    bench.recording.delete(KEY).await.expect("deleted");
    assert!(shard.read(&entry).await.expect_err("gone").is_stale());
}

async fn verified(bench: &Bench, depth: Depth, prefix: Option<&str>) -> (Result<Report, ArchiveError>, Vec<String>) {
    let (mut problems, mut last) = (Vec::new(), Progress::default());
    let result = verify(bench.store(), KEY, depth, prefix, &mut |event| match event {
        VerifyEvent::Problem(error) => problems.push(error.to_string()),
        VerifyEvent::Progress(progress) => {
            assert!(progress.entries >= last.entries && progress.stored_bytes >= last.stored_bytes);
            last = progress;
        }
    })
    .await;
    (result, problems)
}

#[tokio::test]
async fn whole_shards_verify() {
    let bench = Bench::new();
    let files = files(300);
    for format in [ShardFormat::V2, ShardFormat::V3] {
        bench.put(KEY, pack(&options(format, CodecChoice::Zstd), 7, &files));
        for depth in [Depth::Structure, Depth::Full] {
            let (report, problems) = verified(&bench, depth, Some("_bigFiles")).await;
            let report = report.expect("verified");
            assert_eq!((report.entries, report.problems, problems.len()), (files.len() as u64, 0, 0));
            assert_eq!(report.raw_bytes, files.iter().map(|(_, raw)| raw.len() as u64).sum::<u64>());
        }
        assert!(bench.calls().len() < 12, "payloads that lie together are read together");
    }
}

#[tokio::test]
async fn every_flipped_bit_of_a_v3_shard_is_found() {
    let bench = Bench::new();
    // Every byte of a small shard, and samples of one with a dictionary.
    flip(&bench, &pack(&options(ShardFormat::V3, CodecChoice::Zstd), 7, &files(12)), 1).await;
    flip(&bench, &pack(&options(ShardFormat::V3, CodecChoice::Zstd), 7, &files(600)), 101).await;
}

async fn flip(bench: &Bench, whole: &[u8], step: usize) {
    for at in (0..whole.len()).step_by(step) {
        let mut damaged = whole.to_vec();
        damaged[at] ^= 1 << (at % 8);
        bench.put(KEY, damaged);
        let (report, problems) = verified(bench, Depth::Full, None).await;
        match report {
            Ok(report) => {
                assert!(report.problems > 0 && !problems.is_empty(), "byte {at}");
                assert!(problems.iter().all(|p| p.contains(KEY)), "{problems:?}");
            }
            Err(error) => assert!(error.is_damage() && error.to_string().contains(KEY), "byte {at}: {error}"),
        }
    }
    for len in (0..whole.len()).step_by(7 * step).chain([whole.len() - 1]) {
        bench.put(KEY, &whole[..len]);
        let (report, _) = verified(bench, Depth::Structure, None).await;
        assert!(report.expect_err("cut short").is_damage(), "{len} bytes");
    }
}

#[tokio::test]
async fn every_problem_is_reported_not_only_the_first() {
    let bench = Bench::new();
    let files = files(300);
    let mut bytes = pack(&options(ShardFormat::V3, CodecChoice::Zstd), 7, &files);
    bench.put(KEY, bytes.clone());
    let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
    let mut hit = Vec::new();
    for uid in [&files[3].0, &files[100].0, &files[250].0] {
        let Location::Inline(place) = shard.find(uid).await.expect("readable").expect("there").location else {
            panic!("inline")
        };
        bytes[place.offset as usize] ^= 0x10;
        hit.push((uid, place.offset));
    }
    bytes[5] = 1; // the header as well
    bench.put(KEY, bytes);
    let (report, problems) = verified(&bench, Depth::Full, None).await;
    assert_eq!(report.expect("verified").problems, 4);
    assert!(problems[0].contains("header"), "{problems:?}");
    for ((uid, offset), problem) in hit.iter().zip(&problems[1..]) {
        assert!(problem.contains(uid.as_str()) && problem.contains(&format!("byte {offset}")), "{problem}");
    }
    let (report, _) = verified(&bench, Depth::Structure, None).await;
    assert_eq!(report.expect("verified").problems, 1, "payloads are not looked at");
}

#[tokio::test]
async fn a_store_that_fails_ends_a_verification() {
    let bench = Bench::new();
    bench.put(KEY, pack(&options(ShardFormat::V3, CodecChoice::None), 7, &files(300)));
    let faulty = Arc::new(FaultStore::scripted(bench.store()));
    faulty.add(Rule::once(Operation::Get, Fault::Before(StoreErrorKind::Unavailable)).after(1));
    let store: SharedStore = faulty;
    let error = verify(store, KEY, Depth::Full, None, &mut |_| {}).await.expect_err("not verified");
    assert!(matches!(error, ArchiveError::Store(e) if e.kind == StoreErrorKind::Unavailable));
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn put_big(bench: &Bench, named: &[u8], bytes: &[u8]) {
    let key = crate::layout::bigfile_key("_bigFiles", &sha256(named));
    bench.put(&key, bytes);
}

async fn read_big(store: SharedStore, named: &[u8]) -> (usize, Result<Vec<u8>, ArchiveError>) {
    let source = Source::from(store);
    let opened = open_big_file(&source, "_bigFiles", sha256(named), named.len() as u64).await;
    let mut stream = match opened {
        Ok(opened) => opened.stream,
        Err(error) => return (0, Err(error)),
    };
    let mut out = Vec::new();
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => out.extend_from_slice(&chunk),
            Err(error) => return (out.len(), Err(error)),
        }
    }
    (out.len(), Ok(out))
}

#[tokio::test]
async fn big_files_come_back_whole_or_not_at_all() {
    let bench = Bench::new();
    for len in [0, 1, 100_000, 262_144, 1_000_000] {
        let big = noise(len);
        put_big(&bench, &big, &big);
        assert_eq!(read_big(bench.store(), &big).await.1.expect("right"), big);
        if len == 0 {
            continue;
        }
        for at in [0, len / 2, len - 1] {
            let mut damaged = big.clone();
            damaged[at] ^= 1;
            put_big(&bench, &big, &damaged);
            let (given, result) = read_big(bench.store(), &big).await;
            let error = result.expect_err("the hash differs");
            assert!(given < len && error.is_damage(), "{given} of {len} were given out: {error}");
        }
        put_big(&bench, &big, &big[..len - 1]);
        assert!(read_big(bench.store(), &big).await.1.expect_err("cut short").to_string().contains("the index says"));
    }
    let error = read_big(bench.store(), b"never written").await.1.expect_err("missing");
    assert!(error.is_damage() && error.to_string().contains("missing"), "{error}");
}

#[tokio::test]
async fn a_broken_stream_is_an_error() {
    let bench = Bench::new();
    let big = noise(1_000_000);
    put_big(&bench, &big, &big);
    let faulty = Arc::new(FaultStore::scripted(bench.store()));
    faulty.add(Rule::once(Operation::GetStream, Fault::Cut(600_000)));
    let (given, result) = read_big(faulty, &big).await;
    assert!(given < 600_000 && matches!(result, Err(ArchiveError::Store(_))), "{given}");
}

#[tokio::test]
async fn verification_reads_big_files() {
    let bench = Bench::new();
    let big = noise(300_000);
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).expect("a writer");
    let mut bytes = writer.header().to_vec();
    writer.append_bigfile("movie", sha256(&big), big.len() as u64, None).expect("appended");
    bytes.extend_from_slice(&writer.finish().expect("finished"));
    bench.put(KEY, bytes);
    put_big(&bench, &big, &big);
    let (report, _) = verified(&bench, Depth::Full, Some("_bigFiles")).await;
    let report = report.expect("verified");
    assert_eq!((report.big_files, report.problems, report.raw_bytes), (1, 0, 300_000));
    let mut damaged = big.clone();
    damaged[1000] ^= 4;
    put_big(&bench, &big, &damaged);
    let (report, problems) = verified(&bench, Depth::Full, Some("_bigFiles")).await;
    assert_eq!(report.expect("verified").problems, 1);
    assert!(problems[0].contains("SHA-256"), "{problems:?}");
    let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
    let entry: Entry = shard.find("movie").await.expect("readable").expect("there");
    let error = shard.read(&entry).await.expect_err("not inline");
    assert!(matches!(error, ArchiveError::Shard { source: ShardError::Usage(_), .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_there_or_not_a_shard_is_an_error() {
    let bench = Bench::new();
    let error = RemoteShard::open(bench.store(), KEY).await.expect_err("nothing there");
    assert!(matches!(&error, ArchiveError::Store(e) if e.kind == StoreErrorKind::NotFound), "{error}");
    for bytes in [&b""[..], b"DES2", &[0; 4000]] {
        bench.put(KEY, bytes);
        assert!(RemoteShard::open(bench.store(), KEY).await.expect_err("no shard").is_damage());
    }
}

#[tokio::test]
async fn an_empty_shard_is_legal() {
    let bench = Bench::new();
    for format in [ShardFormat::V2, ShardFormat::V3] {
        bench.put(KEY, pack(&options(format, CodecChoice::Zstd), 7, &Files::new()));
        let (report, problems) = verified(&bench, Depth::Full, None).await;
        assert_eq!((report.expect("verified").entries, problems.len()), (0, 0));
        let shard = RemoteShard::open(bench.store(), KEY).await.expect("opened");
        assert!(shard.is_empty() && shard.find("a").await.expect("readable").is_none());
        assert_eq!(shard.version() == Version::V3, format == ShardFormat::V3);
    }
}
