//! Layers that another one behind them would catch too: what each of them saves.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use des_shared::queue::{Queue, SharedQueue};
use des_shared::segment::PackOptions;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};

use crate::gate::{Gate, Trick};
use crate::script::Script;
use crate::victims::three_parts;
use crate::world::{World, contents, eventually, expected, line};

/// The queue forgets a task that has its receipt, and hands it out again.
async fn handed_out_again(world: &World, segment: &des_shared::segment::Segment) {
    world.submit(std::slice::from_ref(segment)).await;
    let first = world.worker(None, world.sources()).await;
    world.until("it is committed", |c| c.committed == 1).await;
    first.stop().await;
    world.queue.forget_job(world.job).await.unwrap();
    world.submit(std::slice::from_ref(segment)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_has_its_receipt_touches_neither_its_sources_nor_its_zone() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"a"), world.file("b", b"bb")]);
    handed_out_again(&world, &segment).await;
    let (receipt, calls) = (world.state.receipt(segment.task).await.unwrap(), world.all_calls());
    let gate = Gate::new(world.sources());
    gate.trick("a", Trick::Panic);
    gate.trick("b", Trick::Panic);
    let second = world.worker(None, gate).await;
    let counters = world.until("the receipt is committed", |c| c.committed == 1).await;
    assert_eq!(Some(counters.totals), receipt.map(|receipt| receipt.totals));
    assert_eq!(world.all_calls(), calls, "the zone was not asked");
    second.stop().await;
}

/// The published shard cannot be found where there is none, so only the receipt can say that the task is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_files_all_failed_publishes_nothing_when_they_are_back() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![line("late", 4, &world.src().join("late"))]);
    handed_out_again(&world, &segment).await;
    world.write("late", b"late");
    let second = world.worker(None, world.sources()).await;
    let counters = world.until("the receipt is committed", |c| c.committed == 1).await;
    second.stop().await;
    assert_eq!((counters.totals.files_packed, counters.totals.files_failed), (0, 1));
    assert_eq!(world.objects(), Vec::<String>::new(), "the file is in the failure list, and so in no shard");
}

/// The heartbeat named the task before it was committed, and is answered when the queue holds it no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_that_meets_a_commit_does_not_take_the_task_for_lost() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"a")]);
    world.submit(std::slice::from_ref(&segment)).await;
    let gate = Gate::new(world.sources());
    gate.trick("a", Trick::Wait);
    let script = Script::new(world.queue.clone());
    let shared: SharedQueue = script.clone();
    let worker = world.worker(Some(shared), gate.clone()).await;
    gate.somebody_waits().await;
    script.beats_meet_commits.store(true, Ordering::SeqCst);
    script.a_beat_waits().await;
    gate.open_up();
    world.until("it is committed", |c| c.committed == 1).await;
    eventually("its slot is free", || async { (worker.metric("des_worker_busy_slots") < 0.5).then_some(()) }).await;
    assert!(worker.metric("des_worker_leases_lost_total") < 0.5);
    assert!(worker.metric("des_worker_tasks_total{outcome=\"committed\"}") > 0.5);
    assert_eq!(contents(&world, &segment).await, expected(&segment));
    worker.stop().await;
}

/// The queue did not hear that the task is handed back: then its lease has to run out, although the worker still has to
/// do with it, here with an upload that it cannot drop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_could_not_be_handed_back_is_not_renewed_any_more() {
    let world = World::new();
    let segment = three_parts(&world);
    world.submit(std::slice::from_ref(&segment)).await;
    for operation in [Operation::PutPart, Operation::AbortUpload] {
        world.zone.add(Rule::once(operation, Fault::Delay(Duration::from_hours(1))).times(9));
    }
    let script = Script::new(world.queue.clone());
    script.takes_nothing_back.store(true, Ordering::SeqCst);
    let shared: SharedQueue = script.clone();
    let worker = world.worker(Some(shared), world.sources()).await;
    eventually("its first part stalls", || async { (world.zone.injected() > 0).then_some(()) }).await;
    world.queue.set_paused(world.job, true).await.unwrap();
    script.somebody_was_refused().await;
    let refused = Instant::now();
    eventually("heartbeats do not name it any more", || async {
        world.queue.workers().await.unwrap().first()?.tasks.is_empty().then_some(())
    })
    .await;
    assert!(refused.elapsed() < Duration::from_secs(5), "{:?}", refused.elapsed());
    assert_eq!(world.counters().await.leased, 1);
    world.expire_leases().await;
    assert_eq!(world.counters().await.pending, 1, "its lease ran out");
    drop(worker);
}
