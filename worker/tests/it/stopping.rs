//! Leases that are lost, jobs that are paused or cancelled, tasks that hang: what a worker does then, and how soon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use des_shared::ids::WorkerId;
use des_shared::layout;
use des_shared::queue::{Lease, Queue, TaskState, WorkerInfo};
use des_shared::segment::{PackOptions, Segment};
use des_shared::store::ObjectStore;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use des_worker::budget::Budget;
use des_worker::pack::{NoHooks, PackJob, pack_segment};
use tokio_util::sync::CancellationToken;

use crate::gate::{Gate, Trick};
use crate::victims::{held_up, three_parts};
use crate::world::{Worker, World, contents, eventually, expected, limits, noise, prose};

/// From the moment a lease is another's until nothing of the task runs any more.
const AT_MOST: Duration = Duration::from_secs(1);

/// The lease of the running task runs out, and another worker has it now.
async fn taken_over(world: &World) -> Lease {
    world.expire_leases().await;
    let other = WorkerInfo { id: WorkerId::from_random([9; 16]), name: "other".to_owned(), slots: 1 };
    world.queue.claim(&other, 1).await.unwrap().remove(0)
}

async fn stops(worker: &Worker, since: Instant) {
    eventually("the worker stops the task", || async {
        let free = worker.metric("des_worker_busy_slots") < 0.5;
        (worker.metric("des_worker_leases_lost_total") > 0.5 && free).then_some(())
    })
    .await;
    assert!(since.elapsed() < AT_MOST, "it took {:?}", since.elapsed());
}

