//! Packing one segment: what goes in comes out, and equal work gives equal bytes.

use std::sync::Mutex;

use async_trait::async_trait;
use des_shared::layout;
use des_shared::segment::{CodecChoice, PackOptions, Segment, ShardFormat};
use des_shared::shard::{Location, Shard};
use des_worker::budget::Budget;
use des_worker::error::{Advice, PackError};
use des_worker::pack::{NoHooks, PackHooks, PackLimits, PartMark, Step, WhenTaken, pack_segment};

use crate::world::{PART, World, contents, expected, line, noise, options, prose};

/// Keeps every mark.
#[derive(Debug, Default)]
pub(crate) struct Marks(pub(crate) Mutex<Vec<PartMark>>);

#[async_trait]
impl PackHooks for Marks {
    fn step(&self, _: &Step) {}

    async fn part_uploaded(&self, mark: &PartMark) -> Result<bool, PackError> {
        self.0.lock().unwrap().push(mark.clone());
        Ok(true)
    }
}

/// Files of every kind: empty, tiny and similar, compressed already, large, with odd names.
pub(crate) fn mixed(world: &World, options: PackOptions) -> Segment {
    let mut files = vec![
        world.file("empty", b""),
        world.file("12345678901234567890123", b"digits"),
        world.file("päth/with ünïcode/ファイル.txt", "ça va".as_bytes()),
        world.file("picture.JPG", &noise(1, 70_000)),
        world.file("zeroes.bin", &vec![0; 300_000]),
        world.file("big/movie.mp4", &noise(2, 11 << 20)),
        world.file("big/text.log", &prose(9, 12 << 20)),
    ];
    for n in 0..200 {
        files.push(world.file(&format!("records/{n}.json"), &prose(n, 500 + n * 7)));
    }
    for n in 0..6 {
        files.push(world.file(&format!("data/{n}.bin"), &noise(100 + n, 2 << 20)));
    }
    world.segment(0, options, files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_comes_back_in_every_format_and_codec() {
    for format in [ShardFormat::V2, ShardFormat::V3] {
        for codec in [CodecChoice::Auto, CodecChoice::None, CodecChoice::Zstd, CodecChoice::Lz4] {
            let world = World::new();
            let segment = mixed(&world, options(format, codec));
            let job = world.pack_job(&segment);
            let packed = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
            assert_eq!(contents(&world, &segment).await, expected(&segment), "{format} {codec}");
            let object = packed.object.unwrap();
            let shard = world.shard_bytes(&segment).await;
            assert_eq!((object.size, object.entries), (shard.len() as u64, segment.files.len() as u64));
            assert_eq!(packed.totals.files_packed, segment.files.len() as u64);
            assert_eq!(packed.totals.source_bytes, segment.source_bytes());
            assert_eq!(packed.totals.stored_bytes, shard.len() as u64 + (23 << 20));
            assert!(packed.failed.is_empty() && !packed.adopted);
            assert_eq!(world.objects().len(), 3, "the shard and two big files, nothing else: {:?}", world.objects());
            assert!(world.calls("put_part") > 0, "large enough for parts");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_work_gives_equal_bytes_whatever_the_threads_and_parts() {
    let mut shards = Vec::new();
    let variants = [(1, 1, PART), (8, 4, 8 << 20), (3, 2, 64 << 20)];
    let world = World::new();
    let segment = mixed(&world, PackOptions::default());
    for (batches_ahead, threads, part_bytes) in variants {
        let mut job = world.pack_job(&segment);
        job.key = format!("20240301_2A_{part_bytes}.des");
        job.when_taken = WhenTaken::Refuse;
        job.limits =
            PackLimits { part_bytes, batches_ahead, parts_in_flight: threads, budget: Budget::new(1 << 20, threads) };
        pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
        shards.push(std::fs::read(world.outside().join("zone").join(&job.key)).unwrap());
    }
    assert!(shards[0] == shards[1] && shards[0] == shards[2]);
    let shard = Shard::open(shards[0].clone()).unwrap();
    assert!(shard.footer().unwrap().dict_len > 0, "two hundred similar records deserve a dictionary");
    assert_eq!(shard.footer().unwrap().sequence, segment.sequence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_cut_at_the_first_file_border_behind_their_size() {
    const HEADER: usize = 8;
    // Exactly at the border, one byte before it, one behind it.
    for (first, expected_parts) in [(PART - HEADER, 1), (PART - HEADER - 1, 0), (PART - HEADER + 1, 1)] {
        let world = World::new();
        let files = vec![world.file("a", &noise(1, first)), world.file("b", b"")];
        let segment = world.segment(0, options(ShardFormat::V3, CodecChoice::None), files);
        let marks = Marks::default();
        pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &marks).await.unwrap();
        assert_eq!(contents(&world, &segment).await, expected(&segment));
        let marks = marks.0.into_inner().unwrap();
        assert_eq!(marks.len(), expected_parts, "{first} bytes");
        assert!(marks.iter().all(|mark| mark.offset == (HEADER + first) as u64 && mark.next_file == 1));
        assert_eq!(world.calls("put"), u64::from(expected_parts == 0), "a shard below one part is one conditional PUT");
    }
}

#[tokio::test]
async fn a_bare_key_that_is_taken_is_refused_and_stays_as_it_is() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"new")]);
    let mut job = world.pack_job(&segment);
    job.key = layout::bare_shard_key(&segment.slot, 0);
    job.when_taken = WhenTaken::Refuse;
    let path = world.outside().join("zone").join(&job.key);
    std::fs::write(&path, b"old").unwrap();
    let error = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap_err();
    assert!(matches!(&error, PackError::Taken { key } if *key == job.key), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[tokio::test]
async fn version_2_keeps_the_order_of_the_plan_and_version_3_sorts() {
    for format in [ShardFormat::V2, ShardFormat::V3] {
        let world = World::new();
        let files = ["b", "a", "c"].map(|uid| world.file(uid, uid.as_bytes()));
        let segment = world.segment(0, options(format, CodecChoice::None), files.to_vec());
        pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap();
        let shard = world.shard_bytes(&segment).await;
        let data: &[u8] = if format == ShardFormat::V2 { b"bac" } else { b"abc" };
        assert_eq!(&shard[8..11], data);
    }
}

#[tokio::test]
async fn a_uid_that_stands_twice_fails_once_and_stops_nothing() {
    for format in [ShardFormat::V2, ShardFormat::V3] {
        let world = World::new();
        let first = world.file("same", b"first");
        let second = line("same", 6, &world.write("other", b"second"));
        let segment = world.segment(0, options(format, CodecChoice::Zstd), vec![first, second, world.file("z", b"z")]);
        let packed = pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap();
        assert_eq!((packed.totals.files_packed, packed.totals.files_failed), (2, 1));
        assert_eq!(packed.failed[0].file, 1);
        assert_eq!(contents(&world, &segment).await["same"], b"first");
    }
}

#[tokio::test]
async fn options_that_cannot_work_are_given_up_before_anything_is_written() {
    let world = World::new();
    let segment = world.segment(0, PackOptions { level: 99, ..PackOptions::default() }, vec![world.file("a", b"a")]);
    let error = pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap_err();
    assert_eq!(error.advice(), Advice::GiveUp, "{error}");
    assert!(world.objects().is_empty());
}

#[tokio::test]
async fn the_big_file_threshold_is_inclusive_and_equal_big_files_are_stored_once() {
    let world = World::new();
    let options = PackOptions { big_file_threshold_bytes: 1000, ..PackOptions::default() };
    let files = vec![
        world.file("at", &noise(1, 1000)),
        world.file("above", &noise(2, 1001)),
        world.file("copy", &noise(2, 1001)),
    ];
    let segment = world.segment(0, options, files);
    let packed = pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap();
    let shard = Shard::open(world.shard_bytes(&segment).await).unwrap();
    let is_big = |uid: &str| matches!(shard.find(uid).unwrap().unwrap().location, Location::BigFile { .. });
    assert_eq!(["at", "above", "copy"].map(is_big), [false, true, true]);
    assert_eq!(world.objects().iter().filter(|key| key.starts_with("_bigFiles/")).count(), 1);
    assert_eq!(packed.totals.files_packed, 3);
    assert_eq!(contents(&world, &segment).await, expected(&segment));
}
