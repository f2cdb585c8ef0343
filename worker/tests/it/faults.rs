//! Stores that fail: what is tried again, what begins again, and what is left behind.

use std::sync::Arc;

use des_shared::clock::Dice;
use des_shared::retry::RetryPolicy;
use des_shared::segment::{CodecChoice, PackOptions, Segment, ShardFormat};
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use des_shared::store::retrying::RetryingStore;
use des_shared::store::{ObjectStore, SharedStore, StoreErrorKind};
use des_worker::error::{Advice, PackError};
use des_worker::pack::{NoHooks, PackJob, PartMark, pack_segment};

use crate::pack::Marks;
use crate::world::{World, contents, expected, noise, options};

/// Which segment, and the operation that fails.
type Case = (fn(&World) -> Segment, Operation);

/// Small enough for one PUT.
fn small(world: &World) -> Segment {
    world.segment(0, PackOptions::default(), vec![world.file("a", b"a"), world.file("b", b"b")])
}

/// Three parts.
fn large(world: &World) -> Segment {
    let files = (0..6).map(|n| world.file(&format!("f{n}"), &noise(n, 2 << 20))).collect();
    world.segment(0, options(ShardFormat::V3, CodecChoice::None), files)
}

/// A big file of two parts.
fn big(world: &World) -> Segment {
    world.segment(0, PackOptions::default(), vec![world.file("big", &noise(1, 11 << 20))])
}

async fn open_uploads(world: &World) -> usize {
    world.zone.heal();
    world.zone.list_uploads("", 1000).await.unwrap().len()
}

#[tokio::test]
async fn a_full_disk_or_wrong_credentials_fail_the_task_for_now_and_name_the_store() {
    use Operation::{CompleteUpload, CreateUpload, Head, Put, PutPart};
    for kind in [StoreErrorKind::Full, StoreErrorKind::Denied, StoreErrorKind::NoSuchBucket] {
        let cases: [Case; 8] = [
            (small, Put),
            (small, Head),
            (large, CreateUpload),
            (large, PutPart),
            (large, CompleteUpload),
            (big, CreateUpload),
            (big, PutPart),
            (big, CompleteUpload),
        ];
        for (segment, operation) in cases {
            let world = World::new();
            let segment = segment(&world);
            world.zone.add(Rule::once(operation, Fault::Before(kind)).times(u64::MAX));
            let job = world.pack_job(&segment);
            let error = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap_err();
            assert_eq!(error.advice(), Advice::TryLater, "{operation:?}: {error}");
            assert!(error.to_string().contains("shard store") && error.to_string().contains("file://"), "{error}");
            assert_eq!(open_uploads(&world).await, 0, "{operation:?}");
            // Once somebody has acted, the same task succeeds.
            pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
            assert_eq!(contents(&world, &segment).await, expected(&segment));
        }
    }
}

/// Packs until the store fails, behind the first part: its mark, and the upload is there.
async fn interrupted(world: &World, job: &PackJob) -> Vec<PartMark> {
    world.zone.add(Rule::once(Operation::PutPart, Fault::Before(StoreErrorKind::Unavailable)).after(1));
    let marks = Marks::default();
    let error = pack_segment(job, Vec::new(), world.sources(), &marks).await.unwrap_err();
    assert_eq!(error.advice(), Advice::TryLater);
    assert_eq!(open_uploads(world).await, 1);
    let marks = marks.0.into_inner().unwrap();
    assert_eq!(marks.len(), 1);
    marks
}

#[tokio::test]
async fn an_upload_with_a_kept_mark_survives_a_failure_and_one_without_does_not() {
    let world = World::new();
    let segment = large(&world);
    let job = world.pack_job(&segment);
    let marks = interrupted(&world, &job).await;
    pack_segment(&job, marks, world.sources(), &NoHooks).await.unwrap();
    assert_eq!(contents(&world, &segment).await, expected(&segment));
    assert_eq!(world.calls("create_upload"), 1);
}

