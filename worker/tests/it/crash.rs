//! Workers that die, freeze or wake up too late: one shard, one receipt, the same bytes, at most one part done twice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use des_shared::layout;
use des_shared::queue::{Queue, SharedQueue};
use des_shared::receipt::FailureReason;
use des_shared::segment::{CodecChoice, PackOptions, Segment, ShardFormat};
use des_shared::store::{ByteRange, ObjectStore};
use des_worker::pack::{NoHooks, pack_segment};

use crate::gate::{Gate, Trick};
use crate::script::Script;
use crate::victims::killed_after;
use crate::world::{World, contents, eventually, line, noise, options, prose};

/// Files of 4 to 5 parts, with a dictionary, a big file and failures in the first, middle and last part.
fn large(world: &World, format: ShardFormat) -> Segment {
    let mut files = vec![world.file("0-big", &noise(7, 11 << 20)), line("0-gone", 3, &world.src().join("gone"))];
    for n in 0..30_u32 {
        files.push(world.file(&format!("{n:02}-record"), &prose(n as usize, 5000)));
        files.push(world.file(&format!("{n:02}-noise.gz"), &noise(u64::from(n), 800_000)));
    }
    files.push(line("15-gone", 3, &world.src().join("gone")));
    files.push(line("99-gone", 3, &world.src().join("gone")));
    world.segment(0, options(format, CodecChoice::Zstd), files)
}

/// The bytes and the number of parts of a pack that nobody interrupted.
async fn uninterrupted(world: &World, segment: &Segment) -> (bytes::Bytes, u64) {
    let other = World::new();
    let job = other.pack_job(segment);
    let packed = pack_segment(&job, Vec::new(), world.sources(), &NoHooks).await.unwrap();
    assert_eq!((packed.totals.files_packed, packed.totals.files_failed), (61, 3));
    // Three parts are the big file's.
    (other.shard_bytes(segment).await, other.calls("put_part") - 3)
}

