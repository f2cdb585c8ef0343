//! The functions that every file goes through: `cargo bench -p des-bench --bench hot [-- FILTER]`, about a minute in all.
//!
//! For finding out what a change does, on one machine: `-- --save-baseline before`, then `-- --baseline before`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use des_bench::made_up::{self, Uids};
use des_shared::created_at::CreatedAt;
use des_shared::manifest::{ManifestReader, SourceBase};
use des_shared::plan::{PlanConfig, plan_manifest};
use des_shared::routing::{DateRule, NBits, Slot};
use des_shared::segment::{CodecChoice, PackOptions, ShardFormat};
use des_shared::shard::{
    Codec, Decoder, Encoder, Entry, Inline, Location, PackDictionary, PayloadInfo, ShardWriter, choose_samples,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

const LINES: u64 = 20_000;

fn options(codec: CodecChoice) -> PackOptions {
    PackOptions { codec, ..PackOptions::default() }
}

fn records() -> Vec<(String, Vec<u8>)> {
    let mut rng = StdRng::seed_from_u64(5);
    (0..5_000).map(|number| (format!("{number:06}.json"), made_up::record(&mut rng))).collect()
}

fn dictionary(records: &[(String, Vec<u8>)]) -> Option<Vec<u8>> {
    let options = options(CodecChoice::Zstd);
    let choice = choose_samples(&options, records.iter().map(|(uid, bytes)| (uid, bytes.len() as u64)))?;
    let samples: Vec<&[u8]> = choice.files.iter().map(|at| &records[*at].1[..]).collect();
    choice.train(&samples, options.level)
}

fn routing(c: &mut Criterion) {
    let uids = made_up::uids(Uids::Paths, 1_000, 1);
    let time = CreatedAt::parse("2025-03-10T12:00:00+02:00").expect("a time");
    let mut group = c.benchmark_group("routing");
    group.throughput(Throughput::Elements(uids.len() as u64));
    group.bench_function("slots of 1,000 uids", |b| {
        b.iter(|| {
            for uid in &uids {
                black_box(Slot::for_new(black_box(uid), &time, NBits::default(), DateRule::Utc));
            }
        });
    });
    group.bench_function("1,000 times read", |b| {
        b.iter(|| {
            for _ in 0..1_000 {
                black_box(CreatedAt::parse(black_box("2025-03-10T12:00:00.123456+02:00")).expect("a time"));
            }
        });
    });
}

fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    for entries in [100_000, 1_000_000] {
        let uids = made_up::uids(Uids::Paths, entries, 1);
        let index = made_up::index(&uids, 1).expect("sorted uids");
        let blocks = index.blocks().expect("whole blocks");
        let mut place = 0;
        let mut next = || {
            place = (place + 618_033_989) % uids.len();
            uids[place].as_str()
        };
        group.bench_function(format!("look-up in {entries}, blocks parsed before"), |b| {
            b.iter(|| black_box(index.find_in(&blocks, next()).expect("whole blocks")));
        });
        group.bench_function(format!("look-up in {entries}, block parsed each time"), |b| {
            b.iter(|| black_box(index.find(next()).expect("whole blocks")));
        });
    }
    let uids = made_up::uids(Uids::Paths, 100_000, 1);
    group.throughput(Throughput::Elements(uids.len() as u64));
    group.bench_function("write 100000", |b| {
        b.iter(|| black_box(made_up::index_bytes(&uids, ShardFormat::V3, 1).expect("sorted uids")));
    });
}

fn encode(c: &mut Criterion) {
    let records = records();
    let bytes: usize = records.iter().map(|(_, bytes)| bytes.len()).sum();
    let trained = dictionary(&records);
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Bytes(bytes as u64));
    for (name, codec, with) in [
        ("none", CodecChoice::None, None),
        ("lz4", CodecChoice::Lz4, None),
        ("zstd", CodecChoice::Zstd, None),
        ("zstd with a dictionary", CodecChoice::Zstd, trained),
    ] {
        let prepared = with.map(|bytes| Arc::new(PackDictionary::new(bytes, 3).expect("a dictionary")));
        let mut encoder = Encoder::new(&options(codec), prepared).expect("an encoder");
        group.bench_function(name, |b| {
            b.iter(|| {
                for (uid, raw) in &records {
                    black_box(encoder.encode(uid, raw).expect("encodes"));
                }
            });
        });
    }
    group.bench_function("train a dictionary", |b| b.iter(|| black_box(dictionary(&records))));
    group.bench_function("rows of a writer", |b| {
        let info = PayloadInfo { codec: Codec::Zstd, raw_len: 900, stored_len: 300, crc32c: 7 };
        b.iter_batched(
            || ShardWriter::new(ShardFormat::V3, None, 0).expect("a writer"),
            |mut writer| {
                for (uid, _) in &records {
                    writer.append(uid, &info, None).expect("sorted uids");
                }
                writer
            },
            BatchSize::LargeInput,
        );
    });
}

fn decode(c: &mut Criterion) {
    let records = records();
    let bytes: usize = records.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(bytes as u64));
    for (name, codec) in [("none", CodecChoice::None), ("lz4", CodecChoice::Lz4), ("zstd", CodecChoice::Zstd)] {
        let mut encoder = Encoder::new(&options(codec), None).expect("an encoder");
        let stored: Vec<(Entry, Bytes)> = records
            .iter()
            .map(|(uid, raw)| {
                let encoded = encoder.encode(uid, raw).expect("encodes");
                let PayloadInfo { codec, raw_len, stored_len, crc32c } = encoded.info;
                let inline = Inline { offset: 8, stored_len, codec, raw_len, crc32c: Some(crc32c) };
                let entry = Entry { uid: uid.clone(), location: Location::Inline(inline), meta: None };
                (entry, Bytes::copy_from_slice(&encoded.bytes))
            })
            .collect();
        let mut decoder = Decoder::new().expect("a decoder");
        group.bench_function(name, |b| {
            b.iter(|| {
                for (entry, stored) in &stored {
                    black_box(decoder.decode(entry, stored.clone(), None).expect("decodes"));
                }
            });
        });
    }
}

fn planning(c: &mut Criterion) {
    let mut text = String::new();
    for number in 0..LINES {
        made_up::manifest_line(number, &mut text);
    }
    let mut group = c.benchmark_group("manifest");
    group.throughput(Throughput::Elements(LINES));
    group.bench_function("read", |b| {
        b.iter(|| {
            for item in ManifestReader::new(text.as_bytes()).expect("a manifest") {
                black_box(item.expect("a line"));
            }
        });
    });
    group.bench_function("read and plan", |b| {
        b.iter(|| {
            let manifest = ManifestReader::new(text.as_bytes()).expect("a manifest");
            let plan = plan_manifest(manifest, &SourceBase::None, PlanConfig::new()).expect("a plan");
            plan.map(|shard| shard.expect("a shard").files.len()).sum::<usize>()
        });
    });
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

fn main() {
    let mut criterion = short();
    for bench in [routing, index, encode, decode, planning] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