/// Everything a worker can leave in its zone and state store.
async fn traces(world: &World) -> (Vec<String>, Vec<String>, u64, usize) {
    let uploads = world.zone.list_uploads("", 1000).await.unwrap().len();
    (world.objects(), world.state_objects(""), world.calls("put_part") + world.calls("put"), uploads)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_stops_a_task_that_reads_from_a_slow_source() {
    let world = World::new();
    let (segment, gate, worker) = held_up(&world).await;
    let lost = Instant::now();
    let theirs = taken_over(&world).await;
    stops(&worker, lost).await;
    let before = traces(&world).await;
    gate.open_up();
    worker.stop().await;
    assert_eq!(traces(&world).await, before, "nothing is touched any more");
    assert_eq!(before.3, 1, "the upload is the next holder's");
    let checkpoint = theirs.checkpoint.expect("progress was made");
    world.zone.list_parts(&layout::shard_key(&segment), &checkpoint.upload_id).await.expect("and still there");
    assert_eq!(world.queue.audit(), Vec::<String>::new());
}

/// A file that takes level 22 far longer than a second, on any machine.
fn slow_to_compress(world: &World) -> Segment {
    let file = world.file("slow.json", &[prose(1, 2 << 20), noise(2, 8 << 20), prose(3, 2 << 20)].concat());
    let options = PackOptions { level: 22, big_file_threshold_bytes: 64 << 20, ..PackOptions::default() };
    world.segment(0, options, vec![file])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_stops_a_task_that_compresses_a_large_block() {
    let world = World::new();
    let segment = slow_to_compress(&world);
    world.submit(std::slice::from_ref(&segment)).await;
    // One thread for all: whoever wants to compress waits until the lost task gives it back.
    let limits = des_worker::pack::PackLimits { budget: Budget::new(128 << 20, 1), ..limits() };
    let shared = limits.clone();
    let worker = world.worker_as(None, world.sources(), |options| options.limits = shared).await;
    world.until("it runs", |c| c.leased == 1).await;
    // Until the file is read and being compressed: a small pack of the same budget then has to wait.
    let small = || {
        let segment = world.segment(1, PackOptions::default(), vec![world.file("small", &prose(5, 3000))]);
        let store = world.zone.clone();
        let job = PackJob::task(Arc::new(segment), store, limits.clone(), CancellationToken::new());
        let sources = world.sources();
        async move { pack_segment(&job, Vec::new(), sources, &NoHooks).await.unwrap() }
    };
    eventually("the thread is busy", || async {
        world
            .zone
            .delete(&layout::shard_key(&world.segment(
                1,
                PackOptions::default(),
                vec![world.file("small", &prose(5, 3000))],
            )))
            .await
            .unwrap();
        tokio::time::timeout(Duration::from_millis(300), small()).await.is_err().then_some(())
    })
    .await;
    let lost = Instant::now();
    taken_over(&world).await;
    stops(&worker, lost).await;
    small().await;
    assert!(lost.elapsed() < AT_MOST, "the thread was given back after {:?}", lost.elapsed());
    worker.stop().await;
    assert_eq!(world.objects().len(), 1, "only the small shard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_stops_a_task_whose_upload_stalls() {
    let world = World::new();
    let segment = three_parts(&world);
    world.submit(std::slice::from_ref(&segment)).await;
    world.zone.add(Rule::once(Operation::PutPart, Fault::Delay(Duration::from_hours(1))).after(1).times(9));
    let worker = world.worker(None, world.sources()).await;
    world.until("a part is checkpointed", |c| c.in_progress.files_packed > 0).await;
    eventually("the next one stalls", || async { (world.zone.injected() > 0).then_some(()) }).await;
    let lost = Instant::now();
    taken_over(&world).await;
    stops(&worker, lost).await;
    let before = traces(&world).await;
    world.zone.heal();
    worker.stop().await;
    assert_eq!(traces(&world).await, before, "nothing is touched any more");
    assert_eq!(world.calls("put_part"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_jobs_task_is_handed_back_at_its_next_part_and_another_jobs_goes_on() {
    let world = World::new();
    let (paused, gate, worker) = held_up(&world).await;
    let asked = Instant::now();
    world.queue.set_paused(world.job, true).await.unwrap();
    world.until("it is handed back", |c| (c.pending, c.leased) == (1, 0)).await;
    assert!(asked.elapsed() < AT_MOST, "{:?}", asked.elapsed());
    let task = world.queue.tasks(world.job, 0, 1).await.unwrap().remove(0);
    assert_eq!((task.state, task.attempts), (TaskState::Pending, 0), "it costs no attempt");
    assert!(task.checkpoint.is_some(), "what is uploaded is kept");
    gate.open_up();
    // The worker still works: it waits for what is not paused.
    world.queue.set_paused(world.job, false).await.unwrap();
    world.until("it goes on", |c| c.committed == 1).await;
    assert_eq!(contents(&world, &paused).await, expected(&paused));
    assert_eq!(world.calls("create_upload"), 1, "in the same upload");
    worker.stop().await;
    assert_eq!(world.queue.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_answered_with_a_pause_hands_back_without_a_heartbeat() {
    let world = World::new();
    let segment = three_parts(&world);
    world.submit(std::slice::from_ref(&segment)).await;
    world.zone.add(Rule::once(Operation::PutPart, Fault::Delay(Duration::from_millis(500))));
    let worker = world.worker_as(None, world.sources(), |options| options.heartbeat = Duration::from_hours(1)).await;
    world.until("it runs", |c| c.leased == 1).await;
    eventually("the first part is under way", || async { (world.zone.injected() > 0).then_some(()) }).await;
    world.queue.set_paused(world.job, true).await.unwrap();
    let counters = world.until("it is handed back", |c| (c.pending, c.leased) == (1, 0)).await;
    assert!(counters.in_progress.files_packed > 0);
    assert!(world.objects().iter().all(|key| key.starts_with(".uploads")), "{:?}", world.objects());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_jobs_task_stops_and_leaves_nothing() {
    let world = World::new();
    let mut segment = three_parts(&world);
    // A big file is being uploaded at the same time.
    segment.files.push(&world.file("f9-big", &noise(9, 12 << 20)));
    segment.options.big_file_threshold_bytes = 10 << 20;
    world.submit(std::slice::from_ref(&segment)).await;
    // Part of the big file, then it stalls; the shard's own parts pass.
    let stalled = Rule::once(Operation::PutPart, Fault::Delay(Duration::from_hours(1))).on_keys_with("_bigFiles");
    world.zone.add(stalled.after(1).times(9));
    let worker = world.worker(None, world.sources()).await;
    world.until("a part is checkpointed", |c| c.in_progress.files_packed > 0).await;
    eventually("both uploads are open", || async {
        (world.zone.list_uploads("", 10).await.unwrap().len() == 2 && world.zone.injected() > 0).then_some(())
    })
    .await;
    assert!(!world.state_objects("checkpoints/").is_empty());
    let asked = Instant::now();
    while world.queue.cancel_job(world.job, 10).await.unwrap() > 0 {}
    eventually("the worker stops the task", || async {
        (worker.metric("des_worker_tasks_total{outcome=\"cancelled\"}") > 0.5).then_some(())
    })
    .await;
    assert!(asked.elapsed() < AT_MOST, "{:?}", asked.elapsed());
    worker.stop().await;
    assert_eq!(world.zone.list_uploads("", 10).await.unwrap(), [], "its uploads are dropped");
    assert_eq!(world.state_objects("checkpoints/"), Vec::<String>::new(), "its marks are removed");
    assert_eq!(world.objects(), Vec::<String>::new());
    let task = world.queue.tasks(world.job, 0, 1).await.unwrap().remove(0);
    assert_eq!((task.state, task.message), (TaskState::Cancelled, None));
    assert_eq!(world.queue.audit(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_worker_drops_the_upload_of_a_big_file_it_was_at() {
    for at_once in [false, true] {
        let world = World::new();
        let segment = world.segment(0, PackOptions::default(), vec![world.file("big", &noise(1, 22 << 20))]);
        world.submit(std::slice::from_ref(&segment)).await;
        world.zone.add(Rule::once(Operation::PutPart, Fault::Delay(Duration::from_hours(1))).after(1).times(9));
        let drain = if at_once { Duration::from_millis(500) } else { Duration::from_secs(20) };
        let worker = world.worker_as(None, world.sources(), |options| options.drain = drain).await;
        eventually("the second part stalls", || async { (world.zone.injected() > 0).then_some(()) }).await;
        assert_eq!(world.zone.list_uploads("", 10).await.unwrap().len(), 1);
        let asked = Instant::now();
        worker.stop().await;
        assert!(asked.elapsed() < AT_MOST, "{:?}", asked.elapsed());
        assert_eq!(world.zone.list_uploads("", 10).await.unwrap(), []);
        assert_eq!(world.counters().await.pending, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_worker_hands_back_within_a_second_whatever_the_store_does() {
    let cases =
        [(Operation::Head, 0), (Operation::CreateUpload, 0), (Operation::PutPart, 1), (Operation::CompleteUpload, 0)];
    for (operation, after) in cases {
        let world = World::new();
        let segment = three_parts(&world);
        world.submit(std::slice::from_ref(&segment)).await;
        world.zone.add(Rule::once(operation, Fault::Delay(Duration::from_hours(1))).after(after).times(9));
        let worker = world.worker(None, world.sources()).await;
        eventually("the store stalls", || async { (world.zone.injected() > 0).then_some(()) }).await;
        let asked = Instant::now();
        worker.shutdown.begin();
        world.until("it is handed back", |c| (c.pending, c.leased) == (1, 0)).await;
        assert!(asked.elapsed() < AT_MOST, "{operation:?}: {:?}", asked.elapsed());
        worker.stop().await;
        // What was checkpointed is kept, an upload without a checkpoint is not.
        let kept = usize::from(matches!(operation, Operation::PutPart | Operation::CompleteUpload));
        world.zone.heal();
        assert_eq!(world.zone.list_uploads("", 10).await.unwrap().len(), kept, "{operation:?}");
        let next = world.worker(None, world.sources()).await;
        world.until("the next worker commits", |c| c.committed == 1).await;
        assert_eq!(contents(&world, &segment).await, expected(&segment));
        assert_eq!(world.zone.list_uploads("", 10).await.unwrap(), []);
        next.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_file_that_ends_the_attempt_drops_the_upload_of_a_big_file() {
    let world = World::new();
    let files = vec![world.file("a-big", &noise(1, 22 << 20)), world.file("b", b"b")];
    let segment = world.segment(0, PackOptions::default(), files);
    world.zone.add(Rule::once(Operation::PutPart, Fault::Delay(Duration::from_hours(1))).after(1).times(9));
    let gate = Gate::new(world.sources());
    let job = world.pack_job(&segment);
    let stop = job.drain.clone();
    let packing = tokio::spawn({
        let gate = gate.clone();
        async move { pack_segment(&job, Vec::new(), gate, &NoHooks).await }
    });
    eventually("the second part stalls", || async { (world.zone.injected() > 0).then_some(()) }).await;
    stop.cancel();
    packing.await.unwrap().unwrap_err();
    assert_eq!(world.zone.list_uploads("", 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_without_progress_fails_and_its_lease_is_not_renewed_for_ever() {
    let world = World::new();
    let segment = three_parts(&world);
    world.submit(std::slice::from_ref(&segment)).await;
    let gate = Gate::new(world.sources());
    gate.trick("f5", Trick::Wait);
    let stall = Duration::from_millis(700);
    let worker = world.worker_as(None, gate.clone(), |options| options.stall = stall).await;
    gate.somebody_waits().await;
    let hung = Instant::now();
    world.until("it has failed", |c| c.delayed == 1).await;
    assert!(hung.elapsed() >= stall / 2, "{:?}: a task that gets on was taken for hung", hung.elapsed());
    let task = world.queue.tasks(world.job, 0, 1).await.unwrap().remove(0);
    assert!(task.message.as_deref().unwrap().contains("made no progress for 0.7 s"), "{task:?}");
    gate.open_up();
    eventually("it is committed in the end", || async {
        world.clock.advance(Duration::from_secs(1));
        (world.counters().await.committed == 1).then_some(())
    })
    .await;
    assert_eq!(contents(&world, &segment).await, expected(&segment));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_big_file_is_no_hung_task() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("big", &noise(1, 22 << 20))]);
    world.submit(std::slice::from_ref(&segment)).await;
    // Four parts and one completion of 400 ms each: longer in all than the stall.
    world.zone.add(Rule::once(Operation::PutPart, Fault::Delay(Duration::from_millis(400))).times(9));
    let worker = world.worker_as(None, world.sources(), |options| options.stall = Duration::from_millis(1200)).await;
    world.until("it is committed", |c| c.committed == 1).await;
    assert_eq!(contents(&world, &segment).await, expected(&segment));
    assert!(worker.metric("des_worker_tasks_total{outcome=\"failed\"}") < 0.5);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_say_how_far_each_task_is() {
    let world = World::new();
    let (segment, gate, worker) = held_up(&world).await;
    let done = eventually("the worker says what it has done", || async {
        let workers = world.queue.workers().await.unwrap();
        workers.first()?.tasks.first().copied().filter(|task| task.done_bytes >= 4 << 20)
    })
    .await;
    assert_eq!((done.task, done.source_bytes), (segment.task, 12 << 20));
    assert!(done.done_bytes <= 10 << 20, "{done:?}");
    gate.open_up();
    world.until("it is committed", |c| c.committed == 1).await;
    worker.stop().await;
}