async fn check_end(world: &World, segment: &Segment, expected: &bytes::Bytes) {
    let counters = world.until("the task is committed", |c| c.committed == 1).await;
    assert_eq!(&world.shard_bytes(segment).await, expected);
    let receipt = world.state.receipt(segment.task).await.unwrap().unwrap();
    assert_eq!(receipt.totals, counters.totals);
    assert_eq!((counters.totals.files_packed, counters.totals.files_failed), (61, 3));
    let list = world.state.read_bytes(&layout::failures(segment.task, receipt.token)).await.unwrap().unwrap();
    assert_eq!(std::str::from_utf8(&list).unwrap().lines().count(), 3);
    assert_eq!(world.objects().len(), 2, "one shard, one big file: {:?}", world.objects());
    assert_eq!(world.queue.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_every_checkpoint_the_next_worker_goes_on_with_the_same_bytes() {
    for format in [ShardFormat::V3, ShardFormat::V2] {
        let mut stop_at = 1;
        loop {
            let world = World::new();
            let segment = large(&world, format);
            let (expected, parts) = uninterrupted(&world, &segment).await;
            assert!(parts >= 4);
            world.submit(std::slice::from_ref(&segment)).await;
            killed_after(&world, stop_at).await;
            world.expire_leases().await;
            let next = world.worker(None, world.sources()).await;
            check_end(&world, &segment, &expected).await;
            assert!((next.metric("des_worker_takeovers_total") - 1.0).abs() < 0.1);
            // What the killed one had in flight may have been uploaded twice: one part. The big file's three parts lie
            // before the checkpoint and are not.
            let uploaded = world.calls("put_part") - 3;
            assert!(uploaded <= parts + 1, "{uploaded} uploads of {parts} parts, killed after {stop_at}");
            // Counted in bytes: a part ends behind the file that reaches its size.
            let twice = world.bytes_written() - expected.len() as u64 - (11 << 20);
            assert!(twice <= crate::world::PART as u64 + 800_000, "{twice} bytes twice, killed after {stop_at}");
            assert_eq!(world.calls("create_upload"), 2, "the upload was continued");
            eventually("the checkpoints are removed", || async {
                world.state_objects("checkpoints").is_empty().then_some(())
            })
            .await;
            next.stop().await;
            if stop_at >= parts - 1 {
                break;
            }
            stop_at += 1;
        }
        assert!(stop_at >= 3);
    }
}

/// The queue of one-machine mode is in memory, and Redis may lose everything: what lies in the state store is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_goes_on_in_its_upload_although_the_queue_has_lost_its_checkpoint() {
    for holders in [1, 3] {
        let world = World::new();
        let segment = large(&world, ShardFormat::V3);
        let (expected, parts) = uninterrupted(&world, &segment).await;
        for _ in 0..holders {
            world.submit(std::slice::from_ref(&segment)).await;
            killed_after(&world, 1).await;
            world.queue.forget_job(world.job).await.unwrap();
        }
        world.submit(std::slice::from_ref(&segment)).await;
        let lease_has_none = world.queue.tasks(world.job, 0, 1).await.unwrap()[0].checkpoint.is_none();
        assert!(lease_has_none, "the queue knows nothing of it");
        let next = world.worker(None, world.sources()).await;
        check_end(&world, &segment, &expected).await;
        assert_eq!(world.calls("create_upload"), 2, "one for the shard, one for the big file");
        let uploaded = world.calls("put_part") - 3;
        assert!(uploaded <= parts + holders, "{uploaded} uploads of {parts} parts");
        eventually("the marks are removed", || async { world.state_objects("checkpoints").is_empty().then_some(()) })
            .await;
        next.stop().await;
    }
}

/// Marks of an upload that is gone are not continued, and do not stand in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_that_fit_nothing_any_more_are_begun_again() {
    for damage in ["upload gone", "part replaced", "mark damaged", "mark gone"] {
        let world = World::new();
        let segment = large(&world, ShardFormat::V3);
        let (expected, _) = uninterrupted(&world, &segment).await;
        world.submit(std::slice::from_ref(&segment)).await;
        killed_after(&world, 2).await;
        world.queue.forget_job(world.job).await.unwrap();
        let key = layout::shard_key(&segment);
        let upload = world.zone.list_uploads(&key, 10).await.unwrap().remove(0);
        let mut marks = world.state_objects("checkpoints");
        marks.sort();
        match damage {
            "upload gone" => world.zone.abort_upload(&key, &upload.upload_id).await.unwrap(),
            "part replaced" => {
                world.zone.put_part(&key, &upload.upload_id, 1, noise(1, 6 << 20).into()).await.unwrap();
            }
            "mark damaged" => {
                world.state.write_bytes(&marks[0], bytes::Bytes::from_static(b"junk")).await.unwrap();
            }
            _ => world.state.delete(&marks[0]).await.unwrap(),
        }
        world.submit(std::slice::from_ref(&segment)).await;
        let next = world.worker(None, world.sources()).await;
        check_end(&world, &segment, &expected).await;
        eventually("the marks are removed", || async { world.state_objects("checkpoints").is_empty().then_some(()) })
            .await;
        next.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_holders_in_a_row_each_do_one_part() {
    let world = World::new();
    let segment = large(&world, ShardFormat::V3);
    let (expected, parts) = uninterrupted(&world, &segment).await;
    world.submit(std::slice::from_ref(&segment)).await;
    for _ in 0..3 {
        killed_after(&world, 1).await;
        world.expire_leases().await;
    }
    let last = world.worker(None, world.sources()).await;
    check_end(&world, &segment, &expected).await;
    assert!(world.calls("put_part") - 3 <= parts + 3);
    last.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_disagrees_with_the_store_is_dropped() {
    // What goes wrong between the two holders.
    for damage in ["upload aborted", "part replaced", "row object gone", "row object damaged"] {
        let world = World::new();
        let segment = large(&world, ShardFormat::V3);
        let (expected, parts) = uninterrupted(&world, &segment).await;
        world.submit(std::slice::from_ref(&segment)).await;
        killed_after(&world, 2).await;
        let key = layout::shard_key(&segment);
        let upload = eventually("only the shard's upload is open", || async {
            let open = world.zone.list_uploads(&key, 1000).await.unwrap();
            open.first().cloned()
        })
        .await;
        let marks = world.state_objects("checkpoints");
        match damage {
            "upload aborted" => world.zone.abort_upload(&key, &upload.upload_id).await.unwrap(),
            "part replaced" => {
                world.zone.put_part(&key, &upload.upload_id, 1, noise(1, 6 << 20).into()).await.unwrap();
            }
            "row object gone" => world.state_store.delete(&marks[0]).await.unwrap(),
            _ => {
                let mut bytes = world.state_store.get(&marks[0], ByteRange::Full).await.unwrap().bytes.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x55;
                bytes.push(0);
                world.state.write_bytes(&marks[0], bytes.into()).await.unwrap();
            }
        }
        world.expire_leases().await;
        let before = world.calls("put_part");
        let next = world.worker(None, world.sources()).await;
        check_end(&world, &segment, &expected).await;
        // It is found out before anything is packed behind the marks, not by the store when the shard is completed.
        assert_eq!(world.calls("put_part") - before, parts, "{damage}");
        assert!(world.zone.list_uploads("", 1000).await.unwrap().is_empty(), "{damage}");
        next.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_lease_was_given_away_stops_and_touches_nothing_more() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"a"), world.file("b", b"b")]);
    world.submit(std::slice::from_ref(&segment)).await;
    let gate = Gate::new(world.sources());
    gate.trick("b", Trick::Wait);
    let script = Script::new(world.queue.clone());
    let shared: SharedQueue = script.clone();
    // A short lease by the worker's own clock makes its heartbeats frequent; the queue's clock is the test's.
    let slow = world.worker_with(Some(shared), gate.clone(), 1, Duration::from_secs(3)).await;
    gate.somebody_waits().await;
    // The task must go to the second worker: the first may see its loss, and ask again, before the second has started.
    script.gives_nothing_out.store(true, Ordering::SeqCst);
    world.expire_leases().await;
    let quick = world.worker(None, world.sources()).await;
    world.until("the second worker commits", |c| c.committed == 1).await;
    eventually("the first worker sees it", || async {
        (slow.metric("des_worker_leases_lost_total") > 0.5).then_some(())
    })
    .await;
    let before = (world.objects(), world.calls("put"));
    gate.open_up();
    assert!((slow.metric("des_worker_busy_slots")).abs() < 0.1, "its slot is free although the read never ended");
    slow.stop().await;
    assert_eq!((world.objects(), world.calls("put")), before);
    assert_eq!(world.queue.audit(), Vec::<String>::new());
    quick.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_that_publishes_late_finds_the_shard_and_its_receipt() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"a"), world.file("b", b"bb")]);
    world.submit(std::slice::from_ref(&segment)).await;
    let gate = Gate::new(world.sources());
    gate.trick("b", Trick::Wait);
    let script = Script::new(world.queue.clone());
    script.deaf.store(true, Ordering::SeqCst);
    let shared: SharedQueue = script.clone();
    let zombie = world.worker(Some(shared), gate.clone()).await;
    gate.somebody_waits().await;
    world.expire_leases().await;
    let quick = world.worker(None, world.sources()).await;
    let counters = world.until("the second worker commits", |c| c.committed == 1).await;
    let bytes = world.shard_bytes(&segment).await;
    let receipt = world.state.receipt(segment.task).await.unwrap();
    gate.open_up();
    eventually("the zombie is told", || async { (zombie.metric("des_worker_leases_lost_total") > 0.5).then_some(()) })
        .await;
    assert_eq!(world.shard_bytes(&segment).await, bytes);
    assert_eq!(world.state.receipt(segment.task).await.unwrap(), receipt);
    assert_eq!(world.objects().len(), 1);
    assert_eq!(world.counters().await, counters, "nothing is counted twice");
    assert_eq!(world.queue.audit(), Vec::<String>::new());
    zombie.stop().await;
    quick.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_failed_for_the_zombie_that_published_is_in_the_failure_list() {
    let world = World::new();
    let late = line("late", 4, &world.src().join("late"));
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"a"), late]);
    // The zombie's shard, published without a receipt.
    let zombie = pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap();
    assert_eq!(zombie.totals.files_failed, 1);
    world.write("late", b"late");
    world.submit(std::slice::from_ref(&segment)).await;
    let worker = world.worker(None, world.sources()).await;
    let counters = world.until("the task is committed", |c| c.committed == 1).await;
    assert_eq!((counters.totals.files_packed, counters.totals.files_failed), (1, 1));
    let receipt = world.state.receipt(segment.task).await.unwrap().unwrap();
    let list = world.state.read_bytes(&layout::failures(segment.task, receipt.token)).await.unwrap().unwrap();
    let text = String::from_utf8(list.to_vec()).unwrap();
    assert!(text.contains("late") && text.contains("not_in_published_shard"), "{text}");
    assert_eq!(contents(&world, &segment).await.len(), 1);
    assert_eq!(zombie.failed[0].reason, FailureReason::Missing);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_from_the_queue_a_worker_stops_before_its_lease_can_be_anothers() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"a")]);
    world.submit(std::slice::from_ref(&segment)).await;
    let gate = Gate::new(world.sources());
    gate.trick("a", Trick::Wait);
    let script = Script::new(world.queue.clone());
    let shared: SharedQueue = script.clone();
    let lease = Duration::from_secs(2);
    let asked = std::time::Instant::now();
    let worker = world.worker_with(Some(shared), gate.clone(), 1, lease).await;
    gate.somebody_waits().await;
    script.away.store(true, Ordering::SeqCst);
    let cut_off = std::time::Instant::now();
    eventually("the worker stops the task", || async {
        (worker.metric("des_worker_leases_lost_total") > 0.5).then_some(())
    })
    .await;
    assert!(cut_off.elapsed() < lease + Duration::from_millis(200), "{:?}", cut_off.elapsed());
    assert!(asked.elapsed() >= lease / 2, "not before it had to");
    assert_eq!(world.counters().await.leased, 1, "nobody could tell the queue");
    // The connection comes back: the worker is still of use.
    gate.open_up();
    script.away.store(false, Ordering::SeqCst);
    world.expire_leases().await;
    world.until("the task is committed after all", |c| c.committed == 1).await;
    worker.stop().await;
    assert_eq!(Arc::strong_count(&script), 1, "nothing of the worker is left");
}