#[tokio::test]
async fn an_upload_that_was_published_but_not_dropped_goes_with_the_next_attempt() {
    let world = World::new();
    let segment = large(&world);
    let job = world.pack_job(&segment);
    let marks = interrupted(&world, &job).await;
    // As a folder has it whose writer is killed between the two steps: the shard is there, and the upload too.
    pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
    assert_eq!(open_uploads(&world).await, 1);
    let packed = pack_segment(&job, marks, world.sources(), &NoHooks).await.unwrap();
    assert!(packed.adopted);
    assert_eq!(open_uploads(&world).await, 0);
    assert_eq!(contents(&world, &segment).await, expected(&segment));
}

#[tokio::test]
async fn a_lost_answer_of_the_write_that_decides_counts_as_success() {
    let cases: [Case; 2] = [(small, Operation::Put), (large, Operation::CompleteUpload)];
    for (segment, operation) in cases {
        let world = World::new();
        let segment = segment(&world);
        world.zone.add(Rule::once(operation, Fault::After(StoreErrorKind::Unavailable)));
        let mut job = world.pack_job(&segment);
        let inner: SharedStore = world.zone.clone();
        let policy = RetryPolicy { first: std::time::Duration::ZERO, ..RetryPolicy::QUICK };
        job.store = Arc::new(RetryingStore::new(inner, policy, Arc::new(Dice::seeded(1))));
        let packed = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
        assert_eq!(packed.totals.files_packed, segment.files.len() as u64);
        assert_eq!(packed.totals.stored_bytes, world.shard_bytes(&segment).await.len() as u64);
        assert!(packed.failed.is_empty() && packed.adopted);
        assert_eq!(contents(&world, &segment).await, expected(&segment));
        assert_eq!(open_uploads(&world).await, 0);
    }
}

#[tokio::test]
async fn a_lost_answer_that_nobody_tried_again_is_found_by_the_next_attempt_without_packing() {
    let world = World::new();
    let segment = large(&world);
    world.zone.add(Rule::once(Operation::CompleteUpload, Fault::After(StoreErrorKind::Unavailable)));
    let job = world.pack_job(&segment);
    let error = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap_err();
    assert_eq!(error.advice(), Advice::TryLater);
    let parts = world.calls("put_part");
    let packed = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
    assert!(packed.adopted);
    assert_eq!(packed.totals.files_packed, 6);
    assert_eq!(world.calls("put_part"), parts, "nothing was packed again");
}

#[tokio::test]
async fn an_upload_that_vanished_begins_again() {
    for operation in [Operation::PutPart, Operation::CompleteUpload] {
        for kind in [StoreErrorKind::UploadGone, StoreErrorKind::Conflict] {
            let world = World::new();
            let segment = large(&world);
            world.zone.add(Rule::once(operation, Fault::Before(kind)));
            let job = world.pack_job(&segment);
            let error = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap_err();
            assert_eq!(error.advice(), Advice::BeginAgain, "{operation:?} {kind:?}: {error}");
            assert_eq!(open_uploads(&world).await, 0);
        }
    }
}

#[tokio::test]
async fn a_big_files_upload_that_vanished_begins_again_by_itself() {
    for operation in [Operation::PutPart, Operation::CompleteUpload] {
        let world = World::new();
        let segment = big(&world);
        world.zone.add(Rule::once(operation, Fault::Before(StoreErrorKind::UploadGone)));
        pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap();
        assert_eq!(contents(&world, &segment).await, expected(&segment));
        assert_eq!(open_uploads(&world).await, 0);
    }
}

#[tokio::test]
async fn parts_that_a_zombie_wrote_again_are_not_taken_for_ours() {
    let world = World::new();
    let segment = large(&world);
    let marks = Marks::default();
    let job = world.pack_job(&segment);
    world.zone.add(Rule::once(Operation::PutPart, Fault::Before(StoreErrorKind::Unavailable)).after(1));
    pack_segment(&job, Vec::new(), world.sources(), &marks).await.unwrap_err();
    let marks = marks.0.into_inner().unwrap();
    world.zone.put_part(&job.key, &marks[0].upload_id, 1, noise(9, 6 << 20).into()).await.unwrap();
    let error = pack_segment(&job, marks, world.sources(), &NoHooks).await.unwrap_err();
    assert!(matches!(error, PackError::UploadLost(_)), "{error}");
    assert_eq!(error.advice(), Advice::BeginAgain);
    assert_eq!(open_uploads(&world).await, 0);
    assert!(world.objects().is_empty());
}
