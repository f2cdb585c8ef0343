//! A key that is taken: what stands there counts, and a file that it lacks is said to be missing.

use des_shared::layout;
use des_shared::receipt::FailureReason as Reason;
use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::store::{ObjectStore, WriteOptions};
use des_worker::error::Advice;
use des_worker::pack::{NoHooks, pack_segment};

use crate::world::{World, line, noise, options};

#[tokio::test]
async fn the_same_work_again_writes_nothing_and_says_the_same() {
    for format in [ShardFormat::V2, ShardFormat::V3] {
        let world = World::new();
        let mut files: Vec<_> =
            (0..1500).map(|n| world.file(&format!("n{n}"), format!("file {n}").as_bytes())).collect();
        files.push(world.file("big", &noise(1, 11 << 20)));
        files.push(line("gone", 4, &world.src().join("gone")));
        let segment = world.segment(0, options(format, CodecChoice::Zstd), files);
        let job = world.pack_job(&segment);
        let first = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
        let (objects, puts) = (world.objects(), world.calls("put"));
        let again = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
        assert_eq!(again.totals, first.totals);
        assert_eq!((again.object, again.failed), (first.object, first.failed));
        assert!(again.adopted && !first.adopted);
        assert_eq!((world.objects(), world.calls("put")), (objects, puts));
    }
}

#[tokio::test]
async fn a_file_that_failed_for_the_first_is_never_silently_lost() {
    for format in [ShardFormat::V2, ShardFormat::V3] {
        let world = World::new();
        let late = line("late", 4, &world.src().join("late"));
        let never = line("never", 4, &world.src().join("never"));
        let files = vec![world.file("a", b"aaaa"), late, never, world.file("leaves", b"bbbb")];
        let segment = world.segment(0, options(format, CodecChoice::None), files);
        let job = world.pack_job(&segment);
        let first = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
        assert_eq!((first.totals.files_packed, first.totals.files_failed), (2, 2));
        // Now one of the failed files is there, and one of the packed ones is not.
        world.write("late", b"late");
        std::fs::remove_file(world.src().join("leaves")).unwrap();
        let second = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
        assert_eq!((second.totals.files_packed, second.totals.files_failed), (2, 2));
        let reasons: Vec<_> = second.failed.iter().map(|f| (f.file, f.reason)).collect();
        assert_eq!(reasons, [(1, Reason::NotInPublishedShard), (2, Reason::Missing)]);
    }
}

#[tokio::test]
async fn an_entry_of_another_size_does_not_count() {
    let world = World::new();
    let segment = world.segment(0, options(ShardFormat::V3, CodecChoice::None), vec![world.file("a", b"aaaa")]);
    let mut other = segment.clone();
    other.files = vec![world.file("a", b"longer")].into();
    // Under the first one's key, as a store without conditional writes might leave it.
    let mut job = world.pack_job(&other);
    job.key = layout::shard_key(&segment);
    pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
    world.write("a", b"aaaa");
    let packed = pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap();
    assert_eq!((packed.totals.files_packed, packed.failed[0].reason), (0, Reason::NotInPublishedShard));
}

#[tokio::test]
async fn what_is_no_shard_of_ours_is_left_alone_and_given_up() {
    let world = World::new();
    let segment = world.segment(0, options(ShardFormat::V3, CodecChoice::None), vec![world.file("a", b"aaaa")]);
    let key = layout::shard_key(&segment);
    for junk in [&b"not a shard"[..], b"", &noise(5, 300_000)] {
        world.zone.put(&key, junk.to_vec().into(), &WriteOptions::overwrite()).await.unwrap();
        let error = pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap_err();
        assert_eq!(error.advice(), Advice::GiveUp, "{error}");
        assert!(error.to_string().contains(&key), "{error}");
        assert_eq!(world.shard_bytes(&segment).await, junk);
    }
}
